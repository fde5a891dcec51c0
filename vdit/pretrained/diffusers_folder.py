"""diffusers folders: model_index.json, and one folder for each network, scheduler and tokenizer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vdit import samplers
from vdit.data.config import DataConfig
from vdit.errors import ConfigError, WeightsError
from vdit.experiment.experiment import Experiment, SampleConfig
from vdit.models.dit.config import DiTConfig
from vdit.models.text import T5Config, TextConfig, load_t5_tokenizer, t5_text
from vdit.models.text.t5_tokenizer import MODEL_NAMES
from vdit.models.vae.config import VAEConfig
from vdit.models.vision import CLIPVisionConfig
from vdit.pretrained import clip, dit, kl_vae, t5, wan, wan_vae
from vdit.pretrained.model import Component, PublicModel
from vdit.pretrained.open import open_weights
from vdit.pretrained.options import check_option, flag, number, several, words
from vdit.pretrained.scheduler import Scheduling, scheduler_config
from vdit.pretrained.tensors import read_json

T = TypeVar("T")
INDEX = "model_index.json"
PIPELINES = ("WanPipeline", "WanImageToVideoPipeline", "DiTPipeline")
# What a folder may hold that is no network, and that an export gives back as it was.
EXTRA_FOLDERS = ("scheduler", "tokenizer", "image_processor", "feature_extractor")
NETWORKS = {
    "transformer": "dit",
    "transformer_2": "dit_low",
    "text_encoder": "text",
    "image_encoder": "vision",
    "vae": "vae",
}
MAX_TEXT = 512  # tokens of a prompt, as Wan pads it
# What is read of model_index.json besides its parts.
_INDEX = {
    "boundary_ratio": number(low=0.0, high=1.0, none=True),
    "expand_timesteps": flag(none=True),
}
_LABEL = 1000
_PART = several(None, words(none=True), 2, 2)


def is_one(path: Path) -> bool:
    """Whether a folder is one that diffusers saves."""
    return (path / INDEX).is_file()


def open_folder(path: Path) -> PublicModel:
    """Read what a diffusers folder holds.

    Args:
        path: a folder with model_index.json of a WanPipeline, WanImageToVideoPipeline or DiTPipeline.

    Returns:
        The model; its tensors are not read yet.

    Raises:
        WeightsError: something is missing, unknown or contradictory.
    """
    index = read_json(path / INDEX)
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise WeightsError(f"{path / INDEX}: _class_name={pipeline!r} is not supported: use one of {known}")
    for name, option in _INDEX.items():
        check_option(name, index.get(name), option, where=str(path / INDEX))
    for name, value in index.items():
        if isinstance(value, list):
            check_option(name, value, _PART, where=str(path / INDEX))
    parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    _check_parts(path, parts, pipeline)
    return _dit_pipeline(path, index) if pipeline == "DiTPipeline" else _wan_pipeline(path, index, parts)


def _check_parts(path: Path, parts: Mapping[str, str], pipeline: str) -> None:
    unknown = sorted(set(parts) - set(NETWORKS) - set(EXTRA_FOLDERS))
    if unknown:
        raise WeightsError(f"{path / INDEX}: part {unknown[0]!r} is unknown here: known are {', '.join(NETWORKS)}")
    wanted = ["transformer", "vae", "scheduler"]
    if pipeline != "DiTPipeline":
        wanted += ["text_encoder", "tokenizer"]
    for name in wanted:
        if name not in parts:
            raise WeightsError(f"{path / INDEX}: has no {name!r}, which a {pipeline} needs: download the whole folder")
    for name in parts:
        if not (path / name).is_dir():
            raise WeightsError(f"{path / name}: no such folder, though {INDEX} names it: download the whole folder")


def _wan_pipeline(path: Path, index: Mapping[str, Any], parts: Mapping[str, str]) -> PublicModel:
    config = read_config(wan.wan_config, path / "transformer" / "config.json")
    # Norms that some files carry and the reference never calls.
    unused = tuple(f"blocks.{i}.attn2.norm_added_q" for i in range(config.depth)) if config.image_width else ()
    components = [_component(path, "transformer", wan.diffusers_rules(config), ignore=unused)]
    if "transformer_2" in parts:
        if read_config(wan.wan_config, path / "transformer_2" / "config.json") != config:
            rule = "transformer and transformer_2 differ in config.json: both experts must have the same shape"
            raise WeightsError(f"{path}: {rule}")
        components.append(_component(path, "transformer_2", wan.diffusers_rules(config)))
    tokenizer = find_tokenizer(path / "tokenizer")
    text = with_sentinels(read_config(t5.t5_config, path / "text_encoder" / "config.json"), tokenizer)
    files = open_weights(path / "text_encoder")
    components.append(
        Component(tree="text", folder="text_encoder", files=files, rules=tuple(t5.diffusers_rules(text, files.info)))
    )
    vision = None
    if config.image_width:
        pixels = read_json(path / "image_processor" / "preprocessor_config.json")
        read = functools.partial(clip.clip_config, preprocessor=pixels)
        vision = read_config(read, path / "image_encoder" / "config.json")
        files = open_weights(path / "image_encoder")
        rules = tuple(clip.diffusers_rules(vision, files.info))
        components.append(
            Component(tree="vision", folder="image_encoder", files=files, rules=rules, ignore=clip.UNUSED)
        )
    vae, statistics, vae_component = _vae(path, wan_vae)
    scheduling = read_config(scheduler_config, path / "scheduler" / "scheduler_config.json")
    boundary = index.get("boundary_ratio")
    if (boundary is None) != ("transformer_2" not in parts):
        rule = "and transformer_2 go together: download the whole folder"
        raise WeightsError(f"{path / INDEX}: boundary_ratio={boundary} {rule}")
    boundary = None if boundary is None else 1000.0 * boundary
    return PublicModel(
        folder=path,
        experiment=wan_experiment(path, config, text, vision, vae, scheduling, boundary),
        components=(*components, vae_component),
        statistics=statistics,
        tokenizer=tokenizer,
        extras=_extras(path),
    )


def wan_experiment(
    path: Path,
    dit: DiTConfig,
    text: T5Config,
    vision: CLIPVisionConfig | None,
    vae: VAEConfig,
    scheduling: Scheduling,
    boundary: float | None,
) -> Experiment:
    """Put the parts of a Wan model together as an experiment.

    Args:
        path: the folder or file, which names the experiment.
        dit: config of the transformer, or of both.
        text: config of the text encoder.
        vision: config of the image encoder. None: the model has none.
        vae: config of the autoencoder.
        scheduling: noise schedule, sampler and grid that the model is sampled with.
        boundary: time (0..1000) below which the second transformer is used. None: there is one transformer.

    Raises:
        WeightsError: transformer and autoencoder do not go together.
    """
    try:
        wan.check_inputs(dit, vae.latent_channels, vae.temporal_stride)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    sample = sample_config(scheduling, vae, experts=boundary is not None, image=dit.condition_channels > 0)
    return Experiment(
        name=path.resolve().name,
        data=data_config(vae, dit.patch, fps=sample.fps),
        text=t5_text(text, max_length=MAX_TEXT),
        vision=vision,
        vae=vae,
        backbone=dit,
        diffusion=scheduling.diffusion,
        expert_boundary=boundary,
        sample=sample,
    )


def _dit_pipeline(path: Path, index: Mapping[str, Any]) -> PublicModel:
    file = path / "transformer" / "config.json"
    config = read_config(dit.dit_config, file)
    vae, statistics, vae_component = _vae(path, kl_vae)
    scheduling = read_config(scheduler_config, path / "scheduler" / "scheduler_config.json")
    labels = _labels(path, index.get("id2label"), config.classes)
    experiment = Experiment(
        name=path.resolve().name,
        data=data_config(vae, config.patch, fps=1.0),
        text=TextConfig(max_length=1),
        vae=vae,
        backbone=config,
        diffusion=dataclasses.replace(scheduling.diffusion, learn_variance=config.learn_variance),
        first_label=0,
        label_names=labels,
        sample=dit_sample(scheduling, side=read_json(file).get("sample_size", 32) * vae.spatial_stride),
    )
    return PublicModel(
        folder=path,
        experiment=experiment,
        components=(_component(path, "transformer", dit.diffusers_rules(config)), vae_component),
        statistics=statistics,
        tokenizer=None,
        extras=_extras(path),
    )


def _labels(path: Path, names: Any, classes: int) -> tuple[str, ...]:
    """What model_index.json calls the classes, in their order; () if it does not."""
    if not names:
        return ()
    fits = isinstance(names, dict) and len(names) <= classes
    if not fits or not all(isinstance(name, str) and len(name) <= _LABEL for name in names.values()):
        raise WeightsError(
            f"{path / INDEX}: id2label must be an object of at most {classes} names of up to {_LABEL} characters, as "
            "transformer/config.json has that many classes: download the whole folder"
        )
    return tuple(names.get(str(i), "") for i in range(classes))


def read_config(read: Callable[[dict], T], path: Path) -> T:
    """Read a JSON file by a function that makes a config of it; its errors name the file.

    Args:
        read: JSON object -> config.
        path: the file.

    Raises:
        WeightsError: the file is no JSON object, or `read` refuses it.
    """
    json = read_json(path)
    try:
        return read(json)
    except (WeightsError, ConfigError) as error:
        raise WeightsError(f"{path}: {error}") from None


def _component(path: Path, name: str, rules: list, *, ignore: tuple[str, ...] = ()) -> Component:
    files = open_weights(path / name)
    return Component(tree=NETWORKS[name], folder=name, files=files, rules=tuple(rules), ignore=ignore)


def _vae(path: Path, family) -> tuple[VAEConfig, dict[str, np.ndarray], Component]:
    return open_vae(path / "vae", family)


def open_vae(path: Path, family) -> tuple[VAEConfig, dict[str, np.ndarray], Component]:
    """Read the folder of an autoencoder.

    Args:
        path: a folder with config.json and weights.
        family: the module of its weight map, `wan_vae` or `kl_vae`.

    Returns:
        (config, {"mean", "std"} of its latents, the component).

    Raises:
        WeightsError: an option is unknown, or a file is missing or damaged.
    """
    config = read_config(family.vae_config, path / "config.json")
    files = open_weights(path)
    rules = family.diffusers_rules(config)
    if family is kl_vae and any(".query." in name for name in files.info):
        rules = kl_vae.old_diffusers_rules(config)
    component = Component(tree="vae", folder="vae", files=files, rules=tuple(rules))
    return config, read_config(family.statistics, path / "config.json"), component


def sample_config(scheduling, vae: VAEConfig, *, experts: bool, image: bool) -> SampleConfig:
    """How a Wan model is meant to be sampled, as its repositories say.

    Args:
        scheduling: noise schedule, sampler and grid.
        vae: config of the autoencoder, which tells Wan 2.2 TI2V-5B from the others.
        experts: whether there are two transformers (Wan 2.2 A14B).
        image: whether it is an image-to-video model.
    """
    options = {"frames": 81, "size": (480, 832), "fps": 16.0, "steps": 50, "guidance": 5.0}
    if vae.spatial_stride == 16:  # Wan 2.2 TI2V-5B
        options |= {"frames": 121, "size": (704, 1280), "fps": 24.0, "conditioning": "clean"}
    elif experts:
        low, high = (3.5, 3.5) if image else (3.0, 4.0)
        options |= {"size": (720, 1280), "steps": 40, "guidance": high, "low_guidance": low}
    return SampleConfig(
        sampler=samplers.make(scheduling.sampler, **dict(scheduling.options)), grid=scheduling.grid, **options
    )


def dit_sample(scheduling, *, side: int) -> SampleConfig:
    """How a DiT is meant to be sampled: 250 steps, guidance 4 (Peebles and Xie, 2023).

    Args:
        scheduling: noise schedule, sampler and grid.
        side: of its square images, in pixels.
    """
    return SampleConfig(
        frames=1, size=(side, side), fps=1.0, steps=250, guidance=4.0,
        sampler=samplers.make(scheduling.sampler, **dict(scheduling.options)), grid=scheduling.grid,
    )  # fmt: skip


def data_config(vae: VAEConfig, patch: tuple[int, int, int], *, fps: float) -> DataConfig:
    """Sizes that a model can take, for training it further.

    Args:
        vae: config of the autoencoder.
        patch: of the transformer, (frames, rows, columns) of latents.
        fps: frame rate that the model was trained at.
    """
    return DataConfig(
        fps=(fps,),
        size_multiple=vae.spatial_stride * max(patch[1:]),
        frame_multiple=vae.temporal_stride,
        max_text_per_row=MAX_TEXT,
    )


def with_sentinels(config: T5Config, tokenizer: Path) -> T5Config:
    """The encoder's config with as many sentinel tokens as its tokenizer has.

    Args:
        config: of the text encoder.
        tokenizer: the tokenizer's file.

    Raises:
        WeightsError: the tokenizer has more ids than the encoder's table has rows.
        TextError: the file is no tokenizer of a T5.
    """
    opened = load_t5_tokenizer(tokenizer)
    if opened.vocab_size > config.vocab_size:
        raise WeightsError(
            f"{tokenizer}: has {opened.vocab_size} ids with its sentinels, more than the text encoder's "
            f"{config.vocab_size}: it is another model's"
        )
    return dataclasses.replace(config, extra_ids=opened.extra_ids)


def find_tokenizer(folder: Path) -> Path:
    """The tokenizer's file of a folder: of sentencepiece, else tokenizer.json.

    Raises:
        WeightsError: the folder has neither.
    """
    for name in MODEL_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"{folder}: has none of {', '.join(MODEL_NAMES)}: prompts are read by the model's own tokenizer, so take the "
        "whole folder"
    )


def _extras(path: Path) -> tuple[str, ...]:
    """Small files beside the weights, by path inside the folder."""
    files = [path / INDEX, *(path / name / "config.json" for name in NETWORKS)]
    files += [file for name in EXTRA_FOLDERS for file in sorted((path / name).glob("*"))]
    return tuple(str(file.relative_to(path)) for file in files if file.is_file())
