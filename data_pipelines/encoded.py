"""The last stages of curation with --vae: clips to latents, captions to features, for a training on them.

    OUT/latents/      by python -m data_pipelines.encode's means: parts of 16 clips or more, on any number of workers
    OUT/vae/          the VAE that made them, so that a run has it
    OUT/texts/        with text: the captions, by the run's text encoder

What is there and still right is not made again; what is half done goes on.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines.encode import LatentsJob, encode_latents, experiment_of, is_run, load
from data_pipelines.progress import Watch
from vdit import paths
from vdit.checkpoint import MANIFEST, Checkpointer, find_step
from vdit.config import to_dict
from vdit.data.curated import read_curated_index
from vdit.data.data_source import CuratedSource
from vdit.data.latents import DTYPES, LatentStore
from vdit.data.texts import BATCH, TextStore, all_captions, write_texts
from vdit.errors import ConfigError, DataError
from vdit.experiment.experiment import Experiment
from vdit.train.encoded import ENCODING, Encoding, clips_digest, find_encoding
from vdit.train.encoding import vae_identity
from vdit.train.texts import TextEncoding, text_identity
from vdit.train.workspace import Workspace

LATENTS = 2000  # at least, where nobody says how many: a few clips give several cuts of each
MOST_SHARES = 256  # of captions, that workers take one by one


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How kept clips are encoded.

    Args:
        run: a run, or a folder of public weights: whose VAE.
        experiment: whose data config says sizes, durations and rates of the cuts; None: that of `run`.
        samples: latents; 0: passes over all clips until there are LATENTS.
        dtype: of latents and of features on disk.
        text: also encode the captions, by the text encoder of the run.
    """

    run: str
    experiment: str | None = None
    samples: int = 0
    dtype: str = "float16"
    text: bool = False

    def __post_init__(self) -> None:
        if self.samples < 0 or self.dtype not in DTYPES:
            raise ConfigError(f"latents={self.samples}, dtype={self.dtype!r}: give 0 or more, and one of "
                              f"{', '.join(DTYPES)}")  # fmt: skip

    def chosen(self) -> Experiment:
        """Whose VAE and whose data config the latents are made with. Reads no weights.

        Raises:
            VditError: there is no such run, its data config does not fit the VAE, or it has no text encoder that a
                training leaves as it is.
        """
        own = experiment_of(self.run)
        if self.text:
            self._check_text(own)
        if self.experiment is None:
            return _plain(own, own)
        from vdit.cli.train import find_experiment

        return _plain(own, find_experiment(self.experiment))

    def _check_text(self, own: Experiment) -> None:
        if not is_run(self.run):
            raise ConfigError(f"--text: {self.run} holds public weights: make a run of them (vdit import), and give "
                              "that: a training starts from a run")  # fmt: skip
        if not own.backbone.uses_text or own.backbone.embeds_text:
            raise ConfigError(f"--text: {self.run} has no text encoder: leave --text out")
        if not paths.is_dir(Workspace(self.run).dit):
            raise ConfigError(f"--text: {self.run} is not trained, so its text encoder is not: leave --text out")


def _plain(own: Experiment, other: Experiment) -> Experiment:
    """An experiment that says what latents are like: the VAE of one, the data of another."""
    base = Experiment(name="encoded")
    try:
        data = dataclasses.replace(other.data, source=base.data.source, actions=0)
        backbone = dataclasses.replace(base.backbone, in_channels=own.vae.latent_channels)
        return dataclasses.replace(base, seed=other.seed, data=data, vae=own.vae, backbone=backbone, text=base.text,
                                   sample=dataclasses.replace(other.sample, prompts=()))  # fmt: skip
    except ConfigError as error:
        raise ConfigError(f"--vae and --for do not go together: {error}") from None


