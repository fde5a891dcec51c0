"""Configs: frozen keyword-only dataclasses to and from JSON, with typed overrides; no globals.

A config holds plain fields only: int, float, str, bool, tuple[...], Literal[...], a nested config,
and any of these `| None`. The annotations are the schema.

    config = apply_overrides(config, ["backbone.depth=4", "data.fps=(8,16)", "text=none"])
    from_json(Experiment, to_json(config)) == config

A field `Annotated[Protocol, OneOf(kind)]` holds any registered choice of a kind (vdit.registry), a field
`tuple[Annotated[Protocol, OneOf(kind)], ...]` several. JSON names the choice: {"kind": "folder", "path": "videos"}.
Overrides name it, set its fields, or both; a newly named choice has the defaults of its class:

    apply_overrides(config, ["data.source=folder", "data.source.path=videos", "evaluators=a,b", "evaluators.b.every=9"])

Every error is a ConfigError of one line that names the key, the value and the rule, and for an
unknown key the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import json
import math
import numbers
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from vdit import registry
from vdit.errors import ConfigError
from vdit.paths import parse_json
from vdit.registry import KIND, OneOf

T = TypeVar("T")

_NONE_WORDS = ("none", "null")
_BOOL_WORDS = {"true": True, "false": False}
# Text that fits several members of a union takes the narrowest one; str takes anything, so comes last.
_NARROWEST_FIRST = (bool, int, float, str)
_WHOLE = None  # in a tree of overrides: the key of the text that sets a field as a whole


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON values: nested configs become dicts, tuples become lists, choices name their kind."""
    return {name: _plain(getattr(config, name), annotation, name)
            for name, annotation in _annotations(type(config)).items()}  # fmt: skip


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """Builds `cls` from the output of `to_dict`. Left-out fields take their defaults; unknown ones raise."""
    return _from_mapping(cls, data, "")


def to_json(config: Any) -> str:
    """The config as indented JSON."""
    return json.dumps(to_dict(config), indent=2)


def from_json(cls: type[T], text: str) -> T:
    """The inverse of `to_json`."""
    return from_dict(cls, parse_json(text, name=cls.__name__, error=ConfigError))


def apply_overrides(config: T, overrides: Iterable[str]) -> T:
    """A copy of `config` with `key=value` texts applied; types come from the annotations.

    All overrides are applied at once, so that a rule over two fields (width divisible by heads) is
    checked only on the final values. A key given twice takes its last value. A nested config that is
    None is built from its defaults when one of its fields is set.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {override!r} is not of the form key=value, as in backbone.depth=4")
        node = tree
        for name in key.strip().split("."):
            node = node.setdefault(name, {})
        node[_WHOLE] = text.strip()
    return _override(config, tree, "")


def flatten(config: Any) -> dict[str, Any]:
    """Dotted key -> value of every leaf of a config, or of the dict that `to_dict` makes of one."""
    data = config if isinstance(config, Mapping) else to_dict(config)
    leaves: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            leaves |= {f"{name}.{key}": leaf for key, leaf in flatten(value).items()}
        else:
            leaves[name] = _plain(value)
    return leaves


def diff(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value in a, value in b) where two configs (or dicts of them) differ.

    A key that one side lacks counts as None there, so a checkpoint made before a field existed can
    still be compared.
    """
    left, right = flatten(a), flatten(b)
    pairs = {key: (left.get(key), right.get(key)) for key in [*left, *(k for k in right if k not in left)]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def describe(config: Any) -> list[tuple[str, str, Any]]:
    """(dotted key, type in words, value) of every leaf, for help texts."""
    rows = []
    for name, annotation in _annotations(type(config)).items():
        value = getattr(config, name)
        one, several = _kind_of(annotation), _kind_of_items(annotation)
        if several is not None:
            chosen = {registry.name_of(several, item): item for item in value}
            rows.append((name, _type_name(annotation), tuple(chosen)))
            rows += [(f"{name}.{choice}.{key}", kind, leaf)
                     for choice, item in chosen.items() for key, kind, leaf in describe(item)]  # fmt: skip
        elif dataclasses.is_dataclass(value):
            if one is not None:
                rows.append((name, _type_name(annotation), registry.name_of(one, value)))
            rows += [(f"{name}.{key}", kind, leaf) for key, kind, leaf in describe(value)]
        else:
            rows.append((name, _type_name(annotation), value))
    return rows


def load_config(source: str | Path | types.ModuleType) -> Any:
    """The config that an experiment defines: `source` is its file, its dotted name, or its module.

    An experiment is a Python file with a function `config()` that returns a config. Its fields are
    type-checked, so that a mistake in the file is named before anything is built from it.
    """
    module = source if isinstance(source, types.ModuleType) else load_experiment(source)
    name = getattr(module, "__file__", None) or module.__name__
    make = getattr(module, "config", None)
    if not callable(make):
        raise ConfigError(f"{name}: an experiment must define a function config() that returns a config")
    config = _run(make, name)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        returned = type(config).__name__
        raise ConfigError(f"{name}: config() returned {returned}, it must return a config dataclass")
    return _with_path(name, lambda: from_dict(type(config), to_dict(config)))


def load_experiment(source: str | Path) -> types.ModuleType:
    """Imports an experiment by file path (ends in .py) or by dotted module name."""
    path = Path(source)
    if path.suffix == ".py":
        return _load_file(path)
    try:
        return importlib.import_module(str(source))
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{source}: neither an experiment file (*.py) nor a module that can be imported ({error})"
        ) from None


