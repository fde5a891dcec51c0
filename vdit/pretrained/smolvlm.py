"""SmolVLM2 (Marafioti et al., 2025): a SigLIP tower, pixel shuffle, a projection, and a Llama that reads all of it.

model = open_lm("SmolVLM2-500M-Video-Instruct")
request = Request(messages=(user(Frames(pixels=video, times=times), "Describe this video."),))
[answer] = model.complete([request], GenerationOptions(max_tokens=128))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdit.errors import LanguageError, WeightsError
from vdit.language.base import Frames
from vdit.language.local import LocalLM
from vdit.models.lm.chat import ChatTemplate
from vdit.models.lm.config import LMConfig
from vdit.models.lm.model import LanguageModel
from vdit.models.lm.tokenizer import load_lm_tokenizer
from vdit.models.siglip import SiglipConfig, SiglipConnector, siglip_pixels
from vdit.pretrained.clip import patch_layout
from vdit.pretrained.lm import folder_stop_ids, lm_config, lm_rules
from vdit.pretrained.model import one_device
from vdit.pretrained.open import open_tensors
from vdit.pretrained.options import (
    ANYTHING,
    HEADS,
    LAYERS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    check_option,
    flag,
    number,
    read_options,
    whole,
    words,
)
from vdit.pretrained.tensors import read_json
from vdit.pretrained.weights import LINEAR, Rule, linear, load, norm, rule
from vdit.train.state import abstract_params
from vdit.types import Array, PyTree

FAMILY = "smolvlm"
TEXT, HEAD = "model.text_model.", "lm_head.weight"
VISION = ("model.vision_model.", "model.connector.")
# What the tower has, by the names of SiglipConfig and of vision_config.
_NAMES = {
    "image_size": "image_size", "patch": "patch_size", "width": "hidden_size", "layers": "num_hidden_layers",
    "heads": "num_attention_heads", "mlp": "intermediate_size", "eps": "layer_norm_eps",
}  # fmt: skip
# With what transformers takes where the file leaves an option out.
_TOWER = {
    "image_size": whole(224, high=4096),
    "patch_size": whole(32, high=4096),
    "hidden_size": whole(1152, high=WIDTH),
    "num_hidden_layers": whole(12, high=LAYERS),
    "num_attention_heads": whole(16, high=HEADS),
    "intermediate_size": whole(3072, high=TOKENS),
    "layer_norm_eps": number(1e-6, 0.0, 0.1),
    "hidden_act": words("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
}
_NO_MATTER = (
    "architectures", "attention_dropout", "dtype", "initializer_range", "max_image_size", "model_type", "size",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_base_siglip", "num_channels", "use_cache",
    "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "is_encoder_decoder",
    "id2label", "label2id", "problem_type",
)  # fmt: skip
_WHOLE = {
    "image_token_id": whole(None, 0, high=VOCABULARY),
    "scale_factor": whole(2, high=64),
    "tie_word_embeddings": flag(False),
    "text_config": ANYTHING,
    "vision_config": ANYTHING,
    "eos_token_id": ANYTHING,
    "bos_token_id": ANYTHING,
    "pad_token_id": ANYTHING,
    "vocab_size": ANYTHING,
    "use_reentrant_checkpointing": ANYTHING,
    "transformers.js_config": ANYTHING,
}
# The markers that stand around and for the tokens of a frame.
_EDGE, _GLOBAL, _IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"
_FPS = 24  # of frames whose times nobody knows
# A conversation as SmolVLM2 was trained on it: the role's name, its parts, an end mark.
_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:{{ ' ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<video>' }}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def smolvlm_config(json: Mapping[str, Any]) -> tuple[LMConfig, SiglipConfig, int]:
    """Read the config.json of transformers' SmolVLMForConditionalGeneration.

    Args:
        json: content of config.json.

    Returns:
        Our configs of the language model and of the tower with its connector, and the id that stands for a token of a
        frame.

    Raises:
        WeightsError: an option is unknown, missing, out of range, or asks for what cannot be done here.
    """
    if json.get("model_type") != FAMILY:
        raise WeightsError(f"model_type={json.get('model_type')!r} in config.json is not {FAMILY}")
    values = read_options(json, "", dict.fromkeys(_NO_MATTER, ANYTHING) | _WHOLE, {})
    parts = {name: values[name] for name in ("text_config", "vision_config")}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            raise WeightsError(f"{name} in config.json must be an object: download the file again")
    check_option("image_token_id", values["image_token_id"], _WHOLE["image_token_id"])
    lm = lm_config({**parts["text_config"], "tie_word_embeddings": values["tie_word_embeddings"]})
    tower = read_options(parts["vision_config"], "", dict.fromkeys(_NO_MATTER, ANYTHING) | _TOWER, {"num_channels": 3})
    fields = {ours: tower[theirs] for ours, theirs in _NAMES.items()}
    return lm, SiglipConfig(**fields, shuffle=values["scale_factor"], features=lm.width), values["image_token_id"]


def vision_rules(config: SiglipConfig) -> list[Rule]:
    """Map of the tower and the connector from transformers' names.

    Args:
        config: of both.

    Returns:
        One rule for each of their tensors.
    """
    theirs = VISION[0]
    rules = [
        rule(f"{theirs}embeddings.patch_embedding.weight", "tower/patch_embed/kernel", patch_layout(config.patch)),
        rule(f"{theirs}embeddings.patch_embedding.bias", "tower/patch_embed/bias"),
        rule(f"{theirs}embeddings.position_embedding.weight", "tower/position"),
        *norm(f"{theirs}post_layernorm", "tower/norm"),
        rule(f"{VISION[1]}modality_projection.proj.weight", "projection/kernel", LINEAR),
    ]
    linears = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.out_proj"}
    linears |= {"up": "mlp.fc1", "down": "mlp.fc2"}
    for i in range(config.layers):
        block, layer = ("tower/blocks", i) if config.scan else (f"tower/block_{i}", None)
        for ours, name in linears.items():
            rules += linear(f"{theirs}encoder.layers.{i}.{name}", f"{block}/{ours}", layer=layer)
        rules += norm(f"{theirs}encoder.layers.{i}.layer_norm1", f"{block}/attention_norm", layer=layer)
        rules += norm(f"{theirs}encoder.layers.{i}.layer_norm2", f"{block}/mlp_norm", layer=layer)
    return rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmolVLMFrames:
    """How SmolVLM2 sees the frames of a video: each by itself, with the time that it is from.

    Attributes:
        module: tower and connector. params: their parameters.
        token: id of the placeholder.
        most: frames at a time, so that memory is bounded.
    """

    module: SiglipConnector
    params: PyTree
    token: int
    most: int = 4

    def prompt(self, frames: Frames) -> str:
        """An introduction, then each frame's time and placeholders."""
        times = frames.times or tuple(i / _FPS for i in range(len(frames.pixels)))
        seconds = int(times[-1])
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        text = (
            f"You are provided the following series of {in_words(len(times))} frames from a {clock} [H:MM:SS] video.\n"
        )
        shown = f"{_EDGE}{_GLOBAL}{_IMAGE * self.module.config.tokens}{_EDGE}"
        for time in times:
            text += f"\nFrame from {int(time // 60):02d}:{int(time % 60):02d}:{shown}"
        return f"{text}\n\n"

    def embed(self, frames: Frames) -> Array:
        """float32 [k d], the tokens of each frame after those of the frame before."""
        pixels, found = siglip_pixels(frames.pixels, self.module.config), []
        for first in range(0, len(pixels), self.most):
            part = pixels[first : first + self.most]
            whole = np.zeros((self.most, *part.shape[1:]), np.float32)  # one shape, one program
            whole[: len(part)] = part
            found.append(np.asarray(_embed(self.module, self.params, whole))[: len(part)])
        return np.concatenate(found).reshape(-1, self.module.config.features)


