"""Weights through a map, for tests: the plainest thing that can work."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np

from vdit.pretrained.weights import Rule


def fill(rules: list[Rule], state: dict[str, np.ndarray]) -> dict:
    """Their state dict -> our parameters, a nested dict of NumPy arrays.

    Fails unless the rules use every tensor exactly once, fill every layer and chunk exactly once, and
    copies hold what they copy. Torch tensors are taken too.
    """
    state = {name: np.asarray(tensor) for name, tensor in state.items()}
    names = list(itertools.chain.from_iterable((rule.name, *rule.copies) for rule in rules))
    assert len(set(names)) == len(names), f"used twice: {sorted(n for n in set(names) if names.count(n) > 1)}"
    assert set(names) == set(state), f"unused {sorted(set(state) - set(names))}, absent {set(names) - set(state)}"
    pieces: dict[str, dict] = defaultdict(dict)
    for rule in rules:
        for name in rule.copies:
            np.testing.assert_array_equal(state[name], state[rule.name], err_msg=name)
        for part, value in zip(rule.parts, rule.read(state[rule.name]), strict=True):
            where = (part.layer, part.chunk)
            assert where not in pieces[part.path], f"{part.path} {where} is filled twice"
            pieces[part.path][where] = value
    tree: dict = {}
    for path, found in pieces.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = _whole(path, found)
    return tree


def empty(rules: list[Rule], params: dict) -> dict[str, np.ndarray]:
    """Our parameters -> their state dict, copies included: the inverse of fill."""
    state = {}
    for rule in rules:
        values = []
        for part in rule.parts:
            leaf = params
            for key in part.path.split("/"):
                leaf = leaf[key]
            leaf = np.asarray(leaf)
            values.append(leaf[part.index(leaf.shape)])
        for name in (rule.name, *rule.copies):
            state[name] = rule.write(values, np.concatenate)
    return state


def _whole(path: str, found: dict[tuple, np.ndarray]) -> np.ndarray:
    layers = sorted({layer for layer, _ in found}, key=lambda layer: -1 if layer is None else layer)
    if layers == [None]:
        return _chunks(path, {chunk: value for (_, chunk), value in found.items()})
    assert layers == list(range(len(layers))), f"{path}: layers {layers}"
    return np.stack([_chunks(path, {c: v for (at, c), v in found.items() if at == layer}) for layer in layers])


def _chunks(path: str, found: dict[tuple[int, int] | None, np.ndarray]) -> np.ndarray:
    if list(found) == [None]:
        return found[None]
    (count,) = {count for _, count in found}
    assert sorted(i for i, _ in found) == list(range(count)), f"{path}: chunks {sorted(found)}"
    return np.concatenate([found[i, count] for i in range(count)], axis=-1)
