"""`vdit train`, `vdit quickstart` and `vdit plan`: commands that work on an experiment."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdit import paths
from vdit.cli.output import OTHER_MEDIA, VIDEO
from vdit.cli.parser import Command, UsageError, at_least, nearest
from vdit.cli.status import Status
from vdit.errors import DataError, VditWarning
from vdit.outputs import check_output, numbered

if TYPE_CHECKING:
    from vdit.experiment.experiment import Experiment

STAGES = ("vae", "latents", "tokenizer", "dit")
DOES_NOT_FIT = 3  # exit code of vdit plan
CUTS = 2000  # latents to encode at least: a small folder gives several cuts of each video


def print_config(config: Any) -> None:
    """Every key that --cfg takes, with its type and its value."""
    from vdit.config import describe
    from vdit.reprs import cut

    shown = lambda value: cut("none" if value is None else str(value))  # noqa: E731
    rows = [(f"--cfg.{key}", kind, shown(value)) for key, kind, value in describe(config)]
    widths = [min(max(len(row[column]) for row in rows), 44) for column in range(2)]
    for key, kind, value in rows:
        print(f"{key:{widths[0]}}  {kind:{widths[1]}}  {value}".rstrip())


def folder_experiment(path: str | Path) -> Experiment:
    """A small model of every task on a folder of videos, for one GPU or a patient CPU; all values can be overridden."""
    from vdit.data.config import DataConfig
    from vdit.diffusion import DiffusionConfig
    from vdit.experiment.canvases import EVERY_TASK
    from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
    from vdit.experiment.optimizer import Muon
    from vdit.experiment.training import TrainConfig
    from vdit.models.dit.config import DiTConfig
    from vdit.models.text.config import TextConfig
    from vdit.models.vae.config import VAELossConfig, preset

    videos, vae = _count_videos(path), preset("footage")
    experiment = Experiment(
        name=(paths.path(path).name if paths.is_remote(path) else Path(path).resolve().name) or "folder",
        data=DataConfig(
            source=_source(path, cache_gib=2.0),
            pixel_budgets=(64 * 64, 96 * 96, 128 * 128),
            frames=(1, 9, 17),
            fps=(8.0, 12.0),
            hflip=0.5,
            row_tokens=512,
            max_text_per_row=256,
            max_frames_per_row=64,
            max_clips_per_row=24,
        ),
        vae=vae,
        vae_loss=VAELossConfig(reconstruction="mse", kl_weight=2e-5, equivariance_weight=0.25),
        vae_clips=VAETrainConfig(frames=9, size=(64, 64)),
        vae_train=TrainConfig(steps=3000, batch_size=4, ema_decay=0.99, optimizer=Muon(
            learning_rate=4e-3, warmup_steps=50, schedule="cosine", final_scale=0.02, b2=0.95, clip_norm=0.3)),
        latents=LatentsConfig(samples=-(-CUTS // videos) * videos, latent_frames=1),
        text=TextConfig(vocab_size=2048, width=128, depth=2, heads=4),
        backbone=DiTConfig(in_channels=vae.latent_channels, width=256, depth=8, heads=4, position="both"),
        # A latent has thousands of values: what is where is decided at high noise. A token has 192 of them, nearly as
        # many as the network is wide, which predicts clean data better than noise.
        diffusion=DiffusionConfig(stratified=True, shift=4.0, prediction="sample", loss_space="velocity"),
        canvases=EVERY_TASK,
        dit_train=TrainConfig(steps=5000, batch_size=8, optimizer=Muon(
            learning_rate=4e-3, warmup_steps=100, schedule="cosine", final_scale=0.03, b2=0.95)),
        sample=SampleConfig(frames=17, size=(96, 96), fps=8.0, steps=25, guidance=1.5),
    )
    encoding = _encoding(path)
    if encoding is None:
        return experiment
    # Clips that are encoded already: what they are, and the VAE that made them, are settled.
    theirs = encoding.experiment
    data = dataclasses.replace(theirs.data, source=experiment.data.source, max_text_per_row=max(
        theirs.data.max_text_per_row, experiment.text.max_length))  # fmt: skip
    backbone = dataclasses.replace(experiment.backbone, in_channels=theirs.vae.latent_channels)
    sample = dataclasses.replace(theirs.sample, fps=data.fps[0])
    return dataclasses.replace(experiment, data=data, vae=theirs.vae, backbone=backbone, sample=sample,
                               latents=LatentsConfig())  # fmt: skip


def _encoding(path: str | Path):
    """What `vdit curate`, with --vae, says of the latents in a folder; None where there are none."""
    from vdit.data.curated import is_curated
    from vdit.train.encoded import find_encoding

    return find_encoding(str(path)) if is_curated(path) else None


def on_folder(experiment: Experiment, path: str | Path, *, begun: bool = False) -> Experiment:
    """The same experiment on another folder of videos, none of it held out.

    A model that is trained from the beginning, by an experiment that says nothing of canvases, draws canvases of every
    task. One that starts from another model's weights keeps to what those were trained on.

    Args:
        begun: the experiment is that of a run: it keeps to its own canvases too.
    """
    from vdit.experiment.canvases import EVERY_TASK, CanvasConfig

    cache = getattr(experiment.data.source, "cache_gib", 0.0)
    data = dataclasses.replace(experiment.data, source=_source(path, cache_gib=cache))
    silent = experiment.canvases == CanvasConfig() and experiment.start_from is None and not begun
    canvases = EVERY_TASK if silent else experiment.canvases
    return dataclasses.replace(experiment, data=data, holdout=(), canvases=canvases)


def _source(path: str | Path, *, cache_gib: float):
    """Clips of `vdit curate`, where the folder holds such, else video files."""
    from vdit.data.curated import is_curated
    from vdit.data.data_source import CuratedSource, FolderSource

    return CuratedSource(path=str(path)) if is_curated(path) else FolderSource(path=str(path), cache_gib=cache_gib)


def _count_videos(path: str | Path) -> int:
    from vdit.data.captions import read_captions
    from vdit.data.curated import is_curated, read_curated_index

    if not paths.is_dir(path):
        raise DataError(f"{path} is not a folder: --data must name a folder of video files")
    if is_curated(path):
        return read_curated_index(paths.path(path))["count"]
    return len(read_captions(path).entries)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
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


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    stages = _stages(options.stage)
    experiment = with_overrides(find_experiment(options.experiment, options.data), overrides)
    if options.help_config:
        print_config(experiment)
        return 0
    if options.wait_for_hosts is not None and not options.wait_for_hosts > 0:
        raise UsageError(f"--wait-for-hosts={options.wait_for_hosts:g}: give a number of seconds above 0")
    from rich.console import Console

    from vdit.cli.process import distributed_session, keep_compiled
    from vdit.config import to_json
    from vdit.internals import keep_freed_memory
    from vdit.train.monitor import parse_steps
    from vdit.train.workspace import EXPERIMENT, Workspace

    steps = None if options.profile is None else parse_steps(options.profile)
    digest = hashlib.sha256(f"{stages} {to_json(experiment)}".encode()).hexdigest()[:12]
    space = Workspace(options.workdir or _default_folder(options.experiment, experiment.name))
    if not paths.is_file(space.root / EXPERIMENT):  # a run from before this rule goes on
        experiment.check_rate()
    with distributed_session({"the experiment": digest}, wait=options.wait_for_hosts) as together:
        keep_compiled()
        keep_freed_memory()
        with Status("train", console=Console()) as status:
            _tell_stages(experiment, space, stages, status)
            _run_stages(experiment, space, stages, options, together, steps, status)
            if "dit" in stages:
                status.wrote(space.root)
                status.next = f'vdit sample {shlex.quote(str(space.root))} "a prompt" --out sample.mp4'
                if experiment.backbone.embeds_text:
                    status.next = f"vdit caption my_videos --run={shlex.quote(str(space.root))}"
    return 0


def _tell_stages(experiment, space, stages, status) -> None:
    """What the stages will do, with which settings, and how far they have come before."""
    import jax

    from vdit.checkpoint.files import steps_in
    from vdit.train.encoded import encoding_of, refusal

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
    encoding = encoding_of(e)
    if encoding is not None and not paths.exists(space.vae) and e.start_from is None:
        why = refusal(e, encoding)
        if why is None:
            words["vae"] = f"that of {encoding.folder}/vae, as it is"
            words["latents"] = f"{e.latents.samples or encoding.count} of {encoding.folder}/latents, encoded already"
        else:
            words["latents"] += f"; those in {encoding.folder}/latents are of no use: {why}"
    status.tell("makes", f'{space.root}: "{e.name}" on {len(devices)} x {devices[0].device_kind}')
    for stage in stages:
        folder = {"vae": space.vae, "dit": space.dit}.get(stage)
        step = max(steps_in(folder), default=0) if folder is not None and paths.is_dir(folder) else 0
        total = {"vae": vae.steps, "dit": dit.steps}.get(stage, 0)
        done = "" if not step else ", done" if step >= total else f", from step {step}"
        status.tell(stage, words[stage] + done)
    begun = paths.is_dir(space.dit) and steps_in(space.dit)
    if "dit" in stages and not begun and (advice := _advice(e)):
        status.tell("note", advice)
    status.tell("takes", "each stage prints this after its first steps; Ctrl-C stops, the same command resumes")


def _advice(experiment: Experiment) -> str | None:
    """What speaks against the prediction that a new model is to make; None where nothing does."""
    from vdit.models.backbone import token_values

    values, width, diffusion = token_values(experiment.backbone), experiment.backbone.width, experiment.diffusion
    narrow = diffusion.kind == "flow" and diffusion.prediction != "sample" and width <= values
    if not narrow or experiment.start_from is not None or experiment.lora is not None:
        return None
    return (
        f"a token has {values} values and the network is {width} wide: such a network learns to predict clean data "
        f"better than {diffusion.prediction}: --cfg.diffusion.prediction=sample --cfg.diffusion.loss_space=velocity "
        "(docs/experiment_log.md)"
    )


def _run_stages(experiment, space, stages, options, together, profile_steps, status) -> None:
    import jax

    from vdit.dist.multihost import is_primary_host
    from vdit.train import stages as training
    from vdit.train.monitor import ASK, Profiler, RunMonitor

    wandb = {"project": options.wandb, "name": space.root.name} if options.wandb else None
    traces = space.logs / "profile" / f"host_{jax.process_index()}"
    ask = space.root / ASK if is_primary_host() and not space.is_remote else None
    profiler = Profiler(traces, steps=profile_steps, ask=ask)
    parts = {"status": together.status, "peers": together.peers, "stop": together.stop, "profiler": profiler}
    training.check_run(experiment, space, stages, strict=options.strict)
    status.begin()
    with RunMonitor(space.logs / "hosts", **parts) as monitor:
        logging = training.Logging(tensorboard=not options.no_tensorboard, wandb=wandb, monitor=monitor)
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


TRAIN = Command(
    summary="train VAE, tokenizer and diffusion transformer on an experiment's data or a folder of videos",
    description="""\
