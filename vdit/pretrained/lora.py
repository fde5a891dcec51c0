"""Reads LoRA, LoHa and LoKr files of Wan models in the layouts in which they are published.

A tensor's name is a prefix, a module, and what it holds of the module. docs/lora.md has the table of layouts. Prefixes
say which program wrote the file and are dropped ("diffusion_model.", "transformer.", "lora_unet_", ...). Modules have
the names of diffusers or of Wan's own repositories, with dots or underscores between the parts; vdit/pretrained/wan.py
knows both. What a tensor holds:

    low rank           .lora_A .lora_B, .lora_down .lora_up; .lora_B.bias; the scale is alpha / rank
    LoHa               .hada_w1_a .hada_w1_b .hada_w2_a .hada_w2_b
    LoKr               .lokr_w1 .lokr_w2, or their factors .lokr_w1_a .lokr_w1_b ...
    whole differences  .diff (of a weight), .diff_b (bias), .diff_m (modulation), .w_norm .b_norm (of a norm)
    .alpha             one number for its module; else alpha comes from the file's metadata or adapter_config.json

Each tensor of a file is used, left out with a note that says why, or refused by name with the true reason.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vdit.errors import WeightsError
from vdit.models.dit.config import DiTConfig
from vdit.nn.lora import LoRA, LowRank
from vdit.pretrained.peft_config import DORA, EXPERTS, Adapter, adapter_of, by_pattern
from vdit.pretrained.tensors import TensorFiles, TensorInfo, listed
from vdit.pretrained.wan import diffusers_rules, original_rules, tensor_shape, wan_json
from vdit.pretrained.weights import LINEAR, Rule, rule
from vdit.reprs import short_repr
from vdit.types import Array

# How names of the second expert begin, in diffusers and in DiffSynth.
_OWNERS = {"transformer_2.": EXPERTS[1], "pipe.dit2.": EXPERTS[1], "transformer.": EXPERTS[0], "pipe.dit.": EXPERTS[0]}
_PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "lora_unet__", "lora_unet_", "lora_transformer_",
    "lycoris_",
)  # fmt: skip
_ADAPTER = r"(?:\.(?!weight$|bias$)\w+)?"  # PEFT's name of the adapter, as in .lora_A.default.weight
_KINDS = {
    "down": rf"[._](?:lora_A|lora_down|lora\.down|lora_linear_layer\.down){_ADAPTER}(?:\.weight)?",
    "up": rf"[._](?:lora_B|lora_up|lora\.up|lora_linear_layer\.up){_ADAPTER}(?:\.weight)?",
    "up_bias": rf"[._](?:lora_B|lora_up|lora\.up){_ADAPTER}\.bias",
    **{f"hada_{part}": rf"\.hada_{part}{_ADAPTER}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
    **{f"lokr_{part}": rf"\.lokr_{part}{_ADAPTER}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    "alpha": r"\.alpha",
    "diff": r"\.(?:diff|w_norm)",
    "diff_b": r"\.(?:diff_b|b_norm)",
    "diff_m": r"\.diff_m",
    # What is refused, by the reasons in _REFUSED.
    "dora": r"[._](?:dora_scale|lora_magnitude_vector\S*)",
    "tucker": rf"\.(?:lora_mid{_ADAPTER}(?:\.weight)?|hada_t[12]{_ADAPTER}|lokr_t2{_ADAPTER})",
    "oft": r"\.(?:oft_\w+|boft_\w+)\S*",
    "set": r"\.(?:set_weight|reshape_weight)",
    "other": r"\.(?:[ab][12]\.weight|ia3_\w+\S*|on_input|vera_\w+\S*|road_\w+\S*|modules_to_save\S*)",
}
_PIECE = re.compile("|".join(f"(?P<{kind}>{suffix}$)" for kind, suffix in _KINDS.items()))
_REFUSED = {
    "dora": DORA,
    "tucker": "it is a Tucker decomposition, which only convolutions have",
    "oft": "it is an OFT, which turns weights and adds nothing to them",
    "set": "it replaces weights, or enlarges them for more channels, and adds nothing to them (a control LoRA)",
    "other": "it is another kind of adapter than LoRA, LoHa and LoKr (GLoRA, IA3, VeRA, saved modules)",
}
# What a kind is added to, by the end of the tensor's name.
_ENDS = {"diff": (".weight", ""), "diff_b": (".bias",), "diff_m": (".modulation",), "up_bias": (".bias",)}
# Modules of Wan 2.1's image to video alone, whose text attention also attends to an encoded image.
_IMAGE = re.compile(r"k_img|v_img|norm_added_[kq]|add_[kv]_proj|img_emb|image_embedder")
_TEXT_ENCODER = re.compile(r"^(lora_te\d?_|text_encoder|text_encoders|conditioner)")
_BLOCK = re.compile(r"(?:^|[._])blocks[._](\d+)[._]")
_MOST_TENSORS = 100_000


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The tensors of a LoRA file. info: name -> shape and type. read(name): one tensor. adapter: what a config says."""

    info: Mapping[str, TensorInfo]
    read: Callable[[str], np.ndarray]
    adapter: Adapter = dataclasses.field(default_factory=Adapter)

    @classmethod
    def of(cls, tensors: Mapping[str, Array] | TensorFiles, adapter: Adapter) -> Source:
        """From tensors in memory, or from an open file."""
        if isinstance(tensors, TensorFiles):
            return cls(info=tensors.info, read=tensors.read, adapter=adapter)
        info = {name: TensorInfo(tuple(tensor.shape), np.dtype(tensor.dtype)) for name, tensor in tensors.items()}
        return cls(info=info, read=lambda name: np.asarray(tensors[name]), adapter=adapter)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Module:
    """What a file holds of one module of a Wan.

    name: the module, as the file calls it. tensors: kind -> the tensor's full name. rules: "weight", or the kind of a
    whole difference -> what it is added to. shape: that of the weight in torch; None in vdit's own layout.
    """

    name: str
    rules: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] | None = None


