"""Parameters of ours to files in a public layout: safetensors, sharded with an index as diffusers does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from vdit.errors import WeightsError, reason
from vdit.pretrained.plan import flatten
from vdit.pretrained.safetensors_files import NAMES, write_safetensors
from vdit.pretrained.tensors import TensorInfo, listed
from vdit.pretrained.weights import Part, Rule
from vdit.types import PyTree

_PARTIAL = ".partial"


def save_tensors(
    rules: Iterable[Rule],
    params: PyTree,
    folder: str | Path,
    *,
    stem: str = "diffusion_pytorch_model",
    dtype: str | None = None,
    max_shard: float = 5e9,
) -> Path:
    """Writes parameters (nested dicts of arrays) under their public names; returns the file, or the index of shards.

    stem: "diffusion_pytorch_model" for parts of diffusers, "model" for those of transformers. dtype: floats become
    this; None keeps each parameter's own. max_shard: bytes of a file; one tensor may exceed it. One tensor is in host
    memory at a time. The files get their names when all are written; a folder with files of this stem is refused.
    """
    folder, ours = Path(folder), flatten(params)
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(file.name for file in folder.glob(f"{stem}*safetensors*") if file.suffix != _PARTIAL)
    if there:
        raise WeightsError(f"{folder}: holds {listed(there)} already; give a new folder")
    info, source = _describe(list(rules), ours, dtype)
    shards = _split(info, max_shard)
    names = _file_names(stem, len(shards))
    written: list[Path] = []
    try:
        for name, shard in zip(names, shards):
            written.append(folder / (name + _PARTIAL))
            written[-1].unlink(missing_ok=True)
            write_safetensors(written[-1], shard, lambda tensor: _values(source[tensor], ours, info[tensor].dtype))
        if len(shards) > 1:
            written.append(folder / f"{stem}.safetensors.index.json{_PARTIAL}")
            written[-1].write_text(_index(names, shards))
        for file in written:
            file.rename(file.with_suffix(""))
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be written: {reason(error)}") from None
    finally:
        for file in written:
            file.unlink(missing_ok=True)
    return written[-1].with_suffix("")


def _describe(
    rules: list[Rule], ours: Mapping[str, jax.Array], dtype: str | None
) -> tuple[dict[str, TensorInfo], dict[str, Rule]]:
    """What each file tensor will be, and the rule that makes it."""
    shapes = {path: tuple(leaf.shape) for path, leaf in ours.items()}
    used = {part.path for rule in rules for part in rule.parts}
    if used != set(shapes):
        odd = sorted(used ^ set(shapes))
        raise WeightsError(f"parameters and map do not go together: {listed(odd)}; use the config of the parameters")
    info, source = {}, {}
    for rule in rules:
        types = {np.dtype(ours[part.path].dtype) for part in rule.parts}
        if dtype is not None:
            types = {np.dtype(dtype) if jax.numpy.issubdtype(t, jax.numpy.floating) else t for t in types}
        if len(types) > 1 or not types <= set(NAMES):
            kinds = ", ".join(sorted(map(str, types)))
            raise WeightsError(f"{rule.name}: its parts are {kinds}; say dtype='float32' or 'bfloat16'")
        for name in (rule.name, *rule.copies):
            info[name], source[name] = TensorInfo(rule.shape(shapes), types.copy().pop()), rule
    return info, source


def _file_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


def _split(info: Mapping[str, TensorInfo], most: float) -> list[dict[str, TensorInfo]]:
    """Tensors in their order, a new shard where the next one would not fit."""
    shards: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, tensor in info.items():
        more = _bytes(tensor)
        if shards[-1] and size + more > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += more
    return shards


def _values(rule: Rule, ours: Mapping[str, jax.Array], dtype: np.dtype) -> np.ndarray:
    return rule.write([_part(part, ours[part.path]) for part in rule.parts], np.concatenate).astype(dtype, copy=False)


def _part(part: Part, array: jax.Array) -> np.ndarray:
    """A part of a parameter on the host; of a stack only the layer leaves the devices."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        raise WeightsError(f"{part.path}: lies on several hosts; export on one, from the checkpoint")
    if part.layer is not None:
        array = array[part.layer]
    whole = np.asarray(array)
    return whole[Part(path=part.path, chunk=part.chunk).index(whole.shape)]


def _index(names: list[str], shards: list[dict[str, TensorInfo]]) -> str:
    places = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
    total = sum(_bytes(tensor) for shard in shards for tensor in shard.values())
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2, sort_keys=True) + "\n"


def _bytes(tensor: TensorInfo) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize
