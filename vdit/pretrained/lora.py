"""LoRA files: read into a LoRA for a model, opened as a user names them, and written in the public layouts.

    for tree, lora, strength in open_loras(["style.safetensors:0.8"], experiment, say=print): ...
    write_lora(lora, experiment.backbone, "mine.safetensors")

vdit.pretrained.lora_layouts knows which tensor of a file is for what.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from vdit import paths
from vdit.errors import ConfigError, WeightsError, reason
from vdit.experiment.experiment import Experiment
from vdit.models.dit.config import DiTConfig
from vdit.nn.lora import LoRA, LowRank
from vdit.outputs import write_whole
from vdit.paths import MIB, read_json
from vdit.pretrained.lora_layouts import (
    ENDS,
    EXPERTS,
    METADATA,
    LoRATensors,
    Module,
    adapter_of,
    by_pattern,
    dense_modules,
    experts,
    is_dense,
    is_wan,
    sort_modules,
    unstacked,
)
from vdit.pretrained.open import SUFFIXES, open_tensors
from vdit.pretrained.tensors import TensorFiles
from vdit.pretrained.wan import diffusers_rules, expert_of_name, original_rules
from vdit.reprs import listed
from vdit.train.pretrained import run_lora
from vdit.train.workspace import Workspace
from vdit.types import Array

Expert = Literal["high", "low", "both"]
ADAPTER_CONFIG = "adapter_config.json"
Layout = Literal["diffusers", "original", "musubi", "vdit"]


def read_lora(
    tensors: Mapping[str, Array] | TensorFiles,
    config: DiTConfig,
    *,
    metadata: Mapping[str, str] | None = None,
    adapter: Mapping[str, Any] | None = None,
    expert: str = "transformer",
    note: Callable[[str], None] = lambda line: None,
) -> LoRA:
    """The tensors of a file in any of the layouts -> a LoRA for the model of `config`.

    Args:
        tensors: the file's tensors by name, in memory or open. Names and shapes are checked before any is read.
        config: the transformer that the LoRA is for.
        metadata: the safetensors header's "__metadata__", where diffusers writes alpha; that of an open file itself.
        adapter: the content of PEFT's adapter_config.json; used where the metadata says nothing.
        expert: "transformer" or "transformer_2": whose tensors are read, where the file tells them apart.
        note: is told, in one line each, what was assumed (a scale of 1) and what was left out.

    Returns:
        The LoRA. Whole differences of the size of a weight are read from `tensors` when they are added.

    Raises:
        WeightsError: a tensor is for no layer of this model, of another size, not finite, of a kind of adapter that is
            not supported, or lacks its other half.
    """
    if isinstance(tensors, TensorFiles):
        metadata = tensors.metadata
    source = LoRATensors.of(tensors, adapter_of(metadata, adapter, expert))
    modules = sort_modules(source, config, expert, note)
    layers: dict[str, LowRank] = {}
    differences: dict[str, Callable[[], np.ndarray]] = {}
    unscaled = 0
    for module in modules:
        made, scale = _decomposed(source, module)
        unscaled += made is not None and scale is None
        if isinstance(made, LowRank):
            layers[unstacked(module.rules["weight"]).removesuffix("/kernel")] = made
        elif made is not None:
            differences[unstacked(module.rules["weight"])] = made
        for kind in ENDS:
            if kind in module.tensors:
                path = unstacked(module.rules[kind])
                one = _whole(source, module, kind, factor=1.0 if scale is None or kind != "up_bias" else scale)
                differences[path] = _sum(differences[path], one) if path in differences else one
    if unscaled:
        note(f"it has no alpha for {unscaled} of {len(modules)} modules, so their scale is 1 (alpha = rank)")
    return LoRA(layers=layers, differences=_Lazy(differences))


def _decomposed(source: LoRATensors, module: Module) -> tuple[LowRank | Callable[[], np.ndarray] | None, float | None]:
    """(what the factors of a module add, their scale where anything says one); the first is None without factors."""
    tensors = module.tensors
    if "down" in tensors:
        down, up = _read(source, tensors["down"]), _read(source, tensors["up"])
        scale = _scale(source, module, down.shape[0], by_peft="LORA")
        if down.ndim == up.ndim == 2 and is_dense(module.rules["weight"]):
            return LowRank(a=down.T, b=up.T, scale=1.0 if scale is None else scale), scale
        return _product(module, lambda: _matrix(up) @ _matrix(down), scale), scale
    if "hada_w1_a" in tensors:
        rank = source.info[tensors["hada_w1_b"]].shape[0]
        scale = _scale(source, module, rank, by_peft="LOHA")
        part = lambda name: _matrix(_read(source, tensors[f"hada_{name}"]))  # noqa: E731
        make = lambda: (part("w1_a") @ part("w1_b")) * (part("w2_a") @ part("w2_b"))  # noqa: E731
        return _product(module, make, scale), scale
    if any(kind.startswith("lokr_") for kind in tensors):
        factored = [name for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors]
        rank = source.info[tensors[factored[0]]].shape[0] if factored else None
        scale = _scale(source, module, rank, by_peft="LOKR")

        def factor(name: str) -> np.ndarray:
            if name in tensors:
                return _matrix(_read(source, tensors[name]))
            return _matrix(_read(source, tensors[f"{name}_a"])) @ _matrix(_read(source, tensors[f"{name}_b"]))

        return _product(module, lambda: np.kron(factor("lokr_w1"), factor("lokr_w2")), scale), scale
    return None, None


def _scale(source: LoRATensors, module: Module, rank: int | None, *, by_peft: str) -> float | None:
    """alpha / rank: the module's own alpha, else as PEFT's config says; None where nothing does.

    rank: None of a LoKr without factors of low rank, whose alpha means nothing outside PEFT.
    """
    adapter = source.adapter
    if adapter.where and adapter.kind != by_peft:
        raise WeightsError(f"{adapter.where} is of a {adapter.kind}, and {module.name} is a {by_peft}: take its own")
    if "alpha" in module.tensors:
        alpha = _read(source, module.tensors["alpha"])
        if alpha.size != 1:
            raise WeightsError(f"{module.tensors['alpha']}: is of shape {list(alpha.shape)}, must be one number")
        return 1.0 if rank is None else float(alpha.item()) / rank
    if by_peft == "LOKR" and adapter.where:
        # PEFT gives every LoKr the scale alpha / r, whether its factors are of low rank or not.
        alpha, rank = (by_pattern(adapter.alpha_pattern, module.name, adapter.alpha),
                       by_pattern(adapter.rank_pattern, module.name, adapter.rank))  # fmt: skip
        return None if alpha is None or rank is None else alpha / rank
    if rank is None:
        return 1.0
    adapter.check_rank(module.name, rank)
    return adapter.scale(module.name, rank)


def _product(module: Module, make: Callable[[], np.ndarray], scale: float | None) -> Callable[[], np.ndarray]:
    """The weight that `make` gives, scaled, as it is added to our parameter."""

    def compute() -> np.ndarray:
        weight = make() * np.float32(1.0 if scale is None else scale)
        return module.rules["weight"].layout.read(weight.reshape(module.shape or weight.shape))

    return compute


def _whole(source: LoRATensors, module: Module, kind: str, *, factor: float) -> Callable[[], np.ndarray]:
    one, name = module.rules[kind], module.tensors[kind]
    return lambda: one.layout.read(_read(source, name) * np.float32(factor))


def _sum(one: Callable[[], np.ndarray], other: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    return lambda: one() + other()


def _read(source: LoRATensors, name: str) -> np.ndarray:
    """A tensor in float32; WeightsError where it holds no finite numbers."""
    values = np.asarray(source.read(name))
    if values.dtype.kind in "iub" and values.size > 1:
        raise WeightsError(f"{name}: is of type {values.dtype}, must hold floats: it is quantised, or no LoRA")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise WeightsError(f"{name}: holds NaN or infinity: its training failed; take another file")
    return values


def _matrix(values: np.ndarray) -> np.ndarray:
    return values.reshape(values.shape[0], -1)


class _Lazy(Mapping):
    """Arrays by name, each computed when it is read."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]):
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAFile:
    """One LoRA to apply.

    Attributes:
        path: a file, or a folder of PEFT's or diffusers' that holds one.
        strength: factor of what it adds.
        expert: which transformer of Wan 2.2 A14B gets it: "high" or "low" (noise), or "both". None: as the file's
            tensors or its name say. Other models have one transformer, and take None.

    Raises:
        ConfigError: the strength is not finite, or the expert is unknown.
    """

    path: str | Path
    strength: float = 1.0
    expert: Expert | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", paths.path(self.path))
        if not math.isfinite(self.strength):
            raise ConfigError(f"{self.path}: strength {self.strength} must be a finite number, as in 0.8")
        if self.expert not in (None, *get_args(Expert)):
            raise ConfigError(f"{self.path}: expert {self.expert!r} is unknown: use {', '.join(get_args(Expert))}")

    @classmethod
    def parse(cls, text: str | Path) -> LoRAFile:
        """Reads "FILE[:STRENGTH][@EXPERT]": "style.safetensors", "style.safetensors:0.8@low".

        Raises:
            ConfigError: what follows an existing file is no strength, or no expert.
        """
        if not isinstance(text, str) or paths.exists(text):
            return cls(path=paths.path(text))
        rest, at, word = text.rpartition("@")
        expert = word if at and (word in get_args(Expert) or _names_file(rest)) else None
        rest = text if expert is None else rest
        name, colon, number = rest.rpartition(":")
        if not colon or paths.exists(rest):
            return cls(path=paths.path(rest), expert=expert)
        try:
            return cls(path=paths.path(name), strength=float(number), expert=expert)
        except ValueError:
            if paths.exists(name):
                raise ConfigError(f"{text}: strength {number!r} must be a number, as in {name}:0.8") from None
            return cls(path=paths.path(rest), expert=expert)