def experts(names: Mapping[str, Any]) -> tuple[str, ...]:
    """Which transformers the tensors of a file are for, of EXPERTS; other layouts name none: the first."""
    owners = {_owner(name)[0] for name in names} - {None}
    return tuple(expert for expert in EXPERTS if expert in owners) or EXPERTS[:1]


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
    source = Source.of(tensors, adapter_of(metadata, adapter, expert))
    modules = _sort(source, config, expert, note)
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
        for kind in _ENDS:
            if kind in module.tensors:
                path = unstacked(module.rules[kind])
                one = _whole(source, module, kind, factor=1.0 if scale is None or kind != "up_bias" else scale)
                differences[path] = _sum(differences[path], one) if path in differences else one
    if unscaled:
        note(f"it has no alpha for {unscaled} of {len(modules)} modules, so their scale is 1 (alpha = rank)")
    return LoRA(layers=layers, differences=_Lazy(differences))


def is_wan(config: DiTConfig) -> bool:
    """Whether the model has the form of a Wan transformer, so that the public layouts have names for its layers."""
    try:
        wan_json(config)
    except WeightsError:
        return False
    return True


def dense_modules(rules: list[Rule]) -> dict[str, str]:
    """Our dense layer -> their module, of those that are one torch Linear there."""
    return {
        unstacked(rule).removesuffix("/kernel"): rule.name.removesuffix(".weight")
        for rule in rules
        if _is_dense(rule)
    }


def _owner(name: str) -> tuple[str | None, str]:
    """(the expert that a name says it is for, the name without that)."""
    for start, expert in _OWNERS.items():
        if name.startswith(start):
            return expert, name.removeprefix(start)
    return None, name


def _split(full: str) -> tuple[str | None, str, str]:
    """A tensor's name -> (expert or None, module, kind); the kind is "" where the name's end is not known."""
    expert, name = _owner(full)
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    match = _PIECE.search(name)
    return (expert, name[: match.start()], match.lastgroup) if match else (expert, name, "")


@functools.lru_cache(maxsize=8)
def _rules_by_name(config: DiTConfig) -> Mapping[str, Rule]:
    """Tensors of a Wan by both of their public names, with underscores in the place of dots."""
    if not is_wan(config):
        return {}
    rules = [*diffusers_rules(config), *original_rules(config)]
    return {rule.name.replace(".", "_"): rule for rule in rules}


