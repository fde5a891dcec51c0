"""The original repositories' layouts, and a Wan's transformer in one file of its own, as ComfyUI uses it.

Folders: Wan's with their .pth files, and DiT's single .pt file beside the folder of an autoencoder. Single files:

    open_file("wan2.1_t2v_1.3B_fp16.safetensors", ["Wan2.1-T2V-1.3B-Diffusers"])        the rest from a model's folder
    open_file("mix.safetensors", ["umt5_xxl_fp16.safetensors", "wan_2.1_vae.safetensors"])           from single files
    open_file("ComfyUI/models/diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors")    from beside it

Without parts, they are looked for in ComfyUI's own tree (text_encoders or clip, vae, clip_vision beside
diffusion_models), or else in the file's folder. The names and shapes of its tensors tell what a file is for. The
tokenizer is a file of its own (spiece.model, tokenizer.model, tokenizer.json), or is inside the text encoder's file,
where ComfyUI puts it. Of Wan 2.2 A14B the file of either expert is given; the other is found beside it by its name.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdit.diffusion.config import DiffusionConfig
from vdit.errors import WeightsError
from vdit.experiment.experiment import Experiment
from vdit.models.dit.config import DiTConfig
from vdit.models.text import load_t5_tokenizer
from vdit.models.text.config import T5Config, TextConfig
from vdit.models.text.t5_tokenizer import MODEL_NAMES
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
from vdit.pretrained.model import Component, PublicModel, open_model
from vdit.pretrained.open import SUFFIXES, open_weights
from vdit.pretrained.scheduler import Scheduling
from vdit.pretrained.tensors import TensorFiles, read_json
from vdit.reprs import listed
from vdit.samplers.grid import GridOptions

HIGH, LOW = "high_noise_model", "low_noise_model"
VAE_FILES = ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth")
# Of Wan 2.2 A14B: the share of 1000 below which the second transformer is used.
BOUNDARY = {"t2v": 875.0, "i2v": 900.0}
SHIFT = {"t2v": 5.0, "i2v": 3.0, "ti2v": 5.0}
# The level that Wan's own sampler starts from, in the bits that it has there.
FIRST = float(np.float32(0.999))
EXPERT_SHIFT = {"t2v": 12.0, "i2v": 5.0}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
# Where all-in-one checkpoints of ComfyUI hold the other networks.
_INSIDE = ("text_encoders.umt5xxl.transformer.", "cond_stage_model.umt5xxl.transformer.", "first_stage_model.", "vae.")
_COMFY, _COMFY_PARTS = ("diffusion_models", "unet"), ("text_encoders", "clip", "vae", "clip_vision")
_HEAD_DIM = 128  # of every published Wan
_SPIECE = "spiece_model"
_MOST_FILES = 500


def is_one(path: Path) -> bool:
    """Whether a folder is in the layout of Wan's or DiT's own repository."""
    return _is_wan(path) or len(_dit_files(path)) == 1


def open_folder(path: Path) -> PublicModel:
    """Read what a folder of Wan's or DiT's own repository holds.

    Args:
        path: the folder.

    Returns:
        The model; its tensors are not read yet.

    Raises:
        WeightsError: something is missing or unknown.
    """
    return _wan_folder(path) if _is_wan(path) else _dit_folder(path)


def _is_wan(path: Path) -> bool:
    return (path / HIGH).is_dir() or ((path / "config.json").is_file() and bool(_matching(path, "models_t5_*")))


def _dit_files(path: Path) -> list[Path]:
    return _matching(path, "*.pt") if (path / "vae").is_dir() else []


def _matching(path: Path, pattern: str) -> list[Path]:
    return sorted(path.glob(pattern))


def _wan_folder(path: Path) -> PublicModel:
    experts = (path / HIGH).is_dir()
    folders = {"dit": path / HIGH, "dit_low": path / LOW} if experts else {"dit": path}
    components, kind, config = [], None, None
    for tree, folder in folders.items():
        files = open_weights(folder)
        found = read_config(functools.partial(wan.original_config, names=files.info), folder / "config.json")
        json = read_json(folder / "config.json")
        if config not in (None, found):
            raise WeightsError(f"{path}: {HIGH} and {LOW} differ in config.json: both experts must have the same shape")
        kind, config = json.get("model_type"), found
        name = "transformer" if tree == "dit" else "transformer_2"
        components.append(Component(tree=tree, folder=name, files=files, rules=tuple(wan.original_rules(config))))
    tokenizer = find_tokenizer(_only_path(path / "google", "*", "the tokenizer's folder (google/umt5-xxl)"))
    text = with_sentinels(_folder_text(path, components), tokenizer)
    vision = _folder_vision(path, components) if config.image_width else None
    vae, statistics = _folder_vae(path, components)
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
    """Wan's own sampler: UniPC from noise level 0.999 to 0, with times cut to whole numbers.

    Args:
        shift: of the noise schedule, above 0; larger spends more steps at high noise.
    """
    diffusion = DiffusionConfig(kind="flow", prediction="velocity", shift=shift, integer_timesteps=True)
    return Scheduling(diffusion=diffusion, sampler="unipc", grid=GridOptions(spacing="uniform", high=FIRST))


def _folder_text(path: Path, components: list[Component]) -> T5Config:
    files = open_weights(_only_path(path, "models_t5_*", "the text encoder (models_t5_umt5-xxl-enc-bf16.pth)"))
    config = t5.shape_of(files)
    components.append(
        Component(tree="text", folder="text_encoder", files=files, rules=tuple(t5.original_rules(config)))
    )
    return config


def _folder_vision(path: Path, components: list[Component]) -> CLIPVisionConfig:
    files = open_weights(_only_path(path, "models_clip_*", "the image encoder (models_clip_open-clip-...-huge-14.pth)"))
    config = CLIPVisionConfig()
    rules = tuple(clip.original_rules(config))
    components.append(
        Component(tree="vision", folder="image_encoder", files=files, rules=rules, ignore=clip.ORIGINAL_UNUSED)
    )
    return config


def _folder_vae(path: Path, components: list[Component]):
    found = [path / name for name in VAE_FILES if (path / name).is_file()]
    if len(found) != 1:
        raise WeightsError(f"{path}: has {len(found)} of {', '.join(VAE_FILES)}, must have one: take the whole folder")
    new = found[0].name == VAE_FILES[1]
    config = vae_preset("wan22" if new else "wan21")
    statistics = wan_vae.WAN22_STATISTICS if new else wan_vae.WAN21_STATISTICS
    rules = tuple(wan_vae.original_rules(config))
    components.append(Component(tree="vae", folder="vae", files=open_weights(found[0]), rules=rules))
    return config, statistics


def _only_path(path: Path, pattern: str, what: str) -> Path:
    found = _matching(path, pattern)
    if len(found) != 1:
        raise WeightsError(f"{path}: has {len(found)} files {pattern}, must have one, {what}: take the whole folder")
    return found[0]


def _dit_folder(path: Path) -> PublicModel:
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
        backbone=config,
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


class _Part(NamedTuple):
    """A file that may hold one of the other networks. role: "text", "vae", "vision", "dit"; None for none of them."""

    files: TensorFiles
    role: str | None


def open_file(path: Path, parts: Sequence[str | Path] = ()) -> PublicModel:
    """Put a model together from a transformer's file and its parts.

    Args:
        path: the transformer's file.
        parts: files, or folders of them, of the text encoder, the autoencoder, the image encoder and the tokenizer; or
            one folder of a public model, whose transformer is replaced. (): they are looked for.

    Returns:
        The model; its tensors are not read yet.

    Raises:
        WeightsError: a part is missing or ambiguous, or parts do not go together.
    """
    whole = open_weights(path)
    files = _transformer(whole)
    named = wan.expert_of_name(path.name)
    folders = [Path(part) for part in parts if _is_model(Path(part))]
    if folders and len(parts) > 1:
        raise WeightsError(f"{folders[0]}: is a whole model: give it alone as the parts, or give single files")
    if folders:
        return _replace(open_model(folders[0]), path, files, named)
    candidates, tokenizers = _candidates(path, whole, parts)
    config = _config_of_shapes(files)
    if named is None and config.condition_channels and not config.image_width:
        rule = "it has the form of one of two experts (image to video of Wan 2.2 A14B), and its name does not say which"
        raise WeightsError(f"{path}: {rule}: name the two files with high_noise and low_noise")
    components = [_component("dit", "transformer", files, wan.original_rules(config))]
    if named is not None:
        components = _experts(path, files, named, config, wan.original_rules(config))
    text, part, tokenizer = _text_part(path, config, candidates, tokenizers)
    components.append(part)
    vision = None
    if config.image_width:
        one = _only_part(path, "image encoder (clip_vision_h.safetensors)", _of_role(candidates, "vision"))
        vision = CLIPVisionConfig()
        rules = clip.diffusers_rules(vision, one.info)
        components.append(_component("vision", "image_encoder", one, rules, clip.UNUSED))
    fits = lambda found: wan_vae.shape_of(found).latent_channels == config.in_channels  # noqa: E731
    one = _only_part(path, f"autoencoder of {config.in_channels} channels", filter(fits, _of_role(candidates, "vae")))
    vae = wan_vae.shape_of(one)
    components.append(_component("vae", "vae", one, wan_vae.original_rules(vae)))
    kind = "ti2v" if config.in_channels == 48 else "i2v" if config.condition_channels else "t2v"
    shift = (EXPERT_SHIFT if named else SHIFT)[kind]
    boundary = BOUNDARY[kind] if named else None
    scheduling = scheduling_of(shift)
    return PublicModel(
        folder=path.parent,
        experiment=wan_experiment(path.with_suffix(""), config, text, vision, vae, scheduling, boundary),
        components=tuple(components),
        statistics=wan_vae.WAN22_STATISTICS if config.in_channels == 48 else wan_vae.WAN21_STATISTICS,
        tokenizer=tokenizer,
    )


def _is_model(path: Path) -> bool:
    from vdit.pretrained import diffusers_folder

    if not path.exists():
        raise WeightsError(f"{path}: no such file or folder of the model's parts")
    return path.is_dir() and (diffusers_folder.is_one(path) or is_one(path))


def _replace(base: PublicModel, path: Path, files: TensorFiles, named: str | None) -> PublicModel:
    """A public model with the transformer, or both, of single files."""
    config = base.experiment.backbone
    found = _config_of_shapes(files, like=config)
    for field in dataclasses.fields(DiTConfig):
        ours, theirs = getattr(found, field.name), getattr(config, field.name)
        if ours != theirs and field.name not in ("dtype", "remat", "sequence_parallel", "scan", "norm_eps"):
            raise WeightsError(f"{path}: has {field.name}={ours}, {base.folder} has {theirs}: give parts of its kind")
    experts = base.experiment.expert_boundary is not None
    if experts != (named is not None):
        rule = "has two experts: put high_noise or low_noise into the file's name" if experts else "has one transformer"
        which = f"{named}-noise" if named else "no"
        raise WeightsError(f"{path}: is by its name {which} expert, and {base.folder} {rule}")
    rules = wan.original_rules(config)
    new = [_component("dit", "transformer", files, rules)]
    if named is not None:
        new = _experts(path, files, named, config, rules)
    rest = [part for part in base.components if part.tree not in ("dit", "dit_low")]
    experiment = dataclasses.replace(base.experiment, name=path.stem)
    return dataclasses.replace(base, experiment=experiment, components=(*new, *rest))


def _experts(path: Path, files: TensorFiles, named: str, config: DiTConfig, rules: list) -> list[Component]:
    """Both transformers of Wan 2.2 A14B: the file, and the other one beside it."""
    other = "low" if named == "high" else "high"
    alike = lambda name: re.sub("high|low", "*", name.lower())  # noqa: E731
    beside = [file for file in _files(path.parent) if file.suffix in SUFFIXES and alike(file.name) == alike(path.name)]
    found = [file for file in beside if wan.expert_of_name(file.name) == other]
    if len(found) != 1:
        rule = f"{len(found)} files beside it have the same name for the {other}-noise one"
        which = f"is the {named}-noise expert of Wan 2.2 A14B by its name"
        raise WeightsError(f"{path}: {which}, and {rule}: put that file beside it")
    second = _transformer(open_weights(found[0]))
    if _config_of_shapes(second, like=config) != _config_of_shapes(files, like=config):
        raise WeightsError(f"{found[0]}: is of another form than {path.name}: both experts must have the same shape")
    both = {named: files, other: second}
    places = {"high": ("dit", "transformer"), "low": ("dit_low", "transformer_2")}
    return [_component(*place, both[name], rules) for name, place in places.items()]


def _component(tree: str, folder: str, files: TensorFiles, rules: Iterable, ignore: tuple[str, ...] = ()) -> Component:
    return Component(tree=tree, folder=folder, files=files, rules=tuple(rules), ignore=ignore)


def _under(files: TensorFiles, prefix: str) -> TensorFiles:
    """The tensors whose names begin so, without that."""
    info = {name.removeprefix(prefix): one for name, one in files.info.items() if name.startswith(prefix)}
    return dataclasses.replace(files, info=info, reader=lambda name: files.read(prefix + name))


def _transformer(files: TensorFiles) -> TensorFiles:
    """A Wan's transformer under Wan's own names."""
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in files.info):
            files = _under(files, prefix)
            break
    if "condition_embedder.time_proj.weight" in files.info:
        raise WeightsError(f"{files.path}: has diffusers' names: give the folder that it is in, with its config.json")
    if "patch_embedding.weight" not in files.info or "head.head.weight" not in files.info:
        raise WeightsError(f"{files.path}: holds no Wan's transformer under Wan's names: it has {listed(files.info)}")
    return files


def _config_of_shapes(files: TensorFiles, like: DiTConfig | None = None) -> DiTConfig:
    """What the shapes of a transformer's tensors say. like: a config that says what they do not, how many heads."""

    def shape(name: str, sides: int) -> tuple[int, ...]:
        found = files.info[name].shape if name in files.info else ()
        if len(found) != sides or min(found, default=0) < 1:
            raise WeightsError(f"{files.path}: {name} is {list(found) or 'not there'}: it must have {sides} sides")
        return found

    wan.refuse_variants(files.info, where=str(files.path))
    width, channels, *patch = shape("patch_embedding.weight", 5)
    layers = {int(match[1]) for name in files.info if (match := re.match(r"blocks\.(\d{1,4})\.", name))}
    heads = width // _HEAD_DIM if like is None else like.heads
    if heads * (_HEAD_DIM if like is None else like.head_dim) != width or not heads:
        raise WeightsError(f"{files.path}: its width {width} is no multiple of {_HEAD_DIM}, the width of a Wan's heads")
    image = shape("img_emb.proj.1.weight", 2)[1] if "img_emb.proj.1.weight" in files.info else 0
    config = wan.config_of(
        patch=tuple(patch),
        heads=heads,
        width=width,
        channels=(channels, shape("head.head.weight", 2)[0] // (patch[0] * patch[1] * patch[2])),
        text_width=shape("text_embedding.0.weight", 2)[1],
        time_features=shape("time_embedding.0.weight", 2)[1],
        mlp_width=shape("blocks.0.ffn.0.weight", 2)[0],
        depth=len(layers),
        norm_eps=1e-6,
        image_width=image,
        image_positions=shape("img_emb.emb_pos", 3)[1] if "img_emb.emb_pos" in files.info else 0,
    )
    try:
        wan.check_inputs(config, config.in_channels, wan.MASK)
    except WeightsError as error:
        raise WeightsError(f"{files.path}: {error}") from None
    return config


def _candidates(path: Path, whole: TensorFiles, parts: Sequence[str | Path]) -> tuple[list[_Part], list[Path]]:
    """(files that may be parts, sentencepiece files)."""
    places = [Path(part) for part in parts]
    if not places:
        tree = next((parent.parent for parent in path.resolve().parents if parent.name in _COMFY), None)
        places = [tree or path.parent]
    inside = [place / name for place in places for name in _COMFY_PARTS if (place / name).is_dir()]
    places += inside
    files = [file for place in places for file in ([place] if place.is_file() else _files(place))]
    files = list({file.resolve(): file for file in reversed(files)}.values())[::-1]  # folders may overlap
    tokenizers = [file for file in files if file.name in MODEL_NAMES or file.suffix == ".model"]
    given = [file for file in files if file.suffix in SUFFIXES and not file.samefile(path)]
    found = []
    for file in given:
        try:
            found.append(_classify(open_weights(file)))
        except WeightsError:
            if file in places:  # it was named; others may be anything
                raise
    found += [_classify(part) for prefix in _INSIDE if (part := _under(whole, prefix)).info]
    return found, tokenizers


def _files(folder: Path) -> list[Path]:
    found = sorted(entry for entry in folder.iterdir() if entry.is_file())
    if len(found) > _MOST_FILES:
        raise WeightsError(f"{folder}: has {len(found)} files, more than {_MOST_FILES} to look through: name the parts")
    return found


def _classify(files: TensorFiles) -> _Part:
    """Which network it is, by names that no other has."""
    tells = {
        # A bias of positions in each layer: what umT5 has and T5 has not.
        "text": ("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
                 "blocks.1.pos_embedding.embedding.weight"),
        "vae": ("decoder.middle.0.residual.0.gamma",),
        "vision": ("vision_model.embeddings.class_embedding",),
        "dit": ("patch_embedding.weight",),
    }  # fmt: skip
    return _Part(files, next((role for role, names in tells.items() if any(n in files.info for n in names)), None))


def _of_role(candidates: list[_Part], role: str) -> list[TensorFiles]:
    return [part.files for part in candidates if part.role == role]


def _only_part(path: Path, what: str, found: Iterable[TensorFiles]) -> TensorFiles:
    found = list(found)
    if len(found) != 1:
        which = f" ({listed(str(files.path) for files in found)})" if found else ""
        how = "give one of them" if found else "give its file, or a folder of the whole model"
        raise WeightsError(f"{path}: {len(found)} files beside it hold the {what}{which}, must be one: {how} as parts")
    return found[0]


def _text_part(
    path: Path, config: DiTConfig, candidates: list[_Part], tokenizers: list[Path]
) -> tuple[T5Config, Component, Path]:
    fits = lambda files: t5.shape_of(files).width == config.text_width  # noqa: E731
    files = _only_part(path, "text encoder (umt5_xxl)", filter(fits, _of_role(candidates, "text")))
    text = t5.shape_of(files)
    if _SPIECE in files.info:
        tokenizer = _written(files.read(_SPIECE).tobytes())
    elif len(tokenizers) == 1:
        (tokenizer,) = tokenizers
    else:
        found = f"{len(tokenizers)} files {' or '.join(MODEL_NAMES)}"
        raise WeightsError(f"{path}: {found} beside it, must be one: give umT5's tokenizer as a part")
    opened = load_t5_tokenizer(tokenizer, extra_ids=text.extra_ids)
    sentinels = opened.extra_ids if opened.vocab_size <= text.vocab_size else 0
    rules = t5.original_rules if "blocks.0.attn.q.weight" in files.info else _hugging_face(files)
    component = _component("text", "text_encoder", files, rules(text), (_SPIECE, *t5.UNUSED))
    return dataclasses.replace(text, extra_ids=sentinels), component, tokenizer


def _hugging_face(files: TensorFiles) -> Callable:
    return lambda config: t5.diffusers_rules(config, files.info)


def _written(model: bytes) -> Path:
    """A sentencepiece model as a file, until vdit ends."""
    folder = Path(tempfile.mkdtemp(prefix="vdit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / MODEL_NAMES[0]).write_bytes(model)
    return folder / MODEL_NAMES[0]