def open_loras(
    given: Sequence[str | Path | LoRAFile], experiment: Experiment, say: Callable[[str], None]
) -> list[tuple[str, LoRA, float]]:
    """Reads LoRA files and checks them against a model, whose weights need not be loaded yet.

    Args:
        given: the files, as LoRAFile or as the texts that LoRAFile.parse reads.
        experiment: the model.
        say: told, in one line each, what was assumed or left out.

    Returns:
        (key of the transformer's parameters, what is added to it, strength) of each, in order.

    Raises:
        WeightsError: a file is missing, damaged, or not for this model. ConfigError: a text says no LoRAFile.
    """
    made = []
    for one in given:
        file = one if isinstance(one, LoRAFile) else LoRAFile.parse(one)
        notes: list[str] = []
        here = paths.local_weights(file.path, error=WeightsError)
        if not here.exists():
            raise WeightsError(f"{file.path}: no such LoRA: give a .safetensors file, or the folder that holds it")
        tensors, adapter = open_tensors(here), _adapter_config(here)
        owners = experts(tensors.info)
        try:
            # Read before targets are chosen, so that faults of the file are reported first.
            read = {
                owner: read_lora(tensors, experiment.backbone, adapter=adapter, expert=owner, note=notes.append)
                for owner in owners
            }
            targets = _targets(file, owners, experiment, notes.append)
            made += [(tree, read[owner], file.strength) for tree, owner in targets]
        except WeightsError as error:
            raise WeightsError(f"{file.path}: {error}") from None
        for line in notes:
            say(f"LoRA {file.path.name}: {line}")
    return made


