"""Trains the small video encoder that vdit ships for evaluation, on rendered worlds: about 230 CPU seconds.

    python -m tools.train_encoder vdit/models/world_encoder.safetensors

The encoder (vdit.models.encoders.WORLDS) learns to tell of a clip which world it is of, which colours and shapes are in
it, how its objects move, and how it was damaged: blurred, noisy, blocky, shuffled, frozen, faded. So its features see
what videos show and how well they are made. Weights are written as float16.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from safetensors.numpy import save
from scipy import ndimage

from vdit import worlds
from vdit.models.encoders import WORLDS, VideoTower, spread_frames, square_frames

KINDS = ("moving", "bounce", "collide", "occluder", "steer", "orbit")
DAMAGES = ("none", "blur", "noise", "blocks", "shuffled", "frozen", "faded")
SHAPES = ("circle", "square", "triangle", "cross", "sphere", "cube")
FRAMES = 12


def damaged(video: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, int]:
    """A video uint8 [t h w 3], damaged at random, and the number of the damage."""
    kind = int(random.integers(len(DAMAGES)))
    name, amount = DAMAGES[kind], random.uniform(0.3, 1.0)
    if name == "blur":
        video = ndimage.gaussian_filter(video, (0, 2.5 * amount, 2.5 * amount, 0))
    elif name == "noise":
        video = np.clip(video + random.normal(0, 40 * amount, video.shape), 0, 255).astype(np.uint8)
    elif name == "blocks":
        small = [max(4, round(side * (0.45 - 0.3 * amount))) for side in video.shape[2:0:-1]]
        frames = (Image.fromarray(x).resize(small, Image.Resampling.BOX) for x in video)
        video = np.stack([np.asarray(x.resize(video.shape[2:0:-1], Image.Resampling.NEAREST)) for x in frames])
    elif name == "shuffled":
        video = video[random.permutation(len(video))]
    elif name == "frozen":
        start = int(random.integers(0, len(video) // 2))
        video = video[np.minimum(np.arange(len(video)), start)]
    elif name == "faded":
        fade = 1 - 0.8 * amount * np.linspace(0, 1, len(video))[:, None, None, None]
        video = (video * fade + 128 * (1 - fade)).astype(np.uint8)
    return video, kind


def example(sources: list, i: int) -> dict[str, np.ndarray]:
    """Clip i: pixels, and what is true of it."""
    random = np.random.default_rng([17, i])
    kind = i % len(KINDS)
    scene = sources[kind][i // len(KINDS)]
    video, damage = damaged(scene.video, random)
    objects = scene.meta["objects"]
    velocity = np.zeros(2)
    if "projected" in objects[0]:
        velocity = np.diff(objects[0]["projected"], axis=0).mean(0) / scene.meta["scale"] * scene.fps
    else:
        velocity = np.asarray(objects[0]["velocity"]).mean(0)[:2]
    still = DAMAGES[damage] in ("shuffled", "frozen")
    return {
        "video": square_frames(spread_frames(video, WORLDS.frames), WORLDS.size, mean=WORLDS.mean, std=WORLDS.std),
        "kind": np.int32(kind),
        "damage": np.int32(damage),
        "colours": np.array([any(o["colour"] == c for o in objects) for c in worlds.COLOURS], np.float32),
        "shapes": np.array([any(o["shape"] == s for o in objects) for s in SHAPES], np.float32),
        "velocity": (velocity * (not still)).astype(np.float32),
    }


class Heads(nn.Module):
    """What is told of a vector while it trains."""

    @nn.compact
    def __call__(self, x):
        sizes = {"kind": len(KINDS), "damage": len(DAMAGES), "colours": len(worlds.COLOURS), "shapes": len(SHAPES),
                 "velocity": 2}  # fmt: skip
        return {name: nn.Dense(size, name=name)(x) for name, size in sizes.items()}


def loss_of(params, batch):
    """(loss, share of clips whose world and damage are told)."""
    vectors = VideoTower(WORLDS).apply({"params": params["tower"]}, batch["video"])
    said = Heads().apply({"params": params["heads"]}, vectors)
    cross = optax.softmax_cross_entropy_with_integer_labels
    binary = optax.sigmoid_binary_cross_entropy
    loss = cross(said["kind"], batch["kind"]).mean() + 3 * cross(said["damage"], batch["damage"]).mean()
    loss += sum(4 * binary(said[name], batch[name]).mean() for name in ("colours", "shapes"))
    loss += 4 * jnp.square(said["velocity"] - batch["velocity"]).mean()
    right = [(said[name].argmax(-1) == batch[name]).mean() for name in ("kind", "damage")]
    return loss, right


def part_of(data, index):
    """Some of the clips, pixels as float32."""
    return {name: value[index].astype(np.float32 if name == "video" else value.dtype) for name, value in data.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="a .safetensors file")
    parser.add_argument("--steps", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--clips", type=int, default=4800, help="rendered once; default: %(default)s")
    options = parser.parse_args()
    began = time.process_time()
    sources = [worlds.make(kind, seed=3, size=(WORLDS.size, WORLDS.size), frames=FRAMES) for kind in KINDS]
    clips = [example(sources, i) for i in range(options.clips)]
    data = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
    data["video"] = data["video"].astype(np.float16)
    print(f"{options.clips} clips rendered in {time.process_time() - began:.0f} CPU seconds", flush=True)
    key = jax.random.key(0)
    tower = nn.meta.unbox(VideoTower(WORLDS).init(key, data["video"][:1].astype(np.float32))["params"])
    params = {"tower": tower, "heads": Heads().init(key, jnp.zeros((1, WORLDS.layers.width)))["params"]}
    schedule = optax.warmup_cosine_decay_schedule(0, 2e-3, 50, options.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.02))
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        (loss, _), grads = jax.value_and_grad(loss_of, has_aux=True)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    held = options.clips // 10
    random = np.random.default_rng(0)
    for number in range(1, options.steps + 1):
        index = random.integers(held, options.clips, options.batch)
        params, state, loss = step(params, state, part_of(data, index))
        if number % 50 == 0:
            print(f"step {number}: loss {float(loss):.3f}, {time.process_time() - began:.0f} CPU seconds", flush=True)
    check = jax.jit(loss_of)
    found = [check(params, part_of(data, np.arange(i, i + 16))) for i in range(0, held - 15, 16)]
    world, damage = np.mean([right for _, right in found], axis=0)
    print(f"held-out clips: world {world:.1%}, damage {damage:.1%}")
    flat = {"/".join(part.key for part in path): np.asarray(leaf, np.float16)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params["tower"])}  # fmt: skip
    Path(options.out).write_bytes(save(flat))
    print(f"{options.out}: {Path(options.out).stat().st_size} bytes, {time.process_time() - began:.0f} CPU seconds")


if __name__ == "__main__":
    main()
