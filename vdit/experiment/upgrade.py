"""Old configs and old command lines in today's words.

`upgrade` takes the values of an experiment as an older vdit saved them (experiment.json, the meta.json of a
checkpoint, an exported folder), `upgrade_overrides` the --cfg texts that an older vdit took. Both read the same tables.
To rename a key, add a line to RENAMED; where values were renamed too, a line to VALUES; a change of structure is one
function in STRUCTURES.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vdit.errors import VditWarning
from vdit.registry import KIND

# Old dotted key -> today's. The keys below a renamed one move with it. Keys are looked up in this order.
RENAMED: dict[str, str] = {
    "data.areas": "data.pixel_budgets",
    "data.detailed": "data.long_caption_prob",
    "data.row_slots": "data.max_frames_per_row",
    "data.row_text": "data.max_text_per_row",
    "data.row_clips": "data.max_clips_per_row",
    "dit": "backbone",
    "sample.known": "sample.conditioning",
    "diffusion.whole_time": "diffusion.integer_timesteps",
}

# Today's dotted key -> what its old values are called now.
VALUES: dict[str, dict[Any, Any]] = {
    "sample.conditioning": {"noised": "replacement"},
}


def upgrade(values: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """The values of a saved experiment under today's names.

    Args:
        values: JSON values of an experiment, of any version of vdit. They are not changed.
        quiet: say nothing. Otherwise one warning (VditWarning) names the old keys that were found.

    Returns:
        A new dict for `vdit.config.from_dict(Experiment, ...)`. Keys that no version had stay as they are.
    """
    new = copy.deepcopy(dict(values))
    found = [_move(new, old, now) for old, now in RENAMED.items() if _holds(new, old) and not _holds(new, now)]
    for key, names in VALUES.items():
        if _holds(new, key) and _at(new, key) in [*names]:
            _put(new, key, names[_at(new, key)])
    found += [note for change in STRUCTURES for note in change(new)]
    if found and not quiet:
        _tell("the experiment was saved by an older vdit", found)
    return new


def upgrade_overrides(overrides: Iterable[str]) -> list[str]:
    """Overrides "key=value" with today's keys; one warning (VditWarning) names the old keys that were found."""
    new, found = [], []
    for override in overrides:
        key, equals, value = override.partition("=")
        now = _key_now(key.strip())
        if now != key.strip():
            found.append(f"{key.strip()} is {now}")
        for old, name in VALUES.get(now, {}).items():
            value = str(name) if value.strip() == str(old) else value
        new.append(f"{now}{equals}{value}")
    if found:
        _tell("old names of settings were given", found)
    return new


def _data_source(values: dict[str, Any]) -> list[str]:
    """data.source was a name, with the fields of all sources beside it; it is a choice with its own fields."""
    data = values.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("source"), str):
        return []
    name, fields = data["source"], _SOURCE_FIELDS.get(data["source"], ())
    source = {KIND: name}
    for old, now in _SOURCE_KEYS.items():
        field, value = now.rpartition(".")[2], data.pop(old.rpartition(".")[2], None)
        if field in fields and value is not None:
            source[field] = value
    data["source"] = source
    return [f"data.source={name!r} and its keys are data.source.*"]


_SOURCE_KEYS = {
    "data.path": "data.source.path",
    "data.captions": "data.source.captions",
    "data.split": "data.source.split",
    "data.video_feature": "data.source.video_feature",
    "data.caption_feature": "data.source.caption_feature",
    "data.label_feature": "data.source.label_feature",
    "data.fps_feature": "data.source.fps_feature",
    "data.default_fps": "data.source.default_fps",
    "data.world": "data.source.world",
    "data.world_count": "data.source.count",
    "data.world_options": "data.source.options",
}
_SOURCE_FIELDS = {
    "folder": ("path", "captions"),
    "latents": ("path",),
    "worlds": ("world", "count", "options"),
    "tfds": ("path", "split", "video_feature", "caption_feature", "label_feature", "fps_feature", "default_fps"),
}



def _optimizer(values: dict[str, Any]) -> list[str]:
    """An optimizer had no kind: there was AdamW only."""
    notes = []
    for stage in ("vae_train", "dit_train"):
        config = values.get(stage)
        if isinstance(config, dict) and isinstance(config.get("optimizer"), dict) and KIND not in config["optimizer"]:
            config["optimizer"] = {KIND: "adamw", **config["optimizer"]}
            notes.append(f"{stage}.optimizer is of kind adamw")
    return notes


def _backbone(values: dict[str, Any]) -> list[str]:
    """Backbones and losses of VAEs had no kind: there was one of each."""
    for key, kind in (("backbone", "dit"), ("vae_loss", "autoencoding")):
        if isinstance(values.get(key), dict) and KIND not in values[key]:
            values[key] = {KIND: kind, **values[key]}
    return []


def _objective(values: dict[str, Any]) -> list[str]:
    """Distillation was `distill`, none or its settings; it is one of the objectives."""
    if "distill" not in values:
        return []
    settings = values.pop("distill")
    values["objective"] = {KIND: "denoising"} if settings is None else {KIND: "consistency", **settings}
    return ["distill is objective"]


def _sampler(values: dict[str, Any]) -> list[str]:
    """A sampler was a name, with its options beside it."""
    sample = values.get("sample")
    if not isinstance(sample, dict) or not isinstance(sample.get("sampler"), str):
        return []
    sample["sampler"] = {KIND: sample["sampler"], **dict(sample.pop("sampler_options", None) or ())}
    return ["sample.sampler holds its options"]


# Changes of structure: each changes the values in place, and returns notes.
STRUCTURES: list[Callable[[dict[str, Any]], list[str]]] = [_data_source, _backbone, _optimizer, _objective, _sampler]


def _key_now(key: str) -> str:
    for old, now in {**_SOURCE_KEYS, **RENAMED}.items():
        if key == old or key.startswith(f"{old}."):
            key = now + key.removeprefix(old)
    return key


def _tell(what: str, found: list[str]) -> None:
    warnings.warn(f"{what}: {', '.join(dict.fromkeys(found))}", VditWarning, stacklevel=3)


def _move(values: dict[str, Any], old: str, now: str) -> str:
    *parents, leaf = old.split(".")
    node = values
    for name in parents:
        node = node[name]
    _put(values, now, node.pop(leaf))
    return f"{old} is {now}"


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for name in parents:
        values = values.setdefault(name, {})
    values[leaf] = value


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values


def _holds(values: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True
