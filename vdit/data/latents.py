"""Latents on disk: ArrayRecord shards of safetensors records, and an index that is written last.

A folder holds `latents-00000.arrayrecord`, ... and `index.json`. A record is the bytes of a safetensors
file with the tensor "latent" [t h w c], the tensor "actions" float32 [t a] (a row a video frame) where the clip has
them, and, as metadata, a JSON object: captions, id, fps, label, and whatever else the writer passed.

`LatentParts` writes a folder in parts, by one host or several, and continues after an interruption. The samples are cut
into parts, runs of neighbours of equal length whose number depends on that of the samples only. A part is one file of
records; beside it a note, written last, says that it is complete. When all parts are, the first host writes the index,
and the folder gets its final name. Until then it is `.NAME.KEY.writing`: the key stands for what is encoded, so that
what is found there may be used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from array_record.python import array_record_module

from vdit import buckets, paths
from vdit.data.data_source import Sample, Source, check_action_values
from vdit.data.streams import ProcessShard
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
        self._readers = [ShardReader(self.path, shard) for shard in self.index["shards"]]
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
                        "python -m data_pipelines.encode")
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


class ShardReader:
    """A reader of one ArrayRecord shard. One on this disk is opened at once; one in a bucket when it is read, and its
    copy in the bounded cache goes when others are used."""

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
        raise DataError(f"{file} is missing: copy the whole folder, or write it again")
    if file.stat().st_size != shard["bytes"]:
        raise DataError(f"{file} has {file.stat().st_size} bytes, its index says {shard['bytes']}: copy the "
                        "folder again, or write it again")
    try:
        reader = array_record_module.ArrayRecordReader(str(file), options="readahead_buffer_size:0",
                                                       file_reader_buffer_size=32768)
    except Exception as error:
        raise DataError(f"{file} cannot be opened ({str(error)[:120]}): write the folder again") from error
    if reader.num_records() != shard["records"]:
        raise DataError(f"{file} has {reader.num_records()} records, its index says {shard['records']}: "
                        "write the folder again")
    return reader


MOST_PARTS, SMALLEST_PART = 512, 16
_PARTS_FORMAT = "parts-2"  # of the notes: parts of another format are not gone on with
PATIENCE = 120.0  # seconds until a file that another host has written is seen here


class LatentParts:
    """The parts of one folder of latents, and this host's share of them.

    path: the folder; must not exist, unless `replaces`: then what is there is replaced when all is written. samples:
    how many. key: anything that changes when the latents would.
    shard: this host of how many; every host sees the same folders.
    """

    def __init__(self, path: str | Path, *, samples: int, vae: str, dtype: str, key: Any = None,
                 shard: ProcessShard | None = None, replaces: bool = False):
        check_dtype(dtype)
        self.path = paths.path(path)
        if paths.exists(self.path) and not replaces:
            raise DataError(f"{self.path} exists already: choose another folder for latents, or remove it")
        if samples < 1:
            raise DataError("there are no latents to write: the source of clips is empty")
        self.samples, self.vae, self.dtype = samples, vae, dtype
        self.shard = shard or ProcessShard()
        self.size = max(SMALLEST_PART, -(-samples // MOST_PARTS))
        self.count = -(-samples // self.size)
        key = [_PARTS_FORMAT, samples, self.size, vae, dtype, key]
        self.key = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        self.work = self.path.parent / f".{self.path.name}.{self.key}.writing"
        if isinstance(self.work, Path):
            self.work.mkdir(parents=True, exist_ok=True)

    def places(self, part: int) -> range:
        """Numbers of the samples of a part."""
        return range(part * self.size, min((part + 1) * self.size, self.samples))

    def own(self) -> range:
        """The parts of this host."""
        return range(self.shard.index, self.count, self.shard.count)

    def missing(self) -> list[int]:
        """The parts of this host that are still to be made."""
        return [part for part in self.own() if self._note(part) is None]

    def write(self, part: int, items: Iterator[Sample]) -> None:
        """Makes a part of the next items, as many as it has."""
        writer = ShardWriter(shard_file(self.work, part), self.dtype)
        try:
            for number in self.places(part):
                writer.write(next(items), number)
            note = writer.close()
        except BaseException:
            writer.abandon()
            raise
        write_json(_note_file(self.work, part), note)

    def finish(self, wait: Callable[[str], None] | None = None, more: Mapping[str, Any] | None = None
               ) -> dict[str, Any]:
        """The index, once all parts of all hosts are there; then the folder has its name.

        more: names of files to write beside the index, and what they hold (JSON). wait: called by each host with a
        name, returns when all hosts have called it; None for one host.
        """
        wait = wait or (lambda name: None)
        wait("latents written")
        if self.shard.index == 0:
            notes = [self._await_note(part) for part in range(self.count)]
            index = make_index(notes, vae=self.vae, dtype=self.dtype) | {"key": self.key}
            for name, value in (more or {}).items():
                write_json(self.work / name, value)
            write_json(self.work / INDEX, index)
            if isinstance(self.path, Path):
                if self.path.exists():
                    os.replace(self.path, self.work.with_suffix(".former"))
                os.replace(self.work, self.path)
            else:
                paths.remove_folder(self.path, first=(INDEX,))
                paths.move_folder(self.work, self.path, last=(INDEX,))
            self._clear()
        wait("latents complete")
        _await(lambda: self._index().get("key") == self.key, self.path / INDEX)
        return self._index()

    def _index(self) -> dict[str, Any]:
        """The index of the folder; empty where there is none."""
        try:
            return json.loads(paths.read_bytes(self.path / INDEX, limit=MOST_INDEX))
        except (OSError, ValueError, DataError):
            return {}

    def _note(self, part: int) -> dict[str, Any] | None:
        """What is known of a part that is complete."""
        try:
            note = json.loads(paths.read_bytes(_note_file(self.work, part), limit=paths.MIB))
            Moments.from_json(note["moments"])
            whole = paths.file_size(shard_file(self.work, part)) == note["bytes"]
        except (OSError, ValueError, KeyError, TypeError, DataError):
            return None
        return note if whole else None

    def _await_note(self, part: int) -> dict[str, Any]:
        _await(lambda: self._note(part) is not None, shard_file(self.work, part))
        return self._note(part)

    def _clear(self) -> None:
        """The notes have served; and what was cut short, or given up for other latents, is of no use."""
        if not isinstance(self.path, Path):
            for name in paths.names_in(self.path):
                if name.startswith("part-") and name.endswith(".json"):
                    (self.path / name).unlink(missing_ok=True)
            for name in paths.names_in(self.path.parent):
                if name.startswith(f".{self.path.name}.") and name.endswith(".writing"):
                    paths.remove_folder(self.path.parent / name)
            return
        for left in [*self.path.glob("part-*.json"), *self.path.glob(".*.part")]:
            left.unlink(missing_ok=True)
        for ending in ("writing", "former"):
            for left in self.path.parent.glob(f".{self.path.name}.*.{ending}"):
                shutil.rmtree(left, ignore_errors=True)


def _note_file(folder: AnyPath, part: int) -> AnyPath:
    return folder / f"part-{part:05d}.json"


def _await(seen: Callable[[], bool], file: AnyPath) -> None:
    """File systems over a network may show a file some time after another host has written it."""
    end = time.monotonic() + PATIENCE
    while not seen():
        if time.monotonic() > end:
            raise DataError(f"{file} of another host does not appear: the folder of a run must be one that all hosts "
                            "share")
        time.sleep(0.2)


def write_json(file: AnyPath, value: Any) -> None:
    """Writes a value as JSON: all of the file or nothing."""
    paths.write_atomic(file, json.dumps(value, indent=1))
