"""Configs and command lines of older versions, in today's words."""

import warnings

import pytest

from vdit import samplers
from vdit.config import apply_overrides, describe, from_dict, to_dict
from vdit.data import DataConfig, FolderSource, LatentsSource, TfdsSource, WorldsSource
from vdit.errors import VditWarning
from vdit.experiment.distill import ConsistencyDistillation
from vdit.experiment.experiment import Experiment, SampleConfig
from vdit.experiment.objectives import DenoisingLoss
from vdit.experiment.upgrade import RENAMED, upgrade, upgrade_overrides
from vdit.models.dit.config import DiTConfig

# What an older vdit wrote of a data source: the fields of all of them, side by side.
OLD_FIELDS = {
    "path": "", "captions": None, "split": "train", "video_feature": "video", "caption_feature": "caption",
    "label_feature": "label", "fps_feature": "", "default_fps": 8.0, "world": "moving", "world_count": 4096,
    "world_options": [],
}  # fmt: skip


def old(name, **fields):
    values = to_dict(Experiment(name="old"))
    values["data"] |= OLD_FIELDS | {"source": name} | fields
    return values


@pytest.mark.parametrize(("name", "fields", "want"), [
    ("folder", {"path": "videos", "captions": "c.csv"}, FolderSource(path="videos", captions="c.csv")),
    ("folder", {"path": "videos"}, FolderSource(path="videos")),
    ("latents", {"path": "l"}, LatentsSource(path="l")),
    ("worlds", {"world": "orbit", "world_count": 7, "world_options": ["a=1"]},
     WorldsSource(world="orbit", count=7, options=("a=1",))),
    ("tfds", {"path": "t", "split": "test", "fps_feature": "rate"},
     TfdsSource(path="t", split="test", fps_feature="rate")),
])
def test_a_source_that_was_a_name_becomes_a_choice(name, fields, want):
    values = old(name, **fields)
    with pytest.warns(VditWarning, match=r"older vdit.*data\.source"):
        new = upgrade(values)
    assert from_dict(Experiment, new).data == DataConfig(source=want)
    assert values["data"]["source"] == name  # what was given is not changed


def test_configs_of_today_stay_as_they_are_and_nothing_is_said():
    values = to_dict(Experiment(name="new", data=DataConfig(source=FolderSource(path="x"))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert upgrade(values) == values
        assert upgrade_overrides(["data.source.path=x", "name=y"]) == ["data.source.path=x", "name=y"]


def test_quiet_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upgrade(old("folder"), quiet=True)


def test_unknown_keys_stay_for_the_config_to_refuse():
    assert upgrade(old("worlds", gone=1), quiet=True)["data"]["gone"] == 1


@pytest.mark.parametrize(("was", "key", "value"), [
    ("data.path=clips", "source.path", "clips"),
    ("data.captions=c.csv", "source.captions", "c.csv"),
])
def test_old_keys_of_the_command_line_are_taken(was, key, value):
    with pytest.warns(VditWarning, match=f"is data.{key}"):
        overrides = upgrade_overrides(["data.source=folder", was])
    data = apply_overrides(Experiment(name="x"), overrides).data
    assert getattr(data.source, key.rpartition(".")[2]) == value


def test_every_renamed_key_leads_to_a_key_of_today():
    keys = {key for key, _, _ in describe(Experiment(name="x"))}
    prefixes = keys | {key.rpartition(".")[0] for key in keys}
    assert {now for now in RENAMED.values() if now not in prefixes} == set()


def test_distillation_and_optimizers_of_old_become_choices():
    values = to_dict(Experiment(name="old"))
    del values["objective"], values["dit_train"]["optimizer"]["kind"]
    values |= {"distill": {"guidance": 3.0, "interval": [0.0, 1.0], "steps": 8, "huber": 0.1}, "start_from": "base"}
    with pytest.warns(VditWarning, match="distill is objective"):
        experiment = from_dict(Experiment, upgrade(values))
    assert experiment.objective == ConsistencyDistillation(guidance=3.0, steps=8, huber=0.1)
    assert experiment.dit_train == Experiment(name="new").dit_train
    values["distill"] = None
    assert from_dict(Experiment, upgrade(values, quiet=True)).objective == DenoisingLoss()


def test_a_backbone_that_was_dit_keeps_its_values():
    values = to_dict(Experiment(name="old"))
    values["dit"] = values.pop("backbone") | {"depth": 3}
    del values["dit"]["kind"]
    with pytest.warns(VditWarning, match="dit is backbone"):
        assert from_dict(Experiment, upgrade(values)).backbone == DiTConfig(depth=3)
    with pytest.warns(VditWarning, match=r"dit\.depth is backbone\.depth"):
        assert upgrade_overrides(["dit.depth=3"]) == ["backbone.depth=3"]


def test_keys_of_rows_and_sizes_are_taken_under_their_old_names():
    values = to_dict(Experiment(name="old"))
    renamed = {old.partition(".")[2]: now.partition(".")[2] for old, now in RENAMED.items() if old.startswith("data.")}
    for was, now in renamed.items():
        values["data"][was] = values["data"].pop(now)
    assert {"areas", "detailed", "row_slots", "row_text", "row_clips"} <= set(values["data"])
    assert from_dict(Experiment, upgrade(values, quiet=True)) == Experiment(name="old")


def test_a_sampler_of_old_holds_its_options():
    values = to_dict(Experiment(name="old"))
    values["sample"] |= {"sampler": "heun", "sampler_options": [["frame", "exploding"]]}
    sample = from_dict(Experiment, upgrade(values, quiet=True)).sample
    assert sample.sampler == samplers.Heun(frame="exploding")
    values["sample"] = to_dict(SampleConfig()) | {"sampler": "ddim", "sampler_options": []}
    assert from_dict(Experiment, upgrade(values, quiet=True)).sample == SampleConfig(sampler="ddim")


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_goes_to_json_and_back(name):
    config = apply_overrides(SampleConfig(), [f"sampler={name}"])
    assert config == SampleConfig(sampler=name) == from_dict(SampleConfig, to_dict(config))
    assert type(config.sampler) is samplers.SAMPLERS[name]


def test_a_loss_of_a_vae_that_had_no_kind_is_the_usual_one():
    values = to_dict(Experiment(name="old"))
    del values["vae_loss"]["kind"]
    assert from_dict(Experiment, upgrade(values, quiet=True)) == Experiment(name="old")
