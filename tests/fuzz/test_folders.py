"""A short form of tools.fuzz.folders: the same cases, fewer of them."""

import dataclasses

import pytest

from tools.fuzz import folders, public_models
from tools.fuzz.common import attempt, run_cases
from vdit.errors import WeightsError
from vdit.pretrained.model import one_device


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """The whole folders, where this process and those that it starts find them."""
    root = tmp_path_factory.mktemp("folders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(folders.TEMPLATES, str(root))
        patch.setattr(folders.original_layouts, "vae_preset", public_models.small_vae)
        patch.setattr(folders.PublicModel, "abstract", folders.PublicModel.abstract)
        public_models.write_all(root)
        yield root


@pytest.mark.parametrize("name", ["wan-image", "dit", "own-wan"])
def test_a_whole_folder_is_read(templates, name):
    assert folders._use(templates / name) == name


def test_damaged_folders_are_read_or_refused_in_one_line(templates):
    failed = [result for result in run_cases(folders.make, range(5000, 5020)) if result.outcome == "failed"]
    assert not failed


def test_shapes_of_all_networks_are_checked_before_a_tensor_is_read(templates, tmp_path):
    folders._copy("dit", tmp_path / "model")
    folders._edit(tmp_path / "model" / "vae" / "config.json", "block_out_channels", [8, 24])
    model, read = folders.open_model(tmp_path / "model"), []
    watched = [
        dataclasses.replace(part, files=dataclasses.replace(part.files, reader=read.append))
        for part in model.components
    ]
    with pytest.raises(WeightsError, match="another shape"):
        dataclasses.replace(model, components=tuple(watched)).load(one_device())
    assert read == []


# One of each fault that was found, by the field: what its message has to name.
FAULTS = [
    ("wan", "transformer/config.json", "num_layers", 10**9, "num_layers=1000000000"),
    ("wan", "transformer/config.json", "num_layers", "2", "num_layers='2'"),
    ("wan", "transformer/config.json", "num_layers", 3, "blocks.2"),
    ("wan", "transformer/config.json", "num_attention_heads", 0, "num_attention_heads=0"),
    ("wan", "transformer/config.json", "ffn_dim", None, "ffn_dim=None"),
    ("wan", "transformer/config.json", "eps", float("nan"), "NaN"),
    ("wan", "transformer/config.json", "patch_size", [1, 2], "patch_size=(1, 2)"),
    ("wan", "model_index.json", "vae", [], "vae=[]"),
    ("wan", "model_index.json", "vae", [["diffusers"], ["AutoencoderKLWan"]], "vae=[["),
    ("wan-experts", "model_index.json", "boundary_ratio", "0.9", "boundary_ratio='0.9'"),
    ("wan", "vae/config.json", "latents_std", [1.0, 0.0, 1.0, 1.0], "latents_std"),
    ("wan", "vae/config.json", "dim_mult", [1] * 40, "dim_mult"),
    ("wan", "text_encoder/config.json", "vocab_size", 10**12, "vocab_size=1000000000000"),
    ("wan", "text_encoder/config.json", "relative_attention_max_distance", 10**9, "max_distance=1000000000"),
    ("wan", "tokenizer/tokenizer_config.json", "extra_ids", 10**9, "extra_ids 1000000000"),
    ("wan", "tokenizer/tokenizer_config.json", "extra_ids", 30, "45 ids"),
    ("wan", "scheduler/scheduler_config.json", "solver_order", [2], "solver_order=[2]"),
    ("wan", "scheduler/scheduler_config.json", "num_train_timesteps", 10**12, "num_train_timesteps"),
    ("wan", "scheduler/scheduler_config.json", "_class_name", ["UniPCMultistepScheduler"], "scheduler class ["),
    ("wan-image", "image_processor/preprocessor_config.json", "image_std", [0, 0, 0], "image_std"),
    ("wan-image", "image_encoder/config.json", "num_hidden_layers", 10**9, "num_hidden_layers"),
    ("dit", "model_index.json", "id2label", {"0": ["a"]}, "id2label"),
    ("dit", "transformer/config.json", "num_embeds_ada_norm", 10**12, "num_embeds_ada_norm"),
    ("dit", "transformer/config.json", "sample_size", "8", "sample_size"),
    ("dit", "vae/config.json", "scaling_factor", 0, "scaling_factor=0"),
    ("dit", "vae/config.json", "block_out_channels", 3, "block_out_channels=3"),
    ("own-wan", "config.json", "num_layers", 10**9, "num_layers=1000000000"),
    ("own-wan", "config.json", "model_type", ["t2v"], "model_type"),
]


@pytest.mark.parametrize(("name", "file", "key", "value", "named"), FAULTS, ids=lambda value: str(value)[:30])
def test_a_field_out_of_its_range_is_named(templates, tmp_path, name, file, key, value, named):
    def make(seed, folder):
        folders._copy(name, folder)
        folders._edit(folder / file, key, value)
        return "", lambda: folders._use(folder)

    result = attempt(make, 0, tmp_path / "model")
    assert (result.outcome, named in result.detail, result.seconds < 5) == ("refused", True, True), result