def _names_file(text: str) -> bool:
    """Whether "FILE" or "FILE:STRENGTH" names a file that is there."""
    return paths.exists(text) or paths.is_file(text.rpartition(":")[0] or text)


def _targets(
    file: LoRAFile, owners: tuple[str, ...], experiment: Experiment, note: Callable[[str], None]
) -> list[tuple[str, str]]:
    """(key of a transformer's parameters, whose tensors of the file it gets).

    owners: which transformers the names of its tensors tell apart, of EXPERTS.
    """
    trees = dict(zip(("high", "low"), experiment.network.experts))
    named = expert_of_name(file.path.name)
    if len(trees) == 1:
        if file.expert is not None:
            raise WeightsError(f"@{file.expert} names an expert, and this model has one transformer: leave @ out")
        if EXPERTS[1] in owners:
            raise WeightsError(f"it has a part for {EXPERTS[1]}, and this model has one transformer: take Wan 2.2 A14B")
        if named is not None:
            note(f"is for the {named}-noise expert of Wan 2.2 by its name, and this model has one transformer")
        return [(trees["high"], EXPERTS[0])]
    if EXPERTS[1] in owners:  # tensors say which expert they are for
        parts = {"high": EXPERTS[0], "low": EXPERTS[1]}
        wanted = [name for name, owner in parts.items() if owner in owners and file.expert in (None, "both", name)]
        if not wanted:
            raise WeightsError(f"@{file.expert}: its tensors are all for the other expert: leave @ out")
        return [(trees[name], parts[name]) for name in wanted]
    expert = file.expert or named
    if expert is None:
        how = f"add @high, @low or @both, as in {file.path.name}@high"
        raise WeightsError(f"its name does not say which of the model's two experts it is for: {how}")
    if file.expert is None:
        note(f"goes to the {expert}-noise expert, by its name")
    return [(tree, EXPERTS[0]) for name, tree in trees.items() if expert in (name, "both")]