def encode_curated(folder: str, asked: EncodeOptions, *, options: PipelineOptions | None = None,
                   watch: Watch | None = None) -> dict[str, Any]:
    """Encodes the clips of a curated folder, and with `text` their captions.

    Args:
        folder: the curated folder, complete.
        asked: by which VAE, and how.
        options: of Beam; None: this process alone.
        watch: is told how far it is.

    Returns:
        {"latents": how many there are, "captions": how many features, None without text}.

    Raises:
        VditError: the VAE cannot be loaded, or nothing can be written.
    """
    watch, chosen = watch or Watch(), asked.chosen()
    out, count = paths.path(folder), read_curated_index(paths.path(folder))["count"]
    vae, _ = load(asked.run)
    samples = asked.samples or -(-max(LATENTS, count) // count) * count
    encoding = Encoding(folder=folder, vae=vae_identity(vae.params), experiment=chosen, clips=clips_digest(folder),
                        count=samples)  # fmt: skip
    before = _before(folder)
    if before != encoding or LatentStore(out / "latents").index["dtype"] != asked.dtype:
        job = LatentsJob(run=asked.run, out=str(out / "latents"), seed=chosen.seed, samples=samples,
                         data=dataclasses.replace(chosen.data, source=CuratedSource(path=folder)),
                         dtype=asked.dtype, replaces=True)  # fmt: skip
        _save_vae(out, asked.run, vae.params, chosen)
        encode_latents(job, options=options, watch=watch, beside={ENCODING: encoding.to_json()})
    captions = _encode_captions(folder, asked, options, watch) if asked.text else None
    return {"latents": samples, "captions": captions}


def _before(folder: str) -> Encoding | None:
    try:
        return find_encoding(folder)
    except DataError:  # damaged: it is made again
        return None


def _save_vae(out: paths.AnyPath, run: str, params: Any, chosen: Experiment) -> None:
    """Puts the VAE beside the latents."""
    place = out / "vae"
    paths.remove_folder(place)
    if is_run(run):
        step = find_step(Workspace(run).vae)
        paths.copy_folder(step, place / step.name, last=(MANIFEST,))
        return
    with Checkpointer(place, meta={"stage": "vae", "config": to_dict(chosen)}) as checkpointer:
        checkpointer.save(0, {"params": {"vae": params}})


# Captions.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextsJob:
    """What is encoded by the text encoder of a run. shares: that the captions are cut into."""

    run: str
    folder: str
    dtype: str
    shares: int

    def open(self) -> tuple[list[str], TextEncoding, str]:
        """(captions, their encoder, what it is known by)."""
        space = Workspace(self.run)
        base = space.experiment()
        frozen = dataclasses.replace(base, start_from=self.run)
        captions = list(all_captions(LatentStore(paths.path(self.folder) / "latents")))
        return captions, TextEncoding(frozen, space.open_tokenizer(base)), text_identity(frozen, space)

    def write(self, share: tuple[int, int], captions: list[str], encoding: TextEncoding, identity: str
              ) -> TextStore | None:
        """One share of the features; the store where it is all of them."""
        place = paths.path(self.folder) / "texts"
        return write_texts(place, captions, encoding, identity=identity, dtype=self.dtype, share=share,
                           former=_former(place))  # fmt: skip


class EncodeTexts(beam.DoFn):
    """Numbers of shares to features on disk."""

    def __init__(self, job: TextsJob):
        self.job = job

    def setup(self) -> None:
        self._opened, self._done = self.job.open(), Metrics.counter("texts", "shares")

    def process(self, share: int) -> None:
        self.job.write((share, self.job.shares), *self._opened)
        self._done.inc()


def _former(place: paths.AnyPath) -> TextStore | None:
    try:
        return TextStore(place)
    except DataError:
        return None


def _encode_captions(folder: str, asked: EncodeOptions, options: PipelineOptions | None, watch: Watch) -> int:
    job = TextsJob(run=asked.run, folder=folder, dtype=asked.dtype, shares=1)
    captions, encoding, identity = job.open()
    former = _former(paths.path(folder) / "texts")
    if former is not None and former.identity == identity and former.dtype == asked.dtype and \
            all(caption in former for caption in ["", *captions]):  # fmt: skip
        return len(former)
    job = dataclasses.replace(job, shares=min(MOST_SHARES, -(-(len(captions) + 1) // BATCH)))
    watch.tell("makes", f"features of {len(captions)} captions, as {asked.dtype}, in {folder}/texts")
    with beam.Pipeline(options=options) as pipeline:
        (
            pipeline
            | "shares" >> beam.Create(range(job.shares))
            | "spread" >> beam.Reshuffle()
            | "encode" >> beam.ParDo(EncodeTexts(job))
        )
    watch.update("texts", job.shares, job.shares)
    return len(job.write((0, 1), captions, encoding, identity))