@functools.partial(jax.jit, static_argnums=0)
def _embed(module: SiglipConnector, params: PyTree, pixels: Array) -> Array:
    return module.apply({"params": params}, pixels)


def in_words(number: int) -> str:
    """A whole number from 0 to 999 in English words: "sixty-four"."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f"-{_UNITS[number % 10]}" if number % 10 else "")
    if number > 999:
        raise LanguageError(f"{number} frames of one video: SmolVLM2 takes at most 999; 64 is what it was trained with")
    return f"{_UNITS[number // 100]} hundred" + (f" and {in_words(number % 100)}" if number % 100 else "")


def open_vlm(folder: Path, *, mesh: Mesh | None, dtype: str, batch: int) -> LocalLM:
    """Open SmolVLM2 from a public folder, with its weights: what `vdit.pretrained.lm.open_lm` does with such a folder.

    Args:
        folder: of config.json, safetensors and tokenizer.json.
        mesh, dtype, batch: see there.

    Returns:
        The model, which answers requests with frames in them.

    Raises:
        WeightsError: it is no SmolVLM2, or a file is missing, damaged or contradictory.
        TextError: its tokenizer cannot be used.
    """
    json = read_json(folder / "config.json")
    lm, vision, token = smolvlm_config(json)
    tokenizer = load_lm_tokenizer(folder)
    if tokenizer.id_of(_IMAGE) != token:
        raise WeightsError(f"{folder}: {_IMAGE} is token {tokenizer.id_of(_IMAGE)}, config.json says {token}")
    stop_ids = folder_stop_ids(folder, json, tokenizer)
    tensors = open_tensors(folder)
    model = LanguageModel(dataclasses.replace(lm, dtype=dtype))
    tower = SiglipConnector(dataclasses.replace(vision, dtype=dtype))
    place, one = mesh or one_device(), np.ones((1, 1), np.int32)
    image = np.zeros((1, vision.image_size, vision.image_size, 3), np.float32)
    trees = (
        (lm_rules(lm, TEXT), lambda key: model.init(key, one, one, one)["params"], VISION),
        (vision_rules(vision), lambda key: tower.init(key, image)["params"], (TEXT, HEAD)),
    )
    params, vision_params = (
        load(rules, tensors, abstract_params(init, place), dtype=dtype, ignore=ignore) for rules, init, ignore in trees
    )
    return LocalLM(
        name=folder.name, model=model, params=params, tokenizer=tokenizer, template=ChatTemplate(source=_TEMPLATE),
        stop_ids=stop_ids, frames=SmolVLMFrames(module=tower, params=vision_params, token=token), mesh=mesh,
        batch=batch,
    )  # fmt: skip
