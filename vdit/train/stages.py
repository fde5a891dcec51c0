"""The stages of a run, each resumable: VAE, latents, tokenizer, DiT.

    train_vae         videos -> vae/
    encode_latents    videos and VAE -> latents/, statistics.json; with latents.text also captions -> texts/
    train_tokenizer   captions -> tokenizer.model
    train_dit         latents and captions -> dit/

A stage that is complete is skipped, one that was interrupted goes on where its last checkpoint stands. A run that
starts from another model (`start_from`) has its VAE, the statistics of its latents and its tokenizer. A run on clips
that `vdit curate`, with --vae, has encoded takes their VAE and their latents (vdit.train.encoded).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdit import config as config_tools
from vdit import paths
from vdit.checkpoint import Checkpointer, RunLock
from vdit.data.captions import read_captions
from vdit.data.curated import read_curated_index
from vdit.data.data_source import CuratedSource, FolderSource
from vdit.data.latents import LatentStore
from vdit.data.pipeline import TokenSpec, row_iterator, video_batches
from vdit.data.streams import ProcessShard
from vdit.data.texts import CachedTokenizer
from vdit.dist.mesh import compiler_options, host_share, make_mesh, platform_of
from vdit.dist.multihost import is_primary_host, on_primary_host, wait_for_all
from vdit.errors import ConfigError, DataError, TextError, reason
from vdit.experiment.experiment import Experiment
from vdit.experiment.objectives import LossFn
from vdit.models.text import fit_vocabulary, make_tokenizer
from vdit.models.text import train_tokenizer as train_pieces
from vdit.models.text.tokenizer import NoText
from vdit.seeds import key_of
from vdit.train.encoded import copy_encoded_vae, has_encoded_vae
from vdit.train.encoding import encode_latents
from vdit.train.evaluate import EvaluationRun, evaluations, sample_hook
from vdit.train.logging import Logging, TrainingVideos, check_strict, make_writers, report_cut_captions
from vdit.train.loop import Evaluation, Hook, Report, TrainResult, start, train
from vdit.train.monitor import RunMonitor
from vdit.train.pretrained import copy_pretrained, pretrained_identity, provides, split_trainable, step_identity
from vdit.train.resume import is_complete, last_step, outlook
from vdit.train.state import StatePlan, plan_state
from vdit.train.step import TrainStep, make_train_step
from vdit.train.texts import encode_texts, open_texts
from vdit.train.workspace import FILES, Workspace
from vdit.types import PyTree

STAGES = ("vae", "latents", "tokenizer", "dit")
CAPTIONS_FOR_TOKENIZER = 100_000


def run(
    experiment: Experiment, workspace: Workspace, *, stages: Sequence[str] = STAGES, logging: Logging | None = None,
    strict: bool = False,
) -> Experiment:  # fmt: skip
    """Runs the named stages in their order, each resumed where it was interrupted. All hosts call it.

    Args:
        experiment: every choice of the run.
        workspace: the run's folder.
        stages: some of "vae", "latents", "tokenizer", "dit".
        logging: where figures go beside the JSON lines; None is the default.
        strict: refuse data of which a video is not used, or has no caption.

    Returns:
        The experiment as resolved (vocabulary fitted).

    Raises:
        ConfigError: a stage is unknown.
        DataError: with `strict`, a video is not used or has no caption.
        Preempted: SIGTERM ended it, after a checkpoint; KeyboardInterrupt where Ctrl-C did.
    """
    logging = logging or Logging()
    unknown = sorted(set(stages) - set(STAGES))
    if unknown:
        raise ConfigError(f"stage {unknown[0]!r} is unknown: use some of {', '.join(STAGES)}")
    with contextlib.ExitStack() as inside:
        if logging.monitor is None:
            check_run(experiment, workspace, stages, strict=strict)
            monitor = inside.enter_context(RunMonitor(workspace.logs / "hosts"))
            logging = dataclasses.replace(logging, monitor=monitor)
        inside.enter_context(RunLock(workspace.root))
        if workspace.is_remote:
            inside.callback(workspace.remote_logs.flush)
        on_primary_host(lambda: _begin_folder(experiment, workspace), "experiment.json")
        copy_pretrained(experiment, workspace)
        copy_encoded_vae(experiment, workspace)
        wait_for_all("start_from")
        videos = TrainingVideos(experiment, logging, strict=strict)
        for stage in STAGES:
            if stage not in stages:
                continue
            with _accounted(stage, workspace, logging) as account:
                if stage == "vae":
                    account.worked = train_vae(experiment, workspace, logging, videos) is not None
                elif stage == "latents":
                    encode_latents(experiment, workspace, logging, videos)
                    if experiment.latents.text:
                        encode_texts(experiment, workspace, logging)
                elif stage == "tokenizer" and experiment.backbone.uses_text:
                    experiment = train_tokenizer(experiment, workspace)
                    logging.say(f"tokenizer: {(experiment.text.t5 or experiment.text).vocab_size} pieces")
                elif stage == "dit":
                    experiment = with_tokenizer(experiment, workspace)
                    account.worked = train_dit(experiment, workspace, logging) is not None
        on_primary_host(lambda: workspace.save_experiment(experiment), "experiment.json")
        logging.monitor.stop.outlook = lambda: ""
    return experiment


def check_run(
    experiment: Experiment, workspace: Workspace, stages: Sequence[str] = STAGES, *, strict: bool = False
) -> None:
    """Refuses a run that cannot go on here as it is asked for, before any file changes. All hosts call it.

    strict: also refuse data of which a video is not used, or has no caption.

    Raises: OutputError (see Workspace.check), CheckpointError where a stage was trained with another config, DataError
    where captions cannot be read, or there are none for a tokenizer to be trained of.
    """
    workspace.check(experiment)
    if strict:
        check_strict(experiment, Logging().say)
    if "tokenizer" in stages and not provides(experiment, "tokenizer.model"):
        _check_captions(experiment, workspace)
    if "vae" in stages and not provides(experiment, "vae") and not has_encoded_vae(workspace):
        is_complete(workspace.vae, experiment.vae_train, experiment)
    if "dit" in stages and workspace.tokenizer.exists():
        is_complete(workspace.dit, experiment.dit_train, with_tokenizer(experiment, workspace))


@dataclasses.dataclass
class _Account:
    """Whether a stage trained anything."""

    worked: bool = False


@contextlib.contextmanager
def _accounted(stage: str, workspace: Workspace, logging: Logging) -> Iterator[_Account]:
    """Around a stage: a signal stops it, and its time and memory are counted if it worked or wrote its file."""
    logging.monitor.stop.outlook = functools.partial(outlook, stage, workspace)
    logging.monitor.stop.check()  # a signal may have come when the loop before had nothing left to stop
    logging.monitor.at(stage)
    result = {"latents": workspace.latents / "index.json", "tokenizer": workspace.tokenizer}
    began, before, account = time.perf_counter(), _stamp(result.get(stage)), _Account()
    yield account
    if is_primary_host() and (account.worked or _stamp(result.get(stage)) != before):
        try:
            workspace.add_cost(stage, time.perf_counter() - began, peak_memory())
        except (OSError, DataError) as error:
            logging.monitor.warn(f"the cost of stage {stage} is not counted: {reason(error)}; training goes on")


def _stamp(file: Path | None) -> tuple | None:
    """Changes when a file is written; None where there is none."""
    return None if file is None else paths.version_of(file)


def _check_captions(experiment: Experiment, workspace: Workspace) -> None:
    """DataError where a tokenizer is to be trained of captions, and the folder of videos has none."""
    data, own = experiment.data, experiment.text.tokenizer is None and experiment.text.t5 is None
    if not isinstance(data.source, FolderSource | CuratedSource) or workspace.tokenizer.exists():
        return
    if not (own and experiment.network.uses_text):
        return
    if (workspace.latents / "index.json").exists():  # which have captions of their own; the folder may be gone
        return
    if isinstance(data.source, CuratedSource):
        if not read_curated_index(paths.path(data.source.path))["captioned"]:
            raise DataError(
                f"none of the clips in {data.path} has a caption: curate them with captions (docs/curation.md), or "
                "train a model without text: --cfg.backbone.text=none"
            )
        return
    entries = read_captions(data.source.path, data.source.captions).entries
    if not any(entry.captioned for entry in entries):
        raise DataError(
            f"none of the {len(entries)} videos in {data.path} has a caption: write captions.csv there, with the "
            "columns file and caption, or train a model without text: --cfg.backbone.text=none"
        )


def _begin_folder(experiment: Experiment, workspace: Workspace) -> None:
    if not (workspace.root / "experiment.json").exists():
        workspace.save_experiment(experiment)


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes (of the host, not of accelerators)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def train_vae(
    experiment: Experiment, workspace: Workspace, logging: Logging, videos: TrainingVideos
) -> TrainResult | None:
    """Train the VAE on windows of the videos. Returns None if it is trained already, or the base's, or the clips'."""
    config, clips = experiment.vae_train, experiment.vae_clips
    if provides(experiment, "vae") or has_encoded_vae(workspace) or is_complete(workspace.vae, config, experiment):
        return None
    source = videos.open()
    mesh = make_mesh(experiment.mesh)
    share = host_share(mesh)
    data = video_batches(
        experiment.data,
        source,
        size=clips.size,
        frames=clips.frames,
        batch_size=config.batch_size,
        seed=experiment.seed,
        shard=ProcessShard(index=share.index, count=share.count),
    )
    loss = experiment.vae_loss.make_loss(experiment.vae, experiment.discriminator)
    then, share = None, getattr(experiment.vae_loss, "decoder_share", 0.0)
    if share:
        then = config.steps - round(share * config.steps), loss.for_decoder(), ("vae/encoder",)
        logging.say(f"vae: from step {then[0]} of {config.steps} the decoder alone is trained")
    video = np.zeros((1, clips.frames, *clips.size, 3), np.uint8)
    plan = plan_state(lambda key: loss.init(key, video, boxed=True), config, mesh=mesh)
    measures = evaluations(EvaluationRun(experiment, workspace, mesh), "vae")
    training = _Training(stage="vae", plan=plan, loss=loss, data=data, hooks=measures, then=then)
    result = _train(training, experiment, workspace, logging)
    videos.report_skipped()
    return result


def train_tokenizer(experiment: Experiment, workspace: Workspace) -> Experiment:
    """Give the run its tokenizer: the experiment's own model, or one trained from the captions."""
    on_primary_host(lambda: _make_tokenizer(experiment, workspace), "tokenizer.model")
    return with_tokenizer(experiment, workspace)


