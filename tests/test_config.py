import dataclasses
import json
from typing import Annotated, Literal

import pytest

from vdit import config as vconfig
from vdit.config import apply_overrides, diff, from_dict, from_json, load_config, to_dict, to_json
from vdit.errors import ConfigError
from vdit.registry import OneOf, register


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    depth: int = 2
    width: int = 32
    heads: int = 4
    rate: float = 1e-3
    causal: bool = False
    kind: Literal["flow", "ddpm"] = "flow"
    level: Literal[1, 2] = 1
    areas: tuple[int, ...] = (64,)
    patch: tuple[int, int, int] = (1, 2, 2)
    sizes: tuple[tuple[int, int], ...] = ((64, 96),)
    weights: str | None = None
    limit: int | float | None = None

    def __post_init__(self):
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not divisible by heads {self.heads}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    steps: int
    name: str = "run"
    dit: Model = Model()
    teacher: Model | None = None


RUN = Run(steps=10)


@pytest.mark.parametrize("run", [
    RUN,
    Run(steps=1, name="a=b,'c'", teacher=Model(sizes=(), areas=(1, 2), weights="none", limit=2.5, level=2)),
])
def test_json_round_trip_gives_an_equal_config(run):
    again = from_json(Run, to_json(run))
    assert again == run
    assert hash(again) == hash(run)  # so every list came back as a tuple
    assert to_dict(run) == json.loads(to_json(run))


@pytest.mark.parametrize(("override", "key", "want"), [
    ("dit.depth=4", "depth", 4),
    ("dit.rate=3", "rate", 3.0),
    ("dit.rate=1e-4", "rate", 1e-4),
    ("dit.causal=true", "causal", True),
    ("dit.causal=False", "causal", False),
    ("dit.kind=ddpm", "kind", "ddpm"),
    ("dit.level=2", "level", 2),
    ("dit.areas=(64,96)", "areas", (64, 96)),
    ("dit.areas=64,96", "areas", (64, 96)),
    ("dit.areas=[64, 96,]", "areas", (64, 96)),
    ("dit.areas=64", "areas", (64,)),
    ("dit.areas=()", "areas", ()),
    ("dit.patch=(1,4,4)", "patch", (1, 4, 4)),
    ("dit.sizes=((1,2),(3,4))", "sizes", ((1, 2), (3, 4))),
    ("dit.sizes=(1,2),(3,4)", "sizes", ((1, 2), (3, 4))),
    ("dit.weights=a=b.h5", "weights", "a=b.h5"),
    ("dit.weights=none", "weights", None),
    ("dit.weights='none'", "weights", "none"),
    ("dit.limit=3", "limit", 3),
    ("dit.limit=3.5", "limit", 3.5),
    (" dit.depth = 4 ", "depth", 4),
])
def test_overrides_take_the_annotated_type(override, key, want):
    value = getattr(apply_overrides(RUN, [override]).dit, key)
    assert value == want
    assert type(value) is type(want)


def test_overrides_leave_the_rest_and_the_original_alone():
    changed = apply_overrides(RUN, ["dit.depth=4", "name=x", "dit.depth=5"])
    assert changed == dataclasses.replace(RUN, name="x", dit=dataclasses.replace(RUN.dit, depth=5))
    assert RUN.dit.depth == 2
    assert apply_overrides(RUN, []) == RUN


def test_rules_over_two_fields_see_the_final_values_only():
    assert apply_overrides(RUN, ["dit.width=30", "dit.heads=3"]).dit.width == 30
    with pytest.raises(ConfigError, match=r"^dit: width 30 is not divisible by heads 4$"):
        apply_overrides(RUN, ["dit.width=30"])


def test_an_optional_nested_config_is_built_and_removed():
    built = apply_overrides(RUN, ["teacher.depth=7"])
    assert built.teacher == Model(depth=7)
    assert apply_overrides(built, ["teacher=none"]).teacher is None


