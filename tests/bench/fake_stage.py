"""A stage whose measurements go wrong as those of a GPU do; run by the real tools/bench/accelerator.py.

python fake_stage.py OUT STAGE UNTIL COUNTS MEASUREMENT...    each is run by accel.record.work; COUNTS says how often
"""

import os
import sys
import time
from pathlib import Path

from accel import record

out, stage, until, counts, *names = sys.argv[1:]


def measure(name):
    with Path(counts).open("a") as file:
        file.write(f"{name}\n")
    if name == "raises":
        raise ValueError("kernel: shared memory exceeded")
    if name == "out-of-memory":
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 GiB")
    if name == "poisons":
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")
    if name == "dies":
        print("Check failed: stream != nullptr", flush=True)
        os.abort()
    if name == "exits":
        os._exit(3)
    if name == "hangs":
        time.sleep(600)
    return {"seconds": 0.5, "note": name}


def probes():
    return [record.Probe(name=name, what=name, run=lambda name=name: measure(name)) for name in names]


book = record.Record(Path(out) / "accelerator.json")


def healthy():
    return "poisons" not in book.counts(stage) and book.read()["stages"][stage]["probes"].get("poisons") is None


sys.exit(record.work(book, stage, probes(), until=float(until), healthy=healthy))
