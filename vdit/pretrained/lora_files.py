"""LoRA files as a user gives them: which file, how strong, and on which transformer of the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from vdit.errors import ConfigError, WeightsError
from vdit.experiment.experiment import Experiment
from vdit.nn.lora import LoRA
from vdit.paths import MIB, read_json
from vdit.pretrained.lora import EXPERTS, experts, read_lora
from vdit.pretrained.open import open_tensors
from vdit.pretrained.wan import expert_of_name

Expert = Literal["high", "low", "both"]
ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAFile:
    """One LoRA to apply.

    path: a file, or a folder of PEFT's or diffusers' that holds one.
    strength: factor of what it adds.
    expert: which transformer of Wan 2.2 A14B gets it: "high" or "low" (noise), or "both"; None: as the file's tensors
        or its name say. Other models have one transformer, and take None.
    """

    path: str | Path
    strength: float = 1.0
    expert: Expert | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
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
        if not isinstance(text, str) or Path(text).exists():
            return cls(path=Path(text))
        rest, at, word = text.rpartition("@")
        expert = word if at and (word in get_args(Expert) or _names_file(rest)) else None
        rest = text if expert is None else rest
        name, colon, number = rest.rpartition(":")
        if not colon or Path(rest).exists():
            return cls(path=Path(rest), expert=expert)
        try:
            return cls(path=Path(name), strength=float(number), expert=expert)
        except ValueError:
            if Path(name).exists():
                raise ConfigError(f"{text}: strength {number!r} must be a number, as in {name}:0.8") from None
            return cls(path=Path(rest), expert=expert)


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
        if not file.path.exists():
            raise WeightsError(f"{file.path}: no such LoRA: give a .safetensors file, or the folder that holds it")
        tensors, adapter = open_tensors(file.path), _adapter_config(file.path)
        owners = experts(tensors.info)
        try:
            # Read before it is asked where they go: what is wrong with the file comes first.
            read = {
                owner: read_lora(tensors, experiment.dit, adapter=adapter, expert=owner, note=notes.append)
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
    return Path(text).exists() or Path(text.rpartition(":")[0] or text).is_file()


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
    weights = [entry for entry in folder.iterdir() if entry.suffix in _WEIGHTS]
    if not path.is_dir() and not path.name.startswith("adapter_model.") and len(weights) != 1:
        return None
    values = read_json(config, limit=16 * MIB, error=WeightsError, fix="save the LoRA again")
    if not isinstance(values, dict):
        raise WeightsError(f"{config}: is {type(values).__name__}, must be a JSON object: save the LoRA again")
    return values
