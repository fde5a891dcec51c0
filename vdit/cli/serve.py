"""`vdit serve`: a model behind the videos API, with a page to play with."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import secrets
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vdit import paths
from vdit.cli import output
from vdit.cli.parser import Command, Duration, UsageError, at_least, length, size
from vdit.errors import ConfigError, install_command

if TYPE_CHECKING:
    from vdit.experiment.experiment import Experiment
    from vdit.serve.schema import Limits
    from vdit.serve.service import Service

TOKEN = "VDIT_TOKEN"
LIMITS = {  # options that are limits of vdit.serve.schema.Limits
    "max_frames": "frames", "max_steps": "steps", "max_waiting": "waiting", "max_waiting_client": "waiting_per_client",
    "max_videos": "videos",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="RUN", help="the folder of a run or of weights; demo: see below")
    parser.add_argument("--port", type=at_least(0, most=65535), default=8765, help="0: any; default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s, this machine")
    parser.add_argument("--token", metavar="TEXT", help=f"what clients must give; default: ${TOKEN}; see below")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name of the server; may be repeated"
    )
    parser.add_argument("--data", metavar="PATH", help="jobs, uploads and results; default: vdit-serve")
    parser.add_argument("--name", metavar="NAME", help="of the model, for clients; default: its folder's")
    parser.add_argument("--seconds", type=at_least(0, float), metavar="S", help="default length of videos")
    parser.add_argument("--size", metavar="HxW", help="default height x width in pixels")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="default number of sampler steps")
    parser.add_argument("--guidance", type=at_least(0, float), metavar="SCALE", help="default guidance")
    parser.add_argument("--max-frames", type=at_least(1), metavar="N", help="frames of a video at most")
    parser.add_argument("--max-size", metavar="HxW", help="pixels of a frame at most; default: 4 times the model's own")
    parser.add_argument("--max-steps", type=at_least(1), metavar="N", help="sampler steps at most; default: 200")
    parser.add_argument("--max-videos", type=at_least(1), metavar="N", help="videos of a request; default: 8")
    parser.add_argument("--max-waiting", type=at_least(1), metavar="N", help="jobs that wait; default: 256")
    parser.add_argument("--max-waiting-client", type=at_least(1), metavar="N", help="of one client; default: 64")
    parser.add_argument("--max-disk", type=at_least(0.01, float), metavar="GIB", help="uploads and results; default: 8")
    parser.add_argument("--keep", type=at_least(0.01, float), metavar="HOURS", help="keep them so long; default: 72")
    parser.add_argument("--batch", type=at_least(1), default=8, metavar="N", help="videos made at once; default: 8")
    parser.add_argument(
        "--pack", action=argparse.BooleanOptionalAction,
        help="also videos of several sizes by one call, in packed rows; default: on a GPU or TPU, not on a CPU",
    )
    parser.add_argument(
        "--warm", action="append", default=[], metavar="TIME@HxW",
        help="compile these shapes before the first request, as in 17@48x64,2s@96x96; 17@48x64*1*4: for one video "
             "and for four by one call (default: for 1, 2, 4, ... up to --batch); may be repeated",
    )  # fmt: skip
    parser.add_argument("--log-prompts", action="store_true", help="write prompts to the log")
    output.add_model(parser)
    parser.add_argument("--lm", metavar="PATH", help="expand prompts by this language model: a folder or a .gguf file")


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    _require()
    folder = _folder(options)
    token = _token(options)
    wanted_size = None if options.size is None else size(options.size)
    most_size = None if options.max_size is None else size(options.max_size)
    warm = [_warmed(text, options.batch) for part in options.warm for text in part.split(",")]
    from vdit.cli.process import keep_compiled
    from vdit.cli.status import Status, shown_model

    keep_compiled()
    with Status("serve") as status:
        from vdit.dist.mesh import make_mesh
        from vdit.generate import open_generator
        from vdit.generate.generator import grouping_of
        from vdit.serve.planning import nearest_frames

        mesh = make_mesh(output.read_mesh(options.mesh))
        how = {"compute": options.compute, "weights": options.weights, "lora": options.lora, "parts": options.parts}
        opened = open_generator(folder, mesh, loading=status.loading, **how)
        experiment = _with_defaults(opened.experiment, options, wanted_size)
        status.tell("model", shown_model(folder, experiment))
        limits = _limits(options, experiment, most_size)
        data = Path(options.data or "vdit-serve")
        status.tell("keeps", f"jobs, uploads and results in {data} for {limits.keep_seconds / 3600:g} h")
        status.tell("limits", f"{limits.frames} frames, {limits.pixels} pixels a frame, {limits.waiting} jobs waiting")
        generator = dataclasses.replace(opened.loaded, experiment=experiment)
        service = _service(options, folder, generator, limits, data)
        for one in warm:
            count = one.time.frames(experiment.sample.fps)
            if one.time.seconds:  # as a request in seconds
                count = nearest_frames(grouping_of(generator), count)
            with status.loading(f"programs for {count} frames of {one.size[0]}x{one.size[1]}"):
                service.warm(count, one.size, batches=one.batches)
        status.begin()
        _listen(options, service, token)
        status.next = shlex.join(["vdit", "serve", *options.words])
    return 0


def _require() -> None:
    try:
        import fastapi
        import python_multipart
        import sse_starlette
        import uvicorn
    except ImportError as error:
        rule = f"vdit serve needs {error.name}, which is not installed: {install_command('serve')}"
        raise ConfigError(rule) from None
    del fastapi, python_multipart, sse_starlette, uvicorn


def _folder(options: argparse.Namespace) -> str:
    """The model."""
    folder, rest = output.split_model(options)
    if rest:
        raise UsageError(f"{rest[0]!r}: give one model, RUN or --model FOLDER (see vdit serve --help)")
    return folder


def _token(options: argparse.Namespace) -> str | None:
    """What clients must give; made up where the address is open to other machines and none is given."""
    token = options.token or os.environ.get(TOKEN) or None
    if token is not None and (len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token):
        raise UsageError("--token: give 16 or more letters and digits, such as `openssl rand -hex 16` writes")
    if is_loopback(options.host):
        return token
    return token or secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Warmed:
    """A shape of --warm. time: its length. size: (height, width). batches: videos by one call; none: the usual."""

    time: Duration
    size: tuple[int, int]
    batches: tuple[int, ...]


def _warmed(text: str, most: int) -> Warmed:
    """Of "17@48x64" or "17@48x64*1*4"; most: videos by one call."""
    time, at, rest = text.partition("@")
    shape, *counts = rest.split("*")
    if not at:
        raise UsageError(f"--warm {text}: write TIME@HEIGHTxWIDTH, as in 17@48x64, 2s@48x64 or 17@48x64*1*4")
    try:
        made = Warmed(time=length(time), size=size(shape), batches=tuple(at_least(1)(count) for count in counts))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--warm {text}: {error}") from None
    for count in made.batches:
        if count > most or count & (count - 1):
            raise UsageError(f"--warm {text}: {count} videos by one call: give powers of two up to --batch {most}")
    return made


def _with_defaults(experiment: Experiment, options: argparse.Namespace, wanted: tuple[int, int] | None) -> Experiment:
    """The operator's defaults, which a request's own fields beat."""
    from vdit.sampling.canvas import Grouping

    sample = experiment.sample
    changes: dict = {name: getattr(options, name) for name in ("steps", "guidance") if getattr(options, name)}
    if wanted is not None:
        changes["size"] = wanted
    if options.seconds:
        grouping = Grouping.of(experiment.vae, experiment.backbone)
        changes["frames"] = grouping.canvas(round(options.seconds * sample.fps))
    return dataclasses.replace(experiment, sample=dataclasses.replace(sample, **changes))


def _limits(options: argparse.Namespace, experiment: Experiment, most: tuple[int, int] | None) -> Limits:
    from vdit.serve.planning import largest_area
    from vdit.serve.schema import Limits

    changes = {LIMITS[name]: getattr(options, name) for name in LIMITS if getattr(options, name) is not None}
    changes["pixels"] = most[0] * most[1] if most is not None else 4 * largest_area(experiment)
    if options.max_disk is not None:
        changes["stored_bytes"] = int(options.max_disk * paths.GIB)
    if options.keep is not None:
        changes["keep_seconds"] = options.keep * 3600.0
    return Limits(**changes)


def _service(options: argparse.Namespace, folder: str, generator, limits: Limits, data: Path) -> Service:
    import jax

    from vdit.generate.expansion import FOLDER, open_expander
    from vdit.serve.live import Settings
    from vdit.serve.service import Service

    expander = None
    if options.lm is not None or paths.is_dir(paths.path(folder) / FOLDER):
        expander = open_expander(folder, lm=options.lm)
    name = options.name or Path(folder).name or "model"
    run = folder if is_loopback(options.host) else name  # what other machines see names no folder of this one
    data.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(data.absolute())  # forms lie there while they come, not in the system's folder
    pack = jax.default_backend() != "cpu" if options.pack is None else options.pack
    settings = Settings(
        folder=data, name=name, run=run, limits=limits, batch=options.batch, pack=pack, log_prompts=options.log_prompts
    )
    return Service(generator, settings, expander=expander)


def _listen(options: argparse.Namespace, service: Service, token: str | None) -> None:
    import socket

    from vdit.serve.app import make_app
    from vdit.serve.server import run_server

    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
        listening.listen(128)  # who is told of the address may ask at once, and waits until the server is ready
    except OSError as error:
        service.close()
        raise ConfigError(f"--host {options.host} --port {options.port}: {error.strerror}: give another") from None
    port = listening.getsockname()[1]
    shown = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{shown}:{port}/"
    if token is not None:
        print(f"{address}?token={token}", flush=True)
    else:
        print(address, flush=True)
    if not is_loopback(options.host):
        output.say(
            f"vdit: warning: {options.host} is open to other machines: who has the token can use this model, and it "
            "travels unencrypted; put a TLS proxy in front of it where others can listen"
        )
    print("vdit: Ctrl-C ends; jobs that wait then go on at the next start", file=sys.stderr, flush=True)
    hosts = None if not is_loopback(options.host) and not options.allow_host else tuple(options.allow_host)
    run_server(make_app(service, token=token, hosts=hosts), listening, limits=service.limits)


SERVE = Command(
    summary="serve a model: a page to play with, and the community's videos API",
    description="""\
Serves one model on one port: a page for the browser, and the videos API (/v1/videos, as OpenAI's and as other servers
have it; /openapi.json describes it). Jobs wait in a queue in front of the devices; those of one shape are made
together. Jobs, uploads and results are kept in --data: a server that ends, or is killed, goes on where it was.

Without --host only this machine can reach it. With another address clients must give a token: yours (--token, or in
$VDIT_TOKEN), or one that is made up and printed. `vdit serve demo` serves the small model that ships
with vdit.""",
    epilog="""\
examples:
  vdit serve runs/mine
  vdit serve runs/mine --port 9000 --warm 17@48x64 --steps 10
  vdit serve --model Wan2.1-T2V-1.3B-Diffusers --max-frames 81 --max-size 480x832
  vdit serve runs/mine --host 0.0.0.0 --allow-host films.example.org

  curl http://127.0.0.1:8765/v1/videos -H 'Content-Type: application/json' -d '{"prompt": "a red circle"}'""",
    add_arguments=add_arguments,
    run=_run,
)
