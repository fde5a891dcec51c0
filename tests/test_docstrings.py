"""What the public namespaces export is documented: read from the source, nothing is imported.

A function says what it does, its arguments (Args), what it gives back (Returns) and which errors it raises itself
(Raises). A dataclass says what its fields are. Entry points show an example.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

NAMESPACES = ("vdit", "vdit.models", "vdit.data", "vdit.diffusion", "vdit.sampling", "vdit.train", "vdit.experiment")
ENTRY_POINTS = {
    "load", "read_video", "write_video", "animate", "connect", "extend", "loop", "edit", "inpaint", "outpaint",
    "rollout", "Simulator", "Generator",
}  # fmt: skip


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(source(module).read_text())


def exported(module: str) -> dict[str, str]:
    """Name -> "module" or "module:its name there", of `from a import b` at the top and of a table {name: module}."""
    found = {}
    for node in tree(module).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vdit.") and node.module != "vdit.lazy":
            found |= {(alias.asname or alias.name): node.module for alias in node.names}
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and source(module).stem == "__init__":
            for key, value in zip(node.value.keys, node.value.values):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[key.value] = value.value if value.value.startswith("vdit") else f"{module}.{value.value}"
    return found


def definition(name: str, module: str) -> ast.FunctionDef | ast.ClassDef | None:
    """Where a function or class is defined, through modules that pass it on; None for other values."""
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    home, _, other = exported(module).get(name, "").partition(":")
    return definition(other or name, home) if home not in ("", module) and source(home).exists() else None


def public() -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Dotted name -> definition, of everything that the namespaces export."""
    found = {}
    for namespace in NAMESPACES:
        for name in exported(namespace):
            if not name.startswith("_") and (node := definition(name, namespace)) is not None:
                found[f"{namespace}.{name}"] = node
    return found


PUBLIC = public()


def missing(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """What a docstring lacks."""
    text = ast.get_docstring(node) or ""
    if not text:
        return ["a docstring"]
    lacks = []
    if isinstance(node, ast.ClassDef):
        is_data = any("dataclass" in ast.unparse(item) for item in node.decorator_list)
        fields = [item.target.id for item in node.body if isinstance(item, ast.AnnAssign)
                  and "ClassVar" not in ast.unparse(item.annotation)] if is_data else []  # fmt: skip
        unnamed = [name for name in fields if not name.startswith("_") and not re.search(rf"\b{name}\b", text)]
        lacks += [f"fields {', '.join(unnamed)}"] if unnamed else []
        return lacks + ["an example"] * (node.name in ENTRY_POINTS and "vdit." not in text)
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    said = _section(text, "Args")
    unnamed = [item.arg for item in arguments if not re.search(rf"^ +(\w+, )*{item.arg}(, \w+)*:", said, re.MULTILINE)]
    lacks += [f"Args: {', '.join(unnamed)}"] if unnamed else []
    gives = node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn")
    lacks += ["Returns"] if gives and not re.search(r"^(Returns|Yields):", text, re.M) else []
    raises = {ast.unparse(item.exc.func) for item in ast.walk(node)
              if isinstance(item, ast.Raise) and isinstance(item.exc, ast.Call)}  # fmt: skip
    untold = sorted(name for name in raises if name.endswith("Error") and name not in _section(text, "Raises"))
    lacks += [f"Raises: {', '.join(untold)}"] if untold else []
    return lacks + ["an example"] * (node.name in ENTRY_POINTS and not re.search("^Examples?:", text, re.M))


def _section(text: str, name: str) -> str:
    found = re.search(rf"^{name}:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
    return found[1] if found else ""


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_exported_name_is_there(namespace):
    """So that a definition that moves takes its line in the table with it."""
    gone = []
    for name, home in exported(namespace).items():
        module, _, other = home.partition(":")
        if source(module).exists() and definition(name, namespace) is None:
            assigned = {ast.unparse(target) for node in tree(module).body if isinstance(node, ast.Assign)
                        for target in node.targets}  # fmt: skip
            gone += [] if (other or name) in assigned | set(exported(module)) else [f"{name}: {home}"]
        elif not source(module).exists():
            gone.append(f"{name}: {home}")
    assert gone == []


def test_the_namespaces_export_what_a_user_needs():
    assert len(PUBLIC) > 80
    assert {"vdit.load", "vdit.data.LatentStore", "vdit.diffusion.Guidance"} <= set(PUBLIC)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_exports_are_explicit(namespace):
    """`__all__` names what there is, so that tab completion is documentation."""
    assigned = [ast.unparse(node.targets[0]) for node in tree(namespace).body if isinstance(node, ast.Assign)]
    assert "__all__" in assigned


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_what_is_exported_is_documented(name):
    assert missing(PUBLIC[name]) == []


@pytest.mark.parametrize(
    ("code", "lacks"),
    [
        ("def f(x): ...", ["a docstring"]),
        ('def f(x) -> int:\n    """Adds."""\n    raise ValueError("x")', ["Args: x", "Returns", "Raises: ValueError"]),
        ('def f(x) -> int:\n    """Adds.\n\n    Args:\n        x: any.\n\n    Returns:\n        More.\n    """', []),
        ('@dataclass\nclass C:\n    """Holds a.\n    """\n    a: int\n    b: int', ["fields b"]),
        ('def load(x):\n    """Loads.\n\n    Args:\n        x: a folder.\n    """', ["an example"]),
    ],
)
def test_a_gap_is_found(code, lacks):
    assert missing(ast.parse(code).body[0]) == lacks