_plugins: list[str] = []


def load_plugin(source: str) -> types.ModuleType:
    """Imports a user's module, which registers choices (vdit.registry): `--plugin`.

    Args:
        source: a dotted module name, found in the current folder too, or a path that ends in .py.

    Raises:
        ConfigError: there is no such module, or its code raises; the message names the line.
    """
    path = Path(source)
    if path.suffix == ".py":
        module = _load_file(path.absolute())
    else:
        here = str(Path.cwd())
        added = [] if here in sys.path else [here]
        sys.path[:0] = added
        try:
            found = importlib.util.find_spec(source)
            if found is None:
                raise ConfigError(f"--plugin {source}: no such module; name one that can be imported, or a .py file")
            module = _run(lambda: importlib.import_module(source), found.origin or source)
        except (ImportError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"--plugin {source}: cannot be imported ({error})") from None
        finally:
            for entry in added:
                sys.path.remove(entry)
    if source not in _plugins:
        _plugins.append(source)
    return module


def plugins() -> tuple[str, ...]:
    """What `load_plugin` has imported so far, for processes that this one starts."""
    return tuple(_plugins)


def _load_file(path: Path) -> types.ModuleType:
    if not path.is_file():
        there = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such experiment file{_nearest(path.name, there)}")
    name = f"vdit_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses defined in the file look their own module up to resolve annotations.
    sys.modules[name] = module
    try:
        _run(lambda: spec.loader.exec_module(module), str(path))
    except ConfigError:
        del sys.modules[name]
        raise
    return module


