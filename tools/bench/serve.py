"""`vdit serve` under load, killed, and started again.

    python -m tools.bench.serve load             # 200 jobs of 4 shapes from 20 clients, some cancelled: --batch 8 and 1
    python -m tools.bench.serve kill             # SIGKILL in the middle, start again: does every accepted job end?
    python -m tools.bench.serve first            # first answer after a start: no compiled programs, kept ones, warmed
    python -m tools.bench.serve together         # videos of one shape: 8 by one call, and one at a time
    python -m tools.bench.serve world --run RUN  # a world model that is played: frames a second, from key to frame
    python -m tools.bench.serve packing          # jobs of several sizes: one after the other, and in one packed row

Without --run the model has the quickstart's shapes and random weights: what it makes is noise, and takes as long. Each
line says what was measured, in seconds of the clock and of the processor (`cpu`): on a shared machine only the second
can be compared.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ("48x48", "64x48", "48x64", "32x32")  # width x height
ENDED = ("completed", "failed", "cancelled")


def random_experiment():
    """The quickstart's, with fewer steps so that a load takes minutes."""
    from vdit.quickstart import config
    from vdit.samplers import Euler

    own = config.experiment()
    return dataclasses.replace(own, sample=dataclasses.replace(own.sample, sampler=Euler(), steps=8))


def random_params(init):
    """Parameters of the shapes of `init`, drawn without compiling anything."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(lambda x: jnp.asarray(0.05 * rng.standard_normal(x.shape), x.dtype), shapes)


def make_run(folder: Path) -> Path:
    """A run of random weights, as `vdit train` lays one out."""
    import jax.numpy as jnp

    from vdit.checkpoint import Checkpointer
    from vdit.config import to_dict
    from vdit.models.text import train_tokenizer
    from vdit.models.vae.model import VAE
    from vdit.train.stages import with_tokenizer
    from vdit.train.workspace import Workspace

    space = Workspace(folder)
    words = ("a red circle moves to the left", "two blue crosses collide", "a green ball falls and bounces")
    train_tokenizer(words * 20, space.tokenizer, vocab_size=300)
    experiment = with_tokenizer(random_experiment(), space)
    space.save_experiment(experiment)
    channels = experiment.vae.latent_channels
    space.save_statistics([0.0] * channels, [1.0] * channels)
    video = jnp.zeros((1, 1 + experiment.vae.temporal_stride, 32, 32, 3))
    vae = random_params(lambda key: VAE(experiment.vae).init(key, video)["params"])
    for place, stage, params in (
        (space.vae, "vae", {"vae": vae}), (space.dit, "dit", random_params(experiment.network.init))
    ):
        with Checkpointer(place, meta={"stage": stage, "config": to_dict(experiment)}) as checkpointer:
            checkpointer.save(1, {"params": params})
    return folder


@dataclasses.dataclass
class Server:
    """A `vdit serve` of its own. peak: the most memory it was seen to take, MiB, by second."""

    run: Path
    data: Path
    options: tuple[str, ...] = ()
    cache: Path | None = None
    process: subprocess.Popen | None = None
    port: int = 0
    memory: list[tuple[float, int]] = dataclasses.field(default_factory=list)

    def __enter__(self) -> Server:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        if self.cache is not None:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.cache)
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"
        limits = ("--max-waiting", "1000", "--max-waiting-client", "1000")
        command = [sys.executable, "-m", "vdit.cli.main", "serve", str(self.run), "--port", "0"]
        command += ["--data", str(self.data), *limits, *self.options]
        self.log = (self.data.parent / "serve.log").open("ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, env=environment)
        line = self.process.stdout.readline().decode()
        found = re.search(r":(\d+)/", line)
        if found is None:
            raise SystemExit(f"the server did not start: see {self.log.name}")
        self.port = int(found[1])
        self._watching = True
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._watching = False
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.log.close()

    def kill(self) -> None:
        self._watching = False
        self.process.kill()
        self.process.wait()

    def _watch(self) -> None:
        began = time.monotonic()
        while self._watching:
            with contextlib.suppress(OSError, IndexError):
                pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
                self.memory.append((time.monotonic() - began, pages * os.sysconf("SC_PAGE_SIZE") >> 20))
            time.sleep(1.0)

    @property
    def cpu(self) -> float:
        """Seconds of the processor so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def call(self, method: str, path: str, body=None, *, client: str = "one", timeout: float = 120) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            headers = {"X-Client-Id": client} | ({} if body is None else {"Content-Type": "application/json"})
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()


