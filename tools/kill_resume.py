"""Kills a training run at random moments, resumes it, and compares it with a run that was never stopped.

    python tools/kill_resume.py --kills 200
    python tools/kill_resume.py --kills 20 --hosts 2      # two processes: one of them is killed, or both

A tiny network trains in child processes (killed_run.py) that save every few steps. They are sent SIGKILL or SIGTERM,
or the one after the other: after a random wait from their start, right after a save was seen to begin, or by
themselves, right before a random file operation of a save, of a seal, of the deletion of an old step, of the clearing
of left-overs or of a restore. When a run comes to its end, another begins. After each kill:

    no step is lost: the newest steps that were ever sealed are there (as many as are kept), whole to the last bit,
        and the next start goes on from the newest of them, or from one that was complete but not sealed yet;
    SIGTERM ends with exit code 75; in training it saves first: the last line of the metrics is the checkpoint's step;
    a host that lives on when another was killed ends by itself, with a line that says why.

And at its end each run has, bit for bit, the metrics, arrays and places in the data of an undisturbed run. A child
that outlives its deadline is a hang. Ends with status 1 if anything of this does not hold.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))

from killed_run import seen  # noqa: E402

KEEP = 2
DEADLINE = 120.0  # seconds that a child may take for anything
EX_TEMPFAIL = 75
# What the name of a file event may hold for a child to die at it; "" is any event.
EVENTS = ("", "", "sha256.json", "commit_success", ".deleting", "_METADATA", "os.rename", "host_", "os.mkdir", "-tmp")
PHASES = ("starting", "opening", "restoring", "compiling", "training", "saving", "sealing", "deleting", "ending")


class Wrong(Exception):
    """A promise that was not kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Death:
    """One killed child: how it was aimed at, by which signal, in which phase it was hit, its exit code."""

    aim: str
    signals: str
    phase: str
    code: int


