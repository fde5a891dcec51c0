"""Folders of public models: imported, exported, in the original layouts, and broken in every way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import vdit
from tests.conftest import run_vdit
from tests.pretrained import public_folders as public
from vdit import samplers
from vdit.dist.mesh import make_mesh
from vdit.errors import OutputError, WeightsError
from vdit.models.text import load_t5_tokenizer
from vdit.pretrained import dit as dit_maps
from vdit.pretrained import original_layouts, t5, wan, wan_vae
from vdit.pretrained.model import import_model, open_model
from vdit.pretrained.open import open_tensors
from vdit.pretrained.weights import flatten
from vdit.train.workspace import Workspace, open_tokenizer


@pytest.fixture(scope="module")
def wan_folder(torch, tmp_path_factory) -> Path:
    """A small Wan 2.1 as diffusers saves it, its transformer in three shards."""
    folder = tmp_path_factory.mktemp("public") / "wan"
    folder.mkdir()
    pipe = public.wan(folder)
    shutil.rmtree(folder / "transformer")
    pipe.transformer.save_pretrained(folder / "transformer", max_shard_size="100KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) >= 3
    return folder


@pytest.fixture(scope="module")
def dit_folder(torch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("public") / "dit"
    public.dit(folder)
    return folder


def same_bits(a: Path, b: Path) -> None:
    """Two files or folders of tensors hold the same names, types and bits."""
    ours, theirs = open_tensors(a), open_tensors(b)
    assert dict(ours.info) == dict(theirs.info)
    for name in ours.info:
        assert ours.read(name).tobytes() == theirs.read(name).tobytes(), name


def params_of(folder: Path) -> dict[str, np.ndarray]:
    """Every parameter of a public model, by path."""
    trees, vae = open_model(folder).load(make_mesh(devices=jax.devices()[:1]))
    return {name: np.asarray(leaf) for name, leaf in flatten(trees | {"vae": vae}).items()}


@pytest.mark.parametrize("kind", ["wan", "dit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_and_export_give_the_same_bits(wan_folder, dit_folder, torch, tmp_path, compile_cache, kind, dtype):
    source = wan_folder if kind == "wan" else dit_folder
    if dtype == "bfloat16":
        source = in_bfloat16(source, tmp_path / "source")
    done = run_vdit("import", source, tmp_path / "model", cache=compile_cache)
    assert done.returncode == 0, done.stderr
    done = run_vdit("export", tmp_path / "model", tmp_path / "out", "--max-shard", "0.0002", cache=compile_cache)
    assert done.returncode == 0, done.stderr
    parts = ["transformer", "vae"] + (["text_encoder"] if kind == "wan" else [])
    for part in parts:
        same_bits(source / part, tmp_path / "out" / part)
        if part != "text_encoder":
            assert json.loads((source / part / "config.json").read_text()) == json.loads(
                (tmp_path / "out" / part / "config.json").read_text()
            )
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe).__name__ == ("WanPipeline" if kind == "wan" else "DiTPipeline")


def in_bfloat16(source: Path, target: Path) -> Path:
    """The same folder with its weights as safetensors in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    for folder in ("transformer", "vae", "text_encoder"):
        for file in (target / folder).glob("*.safetensors"):
            save_file({k: v.to(torch.bfloat16) for k, v in load_file(file).items()}, file)
    return target


def test_an_imported_model_samples_what_the_folder_samples(wan_folder, tmp_path):
    import_model(wan_folder, tmp_path / "model")
    call = {"frames": 5, "size": (32, 48), "steps": 2, "latents": True}
    direct = vdit.load(wan_folder)("a red dog", **call)
    imported = vdit.load(tmp_path / "model")("a red dog", **call)
    np.testing.assert_array_equal(direct, imported)


def test_without_the_kept_files_the_export_makes_its_own(wan_folder, tmp_path, parity):
    """As for a model that came in an original layout: configs, scheduler and index are written from the experiment."""
    import_model(wan_folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "public")
    from vdit.cli.main import main

    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    call = {"frames": 5, "size": (32, 48), "steps": 2, "latents": True}
    np.testing.assert_array_equal(vdit.load(wan_folder)("a dog", **call), vdit.load(tmp_path / "out")("a dog", **call))
    import diffusers

    pipe = diffusers.WanPipeline.from_pretrained(tmp_path / "out")
    assert pipe.scheduler.config.flow_shift == 3.0