Runs the stages of an experiment in order: the video VAE (vae), encoding the videos with it (latents), the tokenizer of
the captions (tokenizer), the diffusion transformer (dit). A complete stage is skipped, an interrupted one resumes from
its last checkpoint, so the same command starts and resumes a run.

An experiment is a Python file with a function config() that returns a vdit Experiment; those in experiments/
are meant to be read, and are found by name too (`vdit train clips`). A run's folder works too.
Without one, --data trains a small default on a folder of ordinary video files, with captions in captions.jsonl or
captions.csv ("file" and "caption"), in metadata.csv, in prompt.txt beside videos.txt, or in a .txt file beside each
video (docs/captions.md). One summary says what was found and what is not used; with --strict that is an error. When
videos or captions have changed since they were encoded, the same command encodes what changed again, and says so. The
model learns canvases of every task, for vdit animate, extend, loop, connect, inpaint and rollout.""",
    epilog="""\
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
A profiler trace of three steps is taken on SIGUSR1, or when a file RUN/profile appears.""",
    add_arguments=_train_arguments,
    run=_train,
    takes_overrides=True,
)


def _quickstart_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", nargs="?", default="runs/quickstart", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--prompts", type=at_least(2), default=64, metavar="N", help="how many to sample; default: 64")
    parser.add_argument("--batch", type=at_least(1), default=16, metavar="N", help="how many at once; default: 16")
    parser.add_argument("--help-config", action="store_true", help="list every --cfg key, its type and value, and stop")


def _quickstart(options: argparse.Namespace, overrides: list[str]) -> int:
    from vdit.quickstart.config import experiment

    chosen = with_overrides(experiment(), overrides)
    if options.help_config:
        print_config(chosen)
        return 0
    from rich.console import Console

    from vdit.cli.process import keep_compiled
    from vdit.dist.mesh import available_devices
    from vdit.internals import keep_freed_memory
    from vdit.quickstart.run import quickstart
    from vdit.train.preemption import PreemptionHandler

    keep_compiled()
    keep_freed_memory()
    available_devices()  # refused here, before any work
    words = ["vdit", "quickstart", options.workdir, "--prompts", str(options.prompts), "--batch", str(options.batch)]
    command = shlex.join([*words, *(f"--cfg.{override}" for override in overrides)])
    # Stop: also after training, where a call of the compiler can hold a signal up for a minute.
    with PreemptionHandler(), Status("quickstart", console=Console()) as status:
        made = quickstart(options.workdir, chosen, count=options.prompts, batch=options.batch, command=command)
        status.wrote(made.page)
        status.next = f'vdit sample {shlex.quote(options.workdir)} "a red circle moves to the left" --out sample.mp4'
    return 0


QUICKSTART = Command(
    summary="from nothing to a trained, sampled and measured model, and a page that shows it",
    description="""\
