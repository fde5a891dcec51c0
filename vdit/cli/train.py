"""`vdit train`: run an experiment, from videos to a model that samples."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path

from vdit import paths
from vdit.cli.output import OTHER_MEDIA, VIDEO
from vdit.cli.parser import UsageError, nearest
from vdit.errors import VditWarning

SUMMARY = "train VAE, tokenizer and diffusion transformer on an experiment's data or a folder of videos"
DESCRIPTION = """\
Runs the stages of an experiment in order: the video VAE (vae), encoding the videos with it (latents), the tokenizer of
the captions (tokenizer), the diffusion transformer (dit). A complete stage is skipped, an interrupted one resumes from
its last checkpoint, so the same command starts and resumes a run.

An experiment is a Python file with a function config() that returns a vdit Experiment; those in experiments/
are meant to be read, and are found by name too (`vdit train clips`). A run's folder works too.
Without one, --data trains a small default on a folder of ordinary video files, with captions in captions.jsonl or
captions.csv ("file" and "caption"), in metadata.csv, in prompt.txt beside videos.txt, or in a .txt file beside each
video (docs/captions.md). One summary says what was found and what is not used; with --strict that is an error. When
videos or captions have changed since they were encoded, the same command encodes what changed again, and says so. The
model learns canvases of every task, for vdit animate, extend, loop, connect, inpaint and rollout."""
EPILOG = """\
examples:
  vdit train --data my_videos --workdir runs/mine
  vdit train experiments/clips.py --workdir runs/clips --cfg.backbone.depth=4 --cfg.data.pixel_budgets=9216,16384
  vdit train experiments/clips.py --help-config    # lists every --cfg key with its type and value
  vdit train runs/clips --stage dit --cfg.dit_train.steps=20000    # continues a run, longer
  vdit train experiments/clips.py --plugin my_tars.py --cfg.data.source=my_tars    # a data source of your own
  vdit train experiments/clips.py --cfg.evaluators=denoising --cfg.dit_train.best_metric=eval/denoising/loss

A backbone, condition, objective, optimizer, data source, sampler or evaluator of your own is a registered dataclass in
a module that --plugin imports (docs/how_to). Evaluators measure on held-out data while a model trains.