def _sort(source: Source, config: DiTConfig, expert: str, note: Callable[[str], None]) -> list[_Module]:
    """The modules of the file that are for `expert`, each tensor with the rule of what it is added to."""
    if len(source.info) > _MOST_TENSORS:
        raise WeightsError(f"it has {len(source.info)} tensors, more than {_MOST_TENSORS}: it is no LoRA")
    known = _rules_by_name(config)
    found: dict[str, _Module] = {}
    unknown, image = [], []
    for full in source.info:
        owner, module, kind = _split(full)
        if owner not in (None, expert):
            continue
        if kind in _REFUSED:
            raise WeightsError(f"{full}: {_REFUSED[kind]}: not supported; merge it with the program that made it")
        own = full.startswith("vdit.")
        rules = _own_rules(module, kind) if own else _rules_of(known, module, kind)
        if not kind or rules is None:
            (image if known and _IMAGE.search(module) and kind and not config.image_width else unknown).append(full)
            continue
        path = unstacked(next(iter(rules.values())))
        key = path.rpartition("/")[0] or path
        before = found.get(key, _Module(name=module))
        if kind in before.tensors:
            raise WeightsError(f"{full} and {before.tensors[kind]} are for one weight: the file must hold one of them")
        rules, named = {**before.rules, **rules}, {**before.tensors, kind: full}
        shape = tensor_shape(rules["weight"], config) if "weight" in rules and not own else None
        found[key] = _Module(name=module, rules=rules, tensors=named, shape=shape)
    if unknown:
        raise WeightsError(f"{_what(unknown)}: {_reason(unknown, source, config)}")
    if not found and not image:
        raise WeightsError(f"it has nothing for {expert!r}: it has {', '.join(experts(source.info))}")
    if not found:
        raise WeightsError("all of it is for the attention to an image, which this model has not: take Wan 2.1 I2V")
    if image:
        note(
            f"left out {len(image)} tensors for the attention to an encoded image, which Wan 2.1's image to video has "
            f"and this model has not ({_some_modules(image)}); the rest is applied"
        )
    for module in found.values():
        _check(source, module, config)
    return list(found.values())


def _rules_of(known: Mapping[str, Rule], module: str, kind: str) -> dict[str, Rule] | None:
    """What a tensor of this kind is added to: {"weight": ...} of factors, {kind: ...} of whole differences."""
    ends = _ENDS.get(kind, (".weight",))
    found = next((known[key] for end in ends if (key := (module + end).replace(".", "_")) in known), None)
    if found is None:
        return None
    return {kind if kind in _ENDS else "weight": found}


def _own_rules(module: str, kind: str) -> dict[str, Rule] | None:
    """Of vdit's own layout: names are the paths of our layers, whose factors lie as torch's do."""
    if kind in _ENDS:
        return None
    path = module.removeprefix("vdit.").replace(".", "/")
    return {"weight": rule(module, f"{path}/kernel", LINEAR)}


def _check(source: Source, module: _Module, config: DiTConfig) -> None:
    """Factors are complete and of the shapes that this model's weights need."""
    kinds = set(module.tensors)
    for wanted in ({"down", "up"}, {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}):
        if kinds & wanted and not wanted <= kinds:
            raise WeightsError(f"{module.name}: {_missing(module, wanted - kinds)}: download the file again")
    lokr = {kind for kind in kinds if kind.startswith("lokr_")}
    for part in ("lokr_w1", "lokr_w2") if lokr else ():
        whole, factors = part in lokr, {f"{part}_a", f"{part}_b"}
        if whole == bool(factors & lokr) or (not whole and not factors <= lokr):
            raise WeightsError(f"{module.name}: {part} must be one tensor or two factors: download the file again")
    families = [name for name in ("down", "hada_w1_a") if name in kinds] + ["lokr"] * bool(lokr)
    if len(families) > 1:
        raise WeightsError(f"{module.name}: holds factors of several kinds of adapter: the file must hold one of them")
    if not families and kinds & {"alpha", "up_bias"} and "diff" not in kinds:
        raise WeightsError(f"{module.name}: {_missing(module, {'down', 'up'})}: download the file again")
    for kind in _ENDS:
        if kind in kinds:
            shape, wanted = source.info[module.tensors[kind]].shape, tensor_shape(module.rules[kind], config)
            if shape != wanted:
                raise WeightsError(_of_another(module.tensors[kind], shape, wanted, config))
    if families:
        made, wanted = _shape_of(source, module), module.shape
        if wanted is not None and (math.prod(made) != math.prod(wanted) or made[0] != wanted[0]):
            kind = {"down": "a LoRA", "hada_w1_a": "a LoHa", "lokr": "a LoKr"}[families[0]]
            raise WeightsError(_of_another(f"{module.name}, {kind}", made, wanted, config))


def _shape_of(source: Source, module: _Module) -> tuple[int, ...]:
    """(rows, columns) of the weight that the factors of a module make; WeightsError where they do not go together."""
    shapes = {kind: source.info[name].shape for kind, name in module.tensors.items()}
    flat = lambda kind: (shapes[kind][0], math.prod(shapes[kind][1:])) if shapes[kind] else (0, 0)  # noqa: E731

    def product(a: str, b: str) -> tuple[int, int]:
        (rows, inner), (other, columns) = flat(a), flat(b)
        if inner != other or not inner:
            raise WeightsError(
                f"{module.tensors[a]} is {list(shapes[a])} and {module.tensors[b]} is {list(shapes[b])}, which are no "
                "two factors of one weight: download the file again"
            )
        return rows, columns

    if "down" in shapes:
        return product("up", "down")
    if "hada_w1_a" in shapes:
        one, two = product("hada_w1_a", "hada_w1_b"), product("hada_w2_a", "hada_w2_b")
        if one != two:
            raise WeightsError(f"{module.name}: its two products are {list(one)} and {list(two)}: download it again")
        return one
    one, two = (flat(w) if w in shapes else product(f"{w}_a", f"{w}_b") for w in ("lokr_w1", "lokr_w2"))
    return one[0] * two[0], one[1] * two[1]


