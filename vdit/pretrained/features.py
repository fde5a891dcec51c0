"""Feature nets for evaluation: from folders of public weights (V-JEPA 2, VideoMAE, CLIP, SigLIP), and one that ships.

    net = open_features("vjepa2-vitl-fpc64-256")       # a folder of config.json and safetensors
    vector = net.embed(video, fps=8)                   # uint8 [t h w 3] -> float32 [d]
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdit.errors import ConfigError, WeightsError
from vdit.models.encoders import (
    IMAGENET,
    WORLDS,
    ImageTower,
    LayersConfig,
    PairConfig,
    TextTower,
    VideoTower,
    VideoTowerConfig,
    open_tokenizer_json,
    spread_frames,
    square_frames,
    world_encoder_params,
)
from vdit.pretrained.model import one_device
from vdit.pretrained.open import open_tensors
from vdit.pretrained.tensors import TensorFiles, read_json
from vdit.pretrained.weights import LINEAR, Layout, Part, Rule, linear, load, norm, rule
from vdit.registry import register
from vdit.reprs import short_repr
from vdit.train.state import abstract_params
from vdit.types import Array, PyTree

FAMILIES = ("vjepa2", "videomae", "clip", "siglip")
Tower = VideoTower | ImageTower | TextTower
SHIPPED = "worlds"
FRAMES = 8  # of a video that image nets look at
_TOKENIZER = "tokenizer.json"
_SIDE, _MOST = 4096, 1 << 17


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoNet:
    """A video encoder as a feature net: the mean of its tokens over a clip of frames spread over the whole video."""

    name: str
    tower: VideoTower
    params: PyTree
    reads_text = False

    def embed(self, video: np.ndarray, fps: float) -> np.ndarray:
        """uint8 [t h w 3] -> float32 [d]."""
        cfg = self.tower.config
        frames = square_frames(spread_frames(video, cfg.frames), cfg.size, mean=cfg.mean, std=cfg.std)
        return np.asarray(apply(self.tower, self.params, frames[None]))[0]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """ConfigError: it reads no text."""
        raise ConfigError(f"{self.name} reads no texts: use CLIP or SigLIP")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class PairNet:
    """CLIP or SigLIP as a feature net: the mean of frames' unit vectors, and texts in the same space.

    tokenizer: of texts, or None where the folder has no tokenizer.json. pad: id of the tokens behind a short text.
    """

    name: str
    image: ImageTower
    text: TextTower
    params: Mapping[str, PyTree]
    tokenizer: Any = None
    pad: int = 0

    @property
    def reads_text(self) -> bool:
        """Whether there is a tokenizer."""
        return self.tokenizer is not None

    def embed(self, video: np.ndarray, fps: float) -> np.ndarray:
        """uint8 [t h w 3] -> float32 [d]."""
        cfg = self.image.config
        frames = square_frames(spread_frames(video, FRAMES), cfg.size, mean=cfg.mean, std=cfg.std, crop=cfg.crop)
        found = np.asarray(apply(self.image, self.params["image"], frames))
        return (found / np.linalg.norm(found, axis=-1, keepdims=True)).mean(0)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> float32 [n d]; what is longer than the model's length is cut, its last token stays the end."""
        if self.tokenizer is None:
            raise ConfigError(f"{self.name}: has no {_TOKENIZER}, so it reads no texts: download that file too")
        cfg, rows = self.text.config, []
        for text in texts:
            ids = self.tokenizer.encode(text).ids
            ids = ids if len(ids) <= cfg.length else [*ids[: cfg.length - 1], ids[-1]]
            rows.append(ids + [ids[-1] if cfg.pool == "class" else self.pad] * (cfg.length - len(ids)))
        batches = [np.array(rows[i : i + 1], np.int32) for i in range(len(rows))]  # one shape, one program
        return np.concatenate([np.asarray(apply(self.text, self.params["text"], row)) for row in batches])


@functools.partial(jax.jit, static_argnums=0)
def apply(module: Tower, params: PyTree, x: Array) -> Array:
    """A tower, compiled."""
    return module.apply({"params": params}, x)


@register("features", "folder")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureFolder:
    """A feature net by name, for evaluators of a training run, which name it in a config.

    path: see `open_features`.
    """

    path: str = SHIPPED

    def open(self) -> VideoNet | PairNet:
        """The net."""
        return open_features(self.path)