def _run(function, name: str) -> Any:
    """Calls a user's code; what it raises becomes one line with the place in the user's file."""
    try:
        return function()
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    except SyntaxError as error:
        raise ConfigError(f"{name}: line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
        place = f"line {frames[-1].lineno}: " if frames else ""
        raise ConfigError(f"{name}: {place}{type(error).__name__}: {error}") from error


# Plain values from and to dataclasses.


def _fields(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in _fields(cls)}


def _kind_of(annotation: Any) -> str | None:
    """The kind of the choice that a field holds, if it holds one: Annotated[..., OneOf(kind)], with or without None."""
    for member in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(member) is Annotated:
            return next((mark.kind for mark in member.__metadata__ if isinstance(mark, OneOf)), None)
    return None


def _kind_of_items(annotation: Any) -> str | None:
    """The kind of the choices in a tuple, if a field holds several: tuple[Annotated[..., OneOf(kind)], ...]."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _kind_of(arguments[0])
    return None


def _plain(value: Any, annotation: Any = None, path: str = "") -> Any:
    kind = _kind_of_items(annotation)
    if kind is not None:
        return [_plain(item, typing.get_args(annotation)[0], f"{path}[{i}]") for i, item in enumerate(value)]
    kind = _kind_of(annotation)
    if kind is not None and value is not None:
        return {KIND: _with_path(path, lambda: registry.name_of(kind, value)), **to_dict(value)}
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _with_path(path: str, build) -> Any:
    """Calls `build`; a rule that a class checks on construction does not know its key, so it is added."""
    try:
        return build()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from None


def _from_mapping(cls: type[T], data: Any, path: str) -> T:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path or cls.__name__}: {data!r} is not a mapping of {cls.__name__}'s fields")
    annotations = _annotations(cls)
    for name in data:
        _check_known(cls, str(name), path)
    _check_required(cls, data, path)
    values = {name: _convert(annotations[name], value, _join(path, name)) for name, value in data.items()}
    return _with_path(path, lambda: cls(**values))


def _check_required(cls: type, data: Mapping[str, Any], path: str) -> None:
    for field in _fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in data:
            raise ConfigError(f"{_join(path, field.name)}: is missing, {cls.__name__} has no default for it")


def _override(config: T, tree: dict[str, Any], path: str) -> T:
    values = _override_values(type(config), config, tree, path)
    return _with_path(path, lambda: dataclasses.replace(config, **values))


def _override_values(cls: type, config: Any, tree: dict[str, Any], path: str) -> dict[str, Any]:
    """The fields that overrides set. config: what they change; None for the defaults of `cls`."""
    annotations, values = _annotations(cls), {}
    for name, item in tree.items():
        _check_known(cls, name, path)
        current = _default(cls, name) if config is None else getattr(config, name)
        values[name] = _override_field(annotations[name], current, item, _join(path, name))
    return values


def _default(cls: type, name: str) -> Any:
    """The default of a field; None where it has none."""
    field = next(field for field in _fields(cls) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _override_field(annotation: Any, current: Any, item: dict[str, Any], key: str) -> Any:
    """A field's new value. item: what is said of it as a whole (under _WHOLE), and of its fields."""
    whole, inside = item.get(_WHOLE), {name: value for name, value in item.items() if name != _WHOLE}
    if (kind := _kind_of_items(annotation)) is not None:
        return _override_choices(kind, current or (), whole, inside, key)
    if (kind := _kind_of(annotation)) is not None:
        optional = type(None) in typing.get_args(annotation)
        if not (optional and whole is not None and whole.lower() in _NONE_WORDS):
            return _override_choice(kind, current, whole, inside, key)
    if whole is not None and inside:
        raise ConfigError(f"{key}: is set as a whole and by its fields; give one or the other")
    if not inside:
        return None if kind is not None else _parse(annotation, whole, key)
    nested = _nested_class(annotation)
    if nested is None:
        child = _join(key, next(iter(inside)))
        raise ConfigError(f"{child}: {key} is of type {_type_name(annotation)}, it has no fields")
    return _override(current if current is not None else _from_mapping(nested, {}, key), inside, key)


def _override_choice(kind: str, current: Any, whole: str | None, inside: dict[str, Any], key: str) -> Any:
    """A choice with overrides: the one that is named, or else the current one, with its fields set."""
    if whole is None and current is None:
        known = ", ".join(registry.names(kind))
        raise ConfigError(f"{_join(key, next(iter(inside)))}: {key} is none; choose one, as in {key}=... ({known})")
    cls = type(current) if whole is None else _with_path(key, lambda: registry.get(kind, _unquote(whole)))
    base = current if type(current) is cls else None  # a new choice begins with the defaults of its class
    values = _override_values(cls, base, inside, key)
    if base is not None:
        return _with_path(key, lambda: dataclasses.replace(base, **values))
    _check_required(cls, values, key)
    return _with_path(key, lambda: cls(**values))


def _override_choices(kind: str, current: Any, whole: str | None, inside: dict[str, Any], key: str) -> tuple[Any, ...]:
    """Several choices, each reached by its name: `evaluators=loss,samples`, `evaluators.loss.every=100`."""
    before = {registry.name_of(kind, item): item for item in current}
    if whole is None and len(before) < len(current):
        raise ConfigError(f"{key}: has one choice twice, so that its fields cannot be told apart; set them in Python")
    empty = whole is not None and whole.lower() in _NONE_WORDS
    chosen = list(before) if whole is None else [] if empty else [_unquote(name) for name in _split(whole)]
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"{key}: {whole!r} names a choice twice")
    stray = next((name for name in inside if name not in chosen), None)
    if stray is not None:
        known = ", ".join(chosen) or "none is chosen"
        raise ConfigError(f"{_join(key, stray)}: {stray!r} is not among {key} ({known}); "
                          f"name it there first, as in {key}={','.join([*chosen, stray])}")  # fmt: skip
    fields = {name: {k: v for k, v in item.items() if k != _WHOLE} for name, item in inside.items()}
    bare = next((name for name, item in inside.items() if _WHOLE in item), None)
    if bare is not None:
        raise ConfigError(f"{_join(key, bare)}: set one of its fields, as in {key}.{bare}.KEY=VALUE")
    return tuple(_override_choice(kind, before.get(name), name, fields.get(name, {}), _join(key, name))
                 for name in chosen)  # fmt: skip