Renders an embedded world (one coloured shape that moves), trains a small video VAE, encodes latents, trains a
tokenizer and a small text-to-video transformer on packed rows, samples 64 prompts with combinations of colour,
shape and direction that it never saw, counts with an exact detector how many are right, and writes one
self-contained page, DIR/report.html. It takes about 15 minutes on two CPU cores. If it is interrupted, the same
command resumes it.""",
    epilog="""\
examples:
  vdit quickstart
  vdit quickstart runs/longer --cfg.dit_train.steps=20000
  vdit quickstart --help-config       # lists every --cfg key with its type and value""",
    add_arguments=_quickstart_arguments,
    run=_quickstart,
    takes_overrides=True,
)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("experiment", metavar="EXPERIMENT", help="a .py file, a shipped name, a module, or a run's folder")
    add("--topology", metavar="KIND:SHAPE", help="v5p:8x8x8; 2*v5p:4x4x4 is two slices; default: the experiment's")
    add("--program", action="append", metavar="NAME", help="only this one of train, sample, decode; may be repeated")
    add("--out", metavar="FOLDER", help="where plan.json and plan.html go; default: a new plans/NAME-TOPOLOGY")
    add("--quick", action="store_true", help="faster compile; memory is an upper bound, times are pessimistic")
    add("--search", action="store_true", help="try mesh shapes, remat and accumulation for training, and rank them")
    add("--search-limit", type=at_least(1), metavar="N", help="at most N compilations; default: 12")
    add("--jobs", type=at_least(1), metavar="N", help="compilations at once; each needs some GB of memory; default: 1")


