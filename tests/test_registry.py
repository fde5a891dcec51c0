"""Registered choices: by name, of a kind; what is unknown or unfit is one line."""

import dataclasses

import pytest

from vdit import registry
from vdit.errors import ConfigError
from vdit.registry import get, kinds, name_of, names, register


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_classes", {})


def frozen(**fields):
    return dataclasses.make_dataclass("Choice", [(k, type(v), v) for k, v in fields.items()], frozen=True)


def test_a_choice_is_found_by_its_name():
    cls = register("test_kind", "plain")(frozen(depth=2))
    assert get("test_kind", "plain") is cls
    assert names("test_kind") == ("plain",)
    assert "test_kind" in kinds()
    assert name_of("test_kind", cls) == name_of("test_kind", cls(depth=3)) == "plain"


def test_an_unknown_name_lists_the_known_ones_and_how_to_import_others():
    register("test_kind", "plain")(frozen())
    with pytest.raises(ConfigError, match=r"'plane'.*plain.*--plugin my_package"):
        get("test_kind", "plane")
    with pytest.raises(ConfigError, match="--plugin"):
        get("kind_of_nothing", "plain")


def test_unfit_classes_and_names_are_refused():
    with pytest.raises(ConfigError, match="frozen"):
        register("test_kind", "a")(dataclasses.make_dataclass("Loose", []))
    with pytest.raises(ConfigError, match="'kind'"):
        register("test_kind", "a")(frozen(kind="x"))
    with pytest.raises(ConfigError, match="'no name'"):
        register("test_kind", "no name")(frozen())
    assert names("test_kind") == ()


def test_a_name_belongs_to_one_class_and_a_second_import_replaces_the_first():
    first = register("test_kind", "a")(frozen(depth=1))
    again = register("test_kind", "a")(frozen(depth=1))
    assert get("test_kind", "a") is again is not first
    assert name_of("test_kind", first()) == "a"
    other = dataclasses.make_dataclass("Other", [], frozen=True)
    with pytest.raises(ConfigError, match=r"'a'.*Choice"):
        register("test_kind", "a")(other)
    with pytest.raises(ConfigError, match="Other"):
        name_of("test_kind", other())
