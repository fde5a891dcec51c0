"""A LoRA's training step with and without encoded captions, at a small Wan with its text encoder in true proportion.

    python -m tools.bench.cached_text --steps 5

Wan 2.1 1.3B has 1.3 B parameters beside a umT5-xxl of 5.7 B (4.4 to 1), and captions of 512 tokens, padding included.
The bench keeps that proportion at a size that CPUs run: a DiT of Wan's form with --width, and a T5 with 4.4 times as
many parameters. Both steps train the same LoRA on the same row; each runs in a process of its own, so that its peak
memory is its own. Prints parameters, seconds a step (median, compilation left out) and peak memory, and the ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time

PROPORTION = 4.4  # parameters of umT5-xxl to those of Wan 2.1 1.3B
CAPTION = 512  # tokens
GRID = (5, 16, 16)  # tokens of the clip: t, h, w


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="of the DiT; default: %(default)s")
    parser.add_argument("--depth", type=int, default=8, help="of the DiT; default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="that are timed; default: %(default)s")
    parser.add_argument("--one", choices=("tokens", "features"), help="measure this one in this process, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one == "features", options)))
        return
    found = {}
    for one in ("tokens", "features"):
        command = [sys.executable, "-m", "tools.bench.cached_text", "--one", one]
        command += [f"--{name}={getattr(options, name)}" for name in ("width", "depth", "steps")]
        found[one] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        f = found[one]
        print(f"{one:9} DiT {f['dit'] / 1e6:.1f} M, text encoder {f['text'] / 1e6:.1f} M parameters, of which "
              f"{f['held'] / 1e6:.1f} M are held: {f['seconds']:.2f} s a step ({f['cpu']:.2f} CPU s), "
              f"{f['peak'] / 2**20:.0f} MiB at most, {f['arguments'] / 2**20:.0f} MiB of weights and rows",
              flush=True)  # fmt: skip
    slow, fast = found["tokens"], found["features"]
    print(f"with encoded captions a step takes {fast['cpu'] / slow['cpu']:.2f} of the CPU time, and "
          f"{fast['arguments'] / slow['arguments']:.2f} of the memory for weights and rows")  # fmt: skip


def measure(cached: bool, options: argparse.Namespace) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vdit.data.config import DataConfig
    from vdit.data.packing import PackItem, RowShape, build_rows
    from vdit.data.texts import CachedTokenizer, TextsInMemory
    from vdit.dist.mesh import make_mesh
    from vdit.experiment.objectives import DenoisingLoss, DiffusionModel
    from vdit.experiment.training import LoRAConfig, TrainConfig
    from vdit.models.conditions import ClassCondition
    from vdit.models.dit.config import preset
    from vdit.models.network import Network
    from vdit.nn.lora import init_lora, join, scales
    from vdit.train.state import plan_state
    from vdit.train.step import make_train_step

    dit = preset("wan2.1-t2v-1.3b", width=options.width, depth=options.depth, heads=options.width // 64,
                 mlp_width=options.width * 6, dtype="float32")  # fmt: skip
    mesh, rng = make_mesh(), np.random.default_rng(0)
    network, counts = _network(dit, options, Network)
    tokens = int(np.prod(GRID))
    data = DataConfig(row_tokens=tokens, max_text_per_row=CAPTION, max_frames_per_row=8, max_clips_per_row=1)
    width = network.text.width

    class Ids:
        max_length = CAPTION

        def encode(self, text: str) -> list[int]:
            ids = [*range(5, 5 + len(text)), 1]
            return ids + [0] * (CAPTION - len(ids))

    caption = "x" * 80
    features = {text: rng.normal(size=(len(text) + 1, width)).astype(np.float32) for text in ("", caption)}
    tokenizer = CachedTokenizer(Ids(), TextsInMemory(features))
    conditions = (ClassCondition(), *(tokenizer.conditions if cached else ()))
    cond = {"label": np.int32(0), **(tokenizer.read(caption, CAPTION) if cached else {})}
    values = rng.normal(size=(data.row_tokens, dit.in_channels * 4)).astype(np.float32)
    item = PackItem(values=values, grid=GRID, text=np.asarray(Ids().encode(caption), np.int32), cond=cond)
    row = build_rows([[item]], RowShape.of(data, conditions, dit.patch))

    lora = LoRAConfig(rank=16)
    boxed = jax.eval_shape(network.init, jax.random.key(0))
    factors = lambda key: {"dit": init_lora(key, boxed["dit"], targets=lora.targets, rank=lora.rank)}  # noqa: E731
    names = ("dit",) if cached else ("dit", "text")
    draw = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / np.sqrt(leaf.shape[-1]))  # noqa: E731
    import flax.linen as nn

    frozen = jax.tree.map(draw, nn.meta.unbox({name: boxed[name] for name in names}))
    frozen = join(frozen, scales(jax.eval_shape(factors, jax.random.key(0)), lora.scale))
    frozen = jax.device_put(frozen, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    plan = plan_state(factors, TrainConfig(steps=100, batch_size=1, ema_decay=None), mesh=mesh)
    step = make_train_step(DenoisingLoss().make_loss(DiffusionModel(network=network, text_dropout=0.1)), plan,
                           frozen=frozen)  # fmt: skip
    state = plan.create(jax.random.key(0))
    state, metrics = step(state, row)
    jax.block_until_ready(metrics)
    times = []
    for _ in range(options.steps):
        began, cpu = time.perf_counter(), time.process_time()
        state, metrics = step(state, row)
        jax.block_until_ready(metrics)
        times.append((time.perf_counter() - began, time.process_time() - cpu))
    seconds, cpu = np.median(times, axis=0)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((frozen, row)))
    return counts | {"held": size(frozen), "seconds": float(seconds), "cpu": float(cpu), "arguments": held,
                     "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                     "loss": float(metrics["loss"])}  # fmt: skip


def _network(dit, options: argparse.Namespace, Network) -> tuple:
    """The network, and the parameters of its parts: a T5 of umT5-xxl's form with PROPORTION times the DiT's."""
    import jax

    from vdit.models.text.config import t5_preset, t5_text

    layers = 24

    def network(width: int):
        t5 = t5_preset("umt5-xxl", vocab_size=1024, width=width, heads=width // 64, mlp=width * 5 // 2, layers=layers)
        text = t5_text(t5, max_length=CAPTION)
        return Network(text=text, backbone=dataclasses.replace(dit, text_width=width))

    def counts(width: int) -> dict[str, int]:
        shapes = jax.eval_shape(network(width).init, jax.random.key(0))
        return {name: sum(leaf.size for leaf in jax.tree.leaves(shapes[name])) for name in ("dit", "text")}

    width = min(range(128, 2049, 64), key=lambda w: abs(counts(w)["text"] / counts(w)["dit"] - PROPORTION))
    return network(width), counts(width)


if __name__ == "__main__":
    main()