@dataclasses.dataclass
class Told:
    """What became of a job. seconds: from asking to its end."""

    id: str
    status: str
    seconds: float


def one_client(server: Server, name: str, seed: int, asks: Asks) -> list[Told]:
    """Asks for its share of videos of mixed shapes, cancels some, and waits for all."""
    rng, jobs, told = random.Random(seed), {}, []
    for _ in range(asks.jobs // asks.clients):
        size = rng.choice(asks.sizes)
        asked = {"prompt": "a red circle", "size": size, "num_frames": 17, "seed": rng.randrange(10**6)}
        status, job = server.call("POST", "/v1/videos", asked, client=name)
        if status != 200:
            raise SystemExit(f"{status}: {job}")
        jobs[job["id"]] = time.monotonic()
        if rng.random() < asks.cancels:
            server.call("POST", f"/v1/videos/{job['id']}/cancel", client=name)
        time.sleep(rng.random() * 0.2)
    while jobs:
        for id in list(jobs):
            _, job = server.call("GET", f"/v1/videos/{id}", client=name)
            if job["status"] in ENDED:
                told.append(Told(id, job["status"], time.monotonic() - jobs.pop(id)))
        time.sleep(0.5)
    return told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asks:
    """What the clients ask for in all. cancels: the share that they cancel."""

    jobs: int
    clients: int
    cancels: float
    sizes: tuple[str, ...]


def all_clients(server: Server, asks: Asks) -> list[Told]:
    with concurrent.futures.ThreadPoolExecutor(asks.clients) as pool:
        parts = [pool.submit(one_client, server, f"c{k}", k, asks) for k in range(asks.clients)]
        return [one for part in parts for one in part.result()]


def warm(sizes: tuple[str, ...], batch: int) -> tuple[str, str]:
    """The option that compiles every shape in every size of batch, so that nothing compiles while it is measured."""
    counts = "".join(f"*{1 << k}" for k in range(batch.bit_length()))
    return "--warm", ",".join(f"17@{high}x{wide}{counts}" for wide, high in (size.split("x") for size in sizes))


def load(options: argparse.Namespace, folder: Path) -> None:
    """Throughput with jobs made together and one at a time, latency, memory."""
    asks = Asks(jobs=options.jobs, clients=options.clients, cancels=options.cancels, sizes=options.sizes)
    rates = {}
    for batch in (8, 1):
        how = ("--batch", str(batch), "--max-videos", "8", *warm(asks.sizes, batch))
        with Server(options.run, folder / f"data{batch}", how, folder / "cache") as server:
            server.memory.clear()
            began, cpu = time.monotonic(), server.cpu
            told = all_clients(server, asks)
            wall, cpu = time.monotonic() - began, server.cpu - cpu
            made = sum(one.status == "completed" for one in told)
            waits = np.array([one.seconds for one in told if one.status == "completed"])
            memory = np.array([size for _, size in server.memory])
            third = max(1, len(memory) // 3)
            rates[batch] = made / wall, made / cpu
            p50, p95, p99 = np.percentile(waits, (50, 95, 99))
            print(
                f"batch {batch}: {len(told)} of {options.jobs} answered, {dict(Counter(one.status for one in told))}; "
                f"{wall:.1f} s, {cpu:.1f} cpu s, {made / wall:.2f} videos/s, {made / cpu:.2f} videos/cpu s; latency "
                f"p50 {p50:.1f} p95 {p95:.1f} p99 {p99:.1f} s; memory {memory[:third].max()} MiB in the first third, "
                f"{memory[-third:].max()} in the last",
                flush=True,
            )
    wall, cpu = (rates[8][k] / rates[1][k] for k in range(2))
    print(f"together against one at a time: {wall:.2f} times the videos a second, {cpu:.2f} a cpu second")


def kill(options: argparse.Namespace, folder: Path) -> None:
    """SIGKILL in the middle of the load, three times; every accepted job must end."""
    data, ids = folder / "data", []
    for turn in range(3):
        with Server(options.run, data, (), folder / "cache") as server:
            for k in range(options.jobs // 3):
                asked = {"prompt": "a", "size": SHAPES[k % len(SHAPES)], "num_frames": 17, "seed": k}
                ids.append(server.call("POST", "/v1/videos", asked)[1]["id"])
            until = time.monotonic() + 60
            while time.monotonic() < until:
                done = [server.call("GET", f"/v1/videos/{id}")[1]["status"] in ENDED for id in ids]
                if sum(done) > len(ids) * (turn + 1) // 5:
                    break
                time.sleep(0.2)
            server.kill()
            print(f"killed with {sum(done)} of {len(ids)} ended", flush=True)
    with Server(options.run, data, (), folder / "cache") as server:
        until = time.monotonic() + 1800
        while time.monotonic() < until:
            states = Counter(server.call("GET", f"/v1/videos/{id}")[1].get("status", "lost") for id in ids)
            if all(state in (*ENDED, "lost") for state in states):
                break
            time.sleep(1.0)
        left = list((data / "partial").iterdir())
    print(f"after the last start: {dict(states)} of {len(ids)}; {len(left)} partial files left")


def first(options: argparse.Namespace, folder: Path) -> None:
    """Seconds from the start of the process, and from the server's being there, to the first video."""
    for name, how, cache in (
        ("no compiled programs", (), "cache"), ("programs kept on disk", (), "cache"),
        ("programs kept, and --warm", ("--warm", "17@48x48*1"), "cache"),
    ):  # fmt: skip
        began = time.monotonic()
        with Server(options.run, folder / name.replace(" ", ""), how, folder / cache) as server:
            there = time.monotonic()
            _, job = server.call("POST", "/v1/videos", {"prompt": "a", "size": "48x48", "num_frames": 17})
            while server.call("GET", f"/v1/videos/{job['id']}")[1]["status"] not in ENDED:
                time.sleep(0.05)
            now = time.monotonic()
            print(f"{name}: {now - there:.1f} s to the first video, {there - began:.1f} s to start; "
                  f"{server.cpu:.1f} cpu s in all", flush=True)  # fmt: skip


def together(options: argparse.Namespace, folder: Path) -> None:
    """The devices' part of a job, without HTTP and files: the same 8 videos one at a time, and by one call.

    First of one size; then of several, in batches of one size, and side by side in packed rows.
    """
    import jax

    import vdit
    from vdit.generate.generator import noise_of
    from vdit.seeds import key_of
    from vdit.serve.planning import row_size

    del folder
    generator = dataclasses.replace(vdit.load(options.run), watch=lambda step: None)
    method = generator.method()

    def make(sizes: Sequence[tuple[int, int]]) -> None:
        count = len(sizes)
        tasks = [generator.task(method, 17, size) for size in sizes]
        tokens = generator.tokens(["a red circle"] * count), generator.tokens([""] * count)
        noise = [noise_of(generator, [k], frames=17, size=size)[0] for k, size in enumerate(sizes)]
        if len(set(sizes)) == 1:
            jax.block_until_ready(generator.run(tasks[0], tokens, key_of(0), np.stack(noise)))
        else:
            generator.run_packed(tasks, tokens, noise, row_size(generator))

    def compare(ways: dict[str, list[list[tuple[int, int]]]]) -> None:
        """Name -> calls that make the same videos. The first way is what the others are held against."""
        costs = []
        for name, calls in ways.items():
            times = []
            for _ in range(4):  # the first compiles
                wall, cpu = time.monotonic(), time.process_time()
                for sizes in calls:
                    make(sizes)
                times.append(((time.process_time() - cpu) / 8, (time.monotonic() - wall) / 8))
            costs.append(min(times[1:]))
            gain = [costs[0][k] / costs[-1][k] for k in range(2)]
            print(f"{name}: {costs[-1][0]:.3f} cpu s a video ({costs[-1][1]:.3f} s), {gain[0]:.2f} times one at a time "
                  f"({gain[1]:.2f} by the clock)", flush=True)  # fmt: skip

    compare({f"{count} by one call": [[(48, 48)] * count] * (8 // count) for count in (1, 2, 4, 8)})
    sizes = [(48, 48), (48, 64), (64, 48), (32, 32)]
    compare({
        "8 of 4 sizes, one at a time": [[size] for size in sizes * 2],
        "in batches of one size": [[size] * 2 for size in sizes],
        "in packed rows": [sizes * 2],
    })  # fmt: skip


def heads(socket, until: float) -> Iterator[tuple[float, dict]]:
    """(when it came, head) of the messages of a world (vdit.serve.world), each marked as seen."""
    while (left := until - time.monotonic()) > 0:
        try:
            message = socket.recv(timeout=left)
        except TimeoutError:
            return
        now = time.monotonic()
        if isinstance(message, str):
            raise SystemExit(message)
        length = int.from_bytes(message[:4], "little")
        head = json.loads(message[4 : 4 + length])
        socket.send(json.dumps({"type": "seen", "number": head["number"]}))
        yield now, head


@dataclasses.dataclass
class Played:
    """A world that was played. waits: seconds from key to frame. steps: seconds of each. frames: of the world.
    wall, cpu: seconds of the clock, and of the processor for all that the server did. beside: frames of other videos.
    """

    waits: list[float] = dataclasses.field(default_factory=list)
    steps: list[float] = dataclasses.field(default_factory=list)
    frames: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    beside: float = 0.0


def made(server: Server, ids: Sequence[str]) -> float:
    """Frames of jobs that are made so far."""
    jobs = [server.call("GET", f"/v1/videos/{id}")[1] for id in ids]
    return sum(job["frames"] * job["progress"] / 100 for job in jobs)


def play(server: Server, seconds: float, ids: Sequence[str]) -> Played:
    """Keys at random moments; the first frames, which may compile, do not count. ids: jobs that are made meanwhile."""
    from websockets.sync.client import connect

    rng, pressed, played = random.Random(0), {}, Played()
    with connect(f"ws://127.0.0.1:{server.port}/v1/world", max_size=None) as socket:
        socket.send(json.dumps({"type": "begin", "start": "rendered"}))
        coming = heads(socket, time.monotonic() + 600)
        ready = next(coming)[1]
        shape = f"{ready['width']}x{ready['height']}"
        print(f"{shape}, {ready['frames_per_step']} frames a step, of {ready['fps']:g} a second", flush=True)
        for _ in range(5):  # the first steps may compile
            next(coming)
        ending = threading.Event()

        def press() -> None:
            for id in range(1, 1 << 20):
                if ending.wait(0.3 + 0.6 * rng.random()):
                    return
                key = rng.choice(ready["keys"])
                pressed[id] = time.monotonic()
                socket.send(json.dumps({"type": "key", "key": key, "id": id}))
                socket.send(json.dumps({"type": "key", "key": key, "id": id, "down": False}))

        began, cpu, others = time.monotonic(), server.cpu, made(server, ids)
        presser = threading.Thread(target=press)
        presser.start()
        for now, head in heads(socket, began + seconds):
            played.frames += len(head["pictures"])
            played.steps.append(head["step_ms"] / 1000)
            if head["id"] is not None:
                played.waits.append(now - pressed[head["id"]])
        played.wall, played.cpu, played.beside = time.monotonic() - began, server.cpu - cpu, made(server, ids) - others
        ending.set()
        presser.join()
        return played


def world(options: argparse.Namespace, folder: Path) -> None:
    """Keys at random moments for a while, with nothing else to do and beside videos that are made."""
    with Server(options.run, folder / "data", (), folder / "cache") as server:
        ids: list[str] = []
        for name in ("alone", "while programs of rollouts compile", "beside rollouts"):
            if name != "alone" and not ids:
                ids = server.call("POST", "/v1/videos", {"task": "rollout", "num_frames": 1000, "n": 8})[1]["ids"]
            while name == "beside rollouts" and not made(server, ids):
                time.sleep(0.5)
            played = play(server, options.seconds, ids)
            (p50, p95), (s50, s95) = (
                np.percentile(1000 * np.array(one), (50, 95)) for one in (played.waits, played.steps)
            )
            print(
                f"{name}: {played.frames / played.wall:.1f} frames a second; from "
                f"key to frame p50 {p50:.0f} p95 {p95:.0f} ms of {len(played.waits)} keys; a step p50 {s50:.0f} p95 "
                f"{s95:.0f} ms; {1000 * played.cpu / len(played.steps):.0f} cpu ms a step of all that the server did; "
                f"{played.beside / played.wall:.0f} frames a second of the rollouts",
                flush=True,
            )


def packing(options: argparse.Namespace, folder: Path) -> None:
    """One step of the network: clips of several sizes one after the other, and beside each other in one row."""
    import jax
    import jax.numpy as jnp

    from vdit.data.patches import grid_position, token_grid
    from vdit.dist.mesh import make_mesh
    from vdit.models.text import train_tokenizer
    from vdit.types import Row

    del folder, train_tokenizer
    experiment = random_experiment()
    network, mesh = experiment.network, make_mesh()
    params = random_params(network.init)
    text = experiment.text.max_length

    def row_of(shapes: list[tuple[int, int]]) -> Row:
        """A row of clips of 17 frames, each a segment."""
        parts: dict[str, list] = {name: [] for name in ("values", "position", "segment", "index", "frames", "text")}
        at = 0
        for number, (height, width) in enumerate(shapes, 1):
            latent = experiment.vae.latent_shape(17, height, width)
            grid = token_grid((1, *latent), network.backbone.patch)
            position = np.asarray(grid_position(grid))
            count = len(position)
            parts["values"].append(np.zeros((count, latent[-1] * int(np.prod(network.backbone.patch))), np.float32))
            parts["position"].append(position)
            parts["segment"].append(np.full(count, number))
            parts["index"].append(position[:, 0] + at)
            parts["frames"].append(np.full(grid[0], number))
            parts["text"].append(np.full(text, number))
            at += grid[0]
        one = {name: np.concatenate(value)[None] for name, value in parts.items()}
        return Row(
            values=one["values"], position=one["position"].astype(np.int32),
            segment_ids=one["segment"].astype(np.int32), frame_index=one["index"].astype(np.int32),
            frame_segment_ids=one["frames"].astype(np.int32), text=np.ones_like(one["text"], np.int32),
            text_segment_ids=one["text"].astype(np.int32),
            text_position=np.tile(np.arange(text, dtype=np.int32), len(shapes))[None],
        )  # fmt: skip

    @jax.jit
    def step(params, row, time):
        encoded = network.encode_text(params, row)
        return network.apply(params, row, time, encoded, expert="dit").prediction

    def clock(rows: list[Row], repeat: int = 10) -> tuple[float, float]:
        times = [jnp.full(row.frame_segment_ids.shape, 500.0) for row in rows]
        with jax.set_mesh(mesh):
            best = float("inf"), float("inf")
            for _ in range(4):
                wall, cpu = time.monotonic(), time.process_time()
                for _ in range(repeat):
                    jax.block_until_ready([step(params, row, at) for row, at in zip(rows, times)])
                best = min(best, ((time.process_time() - cpu) / repeat, (time.monotonic() - wall) / repeat))
        return best

    for shapes in ([(48, 48), (64, 48), (48, 64), (32, 32)], [(32, 32), (16, 16), (16, 32), (32, 16)]):
        apart, packed = clock([row_of([shape]) for shape in shapes]), clock([row_of(shapes)])
        print(
            f"{shapes}: apart {1e3 * apart[0]:.1f} cpu ms ({1e3 * apart[1]:.1f} ms), in one row {1e3 * packed[0]:.1f} "
            f"cpu ms ({1e3 * packed[1]:.1f} ms): {apart[0] / packed[0]:.2f} times",
            flush=True,
        )


@contextlib.contextmanager
def working_folder(options: argparse.Namespace) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vdit-serve-", dir=options.tmp) as name:
        folder = Path(name)
        if options.run is None and options.what != "packing":
            options.run = make_run(folder / "run")
        yield folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = {"load": load, "kill": kill, "first": first, "together": together, "world": world,
            "packing": packing}
    parser.add_argument("what", choices=what)
    parser.add_argument("--run", type=Path, help="a model of 8 pixels a token, or any that makes the bench's sizes")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--sizes", nargs="+", default=SHAPES, metavar="WxH", help="of the load; default: %(default)s")
    parser.add_argument("--cancels", type=float, default=0.1, help="share of the jobs that are cancelled")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long a world is played; default: %(default)s")
    parser.add_argument("--tmp", help="folder for what it writes; default: the system's")
    options = parser.parse_args()
    options.sizes = tuple(options.sizes)
    with working_folder(options) as folder:
        what[options.what](options, folder)


if __name__ == "__main__":
    main()