class Run:
    """One run, killed again and again until it comes to its end."""

    def __init__(self, directory: Path, args: argparse.Namespace, rng: random.Random):
        self.directory, self._args, self._rng = directory, args, rng
        self.checkpoints = directory / "checkpoints"
        self.ever: list[int] = []  # steps that were seen sealed
        self._said: dict[int, int] = {}  # bytes in each host's log before its last process
        directory.mkdir()

    def start(self, host: int = 0, port: int = 0, die: tuple | None = None) -> subprocess.Popen:
        """A child that goes on with the run."""
        args = self._args
        options = {"directory": str(self.directory), "cache": str(args.cache), "steps": args.steps, "die": die}
        options |= {"save_every": args.save_every, "pause": args.pause}
        env = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), "VDIT_HEARTBEAT": "3"}
        env |= {"VDIT_WAIT_FOR_HOSTS": "40"}
        if args.hosts > 1:
            env |= {"VDIT_COORDINATOR": f"127.0.0.1:{port}", "VDIT_PROCESSES": str(args.hosts)}
            env |= {"VDIT_PROCESS_ID": str(host), "XLA_FLAGS": ""}
        command = [sys.executable, str(ROOT / "tools/killed_run.py"), json.dumps(options)]
        with (self.directory / f"log.{host}").open("a") as log:
            self._said[host] = log.tell()
            return subprocess.Popen(command, stdout=log, stderr=log, env=env)

    def start_all(self, die: dict[int, tuple] | None = None) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [self.start(host, port, (die or {}).get(host)) for host in range(self._args.hosts)]

    def finish(self) -> float:
        """Runs to the end; returns the seconds until training began."""
        began, trained = time.monotonic(), None
        children = self.start_all()
        while any(child.poll() is None for child in children):
            if trained is None and self.phase() == "training":
                trained = time.monotonic() - began
            self._in_time(children, began, deadline=DEADLINE + self._args.steps * 0.2)
            time.sleep(0.01)
        if any(child.returncode for child in children):
            raise Wrong(f"ended with {[child.returncode for child in children]} undisturbed:\n{self.log()}")
        return trained or time.monotonic() - began

    def kill(self, startup: float) -> Death | None:
        """Starts the run and kills it; None if it came to its end before it was hit."""
        rng, before = self._rng, self.sealed()
        aim = rng.choice(("time", "time", "save", "event", "event"))
        signals = rng.choice(((signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGTERM, signal.SIGKILL)))
        victims = rng.choice(([0], [1], [0, 1])) if self._args.hosts > 1 else [0]
        die = {}
        if aim == "event":
            signals = signals[:1]
            victims = victims[:1]
            match = rng.choice(EVENTS)
            count = 1 + int(rng.expovariate(1 / 5 if match else 1 / 25))
            die = {victims[0]: (match, count, int(signals[0]))}
        for host in range(self._args.hosts):
            (self.directory / f"phase.{host}").unlink(missing_ok=True)
        children = self.start_all(die)
        try:
            phase = self._strike(children, victims, aim, signals, startup)
            self._wait(children)
        finally:
            for child in children:
                child.kill()
                child.wait()
        codes = [child.returncode for child in children]
        after = self.phase(victims[0]) if phase is None else phase
        if all(code == 0 for code in codes):
            return None
        self._check(codes, victims, signals, after, before)
        words = "+".join(number.name for number in signals)
        return Death(aim=aim, signals=words, phase=after, code=codes[victims[0]])

    def sealed(self) -> list[int]:
        """The steps that are complete and sealed."""
        folders = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return sorted(int(f.name) for f in folders if f.name.isdigit() and (f / "sha256.json").exists())

    def phase(self, host: int = 0) -> str:
        """What a host is doing."""
        try:
            noted = (self.directory / f"phase.{host}").read_text().strip()
            return seen(noted, self.checkpoints) or "starting"
        except OSError:
            return "starting"

    def log(self, host: int = 0) -> str:
        """What a host's last process said."""
        return (self.directory / f"log.{host}").read_text()[self._said[host] :]

    def _strike(self, children, victims, aim, signals, startup) -> str | None:
        """Sends the signals when it is time; returns the phase that they hit, None if the child saw to that itself."""
        rng, began = self._rng, time.monotonic()
        moment = began + rng.uniform(0.0, 1.6 * startup) if aim == "time" else None
        while all(child.poll() is None for child in children):
            if aim == "save" and moment is None and self.phase() == "saving":
                moment = time.monotonic() + rng.choice((0.0, rng.uniform(0.0, 0.15)))
            if moment is not None and time.monotonic() >= moment:
                phase = self.phase()
                for number in signals:
                    for victim in victims:
                        children[victim].send_signal(number)
                    if number == signal.SIGTERM and len(signals) > 1:  # what a preempted machine does
                        time.sleep(rng.uniform(0.0, 0.5))
                return phase
            self._in_time(children, began, deadline=DEADLINE + self._args.steps * 0.2)
            time.sleep(0.002 if aim == "save" else 0.01)
        return None

    def _wait(self, children) -> None:
        began = time.monotonic()
        while any(child.poll() is None for child in children):
            self._in_time(children, began, deadline=DEADLINE)
            time.sleep(0.01)

    def _in_time(self, children, began: float, deadline: float) -> None:
        if time.monotonic() - began < deadline:
            return
        alive = [host for host, child in enumerate(children) if child.poll() is None]
        for host in alive:
            children[host].send_signal(signal.SIGUSR2)  # it writes down where its threads are
        time.sleep(2.0)
        for child in children:
            child.kill()
        logs = "\n".join(f"host {host}:\n{self.log(host)}" for host in alive)
        raise Wrong(f"hangs: hosts {alive} after {deadline:g} s:\n{logs}")

    def _check(self, codes, victims, signals, phase, before) -> None:
        """What must hold after a kill."""
        from vdit.checkpoint.integrity import damage

        now = self.sealed()
        self.ever = sorted({*self.ever, *before, *now})
        if not set(self.ever[-KEEP:]) <= set(now):
            raise Wrong(f"a step is lost: sealed were {self.ever[-5:]}, there are {now}")
        bad = {step: damage(self.checkpoints / str(step)) for step in now}
        if any(bad.values()) or list(self.checkpoints.glob("*.damaged*")):
            raise Wrong(f"damaged: {bad}, {list(self.checkpoints.glob('*.damaged*'))}")
        killed = {-signal.SIGKILL} if signal.SIGKILL in signals else set()
        for host, code in enumerate(codes):
            # Before Python can handle signals, and when all is done and saved, SIGTERM is what it is to any process.
            bare = {-signal.SIGTERM} if phase == "starting" or now[-1:] == [self._args.steps] else set()
            allowed = {EX_TEMPFAIL, 0} | (killed | bare if host in victims else set())
            if host not in victims and self.phase(host) == "ending":
                allowed.add(-signal.SIGABRT)  # by jax: it was done, and waited for the other to be
            if code not in allowed:
                raise Wrong(f"host {host} ended with {code}, killed were {victims} in {phase}:\n{self.log(host)}")
            if code == EX_TEMPFAIL and not any(line.startswith("vdit: ") for line in self.log(host).splitlines()):
                raise Wrong(f"host {host} ended without a reason:\n{self.log(host)}")
        if set(codes) == {EX_TEMPFAIL} and phase == "training" and signals == (signal.SIGTERM,):
            step = json.loads((self.directory / "metrics.jsonl").read_text().splitlines()[-1])["step"]
            if now[-1:] != [step]:
                raise Wrong(f"SIGTERM after step {step} left the checkpoints {now}:\n{self.log()}")

    def check_starts(self) -> None:
        """No start began from scratch, or from a step before one that had been sealed."""
        lines = (self.directory / "log.0").read_text().splitlines()
        begun = [int(line.split()[1]) for line in lines if line.startswith("BEGIN")]
        if begun != sorted(begun):
            raise Wrong(f"a start fell back: {begun}")


