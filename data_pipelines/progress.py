"""What a person sees of a pipeline, and the options of Beam that it runs with."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    StandardOptions,
    TypeOptions,
    WorkerOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners import create_runner

from vdit import paths
from vdit.errors import ConfigError, VditError

LABEL = 8  # letters of the first column


class Watch:
    """Is told what a run finds, makes, and how far it is. This one tells nothing."""

    def tell(self, label: str, words: str) -> None:
        """A line about what was found, is made, or came out."""

    def update(self, stage: str, done: int, total: int) -> None:
        """So many parts of a stage are done."""


class Printed(Watch):
    """Tells on stderr: the head at once, and how far a stage is, with the time left, every five seconds."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, int]] = {}
        self._told = 0.0

    def tell(self, label: str, words: str) -> None:
        print(f"{label:{LABEL}} {words}", file=sys.stderr, flush=True)

    def update(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        first, before = self._begun.setdefault(stage, (now, done))
        if done < total and now - self._told < 5.0:
            return
        self._told = now
        left = (now - first) * (total - done) / (done - before) if done > before else None
        more = f", about {left:.0f} s left" if left is not None and done < total else ""
        self.tell(stage, f"{done} of {total}{more}")


@contextlib.contextmanager
def counting(watch: Watch, stage: str, folder: str, wanted: Collection[str] | None = None, *, total: int = 0
             ) -> Iterator[None]:
    """Tells how far a pipeline is, by the files of its work folder: workers may be anywhere.

    wanted: names of files that will be there; None: `total` further ones.
    """
    total = len(wanted) if wanted is not None else total
    over = threading.Event()

    def done() -> int:
        names = paths.names_in(folder)
        return sum(each in wanted for each in names) if wanted is not None else sum(n.endswith(".json") for n in names)

    before = done() if wanted is None else 0

    def look() -> None:
        while not over.wait(15.0 if paths.is_remote(folder) else 1.0):
            with contextlib.suppress(VditError, OSError):
                watch.update(stage, min(total - 1, done() - before), total)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    watch.update(stage, total, total)


def embedded_options(workers: int = 1, more: Sequence[str] = ()) -> PipelineOptions:
    """Beam's options.

    Args:
        workers: processes on this machine, where `more` names no other runner.
        more: Beam's own options, as on its command line.

    Raises:
        ConfigError: Beam has no such option, which it would leave out with a mere warning.
    """
    unknown = _beam_parser().parse_known_args(list(more))[1]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is an option of neither this command nor Beam: see --help, and Beam's "
                          "documentation of its runner")  # fmt: skip
    own = [] if any(option.startswith("--runner") for option in more) else ["--runner=DirectRunner"]
    if workers > 1 and own:
        own += [f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing"]
    own += ["--default_sdk_harness_log_level=ERROR"]
    options = PipelineOptions([*own, *more])
    options.view_as(SetupOptions).save_main_session = False
    return options


def check_dataflow(options: PipelineOptions, places: Collection[str]) -> list[str]:
    """What is wrong with options of Dataflow, as far as it can be known without asking Google; [] for nothing.

    Args:
        options: of Beam, with the DataflowRunner.
        places: what the workers read and write.
    """
    validator = PipelineOptionsValidator(options, create_runner("DataflowRunner"))
    cloud = options.view_as(GoogleCloudOptions)
    wrong = [str(error) for error in validator.validate_cloud_options(cloud)]
    # Not GoogleCloudOptions.validate: it asks for the buckets' policies, and makes a bucket where none is named.
    for name in ("temp_location", "staging_location"):
        if name == "temp_location" or cloud.staging_location is not None:
            wrong += [str(error) for error in validator.validate_gcs_path(cloud, name)]
    for kind in (WorkerOptions, SetupOptions, DebugOptions, TypeOptions, PortableOptions):
        view = options.view_as(kind)
        wrong += [str(error) for error in view.validate(validator)] if hasattr(view, "validate") else []
    if not options.view_as(WorkerOptions).sdk_container_image:
        wrong.append("--sdk_container_image is missing: workers need an image that holds vdit with its extra curate")
    wrong += [f"{place}: the workers do not have this machine's disk: give a bucket, gs://..." for place in places
              if not paths.is_remote(place)]  # fmt: skip
    return list(dict.fromkeys(wrong))


def is_dataflow(options: PipelineOptions) -> bool:
    """Whether the options name Google's runner."""
    return (options.view_as(StandardOptions).runner or "").rpartition(".")[2].lower() in ("dataflowrunner", "dataflow")


def _beam_parser() -> argparse.ArgumentParser:
    """Takes every option that a class of Beam's options adds: the hook that classes of one's own override, too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve",
                                     exit_on_error=False)  # fmt: skip
    classes = [PipelineOptions]
    for each in classes:
        classes += each.__subclasses__()
        if each is not PipelineOptions:
            each._add_argparse_args(parser)
    return parser


def quiet() -> None:
    """Beam's own messages only where something is wrong."""
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