def _convert(annotation: Any, value: Any, path: str) -> Any:
    """Checks a plain value against an annotation, and gives it in the annotation's type."""
    if typing.get_origin(annotation) is Annotated:
        return _convert_choice(_kind_of(annotation), value, path)
    if dataclasses.is_dataclass(annotation):
        return _from_mapping(annotation, value, path)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        exact = [member for member in arguments if type(value) is member]
        return _first_that_fits(_convert, exact or _union_members(annotation), annotation, value, path)
    if origin is Literal:
        if any(value == option and type(value) is type(option) for option in arguments):
            return value
        raise _not_a_choice(value, arguments, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong_type(annotation, value, path)
        members = _tuple_members(annotation, value, path)
        return tuple(_convert(m, item, f"{path}[{i}]") for i, (m, item) in enumerate(zip(members, value)))
    return _convert_scalar(annotation, value, path)


def _convert_choice(kind: str, value: Any, path: str) -> Any:
    """A choice from {"kind": its name, ...its fields}."""
    if not isinstance(value, Mapping) or not isinstance(value.get(KIND), str):
        raise ConfigError(f'{path}: {value!r} names no {kind}: give {{"{KIND}": "...", ...}}')
    cls = _with_path(path, lambda: registry.get(kind, value[KIND]))
    return _from_mapping(cls, {name: item for name, item in value.items() if name != KIND}, path)


def _convert_scalar(annotation: Any, value: Any, path: str) -> Any:
    is_bool = isinstance(value, bool)
    if annotation is type(None) and value is None:
        return None
    if annotation in (bool, str) and isinstance(value, annotation):
        return value
    if annotation is int and isinstance(value, numbers.Integral) and not is_bool:
        return int(value)
    if annotation is float and isinstance(value, numbers.Real) and not is_bool:
        if math.isnan(value):
            raise ConfigError(f"{path}: {value!r} is not a number to set a config to")
        return float(value)
    if annotation not in (bool, str, int, float, type(None)):
        raise TypeError(f"{path}: a config cannot hold a field of type {annotation}")
    raise _wrong_type(annotation, value, path)


def _parse(annotation: Any, text: str, path: str) -> Any:
    """Reads the text of an override as the annotation's type."""
    if dataclasses.is_dataclass(annotation):
        example = next(iter(_annotations(annotation)))
        raise ConfigError(f"{path}: {text!r} cannot stand for a whole {annotation.__name__}; "
                          f"set its fields, as in {path}.{example}=...")
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and text.lower() in _NONE_WORDS:
            return None
        return _first_that_fits(_parse, _union_members(annotation), annotation, text, path)
    if origin is Literal:
        for option in arguments:
            if _unquote(text) == str(option):
                return option
        raise _not_a_choice(text, arguments, path)
    if origin is tuple:
        items = _split(text)
        members = _tuple_members(annotation, items, path)
        return tuple(_parse(m, item, f"{path}[{i}]") for i, (m, item) in enumerate(zip(members, items)))
    if annotation is str:
        return _unquote(text)
    if annotation is bool:
        value = _BOOL_WORDS.get(text.lower(), text)
    else:
        try:
            value = annotation(text) if annotation in (int, float) else text
        except ValueError:
            value = text
    return _convert_scalar(annotation, value, path)


def _first_that_fits(read, members: list[Any], annotation: Any, value: Any, path: str) -> Any:
    failures = []
    for member in members:
        try:
            return read(member, value, path)
        except ConfigError as error:
            failures.append(error)
    # With one real alternative to None its own message is the more telling one.
    raise failures[0] if len(failures) == 1 else _wrong_type(annotation, value, path)


def _union_members(annotation: Any) -> list[Any]:
    members = [m for m in typing.get_args(annotation) if m is not type(None)]
    if sum(map(dataclasses.is_dataclass, members)) > 1:
        raise TypeError(f"a config field cannot be one of several config classes: {annotation}")
    rank = {kind: i for i, kind in enumerate(_NARROWEST_FIRST)}
    return sorted(members, key=lambda member: rank.get(member, 2.5))


def _tuple_members(annotation: Any, items: Any, path: str) -> list[Any]:
    arguments = typing.get_args(annotation)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return [arguments[0]] * len(items)
    if len(items) != len(arguments):
        shown = ",".join(map(str, items))
        wanted = f"{_type_name(annotation)}: it needs {len(arguments)} values"
        raise ConfigError(f"{path}: ({shown}) is not a {wanted}")
    return list(arguments)


def _split(text: str) -> list[str]:
    """Splits "(1,(2,3))" or "1,2" at the outermost commas; "" and "()" are empty, "4" is one value."""
    if text[:1] + text[-1:] in ("()", "[]") and _closes_at_end(text):
        text = text[1:-1]
    items, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            items.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*items, last] if last else items


