"""The arrays of a run without their values: what its programs are lowered with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vdit.dist.rules import batch_shardings, replicated
from vdit.experiment.experiment import Experiment
from vdit.sampling.canvas import Prompts
from vdit.types import PyTree, Row


def abstract_rows(experiment: Experiment, *, rows: int | None = None) -> Row:
    """A global batch of packed rows of the experiment's shape: Row of ShapeDtypeStructs [b ...].

    rows: b; that of `dit_train` if None. With accumulation a, [a b/a ...].
    """
    data, train = experiment.data, experiment.dit_train
    b = train.batch_size if rows is None else rows
    a = train.accumulation
    lead = (b,) if a == 1 or rows is not None else (a, b // a)
    ints = lambda *shape: jax.ShapeDtypeStruct((*lead, *shape), jnp.int32)  # noqa: E731
    floats = lambda *shape: jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)  # noqa: E731
    actions = experiment.dit.action_width
    return Row(
        values=floats(data.row_tokens, experiment.dit.token_values),
        position=ints(data.row_tokens, 3),
        segment_ids=ints(data.row_tokens),
        frame_index=ints(data.row_tokens),
        frame_segment_ids=ints(data.row_slots),
        text=ints(data.row_text),
        text_segment_ids=ints(data.row_text),
        text_position=ints(data.row_text),
        label=ints(data.row_clips),
        action=floats(data.row_slots, actions) if actions else None,
    )


def abstract_prompts(experiment: Experiment, count: int, mesh: Mesh) -> Prompts:
    """`count` tokenised prompts, shared out over the mesh as vdit.generate does."""
    length = experiment.text.max_length
    prompts = Prompts(
        ids=jax.ShapeDtypeStruct((count, length), jnp.int32), length=jax.ShapeDtypeStruct((count,), jnp.int32)
    )
    return placed(prompts, batch_shardings(mesh, prompts))


def abstract_key(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """A typed random key, on every device."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))


def abstract_statistics(experiment: Experiment, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Mean and deviation of the latents, on every device."""
    channels = (experiment.vae.latent_channels,)
    return {name: jax.ShapeDtypeStruct(channels, jnp.float32, sharding=replicated(mesh)) for name in ("mean", "std")}


def placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """The tree with a sharding on each leaf."""
    struct = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)  # noqa: E731
    return jax.tree.map(struct, tree, shardings)


def held(tree: PyTree) -> int:
    """Bytes of a tree of placed arrays, or of their shapes, on one device."""
    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def leaf_bytes(leaf) -> int:
    """Bytes of one placed array on one device."""
    shape = leaf.sharding.shard_shape(leaf.shape)
    count = 1
    for size in shape:
        count *= size
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        key = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), leaf.dtype))
        return count * key.size * key.dtype.itemsize
    return count * jnp.dtype(leaf.dtype).itemsize