def open_features(name: str | Path) -> VideoNet | PairNet:
    """Open a feature net.

    Args:
        name: "worlds", the small encoder that ships; or a folder of transformers' V-JEPA 2, VideoMAE, CLIP or SigLIP:
            config.json and safetensors; for texts also tokenizer.json.

    Raises:
        WeightsError: the folder holds another model, or a file is missing, damaged or contradictory.
    """
    if name == SHIPPED:
        return VideoNet(name="worlds (ships with vdit)", tower=VideoTower(WORLDS), params=world_encoder_params())
    folder = Path(name)
    json = read_json(folder / "config.json")
    family, label = json.get("model_type"), f"{folder.name} ({json.get('model_type')})"
    if family not in FAMILIES:
        raise WeightsError(f"{folder}: model_type={family!r} is no feature net known here: {', '.join(FAMILIES)}")
    tensors = open_tensors(folder)
    if family in ("vjepa2", "videomae"):
        config, rules, ignore = _video(json, folder, tensors)
        tower = VideoTower(config)
        clip = np.zeros((1, config.frames, config.size, config.size, 3), np.float32)
        return VideoNet(name=label, tower=tower, params=_load(tower, clip, rules, tensors, ignore))
    config = _pair(json, folder)
    image, text = ImageTower(config), TextTower(config)
    frame, words = np.zeros((1, config.size, config.size, 3), np.float32), np.zeros((1, config.length), np.int32)
    buffers = ("logit_scale", "logit_bias", "vision_model.embeddings.position_ids",
               "text_model.embeddings.position_ids")  # fmt: skip
    of_text, of_image = ("text_model.", "text_projection."), ("vision_model.", "visual_projection.")
    params = {
        "image": _load(image, frame, image_rules(config), tensors, (*buffers, *of_text)),
        "text": _load(text, words, text_rules(config), tensors, (*buffers, *of_image)),
    }
    file = folder / _TOKENIZER
    tokenizer = open_tokenizer_json(file) if file.is_file() else None
    return PairNet(name=label, image=image, text=text, params=params, tokenizer=tokenizer, pad=_pad(folder, tokenizer))


def _load(
    tower: Tower, example: np.ndarray, rules: list[Rule], tensors: TensorFiles, ignore: tuple[str, ...]
) -> PyTree:
    abstract = abstract_params(lambda key: tower.init(key, example)["params"], one_device())
    return load(rules, tensors, abstract, dtype="float32", ignore=ignore)




def _pad(folder: Path, tokenizer: Any) -> int:
    """The id of the padding that tokenizer_config.json names; else that of "<pad>" or "</s>"."""
    file = folder / "tokenizer_config.json"
    named = read_json(file).get("pad_token") if file.is_file() else None
    named = named.get("content") if isinstance(named, Mapping) else named
    words = [word for word in (named, "<pad>", "</s>") if isinstance(word, str)] if tokenizer else []
    return next((id for word in words if (id := tokenizer.token_to_id(word)) is not None), 0)


def _whole(json: Mapping[str, Any], name: str, default: int, most: int = _MOST) -> int:
    value = json.get(name, default)
    value = value[0] if isinstance(value, list) and len(set(value)) == 1 else value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise WeightsError(f"{name}={value!r} in config.json must be a whole number from 1 to {most}")
    return value


def _number(json: Mapping[str, Any], name: str, default: float) -> float:
    value = json.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 64:
        raise WeightsError(f"{name}={value!r} in config.json must be a number from 0 to 64")
    return float(value)


_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}


def _layers(json: Mapping[str, Any], defaults: Mapping[str, Any], **more: Any) -> LayersConfig:
    """Layers of a config.json, with transformers' defaults."""
    act = json.get("hidden_act", defaults["act"])
    if act not in _ACTIVATIONS:
        raise WeightsError(f"hidden_act={act!r} in config.json is unknown: {', '.join(_ACTIVATIONS)}")
    width = _whole(json, "hidden_size", defaults["width"])
    mlp = int(width * _number(json, "mlp_ratio", 4.0)) if "mlp" not in defaults else None
    return LayersConfig(
        width=width,
        layers=_whole(json, "num_hidden_layers", defaults["layers"], 1000),
        heads=_whole(json, "num_attention_heads", defaults["heads"], 1024),
        mlp=mlp or _whole(json, "intermediate_size", defaults["mlp"]),
        activation=_ACTIVATIONS[act],
        eps=_number(json, "layer_norm_eps", defaults["eps"]),
        **more,
    )