def _plan(options: argparse.Namespace, overrides: list[str]) -> int:
    from rich.console import Console

    from vdit.plan.plan import PROGRAMS
    from vdit.plan.topology import parse_topology

    for name in options.program or ():
        if name not in PROGRAMS:
            raise UsageError(f"program {name!r} is unknown{nearest(name, PROGRAMS)} (programs: {', '.join(PROGRAMS)})")
    unused = ("program", "quick") if options.search else ("search_limit", "jobs")
    for name in unused:
        if getattr(options, name):
            rule = "leave it out with --search" if options.search else "add --search"
            raise UsageError(f"--{name.replace('_', '-')} has no effect: {rule}")
    experiment = with_overrides(find_experiment(options.experiment), overrides)
    named = options.topology or experiment.topology
    if named is None:
        raise UsageError(f"{options.experiment} names no topology: give --topology, as in --topology v5p:4x4x4")
    topology = parse_topology(named)
    console = Console()
    usual = Path("plans") / f"{experiment.name}-{topology.name.replace(':', '-').replace('*', 'x')}"
    out = Path(options.out or next(path for path in numbered(usual) if not path.exists()))
    for name in ("search.json", "search.html") if options.search else ("plan.json", "plan.html"):
        check_output(out / name, given=[options.experiment], name=f"--out {out}")
    if options.search:
        return _search(experiment, topology, options, out, console)
    from vdit.plan.plan import plan
    from vdit.plan.show import print_plan, save_plan

    programs, effort = options.program or PROGRAMS, "quick" if options.quick else "full"
    experiment.mesh.shape(topology.devices)  # refused before anything is said
    with Status("plan", devices=False) as status:
        status.tell("plans", f"{', '.join(programs)} of {experiment.name} on {topology.name}: {topology.chips} chips")
        status.tell("with", f"{effort} effort of the compiler (--quick is about 3 times as fast)")
        with status.phases() as phase:
            made = plan(experiment, topology, programs=programs, effort=effort, progress=phase)
        print_plan(made, console)
        page = save_plan(made, out)
        status.wrote(page)
        print(f"\nSaved: {page}")
    return 0 if made.fits else DOES_NOT_FIT