def compare(one: Path, other: Path) -> None:
    """Raises if two finished runs differ; speeds and times aside."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from vdit.checkpoint import find_step
    from vdit.train.logging import read_json_lines

    def lines(directory):
        exact = read_json_lines(directory / "metrics.jsonl")
        return [{k: v for k, v in line.items() if not k.startswith(("speed/", "time/"))} for line in exact]

    def arrays(directory):
        folder = find_step(directory / "checkpoints")
        names = [entry.name for entry in folder.iterdir() if (entry / "_METADATA").exists()]
        first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        here = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first)  # noqa: E731
        wanted = {name: jax.tree.map(here, ocp.metadata(folder, checkpointable_name=name).metadata) for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = ocp.load_checkpointables(folder, wanted)
        leaves = jax.tree_util.tree_leaves_with_path(loaded)
        return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}

    def places(directory):
        files = (find_step(directory / "checkpoints") / "data").iterdir()
        return {file.name: file.read_text() for file in files}

    a, b = lines(one), lines(other)
    if a != b:
        first = next((x["step"] for x, y in zip(a, b) if x != y), min(len(a), len(b)) + 1)
        raise Wrong(f"metrics differ first at step {first} ({len(a)} and {len(b)} lines)")
    a, b = arrays(one), arrays(other)
    wrong = [key for key in sorted(set(a) | set(b)) if a.get(key) != b.get(key)]
    if wrong:
        raise Wrong(f"arrays differ: {wrong}")
    if places(one) != places(other):
        raise Wrong(f"places in the data differ: {places(one)} and {places(other)}")


def table(deaths: list[Death]) -> str:
    """Deaths by the phase that was hit and the signals that hit it."""
    kinds = sorted({death.signals for death in deaths})
    counts = collections.Counter((death.phase, death.signals) for death in deaths)
    phases = [*PHASES, *sorted({death.phase for death in deaths} - set(PHASES))]
    rows = [(phase, *(counts[phase, kind] for kind in kinds)) for phase in phases]
    rows.append(("in all", *(sum(row[column + 1] for row in rows) for column in range(len(kinds)))))
    head = f"{'phase':12}" + "".join(f"{kind:>18}" for kind in kinds) + f"{'in all':>10}"
    return "\n".join([head, *(f"{n:12}" + "".join(f"{c:>18}" for c in cs) + f"{sum(cs):>10}" for n, *cs in rows)])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--hosts", type=int, choices=(1, 2), default=1)
    parser.add_argument("--steps", type=int, default=400, help="of each run")
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.01, help="seconds before each batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="FOLDER", help="work here, and leave everything for a look")
    return parser.parse_args(argv)


def attack(root: Path, args: argparse.Namespace) -> tuple[list[Death], int]:
    """Kills until there were enough kills; returns the deaths and the number of runs. Raises Wrong."""
    rng, deaths, runs = random.Random(args.seed), [], 0
    straight = Run(root / "straight", args, rng)
    straight.finish()
    startup = Run(root / "again", args, rng).finish()  # with what the first has compiled
    began = time.monotonic()
    while len(deaths) < args.kills:
        runs += 1
        run = Run(root / f"run{runs}", args, rng)
        while True:
            death = run.kill(startup) if len(deaths) < args.kills else run.finish() and None
            if death is None:
                break
            deaths.append(death)
            left = (time.monotonic() - began) / len(deaths) * (args.kills - len(deaths))
            print(f"\r{len(deaths):>5}/{args.kills}  {int(left) // 60}:{int(left) % 60:02} left  run {runs}  "
                  f"{death.aim:6} {death.signals:16} {death.phase:10}", end="", flush=True)  # fmt: skip
        run.check_starts()
        compare(straight.directory, run.directory)
    print("\r" + " " * 80 + "\r", end="")
    return deaths, runs


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison and prints a table; returns the exit status."""
    args = parse(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(args.keep or folder)
        root.mkdir(parents=True, exist_ok=True)
        args.cache = root / "cache"
        try:
            deaths, runs = attack(root, args)
        except Wrong as wrong:
            print(f"\nWRONG, seed {args.seed}: {wrong}")
            return 1
    print(table(deaths))
    minutes = (time.monotonic() - began) / 60
    print(f"{len(deaths)} kills of {runs} runs of {args.steps} steps on {args.hosts} host(s) in {minutes:.1f} minutes: "
          "no step lost, no hang, bit for bit the undisturbed run")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
