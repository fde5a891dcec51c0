"""A Wan's transformer in one file, float8 weights with scales, and Wans whose further inputs cannot be given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained import public_folders as public
from vdit.dist.mesh import make_mesh
from vdit.errors import WeightsError
from vdit.pretrained import t5, wan, wan_vae
from vdit.pretrained.model import PublicModel, open_model
from vdit.pretrained.open import dequantised, open_tensors, open_weights
from vdit.pretrained.original_layouts import open_file
from vdit.pretrained.tensors import TensorInfo, write_safetensors
from vdit.pretrained.weights import flatten

E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2


def write(path: Path, tensors: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    info = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}
    write_safetensors(path, info, arrays.__getitem__)
    return path


def params_of(model: PublicModel) -> dict[str, np.ndarray]:
    trees, vae = model.load(make_mesh(devices=jax.devices()[:1]))
    return {name: np.asarray(leaf) for name, leaf in flatten(trees | {"vae": vae}).items()}


def tensors_of(model: PublicModel, tree: str) -> dict[str, np.ndarray]:
    """What the files of one network hold, as it is read."""
    (part,) = (part for part in model.components if part.tree == tree)
    return {name: part.files.read(name) for name in part.files.info}


def states(model: PublicModel, flat: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The networks of a diffusers folder under the names that ComfyUI's files have. flat: its parameters."""
    about = model.experiment
    maps = {
        "dit": wan.original_rules(about.backbone),
        "text": t5.diffusers_rules(about.text.t5),
        "vae": wan_vae.original_rules(about.vae),
    }
    made = {}
    for tree, rules in maps.items():
        prefix = f"{tree}/"
        here = {path.removeprefix(prefix): leaf for path, leaf in flat.items() if path.startswith(prefix)}
        made[tree] = {
            rule.name: rule.write([here[p.path][p.index(here[p.path].shape)] for p in rule.parts], np.concatenate)
            for rule in rules
        }
    return made


@pytest.fixture(scope="module")
def folder(torch, tmp_path_factory) -> Path:
    """A small Wan 2.1 whose heads and VAE have the published ratios, so that shapes alone say what it is."""
    path = tmp_path_factory.mktemp("wan")
    transformer = public.wan_transformer(num_attention_heads=1, attention_head_dim=128)
    vae = public.wan_vae(dim_mult=[1, 2, 4, 4], num_res_blocks=2)
    public.wan(path, transformer=transformer, vae=vae)
    return path


@pytest.fixture(scope="module")
def params(folder) -> dict[str, np.ndarray]:
    return params_of(open_model(folder))


@pytest.fixture(scope="module")
def networks(folder, params) -> dict[str, dict[str, np.ndarray]]:
    return states(open_model(folder), params)


def comfy(root: Path, networks, spiece: bytes, *, transformer: str = "wan2.1_t2v_tiny_fp32.safetensors") -> Path:
    """ComfyUI's tree of models; the tokenizer is inside the text encoder's file."""
    tokenizer = {"spiece_model": np.frombuffer(spiece, np.uint8)}
    write(root / "text_encoders" / "umt5.safetensors", networks["text"] | tokenizer)
    write(root / "text_encoders" / "clip_l.safetensors", {"text_model.x": np.zeros(3, np.float32)})
    write(root / "vae" / "wan_2.1_vae.safetensors", networks["vae"])
    return write(root / "diffusion_models" / "wan" / transformer, networks["dit"])


def spiece(folder: Path) -> bytes:
    return (folder / "tokenizer" / "spiece.model").read_bytes()