def _make_tokenizer(experiment: Experiment, workspace: Workspace) -> None:
    if workspace.tokenizer.exists():
        return
    if experiment.text.tokenizer is not None:
        make_tokenizer(experiment.text, experiment.text.tokenizer).save(workspace.tokenizer)
    elif experiment.text.t5 is not None:
        raise TextError("text.tokenizer=None: a T5 has a tokenizer of its own, name its .model file or folder")
    else:
        store = LatentStore(workspace.latents)
        count = min(len(store), CAPTIONS_FOR_TOKENIZER)
        captions = itertools.chain.from_iterable(store[i]["captions"] for i in range(count))
        train_pieces(captions, workspace.tokenizer, vocab_size=experiment.text.vocab_size)


def with_tokenizer(experiment: Experiment, workspace: Workspace) -> Experiment:
    """The experiment with an embedding table of the tokenizer's size."""
    if not experiment.backbone.uses_text:
        return experiment
    tokenizer = make_tokenizer(experiment.text, workspace.tokenizer)
    return dataclasses.replace(experiment, text=fit_vocabulary(experiment.text, tokenizer))


def train_dit(experiment: Experiment, workspace: Workspace, logging: Logging) -> TrainResult | None:
    """Train text encoder and DiT, or what of them is to be trained, on packed rows of latents.

    Returns None if it is trained already.
    """
    config = experiment.dit_train
    if is_complete(workspace.dit, config, experiment):
        return None
    # Now that it is known to be this run's: who samples while it is trained needs the vocabulary that was settled.
    on_primary_host(lambda: workspace.save_experiment(experiment), "experiment.json")
    store = LatentStore(workspace.latents)
    tokenizer = workspace.open_tokenizer(experiment)
    if experiment.network.uses_text and last_step(workspace.dit) is None:
        report_cut_captions(store, tokenizer, experiment.text.max_length, logging)
    if experiment.latents.text:
        tokenizer = CachedTokenizer(tokenizer, open_texts(experiment, workspace, store))
    statistics = workspace.statistics()
    mesh = make_mesh(experiment.mesh)
    share = host_share(mesh)
    data = row_iterator(
        experiment.data,
        store,
        tokenizer if experiment.network.uses_text else NoText(),
        TokenSpec(
            patch=experiment.backbone.patch,
            stride=experiment.vae.temporal_stride,
            mean=statistics["mean"],
            std=statistics["std"],
            conditions=experiment.network.spec.conditions,
            compose=experiment.objective.compose_text,
        ),
        seed=experiment.seed,
        batch_rows=config.batch_size,
        shard=ProcessShard(index=share.index, count=share.count),
    )
    parts = ("vision", *experiment.network.experts) if experiment.latents.text else None
    init_state = split_trainable(experiment, mesh, resumed=last_step(workspace.dit) is not None, parts=parts)
    plan = plan_state(init_state.init, config, mesh=mesh)
    evaluation = EvaluationRun(experiment, workspace, mesh, frozen=init_state.frozen)
    hooks = [sample_hook(evaluation)] if config.sample_every and experiment.sample.prompts else []
    rows = config.batch_size * experiment.data.row_tokens
    forward = experiment.backbone.flops(rows, _mean_tokens(store, experiment), experiment.text.max_length / 2)
    # The gradient of frozen weights is not taken.
    flops = (experiment.objective.forward_passes - (experiment.lora is not None)) * forward
    loss = experiment.objective.make_loss(experiment.model)
    training = _Training(
        stage="dit", plan=plan, loss=loss, data=data, hooks=(*hooks, *evaluations(evaluation, "dit")), flops=flops,
        params=init_state.params, frozen=init_state.frozen,
    )  # fmt: skip
    return _train(training, experiment, workspace, logging)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Training:
    """What one stage trains.

    flops: of a step. params: to begin with; None makes fresh ones. frozen: see TrainStep. then: (n, loss, held): what
    is minimised after n steps, with these parameters held (see make_train_step); None goes on as it is.
    """

    stage: str
    plan: StatePlan
    loss: LossFn
    data: Any
    hooks: Sequence[Hook | Evaluation] = ()
    flops: float | None = None
    params: PyTree | None = None
    frozen: PyTree | None = None
    then: tuple[int, LossFn, tuple[str, ...]] | None = None

    def train_step(self) -> TrainStep:
        """Its step, for the plan's mesh."""
        options = {"frozen": self.frozen, "compiler_options": compiler_options(platform_of(self.plan.mesh))}
        later = None
        if self.then is not None:
            start, loss, held = self.then
            later = start, make_train_step(loss, self.plan, held=held, **options)
        return make_train_step(self.loss, self.plan, then=later, **options)