def test_an_export_with_an_image_encoder_has_what_prepares_its_pixels(torch, tmp_path):
    """diffusers' image-to-video pipeline does not load without its image processor."""
    import diffusers

    pipe = public.wan_image(tmp_path / "public")
    import_model(tmp_path / "public", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "public")  # as of a model that came in an original layout
    from vdit.cli.main import main

    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    back = diffusers.WanImageToVideoPipeline.from_pretrained(tmp_path / "out")
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    want, got = (p.image_processor(images=image, return_tensors="np").pixel_values for p in (pipe, back))
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_tokenizer_json_alone_imports_and_comes_out_again(wan_folder, tmp_path):
    """Newer transformers write no sentencepiece file: prompts have the same ids, here and after an export."""
    shutil.copytree(wan_folder, tmp_path / "public")
    want = load_t5_tokenizer(tmp_path / "public" / "tokenizer").encode("a red  dog </s> \u00e9")
    (tmp_path / "public" / "tokenizer" / "spiece.model").unlink()
    model = open_model(tmp_path / "public")
    assert model.tokenizer.name == "tokenizer.json"
    assert open_tokenizer(model.experiment, model.tokenizer).encode("a red  dog </s> \u00e9") == want
    import_model(tmp_path / "public", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "public")
    space = Workspace(tmp_path / "model")
    assert space.open_tokenizer(space.experiment()).encode("a red  dog </s> \u00e9") == want
    from vdit.cli.main import main

    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    assert [file.name for file in (tmp_path / "out" / "tokenizer").iterdir() if "config" not in file.name] == [
        "tokenizer.json"
    ]
    assert load_t5_tokenizer(tmp_path / "out" / "tokenizer").encode("a red  dog </s> \u00e9") == want