def test_a_file_in_comfyuis_tree_is_the_folders_model(folder, params, networks, tmp_path):
    """All parameters, and the same tokens; how it is sampled is as Wan's repositories say."""
    model = open_model(comfy(tmp_path, networks, spiece(folder)))
    wanted, got = params, params_of(model)
    assert sorted(wanted) == sorted(got)
    for name in wanted:
        np.testing.assert_array_equal(wanted[name], got[name], err_msg=name)
    assert model.tokenizer.read_bytes() == spiece(folder)
    assert (model.experiment.diffusion.shift, model.experiment.sample.steps) == (5.0, 50)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_parts_of_a_file_are_those_of_a_folder_that_is_named(folder, networks, tmp_path, prefix):
    """The transformer is the file's, the rest the folder's, scheduler included."""
    changed = {name: 1.5 * tensor for name, tensor in networks["dit"].items()}
    file = write(tmp_path / "mix.safetensors", {prefix + name: tensor for name, tensor in changed.items()})
    model, whole = open_model(file, [folder]), open_model(folder)
    model.check()
    same_tensors(tensors_of(model, "dit"), changed)
    for tree in ("text", "vae"):
        same_tensors(tensors_of(model, tree), tensors_of(whole, tree))
    assert model.experiment.diffusion.shift == 3.0
    assert model.experiment.backbone == whole.experiment.backbone


