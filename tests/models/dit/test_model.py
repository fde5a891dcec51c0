"""Properties of the DiT on packed rows: packing changes nothing, and nothing crosses clips."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.dit.inputs import as_row, model_of, predict
from vdit.errors import ShapeError
from vdit.models.dit.config import DiTConfig, preset

CONFIGS = {
    "ours": DiTConfig(in_channels=3, width=32, depth=2, heads=2, text_pool=True),
    "wan": DiTConfig(in_channels=3, width=32, depth=2, heads=2, qk_norm="full", text_pool=False),
    "dit": DiTConfig(
        in_channels=3, width=32, depth=2, heads=2, modulation="block", position="sincos", qk_norm="none",
        text="none", classes=5, learn_variance=True,
    ),
}  # fmt: skip
CLIPS = [(1, 2, 2), (3, 2, 1), (2, 1, 3)]  # latent frames, rows, columns of tokens
TEXTS = [2, 4, 1]


def make_row(rng, clips, texts, width_text=8, padding=0):
    """A row (batch of one) of the given clips, with tokens, captions and labels drawn at random."""
    position, segment_ids, frame_index, frame_segment_ids, text_segment_ids, first = [], [], [], [], [], 0
    for i, (t, h, w) in enumerate(clips, start=1):
        grid = np.stack(np.meshgrid(range(t), range(h), range(w), indexing="ij"), -1).reshape(-1, 3)
        position.append(grid)
        segment_ids += [i] * len(grid)
        frame_index += list(first + grid[:, 0])
        frame_segment_ids += [i] * t
        text_segment_ids += [i] * texts[i - 1]
        first += t
    n = len(segment_ids)
    position = np.pad(np.concatenate(position), ((0, padding), (0, 0)))
    return {
        "values": rng.normal(size=(1, n + padding, 12)).astype(np.float32),
        "position": position[None],
        "segment_ids": np.pad(segment_ids, (0, padding))[None],
        "frame_index": np.pad(frame_index, (0, padding))[None],
        "frame_segment_ids": np.array(frame_segment_ids)[None],
        "time": rng.uniform(0, 1000, (1, len(frame_segment_ids))).astype(np.float32),
        "text": rng.normal(size=(1, sum(texts), width_text)).astype(np.float32),
        "text_segment_ids": np.array(text_segment_ids)[None],
        "label": np.arange(1, len(clips) + 1)[None],
    }


def pick(row, i):
    """Clip i (from 1) of a row, alone, as a row of its own."""
    tokens, slots, texts = row["segment_ids"][0] == i, row["frame_segment_ids"][0] == i, row["text_segment_ids"][0] == i
    out = {k: row[k][:, tokens] for k in ("values", "position", "segment_ids", "frame_index")}
    out |= {k: row[k][:, slots] for k in ("frame_segment_ids", "time")}
    out |= {k: row[k][:, texts] for k in ("text", "text_segment_ids")}
    out["frame_index"] = out["frame_index"] - np.flatnonzero(slots)[0]
    out |= {k: np.ones_like(out[k]) for k in ("segment_ids", "frame_segment_ids", "text_segment_ids")}
    return out | {"label": row["label"][:, i - 1 : i]}


def make(name):
    """A model and parameters of order one everywhere (at the start gates are zero and hide everything)."""
    model = model_of(CONFIGS[name])
    row = make_row(np.random.default_rng(0), CLIPS, TEXTS)
    params = nn.meta.unbox(jax.jit(lambda key, row: model.init(key, *as_row(row)))(jax.random.key(0), row))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    scale = lambda x: 0.3 if x.ndim < 2 else 1.5 / np.sqrt(x.shape[-2])  # noqa: E731
    leaves = [x + scale(x) * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return model, jax.tree.unflatten(tree, leaves)


@pytest.fixture(scope="module", params=list(CONFIGS))
def model_params(request):
    return make(request.param)


def test_packed_equals_separate(model_params):
    model, params = model_params
    row = make_row(np.random.default_rng(2), CLIPS, TEXTS, padding=3)
    weight = np.random.default_rng(3).normal(size=(1, row["values"].shape[1], 1)).astype(np.float32)
    weight *= row["segment_ids"][..., None] > 0

    def loss(params, row, weight):
        out = predict(model, params, row)
        return jnp.sum(out * weight), out

    value_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, packed), packed_grad = value_grad(params, row, weight)
    separate_grad = jax.tree.map(jnp.zeros_like, packed_grad)
    for i in range(1, len(CLIPS) + 1):
        mine = row["segment_ids"][0] == i
        (_, alone), grad = value_grad(params, pick(row, i), weight[:, mine])
        np.testing.assert_allclose(packed[:, mine], alone, atol=1e-5, rtol=1e-5)
        separate_grad = jax.tree.map(jnp.add, separate_grad, grad)
    for a, b in zip(jax.tree.leaves(packed_grad), jax.tree.leaves(separate_grad)):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()), rtol=1e-4)
    assert max(float(np.abs(g).max()) for g in jax.tree.leaves(packed_grad)) > 1e-3


def test_nothing_crosses_clips(model_params):
    """The gradient of one clip's output with respect to the other clips' inputs is exactly zero."""
    model, params = model_params
    row = make_row(np.random.default_rng(4), CLIPS, TEXTS, padding=2)
    inputs = {k: jnp.asarray(row[k]) for k in ("values", "time", "text")}

    @jax.jit
    def gradients(of_clip):
        mine = (row["segment_ids"] == of_clip)[..., None]
        return jax.grad(lambda x: jnp.sum((predict(model, params, {**row, **x}) * mine) ** 2))(inputs)

    owner = {"values": row["segment_ids"], "time": row["frame_segment_ids"], "text": row["text_segment_ids"]}
    for i in range(1, len(CLIPS) + 1):
        for name, grad in gradients(i).items():
            grad = np.abs(grad).reshape(*owner[name].shape, -1).max(-1)
            assert np.all(grad[owner[name] != i] == 0), f"{name} of other clips reaches clip {i}"
            if name != "text" or model.config.text == "cross":
                assert grad[owner[name] == i].max() > 0, f"{name} of clip {i} does not reach it"


def test_remat_and_unrolled_blocks_give_the_same(model_params):
    model, params = model_params
    row = make_row(np.random.default_rng(5), CLIPS, TEXTS)
    run = lambda model, params: jax.jit(lambda params, row: predict(model, params, row))(params, row)  # noqa: E731
    want = run(model, params)
    for remat in ("full", "dots"):
        other = model_of(dataclasses.replace(model.config, remat=remat))
        np.testing.assert_allclose(run(other, params), want, atol=1e-5)
    unrolled = {k: v for k, v in params["params"].items() if k != "blocks"}
    for i in range(model.config.depth):
        unrolled[f"block_{i}"] = jax.tree.map(lambda x, i=i: x[i], params["params"]["blocks"])
    other = model_of(dataclasses.replace(model.config, scan=False))
    ask = lambda model: jax.jit(lambda params: model.apply(params, *as_row(row), return_hidden=True))  # noqa: E731
    output, scanned = ask(other)({"params": unrolled}), ask(model)(params)
    np.testing.assert_allclose(output.prediction, want, atol=1e-5)
    np.testing.assert_allclose(output.hidden, scanned.hidden, atol=1e-5)
    depth = {**unrolled, "block_0": jax.tree.map(jnp.zeros_like, unrolled["block_0"])}
    first = ask(other)({"params": depth}).hidden[0]  # a block of zeros adds nothing, so the next ones alone change it
    assert output.hidden.shape == (model.config.depth, *row["segment_ids"].shape, model.config.width)
    assert np.abs(output.hidden[0] - first).max() > 0.1
    assert np.abs(np.diff(output.hidden, axis=0)).max(axis=(1, 2, 3)).min() > 0.1


def test_at_the_start_a_dit_predicts_zero():
    row = make_row(np.random.default_rng(0), CLIPS, TEXTS)
    for config in CONFIGS.values():
        model = model_of(config)
        out, _ = jax.jit(lambda row, model=model: model.init_with_output(jax.random.key(0), *as_row(row)))(row)
        assert not np.any(out.prediction)


def test_sizes_are_those_of_the_paper():
    """Parameters of DiT-XL/2 and FLOPs of S/2 to XL/2 at 256 px (Peebles and Xie 2023, tables 1 and 4)."""
    like = {
        "in_channels": 4, "modulation": "block", "position": "sincos", "qk_norm": "none",
        "text": "none", "classes": 1000, "learn_variance": True,
    }  # fmt: skip
    for name, gmacs in {"S": 6.06, "B": 23.01, "L": 80.71, "XL": 118.64}.items():
        config = preset(name, **like)
        assert config.flops(256, 256) / 2e9 == pytest.approx(gmacs, rel=0.02)
    row = {k: jax.ShapeDtypeStruct((1, *s), jnp.float32 if k in ("values", "time") else jnp.int32) for k, s in {
        "values": (256, 16), "time": (1,), "position": (256, 3), "segment_ids": (256,), "frame_index": (256,),
        "frame_segment_ids": (1,), "label": (1,),
    }.items()}  # fmt: skip
    shapes = jax.eval_shape(lambda row: model_of(config).init(jax.random.key(0), *as_row(row)), row)
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count == pytest.approx(675e6, rel=0.005)


@pytest.mark.parametrize("name", ["condition", "image", "text"])
def test_inputs_that_the_config_asks_for_must_be_there(name):
    config = dataclasses.replace(CONFIGS["wan"], condition_channels=2, image_width=6, text_width=8)
    row = make_row(np.random.default_rng(0), CLIPS, TEXTS)
    row |= {
        "condition": np.zeros((*row["segment_ids"].shape, 8)),
        "image": np.zeros((1, 3, 6)),
        "image_segment_ids": np.ones((1, 3)),
    }
    init = lambda row: jax.eval_shape(lambda: model_of(config).init(jax.random.key(0), *as_row(row)))  # noqa: E731
    init(row)
    for wrong in (None, np.zeros((*row[name].shape[:2], 5))):
        with pytest.raises(ShapeError, match=name):
            init({**row, name: wrong})


def test_flops_count_images_and_conditions():
    plain, image = (preset(f"wan2.1-{name}-14b") for name in ("t2v", "i2v"))
    extra = image.flops(100, 100, 512, 257) - plain.flops(100, 100, 512)
    assert extra == 2 * 100 * (40 * 2 * 257 * 5120 + 5120 * image.condition_values)