@pytest.mark.parametrize(("override", "message"), [
    ("dit.dept=4", r"^dit\.dept: unknown key of Model; nearest: dit\.depth$"),
    ("stps=4", r"^stps: unknown key of Run; nearest: steps$"),
    ("qqq=4", r"^qqq: unknown key of Run \(its keys: steps, name, dit, teacher\)$"),
    ("dit.depth=4.5", r"^dit\.depth: '4\.5' is not of type int$"),
    ("dit.depth=", r"^dit\.depth: '' is not of type int$"),
    ("dit.rate=fast", r"^dit\.rate: 'fast' is not of type float$"),
    ("dit.rate=nan", r"^dit\.rate: nan"),
    ("dit.causal=1", r"^dit\.causal: '1' is not of type bool$"),
    ("dit.kind=flaw", r"^dit\.kind: 'flaw' is not one of flow, ddpm; nearest: flow$"),
    ("dit.level=3", r"^dit\.level: '3' is not one of 1, 2"),
    ("dit.areas=(64,wide)", r"^dit\.areas\[1\]: 'wide' is not of type int$"),
    ("dit.patch=(2,2)", r"^dit\.patch: \(2,2\) is not a tuple\[int, int, int\]: it needs 3 values$"),
    ("dit.limit=x", r"^dit\.limit: 'x' is not of type int \| float \| none$"),
    ("dit=4", r"^dit: '4' cannot stand for a whole Model; set its fields, as in dit\.depth=\.\.\.$"),
    ("name.first=4", r"^name\.first: name is of type str, it has no fields$"),
    ("dit.depth.x=4", r"^dit\.depth\.x: dit\.depth is of type int, it has no fields$"),
    ("depth", r"^override 'depth' is not of the form key=value"),
    ("=4", r"^override '=4' is not of the form key=value"),
    ("dit..depth=4", r"^dit\.: unknown key of Model"),
])
def test_bad_overrides_are_one_clear_line(override, message):
    with pytest.raises(ConfigError, match=message) as error:
        apply_overrides(RUN, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("overrides", [
    ["teacher=none", "teacher.depth=2"],
    ["teacher.depth=2", "teacher=none"],
])
def test_a_whole_and_its_field_contradict_each_other(overrides):
    with pytest.raises(ConfigError, match="give one or the other"):
        apply_overrides(RUN, overrides)


@pytest.mark.parametrize(("data", "message"), [
    ({"steps": 1, "dit": {"dept": 1}}, r"^dit\.dept: unknown key of Model; nearest: dit\.depth$"),
    ({"steps": True}, r"^steps: True is not of type int$"),
    ({"steps": 1.0}, r"^steps: 1\.0 is not of type int$"),
    ({"steps": "1"}, r"^steps: '1' is not of type int$"),
    ({"steps": 1, "name": None}, r"^name: None is not of type str$"),
    ({"steps": 1, "dit": 3}, r"^dit: 3 is not a mapping of Model's fields$"),
    ({"steps": 1, "dit": {"areas": 3}}, r"^dit\.areas: 3 is not of type tuple\[int, \.\.\.\]$"),
    ({"steps": 1, "dit": {"width": 33}}, r"^dit: width 33 is not divisible"),
    ({}, r"^steps: is missing, Run has no default for it$"),
    ([1], r"^Run: \[1\] is not a mapping"),
])
def test_from_dict_checks_types_and_keys(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Run, data)


def test_from_dict_takes_an_int_for_a_float_and_fills_defaults():
    run = from_dict(Run, {"steps": 1, "dit": {"rate": 1}})
    assert type(run.dit.rate) is float
    assert run.dit.depth == Model().depth


def test_broken_json_is_a_config_error():
    with pytest.raises(ConfigError, match="not JSON"):
        from_json(Run, "{")


def test_diff_lists_the_changed_keys_only():
    other = apply_overrides(RUN, ["dit.depth=4", "dit.areas=1,2", "teacher.depth=3"])
    changes = diff(RUN, other)
    assert changes["dit.depth"] == (2, 4)
    assert changes["dit.areas"] == ([64], [1, 2])
    assert changes["teacher.depth"] == (None, 3)
    assert not any(key.startswith(("steps", "name")) for key in changes)
    assert diff(RUN, RUN) == {}
    assert diff(to_dict(RUN), other) == changes


def test_describe_lists_every_leaf_with_its_type():
    rows = {key: (kind, value) for key, kind, value in vconfig.describe(RUN)}
    assert rows["dit.patch"] == ("tuple[int, int, int]", (1, 2, 2))
    assert rows["dit.kind"] == ("flow | ddpm", "flow")
    assert rows["teacher"] == ("Model | none", None)


EXPERIMENT = """
from __future__ import annotations
import dataclasses

@dataclasses.dataclass(frozen=True, kw_only=True)
class Small:
    depth: int = {value}

def config():
    return Small()
"""


def test_load_config_runs_an_experiment_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(EXPERIMENT.format(value=3))
    assert load_config(path).depth == 3
    assert load_config(str(path)).depth == 3
    assert load_config(vconfig.load_experiment(path)).depth == 3


@pytest.mark.parametrize(("text", "message"), [
    ("x = 1", "must define a function config"),
    ("config = 3", "must define a function config"),
    ("def config():\n    return 3", "config\\(\\) returned int"),
    ("def config(:", "line 1: "),
    ("import dataclasses\ndef config():\n    return 1 / 0", "line 3: ZeroDivisionError"),
    ("1 / 0", "line 1: ZeroDivisionError"),
    (EXPERIMENT.format(value="'three'"), "depth: 'three' is not of type int"),
    ("import missing_library_x", "line 1: ModuleNotFoundError"),
])
def test_a_broken_experiment_file_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_experiment_is_named_with_the_nearest(tmp_path):
    (tmp_path / "worlds.py").write_text(EXPERIMENT.format(value=1))
    with pytest.raises(ConfigError, match=r"wrlds\.py: no such experiment file; nearest: worlds\.py"):
        load_config(tmp_path / "wrlds.py")
    with pytest.raises(ConfigError, match="neither an experiment file"):
        load_config("no_such_module_at_all")


@register("test_shape", "circle")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float = 1.0


@register("test_shape", "box")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    height: int
    inner: Model = Model()

    def __post_init__(self):
        if self.height < 1:
            raise ConfigError(f"height={self.height}: must be 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loose:  # registered nowhere
    x: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    main: Annotated[object, OneOf("test_shape")] = Circle()
    other: Annotated[object, OneOf("test_shape")] | None = None
    more: tuple[Annotated[object, OneOf("test_shape")], ...] = ()


FULL = Scene(main=Box(height=3, inner=Model(depth=9)), other=Circle(radius=2.0), more=(Circle(), Box(height=1)))


@pytest.mark.parametrize("scene", [Scene(), FULL])
def test_choices_go_to_json_by_their_kinds_and_come_back(scene):
    again = from_json(Scene, to_json(scene))
    assert again == scene
    assert hash(again) == hash(scene)
    assert to_dict(scene)["main"]["kind"] == ("circle" if scene.main == Circle() else "box")


@pytest.mark.parametrize(("overrides", "field", "want"), [
    (["main.radius=3"], "main", Circle(radius=3.0)),
    (["main=box", "main.height=2", "main.inner.depth=5"], "main", Box(height=2, inner=Model(depth=5))),
    (["main.height=2", "main=box"], "main", Box(height=2)),
    (["main=circle"], "main", Circle()),
    (["other=circle"], "other", Circle()),
    (["other=none"], "other", None),
    (["more=box,circle", "more.box.height=4"], "more", (Box(height=4), Circle())),
    (["more=none"], "more", ()),
])
def test_overrides_name_a_choice_and_set_its_fields(overrides, field, want):
    assert getattr(apply_overrides(Scene(), overrides), field) == want


def test_overrides_of_a_choice_keep_what_they_do_not_name():
    assert apply_overrides(FULL, ["main.height=4"]).main == Box(height=4, inner=Model(depth=9))
    assert apply_overrides(FULL, ["main=box"]).main == FULL.main
    assert apply_overrides(FULL, ["more.box.height=7"]).more == (Circle(), Box(height=7))


@pytest.mark.parametrize(("overrides", "message"), [
    (["main=crcle"], r"^main: 'crcle' is no known test_shape.*nearest: circle.*--plugin"),
    (["main=box"], r"^main\.height: is missing"),
    (["main=box", "main.height=0"], r"^main: height=0"),
    (["main.height=2"], r"^main\.height: unknown key of Circle"),
    (["other.radius=2"], r"^other\.radius: other is none; choose one"),
    (["more.box.height=4"], r"^more\.box: 'box' is not among more"),
    (["more=circle,circle"], r"^more: .* names a choice twice"),
    (["more=circle", "more.circle=3"], r"^more\.circle: set one of its fields"),
])
def test_bad_overrides_of_choices_are_one_clear_line(overrides, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(Scene(), overrides)


@pytest.mark.parametrize(("data", "message"), [
    ({"main": {"radius": 1.0}}, r"^main: .*names no test_shape"),
    ({"main": {"kind": "cone"}}, r"^main: 'cone' is no known test_shape"),
    ({"main": {"kind": "circle", "radios": 1.0}}, r"^main\.radios: unknown key of Circle; nearest: main\.radius$"),
    ({"more": [{"kind": "box"}]}, r"^more\[0\]\.height: is missing"),
    ({"main": None}, r"^main: None names no test_shape"),
])
def test_bad_choices_in_json_are_one_clear_line(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Scene, data)


def test_a_choice_that_is_not_registered_cannot_be_saved():
    with pytest.raises(ConfigError, match=r"^main: Loose is no registered test_shape"):
        to_dict(Scene(main=Loose()))


def test_reading_a_config_imports_nothing(monkeypatch, tmp_path):
    (tmp_path / "my_shapes.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="--plugin"):
        from_dict(Scene, {"main": {"kind": "my_shapes"}})


def test_describe_and_diff_look_into_choices():
    rows = {key: (kind, value) for key, kind, value in vconfig.describe(FULL)}
    assert rows["main"] == ("box | circle", "box")
    assert rows["main.inner.depth"] == ("int", 9)
    assert rows["more.box.height"] == ("int", 1)
    assert diff(Scene(), apply_overrides(Scene(), ["main=box", "main.height=2"]))["main.kind"] == ("circle", "box")


PLUGIN = """
import dataclasses
from vdit.registry import register

@register("test_shape", "{name}")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Star:
    points: int = 5
"""


@pytest.mark.parametrize("as_file", [True, False])
def test_a_plugin_brings_choices(tmp_path, monkeypatch, as_file):
    name = f"star_{as_file}"
    (tmp_path / f"my_{name}.py").write_text(PLUGIN.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vconfig, "_plugins", [])
    with pytest.raises(ConfigError, match="--plugin"):
        apply_overrides(Scene(), [f"main={name}"])
    source = f"my_{name}.py" if as_file else f"my_{name}"
    vconfig.load_plugin(source)
    assert apply_overrides(Scene(), [f"main={name}", "main.points=6"]).main.points == 6
    assert vconfig.plugins() == (source,)


@pytest.mark.parametrize(("text", "message"), [
    (None, "my_broken.*no such"),
    ("1 / 0", "my_broken.*line 1: ZeroDivisionError"),
    ("import missing_library_x", "my_broken.*line 1: ModuleNotFoundError"),
])
@pytest.mark.parametrize("source", ["my_broken", "my_broken.py"])
def test_a_broken_plugin_is_one_clear_line(tmp_path, monkeypatch, source, text, message):
    if text is not None:
        (tmp_path / "my_broken.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        vconfig.load_plugin(source)
    assert source not in vconfig.plugins()
