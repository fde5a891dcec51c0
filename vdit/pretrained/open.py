"""Opens the tensors of a public checkpoint: a file, an index of shards, or a folder that holds one such set.

    open_tensors("Wan2.1-T2V-14B/transformer")      a folder with one set of shards
    open_tensors("models_t5_umt5-xxl-enc-bf16.pth") one file
    open_weights("wan2.2_fp8_scaled.safetensors")   float8 weights as the numbers that they stand for

Weights in float8, as ComfyUI publishes them:

    blocks.0.ffn.0.weight         float8_e4m3fn or float8_e5m2
    blocks.0.ffn.0.scale_weight   float32, one number or one for each row: the weight is weight x scale_weight
    blocks.0.ffn.0.scale_input    divides the layer's inputs where products are taken in float8; not used here
    scaled_fp8                    an empty tensor that says so

Newer files write weight_scale, input_scale, and comfy_quant, which holds {"format": "float8_e4m3fn"} as bytes. A weight
with a scale is read in float32, in which the product is exact to rounding; one without in bfloat16, which holds every
float8.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vdit.errors import WeightsError
from vdit.paths import parse_json
from vdit.pretrained.tensors import INDEX_LIMIT, TensorFiles, TensorInfo, open_safetensors, read_json
from vdit.pretrained.torch_files import open_torch
from vdit.reprs import listed

# Of several precisions of one model in a folder: the plain one, else the first of these.
VARIANTS = ("fp32", "bf16", "fp16")
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# What training scripts leave beside the weights.
NOT_WEIGHTS = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt"}
FP8 = (np.dtype(jnp.float8_e4m3fn), np.dtype(jnp.float8_e5m2))
_MARKER, _FORMAT = "scaled_fp8", "comfy_quant"
_SCALES = ("scale_weight", "weight_scale")
_INPUTS = ("scale_input", "input_scale")
_OTHERS = ("weight_scale_2", "weight_scale_inv", "pre_quant_scale", "scale_weight_2")
_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def open_tensors(path: str | Path, *, key: str | None = None) -> TensorFiles:
    """Open a file of tensors, an index of shards, or a folder that holds one such set.

    Args:
        path: .safetensors, .safetensors.index.json, .bin.index.json; .pt .pth .bin .ckpt of torch.save; or a folder. In
            a folder, safetensors come before torch files, and the plain set before its precision variants (.fp16,
            .bf16).
        key: where a torch file nests its tensors ("ema", "state_dict"; "a.b" for deeper). None: the only place there
            is.

    Returns:
        The tensors; none is read yet.

    Raises:
        WeightsError: a file is missing, damaged, or of a format that is not supported; or a folder holds several sets.
    """
    path = Path(path)
    if path.is_dir():
        path = _only_set(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file or folder; give the folder that holds the weights")
    if path.name.endswith(".json"):
        return _open_index(path, key)
    return _open_file(path, key)


def _open_file(path: Path, key: str | None) -> TensorFiles:
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return open_torch(path, key=key)
    if path.suffix == ".gguf":
        raise WeightsError(f"{path}: GGUF, whose quantised formats are not supported; take the .safetensors file")
    raise WeightsError(f"{path}: is none of {' '.join(SUFFIXES)}; convert it to safetensors")


def _open_index(path: Path, key: str | None) -> TensorFiles:
    """Shards as an index says; every tensor in the shard that the index names, and none besides."""
    places = _weight_map(path)
    shards = {name: path.parent / name for name in sorted(set(places.values()))}
    absent = [name for name, file in shards.items() if not file.is_file()]
    if absent:
        raise WeightsError(f"{path}: names shards that are not there: {listed(absent)}; download them")
    opened = {name: _open_file(file, key) for name, file in shards.items()}
    lost = [f"{name} (not in {shard})" for name, shard in places.items() if name not in opened[shard].info]
    if lost:
        raise WeightsError(f"{path}: the shards lack tensors that it names: {listed(lost)}; download them again")
    unnamed = [f"{name} ({s})" for s, files in opened.items() for name in files.info if places.get(name) != s]
    if unnamed:
        raise WeightsError(f"{path}: does not name tensors of its shards: {listed(unnamed)}; download it again")
    return TensorFiles(
        path=path,
        info={name: opened[shard].info[name] for name, shard in places.items()},
        largest_file=max(files.largest_file for files in opened.values()),
        reader=lambda name: opened[places[name]].read(name),
    )


def _weight_map(path: Path) -> dict[str, str]:
    places = read_json(path, limit=INDEX_LIMIT).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise WeightsError(f"{path}: has no weight_map of names to shards; download it again")
    for name, shard in places.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or re.search(r"[/\\\0]", shard):
            raise WeightsError(f"{path}: puts {name} into {shard!r}, which is no file of its folder; do not trust it")
    return places


class _Set(NamedTuple):
    """Files of one folder that make one model."""

    variant: str
    stem: str
    index: Path | None
    files: list[Path]


def _only_set(folder: Path) -> Path:
    """The file or index to open for a folder."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        sets = [found for suffix in suffixes for found in _sets(folder, names, suffix.removeprefix("."))]
        for variant in ("", *VARIANTS):
            of_variant = [found for found in sets if found.variant == variant]
            if len(of_variant) > 1:
                stems = listed(sorted(f.index.name if f.index else f.files[0].name for f in of_variant))
                raise WeightsError(f"{folder}: holds several sets of weights: {stems}; give the one file itself")
            if of_variant:
                return _entrance(folder, of_variant[0])
    raise WeightsError(f"{folder}: holds no weights ({' '.join(SUFFIXES)}); it has {listed(names)}")