def _decomposed(source: Source, module: _Module) -> tuple[LowRank | Callable[[], np.ndarray] | None, float | None]:
    """(what the factors of a module add, their scale where anything says one); the first is None without factors."""
    tensors = module.tensors
    if "down" in tensors:
        down, up = _read(source, tensors["down"]), _read(source, tensors["up"])
        scale = _scale(source, module, down.shape[0], by_peft="LORA")
        if down.ndim == up.ndim == 2 and _is_dense(module.rules["weight"]):
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


def _scale(source: Source, module: _Module, rank: int | None, *, by_peft: str) -> float | None:
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


def _product(module: _Module, make: Callable[[], np.ndarray], scale: float | None) -> Callable[[], np.ndarray]:
    """The weight that `make` gives, scaled, as it is added to our parameter."""

    def compute() -> np.ndarray:
        weight = make() * np.float32(1.0 if scale is None else scale)
        return module.rules["weight"].layout.read(weight.reshape(module.shape or weight.shape))

    return compute


def _whole(source: Source, module: _Module, kind: str, *, factor: float) -> Callable[[], np.ndarray]:
    one, name = module.rules[kind], module.tensors[kind]
    return lambda: one.layout.read(_read(source, name) * np.float32(factor))


def _sum(one: Callable[[], np.ndarray], other: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    return lambda: one() + other()


def _read(source: Source, name: str) -> np.ndarray:
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
    """Arrays by name, each computed when it is asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]):
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _is_dense(one: Rule) -> bool:
    return one.layout is LINEAR and len(one.parts) == 1 and one.parts[0].chunk is None


def unstacked(one: Rule) -> str:
    """Path of our parameter as it is called where layers are not stacked."""
    part = one.parts[0]
    return part.path if part.layer is None else part.path.replace("blocks/", f"block_{part.layer}/", 1)


def _missing(module: _Module, kinds: set[str]) -> str:
    there = listed(sorted(module.tensors.values()))
    return f"lacks {', '.join(sorted(kinds))} beside {there}"


def _of_another(name: str, shape: tuple[int, ...], wanted: tuple[int, ...], config: DiTConfig) -> str:
    return (
        f"{name}: is for a weight of {list(shape)}, and that of this model is {list(wanted)}: the file is for another "
        f"Wan than this one of width {config.width} ({_SIZES.get(config.width, 'no published size')})"
    )


# How wide the published Wans are.
_SIZES = {1536: "Wan 2.1 1.3B", 3072: "Wan 2.2 TI2V-5B", 5120: "Wan 2.1 14B, Wan 2.2 A14B"}


def _what(unknown: list[str]) -> str:
    return f"LoRA tensors that are for nothing in this model: {listed(unknown)}"


def _some_modules(names: list[str]) -> str:
    return listed(dict.fromkeys(_split(name)[1] for name in names))


def _reason(unknown: list[str], source: Source, config: DiTConfig) -> str:
    """Why tensors are for nothing in this model, as far as their names tell."""
    if not is_wan(config):
        return "this model is not a Wan, and only its own LoRAs, of vdit's layout, fit it"
    if any(_TEXT_ENCODER.search(name) for name in unknown):
        return "they are for a text encoder, which is not changed here: take the transformer's LoRA alone"
    beyond = [int(match[1]) for name in unknown if (match := _BLOCK.search(_split(name)[1]))]
    if beyond and max(beyond) >= config.depth:
        return f"the file is for a larger model: it has a block {max(beyond)}, this one has {config.depth} blocks"
    extra = r"vace|control_adapter|ref_conv|face_|motion_encoder|pose_|audio|camera|cam_|recam"
    if any(re.search(extra, name) for name in unknown):
        return "they are for a Wan with further inputs (VACE, Fun-Control, Animate, sound), which this model is not"
    if all(not _split(name)[2] for name in unknown) and len(unknown) == len(source.info):
        return "the file holds whole weights or another family's, and no LoRA of a Wan"
    return "the file is of another family than Wan, or its names are of a layout that is not known here"