def _adapter_config(path: Path) -> dict[str, Any] | None:
    """PEFT's config of a LoRA: in the folder that was given, or beside the file if it is the file's own."""
    folder = path if path.is_dir() else path.parent
    config = folder / ADAPTER_CONFIG
    if not config.is_file():
        return None
    weights = [entry for entry in folder.iterdir() if entry.suffix in SUFFIXES]
    if not path.is_dir() and not path.name.startswith("adapter_model.") and len(weights) != 1:
        return None
    values = read_json(config, limit=16 * MIB, error=WeightsError, fix="save the LoRA again")
    if not isinstance(values, dict):
        raise WeightsError(f"{config}: is {type(values).__name__}, must be a JSON object: save the LoRA again")
    return values


def write_lora(
    lora: LoRA, config: DiTConfig, path: str | Path, layout: Layout = "diffusers", *, expert: str = "transformer"
) -> None:
    """Write a LoRA as a safetensors file, with rank and alpha of each module where readers of the layout look for them.

    The factors keep their types and bits.

    Args:
        lora: what is added to the model.
        config: of the transformer that it is for.
        path: the file. An existing one is replaced.
        layout: names to write: of diffusers, of Wan's own repositories, of musubi-tuner, or of vdit.
        expert: "transformer" or "transformer_2", which diffusers' names begin with.

    Raises:
        WeightsError: the LoRA changes no layer, the layout has no name for a layer or no place for whole differences
            ("original" has), or the file cannot be written.
    """
    tensors, metadata = lora_tensors(lora, config, layout, expert=expert)
    try:
        whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        write_whole(path, lambda part: save_file(whole, part, metadata=metadata), replace=True)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written: {reason(error)}") from error


def write_run(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the LoRA of a run of `vdit train`, averaged, in diffusers' layout, or in vdit's own if the model is no Wan.

    Args:
        folder: of the run.
        path: the file. None: lora.safetensors in the run's folder.

    Returns:
        The file.
    """
    space = Workspace(folder)
    config = space.experiment().backbone
    path = space.root / "lora.safetensors" if path is None else paths.path(path)
    layout = "diffusers" if is_wan(config) else "vdit"
    if isinstance(path, Path):
        write_lora(run_lora(space), config, path, layout)
    else:
        with tempfile.TemporaryDirectory(prefix="vdit-") as folder_here:
            write_lora(run_lora(space), config, Path(folder_here) / path.name, layout)
            paths.copy_file(Path(folder_here) / path.name, path)
    return path


def lora_tensors(
    lora: LoRA, config: DiTConfig, layout: Layout = "diffusers", *, expert: str = "transformer"
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What `write_lora` writes.

    Returns:
        (tensors by name, metadata of the file).

    Raises:
        WeightsError: see `write_lora`.
    """
    if lora.differences and layout != "original":
        raise WeightsError(f"layout {layout!r} has no place for {listed(sorted(lora.differences))}: use 'original'")
    if not lora.layers and not lora.differences:
        raise WeightsError("the LoRA changes no layer: there is nothing to write, train it or name its layers")
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