def _search(experiment, topology, options: argparse.Namespace, out: Path, console) -> int:
    from vdit.plan.search import search
    from vdit.plan.show import print_search, save_search, watching

    limit = options.search_limit or 12
    with Status("plan", devices=False) as status:
        status.tell("plans", f"{limit} layouts at most of {experiment.name} on {topology.name}")
        status.begin()
        with watching(console, limit) as progress:
            found = search(experiment, topology, limit=limit, jobs=options.jobs or 1, progress=progress)
        print_search(found, console)
        page = save_search(found, out)
        status.wrote(page)
        print(f"\nSaved: {page}")
    return 0 if found.best is not None else DOES_NOT_FIT


PLAN = Command(
    summary="compile an experiment for a TPU pod, on this machine: memory, FLOPs, network, time, and whether it fits",
    description="""\
Compiles the programs of an experiment for a TPU topology, on a machine without a TPU: the training step, sampling and
the VAE's decode, the same code that runs on a pod. Reports the memory of a device by kind, FLOPs, the traffic between
devices by mesh axis, and the time and utilisation that a roofline allows.

Chips: v4, v5e, v5p, v6e, 7x. Needs libtpu (vdit's extra "tpu"); "cpu:8" plans for simulated CPU devices.""",
    epilog="""\
examples:
  vdit plan experiments/dit_xl_pod.py
  vdit plan experiments/dit_xl_pod.py --topology v5p:4x4x4 --cfg.mesh.sequence=4
  vdit plan experiments/dit_xl_pod.py --search --search-limit 8

Exit code: 0 if all that was asked for fits, 3 if something does not, 2 if something must be fixed.""",
    add_arguments=_plan_arguments,
    run=_plan,
    takes_overrides=True,
)