def same_tensors(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_parts_as_files_of_their_own(folder, networks, tmp_path):
    tree = comfy(tmp_path / "tree", networks, spiece(folder)).parents[2]
    file = write(tmp_path / "mix.safetensors", networks["dit"])
    text = write(tmp_path / "parts" / "text.safetensors", networks["text"])
    parts = [text, folder / "tokenizer" / "spiece.model", tree / "vae"]
    model = open_file(file, parts)
    assert {part.tree for part in model.components} == {"dit", "text", "vae"}
    assert model.tokenizer == parts[1]


def test_two_experts_are_found_by_their_names(folder, networks, tmp_path):
    for name, factor in (("high", 2.0), ("low", 3.0)):
        one = {key: factor * tensor for key, tensor in networks["dit"].items()}
        file = comfy(tmp_path / name, networks | {"dit": one}, spiece(folder))
        target = tmp_path / "tree" / "diffusion_models" / f"wan2.2_t2v_{name}_noise_14B.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
    for part in ("text_encoders", "vae"):
        shutil.move(tmp_path / "low" / part, tmp_path / "tree" / part)
    for name in ("high", "low"):
        model = open_model(tmp_path / "tree" / "diffusion_models" / f"wan2.2_t2v_{name}_noise_14B.safetensors")
        assert model.experiment.expert_boundary == 875.0
        model.check()
        one, two = (tensors_of(model, tree)["head.head.weight"] for tree in ("dit", "dit_low"))
        np.testing.assert_allclose(two, 1.5 * one, rtol=1e-6)
    target.unlink()
    with pytest.raises(WeightsError, match=r"high-noise expert.*0 files"):
        open_model(tmp_path / "tree" / "diffusion_models" / "wan2.2_t2v_high_noise_14B.safetensors")


WRONG = {
    "no text encoder": (lambda r: shutil.rmtree(r / "text_encoders"), "text encoder"),
    "no autoencoder": (lambda r: shutil.rmtree(r / "vae"), "autoencoder of 16 channels"),
    "two text encoders": (
        lambda r: shutil.copy(r / "text_encoders/umt5.safetensors", r / "text_encoders/umt5_b.safetensors"),
        r"umt5\.safetensors.*umt5_b\.safetensors",
    ),
    "no tokenizer": (lambda r: without(r / "text_encoders/umt5.safetensors", "spiece_model"), r"spiece\.model"),
    "diffusers' names": (
        lambda r: rename(r, {"head.head.weight": "condition_embedder.time_proj.weight"}), r"config\.json"
    ),
    "no transformer": (lambda r: rename(r, {"head.head.weight": "x"}), "no Wan's transformer"),
    "another family": (lambda r: rename(r, {"patch_embedding.weight": "double_blocks.0"}), "no Wan's transformer"),
    "a missing tensor": (lambda r: rename(r, {"blocks.1.ffn.2.bias": "blocks.1.ffn.2.bais"}), "ffn.2.bias"),
    "VACE": (lambda r: rename(r, {"blocks.1.ffn.2.bias": "vace_patch_embedding.weight"}), "VACE"),
    "Fun-Camera": (lambda r: rename(r, {"blocks.1.ffn.2.bias": "control_adapter.conv.weight"}), "Fun-Camera"),
    "Fun-Control": (lambda r: widen(r, 52), "52 channels.*36.*Fun-Control"),
    "half an image to video": (lambda r: widen(r, 36), "two experts"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_not_a_model_is_one_clear_error(folder, networks, tmp_path, what):
    file = comfy(tmp_path, networks, spiece(folder))
    spoil, named = WRONG[what]
    spoil(tmp_path)
    with pytest.raises(WeightsError, match=named) as error:
        open_model(file)
    assert str(tmp_path) in str(error.value)


def test_a_folder_takes_no_parts_and_a_file_of_another_size_not_a_folders(folder, networks, tmp_path):
    with pytest.raises(WeightsError, match="is a folder"):
        open_model(folder, [folder])
    narrow = networks["dit"] | {"blocks.0.ffn.0.weight": networks["dit"]["blocks.0.ffn.0.weight"][:32]}
    with pytest.raises(WeightsError, match="mlp_width=32"):
        open_model(write(tmp_path / "a.safetensors", narrow), [folder])
    with pytest.raises(WeightsError, match=r"by its name high"):
        open_model(write(tmp_path / "a_high_noise.safetensors", networks["dit"]), [folder])


def the_file(root: Path) -> Path:
    (file,) = (root / "diffusion_models" / "wan").iterdir()
    return file


def change(path: Path, edit) -> None:
    opened = open_tensors(path)
    tensors = {name: opened.read(name) for name in opened.info}
    path.unlink()
    write(path, edit(tensors))


def without(path: Path, name: str) -> None:
    change(path, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})


def rename(root: Path, names: dict[str, str]) -> None:
    change(the_file(root), lambda tensors: {names.get(key, key): tensor for key, tensor in tensors.items()})


def widen(root: Path, channels: int) -> None:
    def edit(tensors):
        width = tensors["patch_embedding.weight"].shape[0]
        return tensors | {"patch_embedding.weight": np.zeros((width, channels, 1, 2, 2), np.float32)}

    change(the_file(root), edit)


FUN = {
    "diffusers, 52 channels": ("transformer", {"in_channels": 52}, r"52 channels.*Fun-Control"),
    "diffusers, VACE": ("transformer", {"_class_name": "WanVACETransformer3DModel"}, "VACE"),
    "diffusers, Animate": ("transformer", {"_class_name": "WanAnimateTransformer3DModel"}, "Animate"),
    "original, 48 channels and its options": (
        "", {"model_type": "i2v", "in_dim": 48, "out_dim": 16, "hidden_size": 128}, "48 channels.*Fun-Control"
    ),
    "original, a camera": ("", {"model_type": "i2v", "in_dim": 36, "add_control_adapter": True}, "Fun-Camera"),
    "original, reference images": ("", {"in_dim": 52, "out_dim": 16, "add_ref_conv": True}, "Fun-Control"),
}  # fmt: skip


@pytest.mark.parametrize("what", FUN)
def test_wans_with_further_inputs_are_refused_on_opening(folder, tmp_path, what):
    """By the config alone: the weights here cannot be read."""
    part, changes, named = FUN[what]
    shutil.copytree(folder, tmp_path / "model")
    root = tmp_path / "model"
    if part:
        config = root / part / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    else:
        (root / "model_index.json").unlink()
        (root / "config.json").write_text(json.dumps({"_class_name": "WanModel"} | changes))
        (root / "models_t5_x.pth").write_bytes(b"none")
        shutil.copy(next((root / "transformer").glob("*.safetensors")), root / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsError, match=named) as error:
        open_model(root)
    assert "not supported; take" in str(error.value)


@pytest.mark.parametrize("names", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_scaled_float8_is_read_as_the_numbers_it_stands_for(tmp_path, names, dtype):
    rng = np.random.default_rng(0)
    weight, rows = (rng.normal(size=(6, 4)).astype(dtype) for _ in range(2))
    scale, per_row = np.float32(0.0123), rng.uniform(0.1, 3, size=(6, 1)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float16)
    file = write(tmp_path / "x.safetensors", {
        "a.weight": weight, f"a.{names[0]}": scale, f"a.{names[1]}": np.float32(7), "a.bias": bias,
        "b.weight": rows, f"b.{names[0]}": per_row, "plain.weight": weight, "scaled_fp8": np.zeros(0, dtype),
        "b.comfy_quant": np.frombuffer(b'{"format": "float8_e4m3fn"}', np.uint8),
    })  # fmt: skip
    opened = open_weights(file)
    assert sorted(opened.info) == ["a.bias", "a.weight", "b.weight", "plain.weight"]
    exact = lambda x: np.asarray(x).astype(np.float64)  # noqa: E731
    np.testing.assert_array_equal(opened.read("a.weight"), (exact(weight) * exact(scale)).astype(np.float32))
    np.testing.assert_array_equal(opened.read("b.weight"), (exact(rows) * exact(per_row)).astype(np.float32))
    np.testing.assert_array_equal(exact(opened.read("plain.weight")), exact(weight))
    assert {name: str(info.dtype) for name, info in opened.info.items()} == {
        "a.weight": "float32", "b.weight": "float32", "a.bias": "float16", "plain.weight": "bfloat16"
    }  # fmt: skip
    for name in opened.info:
        assert opened.read(name).dtype == opened.info[name].dtype


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"a.scale_weight": np.ones((2, 2), np.float32)}, r"a\.scale_weight.*blocks"),
        ({"b.scale_weight": np.float32(1)}, r"b\.weight is not there"),
        ({"c.weight": np.ones((2, 2), np.int8), "c.weight_scale": np.float32(1)}, r"c\.weight is int8"),
        ({"a.weight_scale_2": np.float32(1)}, "weight_scale_2"),
        ({"a.comfy_quant": np.frombuffer(b'{"format": "nvfp4"}', np.uint8)}, "nvfp4"),
        ({"a.comfy_quant": np.frombuffer(b"[" * 99, np.uint8)}, "comfy_quant"),
    ],
)
def test_other_quantised_formats_are_refused_by_name(tmp_path, extra, named):
    file = write(tmp_path / "x.safetensors", {"a.weight": np.ones((6, 4), E4M3)} | extra)
    with pytest.raises(WeightsError, match=named):
        open_weights(file)


def test_a_scaled_float8_model_is_the_model_of_its_numbers(folder, networks, tmp_path):
    """Every layer of the file, through its weight map; plain files are passed on as they are."""
    scaled, plain = {}, dict(networks["dit"])
    for name, tensor in networks["dit"].items():
        if name.endswith((".q.weight", ".0.weight", ".2.weight")) and "blocks" in name:
            scale = np.float32(np.abs(tensor).max() / 448)
            small = (tensor / scale).astype(E4M3)
            scaled |= {name: small, f"{name.removesuffix('weight')}scale_weight": scale}
            plain[name] = small.astype(np.float32) * scale
        else:
            scaled[name] = tensor
    assert len(scaled) == len(plain) + 8
    model = open_model(write(tmp_path / "b.safetensors", scaled | {"scaled_fp8": np.zeros(2, E4M3)}), [folder])
    model.check()
    same_tensors(tensors_of(model, "dit"), plain)
    opened = open_tensors(write(tmp_path / "a.safetensors", plain))
    assert dequantised(opened) is opened
