"""`vdit curate`: from raw footage to clips that `vdit train --data OUT` reads. The work is data_pipelines' (Beam)."""

from __future__ import annotations

import argparse
import importlib
import logging
import warnings
from types import ModuleType

from vdit.cli.parser import Command, at_least
from vdit.errors import ConfigError, install_command

SUMMARY = "cut raw footage into clips, measure, filter and deduplicate them, for vdit train --data OUT"
DESCRIPTION = """\
Takes hours of footage: films, streams, phone videos, with cuts, black bars, stills, duplicates and broken files. Cuts
it into scenes and clips, measures every clip (a column each: motion, blur, text_area, duration, ...), finds
near-duplicates, and writes the clips that --keep asks for as ArrayRecord shards. OUT/report.html shows the funnel,
every measure with its thresholds, and pictures of what was kept and dropped. Nothing is deleted: with --look another
--keep is applied to what was measured, in seconds.

The same command goes on where it was stopped. A file that cannot be read costs itself, and is listed. Apache Beam does
the work: in this process, in --workers of them, or on Dataflow, Flink or Spark by Beam's own options (--beam)."""
EPILOG = """\
examples:
  vdit curate films curated
  vdit curate films curated --look --keep "motion > 0.02 and text_area < 0.05 and duration >= 2"
  vdit curate gs://bucket/films gs://bucket/curated --caption Qwen3-VL-8B-Instruct
  vdit curate gs://bucket/films gs://bucket/curated --beam=--runner=DataflowRunner --beam=--project=P
  vdit curate films curated --vae runs/clips --workers 2
  vdit train --data curated --workdir runs/curated

FOOTAGE is a folder or a .txt that lists videos, local or in a bucket. Captions beside it (docs/captions.md) are those
of every clip of a file. Columns that --keep can name: docs/curation.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("footage", metavar="FOOTAGE", help="a folder of videos, or a .txt that lists them")
    parser.add_argument("out", metavar="OUT", help="the folder to write; the same command resumes")
    parser.add_argument(
        "--keep", metavar="RULE", help="which clips to keep, as in 'motion > 0.02 and duration >= 2'; default: "
        "duration >= 1"
    )  # fmt: skip
    parser.add_argument("--look", action="store_true", help="only apply --keep to what was measured, for the page")
    parser.add_argument(
        "--write", default="shards", choices=["shards", "files", "both", "none"],
        help="ArrayRecord shards, videos with captions.jsonl, both, or rows alone; default: %(default)s"
    )  # fmt: skip
    parser.add_argument(
        "--for", dest="experiment", metavar="EXPERIMENT", help="clips as long as this experiment's data config asks"
    )
    parser.add_argument("--clip-seconds", metavar="SECONDS", type=float, help="longest clip; longer scenes are split")
    parser.add_argument(
        "--cuts", default="mixes", choices=["mixes", "transnet"],
        help="how scenes are found: by mixes of pictures, or by TransNetV2; default: %(default)s"
    )  # fmt: skip
    parser.add_argument("--mirrored", action="store_true", help="a mirror image is a duplicate too")
    parser.add_argument(
        "--short-side", metavar="PIXELS", type=int, default=480,
        help="larger clips are reduced to this; 0 keeps their size; default: %(default)s"
    )  # fmt: skip
    parser.add_argument("--fps", type=float, help="higher frame rates are reduced to this")
    parser.add_argument(
        "--caption", metavar="MODEL", help="caption kept clips with a model of the server at $OPENAI_BASE_URL"
    )
    parser.add_argument(
        "--caption-lm", metavar="WEIGHTS", help="caption with public weights on the workers: a SmolVLM2 folder"
    )
    parser.add_argument("--caption-run", metavar="RUN", help="caption with a captioner that vdit train has trained")
    parser.add_argument(
        "--vae", metavar="RUN", help="also encode the clips with the VAE of this run or folder of public weights: "
        "a training on OUT then begins with latents"
    )  # fmt: skip
    parser.add_argument(
        "--latents", metavar="N", type=at_least(1), help="cuts of clips to encode; default: whole passes, 2000 at least"
    )
    parser.add_argument(
        "--text", action="store_true", help="also encode the captions, for a training that starts from the run of --vae"
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, default=1, help="processes on this machine; default: %(default)s"
    )
    parser.add_argument(
        "--range-seconds", metavar="SECONDS", type=at_least(1, float), default=600.0, help="films of twice as many are "
        "scanned in ranges of so many, by all workers; default: %(default)g"
    )  # fmt: skip
    parser.add_argument(
        "--beam", action="append", default=[], metavar="OPTION", help="an option of Beam, as in --beam=--runner=NAME; "
        "may be repeated"
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check footage, options and the pipeline; do nothing")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    return load_pipeline().run(options, options.beam)


def load_pipeline() -> ModuleType:
    """data_pipelines.curate, imported when it is needed: Beam takes seconds."""
    logging.disable(logging.WARNING)  # Beam tells of packages for clouds that are not here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("data_pipelines.curate")
    except ImportError as error:
        if (error.name or "").split(".")[0] in ("apache_beam", "cv2", "imagehash"):
            raise ConfigError(f"vdit curate needs {error.name}: {install_command('curate')}") from None
        if error.name == "data_pipelines":  # an editable install from before there was this package
            raise ConfigError(f"data_pipelines is missing: {install_command('curate')}") from None
        raise
    finally:
        logging.disable(logging.NOTSET)


CURATE = Command(summary=SUMMARY, description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
