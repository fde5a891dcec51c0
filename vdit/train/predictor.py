"""A small network that says the next frame of an emulator, trained by squared error: what a world model must beat.

    predictor = train_predictor("pong", PredictorConfig())
    frames = predictor.predict(before, before_actions, actions)     # uint8 [n h w 3]

It is deterministic: where the future is not certain it gives the mean of the futures, so small things fade. It goes on
from its own frames.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from einops import rearrange

from vdit.data.episodes import EpisodesDataset
from vdit.errors import ConfigError, DataError, ShapeError, one_line
from vdit.outputs import write_whole
from vdit.reprs import short_repr
from vdit.types import Array

_PATCH = 4  # side of the square of pixels that are folded into channels
_NOTE = "predictor"


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """What the predictor is, and how long it is trained.

    frames: that it sees. width: channels. blocks: pairs of 3x3 convolutions. steps, batch_size, learning_rate: of Adam,
    down to 0 by a cosine. seed: of every random choice.
    """

    frames: int = 4
    width: int = 48
    blocks: int = 3
    steps: int = 1500
    batch_size: int = 16
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("frames", "width", "blocks", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"predictor {name}={getattr(self, name)}: give 1 or more")
        if not self.learning_rate > 0:
            raise ConfigError(f"predictor learning_rate={self.learning_rate}: must be above 0")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A trained one. params: name -> float32 array."""

    config: PredictorConfig
    params: dict[str, np.ndarray]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(value.size for value in self.params.values())

    def predict(self, before: np.ndarray, before_actions: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """What follows, frame by frame.

        Args:
            before: uint8 [k h w 3]; of fewer frames than it sees, the first stands for those that are missing.
            before_actions: float32 [k a], each led to its frame.
            actions: float32 [n a], what is done then.

        Returns:
            uint8 [n h w 3].

        Raises:
            ShapeError: actions of another width than it was trained with, or sides that are no multiples of 4.
        """
        width = self.params["action"].shape[0] // self.config.frames
        if actions.shape[1:] != (width,) or before_actions.shape != (len(before), width):
            raise ShapeError(f"actions {actions.shape} after {before_actions.shape}: the predictor takes [n {width}]")
        _check_sides(before.shape[1:3])
        k = self.config.frames
        missing = max(0, k - len(before))
        frames = np.concatenate([np.repeat(before[:1], missing, axis=0), before])[-k:]
        done = np.pad(before_actions, ((missing, 0), (0, 0)))[-k:][1:]
        made = _roll(self.params, jnp.asarray(frames), jnp.asarray(done), jnp.asarray(actions, jnp.float32))
        return np.asarray(made)

    def save(self, path: str | Path, note: dict) -> None:
        """Writes it to a safetensors file with a note, a JSON object that says what it was trained on."""
        meta = {_NOTE: json.dumps({"config": dataclasses.asdict(self.config), "note": note}, sort_keys=True)}
        data = safetensors.numpy.save({name: np.asarray(value) for name, value in self.params.items()}, metadata=meta)
        write_whole(Path(path), lambda part: part.write_bytes(data), replace=True)


def load_predictor(path: str | Path, config: PredictorConfig, note: dict) -> Predictor | None:
    """A saved one; None where there is none of this config and note.

    Raises:
        DataError: the file is damaged.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "np") as file:
            meta = json.loads((file.metadata() or {}).get(_NOTE, "{}"))
            names = list(file.keys())
            params = {name: file.get_tensor(name) for name in names}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise DataError(f"{path} is damaged ({one_line(str(error))}): remove it, and it is made again") from error
    wanted = {"config": dataclasses.asdict(config), "note": note}
    return Predictor(config=config, params=params) if meta == json.loads(json.dumps(wanted)) else None


def train_predictor(
    path: str | Path, config: PredictorConfig, *, tell: Callable[[int, float], None] = lambda step, loss: None
) -> Predictor:
    """Trains one on the episodes of a folder of `vdit record`.

    Args:
        path: the folder.
        config: what, and how long.
        tell: called after steps with their number and the mean squared error, of values from -1 to 1.

    Raises:
        DataError: the folder is none, or its episodes are too short.
        ShapeError: sides of the frames are no multiples of 4.
    """
    episodes = [opened.open(i) for opened in [EpisodesDataset(path)] for i in range(len(opened))]
    k = config.frames
    starts = [(number, at) for number, one in enumerate(episodes) for at in range(len(one.video) - k)]
    if not starts:
        raise DataError(f"{path}: no episode has more than {k} frames")
    _check_sides(episodes[0].video.shape[1:3])
    random = np.random.default_rng(config.seed)
    params = _init(random, config, episodes[0].actions.shape[1])
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, state, frames, actions):
        loss, gradient = jax.value_and_grad(_loss)(params, frames, actions)
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state, loss

    for step in range(config.steps):
        chosen = [starts[i] for i in random.integers(len(starts), size=config.batch_size)]
        frames = np.stack([episodes[n].video[at : at + k + 1] for n, at in chosen])
        actions = np.stack([episodes[n].actions[at + 1 : at + k + 1] for n, at in chosen])
        params, state, loss = train(params, state, frames, actions)
        if step % 25 == 24 or step == config.steps - 1:
            tell(step + 1, float(loss))
    return Predictor(config=config, params=jax.tree.map(np.asarray, params))


def _check_sides(size: tuple[int, int]) -> None:
    if size[0] % _PATCH or size[1] % _PATCH:
        raise ShapeError(f"frames of {size[0]}x{size[1]}: sides must be multiples of {_PATCH}")


def _init(random: np.random.Generator, config: PredictorConfig, actions: int) -> dict[str, Array]:
    """Fresh parameters; the last layer is 0, so that the first guess is the last frame."""
    cell, width = 3 * _PATCH**2, config.width

    def matrix(rows: int, columns: int) -> Array:
        return jnp.asarray(random.normal(size=(rows, columns)) / np.sqrt(rows), jnp.float32)

    params = {"pixels": matrix(cell * config.frames, width), "action": matrix(actions * config.frames, width),
              "place": matrix(2, width), "out": jnp.zeros((9 * width, cell)), "out_bias": jnp.zeros(cell)}  # fmt: skip
    for block in range(config.blocks):
        params |= {f"first{block}": matrix(9 * width, width), f"first{block}_bias": jnp.zeros(width),
                   f"second{block}": matrix(9 * width, width) * 0.3}  # fmt: skip
    return params


def _next(params: dict[str, Array], frames: Array, actions: Array) -> Array:
    """frames: float [b k h w 3] in [-1, 1]; actions: [b k a], the last is done now -> the next frame [b h w 3]."""
    b, _, h, w, _ = frames.shape
    rows, columns = h // _PATCH, w // _PATCH
    cells = rearrange(frames, "b k (h p) (w q) c -> b h w (k p q c)", p=_PATCH, q=_PATCH)
    y, x = jnp.meshgrid(jnp.linspace(-1, 1, rows), jnp.linspace(-1, 1, columns), indexing="ij")
    hidden = cells @ params["pixels"] + jnp.stack([x, y], axis=-1) @ params["place"]
    hidden = hidden + (actions.reshape(b, -1) @ params["action"])[:, None, None]
    for block in range(sum(name.startswith("second") for name in params)):
        inner = _around(jax.nn.gelu(hidden)) @ params[f"first{block}"] + params[f"first{block}_bias"]
        hidden = hidden + _around(jax.nn.gelu(inner)) @ params[f"second{block}"]
    change = _around(jax.nn.gelu(hidden)) @ params["out"] + params["out_bias"]
    return frames[:, -1] + rearrange(change, "b h w (p q c) -> b (h p) (w q) c", p=_PATCH, q=_PATCH)


def _around(x: Array) -> Array:
    """[b h w c] -> [b h w 9c]: each place with its neighbours; a convolution is then one product."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1)


def _loss(params: dict[str, Array], frames: Array, actions: Array) -> Array:
    """frames: uint8 [b k+1 h w 3]. actions: [b k a], of all frames but the first."""
    values = frames.astype(jnp.float32) / 127.5 - 1
    return jnp.mean(jnp.square(_next(params, values[:, :-1], actions) - values[:, -1]))


@jax.jit
def _roll(params: dict[str, Array], frames: Array, done: Array, actions: Array) -> Array:
    """frames: uint8 [k h w 3]. done: [k-1 a], of all of them but the first. actions: [n a] -> uint8 [n h w 3]."""

    def step(carry, action):
        frames, done = carry
        done = jnp.concatenate([done, action[None]])
        made = jnp.clip(_next(params, frames[None], done[None])[0], -1, 1)
        return (jnp.concatenate([frames[1:], made[None]]), done[1:]), made

    _, made = jax.lax.scan(step, (frames.astype(jnp.float32) / 127.5 - 1, done), actions)
    return jnp.round((made + 1) * 127.5).astype(jnp.uint8)