def _closes_at_end(text: str) -> bool:
    """Whether the first bracket is closed by the last one, as in "(1,2)" and unlike "(1,2),(3,4)"."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if depth == 0:
            return i == len(text) - 1
    return False


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


# Messages.


def _nested_class(annotation: Any) -> type | None:
    members = [annotation, *typing.get_args(annotation)]
    return next((m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)), None)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is Annotated:
        return " | ".join(registry.names(_kind_of(annotation)))
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        inside = ", ".join("..." if argument is Ellipsis else _type_name(argument) for argument in arguments)
        return f"tuple[{inside}]"
    return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _wrong_type(annotation: Any, value: Any, path: str) -> ConfigError:
    return ConfigError(f"{path}: {value!r} is not of type {_type_name(annotation)}")


def _not_a_choice(value: Any, options: tuple[Any, ...], path: str) -> ConfigError:
    known = ", ".join(map(str, options))
    return ConfigError(f"{path}: {value!r} is not one of {known}{_nearest(str(value), map(str, options))}")


def _check_known(cls: type, name: str, path: str) -> None:
    known = list(_annotations(cls))
    if name in known:
        return
    hint = _deeper(cls, name, path) or _nearest(name, known, path)
    # Without a near name the list of all names is the next best help.
    hint = hint or f" (its keys: {', '.join(known)})"
    raise ConfigError(f"{_join(path, name)}: unknown key of {cls.__name__}{hint}")


def _deeper(cls: type, name: str, path: str) -> str:
    """The keys of this very name in the configs inside of `cls`."""
    inside = {parent: _nested_class(annotation) for parent, annotation in _annotations(cls).items()}
    for parent, annotation in _annotations(cls).items():
        if _kind_of_items(annotation) is None and _kind_of(annotation) is not None:
            chosen = _default(cls, parent)  # the usual choice: which one it is now is not known here
            inside[parent] = None if chosen is None else type(chosen)
    found = [parent for parent, nested in inside.items() if nested is not None and name in _annotations(nested)]
    return f"; nearest: {' or '.join(f'{_join(path, parent)}.{name}' for parent in found)}" if found else ""


def _nearest(name: str, known: Iterable[str], path: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; nearest: {_join(path, near[0])}" if near else ""
