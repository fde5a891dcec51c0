"""What PEFT's adapter_config.json, or diffusers' metadata in a LoRA's header, says of the numbers in the file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from vdit.errors import WeightsError
from vdit.paths import parse_json
from vdit.reprs import short_repr

METADATA = "lora_adapter_metadata"  # where diffusers writes PEFT's config, in the header of the file
EXPERTS = ("transformer", "transformer_2")
DORA = "it is a DoRA, whose magnitudes rescale the weights it is added to"
_MOST_METADATA, _MOST_PATTERNS = 16_000_000, 5_000


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """What adapter_config.json, or diffusers' metadata, says of a file: PEFT's fields that decide the numbers.

    where: what is named in errors. rank, alpha: None where it does not say. rank_pattern, alpha_pattern: ends of
    module names -> their own. rslora: the scale is alpha / sqrt(rank).
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
    """What the metadata of a file, or else its adapter_config.json, says; WeightsError where it cannot be followed."""
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
    """As PEFT looks it up: the first key that the module's name ends in."""
    return next((number for pattern, number in patterns.items() if pattern.match(module)), default)
