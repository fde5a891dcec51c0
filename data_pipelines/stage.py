"""The Beam DoFn of a stage: the stage's pure function, with counters, and errors kept as rows.

    records | beam.ParDo(Stage("cut", cut, options))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from data_pipelines.records import ClipRecord
from vdit.errors import VditError, reason


class Stage(beam.DoFn):
    """Runs function(record, options), which gives one record or a list of them.

    A record that already has an error passes through unchanged. An error of the function costs that record alone: it
    goes on with its reason. Counters of Beam, in the namespace of the stage's name: records, made, failed,
    milliseconds.

    Args:
        name: of the stage, for counters and for reasons.
        function: a function that pickles (defined at the top of a module), (ClipRecord, options) -> ClipRecord or a
            list of them.
        options: passed to every call.
    """

    def __init__(self, name: str, function: Callable[[ClipRecord, Any], ClipRecord | list[ClipRecord]], options: Any):
        self.name, self.function, self.options = name, function, options
        self._counters = {what: Metrics.counter(name, what) for what in ("records", "made", "failed", "milliseconds")}

    def default_label(self) -> str:
        """Of Beam: what the step is called where nobody named it."""
        return self.name

    def process(self, record: ClipRecord) -> Iterator[ClipRecord]:
        if record.error is not None:
            yield record
            return
        begun = time.monotonic()
        try:
            made = self.function(record, self.options)
        except Exception as error:  # decoders and libraries raise anything; one file must not end a pipeline
            known = isinstance(error, VditError)
            why = str(error) if known else f"{type(error).__name__}: {reason(error)}"
            self._counters["failed"].inc()
            made = record.failed(f"{self.name}: {why}")
        made = [made] if isinstance(made, ClipRecord) else made
        self._counters["records"].inc()
        self._counters["made"].inc(len(made))
        self._counters["milliseconds"].inc(round((time.monotonic() - begun) * 1000))
        yield from made
