"""The layouts in which LoRA, LoHa and LoKr files of Wan models are published: what each tensor of a file is for.

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
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vdit.errors import WeightsError
from vdit.models.dit.config import DiTConfig
from vdit.paths import parse_json
from vdit.pretrained.tensors import TensorFiles, TensorInfo
from vdit.pretrained.wan import diffusers_rules, original_rules, tensor_shape, wan_json
from vdit.pretrained.weights import LINEAR, Rule, rule
from vdit.reprs import listed, short_repr
from vdit.types import Array

METADATA = "lora_adapter_metadata"  # where diffusers writes PEFT's config, in the header of the file
EXPERTS = ("transformer", "transformer_2")
DORA = "it is a DoRA, whose magnitudes rescale the weights it is added to"
_MOST_METADATA, _MOST_PATTERNS = 16_000_000, 5_000
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
ENDS = {"diff": (".weight", ""), "diff_b": (".bias",), "diff_m": (".modulation",), "up_bias": (".bias",)}
# Modules of Wan 2.1's image to video alone, whose text attention also attends to an encoded image.
_IMAGE = re.compile(r"k_img|v_img|norm_added_[kq]|add_[kv]_proj|img_emb|image_embedder")
_TEXT_ENCODER = re.compile(r"^(lora_te\d?_|text_encoder|text_encoders|conditioner)")
_BLOCK = re.compile(r"(?:^|[._])blocks[._](\d+)[._]")
_MOST_TENSORS = 100_000
# How wide the published Wans are.
_SIZES = {1536: "Wan 2.1 1.3B", 3072: "Wan 2.2 TI2V-5B", 5120: "Wan 2.1 14B, Wan 2.2 A14B"}


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """What adapter_config.json, or diffusers' metadata, says of a file: PEFT's fields that decide the numbers.

    Attributes:
        where: what errors name.
        kind: "LORA", "LOHA" or "LOKR".
        rank: of every module. None: not said.
        alpha: of every module; the scale is alpha / rank. None: not said.
        rank_pattern: ends of module names -> their own rank.
        alpha_pattern: ends of module names -> their own alpha.
        rslora: whether the scale is alpha / sqrt(rank) (Kalajdzievski 2023).
    """

    where: str = ""
    kind: str = "LORA"
    rank: int | None = None
    alpha: float | None = None
    rank_pattern: Mapping[re.Pattern, float] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[re.Pattern, float] = dataclasses.field(default_factory=dict)
    rslora: bool = False

    def scale(self, module: str, rank: int) -> float | None:
        """PEFT's scale of a module whose factors have `rank`; None where nothing is said of alpha."""
        alpha = by_pattern(self.alpha_pattern, module, self.alpha)
        if alpha is None:
            return None
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def check_rank(self, module: str, rank: int) -> None:
        """WeightsError where the factors have another rank than PEFT would give them."""
        wanted = by_pattern(self.rank_pattern, module, self.rank)
        if wanted is not None and wanted != rank:
            rule = f"says that {module} has rank {wanted:g}, its tensors have {rank}"
            raise WeightsError(f"{self.where} {rule}: take the config of this very file")


def adapter_of(
    metadata: Mapping[str, str] | None, config: Mapping[str, Any] | None = None, expert: str = EXPERTS[0]
) -> Adapter:
    """Read what a file's metadata, or else its adapter_config.json, says.

    Args:
        metadata: "__metadata__" of the safetensors header.
        config: content of adapter_config.json.
        expert: whose part of the metadata is read, of EXPERTS.

    Raises:
        WeightsError: it asks for what cannot be followed here.
    """
    text = (metadata or {}).get(METADATA)
    if text is None:
        return Adapter() if config is None else _adapter(config, "adapter_config.json")
    where = f"{METADATA} in the file's header"
    if len(text) > _MOST_METADATA:
        raise WeightsError(f"{where} has {len(text)} characters, more than {_MOST_METADATA}: take the right file")
    values = parse_json(text, name=where, error=WeightsError, fix="save the LoRA again")
    if not isinstance(values, dict):
        raise WeightsError(f"{where} is a {type(values).__name__}, must be an object: save the LoRA again")
    if any(key.startswith(tuple(f"{name}." for name in EXPERTS)) for key in values):
        start = f"{expert}."
        values = {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}
    return _adapter(values, where)


