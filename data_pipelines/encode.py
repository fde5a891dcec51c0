"""The latents stage: videos to latents on disk with the VAE of a run, on one core or on many workers.

    python -m data_pipelines.encode runs/clips latents/clips --samples 100000 \\
        --data.source=folder --data.source.path=videos --data.threads=16
    python -m data_pipelines.encode runs/clips gs://bucket/latents --data.source=curated \\
        --data.source.path=gs://bucket/curated --runner=DataflowRunner --project=P ...

Clips (sizes, durations, frame rates) are sampled as in the run's experiment; --data.KEY=VALUE changes it.
vdit.data.LatentStore reads the result. Videos that the run holds out stay out. Unreadable files are skipped and listed.
Each worker opens the source and the VAE itself, and writes parts of 16 samples or more; a part that is there is not
made again, so after an interruption the same command resumes, if the videos have not changed. Other options are Beam's:
without a --runner this process does the work, or --workers of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines.progress import Printed, Watch, counting, embedded_options, quiet
from vdit import paths
from vdit.config import apply_overrides, to_json
from vdit.data import open_source
from vdit.data.changes import RECORD, digest_of, look_at_videos
from vdit.data.config import DataConfig
from vdit.data.data_source import Source
from vdit.data.encode import EncodeSpec, encode_part
from vdit.data.latents import LatentParts
from vdit.dist.mesh import make_mesh
from vdit.errors import EX_OK, EX_USAGE, ConfigError, VditError, one_line
from vdit.experiment.experiment import Experiment
from vdit.experiment.upgrade import upgrade_overrides
from vdit.generate import load_vae
from vdit.models.vae.video import VideoVAE
from vdit.pretrained.model import open_model
from vdit.train.encoding import vae_identity
from vdit.train.workspace import EXPERIMENT, Workspace


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentsJob:
    """What is encoded, and where to. A worker opens everything by it.

    Args:
        run: folder of the run that trained the VAE, or of public weights.
        out: folder of the latents.
        data: the source, and how clips are cut from it.
        seed: of the choice of clips. holdout: ids of videos that stay out.
        samples: number of latents; 0: each video once.
        dtype: of the latents on disk.
        key: changes with the videos, their captions and the settings.
        replaces: latents that are in `out` are replaced when all are written; False: they are an error.
    """

    run: str
    out: str
    data: DataConfig
    seed: int = 0
    holdout: tuple[str, ...] = ()
    samples: int = 0
    dtype: str = "float16"
    key: str = ""
    replaces: bool = False

    def source(self) -> Source:
        """The clips."""
        return open_source(self.data, seed=self.seed, exclude=self.holdout)

    def parts(self, vae: VideoVAE, count: int) -> LatentParts:
        """The parts of the folder. count: number of videos of the source."""
        replaces = self.replaces and paths.exists(self.out)
        return LatentParts(self.out, samples=self.samples or count, vae=vae_identity(vae.params), dtype=self.dtype,
                           key=[self.key, count], replaces=replaces)  # fmt: skip


class EncodePart(beam.DoFn):
    """Numbers of parts to parts on disk. Gives the reasons why videos were skipped."""

    def __init__(self, job: LatentsJob):
        self.job = job

    def setup(self) -> None:
        self._vae, self._source = load(self.job.run)[0], self.job.source()
        self._parts = self.job.parts(self._vae, len(self._source))
        self._encoded = Metrics.counter("latents", "encoded")

    def process(self, part: int) -> Iterator[dict[str, str]]:
        encode_part(self._source, self._vae.encode, self._parts, part, EncodeSpec(threads=self.job.data.threads))
        self._encoded.inc(len(self._parts.places(part)))
        yield self._source.report()


def load(run: str) -> tuple[VideoVAE, Experiment]:
    """(VAE that gives latents as they are, experiment) of a run or of public weights."""
    experiment = experiment_of(run)
    channels = experiment.vae.latent_channels
    plain = {"mean": np.zeros(channels, np.float32), "std": np.ones(channels, np.float32)}
    if is_run(run):
        return dataclasses.replace(load_vae(run), statistics=plain), experiment
    model, mesh = open_model(run), make_mesh()
    return VideoVAE(config=experiment.vae, params=model.load_vae(mesh), statistics=plain), experiment


def is_run(path: str) -> bool:
    """Whether a folder is a run, or else of public weights."""
    return paths.is_file(paths.path(path) / EXPERIMENT) or not paths.exists(path)


def experiment_of(run: str) -> Experiment:
    """The experiment of a run or of public weights; no weights are read."""
    return Workspace(run).experiment() if is_run(run) else open_model(run).experiment


def encode_latents(job: LatentsJob, *, options: PipelineOptions | None = None, watch: Watch | None = None,
                   beside: Mapping[str, Any] | None = None) -> dict:  # fmt: skip
    """Encodes clips with the VAE of a run.

    Args:
        job: what, and where to.
        options: of Beam; None: this process alone.
        watch: is told how far it is.
        beside: names of files to write beside the index, and what they hold (JSON).

    Returns:
        The index of the latents.

    Raises:
        DataError: the source cannot be opened, or the folder exists already.
    """
    watch, options = watch or Watch(), options or embedded_options()
    source, vae = job.source(), load(job.run)[0]
    record = look_at_videos(job.data, job.holdout)
    job = dataclasses.replace(job, key=json.dumps([to_json(job.data), job.seed, digest_of(record)]))
    for line in source.summary.lines() if source.summary is not None else ():
        watch.tell("", line)
    skipped = dict(source.report())
    parts = job.parts(vae, len(source))
    missing = parts.missing()
    watch.tell("makes", f"{parts.samples} latents of {len(source)} videos, as {job.dtype}, in {job.out}; "
                        f"{parts.count - len(missing)} of {parts.count} parts are there")  # fmt: skip
    if missing:
        with counting(watch, "encode", str(parts.work), total=len(missing)), beam.Pipeline(options=options) as pipeline:
            reports = (
                pipeline
                | "parts" >> beam.Create(missing)
                | "spread" >> beam.Reshuffle()
                | "encode" >> beam.ParDo(EncodePart(job))
                | "items" >> beam.FlatMap(dict.items)
                | "once" >> beam.Distinct()
                | "reports" >> beam.combiners.ToList()
            )
            reports | "write" >> beam.Map(_write_reports, f"{parts.work}/skipped.json")
    more = {} if record is None else {RECORD: record | {"videos": len(source)}}
    index = parts.finish(None, more | dict(beside or {}))
    told = paths.path(job.out) / "skipped.json"
    if paths.is_file(told):
        skipped = dict(paths.read_json(told, limit=64 * paths.MIB)) | skipped
        told.unlink(missing_ok=True)
    for name, why in sorted(skipped.items())[:20]:
        watch.tell("skipped", one_line(f"{name}: {why}"))
    if len(skipped) > 20:
        watch.tell("skipped", f"{len(skipped) - 20} more")
    return index


def _write_reports(reports: list[tuple[str, str]], file: str) -> None:
    paths.write_atomic(file, json.dumps(sorted(reports)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.encode", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("run", help="folder of the run that trained the VAE, or of public weights")
    parser.add_argument("out", help="new folder for the latents, local or in a bucket")
    parser.add_argument("--samples", type=int, default=0, help="clips to encode; 0: each video once")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine; default: 1")
    args, rest = parser.parse_known_args(arguments)
    try:
        return _run(args, rest)
    except VditError as error:
        print(f"encode: {error}", file=sys.stderr)
        return EX_USAGE


def _run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    quiet()
    own = [text for text in rest if text.startswith("--data.")]
    experiment = load(args.run)[1]
    wrong = next((text for text in own if "=" not in text), None)
    if wrong is not None:
        raise ConfigError(f"{wrong!r} has no value: write settings as --data.KEY=VALUE")
    overrides = upgrade_overrides(text.removeprefix("--") for text in own)
    data = apply_overrides(experiment.data, [override.removeprefix("data.") for override in overrides])
    # What the run holds out of its own data stays out; other data has other names.
    holdout = tuple(experiment.holdout) if data.source == experiment.data.source else ()
    job = LatentsJob(run=args.run, out=args.out, data=data, seed=experiment.seed, holdout=holdout,
                     samples=args.samples, dtype=args.dtype)  # fmt: skip
    options = embedded_options(args.workers, [text for text in rest if text not in own])
    index = encode_latents(job, options=options, watch=Printed())
    print(f"{args.out}: {index['count']} latents in {len(index['shards'])} file(s)")
    return EX_OK


if __name__ == "__main__":
    sys.exit(main())
