"""Flat inputs of a transformer, as tests draw them, in the form that it takes them."""

import jax.numpy as jnp
import numpy as np

from vdit.models.dit.model import DiT
from vdit.types import Row

AXES = {"label": "clip", "action": "frame", "condition": "token", "image": "sequence"}
FIELDS = ("values", "position", "segment_ids", "frame_index", "frame_segment_ids")


def model_of(config):
    """The transformer of a config, told what the config declares."""
    return DiT(config, config.conditions)


def as_row(inputs):
    """(row, time, text) of a flat dict: "image" [b m e] lies beside "image_segment_ids", one image for each clip."""
    cond = {name: inputs[name] for name in AXES if inputs.get(name) is not None}
    if "image" in cond:
        clips = int(np.max(inputs["image_segment_ids"]))
        b, m, e = cond["image"].shape
        cond["image"] = cond["image"].reshape(b, clips, m // clips, e)
    text, ids = inputs.get("text"), inputs.get("text_segment_ids")
    ids = jnp.zeros((len(inputs["values"]), 1), jnp.int32) if ids is None else ids
    row = Row(
        **{name: inputs[name] for name in FIELDS}, text=jnp.zeros(ids.shape, jnp.int32), text_segment_ids=ids,
        text_position=jnp.zeros(ids.shape, jnp.int32), cond=cond,
        cond_axes=tuple(sorted((name, AXES[name]) for name in cond)),
    )  # fmt: skip
    return row, inputs["time"], text


def predict(model, params, inputs, **more):
    """The model's prediction for flat inputs."""
    return model.apply(params, *as_row(inputs), **more).prediction
