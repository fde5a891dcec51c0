"""The run that kill_resume.py kills: a tiny network, its data in two streams, on one host or two.

Only kill_resume.py starts it: python tools/killed_run.py OPTIONS, a line of JSON. It starts and ends like `vdit train`
(one lock, signals, exit codes, a lost host), records its phase, and, if told to, sends itself a signal right before the
n-th file operation of a kind, so that moments of microseconds are hit too.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH, ROWS, STREAMS = 64, 8, 2
# Audit events of Python that change or read files; os.remove and os.rmdir inside shutil.rmtree name no folder.
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


class Phase:
    """Writes the phase down where the killer reads it, until the process has hit itself."""

    def __init__(self, path: Path, checkpoints: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._checkpoints, self._name, self._hit = checkpoints, "", False

    def __call__(self, name: str) -> None:
        self._name = name
        if not self._hit:
            os.pwrite(self._file, name.ljust(16).encode(), 0)

    def hit(self) -> None:
        self(seen(self._name, self._checkpoints))
        self._hit = True


def seen(noted: str, checkpoints: Path) -> str:
    """The phase that a process has noted, or what its folder tells of a save under way."""
    names = os.listdir(checkpoints) if noted in ("training", "ending") else []
    if any(name.endswith(".deleting") for name in names):
        return "deleting"
    if any(name.isdigit() and not (checkpoints / name / "sha256.json").exists() for name in names):
        return "sealing"
    return "saving" if any("orbax-checkpoint-tmp" in name for name in names) else noted


def die_at(folder: str, phase: Phase, match: str, count: int, number: int) -> None:
    """Sends this process a signal right before the `count`-th file event in the folder whose words hold `match`."""
    left = [count]

    def hook(event: str, args: tuple) -> None:
        if event not in EVENTS:
            return
        words = f"{event} {args[0]}"
        if folder in words or (event in ("os.remove", "os.rmdir") and args[-1] != -1):
            words += " .deleting" if folder not in words else ""
            left[0] -= match in words
            if left[0] == 0:
                left[0] = -1
                phase.hit()
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)


class Numbers:
    """An endless iterator of this host's rows of a batch; each stream has its own order and place."""

    def __init__(self, hosts: int, host: int, pause: float, phase: Phase):
        share = STREAMS // hosts
        self._next = {stream: 0 for stream in range(host * share, (host + 1) * share)}
        self._pause, self._phase, self._given = pause, phase, 0

    def __next__(self):
        import numpy as np

        self._given += 1
        if self._given == 2:  # it is asked for when the first step is on its way
            self._phase("training")
        time.sleep(self._pause)
        rows, indices = [], []
        for stream in sorted(self._next):
            first = self._next[stream]
            self._next[stream] += ROWS // STREAMS
            for index in range(first, first + ROWS // STREAMS):
                rows.append(np.random.default_rng((stream, index)).standard_normal(WIDTH).astype(np.float32))
                indices.append(np.int32(index))
        return {"x": np.stack(rows), "index": np.stack(indices)}

    def get_state(self):
        return {"streams": {str(stream): {"next": place} for stream, place in self._next.items()}}

    def set_state(self, state):
        self._next = {stream: state["streams"][str(stream)]["next"] for stream in self._next}


def init(key):
    """Boxed parameters, sharded over the hosts."""
    import jax

    from vdit.nn.layers import Linear

    x = jax.numpy.zeros((1, WIDTH))
    up = Linear(features=4 * WIDTH, kernel_axes=("embed", "mlp"))
    down = Linear(features=WIDTH, kernel_axes=("mlp", "embed"))
    y = jax.numpy.zeros((1, 4 * WIDTH))
    return {"up": up.init(key, x)["params"], "down": down.init(jax.random.fold_in(key, 1), y)["params"]}


def loss(params, batch, key, step):
    """Mean square error against the rolled input, with noise."""
    import jax
    import jax.numpy as jnp

    up, down = params["up"], params["down"]
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    hidden = jax.nn.gelu((batch["x"] + noise) @ up["kernel"] + up["bias"])
    error = jnp.mean((hidden @ down["kernel"] + down["bias"] - jnp.roll(batch["x"], 1, axis=-1)) ** 2)
    return error, {"items": batch["index"].astype(jnp.float32).mean()}


def run(options: dict, phase: Phase, together) -> bool:
    """Goes on from the last checkpoint to the end; returns whether a signal stopped it."""
    import jax

    from vdit.checkpoint import Checkpointer, RunLock
    from vdit.dist.mesh import MeshConfig, make_mesh
    from vdit.experiment.training import OptimizerConfig, TrainConfig
    from vdit.train.logging import JsonLines
    from vdit.train.loop import Report, start, train
    from vdit.train.monitor import RunMonitor
    from vdit.train.state import plan_state
    from vdit.train.step import make_train_step

    jax.config.update("jax_compilation_cache_dir", options["cache"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    directory, host, hosts = Path(options["directory"]), jax.process_index(), jax.process_count()
    config = TrainConfig(
        steps=options["steps"], batch_size=ROWS, save_every=options["save_every"], log_every=1,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5, schedule="cosine"),
    )  # fmt: skip
    phase("opening")
    watch = RunMonitor(directory / "hosts", status=together.status, peers=together.peers, stop=together.stop)
    with watch, RunLock(directory), Checkpointer(directory / "checkpoints") as checkpointer:
        plan = plan_state(init, config, mesh=make_mesh(MeshConfig(fsdp=hosts)))
        data = Numbers(hosts, host, options["pause"], phase)
        phase("restoring")
        state = start(plan, jax.random.key(0), checkpointer, data)
        print(f"BEGIN {int(state.step)}", flush=True)
        writers = [JsonLines(directory / "metrics.jsonl", resume_step=int(state.step))] if host == 0 else []
        phase("compiling")
        result = train(
            state, make_train_step(loss, plan), data, checkpointer=checkpointer, report=Report(writers=writers),
            monitor=watch
        )
        phase("ending")
    return result.stopped


def main(options: dict) -> int:
    """The process; returns its exit code, as `vdit` would."""
    directory = Path(options["directory"])
    phase = Phase(directory / f"phase.{os.environ.get('VDIT_PROCESS_ID', 0)}", directory / "checkpoints")
    phase("starting")
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # so that a hang can be understood
    if options["die"]:
        die_at(str(directory / "checkpoints"), phase, *options["die"])
    sys.path.insert(0, str(ROOT))
    from vdit.cli.process import distributed_session, exit_status

    try:
        with distributed_session({"the options": json.dumps(options["steps"])}) as together:
            if run(options, phase, together):
                together.stop.end()
    except BaseException as error:
        known = exit_status(error)
        if known is None:
            raise
        print(f"vdit: {known[0]}", file=sys.stderr, flush=True)
        return known[1]
    return 0


if __name__ == "__main__":
    if code := main(json.loads(sys.argv[1])):
        os._exit(code)  # at once, as vdit does
