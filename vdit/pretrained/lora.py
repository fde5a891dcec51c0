"""LoRA files of Wan models in the public layouts: read, and written so that diffusers and PEFT load the same.

    diffusers   transformer.blocks.0.attn1.to_q.lora_A.weight [r i], .lora_B.weight [o r]; alpha in the file's metadata
                ("lora_adapter_metadata"), else the rank; "transformer_2." is the second expert of Wan 2.2
    original    diffusion_model.blocks.0.self_attn.q.lora_down.weight (or lora_A), .lora_up.weight, .alpha, and whole
                differences .diff (of a weight), .diff_b (bias), .diff_m (modulation): ComfyUI, DiffSynth, lightx2v
    musubi      lora_unet_blocks_0_self_attn_q.lora_down.weight, .lora_up.weight, .alpha
    vdit        our own paths, vdit.block_0.attention.q.lora_A.weight: for models that no public layout has

Modules are told by the weight maps of vdit/pretrained/wan.py. Each tensor of a file is used, or the error names it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from vdit.dit.config import DiTConfig
from vdit.errors import WeightsError
from vdit.nn.lora import LoRA, LowRank
from vdit.pretrained.wan import diffusers_rules, original_rules, wan_json
from vdit.pretrained.weights import LINEAR, Rule
from vdit.train.base import run_lora
from vdit.train.workspace import Workspace
from vdit.types import Array

Layout = Literal["diffusers", "original", "musubi", "vdit"]
METADATA = "lora_adapter_metadata"
EXPERTS = ("transformer", "transformer_2")
_PREFIXES = ("diffusion_model.", "base_model.model.", "pipe.dit.", "vdit.", "lora_unet__", "lora_unet_")
_SUFFIXES = {
    "down": r"\.(?:lora_A|lora_down|lora\.down)(?:\.default)?\.weight",
    "up": r"\.(?:lora_B|lora_up|lora\.up)(?:\.default)?\.weight",
    "up_bias": r"\.(?:lora_B|lora_up)(?:\.default)?\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "diff_m": r"\.diff_m",
}
# Whole differences, and what follows the module in the name of the tensor that they are for (diff_m: modulation).
_WHOLE = {"diff": (".weight", ""), "diff_b": (".bias",), "diff_m": (".modulation",), "up_bias": (".bias",)}
_PIECE = re.compile("|".join(f"(?P<{kind}>{suffix}$)" for kind, suffix in _SUFFIXES.items()))
_SHOWN = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Names:
    """What their modules are here. layers: module -> our dense layer. rules: tensor of theirs -> its rule."""

    layers: Mapping[str, str]
    rules: Mapping[str, Rule]


def experts(names: Mapping[str, Any]) -> tuple[str, ...]:
    """Which transformers the tensors of a file are for, of EXPERTS; other layouts name none: the first."""
    found = [expert for expert in EXPERTS if any(name.startswith(f"{expert}.") for name in names)]
    return tuple(found) or EXPERTS[:1]


def read_lora(
    tensors: Mapping[str, Array],
    config: DiTConfig,
    *,
    metadata: Mapping[str, str] | None = None,
    expert: str = "transformer",
) -> LoRA:
    """The tensors of a file in any of the layouts -> a LoRA for the model of `config`.

    metadata: the safetensors header's "__metadata__": where diffusers writes alpha. expert: which transformer's
    tensors are read, where the file tells them apart. Raises WeightsError naming tensors that are for no layer of the
    model, whose other half is missing, or of another size.
    """
    pieces, unknown = _sort(tensors, _names(config), expert)
    if not pieces and not unknown:
        raise WeightsError(f"the file has no LoRA for {expert!r}: it has {', '.join(experts(tensors))}")
    if unknown:
        raise WeightsError(f"LoRA tensors that are for nothing in this model: {_some(unknown)}{_hint(unknown, config)}")
    settings = _settings(metadata, expert)
    layers, differences, halves = {}, {}, []
    for module, (names, found) in pieces.items():
        if ("down" in found) != ("up" in found) or ("up" not in found and {"alpha", "up_bias"} & set(found)):
            halves.append(module)
            continue
        scale = 1.0
        if "down" in found:
            down, up = (np.asarray(found[kind]) for kind in ("down", "up"))
            if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
                raise WeightsError(f"{module}: A {down.shape} and B {up.shape} must be [r i] and [o r]")
            alpha = float(np.asarray(found["alpha"]).item()) if "alpha" in found else None
            scale = settings.scale(module, down.shape[0], alpha)
            layers[names.layers[module]] = LowRank(a=down.T, b=up.T, scale=scale)
        for kind in _WHOLE:
            if kind in found:
                path, value = _difference(_of_whole(names, module, kind), found[kind])
                differences[path] = differences.get(path, 0) + (scale if kind == "up_bias" else 1.0) * value
    if halves:
        raise WeightsError(f"LoRA modules of which one of the two factors is missing: {_some(halves)}")
    return LoRA(layers=layers, differences=differences)


def write_lora(
    lora: LoRA, config: DiTConfig, path: str | Path, layout: Layout = "diffusers", *, expert: str = "transformer"
) -> None:
    """Write a safetensors file in a layout, with the rank and alpha of each module where its readers look for them.

    The factors keep their types and bits. Whole differences can be written in the original layout alone.
    """
    tensors, metadata = lora_tensors(lora, config, layout, expert=expert)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, metadata=metadata)


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
        raise WeightsError(f"layout {layout!r} has no place for {_some(sorted(lora.differences))}: use 'original'")
    modules = _modules(lora, config, layout)
    absent = sorted(set(lora.layers) - set(modules))
    if absent:
        raise WeightsError(f"layers without a name in layout {layout!r}: {_some(absent)}")
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


def _names(config: DiTConfig) -> list[_Names]:
    """The tables of names that a module of a public file is looked up in; none for a model that is not a Wan."""
    if not is_wan(config):
        return []
    tables = []
    for rules in (diffusers_rules(config), original_rules(config)):
        named = {rule.name: rule for rule in rules}
        layers = {theirs: ours for ours, theirs in _dense(rules).items()}
        tables.append(_Names(layers=layers, rules=named))
        flat = {_underscored(name): rule for name, rule in named.items()}
        tables.append(_Names(layers={module.replace(".", "_"): ours for module, ours in layers.items()}, rules=flat))
    return tables


def is_wan(config: DiTConfig) -> bool:
    """Whether the model has the form of a Wan transformer, so that the public layouts have names for its layers."""
    try:
        wan_json(config)
    except WeightsError:
        return False
    return True


def _modules(lora: LoRA, config: DiTConfig, layout: Layout) -> dict[str, str]:
    """Our dense layer -> their module."""
    if layout not in ("diffusers", "original", "musubi", "vdit"):
        raise WeightsError(f"LoRA layout {layout!r} is unknown: use diffusers, original, musubi or vdit")
    if layout == "vdit":
        return {layer: layer.replace("/", ".") for layer in lora.layers}
    modules = _dense(diffusers_rules(config) if layout == "diffusers" else original_rules(config))
    if layout == "musubi":
        return {ours: "lora_unet_" + theirs.replace(".", "_") for ours, theirs in modules.items()}
    return modules


def _dense(rules: list[Rule]) -> dict[str, str]:
    """Our dense layer -> their module, of those that are one torch Linear there."""
    return {
        _unstacked(rule).removesuffix("/kernel"): rule.name.removesuffix(".weight")
        for rule in rules
        if rule.layout is LINEAR and len(rule.parts) == 1 and rule.parts[0].chunk is None
    }


def _unstacked(rule: Rule) -> str:
    """Path of our parameter as it is called where layers are not stacked."""
    part = rule.parts[0]
    return part.path if part.layer is None else part.path.replace("blocks/", f"block_{part.layer}/", 1)


def _underscored(name: str) -> str:
    module, dot, last = name.rpartition(".")
    return module.replace(".", "_") + dot + last


def _sort(tensors: Mapping[str, Array], tables: list[_Names], expert: str):
    """({module: (its names, {kind: tensor})}, [names of tensors that are for nothing])."""
    pieces: dict[str, tuple[_Names, dict[str, Array]]] = {}
    unknown = []
    for full, tensor in tensors.items():
        owner = next((name for name in EXPERTS if full.startswith(f"{name}.")), None)
        if owner is not None and owner != expert:
            continue
        name = full if owner is None else full.removeprefix(f"{owner}.")
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        match = _PIECE.search(name)
        module, kind = (name[: match.start()], match.lastgroup) if match else (name, "")
        own = [_Names(layers={module: module.replace(".", "/")}, rules={})] if full.startswith("vdit.") else tables
        names = next((table for table in own if _knows(table, module, kind)), None)
        if names is None:
            unknown.append(full)
        else:
            pieces.setdefault(module, (names, {}))[1][kind] = tensor
    return pieces, unknown


def _knows(names: _Names, module: str, kind: str) -> bool:
    if kind in _WHOLE:
        return _of_whole(names, module, kind) is not None
    return bool(kind) and module in names.layers


def _of_whole(names: _Names, module: str, kind: str) -> Rule | None:
    """The rule of the tensor that a whole difference is for: a parameter of the module, or the module itself."""
    found = (names.rules.get(module + last) for last in _WHOLE[kind])
    return next((rule for rule in found if rule is not None), None)


def _difference(rule: Rule, tensor: Array) -> tuple[str, np.ndarray]:
    """(path of our parameter, what is to be added to it)."""
    return _unstacked(rule), rule.layout.read(np.asarray(tensor).astype(np.float32))


def _write_differences(lora: LoRA, config: DiTConfig, head: str) -> dict[str, np.ndarray]:
    rules = {_unstacked(rule): rule for rule in original_rules(config)}
    tensors = {}
    for path, difference in lora.differences.items():
        name = head + rules[path].name
        bias = name.endswith(".bias")
        name = name.removesuffix(".bias") + ".diff_b" if bias else name.removesuffix(".weight") + ".diff"
        tensors[name] = rules[path].layout.write(difference)
    return tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """What PEFT's LoraConfig in the metadata says of scale; without it alpha is the rank."""

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rslora: bool = False

    def scale(self, module: str, rank: int, alpha: float | None) -> float:
        """alpha / rank (or its root, rsLoRA); alpha is the module's own tensor's where there is one."""
        if alpha is None:
            patterns = (key for key in self.alpha_pattern if re.match(rf"(.*\.)?({key})$", module))
            key = next(patterns, None)
            alpha = self.alpha if key is None else self.alpha_pattern[key]
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _settings(metadata: Mapping[str, str] | None, expert: str) -> _Settings:
    text = (metadata or {}).get(METADATA)
    if text is None:
        return _Settings()
    try:
        values = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{METADATA} in the file's metadata is not JSON ({error})") from None
    if any(key.startswith(tuple(f"{name}." for name in EXPERTS)) for key in values):
        start = f"{expert}."
        values = {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}
    if values.get("use_dora"):
        raise WeightsError("the file is a DoRA (use_dora in its metadata), which has magnitudes besides: not supported")
    return _Settings(
        alpha=values.get("lora_alpha"),
        alpha_pattern=values.get("alpha_pattern") or {},
        rslora=bool(values.get("use_rslora")),
    )


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


def _hint(unknown: list[str], config: DiTConfig) -> str:
    image = re.compile("k_img|v_img|add_[kv]_proj|img_emb|image_embedder")
    if not config.image_width and any(image.search(name) for name in unknown):
        return "; it is an image-to-video LoRA, and this model attends to no image: use an image-to-video model"
    if any("dora" in name or "magnitude" in name for name in unknown):
        return "; it is a DoRA, which is not supported"
    return "; it is of another family, or of a larger model" if is_wan(config) else "; this model is not a Wan"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
