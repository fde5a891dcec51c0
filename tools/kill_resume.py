"""Kills a training run at random moments, resumes it, and holds it against the run that was never stopped.

    python tools/kill_resume.py --kills 12

A tiny network trains in a child process that saves every few steps. The child is killed (SIGKILL)
`--kills` times: after a random wait, or, every other time, as soon as a save is seen half-written on
disk. Then it runs to its end. Every line of its metrics and every array of its last checkpoint must
be, bit for bit, those of an undisturbed run. Ends with status 1 if they are not.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WIDTH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Death:
    """One killed child: how it was aimed, the step of its last checkpoint, whether a save was cut short."""

    aim: str
    saved_step: int | None
    mid_save: bool


def child(directory: Path, steps: int, save_every: int, pause: float) -> None:
    """One process of the run: continues from the last checkpoint and trains to the end."""
    import jax

    from vdit.checkpoint import Checkpointer
    from vdit.train.config import OptimizerConfig, TrainConfig
    from vdit.train.loop import start, train
    from vdit.train.metrics import JsonLines
    from vdit.train.state import plan_state
    from vdit.train.step import make_train_step

    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=5, schedule="cosine")
    config = TrainConfig(
        steps=steps, batch_size=8, accumulation=2, optimizer=optimizer, save_every=save_every, log_every=1
    )
    plan = plan_state(_init, config)
    data = _Slow(_source(), pause)
    with Checkpointer(directory / "checkpoints") as checkpointer:
        state = start(plan, jax.random.key(0), checkpointer, data)
        lines = JsonLines(directory / "metrics.jsonl", resume_step=int(state.step))
        train(state, make_train_step(_loss, plan), data, checkpointer=checkpointer, writers=(lines,))
        lines.close()


def _init(key):
    import jax

    shapes = {"up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    keys = dict(zip(shapes, jax.random.split(key, len(shapes))))
    return {name: {"kernel": 0.1 * jax.random.normal(keys[name], shape)} for name, shape in shapes.items()}


def _loss(params, batch, key, step):
    import jax
    import jax.numpy as jnp

    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    hidden = jax.nn.gelu((batch["x"] + noise) @ params["up"]["kernel"])
    error = jnp.mean((hidden @ params["down"]["kernel"] - jnp.roll(batch["x"], 1, axis=-1)) ** 2)
    return error, {"first_item": batch["index"][0]}


def _source():
    import grain
    import numpy as np

    def item(index):
        rng = np.random.default_rng(int(index))
        return {"x": rng.standard_normal(WIDTH).astype(np.float32), "index": np.int32(index)}

    items = grain.MapDataset.range(1000).seed(7).shuffle().repeat().map(item)
    return iter(items.to_iter_dataset().batch(8, drop_remainder=True))


class _Slow:
    """The source with a pause before each batch, so that there is time to aim."""

    def __init__(self, source, pause: float):
        self._source, self._pause = source, pause
        self.get_state, self.set_state = source.get_state, source.set_state

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(self._pause)
        return next(self._source)


def launch(directory: Path, args: argparse.Namespace) -> subprocess.Popen:
    """Starts a child that trains in `directory`."""
    numbers = [str(value) for value in (args.steps, args.save_every, args.pause)]
    env = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    log = (directory / "log.txt").open("a")
    return subprocess.Popen(
        [sys.executable, __file__, "--child", str(directory), *numbers], stdout=log, stderr=log, env=env
    )


def kill(directory: Path, args: argparse.Namespace, aim: str, rng: random.Random) -> Death | None:
    """Runs a child and kills it; None if it came to its end before it was hit."""
    process = launch(directory, args)
    lines = directory / "metrics.jsonl"
    old = lines.stat().st_ino if lines.exists() else None
    leg = 1.2 * args.steps / (args.kills + 1)  # steps that a child may reach at most
    wait = rng.uniform(0.0, leg * args.pause)
    spare, saves = rng.randrange(1 + int(leg / args.save_every)), set()  # saves to let pass, those seen
    began, hit_at, size = time.monotonic(), None, None
    while process.poll() is None:
        now = time.monotonic()
        if now - began > 120:
            process.kill()
            raise SystemExit(f"the child made no progress in 120 s; see {directory / 'log.txt'}")
        if hit_at is None and lines.exists() and lines.stat().st_ino != old:
            # a resumed run writes the file anew, then adds a line a step: then training has begun
            size = lines.stat().st_size if size is None else size
            hit_at = now + wait if lines.stat().st_size > size else None
        half = {folder.name for folder in directory.glob("checkpoints/*orbax-checkpoint-tmp")}
        saves |= half
        if hit_at is not None and (half and len(saves) > spare if aim == "save" else now >= hit_at):
            process.send_signal(signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.0005)
    if process.returncode != -signal.SIGKILL:
        return None
    folders = [folder.name for folder in (directory / "checkpoints").iterdir()]
    steps = [int(name) for name in folders if name.isdigit()]
    mid_save = any("orbax-checkpoint-tmp" in name for name in folders)
    return Death(aim=aim, saved_step=max(steps, default=None), mid_save=mid_save)


def finish(directory: Path, args: argparse.Namespace) -> None:
    """Runs a child to its end."""
    status = launch(directory, args).wait()
    if status != 0:
        raise SystemExit(f"the child ended with {status}:\n{(directory / 'log.txt').read_text()[-2000:]}")


def compare(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs; speeds and times aside."""
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from vdit.checkpoint import find_step
    from vdit.train.metrics import read_json_lines

    def lines(directory):
        exact = read_json_lines(directory / "metrics.jsonl")
        return [{k: v for k, v in line.items() if not k.startswith(("speed/", "time/"))} for line in exact]

    def arrays(directory):
        import jax

        folder = find_step(directory / "checkpoints")
        names = [entry.name for entry in folder.iterdir() if (entry / "_METADATA").exists()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Orbax warns that it restores onto the devices of the save
            loaded = ocp.load_checkpointables(folder, dict.fromkeys(names))
        leaves = jax.tree_util.tree_leaves_with_path(loaded)
        return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}

    def place(directory):
        return (find_step(directory / "checkpoints") / "data" / "host_0_of_1.json").read_text()

    wrong = []
    a, b = lines(one), lines(other)
    if a != b:
        first = next((x["step"] for x, y in zip(a, b) if x != y), min(len(a), len(b)) + 1)
        wrong.append(f"metrics differ first at step {first} ({len(a)} and {len(b)} lines)")
    a, b = arrays(one), arrays(other)
    wrong += [f"array {key} differs" for key in sorted(set(a) | set(b)) if a.get(key) != b.get(key)]
    if place(one) != place(other):
        wrong.append(f"place in the data differs: {place(one)} and {place(other)}")
    return wrong


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds before each batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("random", "save"), help="aim every kill alike")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison and prints a table; returns the exit status."""
    args = parse(argv)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        straight, broken = Path(folder, "straight"), Path(folder, "broken")
        straight.mkdir()
        broken.mkdir()
        finish(straight, args)
        print(f"{'kill':>4}  {'aimed at':8}  {'last checkpoint':>15}  a save was half-written", flush=True)
        deaths = []
        for number in range(args.kills):
            aim = args.only or ("save" if number % 2 else "random")
            death = kill(broken, args, aim, rng)
            if death is None:
                print("the run ended before the next kill: give more --steps")
                break
            deaths.append(death)
            step = "none" if death.saved_step is None else death.saved_step
            half = "yes" if death.mid_save else "no"
            print(f"{number + 1:>4}  {death.aim:8}  {step:>15}  {half}", flush=True)
        finish(broken, args)
        wrong = compare(straight, broken)
        halves = sum(death.mid_save for death in deaths)
        print(f"{len(deaths)} kills, {halves} in the middle of a save, {args.steps} steps: ", end="")
        print("bit for bit the undisturbed run" if not wrong else "DIFFERENT\n" + "\n".join(wrong))
        return 1 if wrong or len(deaths) < args.kills else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    else:
        raise SystemExit(main())
