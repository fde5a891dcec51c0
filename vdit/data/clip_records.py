"""The records of curated clips (curated.py), which a writer makes without flax and grain: workers start sooner."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

FORMAT = "vdit-clips-1"
INDEX = "index.json"
NUMBERS = ("width", "height", "fps", "seconds")


def make_record(meta: dict[str, Any], video: bytes) -> bytes:
    """The bytes of a record. meta: id, captions, label, width, height, fps and seconds at least; plain JSON."""
    text = json.dumps(meta, sort_keys=True)
    return safetensors.numpy.save({"video": np.frombuffer(video, np.uint8)}, metadata={"meta": text})


def read_record(data: bytes) -> tuple[dict[str, Any], bytes]:
    """What `make_record` was given. ValueError, KeyError or TypeError where it was not this."""
    size = struct.unpack("<Q", data[:8])[0]
    meta = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["meta"])
    ((name, tensor),) = safetensors.deserialize(data)
    texts = [meta["id"], *meta["captions"]]
    if name != "video" or tensor["dtype"] != "U8" or not all(isinstance(text, str) for text in texts):
        raise ValueError("it is no clip")
    if not all(float(meta[key]) > 0 for key in NUMBERS) or type(meta["label"]) is not int:
        raise ValueError("its size, rate, duration or label is missing or wrong")
    return meta, bytes(tensor["data"])