def _train(training: _Training, experiment: Experiment, workspace: Workspace, logging: Logging) -> TrainResult:
    stage, plan, data = training.stage, training.plan, training.data
    meta = {"stage": stage, "config": config_tools.to_dict(experiment)}
    if stage == "dit":
        meta |= {FILES: workspace.file_sums(), "vae": step_identity(workspace.vae) if workspace.vae.is_dir() else None}
    if stage == "dit" and experiment.start_from is not None:
        meta["base"] = pretrained_identity(experiment)
    folder, warn = workspace.root / stage, logging.monitor.warn
    with Checkpointer(folder, keep=plan.config.keep, meta=meta, warn=warn) as checkpointer:
        state = start(plan, key_of(experiment.seed), checkpointer, data, training.params)
        step = int(state.step)
        writers = make_writers(stage, workspace, logging, step)
        try:
            result = train(
                state,
                training.train_step(),
                data,
                name=stage,
                checkpointer=checkpointer,
                hooks=training.hooks,
                report=Report(writers=writers, console=logging.console, flops_per_step=training.flops),
                monitor=logging.monitor,
            )
            data.close()  # its threads, here: at Python's end they would find their modules gone
        finally:
            for writer in writers:
                writer.close()
    skipped = int(result.metrics.get("skipped", 0))
    if skipped:
        logging.monitor.warn(
            f"stage {stage}: {skipped} of {plan.config.steps} steps were skipped, as their loss or gradient was not "
            f"finite; {workspace.logs / 'hosts'} says which"
        )
    if result.stopped:  # by a signal, with a checkpoint: the next stage must not build on half a stage
        logging.monitor.stop.end()
    return result


def _mean_tokens(store: LatentStore, experiment: Experiment, clips: int = 64) -> float:
    """Tokens of a clip, on the average over tokens (what attention costs by)."""
    shapes = [store[i]["latent"].shape for i in range(min(clips, len(store)))]
    tokens = np.array([np.prod(shape[:3]) / np.prod(experiment.backbone.patch) for shape in shapes])
    return float((tokens**2).sum() / tokens.sum())