def original_wan(model: Path, target: Path, torch) -> Path:
    """The weights of a diffusers folder as Wan's own repository lays them out."""
    opened = open_model(model)
    trees, vae = opened.load(make_mesh(devices=jax.devices()[:1]))
    trees = trees | {"vae": vae}
    config = opened.experiment.backbone
    maps = {
        "dit": wan.original_rules(config),
        "text": t5.original_rules(opened.experiment.text.t5),
        "vae": wan_vae.original_rules(opened.experiment.vae),
    }
    (target / "google" / "umt5-xxl").mkdir(parents=True)
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(model / "tokenizer" / name, target / "google" / "umt5-xxl" / name)
    states = {tree: state_dict(rules, trees[tree], torch) for tree, rules in maps.items()}
    from safetensors.torch import save_file

    save_file(states["dit"], target / "diffusion_pytorch_model.safetensors")
    torch.save(states["text"], target / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(states["vae"], target / "Wan2.1_VAE.pth")
    json_config = {
        "model_type": "t2v", "dim": config.width, "num_heads": config.heads, "num_layers": config.depth,
        "ffn_dim": config.hidden, "in_dim": 16, "out_dim": 16, "text_len": 512, "freq_dim": 256, "eps": 1e-6,
        "text_dim": config.text_width,
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(json_config))
    return target


def state_dict(rules, params, torch) -> dict:
    """Our parameters under their names."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    tensors = {}
    for one in rules:
        values = [flat[part.path][part.index(flat[part.path].shape)] for part in one.parts]
        tensors[one.name] = torch.from_numpy(np.array(one.write(values, np.concatenate), order="C"))
    return tensors


def test_wan_in_its_own_layout(wan_folder, tmp_path, torch, monkeypatch):
    folder = original_wan(wan_folder, tmp_path / "Wan2.1-T2V", torch)
    small = open_model(wan_folder).experiment.vae
    monkeypatch.setattr(original_layouts, "vae_preset", lambda name: small)
    wanted, got = params_of(wan_folder), params_of(folder)
    assert sorted(wanted) == sorted(got)
    for name in wanted:
        np.testing.assert_array_equal(wanted[name], got[name], err_msg=name)
    experiment = open_model(folder).experiment
    assert (experiment.diffusion.shift, experiment.sample.steps, experiment.sample.guidance) == (5.0, 50, 5.0)


def test_wan_with_two_experts_in_its_own_layout(wan_folder, tmp_path, torch, monkeypatch):
    folder = original_wan(wan_folder, tmp_path / "Wan2.2-T2V-A14B", torch)
    for name in ("high_noise_model", "low_noise_model"):
        (folder / name).mkdir()
        for file in ("config.json", "diffusion_pytorch_model.safetensors"):
            shutil.copy(folder / file, folder / name / file)
    small = open_model(wan_folder).experiment.vae
    monkeypatch.setattr(original_layouts, "vae_preset", lambda name: small)
    experiment = open_model(folder).experiment
    assert experiment.expert_boundary == 875.0
    assert (experiment.diffusion.shift, experiment.sample.guidance, experiment.sample.low_guidance) == (12.0, 4.0, 3.0)
    open_model(folder).check()


def test_dit_in_its_own_layout(dit_folder, tmp_path, torch, monkeypatch):
    trees, _ = open_model(dit_folder).load(make_mesh(devices=jax.devices()[:1]))
    config = open_model(dit_folder).experiment.backbone
    state = state_dict(dit_maps.original_rules(config), trees["dit"], torch)
    positions = dit_maps.original_constants(config, {"pos_embed": (1, 16, config.width)})
    state |= {name: torch.from_numpy(np.array(value)) for name, value in positions.items()}
    folder = tmp_path / "dit"
    shutil.copytree(dit_folder / "vae", folder / "vae")
    torch.save(state, folder / "DiT-tiny-64x64.pt")
    known = dit_maps.config_from_shapes
    monkeypatch.setattr(dit_maps, "config_from_shapes", lambda shapes: known(shapes, heads=2))
    wanted, got = params_of(dit_folder), params_of(folder)
    for name in wanted:
        np.testing.assert_array_equal(wanted[name], got[name], err_msg=name)
    experiment = open_model(folder).experiment
    assert experiment.sample.sampler == samplers.DDPM()
    assert (experiment.sample.steps, experiment.sample.size, experiment.first_label) == (250, (16, 16), 0)


TOKENIZERS = ("spiece.model", "tokenizer.json")
BREAKS = {
    "no such folder": (lambda f: shutil.rmtree(f), "is not a folder"),
    "not a model": (lambda f: (f / "model_index.json").unlink(), "no public one known here"),
    "unknown pipeline": (lambda f: edit(f / "model_index.json", _class_name="FluxPipeline"), "FluxPipeline"),
    "wrong family": (lambda f: edit(f / "transformer/config.json", _class_name="FluxTransformer2DModel"), "Flux"),
    "unknown option": (lambda f: edit(f / "transformer/config.json", new_option=3), "new_option"),
    "wrong size": (lambda f: edit(f / "transformer/config.json", num_layers=3), "blocks.2"),
    "too many tensors": (lambda f: edit(f / "transformer/config.json", num_layers=1), "blocks.1"),
    "part named but absent": (lambda f: shutil.rmtree(f / "vae"), "no such folder"),
    "config absent": (lambda f: (f / "vae/config.json").unlink(), "config.json"),
    "missing index": (lambda f: next((f / "transformer").glob("*.index.json")).unlink(), "index"),
    "missing shard": (lambda f: min((f / "transformer").glob("*.safetensors")).unlink(), "shards that are not there"),
    "truncated shard": (lambda f: truncate(min((f / "transformer").glob("*.safetensors"))), "truncated"),
    "wrong dtype": (lambda f: to_integers(f / "vae"), "int"),
    "no tokenizer": (lambda f: [(f / "tokenizer" / name).unlink() for name in TOKENIZERS], "tokenizer.json"),
    "unknown scheduler": (lambda f: edit(f / "scheduler/scheduler_config.json", _class_name="LCMScheduler"), "LCM"),
    "refused option": (lambda f: edit(f / "scheduler/scheduler_config.json", thresholding=True), "thresholding"),
    "unpaired boundary": (lambda f: edit(f / "model_index.json", boundary_ratio=0.9), "boundary_ratio"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_folder_is_one_clear_error(wan_folder, tmp_path, what):
    folder = tmp_path / "broken"
    shutil.copytree(wan_folder, folder)
    spoil, named = BREAKS[what]
    spoil(folder)
    with pytest.raises(WeightsError) as error:
        open_model(folder).check()
    message = str(error.value)
    assert named in message
    assert "\n" not in message
    assert ": " in message  # the mend


def test_an_import_needs_a_new_folder(wan_folder, tmp_path):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        import_model(wan_folder, tmp_path)
    assert (tmp_path / "there").read_text() == "mine"


def test_the_command_line(wan_folder, tmp_path, compile_cache):
    done = run_vdit(
        "sample", "--model", wan_folder, "a red dog", "--frames", 5, "--size", "32x48", "--steps", 2, "--weights",
        "int8", "--out", tmp_path / "dog.mp4", cache=compile_cache,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert vdit.read_video(tmp_path / "dog.mp4").frames.shape == (5, 32, 48, 3)
    done = run_vdit("sample", "--model", tmp_path, "a red dog", cache=compile_cache)
    assert done.returncode == 2
    assert "no public one known here" in done.stderr


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def to_integers(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("weight"))
    save_file(tensors | {name: tensors[name].astype(np.int32)}, file)