def _adapter(values: Mapping[str, Any], where: str) -> Adapter:
    kind = values.get("peft_type") or "LORA"
    refused = {
        "use_dora": DORA,
        "modules_to_save": "it saves whole modules beside the factors",
        "target_parameters": "it adds to parameters by name",
        "layer_replication": "it repeats layers of the model",
        "trainable_token_indices": "it trains tokens of a text model",
    }
    for key, reason in refused.items():
        if values.get(key):
            raise WeightsError(f"{key}={values[key]!r} in {where}: {reason}: not supported; merge it where it was made")
    if kind not in ("LORA", "LOHA", "LOKR"):
        raise WeightsError(f"peft_type={kind!r} in {where} is not supported: LORA, LOHA and LOKR are")
    if values.get("bias") not in (None, "none"):
        raise WeightsError(f"bias={values['bias']!r} in {where}: it replaces biases: not supported; merge it first")
    start = values.get("init_lora_weights", True)
    if start not in (None, True, False, "gaussian", "orthogonal", "eva"):
        raise WeightsError(
            f"init_lora_weights={start!r} in {where}: the LoRA was trained beside changed weights (PiSSA, OLoRA, "
            "LoftQ): not supported; convert it to a plain LoRA with PEFT, or merge it where it was made"
        )
    alpha = "lora_alpha" if kind == "LORA" else "alpha"
    return Adapter(
        where=where,
        kind=kind,
        rank=_number(values.get("r"), "r", where, whole=True),
        # PEFT's own default is 8, but a config that names no alpha is no config of PEFT.
        alpha=_number(values.get(alpha), alpha, where),
        rank_pattern=_patterns(values.get("rank_pattern"), "rank_pattern", where),
        alpha_pattern=_patterns(values.get("alpha_pattern"), "alpha_pattern", where),
        rslora=bool(values.get("use_rslora")),
    )


def _number(value: Any, name: str, where: str, *, whole: bool = False) -> float | None:
    if value is None:
        return None
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not right or (whole and (value < 1 or value != int(value))):
        rule = "a whole number from 1 up" if whole else "a finite number"
        raise WeightsError(f"{name}={value!r} in {where} must be {rule}: correct it")
    return value


def _patterns(value: Any, name: str, where: str) -> dict[re.Pattern, float]:
    """rank_pattern or alpha_pattern. PEFT takes keys for regular expressions; here they may use few of their signs."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise WeightsError(f"{name}={value!r} in {where} must be an object of names and numbers: correct it")
    if len(value) > _MOST_PATTERNS:
        raise WeightsError(f"{name} in {where} has {len(value)} keys, more than {_MOST_PATTERNS}: take the right file")
    for key in value:
        plain = re.fullmatch(r"\^?(?:\\?[.\-]|\w|\\d\+|\.\*){1,500}\$?", key)
        if plain is None or key.count("*") + key.count("+") > 2:
            rule = "must be a module's name, with \\d+ or .* at most twice"
            raise WeightsError(f"{name} in {where}: the key {key!r} {rule}: write it so")
    numbers = {key: _number(number, f"{name}[{key!r}]", where) for key, number in value.items()}
    return {re.compile(rf"(.*\.)?({key})$"): number for key, number in numbers.items()}


def by_pattern(patterns: Mapping[re.Pattern, float], module: str, default: float | None) -> float | None:
    """Look a module up as PEFT does: the number of the first key that the module's name ends in, else the default."""
    return next((number for pattern, number in patterns.items() if pattern.match(module)), default)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRATensors:
    """The tensors of a LoRA file.

    Attributes:
        info: name -> shape and type.
        read: name -> the tensor.
        adapter: what a config beside them says.
    """

    info: Mapping[str, TensorInfo]
    read: Callable[[str], np.ndarray]
    adapter: Adapter = dataclasses.field(default_factory=Adapter)

    @classmethod
    def of(cls, tensors: Mapping[str, Array] | TensorFiles, adapter: Adapter) -> LoRATensors:
        """From tensors in memory, or from an open file."""
        if isinstance(tensors, TensorFiles):
            return cls(info=tensors.info, read=tensors.read, adapter=adapter)
        info = {name: TensorInfo(tuple(tensor.shape), np.dtype(tensor.dtype)) for name, tensor in tensors.items()}
        return cls(info=info, read=lambda name: np.asarray(tensors[name]), adapter=adapter)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """What a file holds of one module of a Wan.

    Attributes:
        name: the module, as the file calls it.
        rules: "weight", or the kind of a whole difference -> what it is added to.
        tensors: kind -> the tensor's full name.
        shape: of the weight in torch. None in vdit's own layout.
    """

    name: str
    rules: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] | None = None


def experts(names: Mapping[str, Any]) -> tuple[str, ...]:
    """Which transformers the tensors of a file are for, of EXPERTS. Layouts that name none are for the first."""
    owners = {_owner(name)[0] for name in names} - {None}
    return tuple(expert for expert in EXPERTS if expert in owners) or EXPERTS[:1]


