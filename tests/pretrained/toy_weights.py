"""A made-up family with every kind of rule: stacked layers, chunks, a fused tensor, a copy, a reshape."""

from __future__ import annotations

import jax
import numpy as np

from vdit.pretrained.weights import LINEAR, Part, Rule, linear, reshaped, rule

LAYERS = 3
SHAPES = {
    "embed/table": (8, 4),
    "blocks/q/kernel": (LAYERS, 4, 8),
    "blocks/q/bias": (LAYERS, 8),
    "blocks/kv/kernel": (LAYERS, 4, 16),
    "head/kernel": (4, 8),
    "head/bias": (8,),
    "scale": (1, 4),
    "gate/kernel": (4, 6),
    "skip/kernel": (4, 6),
}


def rules() -> list[Rule]:
    found = [rule("embed.weight", "embed/table", copies=("tied.weight",))]
    for i in range(LAYERS):
        found += linear(f"blocks.{i}.q", "blocks/q", layer=i)
        for j, name in enumerate("kv"):
            part = Part(path="blocks/kv/kernel", layer=i, chunk=(j, 2))
            found.append(Rule(name=f"blocks.{i}.{name}.weight", parts=(part,), layout=LINEAR))
    fused = tuple(Part(path=f"{name}/kernel") for name in ("gate", "skip"))
    found.append(Rule(name="gate_skip.weight", parts=fused, layout=LINEAR))
    return found + linear("head", "head") + [rule("scale", "scale", reshaped((4,), (1, 4)))]


def state(seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Their tensors by name."""
    random = np.random.default_rng(seed)
    tensors = {r.name: random.normal(size=r.shape(SHAPES)).astype(dtype) for r in rules()}
    return tensors | {"tied.weight": tensors["embed.weight"]}


def abstract(dtype=np.float32) -> dict:
    """Our parameters' shapes."""
    tree: dict = {}
    for path, shape in SHAPES.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = jax.ShapeDtypeStruct(shape, dtype)
    return tree
