"""LoRA files in the public layouts give diffusers' and PEFT's numbers, kept apart and merged, and go back."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.nn.test_linear import dequantise, sqnr
from tests.pretrained.load import empty, fill
from tests.pretrained.reference import enliven
from tests.pretrained.test_wan import IMAGE, SMALL, inputs_for, run, run_ours
from tests.tiny import lora_experiment, make_base
from vdit.checkpoint import Checkpointer
from vdit.dist.mesh import make_mesh
from vdit.errors import WeightsError
from vdit.models.dit.config import preset
from vdit.nn.lora import LoRA, LowRank, attach, detach, merge, without_lora
from vdit.nn.quantise import cast, quantise
from vdit.pretrained.lora import experts, lora_tensors, read_lora, write_lora, write_run
from vdit.pretrained.lora_layouts import METADATA
from vdit.pretrained.open import open_tensors
from vdit.pretrained.wan import diffusers_rules, wan_config, wan_json
from vdit.train.pretrained import pretrained_identity, split_trainable, trained_params
from vdit.train.state import plan_state
from vdit.train.workspace import Workspace

SHAPE = (2, 4, 6)
TARGETS = ("attention/q", "attention/out", "cross_attention/k", "cross_attention/v", "mlp/up", "mlp/down")


@pytest.fixture(scope="module")
def wan(torch):
    """(their small transformer, our config, our parameters, their inputs, our inputs)."""
    from diffusers import WanTransformer3DModel

    model = enliven(torch, WanTransformer3DModel(**SMALL))
    config = wan_config(dict(model.config))
    params = fill(diffusers_rules(config), {name: x.numpy() for name, x in model.state_dict().items()})
    theirs, ours = inputs_for(model, b=1, shape=SHAPE, texts=16)
    return model, config, jax.tree.map(jnp.asarray, params), theirs, ours


def lively(config, *, seed=0, rank=3, scale=0.5, layers=TARGETS) -> LoRA:
    """Additions of the size of what they are added to; some of another rank and scale."""
    rng = np.random.default_rng(seed)
    made = {}
    for i in range(config.depth):
        for j, layer in enumerate(layers):
            r = rank + (j == 1)
            size = config.hidden if layer == "mlp/down" else config.width
            features = config.hidden if layer == "mlp/up" else config.width
            a, b = rng.normal(size=(size, r)) / np.sqrt(size), rng.normal(size=(r, features)) / np.sqrt(r)
            made[f"block_{i}/{layer}"] = LowRank(
                a=a.astype(np.float32), b=b.astype(np.float32), scale=scale * (2 if j == 2 else 1)
            )
    return LoRA(layers=made)


def same(one: LoRA, other: LoRA) -> None:
    assert set(one.layers) == set(other.layers)
    assert set(one.differences) == set(other.differences)
    for name, low in one.layers.items():
        np.testing.assert_array_equal(low.a, other.layers[name].a)
        np.testing.assert_array_equal(low.b, other.layers[name].b)
        assert low.scale == pytest.approx(other.layers[name].scale)
    for name, x in one.differences.items():
        np.testing.assert_array_equal(x, other.differences[name])


@pytest.mark.parametrize("layout", ["diffusers", "original", "musubi"])
def test_the_reference_reads_what_is_written_and_gives_the_same_numbers(wan, torch, tmp_path, parity, layout):
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

    model, config, params, theirs, ours = wan
    targets = [f"{kind}/{part}" for kind in ("attention", "cross_attention") for part in ("q", "k", "v", "out")]
    lora = lively(config, layers=(*targets, "mlp/up", "mlp/down"))
    file = tmp_path / "lora.safetensors"
    write_lora(lora, config, file, layout)
    state, metadata = WanLoraLoaderMixin.lora_state_dict(str(file), return_lora_metadata=True)
    model.load_lora_adapter(state, adapter_name="one", metadata=metadata)
    try:
        with_lora = run(torch, model, theirs)
        model.set_adapters(["one"], [0.4])
        weaker = run(torch, model, theirs)
    finally:
        model.delete_adapters("one")
    plain = run(torch, model, theirs)
    assert np.abs(with_lora - plain).max() > 0.1, "the LoRA must matter"

    read = read_lora(open_tensors(file), config)
    same(read, lora)
    parity(f"Wan LoRA, {layout} layout", run_ours(config, attach(params, read), ours, SHAPE), with_lora)
    parity(f"Wan LoRA x 0.4, {layout} layout", run_ours(config, attach(params, read, 0.4), ours, SHAPE), weaker)
    if layout == "diffusers":
        parity("Wan LoRA merged", run_ours(config, merge(params, read), ours, SHAPE), with_lora)
        swapped = dict(read.layers)
        swapped["block_0/attention/q"], swapped["block_1/attention/q"] = (
            swapped["block_1/attention/q"], swapped["block_0/attention/q"])  # fmt: skip
        got = run_ours(config, attach(params, LoRA(layers=swapped)), ours, SHAPE)
        assert np.abs(got - with_lora.numpy()).max() > 0.01


def test_what_peft_saves_is_read(wan, torch, tmp_path, parity):
    """Rank and alpha by pattern, a bias in B, the metadata without a prefix."""
    from peft import LoraConfig

    model, config, params, theirs, ours = wan
    model.add_adapter(
        LoraConfig(
            r=4, lora_alpha=6, target_modules=["to_q", "to_out.0", "ffn.net.2"], lora_bias=True,
            rank_pattern={"blocks.1.attn1.to_q": 2}, alpha_pattern={"attn2.to_q": 3},
        ),
        adapter_name="saved",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    try:
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.save_lora_adapter(tmp_path, adapter_name="saved")
        want = run(torch, model, theirs)
    finally:
        model.delete_adapters("saved")
    (file,) = tmp_path.glob("*.safetensors")
    lora = read_lora(open_tensors(file), config)
    assert lora.layers["block_1/attention/q"].a.shape == (config.width, 2)
    parity("Wan LoRA with biases, as PEFT saves it", run_ours(config, merge(params, lora), ours, SHAPE), want)
    parity("Wan LoRA with biases, kept apart", run_ours(config, attach(params, lora), ours, SHAPE), want)


def test_two_at_once_are_their_sum(wan, torch, tmp_path, parity):
    model, config, params, theirs, ours = wan
    files = {"one": lively(config, seed=1), "two": lively(config, seed=2, rank=2, layers=TARGETS[:3])}
    for name, lora in files.items():
        write_lora(lora, config, tmp_path / f"{name}.safetensors")
        model.load_lora_adapter(str(tmp_path), weight_name=f"{name}.safetensors", adapter_name=name)
    try:
        model.set_adapters(["one", "two"], [0.7, -0.5])
        want = run(torch, model, theirs)
    finally:
        model.delete_adapters(["one", "two"])
    both = attach(attach(params, files["one"], 0.7), files["two"], -0.5)
    parity("Wan, two LoRAs", run_ours(config, both, ours, SHAPE), want)
    merged = merge(merge(params, files["one"], 0.7), files["two"], -0.5)
    parity("Wan, two LoRAs merged", run_ours(config, merged, ours, SHAPE), want)


def test_stacked_and_single_layers_take_the_same_lora(wan):
    _, config, params, _, ours = wan
    apart = dataclasses.replace(config, scan=False)
    layer = lambda i: jax.tree.map(lambda x: x[i], params["blocks"])  # noqa: E731
    blocks = {f"block_{i}": layer(i) for i in range(config.depth)}
    single = {name: x for name, x in params.items() if name != "blocks"} | blocks
    lora = lively(config, layers=TARGETS[:2])
    a = run_ours(config, attach(params, lora), ours, SHAPE)
    b = run_ours(apart, attach(single, lora), ours, SHAPE)
    np.testing.assert_allclose(a, b, atol=1e-5)
    same(detach(attach(single, lora)), lora)


@pytest.mark.parametrize("layout", ["diffusers", "original", "musubi", "vdit"])
def test_reading_what_was_written_gives_the_bits_back(wan, layout):
    config = wan[1]
    lora = lively(config)
    if layout == "original":
        rng = np.random.default_rng(0)
        shapes = {"block_0/attention/q/bias": 32, "block_1/cross_norm/scale": 32, "head_table": (2, 32),
                  "block_1/modulation/table": (6, 32)}  # fmt: skip
        whole = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        lora = dataclasses.replace(lora, differences=whole)
    tensors, metadata = lora_tensors(lora, config, layout)
    same(read_lora(tensors, config, metadata=metadata), lora)


def test_whole_differences_are_merged(wan):
    _, config, params, _, _ = wan
    name = "diffusion_model.blocks.1"
    tensors = {
        f"{name}.cross_attn.k.diff_b": np.full(32, 2.0, np.float32),
        f"{name}.self_attn.norm_q.diff": np.full(32, 3.0, np.float32),
        f"{name}.norm3.diff_b": np.full(32, 4.0, np.float32),
        f"{name}.diff_m": np.full((1, 6, 32), 5.0, np.float32),
        "diffusion_model.head.head.diff": np.full((16, 32), 6.0, np.float32),
    }
    lora = read_lora(tensors, config)
    changed = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), merge(params, lora, 0.5), params)
    block = changed["blocks"]
    for leaf, value in [
        (block["cross_attention"]["k"]["bias"], 1.0), (block["attention"]["norm"]["q"]["scale"], 1.5),
        (block["cross_norm"]["bias"], 2.0), (block["modulation"]["table"], 2.5),
    ]:  # fmt: skip
        np.testing.assert_allclose(leaf[1], value, rtol=1e-5)
        assert not leaf[0].any()
    np.testing.assert_allclose(changed["head"]["kernel"], 3.0, rtol=1e-5)


def test_each_expert_gets_its_own(wan, tmp_path):
    config = wan[1]
    high, low = lively(config, seed=1), lively(config, seed=2)
    tensors, _ = lora_tensors(high, config)
    more, metadata = lora_tensors(low, config, expert="transformer_2")
    assert experts(tensors) == ("transformer",)
    assert experts(tensors | more) == ("transformer", "transformer_2")
    same(read_lora(tensors | more, config, metadata=metadata, expert="transformer_2"), low)
    with pytest.raises(WeightsError, match="nothing for 'transformer_2': it has transformer"):
        read_lora(tensors, config, expert="transformer_2")


def test_what_fits_no_layer_is_named(wan):
    config = wan[1]
    tensors, metadata = lora_tensors(lively(config), config)
    down = np.ones((2, 32), np.float32)
    for extra, words in [
        ({"transformer.blocks.7.attn1.to_q.lora_A.weight": down}, r"blocks\.7.*2 blocks"),
        ({"transformer.blocks.0.attn1.to_k.lora_A.weight": down}, r"blocks\.0\.attn1\.to_k.*up"),
        ({"text_encoder.layers.0.q_proj.lora_A.weight": down}, "text_encoder.*text encoder"),
        ({"diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight": down}, "vace_blocks.*VACE"),
    ]:
        with pytest.raises(WeightsError, match=words):
            read_lora(tensors | extra, config, metadata=metadata)
    with pytest.raises(WeightsError, match="not JSON"):
        read_lora(tensors, config, metadata={METADATA: "{"})
    with pytest.raises(WeightsError, match="no place for block_0/attention/q/bias"):
        lora_tensors(LoRA(layers={}, differences={"block_0/attention/q/bias": np.ones(32)}), config)


def test_an_image_to_video_lora_is_read_by_an_image_to_video_model(wan):
    config = dataclasses.replace(wan[1], condition_channels=IMAGE["in_channels"] - 4, image_width=20)
    lora = lively(config, layers=("cross_attention/k", "cross_attention/image_k", "cross_attention/image_v"))
    for layout, name in [("diffusers", "add_k_proj"), ("original", "k_img"), ("musubi", "k_img")]:
        tensors, metadata = lora_tensors(lora, config, layout)
        assert any(name in key for key in tensors)
        same(read_lora(tensors, config, metadata=metadata), lora)


def test_layers_and_sizes_that_the_model_lacks_are_named(wan):
    params = wan[2]
    low = LowRank(a=np.ones((32, 2), np.float32), b=np.ones((2, 32), np.float32))
    for name in ("block_9/attention/q", "block_0/attention/z", "nowhere"):
        with pytest.raises(WeightsError, match=f"does not have: {name}"):
            attach(params, LoRA(layers={name: low}))
    with pytest.raises(WeightsError, match=r"block_0/mlp/up: \(32, 2\) x \(2, 32\) for a kernel of \(32, 48\)"):
        merge(params, LoRA(layers={"block_0/mlp/up": low}))
    with pytest.raises(WeightsError, match="quantised: merge the LoRA before"):
        merge(quantise(params, smallest=8), LoRA(layers={"block_0/attention/q": low}))


@pytest.mark.parametrize(("kind", "ratio", "gap"), [("int8", 35.0, 0.03), ("fp8", 25.0, 0.1)])
def test_error_of_quantised_weights(wan, kind, ratio, gap, record_property):
    """Every dense layer of the blocks above `ratio` dB, the prediction within `gap` of its size; a LoRA beside."""
    _, config, params, _, ours = wan
    small = quantise(params, kind, smallest=8)
    ratios = sqnr(params, small)
    assert len(ratios) == 10, sorted(ratios)  # what is stacked counts once
    assert min(ratios.values()) > ratio, ratios
    want = run_ours(config, params, ours, SHAPE)
    got = run_ours(config, small, ours, SHAPE)
    relative = np.linalg.norm(got - want) / np.linalg.norm(want)
    row = f"Wan, {kind} weights, {min(ratios.values()):.0f}-{max(ratios.values()):.0f} dB, against float32"
    shape = "x".join(map(str, want.shape))
    record_property("parity", f"{row}|{shape}|{np.abs(got - want).max():.1e}|{relative:.1e}|{gap:.0e} rel")
    assert 1e-5 < relative < gap
    np.testing.assert_allclose(got, run_ours(config, dequantise(small), ours, SHAPE), atol=1e-4)
    lora = lively(config)
    beside = run_ours(config, attach(small, lora), ours, SHAPE)
    exact = run_ours(config, attach(params, lora), ours, SHAPE)
    assert np.linalg.norm(beside - exact) / np.linalg.norm(exact) < gap


def test_bfloat16_weights(wan, record_property):
    _, config, params, _, ours = wan
    half = cast(params)
    kept = {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in
            jax.tree_util.tree_leaves_with_path(half) if leaf.dtype == jnp.float32}  # fmt: skip
    assert {"time_in/kernel", "time_out/bias", "head_table", "blocks/modulation/table", "blocks/cross_norm/scale",
            "blocks/attention/norm/q/scale"} <= kept  # fmt: skip
    assert half["blocks"]["mlp"]["up"]["kernel"].dtype == half["time_projection"]["bias"].dtype == jnp.bfloat16
    want, got = (run_ours(config, p, ours, SHAPE) for p in (params, half))
    relative = np.linalg.norm(got - want) / np.linalg.norm(want)
    record_property("parity", f"Wan, weights in bfloat16 against float32|{'x'.join(map(str, want.shape))}"
                              f"|{np.abs(got - want).max():.1e}|{relative:.1e}|3e-02 rel")  # fmt: skip
    assert relative < 0.03


def test_the_lora_of_a_run_loads_in_the_reference(torch, tmp_path, parity):
    """What `vdit train` leaves beside its checkpoints, on the base it was trained on."""
    from diffusers import WanTransformer3DModel

    make_base(tmp_path / "base")
    space, experiment = Workspace(tmp_path / "run"), lora_experiment(tmp_path / "base")
    shapes = plan_state(split_trainable(experiment, make_mesh()).init, experiment.dit_train).abstract.params
    rng = np.random.default_rng(0)
    leaves = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    with Checkpointer(space.dit, meta={"base": pretrained_identity(experiment)}) as checkpointer:
        checkpointer.save(1, {"params": jax.tree.map(jnp.asarray, leaves)})
    space.save_experiment(experiment)
    file = write_run(space.root)
    assert file == space.root / "lora.safetensors"

    params, config = trained_params(experiment, space, make_mesh())["dit"], experiment.backbone
    rules = diffusers_rules(config)
    model = WanTransformer3DModel.from_config(wan_json(config))
    state = empty(rules, without_lora(params))
    model.load_state_dict({name: torch.tensor(np.array(tensor)) for name, tensor in state.items()})
    model.eval().load_lora_adapter(str(space.root), weight_name=file.name, adapter_name="trained")
    theirs, ours = inputs_for(model, b=1, shape=SHAPE, texts=16)
    parity("Wan LoRA trained here, in PEFT", run_ours(config, params, ours, SHAPE), run(torch, model, theirs))
    model.disable_lora()
    assert np.abs(run_ours(config, params, ours, SHAPE) - run(torch, model, theirs).numpy()).max() > 0.1


def test_at_true_width(torch, tmp_path, parity):
    """One block of Wan 2.1 1.3B, rank 16, in the original layout."""
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

    config = preset("wan2.1-t2v-1.3b", depth=1)
    model = enliven(torch, WanTransformer3DModel.from_config(wan_json(config)))
    params = fill(diffusers_rules(config), {name: x.numpy() for name, x in model.state_dict().items()})
    lora = lively(config, rank=16, layers=("attention/q", "cross_attention/v", "mlp/up", "mlp/down"))
    write_lora(lora, config, tmp_path / "lora.safetensors", "original")
    state = WanLoraLoaderMixin.lora_state_dict(str(tmp_path / "lora.safetensors"))
    model.load_lora_adapter(state, adapter_name="one")
    theirs, ours = inputs_for(model, b=1, shape=SHAPE, texts=8)
    read = read_lora(load_file(tmp_path / "lora.safetensors"), config)
    got = run_ours(config, attach(params, read), ours, SHAPE)
    parity("Wan 2.1 1.3B LoRA, one block at true width", got, run(torch, model, theirs))


def test_a_file_of_another_kind_is_refused(wan, tmp_path):
    config = wan[1]
    save_file({"model.diffusion_model.input.weight": np.ones((2, 2), np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"model\.diffusion_model\.input\.weight: the file holds whole weights"):
        read_lora(load_file(tmp_path / "x.safetensors"), config)
    other = dataclasses.replace(config, qk_norm="head")
    with pytest.raises(WeightsError, match="this model is not a Wan"):
        read_lora(lora_tensors(lively(config), config)[0], other)


@pytest.mark.parametrize("layout", ["diffusers", "original", "musubi", "vdit"])
def test_a_lora_without_layers_is_not_written(layout, tmp_path):
    with pytest.raises(WeightsError, match="changes no layer"):
        write_lora(LoRA(layers={}), preset("wan2.1-t2v-1.3b"), tmp_path / "empty.safetensors", layout)
    assert list(tmp_path.iterdir()) == []