On several hosts, start the same command on each. In GKE and under Slurm jax finds the others itself, on a TPU pod with
VDIT_CLUSTER=1; elsewhere set VDIT_COORDINATOR (host:port of the first), VDIT_PROCESSES and VDIT_PROCESS_ID. If a host
is silent for VDIT_HEARTBEAT seconds (100), the others exit. On SIGTERM on any host, all hosts save one checkpoint and
exit with code 75: start the same command again, on the same number of hosts or another (see experiments/launch).
A profiler trace of three steps is taken on SIGUSR1, or when a file RUN/profile appears."""
TAKES_OVERRIDES = True

STAGES = ("vae", "latents", "tokenizer", "dit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiment", nargs="?", metavar="EXPERIMENT", help="a .py file, a shipped name, a module, or a run's folder"
    )
    parser.add_argument(
        "--workdir", "--out", metavar="RUN", help="the run's folder; default: runs/NAME, or the run given as EXPERIMENT"
    )
    parser.add_argument("--data", metavar="FOLDER", help="train on this folder of videos (nothing of it is held out)")
    parser.add_argument(
        "--strict", action="store_true", help="refuse to start if a video is not used or has no caption"
    )
    parser.add_argument(
        "--stage", action="append", metavar="STAGE", help=f"only this one of {', '.join(STAGES)}; may be repeated"
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="also log to this Weights & Biases project")
    parser.add_argument("--no-tensorboard", action="store_true", help="write no TensorBoard events")
    parser.add_argument(
        "--wait-for-hosts", type=float, metavar="SECONDS", help="how long to wait for all hosts; default: 300"
    )
    parser.add_argument("--profile", metavar="FIRST:LAST", help="trace these steps into RUN/logs/profile")
    parser.add_argument("--help-config", action="store_true", help="list every --cfg key, its type and value, and stop")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    stages = _stages(options.stage)
    from vdit.cli.print_config import show_config

    experiment = with_overrides(find_experiment(options.experiment, options.data), overrides)
    if options.help_config:
        show_config(experiment)
        return 0
    if options.wait_for_hosts is not None and not options.wait_for_hosts > 0:
        raise UsageError(f"--wait-for-hosts={options.wait_for_hosts:g}: give a number of seconds above 0")
    from rich.console import Console

    from vdit.cli.cache import keep_compiled
    from vdit.cli.hosts import joined
    from vdit.cli.status import Status
    from vdit.config import to_json
    from vdit.train.monitor import parse_steps
    from vdit.train.workspace import EXPERIMENT, Workspace

    steps = None if options.profile is None else parse_steps(options.profile)
    digest = hashlib.sha256(f"{stages} {to_json(experiment)}".encode()).hexdigest()[:12]
    space = Workspace(options.workdir or _default_folder(options.experiment, experiment.name))
    if not paths.is_file(space.root / EXPERIMENT):  # a run from before this rule goes on
        experiment.check_rate()
    with joined({"the experiment": digest}, wait=options.wait_for_hosts) as together:
        keep_compiled()
        with Status("train", console=Console()) as status:
            _tell(experiment, space, stages, status)
            _train(experiment, space, stages, options, together, steps, status)
            if "dit" in stages:
                status.wrote(space.root)
                status.next = f'vdit sample {shlex.quote(str(space.root))} "a prompt" --out sample.mp4'
    return 0


def _tell(experiment, space, stages, status) -> None:
    """What the stages will do, with which settings, and how far they have come before."""
    import jax

    from vdit.checkpoint.files import steps_in

    e, devices = experiment, jax.devices()
    height, width = e.vae_clips.size
    vae, dit = e.vae_train, e.dit_train
    words = {
        "vae": f"{vae.steps} steps of {vae.batch_size} clips, {e.vae_clips.frames} frames of {height}x{width}",
        "latents": f"{e.latents.samples or 'one pass of'} clips, encoded once",
        "tokenizer": f"of the captions, {e.text.vocab_size} pieces at most",
        "dit": f"{dit.steps} steps of {dit.batch_size} rows of {e.data.row_tokens} tokens, "
        f"{e.backbone.width} wide and {e.backbone.depth} deep",
    }
    status.tell("makes", f'{space.root}: "{e.name}" on {len(devices)} x {devices[0].device_kind}')
    for stage in stages:
        folder = {"vae": space.vae, "dit": space.dit}.get(stage)
        step = max(steps_in(folder), default=0) if folder is not None and paths.is_dir(folder) else 0
        total = {"vae": vae.steps, "dit": dit.steps}.get(stage, 0)
        done = "" if not step else ", done" if step >= total else f", from step {step}"
        status.tell(stage, words[stage] + done)
    status.tell("takes", "each stage prints this after its first steps; Ctrl-C stops, the same command resumes")


def _train(experiment, space, stages, options, together, profile_steps, status) -> None:
    import jax

    from vdit.dist.multihost import is_primary_host
    from vdit.train import stages as training
    from vdit.train.monitor import ASK, Profiler, RunMonitor

    wandb = {"project": options.wandb, "name": space.root.name} if options.wandb else None
    traces = space.logs / "profile" / f"host_{jax.process_index()}"
    ask = space.root / ASK if is_primary_host() and not space.is_remote else None
    profiler = Profiler(traces, steps=profile_steps, ask=ask)
    parts = {"place": together.place, "peers": together.peers, "stop": together.stop, "profiler": profiler}
    training.check_run(experiment, space, stages, strict=options.strict)
    status.begin()
    with RunMonitor(space.logs / "hosts", **parts) as watch:
        logging = training.Logging(tensorboard=not options.no_tensorboard, wandb=wandb, watch=watch)
        training.run(experiment, space, stages=stages, logging=logging, strict=options.strict)
    if "dit" in stages and is_primary_host() and experiment.lora is not None:
        from vdit.pretrained.lora import write_run

        print(f"LoRA, for diffusers and ComfyUI too: {write_run(space.root)}")


def _stages(named: list[str] | None) -> tuple[str, ...]:
    for stage in named or ():
        if stage not in STAGES:
            raise UsageError(f"stage {stage!r} is unknown{nearest(stage, STAGES)} (stages: {', '.join(STAGES)})")
    return STAGES if not named else tuple(stage for stage in STAGES if stage in named)


def shipped_experiments() -> dict[str, Path]:
    """Name -> file of the experiments that come with vdit: in its wheel, or beside its checkout (setup.py)."""
    package = Path(__file__).parents[1]
    checkout = package.parent / "experiments"
    folder = checkout if (package.parent / "setup.py").is_file() else package / "experiments"
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def with_overrides(experiment, overrides: Sequence[str]):
    """The experiment with --cfg overrides. Where only the steps of a stage are set, a longer warm-up is shortened."""
    from vdit.config import apply_overrides
    from vdit.experiment.upgrade import upgrade_overrides

    overrides = upgrade_overrides(overrides)
    keys = {override.partition("=")[0].strip(): override.partition("=")[2].strip() for override in overrides}
    more = []
    for stage in ("vae_train", "dit_train"):
        steps, key = keys.get(f"{stage}.steps", ""), f"{stage}.optimizer.warmup_steps"
        warmup = getattr(experiment, stage).optimizer.warmup_steps
        if key not in keys and steps.isdecimal() and len(steps) < 10 and 0 < int(steps) < warmup:
            more.append(f"{key}={int(steps) // 10}")
            line = f"{key} is shortened from {warmup} to {int(steps) // 10}, a tenth of {stage}.steps={steps}"
            warnings.warn(line, VditWarning, stacklevel=2)
    return apply_overrides(experiment, [*overrides, *more])


def find_experiment(source: str | None, data: str | None = None):
    """The Experiment that `source` names, or the default one on a folder of videos.

    source: a run's folder, a .py file, a shipped experiment's name, or a module's dotted name; the first that exists.
    data: a folder of videos to train on instead of the experiment's own.
    """
    from vdit.cli.folder import folder_experiment, on_folder
    from vdit.config import load_config
    from vdit.experiment.experiment import Experiment
    from vdit.train.workspace import EXPERIMENT, Workspace

    if source is None:
        if data is None:
            raise UsageError("nothing to train: give an EXPERIMENT.py, or --data FOLDER (see vdit train --help)")
        return folder_experiment(data)
    shipped = {} if paths.exists(source) or source.endswith(".py") else shipped_experiments()
    if paths.is_dir(source) and not paths.is_file(paths.path(source) / EXPERIMENT) and data is None:
        from vdit.data.captions import video_files

        what = "a folder of videos" if video_files(paths.path(source)) else "no run (experiment.json is missing)"
        raise UsageError(f"{source}: is {what}; to train on a folder of videos, write vdit train --data {source}")
    if Path(source).suffix.lower() in VIDEO + OTHER_MEDIA:
        raise UsageError(f"{source}: is no experiment; to train on videos, name their folder: vdit train --data FOLDER")
    if paths.is_dir(source):
        experiment = Workspace(source).experiment()
    elif source.isidentifier() and source not in shipped and importlib.util.find_spec(source) is None:
        known = ", ".join(shipped) or "none are installed"
        raise UsageError(f"no experiment {source!r}{nearest(source, shipped)} (give a .py file, or one of: {known})")
    else:
        experiment = load_config(shipped.get(source, source))
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{source}: config() returned {type(experiment).__name__}, vdit train needs an Experiment")
    return experiment if data is None else on_folder(experiment, data, begun=paths.is_dir(source))


def _default_folder(source: str | None, name: str) -> Path:
    return paths.path(source) if source is not None and paths.is_dir(source) else Path("runs") / name
