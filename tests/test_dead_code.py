"""Nothing in vdit is there for its own test alone: what nobody calls is dead, and the tested copy of a rule lies."""

import ast
import re

from tests.conftest import ROOT

USERS = ("vdit", "experiments", "tools", "data_pipelines")
PUBLIC = {"write_latents", "load_trees", "to_latent_grid", "TextModel"}  # for users: latents, checkpoints, doors
PUBLIC |= {"lm_preset", "lm_json", "generate", "train_lm_tokenizer", "open_lm"}
CALLED_BY_LIBRARIES = {"seekable", "get_all", "get_secondary_typestrs", "writelines"}  # zipfile, Orbax, print
MARKS = re.compile(r"dataclasses|functools|contextlib|jax|property|classmethod|staticmethod")  # others register it


def definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes of a file, and the public methods of its classes that stand on nothing else's."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node)
        if isinstance(node, ast.ClassDef) and not node.bases:
            found += [method for method in node.body if isinstance(method, ast.FunctionDef)
                      and not method.name.startswith("_")]  # fmt: skip
    return [node for node in found if not re.fullmatch(r"__\w+__", node.name)
            and all(MARKS.match(ast.unparse(mark)) for mark in node.decorator_list)]  # fmt: skip


def names_used(tree: ast.Module) -> set[str]:
    """Every name that a file speaks of: names, attributes, and strings that are names (getattr); no list of exports."""
    listed = {inner for node in tree.body if isinstance(node, ast.Assign)
              and re.match(r"__all__|_\w+ = \{", ast.unparse(node)) for inner in ast.walk(node)
              if isinstance(inner, ast.Constant)}  # fmt: skip
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used.add(node.id)
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in listed:
            used.add(node.value)
    return used


def test_what_vdit_defines_is_called_by_something_other_than_tests():
    trees = {path: ast.parse(path.read_text()) for folder in USERS for path in sorted((ROOT / folder).rglob("*.py"))}
    used = PUBLIC.union(CALLED_BY_LIBRARIES, *map(names_used, trees.values()))
    dead = [f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}" for path, tree in trees.items()
            if path.relative_to(ROOT).parts[0] == "vdit" for node in definitions(tree) if node.name not in used]
    assert not dead