def _pixels(folder: Path, usual: tuple[tuple[float, ...], tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """mean and std of the folder's preprocessor, or the usual ones."""
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        if (folder / name).is_file():
            json = read_json(folder / name)
            found = [json.get("image_mean", list(usual[0])), json.get("image_std", list(usual[1]))]
            if not all(isinstance(part, list) and len(part) == 3 and all(
                isinstance(x, int | float) and -100 < x < 100 for x in part) for part in found) or min(found[1]) <= 0:
                raise WeightsError(f"{folder / name}: image_mean and image_std must be three numbers each")  # fmt: skip
            return {"mean": tuple(map(float, found[0])), "std": tuple(map(float, found[1]))}
    return {"mean": usual[0], "std": usual[1]}


def _video(json: Mapping[str, Any], folder: Path, tensors: TensorFiles) -> tuple[VideoTowerConfig, list[Rule], tuple]:
    """(config, rules, tensors that are not read) of V-JEPA 2 or VideoMAE."""
    jepa = json["model_type"] == "vjepa2"
    size, frames = (("crop_size", 256), ("frames_per_clip", 64)) if jepa else (("image_size", 224), ("num_frames", 16))
    place = {
        "size": _whole(json, *size, _SIDE), "frames": _whole(json, *frames, _SIDE),
        "patch": _whole(json, "patch_size", 16, _SIDE), "tubelet": _whole(json, "tubelet_size", 2, _SIDE),
    }  # fmt: skip
    usual = IMAGENET
    bare = not any(name.startswith("videomae.") for name in tensors.info)
    prefix = "" if jepa or bare else "videomae."
    if jepa:
        side = place["size"] // place["patch"]
        grid = (place["frames"] // place["tubelet"], side, side)
        layers = _layers(json, {"width": 1024, "layers": 24, "heads": 16, "act": "gelu", "eps": 1e-6}, grid=grid)
        config = VideoTowerConfig(layers=layers, position="none", **place, **_pixels(folder, usual))
        return config, jepa_rules(config), ("predictor.", "pooler.", "classifier.")
    layers = _layers(json, {"width": 768, "layers": 12, "heads": 12, "mlp": 3072, "act": "gelu", "eps": 1e-12},
                     key_bias=False)  # fmt: skip
    final = f"{prefix}layernorm.weight" in tensors.info
    config = VideoTowerConfig(layers=layers, final_norm=final, **place, **_pixels(folder, usual))
    rest = ("decoder.", "encoder_to_decoder.", "mask_token", "classifier.", "fc_norm.")
    return config, mae_rules(config, prefix, set(tensors.info)), rest


def _conv3d(config: VideoTowerConfig) -> Layout:
    """torch's Conv3d [o i t h w] over tubelets, and our kernel [t*h*w*i o]."""
    t, p = config.tubelet, config.patch
    return Layout(
        read=lambda x: x.transpose(2, 3, 4, 1, 0).reshape(t * p * p * 3, -1),
        write=lambda x: x.reshape(t, p, p, 3, -1).transpose(4, 3, 0, 1, 2),
    )


def _layer_rules(theirs: str, names: Mapping[str, str], i: int) -> list[Rule]:
    """Rules of one layer. names: ours -> theirs, behind the layer's own name."""
    ours, rules = f"layers/layer_{i}", []
    for part, name in names.items():
        rules += (norm if part.endswith("norm") else linear)(f"{theirs}.{name}", f"{ours}/{part}")
    return rules


def jepa_rules(config: VideoTowerConfig) -> list[Rule]:
    """Map of V-JEPA 2's encoder from transformers' names."""
    names = {"q": "attention.query", "k": "attention.key", "v": "attention.value", "out": "attention.proj"}
    names |= {"attention_norm": "norm1", "mlp_norm": "norm2", "up": "mlp.fc1", "down": "mlp.fc2"}
    stem = "encoder.embeddings.patch_embeddings.proj"
    rules = [rule(f"{stem}.weight", "patch_embed/kernel", _conv3d(config)), rule(f"{stem}.bias", "patch_embed/bias")]
    for i in range(config.layers.layers):
        rules += _layer_rules(f"encoder.layer.{i}", names, i)
    return rules + norm("encoder.layernorm", "norm")


def mae_rules(config: VideoTowerConfig, prefix: str = "", found: set[str] = frozenset()) -> list[Rule]:
    """Map of VideoMAE's encoder from transformers' names.

    Args:
        config: of the encoder.
        prefix: "videomae." in files of models with a head.
        found: names in the file; older ones call the biases q_bias and v_bias.
    """
    stem = f"{prefix}embeddings.patch_embeddings.projection"
    rules = [rule(f"{stem}.weight", "patch_embed/kernel", _conv3d(config)), rule(f"{stem}.bias", "patch_embed/bias")]
    names = {"out": "attention.output.dense", "attention_norm": "layernorm_before", "mlp_norm": "layernorm_after",
             "up": "intermediate.dense", "down": "output.dense"}  # fmt: skip
    for i in range(config.layers.layers):
        theirs = f"{prefix}encoder.layer.{i}"
        rules += _layer_rules(theirs, names, i)
        for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
            path, attention = f"layers/layer_{i}/{part}", f"{theirs}.attention.attention"
            rules.append(rule(f"{attention}.{name}.weight", f"{path}/kernel", LINEAR))
            if part != "k":
                old = f"{attention}.{part}_bias"
                rules.append(rule(old if old in found else f"{attention}.{name}.bias", f"{path}/bias"))
    return rules + (norm(f"{prefix}layernorm", "norm") if config.final_norm else [])


def _pair(json: Mapping[str, Any], folder: Path) -> PairConfig:
    """Config of CLIP or SigLIP, images and texts."""
    parts = [json.get(name, {}) for name in ("vision_config", "text_config")]
    if not all(isinstance(part, Mapping) for part in parts):
        raise WeightsError(f"{folder}: vision_config and text_config in config.json must be objects")
    vision, text = parts
    size = {"size": _whole(vision, "image_size", 224, _SIDE)}
    if json["model_type"] == "clip":
        act = {"act": "quick_gelu", "eps": 1e-5}
        end = text.get("eos_token_id", 49407)
        return PairConfig(
            image=_layers(vision, {"width": 768, "layers": 12, "heads": 12, "mlp": 3072} | act),
            text=_layers(text, {"width": 512, "layers": 12, "heads": 8, "mlp": 2048} | act, causal=True),
            patch=_whole(vision, "patch_size", 32, _SIDE), vocabulary=_whole(text, "vocab_size", 49408, 1 << 24),
            length=_whole(text, "max_position_embeddings", 77), features=_whole(json, "projection_dim", 512),
            end=None if end == 2 or not isinstance(end, int) else end,  # 2 stands in old files, and is not the end
            **size, **_pixels(folder, (PairConfig.mean, PairConfig.std)),
        )  # fmt: skip
    usual = {"width": 768, "layers": 12, "heads": 12, "mlp": 3072, "act": "gelu_pytorch_tanh", "eps": 1e-6}
    image, words = _layers(vision, usual), _layers(text, usual)
    return PairConfig(
        image=image, text=words, patch=_whole(vision, "patch_size", 16, _SIDE),
        vocabulary=_whole(text, "vocab_size", 32000, 1 << 24), length=_whole(text, "max_position_embeddings", 64),
        features=image.width, pool="attention", crop=False, **size, **_pixels(folder, ((0.5,) * 3, (0.5,) * 3)),
    )  # fmt: skip


_PAIR_NAMES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.out_proj",
    "attention_norm": "layer_norm1", "mlp_norm": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip


def image_rules(config: PairConfig) -> list[Rule]:
    """Map of CLIP's or SigLIP's image encoder from transformers' names."""
    p, theirs = config.patch, "vision_model."
    conv = Layout(
        read=lambda x: x.transpose(2, 3, 1, 0).reshape(p * p * 3, -1),
        write=lambda x: x.reshape(p, p, 3, -1).transpose(3, 2, 0, 1),
    )
    rules = [
        rule(f"{theirs}embeddings.patch_embedding.weight", "patch_embed/kernel", conv),
        rule(f"{theirs}embeddings.position_embedding.weight", "position"),
        *norm(f"{theirs}post_layernorm", "last_norm"),
    ]
    for i in range(config.image.layers):
        rules += _layer_rules(f"{theirs}encoder.layers.{i}", _PAIR_NAMES, i)
    if config.pool == "class":
        rules.append(rule(f"{theirs}embeddings.class_embedding", "class_token"))
        rules += norm(f"{theirs}pre_layrnorm", "norm")
        return [*rules, rule("visual_projection.weight", "projection/kernel", LINEAR)]
    head, parts = f"{theirs}head", lambda kind: tuple(Part(path=f"{name}/{kind}") for name in "qkv")
    width = config.image.width
    squeezed = Layout(read=lambda x: x.reshape(1, width), write=lambda x: x.reshape(1, 1, width))
    return [
        *rules,
        rule(f"{theirs}embeddings.patch_embedding.bias", "patch_embed/bias"),
        rule(f"{head}.probe", "probe", squeezed),
        Rule(name=f"{head}.attention.in_proj_weight", parts=parts("kernel"), layout=LINEAR),
        Rule(name=f"{head}.attention.in_proj_bias", parts=parts("bias")),
        *linear(f"{head}.attention.out_proj", "out"),
        *norm(f"{head}.layernorm", "pool_norm"),
        *linear(f"{head}.mlp.fc1", "up"),
        *linear(f"{head}.mlp.fc2", "down"),
    ]


def text_rules(config: PairConfig) -> list[Rule]:
    """Map of CLIP's or SigLIP's text encoder from transformers' names."""
    theirs = "text_model."
    rules = [
        rule(f"{theirs}embeddings.token_embedding.weight", "tokens"),
        rule(f"{theirs}embeddings.position_embedding.weight", "position"),
        *norm(f"{theirs}final_layer_norm", "last_norm"),
    ]
    for i in range(config.text.layers):
        rules += _layer_rules(f"{theirs}encoder.layers.{i}", _PAIR_NAMES, i)
    if config.pool == "class":
        return [*rules, rule("text_projection.weight", "projection/kernel", LINEAR)]
    return [*rules, *linear(f"{theirs}head", "projection")]
