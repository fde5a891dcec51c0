"""Trains a small but whole DiT one step on 8 simulated devices, in each of several layouts and on one device.

Prints what it found as JSON, a line for each case. Run in a process of its own: the number of devices is fixed when
jax starts. `python tests/dist/dit_layouts.py NAME ...` runs the cases named, without names all of them.
"""

import dataclasses
import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from tests.dist.programs import buffers
from vdit.dist.collectives import collectives, totals
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.models.dit.config import DiTConfig
from vdit.models.text import TextConfig
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.experiment.objectives import DenoisingLoss
from vdit.experiment.experiment import Experiment
from vdit.train.state import TrainState, plan_state
from vdit.train.step import make_train_step
from vdit.types import Row
from vdit.models.vae.config import preset

jax.config.update("jax_disable_most_optimizations", True)  # compiling is nearly all the time here

# Sizes that are told from each other, whole and in parts, by their prime factors.
TOKENS, WIDTH, HIDDEN, HEADS, TEXT_WIDTH, TEXT = 88, 72, 104, 4, 40, 46
CLIPS = ((3, 4, 3), (2, 5, 4), (1, 3, 3))  # 85 tokens of 88, in 6 latent frames
CAPTIONS = (17, 1, 24)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A layout and how the step is computed on it. rows: of a batch."""

    mesh: MeshConfig
    rows: int = 8
    accumulation: int = 1
    changes: tuple[tuple[str, object], ...] = ()  # of the DiT

    @property
    def twin(self) -> "Case":
        """The same on one device, where everything is kept for the backward."""
        changes = tuple((name, value) for name, value in self.changes if name != "remat")
        return dataclasses.replace(self, mesh=MeshConfig(), changes=changes)


def case(**fields) -> Case:
    axes = {axis: fields.pop(axis) for axis in ("data", "fsdp", "sequence", "tensor") if axis in fields}
    changes = fields.pop("changes", {})
    return Case(mesh=MeshConfig(**{"data": 1, **axes}), changes=tuple(changes.items()), **fields)


# Where tokens are split, each device has one or two rows: no product of sizes looks like a whole row of tokens.
CASES = {
    "data=8": case(data=8),
    "fsdp=8": case(fsdp=8),
    "tensor=2 x fsdp=4": case(tensor=2, fsdp=4),
    "tensor=4 x data=2": case(tensor=4, data=2),
    "data=2 x fsdp=2 x tensor=2": case(data=2, fsdp=2, tensor=2),
    "sequence=8": case(sequence=8, rows=2),
    "sequence=4 x fsdp=2": case(sequence=4, fsdp=2, rows=2),
    "sequence=4 x tensor=2": case(sequence=4, tensor=2, rows=2),
    "sequence=2 x tensor=2 x fsdp=2": case(sequence=2, tensor=2, fsdp=2, rows=2),
    "data=2 x fsdp=2 x sequence=2": case(data=2, fsdp=2, sequence=2, rows=4),
}
MIXED = {"sequence": 2, "fsdp": 2, "data": 2, "rows": 4}
CLASSES = {
    "modulation": "block", "position": "sincos", "qk_norm": "none", "text": "none", "text_pool": False, "classes": 15
}  # fmt: skip
CASES |= {
    "accumulation=2": case(sequence=2, fsdp=2, tensor=2, rows=4, accumulation=2),
    "remat=full": case(**MIXED, changes={"remat": "full"}),
    "remat=dots": case(**MIXED, changes={"remat": "dots"}),
    "bfloat16": case(**MIXED, changes={"dtype": "bfloat16"}),
    "classes": case(sequence=2, fsdp=2, tensor=2, rows=2, changes=CLASSES),
}


def experiment(case: Case) -> Experiment:
    dit = {
        "in_channels": 5, "width": WIDTH, "depth": 2, "heads": HEADS, "mlp_width": HIDDEN, "time_features": 36,
        **dict(case.changes),
    }  # fmt: skip
    return Experiment(
        name="layouts",
        vae=preset("tiny", latent_channels=5),
        text=TextConfig(vocab_size=136, max_length=24, width=TEXT_WIDTH, depth=1, heads=HEADS),
        text_dropout=0.3,
        canvases=CanvasConfig(first=1.0, ends=1.0, mask=1.0, frames=1.0, window=0.3, context_noise=0.2),
        backbone=DiTConfig(**dit),
        dit_train=TrainConfig(
            steps=4,
            batch_size=case.rows,
            accumulation=case.accumulation,
            ema_decay=0.9,
            # eps: without, Adam makes steps of the same size of gradients that are but rounding.
            optimizer=OptimizerConfig(learning_rate=1e-2, clip_norm=None, weight_decay=0.1, eps=1e-3),
        ),
    )


def rows(case: Case) -> Row:
    """Packed rows of three clips in an order of their own, with captions, labels and padding."""
    rng = np.random.default_rng(0)
    built = [_row(rng, [(i + r) % 3 for i in range(3)]) for r in range(case.rows)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *built)
    if case.accumulation == 1:
        return batch
    return jax.tree.map(lambda leaf: leaf.reshape(case.accumulation, -1, *leaf.shape[1:]), batch)


def _row(rng: np.random.Generator, order: list[int]) -> Row:
    n, k, m, s = TOKENS, 7, TEXT, 5
    row = {
        "values": np.zeros((n, 20), np.float32), "position": np.zeros((n, 3), np.int32),
        "segment_ids": np.zeros(n, np.int32), "frame_index": np.zeros(n, np.int32), "frame_segment_ids": np.zeros(k, np.int32),
        "text": np.zeros(m, np.int32), "text_segment_ids": np.zeros(m, np.int32), "text_position": np.zeros(m, np.int32),
        "label": np.zeros(s, np.int32),
    }  # fmt: skip
    token = frame_index = word = 0
    for clip, which in enumerate(order, 1):
        grid = CLIPS[which]
        at = slice(token, token + np.prod(grid))
        row["position"][at] = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 3)
        row["values"][at] = rng.standard_normal((np.prod(grid), 20))
        row["segment_ids"][at] = clip
        row["frame_index"][at] = frame_index + row["position"][at, 0]
        row["frame_segment_ids"][frame_index : frame_index + grid[0]] = clip
        words = slice(word, word + CAPTIONS[which])
        row["text"][words] = rng.integers(1, 136, CAPTIONS[which])
        row["text_segment_ids"][words] = clip
        row["text_position"][words] = np.arange(CAPTIONS[which])
        row["label"][clip - 1] = rng.integers(1, 15)
        token, frame_index, word = at.stop, frame_index + grid[0], words.stop
    label = row.pop("label")
    return Row(**row, cond={"label": label}, cond_axes=(("label", "clip"),))


def begin(plan) -> TrainState:
    """A state all of whose parameters matter: nothing is zero, as gates and heads are at first."""

    def value(path, leaf):
        rng = np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
        noise = 0.1 * rng.standard_normal(leaf.shape)
        return np.asarray(noise + (path[-1].key == "scale"), np.float32)

    params = jax.tree_util.tree_map_with_path(value, plan.abstract.params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), plan.abstract.opt_state)
    whole = TrainState(
        step=np.int32(0), params=params, ema=jax.tree.map(np.copy, params), opt_state=zeros,
        key=jax.random.key(7), skipped=np.int32(0), skipped_in_a_row=np.int32(0),
    )  # fmt: skip
    return jax.device_put(whole, plan.shardings)


def run(case: Case) -> dict:
    """One step: what it gives, the program, and what devices hold."""
    devices = jax.devices()[: 1 if case.mesh == MeshConfig() else 8]
    mesh = make_mesh(case.mesh, devices=devices)
    settings = experiment(case)
    plan = plan_state(settings.network.init, settings.dit_train, mesh=mesh)
    step = make_train_step(DenoisingLoss().make_loss(settings.model), plan)
    batch = rows(case)
    batch = jax.device_put(batch, step.shardings(batch))
    # Compiles in half the time; what is read of the program is settled before.
    compiled = step.lower(batch).compile(compiler_options={"xla_cpu_use_fusion_emitters": False})
    with jax.set_mesh(mesh):
        state, metrics = compiled(begin(plan), batch)
    return {"plan": plan, "mesh": mesh, "compiled": compiled, "state": state, "metrics": metrics}


def trees(state: TrainState) -> dict:
    """The copies of the parameters. The first moment is a tenth of the gradient, which is not clipped."""
    adam = state.opt_state[1]
    return {"gradient": adam.mu, "square": adam.nu, "parameters": state.params, "average": state.ema}


def errors(one: dict, many: dict) -> dict[str, list]:
    """For each copy, and the metrics: [the largest error of an array, which array].

    The error of an array is the largest difference over the largest value. Arrays that are zero but for rounding (the
    gradient of a key's bias, which softmax does not see) must be so on the mesh as well, and count as equal then.
    """
    worst = {}
    pairs = {name: (tree, trees(many["state"])[name]) for name, tree in trees(one["state"]).items()}
    for name, (ours, theirs) in {**pairs, "metrics": (one["metrics"], many["metrics"])}.items():
        ours, theirs = ({key(path): np.asarray(leaf, np.float64) for path, leaf in
                         jax.tree_util.tree_leaves_with_path(tree)} for tree in (ours, theirs))  # fmt: skip
        top = max(np.abs(leaf).max() for leaf in ours.values())
        off = {}
        for path, leaf in ours.items():
            size, other = np.abs(leaf).max(), np.abs(theirs[path]).max()
            none = max(size, other) < 1e-6 * top and name in ("gradient", "square")
            off[path] = 0.0 if none else float(np.abs(leaf - theirs[path]).max() / max(size, 1e-30))
        path = max(off, key=off.get)
        worst[name] = [off[path], path]
    return worst


def key(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def held(found: dict) -> dict[str, dict]:
    """What one device has of each array of each copy, as compiled and as held; sizes of the whole, too."""
    plan, (out, _) = found["plan"], found["compiled"].output_shardings
    compiled = jax.tree.map(lambda leaf, place: place.shard_shape(leaf.shape), plan.abstract, out)
    held = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, found["state"])
    shapes = {"whole": jax.tree.map(lambda leaf: leaf.shape, plan.abstract), "compiled": compiled, "held": held}
    is_shape = lambda leaf: isinstance(leaf, tuple) and all(isinstance(size, int) for size in leaf)  # noqa: E731
    return {
        source: {
            f"{copy}/{key(path)}": list(shape)
            for copy, tree in trees(state).items()
            for path, shape in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_shape)
        }
        for source, state in shapes.items()
    }


def whole(case: Case, found: list) -> dict[str, list[str]]:
    """Buffers of floats that are whole where the table splits them: by tokens, by rows, by the MLP's columns."""
    mesh = case.mesh
    ways = mesh.data * mesh.fsdp
    rows = case.rows // case.accumulation
    heads = max(1, HEADS // (mesh.sequence * mesh.tensor))
    # Where attention has exchanged heads for tokens, a device has whole rows of some heads: layers, rows, heads, n, n.
    exchanged = {1, 2, rows // ways, heads, rows // ways * heads, TOKENS, WIDTH // HEADS}
    bad = {"tokens": [], "rows": [], "hidden": []}
    for dtype, shape, where in found:
        if dtype[0] in "sup":
            continue  # clip ids, positions, masks
        line = f"{dtype}{list(shape)} {where}"
        if mesh.sequence > 1 and any(size % TOKENS == 0 for size in shape) and not set(shape) <= exchanged:
            bad["tokens"].append(line)
        if ways > 1 and mesh.sequence == 1 and (rows * TOKENS in shape or {rows, TOKENS} <= set(shape)):
            bad["rows"].append(line)
        if mesh.tensor > 1 and HIDDEN in shape:
            bad["hidden"].append(line)
    return bad


def examine(case: Case, one: dict, many: dict) -> dict:
    text = many["compiled"].as_text()
    found = collectives(text, many["mesh"])
    same = jax.tree.map(
        lambda leaf, a, b, held: a.is_equivalent_to(b, leaf.ndim) and held.sharding.is_equivalent_to(b, leaf.ndim),
        many["plan"].abstract, many["compiled"].output_shardings[0], many["plan"].shardings, many["state"],
    )  # fmt: skip
    return {
        "errors": errors(one, many),
        "held": held(many),
        "as planned": all(jax.tree.leaves(same)),
        "report": list(many["plan"].report),
        "whole": whole(case, buffers(text)),
        "collectives": [[c.kind, list(c.axes), c.count, c.bytes, c.payload] for c in totals(found)],
        "largest": {kind: max((c.payload / c.count for c in found if c.kind == kind), default=0.0)
                    for kind in {c.kind for c in found}},
    }  # fmt: skip


def main(names: list[str]) -> None:
    known = {}
    for name in names or CASES:
        case = CASES[name]
        if case.twin not in known:
            known[case.twin] = run(case.twin)
        print(json.dumps({"name": name, **examine(case, known[case.twin], run(case))}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