def _sets(folder: Path, names: list[str], suffix: str) -> list[_Set]:
    variants = "|".join(VARIANTS)
    file = re.compile(rf"(.+?)(?:\.({variants}))?(-\d+-of-\d+)?(?:\.({variants}))?\.{suffix}")
    index = re.compile(rf"(.+?)(?:\.({variants}))?\.{suffix}\.index(?:\.({variants}))?\.json")
    files: dict[tuple[str, str, bool], list[Path]] = {}
    indices: dict[tuple[str, str], Path] = {}
    for name in names:
        if name in NOT_WEIGHTS:
            continue
        if match := file.fullmatch(name):
            stem, before, number, after = match.groups()
            files.setdefault((before or after or "", stem, number is not None), []).append(folder / name)
        elif match := index.fullmatch(name):
            stem, before, after = match.groups()
            indices[before or after or "", stem] = folder / name
    found = [_Set(v, s, indices.pop((v, s), None) if sharded else None, f) for (v, s, sharded), f in files.items()]
    return found + [_Set(variant, stem, path, []) for (variant, stem), path in indices.items()]


def _entrance(folder: Path, found: _Set) -> Path:
    if found.index is not None:
        stray = sorted({file.name for file in found.files} - set(_weight_map(found.index).values()))
        if stray:
            raise WeightsError(f"{found.index}: does not name the shards {listed(stray)}; remove what is stale")
        return found.index
    if len(found.files) > 1:
        shards = listed(file.name for file in found.files)
        raise WeightsError(f"{folder}: has shards without their index: {shards}; download {found.stem}...index.json")
    file = found.files[0]
    if (match := re.search(r"-(\d+)-of-(\d+)", file.name)) and int(match[2]) > 1:
        raise WeightsError(f"{folder}: has {file.name} of {int(match[2])} shards and no index; download the rest")
    return file


def open_weights(path: str | Path, *, key: str | None = None) -> TensorFiles:
    """Open tensors as `open_tensors` does, with float8 weights as the numbers that they stand for."""
    return dequantised(open_tensors(path, key=key))


def dequantised(files: TensorFiles) -> TensorFiles:
    """Multiply float8 weights by their scales as they are read.

    Args:
        files: tensors of a checkpoint.

    Returns:
        The tensors without scales and markers; `files` itself if nothing is float8.

    Raises:
        WeightsError: a scale is for no float8 weight or of another shape, or weights are quantised in another format.
    """
    last = {name: name.rpartition(".")[2] for name in files.info}
    if not any(info.dtype in FP8 for info in files.info.values()) and _FORMAT not in last.values():
        return files
    for name, end in last.items():
        if end in _OTHERS:
            raise WeightsError(f"{files.path}: {name}: is no part of scaled float8: take fp8 or bf16")
        if end == _FORMAT:
            _check_format(files, name)
    scales = {}
    for name, end in last.items():
        if end in _SCALES:
            weight = f"{name.removesuffix(end)}weight"
            _check_scale(files, name, weight)
            scales[weight] = name
    beside = {*_SCALES, *_INPUTS, _MARKER, _FORMAT}
    info = {name: _read_as(name, one, scales) for name, one in files.info.items() if last[name] not in beside}

    def read(name: str) -> np.ndarray:
        values = files.read(name)
        if name in scales:
            scale = np.asarray(files.read(scales[name])).astype(np.float32)
            shape = () if scale.size == 1 else (-1, *[1] * (values.ndim - 1))
            return values.astype(np.float32) * scale.reshape(shape)
        return values.astype(info[name].dtype)

    return dataclasses.replace(files, info=info, reader=read)


def _read_as(name: str, one: TensorInfo, scales: Mapping[str, str]) -> TensorInfo:
    if one.dtype not in FP8:
        return one
    return TensorInfo(one.shape, np.dtype(np.float32) if name in scales else np.dtype(jnp.bfloat16))


def _check_scale(files: TensorFiles, name: str, weight: str) -> None:
    one = files.info.get(weight)
    if one is None or one.dtype not in FP8:
        found = "is not there" if one is None else f"is {one.dtype}"
        raise WeightsError(f"{files.path}: {name}: {weight} {found}, must be float8: take an fp8 or bf16 file")
    shape = files.info[name].shape
    rows = one.shape[:1]
    if int(np.prod(shape)) != 1 and (shape[:1] != rows or int(np.prod(shape)) != rows[0]):
        raise WeightsError(
            f"{files.path}: {name} is {list(shape)}, must be one number or one for each of the {rows[0]} rows of "
            f"{weight}: scales of blocks are not supported; take an fp8 or bf16 file"
        )


def _check_format(files: TensorFiles, name: str) -> None:
    if files.info[name].dtype != np.uint8 or int(np.prod(files.info[name].shape)) > 10_000:
        raise WeightsError(f"{files.path}: {name}: must be a short JSON text as bytes: download the file again")
    value = parse_json(files.read(name).tobytes(), name=f"{files.path}: {name}", error=WeightsError)
    found = value.get("format") if isinstance(value, dict) else None
    if found not in _FORMATS:
        raise WeightsError(f"{files.path}: {name}: format {found!r} is not {listed(_FORMATS)}: take fp8 or bf16")
