"""Latents on disk: ArrayRecord shards of safetensors records, and an index that is written last.

A folder holds `latents-00000.arrayrecord`, ... and `index.json`. A record is the bytes of a safetensors
file with the tensor "latent" [t h w c], the tensor "actions" float32 [t a] (a row a video frame) where the clip has
them, and, as metadata, a JSON object: captions, id, fps, label, and whatever else the writer passed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import struct
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from array_record.python import array_record_module

from vdit import buckets, paths
from vdit.data.actions import check_action_values
from vdit.data.sources import Sample, Source
from vdit.errors import DataError, reason, writing
from vdit.models.vae.statistics import (
    Moments,
    add_latents,
    add_moments,
    check_statistics,
    empty_moments,
    latent_statistics,
)
from vdit.paths import AnyPath

INDEX = "index.json"
MOST_INDEX = 256 * paths.MIB
FORMAT = "vdit-latents-1"
DTYPES = {"float16": np.float16, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
SAFETENSORS_DTYPES = {"F16": np.float16, "F32": np.float32, "BF16": ml_dtypes.bfloat16}


class ShardWriter:
    """One file of records, with the sums of its channels; the file appears when it is closed."""

    def __init__(self, file: AnyPath, dtype: str):
        self.file, self.dtype = file, dtype
        self.records, self.bytes, self.channels = 0, 0, 0
        self._moments: Moments | None = None
        folder = file.parent if isinstance(file, Path) else buckets.home() / "writing"
        folder.mkdir(parents=True, exist_ok=True)
        self._part = folder / f".{file.name}.{uuid.uuid4().hex[:8]}.part"
        with self._named():
            self._writer = array_record_module.ArrayRecordWriter(str(self._part), "group_size:1")

    def write(self, item: Sample, number: int) -> None:
        """Adds a latent. number: stands for an id where the item has none."""
        data, stored = _record(item, self.dtype, number)
        self.channels = self.channels or stored.shape[-1]
        check_channels(stored.shape[-1], self.channels, item.get("id", number))
        self._moments = add_latents(self._moments or empty_moments(self.channels), stored.astype(np.float32))
        with self._named():
            self._writer.write(data)
        self.records, self.bytes = self.records + 1, self.bytes + len(data)

    def close(self) -> dict[str, Any]:
        """{"file", "records", "bytes"} of the file, its "channels", and the "moments" of its latents."""
        with self._named():
            self._writer.close()
            size = self._part.stat().st_size
            if isinstance(self.file, Path):
                os.replace(self._part, self.file)
            else:
                paths.copy_file(self._part, self.file)
                self._part.unlink()
        return {"file": self.file.name, "records": self.records, "bytes": size,
                "channels": self.channels, "moments": (self._moments or empty_moments(0)).to_json()}

    def abandon(self) -> None:
        """Leaves nothing behind."""
        with contextlib.suppress(OSError, RuntimeError):  # it may have failed to write before
            self._writer.close()
        self._part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """DataError naming the file where it cannot be written. array_record raises RuntimeError for a full disk."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise DataError(f"{self.file}: cannot be written: {reason(error)}") from error


def check_channels(channels: int, before: int, name: Any) -> None:
    """One folder holds the latents of one VAE."""
    if channels != before:
        raise DataError(f"latent {name!r} has {channels} channels, those before it {before}: one folder holds the "
                        "latents of one VAE")


def shard_file(folder: AnyPath, number: int) -> AnyPath:
    return folder / f"latents-{number:05d}.arrayrecord"


def make_index(shards: list[dict[str, Any]], *, vae: str, dtype: str) -> dict[str, Any]:
    """What index.json says of shards, each as ShardWriter.close says."""
    if not shards:
        raise DataError("there are no latents to write: the source of clips is empty")
    for shard in shards:
        check_channels(shard["channels"], shards[0]["channels"], shard["file"])
    moments = functools.reduce(add_moments, [Moments.from_json(shard["moments"]) for shard in shards])
    statistics = {name: values.tolist() for name, values in latent_statistics(moments).items()}
    return {"format": FORMAT, "count": sum(shard["records"] for shard in shards), "channels": shards[0]["channels"],
            **statistics,
            "shards": [{key: shard[key] for key in ("file", "records", "bytes")} for shard in shards],
            "vae": vae, "dtype": dtype}