def is_wan(config: DiTConfig) -> bool:
    """Whether a model has the form of a Wan transformer, so that the public layouts have names for its layers."""
    try:
        wan_json(config)
    except WeightsError:
        return False
    return True


def dense_modules(rules: list[Rule]) -> dict[str, str]:
    """Our dense layer -> their module, of the layers that are one torch Linear there."""
    return {
        unstacked(rule).removesuffix("/kernel"): rule.name.removesuffix(".weight")
        for rule in rules
        if is_dense(rule)
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


def sort_modules(source: LoRATensors, config: DiTConfig, expert: str, note: Callable[[str], None]) -> list[Module]:
    """Sort the tensors of a file into modules, each with the rule of what it is added to.

    Args:
        source: the file's tensors.
        config: of the transformer that the LoRA is for.
        expert: whose tensors are taken, of EXPERTS.
        note: told, in one line each, what is left out.

    Raises:
        WeightsError: a tensor is for no layer of this model, of another size, of a kind of adapter that is not
            supported, or lacks its other half.
    """
    if len(source.info) > _MOST_TENSORS:
        raise WeightsError(f"it has {len(source.info)} tensors, more than {_MOST_TENSORS}: it is no LoRA")
    known = _rules_by_name(config)
    found: dict[str, Module] = {}
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
        before = found.get(key, Module(name=module))
        if kind in before.tensors:
            raise WeightsError(f"{full} and {before.tensors[kind]} are for one weight: the file must hold one of them")
        rules, named = {**before.rules, **rules}, {**before.tensors, kind: full}
        shape = tensor_shape(rules["weight"], config) if "weight" in rules and not own else None
        found[key] = Module(name=module, rules=rules, tensors=named, shape=shape)
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
    ends = ENDS.get(kind, (".weight",))
    found = next((known[key] for end in ends if (key := (module + end).replace(".", "_")) in known), None)
    if found is None:
        return None
    return {kind if kind in ENDS else "weight": found}


def _own_rules(module: str, kind: str) -> dict[str, Rule] | None:
    """Of vdit's own layout: names are the paths of our layers; factors are transposed as in torch."""
    if kind in ENDS:
        return None
    path = module.removeprefix("vdit.").replace(".", "/")
    return {"weight": rule(module, f"{path}/kernel", LINEAR)}


def _check(source: LoRATensors, module: Module, config: DiTConfig) -> None:
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
    for kind in ENDS:
        if kind in kinds:
            shape, wanted = source.info[module.tensors[kind]].shape, tensor_shape(module.rules[kind], config)
            if shape != wanted:
                raise WeightsError(_of_another(module.tensors[kind], shape, wanted, config))
    if families:
        made, wanted = _shape_of(source, module), module.shape
        if wanted is not None and (math.prod(made) != math.prod(wanted) or made[0] != wanted[0]):
            kind = {"down": "a LoRA", "hada_w1_a": "a LoHa", "lokr": "a LoKr"}[families[0]]
            raise WeightsError(_of_another(f"{module.name}, {kind}", made, wanted, config))


def _shape_of(source: LoRATensors, module: Module) -> tuple[int, ...]:
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


def is_dense(one: Rule) -> bool:
    """Whether a rule's tensor is the weight of one torch Linear."""
    return one.layout is LINEAR and len(one.parts) == 1 and one.parts[0].chunk is None


def unstacked(one: Rule) -> str:
    """Path of our parameter as it is called where layers are not stacked."""
    part = one.parts[0]
    return part.path if part.layer is None else part.path.replace("blocks/", f"block_{part.layer}/", 1)


def _missing(module: Module, kinds: set[str]) -> str:
    there = listed(sorted(module.tensors.values()))
    return f"lacks {', '.join(sorted(kinds))} beside {there}"


def _of_another(name: str, shape: tuple[int, ...], wanted: tuple[int, ...], config: DiTConfig) -> str:
    return (
        f"{name}: is for a weight of {list(shape)}, and this model's is {list(wanted)}: the file is for another "
        f"Wan than this one of width {config.width} ({_SIZES.get(config.width, 'no published size')})"
    )


def _what(unknown: list[str]) -> str:
    return f"LoRA tensors that are for nothing in this model: {listed(unknown)}"


def _some_modules(names: list[str]) -> str:
    return listed(dict.fromkeys(_split(name)[1] for name in names))


def _reason(unknown: list[str], source: LoRATensors, config: DiTConfig) -> str:
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
