"""Weights held in float8, as ComfyUI publishes them, read as the numbers that they stand for.

    blocks.0.ffn.0.weight         float8_e4m3fn or float8_e5m2
    blocks.0.ffn.0.scale_weight   float32, one number or one for each row: the weight is weight x scale_weight
    blocks.0.ffn.0.scale_input    by which its inputs are divided where products are taken in float8: not used here
    scaled_fp8                    an empty tensor that says so

Newer files write weight_scale, input_scale, and comfy_quant, which holds {"format": "float8_e4m3fn"} as bytes. A weight
with a scale is read in float32, in which the product is exact to rounding; one without in bfloat16, which holds every
float8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vdit.errors import WeightsError
from vdit.paths import parse_json
from vdit.pretrained.open import open_tensors
from vdit.pretrained.tensors import TensorFiles, TensorInfo, listed

FP8 = (np.dtype(jnp.float8_e4m3fn), np.dtype(jnp.float8_e5m2))
_MARKER, _FORMAT = "scaled_fp8", "comfy_quant"
_SCALES = ("scale_weight", "weight_scale")
_INPUTS = ("scale_input", "input_scale")
_OTHERS = ("weight_scale_2", "weight_scale_inv", "pre_quant_scale", "scale_weight_2")
_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def open_weights(path: str | Path, *, key: str | None = None) -> TensorFiles:
    """`open_tensors`, with float8 weights as the numbers that they stand for."""
    return dequantised(open_tensors(path, key=key))


def dequantised(files: TensorFiles) -> TensorFiles:
    """The tensors of a checkpoint, float8 weights multiplied by their scales; without float8, `files` itself.

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