def check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise DataError(f"latents cannot be stored as {dtype!r}: choose one of {', '.join(DTYPES)}")


def _record(item: Sample, dtype: str, number: int) -> tuple[bytes, np.ndarray]:
    """The bytes of one record, and the latent as stored."""
    name = str(item.get("id", number))
    latent = np.asarray(item["latent"])
    if latent.ndim != 4:
        raise DataError(f"latent {name!r} has shape {latent.shape}: give [t h w c]")
    with np.errstate(over="ignore"):  # what overflows is refused below
        stored = np.ascontiguousarray(latent.astype(DTYPES[dtype]))
    if not np.isfinite(latent.astype(np.float32)).all():
        raise DataError(f"latent {name!r} has values that are NaN or infinite: the VAE gives them, so its weights are "
                        "damaged or its training went astray; train it again")
    if not np.isfinite(stored.astype(np.float32)).all():
        raise DataError(f"latent {name!r} has values that are not finite as {dtype}: store float32 "
                        "(latents.dtype=float32)")
    tensors = {"latent": stored}
    check_action_values(item, name)
    for key, values in item.items():  # what conditions have read
        if key not in ("latent", "video") and isinstance(values, np.ndarray):
            tensors[key] = np.ascontiguousarray(values, np.float32)
            if not np.isfinite(tensors[key]).all():
                raise DataError(f"latent {name!r} has {key} with values that are NaN or infinite: give finite numbers")
    dropped = {"video", "view", *tensors}
    meta = {key: value for key, value in item.items() if key not in dropped and value is not None}
    meta |= {"id": name, "captions": list(item.get("captions", ())), "fps": float(item.get("fps", 0.0)),
             "label": int(item.get("label", 0))}
    return safetensors.numpy.save(tensors, metadata={"meta": json.dumps(meta)}), stored


def write_latents(path: str | Path, items: Iterable[Sample], *, vae: str = "", dtype: str = "float16",
                  shard_bytes: int = 256 << 20) -> dict[str, Any]:
    """Writes latents to a new folder, which appears only when it is complete.

    Args:
        path: the folder.
        items: dicts with "latent" [t h w c] and optionally "actions" [t a], captions, id, fps, label, other plain
            values.
        vae: identifies the VAE that made them (a hash of its weights); kept in the index.
        dtype: "float16", "bfloat16" or "float32", on disk.
        shard_bytes: size of a shard at most, beyond one record.

    Returns:
        The index: count, shards, channels, mean and std of each channel, vae, dtype.

    Raises:
        DataError: there is nothing to write, an item is malformed, or the folder exists.
    """
    path = paths.path(path)
    check_dtype(dtype)
    if paths.exists(path):
        raise DataError(f"{path} exists already: choose another folder for latents, or remove it")
    work = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.writing"
    if isinstance(work, Path):
        work.mkdir(parents=True)
    try:
        index = make_index(_write_shards(work, items, dtype, shard_bytes), vae=vae, dtype=dtype)
        with writing(path / INDEX):
            paths.write_atomic(work / INDEX, json.dumps(index, indent=1))
            paths.move_folder(work, path, last=(INDEX,))
    except BaseException:
        with contextlib.suppress(OSError):
            paths.remove_folder(work)
        raise
    return index


def _write_shards(folder: AnyPath, items: Iterable[Sample], dtype: str, shard_bytes: int) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = []
    writer = None
    for number, item in enumerate(items):
        writer = writer or ShardWriter(shard_file(folder, len(shards)), dtype)
        writer.write(item, number)
        if writer.bytes >= shard_bytes:
            shards.append(writer.close())
            writer = None
    if writer is not None:
        shards.append(writer.close())
    return shards


