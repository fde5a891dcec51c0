"""Weight maps: which tensor of a public checkpoint is which of our parameters, and back.

A family of models is a list of rules, one for each of its tensors. The same list loads, checks and exports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax

from vdit.reprs import short_repr
from vdit.types import Array


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How a tensor of theirs turns into an array of ours, and back: inverse functions, no rounding.

    Both use only what numpy and JAX arrays share (transpose, reshape, indexing), so shapes can be traced.
    """

    read: Callable[[Array], Array]
    write: Callable[[Array], Array]


SAME = Layout(read=lambda x: x, write=lambda x: x)
# torch's Linear [o i] and ours [i o]
LINEAR = Layout(read=lambda x: x.transpose(1, 0), write=lambda x: x.transpose(1, 0))
# torch's Conv3d [o i t h w] and ours [t h w i o]
CONV3D = Layout(read=lambda x: x.transpose(2, 3, 4, 1, 0), write=lambda x: x.transpose(4, 3, 0, 1, 2))
# torch's Conv2d [o i h w] and ours of one frame [1 h w i o]
CONV2D = Layout(read=lambda x: x.transpose(2, 3, 1, 0)[None], write=lambda x: x[0].transpose(3, 2, 0, 1))


def reshaped(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Layout:
    """The same values in the same order under another shape."""
    return Layout(read=lambda x: x.reshape(ours), write=lambda x: x.reshape(theirs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A parameter of ours, or a piece of one.

    path: keys of the parameter tree, "/"-joined: "blocks/attention/q/kernel".
    layer: index on the first axis, where layers are stacked (lax.scan); None for a whole parameter.
    chunk: (i, n): the i-th of n equal pieces of the last axis, where we hold as one what they hold apart.
    """

    path: str
    layer: int | None = None
    chunk: tuple[int, int] | None = None

    def index(self, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
        """Where this part lies in a parameter of `shape`."""
        place: list[int | slice] = [slice(None)] * len(shape)
        if self.layer is not None:
            place[0] = self.layer
        if self.chunk is not None:
            i, n = self.chunk
            size = shape[-1] // n
            place[-1] = slice(i * size, (i + 1) * size)
        return tuple(place)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of this part of a parameter of shape `whole`."""
        shape = list(whole)
        if self.chunk is not None:
            shape[-1] //= self.chunk[1]
        return tuple(shape if self.layer is None else shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One tensor of theirs.

    name: its name in their checkpoint.
    parts: what it holds of ours. Several, of one shape, where they hold as one what we hold apart (a fused
        query, key and value): equal pieces of its first axis, in this order.
    layout: between a piece and a part.
    copies: other tensors of theirs that hold the same numbers; loading checks that, exporting writes them.
    """

    name: str
    parts: tuple[Part, ...]
    layout: Layout = SAME
    copies: tuple[str, ...] = ()

    def read(self, tensor: Array) -> list[Array]:
        """Their tensor -> the values of each part."""
        pieces = [tensor] if len(self.parts) == 1 else _split(tensor, len(self.parts))
        return [self.layout.read(piece) for piece in pieces]

    def write(self, values: Sequence[Array], concatenate: Callable) -> Array:
        """The values of each part -> their tensor. concatenate: numpy's or JAX's."""
        pieces = [self.layout.write(value) for value in values]
        return pieces[0] if len(pieces) == 1 else concatenate(pieces, axis=0)

    def shape(self, ours: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of their tensor, given the shapes of our parameters by path."""
        part = self.parts[0]
        struct = jax.ShapeDtypeStruct(part.shape(ours[part.path]), "float32")
        first, *rest = jax.eval_shape(self.layout.write, struct).shape
        return (first * len(self.parts), *rest)


def rule(name: str, path: str, layout: Layout = SAME, *, layer: int | None = None, **options) -> Rule:
    """The common case: one tensor of theirs is one parameter of ours, or one layer of a stack."""
    return Rule(name=name, parts=(Part(path=path, layer=layer),), layout=layout, **options)


def linear(name: str, path: str, *, layer: int | None = None, bias: bool = True) -> list[Rule]:
    """torch's Linear `name` (.weight, .bias) is our Linear `path` (/kernel, /bias)."""
    rules = [rule(f"{name}.weight", f"{path}/kernel", LINEAR, layer=layer)]
    return rules + ([rule(f"{name}.bias", f"{path}/bias", layer=layer)] if bias else [])


def _split(tensor: Array, count: int) -> list[Array]:
    size = tensor.shape[0] // count
    return [tensor[i * size : (i + 1) * size] for i in range(count)]
