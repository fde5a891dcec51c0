"""The original repositories' layouts: Wan's folders with their .pth files, and DiT's single .pt file."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from vdit.diffusion.config import DiffusionConfig
from vdit.errors import WeightsError
from vdit.experiment.experiment import Experiment
from vdit.models.text.config import T5Config, TextConfig
from vdit.models.vae.config import preset as vae_preset
from vdit.models.vision import CLIPVisionConfig
from vdit.pretrained import clip, dit, kl_vae, t5, wan, wan_vae
from vdit.pretrained.diffusers_folder import (
    data_config,
    dit_sample,
    find_tokenizer,
    open_vae,
    read_config,
    wan_experiment,
    with_sentinels,
)
from vdit.pretrained.model import Component, PublicModel
from vdit.pretrained.scaled_fp8 import open_weights
from vdit.pretrained.scheduler import Scheduling
from vdit.pretrained.tensors import read_json
from vdit.samplers.grid import GridOptions

HIGH, LOW = "high_noise_model", "low_noise_model"
VAE_FILES = ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth")
# Of Wan 2.2 A14B: the share of 1000 below which the second transformer is asked.
BOUNDARY = {"t2v": 875.0, "i2v": 900.0}
SHIFT = {"t2v": 5.0, "i2v": 3.0, "ti2v": 5.0}
# The level that Wan's own sampler starts from, in the bits that it has there.
FIRST = float(np.float32(0.999))
EXPERT_SHIFT = {"t2v": 12.0, "i2v": 5.0}


def is_one(path: Path) -> bool:
    return _is_wan(path) or len(_dit_files(path)) == 1


def open_folder(path: Path) -> PublicModel:
    """What an original folder holds; WeightsError names what is missing or unknown."""
    return _wan(path) if _is_wan(path) else _dit(path)


def _is_wan(path: Path) -> bool:
    return (path / HIGH).is_dir() or ((path / "config.json").is_file() and bool(_some(path, "models_t5_*")))


def _dit_files(path: Path) -> list[Path]:
    return _some(path, "*.pt") if (path / "vae").is_dir() else []


def _some(path: Path, pattern: str) -> list[Path]:
    return sorted(path.glob(pattern))


def _wan(path: Path) -> PublicModel:
    experts = (path / HIGH).is_dir()
    folders = {"dit": path / HIGH, "dit_low": path / LOW} if experts else {"dit": path}
    components, kind, config = [], None, None
    for tree, folder in folders.items():
        files = open_weights(folder)
        found = read_config(functools.partial(wan.original_config, names=files.info), folder / "config.json")
        json = read_json(folder / "config.json")
        if config not in (None, found):
            raise WeightsError(f"{path}: {HIGH} and {LOW} differ in config.json: experts are of one form")
        kind, config = json.get("model_type"), found
        name = "transformer" if tree == "dit" else "transformer_2"
        components.append(Component(tree=tree, folder=name, files=files, rules=tuple(wan.original_rules(config))))
    tokenizer = find_tokenizer(_only(path / "google", "*", "the tokenizer's folder (google/umt5-xxl)"))
    text = with_sentinels(_text(path, components), tokenizer)
    vision = _vision(path, components) if config.image_width else None
    vae, statistics = _vae(path, components)
    scheduling = scheduling_of(EXPERT_SHIFT[kind] if experts else SHIFT.get(kind, 5.0))
    boundary = BOUNDARY[kind] if experts else None
    return PublicModel(
        folder=path,
        experiment=wan_experiment(path, config, text, vision, vae, scheduling, boundary),
        components=tuple(components),
        statistics=statistics,
        tokenizer=tokenizer,
    )


def scheduling_of(shift: float) -> Scheduling:
    """Wan's own sampler: UniPC from 0.999 to 0, times cut to whole numbers."""
    diffusion = DiffusionConfig(kind="flow", prediction="velocity", shift=shift, integer_timesteps=True)
    return Scheduling(diffusion=diffusion, sampler="unipc", grid=GridOptions(spacing="uniform", high=FIRST))


def _text(path: Path, components: list[Component]) -> T5Config:
    files = open_weights(_only(path, "models_t5_*", "the text encoder (models_t5_umt5-xxl-enc-bf16.pth)"))
    config = t5.shape_of(files)
    components.append(
        Component(tree="text", folder="text_encoder", files=files, rules=tuple(t5.original_rules(config)))
    )
    return config


def _vision(path: Path, components: list[Component]) -> CLIPVisionConfig:
    files = open_weights(_only(path, "models_clip_*", "the image encoder (models_clip_open-clip-...-huge-14.pth)"))
    config = CLIPVisionConfig()
    rules = tuple(clip.original_rules(config))
    components.append(
        Component(tree="vision", folder="image_encoder", files=files, rules=rules, ignore=clip.ORIGINAL_UNUSED)
    )
    return config


def _vae(path: Path, components: list[Component]):
    found = [path / name for name in VAE_FILES if (path / name).is_file()]
    if len(found) != 1:
        raise WeightsError(f"{path}: has {len(found)} of {', '.join(VAE_FILES)}, must have one: take the whole folder")
    new = found[0].name == VAE_FILES[1]
    config = vae_preset("wan22" if new else "wan21")
    statistics = wan_vae.WAN22_STATISTICS if new else wan_vae.WAN21_STATISTICS
    rules = tuple(wan_vae.original_rules(config))
    components.append(Component(tree="vae", folder="vae", files=open_weights(found[0]), rules=rules))
    return config, statistics


def _only(path: Path, pattern: str, what: str) -> Path:
    found = _some(path, pattern)
    if len(found) != 1:
        raise WeightsError(f"{path}: has {len(found)} files {pattern}, must have one, {what}: take the whole folder")
    return found[0]


def _dit(path: Path) -> PublicModel:
    """A DiT checkpoint beside the autoencoder's diffusers folder: DiT-XL-2-256x256.pt and vae/."""
    (file,) = _dit_files(path)
    files = open_weights(file)
    shapes = {name: info.shape for name, info in files.info.items()}
    config = dit.config_from_shapes(shapes)
    constants = dit.original_constants(config, shapes)
    for name, wanted in constants.items():
        if not np.allclose(files.read(name), wanted, atol=1e-4):
            raise WeightsError(f"{file}: {name} is not DiT's fixed table of positions: this is another model")
    vae, statistics, vae_component = open_vae(path / "vae", kl_vae)
    tokens = shapes["pos_embed"][1] if "pos_embed" in shapes else 256
    side = round(tokens**0.5) * config.patch[1] * vae.spatial_stride
    diffusion = DiffusionConfig(kind="ddpm", prediction="noise", learn_variance=config.learn_variance)
    scheduling = Scheduling(diffusion=diffusion, sampler="ddpm", grid=GridOptions(spacing="linspace"))
    experiment = Experiment(
        name=file.stem,
        data=data_config(vae, config.patch, fps=1.0),
        text=TextConfig(max_length=1),
        vae=vae,
        dit=config,
        diffusion=diffusion,
        first_label=0,
        sample=dit_sample(scheduling, side=side),
    )
    component = Component(
        tree="dit", folder="transformer", files=files, rules=tuple(dit.original_rules(config)), ignore=tuple(constants)
    )
    return PublicModel(
        folder=path, experiment=experiment, components=(component, vae_component), statistics=statistics, tokenizer=None
    )