class LatentStore(Source):
    """Reads what write_latents wrote. Samples have "latent" [t h w c] in the dtype stored, and "actions" if they had.

    Attributes: index (dict), mean and std (float32 [c], of every latent in the store).
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = paths.path(path)
        self.index = _read_index(self.path)
        statistics = check_statistics(self.index, name=str(self.path / INDEX), error=DataError)
        self.mean, self.std = statistics["mean"], statistics["std"]
        self._readers = [_Shard(self.path, shard) for shard in self.index["shards"]]
        self._ends = np.cumsum([shard["records"] for shard in self.index["shards"]])

    def __len__(self) -> int:
        return self.index["count"]

    def __repr__(self) -> str:
        return f"LatentStore('{self.path}', {len(self):,} clips)"

    def name(self, item: int) -> str:
        return f"{self.path.name}[{item}]"

    def read(self, item: int, epoch: int) -> Sample:
        shard = int(np.searchsorted(self._ends, item, side="right"))
        at = item - (int(self._ends[shard - 1]) if shard else 0)
        try:
            data = self._readers[shard].read([at])[0]
            size = struct.unpack("<Q", data[:8])[0]
            meta = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["meta"])
            tensors = {name: _array(tensor) for name, tensor in safetensors.deserialize(data)}
            if tensors["latent"].ndim != 4 or tensors["latent"].shape[-1] != self.index["channels"]:
                raise ValueError(f"its latent has shape {tensors['latent'].shape}")
            if not all(isinstance(caption, str) for caption in meta["captions"]) or not isinstance(meta["id"], str):
                raise ValueError("its captions or its id are no texts")
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
            raise DataError(f"{self.path / self.index['shards'][shard]['file']}: record {at} is damaged "
                            f"({reason}): write the latents again") from error
        return tensors | meta


def _array(tensor: dict[str, Any]) -> np.ndarray:
    flat = np.frombuffer(tensor["data"], SAFETENSORS_DTYPES[tensor["dtype"]])
    return flat.reshape(tensor["shape"])


def _read_index(path: AnyPath) -> dict[str, Any]:
    if not paths.is_file(path / INDEX):
        raise DataError(f"{path} holds no latents ({INDEX} is missing): make them with "
                        "data_pipelines/encode_latents.py")
    fix = "it is damaged, write the latents again"
    index = paths.read_json(path / INDEX, limit=MOST_INDEX, error=DataError, fix=fix)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise DataError(f"{path / INDEX} has format {found!r}, this version reads {FORMAT!r}: write the "
                        "latents again")
    try:
        whole = all(Path(shard["file"]).name == shard["file"] and type(shard["records"]) is type(shard["bytes"]) is int
                    for shard in index["shards"])
        whole = whole and index["count"] == sum(shard["records"] for shard in index["shards"]) > 0
        whole = whole and [type(index[key]) for key in ("channels", "vae", "dtype")] == [int, str, str]
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError(f"{path / INDEX} is damaged: write the latents again")
    return index


class _Shard:
    """A reader of one shard. One on this disk is opened at once; one in a bucket when it is read, and its copy in the
    bounded cache goes when others are used."""

    def __init__(self, path: AnyPath, shard: dict[str, Any]):
        self._path, self._shard = path, shard
        self._lock = threading.Lock()
        self._reader = _open_shard(path, shard) if isinstance(path, Path) else None

    def read(self, numbers: list[int]) -> list[bytes]:
        with self._lock:
            if self._reader is None:
                self._reader = _open_shard(self._path, self._shard)
        return self._reader.read(numbers)


def _open_shard(path: AnyPath, shard: dict[str, Any]) -> Any:
    file = paths.local_copy(path / shard["file"])
    if not file.exists():
        raise DataError(f"{file} is missing: copy the whole folder of latents, or write it again")
    if file.stat().st_size != shard["bytes"]:
        raise DataError(f"{file} has {file.stat().st_size} bytes, its index says {shard['bytes']}: copy the "
                        "folder again, or write it again")
    try:
        reader = array_record_module.ArrayRecordReader(str(file), options="readahead_buffer_size:0",
                                                       file_reader_buffer_size=32768)
    except Exception as error:
        raise DataError(f"{file} cannot be opened ({str(error)[:120]}): write the latents again") from error
    if reader.num_records() != shard["records"]:
        raise DataError(f"{file} has {reader.num_records()} records, its index says {shard['records']}: "
                        "write the latents again")
    return reader
