"""SmolVLM2 gives transformers' numbers: tower, connector, logits with frames in the prompt, and greedy answers."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.pretrained.load import empty, fill
from tests.pretrained.reference import enliven, saved
from vdit.errors import ConfigError, LanguageError, ShapeError, WeightsError
from vdit.language.base import Frames, GenerationOptions, Request, user
from vdit.models.lm.chat import ChatTemplate
from vdit.models.lm.model import LanguageModel
from vdit.models.lm.tokenizer import train_lm_tokenizer
from vdit.models.siglip import SiglipConfig, SiglipConnector, position_ids, siglip_pixels
from vdit.pretrained.lm import lm_rules, open_lm
from vdit.pretrained.smolvlm import HEAD, TEXT, VISION, in_words, smolvlm_config, vision_rules

SPECIAL = ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>")
TEXTS = ("Describe this video.", "You are provided the following series of two frames", "User: Assistant:") * 3
TOKEN = SPECIAL.index("<image>")
VOCABULARY = 300


def reference(vision, text, scale):
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    options = {
        "vision_config": {"model_type": "smolvlm_vision", **vision},
        "text_config": {"model_type": "llama", "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, **text},
        "scale_factor": scale, "image_token_id": TOKEN, "tie_word_embeddings": False,
    }  # fmt: skip
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**options))


SMALL = (
    {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 54,
     "patch_size": 6},
    {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
     "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY, "max_position_embeddings": 2048},
    3,
)  # fmt: skip
TRUE = {  # width and heads of the public models; few layers, a small image
    "SmolVLM2-500M": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 1, "num_attention_heads": 12,
         "image_size": 64, "patch_size": 16},
        {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 1, "num_attention_heads": 15,
         "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 97},
        4,
    ),
    "SmolVLM2-2.2B": (
        {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 1, "num_attention_heads": 16,
         "image_size": 84, "patch_size": 14},
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 1, "num_attention_heads": 32,
         "num_key_value_heads": 32, "head_dim": 64, "vocab_size": 97},
        3,
    ),
}  # fmt: skip


def ours(options, state):
    """(configs, parameters of the language model, parameters of the tower and connector)."""
    lm, vision, _ = smolvlm_config(options)
    of_vision = {name: x for name, x in state.items() if name.startswith(VISION)}
    rest = {name: x for name, x in state.items() if name not in of_vision}
    assert set(rest) == {rule.name for rule in lm_rules(lm, TEXT)}
    assert HEAD in rest
    return lm, vision, fill(lm_rules(lm, TEXT), rest), fill(vision_rules(vision), of_vision)


def compare(torch, parity, name, model, options, state):
    lm, vision, params, vision_params = ours(options, state)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, vision.image_size, vision.image_size, 3)).astype(np.float32)
    theirs = torch.tensor(pixels.transpose(0, 3, 1, 2))
    seen = jax.jit(SiglipConnector(vision).apply)({"params": vision_params}, pixels)
    want = model.model.get_image_features(theirs[None]).pooler_output
    parity(f"{name} tower and connector", seen, torch.cat(list(want)).reshape(2, vision.tokens, -1))

    ids = rng.integers(5, lm.vocab_size, (1, 9 + 2 * vision.tokens)).astype(np.int32)
    ids[0, 2 : 2 + vision.tokens] = ids[0, -3 - vision.tokens : -3] = TOKEN
    language = LanguageModel(lm)

    def run(params):
        x = language.apply({"params": params}, ids, method="embed_tokens")
        x = x.at[0, np.flatnonzero(ids[0] == TOKEN)].set(seen.reshape(-1, lm.width))
        place = np.arange(ids.shape[1], dtype=np.int32)[None]
        hidden = language.apply({"params": params}, x, place, np.ones_like(ids)).hidden
        return language.apply({"params": params}, hidden, method="logits")

    out = model(input_ids=torch.tensor(ids).long(), pixel_values=theirs[None])
    parity(f"{name} logits, two frames", jax.jit(run)(params), out.logits)
    return vision, vision_params


def test_a_small_model_gives_the_reference_numbers(torch, parity, tmp_path):
    model = enliven(torch, reference(*SMALL))
    options, state = saved(model, tmp_path)
    vision, params = compare(torch, parity, "SmolVLM2", model, options, state)
    assert vision.side == 9  # 1/9 is no binary fraction: its positions are rounded as the reference rounds them
    back = empty(vision_rules(vision), params)
    assert all(np.array_equal(back[name], state[name]) for name in back)
    apart = dataclasses.replace(vision, scan=False)
    again = fill(vision_rules(apart), {name: x for name, x in state.items() if name.startswith(VISION)})
    image = np.ones((1, 54, 54, 3), np.float32)
    np.testing.assert_allclose(
        jax.jit(SiglipConnector(apart).apply)({"params": again}, image),
        jax.jit(SiglipConnector(vision).apply)({"params": params}, image), atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * ("2.2B" in n)) for n in TRUE])
def test_models_of_true_width_give_the_reference_numbers(torch, parity, name):
    model = reference(*TRUE[name]).eval()
    for i, parameter in enumerate(model.parameters()):
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    options = json.loads(model.config.to_json_string())
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    compare(torch, parity, f"{name}, true width, 1 layer", model, options, state)


@pytest.mark.parametrize("side", [4, 9, 14, 16, 24, 27, 32])
def test_positions_are_those_of_the_reference(torch, side):
    """Read off a tower whose patches are all zero and whose positions are numbers."""
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionConfig, SmolVLMVisionEmbeddings

    config = SmolVLMVisionConfig(hidden_size=1, image_size=side, patch_size=1, num_attention_heads=1)
    embeddings = SmolVLMVisionEmbeddings(config)
    embeddings.position_embedding.weight.copy_(torch.arange(side**2)[:, None])
    embeddings.patch_embedding.weight.zero_()
    embeddings.patch_embedding.bias.zero_()
    pixels = torch.zeros(1, 3, side, side)
    want = embeddings(pixels, torch.ones(1, side, side, dtype=torch.bool))[0, :, 0].numpy()
    np.testing.assert_array_equal(position_ids(side), want.astype(int))


@pytest.mark.parametrize("shape", [(64, 64), (48, 85), (90, 31), (7, 300), (1, 1), (301, 300)])
def test_pixels_are_those_of_the_image_processor(torch, shape):
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    processor = SmolVLMImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": 64}, max_image_size={"longest_edge": 64}
    )
    want = processor(images=[frame], return_tensors="np", input_data_format="channels_last").pixel_values[0, 0]
    got = siglip_pixels(frame[None], SiglipConfig(image_size=64, patch=16))
    np.testing.assert_allclose(got[0], want.transpose(1, 2, 0), atol=1e-6)


def folder(torch, path):
    """A public folder with a small model, and the model."""
    model = enliven(torch, reference(*SMALL), seed=1)
    model.save_pretrained(path)
    train_lm_tokenizer(TEXTS, VOCABULARY, special=SPECIAL).save(path / "tokenizer.json")
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end_of_utterance>"}))
    return model


def test_a_folder_answers_as_transformers_does(torch, tmp_path, monkeypatch):
    """Prompt, pixels and greedy tokens, of a video of two frames."""
    from types import SimpleNamespace

    import transformers.models.smolvlm.processing_smolvlm as processing

    model = folder(torch, tmp_path)
    vlm = open_lm(tmp_path)
    video = Frames(
        pixels=np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8), times=(0.0, 65.5)
    )  # fmt: skip
    content = [{"type": "video"}, {"type": "text", "text": "Describe."}]
    text = vlm.template.render([{"role": "user", "content": content}])
    theirs = ChatTemplate(source=processing.DEFAULT_CHAT_TEMPLATE)
    assert text == theirs.render([{"role": "user", "content": content}])

    monkeypatch.setattr(processing, "num2words", {2: "two"}.get)
    self = SimpleNamespace(
        image_seq_len=9, image_token="<image>", fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
    )  # fmt: skip
    metadata = SimpleNamespace(fps=1, timestamps=[0.0, 65.5], duration=None)
    shown = processing.SmolVLMProcessor.replace_video_token(
        self, {"pixel_values": np.zeros((1, 2)), "video_metadata": [metadata]}, 0
    )
    assert vlm.frames.prompt(video) == shown

    request = Request(messages=(user(video, "Describe."),))
    other = Request(messages=(user("Say it."),))
    answers = vlm.complete([other, request], GenerationOptions(max_tokens=12))
    ids = vlm.tokenizer.encode(text.replace("<video>", shown))
    assert answers[1].tokens_in == len(ids)
    pixels = siglip_pixels(video.pixels, vlm.frames.module.config).transpose(0, 3, 1, 2)
    made = model.generate(
        input_ids=torch.tensor([ids]), pixel_values=torch.tensor(pixels)[None], max_new_tokens=12, do_sample=False,
        attention_mask=torch.ones(1, len(ids)).long(), pad_token_id=0, eos_token_id=1,
    )[0, len(ids) :].tolist()  # fmt: skip
    made = made[: made.index(1)] if 1 in made else made
    assert answers[1].text == vlm.tokenizer.decode(made)
    assert answers[1].tokens_out == len(made) > 2

    with pytest.raises(LanguageError, match="placeholder"):
        vlm.complete([Request(messages=(user(video, "<image>"),))], GenerationOptions(max_tokens=4))
    with pytest.raises(LanguageError, match="<video>"):
        vlm.complete([Request(messages=(user(video, "<video>"),))], GenerationOptions(max_tokens=4))


@pytest.mark.parametrize(("number", "words"), [(1, "one"), (20, "twenty"), (64, "sixty-four"), (700, "seven hundred"),
                                               (128, "one hundred and twenty-eight")])  # fmt: skip
def test_numbers_in_words(number, words):
    assert in_words(number) == words


def test_wrong_configs_and_pixels_are_named():
    whole = {"model_type": "smolvlm", "text_config": {"hidden_size": 8}, "vision_config": {}, "image_token_id": 1}
    for change, named in (
        ({"model_type": "idefics3"}, "idefics3"), ({"vision_config": 3}, "vision_config"), ({"moe": 2}, "moe"),
        ({"image_token_id": None}, "image_token_id"), ({"scale_factor": 0}, "scale_factor"),
    ):  # fmt: skip
        with pytest.raises(WeightsError) as error:
            smolvlm_config(whole | change)
        assert named in str(error.value)
    with pytest.raises(ConfigError, match="shuffle"):
        SiglipConfig(image_size=64, patch=16, shuffle=3)
    with pytest.raises(ShapeError):
        siglip_pixels(np.zeros((2, 4, 4, 3)), SiglipConfig())
    with pytest.raises(LanguageError, match="1000"):
        in_words(1000)
