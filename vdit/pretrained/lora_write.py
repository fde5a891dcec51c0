"""Writes LoRAs in the public layouts, so that diffusers, PEFT and ComfyUI load the same."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from vdit.errors import WeightsError, reason
from vdit.models.dit.config import DiTConfig
from vdit.nn.lora import LoRA, LowRank
from vdit.outputs import write_whole
from vdit.pretrained.lora import dense_modules, is_wan, unstacked
from vdit.pretrained.peft_config import METADATA
from vdit.pretrained.tensors import listed
from vdit.pretrained.wan import diffusers_rules, original_rules
from vdit.train.base import run_lora
from vdit.train.workspace import Workspace

Layout = Literal["diffusers", "original", "musubi", "vdit"]


def write_lora(
    lora: LoRA, config: DiTConfig, path: str | Path, layout: Layout = "diffusers", *, expert: str = "transformer"
) -> None:
    """Write a safetensors file in a layout, with the rank and alpha of each module where its readers look for them.

    The factors keep their types and bits. Whole differences can be written in the original layout alone.
    """
    tensors, metadata = lora_tensors(lora, config, layout, expert=expert)
    try:
        whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        write_whole(path, lambda part: save_file(whole, part, metadata=metadata), replace=True)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written: {reason(error)}") from error


def write_run(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the LoRA of a run of `vdit train`, averaged, to lora.safetensors in its folder, or to `path`.

    In diffusers' layout, or in our own where the model is not a Wan.
    """
    space = Workspace(folder)
    config = space.experiment().dit
    path = space.root / "lora.safetensors" if path is None else Path(path)
    write_lora(run_lora(space), config, path, "diffusers" if is_wan(config) else "vdit")
    return path


def lora_tensors(
    lora: LoRA, config: DiTConfig, layout: Layout = "diffusers", *, expert: str = "transformer"
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors by name, metadata of the file): what `write_lora` writes."""
    if lora.differences and layout != "original":
        raise WeightsError(f"layout {layout!r} has no place for {listed(sorted(lora.differences))}: use 'original'")
    modules = _modules(lora, config, layout)
    absent = sorted(set(lora.layers) - set(modules))
    if absent:
        raise WeightsError(f"layers without a name in layout {layout!r}: {listed(absent)}")
    head = {"diffusers": f"{expert}.", "original": "diffusion_model.", "musubi": "", "vdit": "vdit."}[layout]
    a, b = ("lora_A", "lora_B") if layout in ("diffusers", "vdit") else ("lora_down", "lora_up")
    tensors = {}
    for layer, low in lora.layers.items():
        name = head + modules[layer]
        tensors[f"{name}.{a}.weight"], tensors[f"{name}.{b}.weight"] = np.asarray(low.a).T, np.asarray(low.b).T
        if layout in ("original", "musubi"):
            tensors[f"{name}.alpha"] = np.float32(low.scale * low.a.shape[1])
    if lora.differences:
        tensors |= _write_differences(lora, config, head)
    metadata = {"format": "pt"}
    if layout in ("diffusers", "vdit"):
        of_module = {modules[layer]: low for layer, low in lora.layers.items()}
        metadata[METADATA] = json.dumps(
            {f"{expert}.{key}": value for key, value in _peft_config(of_module).items()}, indent=2, sort_keys=True
        )
    return tensors, metadata


def _modules(lora: LoRA, config: DiTConfig, layout: Layout) -> dict[str, str]:
    """Our dense layer -> their module."""
    if layout not in get_args(Layout):
        raise WeightsError(f"LoRA layout {layout!r} is unknown: use one of {', '.join(get_args(Layout))}")
    if layout == "vdit":
        return {layer: layer.replace("/", ".") for layer in lora.layers}
    modules = dense_modules(diffusers_rules(config) if layout == "diffusers" else original_rules(config))
    if layout == "musubi":
        return {ours: "lora_unet_" + theirs.replace(".", "_") for ours, theirs in modules.items()}
    return modules


def _write_differences(lora: LoRA, config: DiTConfig, head: str) -> dict[str, np.ndarray]:
    rules = {unstacked(rule): rule for rule in original_rules(config)}
    tensors = {}
    for path, difference in lora.differences.items():
        name = head + rules[path].name
        bias = name.endswith(".bias")
        name = name.removesuffix(".bias") + ".diff_b" if bias else name.removesuffix(".weight") + ".diff"
        tensors[name] = rules[path].layout.write(difference)
    return tensors


def _peft_config(modules: Mapping[str, LowRank]) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig that give these ranks and scales."""
    ranks = {module: int(low.a.shape[1]) for module, low in modules.items()}
    alphas = {module: low.scale * ranks[module] for module, low in modules.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    pattern = lambda values, usual: {re.escape(k): v for k, v in values.items() if v != usual}  # noqa: E731
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": pattern(ranks, rank),
        "alpha_pattern": pattern(alphas, alpha),
        "target_modules": sorted(modules),
        "lora_bias": False,
        "use_dora": False,
        "use_rslora": False,
    }
