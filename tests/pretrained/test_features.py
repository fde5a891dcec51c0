"""Feature nets give transformers' numbers on random weights, and read nothing that they should not."""

import json

import numpy as np
import pytest

from tests.pretrained.reference import enliven
from vdit.errors import ConfigError, WeightsError
from vdit.models.encoders import square_frames
from vdit.pretrained.features import apply, open_features

torch = pytest.importorskip("torch", reason="the extra parity is not installed")

LAYERS = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VIDEO = {k: v for k, v in LAYERS.items() if k != "intermediate_size"}
TEXTS = ("a dog runs", "a red circle moves to the left", "")


def reference(family):
    import transformers as t

    if family == "vjepa2":
        config = t.VJEPA2Config(crop_size=32, frames_per_clip=4, patch_size=8, mlp_ratio=2, pred_hidden_size=12,
                                pred_num_attention_heads=2, pred_num_hidden_layers=1, **VIDEO)  # fmt: skip
        return t.VJEPA2Model(config)
    if family == "videomae":
        return t.VideoMAEModel(t.VideoMAEConfig(image_size=32, num_frames=4, patch_size=8, **LAYERS))
    if family == "videomae, norm":
        return t.VideoMAEModel(t.VideoMAEConfig(image_size=32, num_frames=4, patch_size=8, use_mean_pooling=False,
                                                **LAYERS))  # fmt: skip
    text = LAYERS | {"vocab_size": 300, "max_position_embeddings": 16}
    vision = LAYERS | {"image_size": 32, "patch_size": 8}
    if family == "clip":
        ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        return t.CLIPModel(t.CLIPConfig(text_config=text | ids, vision_config=vision, projection_dim=20))
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return t.SiglipModel(t.SiglipConfig(text_config=text | ids, vision_config=vision))


def tokenizer(folder):
    """A tokenizer of bytes that puts <s> ahead and </s> behind, as CLIP's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # its own order is another each time
    words = {"<s>": 0, "</s>": 1} | {letter: 2 + i for i, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """family -> (their model, its folder, our net), made once."""
    made = {}

    def get(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family.split(",")[0])
            torch.manual_seed(0)
            with torch.no_grad():
                model = enliven(torch, reference(family))
            model.save_pretrained(folder)
            if family in ("clip", "siglip"):
                tokenizer(folder)
                (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "</s>"}))
            made[family] = model, folder, open_features(folder)
        return made[family]

    return get


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("family", ["vjepa2", "videomae", "videomae, norm"])
def test_a_video_encoder_gives_the_reference_s_mean_of_tokens(opened, family):
    model, _, net = opened(family)
    clip = np.random.default_rng(0).normal(size=(2, 4, 32, 32, 3)).astype(np.float32)
    pixels = torch.from_numpy(clip.transpose(0, 1, 4, 2, 3).copy())
    with torch.no_grad():
        if family == "vjepa2":
            theirs = model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        else:
            theirs = model(pixel_values=pixels).last_hidden_state
    close(apply(net.tower, net.params, clip), theirs.mean(1))
    video = np.random.default_rng(1).integers(0, 256, (9, 40, 60, 3), np.uint8)
    vector = net.embed(video, 8.0)
    assert vector.shape == (48,)
    assert not np.allclose(vector, net.embed(video[::-1].copy(), 8.0))  # the order of frames counts
    with pytest.raises(ConfigError):
        net.embed_texts(["a dog"])


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_images_and_texts_come_into_the_reference_s_common_space(opened, family):
    model, folder, net = opened(family)
    image = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    words = tokenizer(folder)
    ids = [words.encode(text).ids[:15] for text in TEXTS]
    ids = np.array([row + [1] * (16 - len(row)) if row[-1] == 1 else [*row, 1] for row in ids])
    with torch.no_grad():
        images = model.get_image_features(pixel_values=torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
        texts = model.get_text_features(input_ids=torch.from_numpy(ids))
    images, texts = (getattr(x, "pooler_output", x) for x in (images, texts))
    close(apply(net.image, net.params["image"], image), images)
    close(net.embed_texts(TEXTS), texts)
    assert net.reads_text
    video = np.random.default_rng(1).integers(0, 256, (20, 40, 60, 3), np.uint8)
    assert net.embed(video, 8.0).shape == images.shape[1:]


def test_frames_are_cut_to_the_middle_square():
    video = np.zeros((1, 40, 80, 3), np.uint8)
    video[:, :, 20:60] = 255
    found = square_frames(video, 20, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert found.shape == (1, 20, 20, 3)
    assert found[0, 10, 2:-2].min() > 0.99
    assert square_frames(video, 20, mean=(0.5,) * 3, std=(0.5,) * 3, crop=False)[0, 10, 0].max() == -1


@pytest.mark.parametrize(
    "change",
    [{"model_type": "bert"}, {"hidden_size": 10**9}, {"hidden_size": 50}, {"hidden_act": "relu"}, {"patch_size": "8"},
     {"patch_size": 64}],
    ids=str,
)  # fmt: skip
def test_a_folder_that_holds_something_else_is_refused(opened, tmp_path, change):
    _, folder, _ = opened("videomae")
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises((WeightsError, ConfigError), match=r"bert|1000000000|50|relu|'8'|64"):
        open_features(tmp_path)


def test_the_shipped_encoder_tells_what_clips_show_and_whether_they_are_noise():
    from vdit import worlds
    from vdit.eval.statistics import frechet

    net = open_features("worlds")
    make = lambda name, start: [worlds.make(name, seed=5, size=(48, 48), frames=9)[start + i].video for i in range(24)]  # noqa: E731
    one, other = make("moving", 0), make("moving", 24)
    sets = {
        "same": other,
        "noise": [np.random.default_rng(i).integers(0, 256, video.shape, np.uint8) for i, video in enumerate(other)],
        "another world": make("orbit", 0),
    }
    real = np.stack([net.embed(video, 8) for video in one])
    found = {name: frechet(np.stack([net.embed(video, 8) for video in videos]), real) for name, videos in sets.items()}
    assert found["same"] < found["another world"] / 1.5
    assert found["same"] < found["noise"] / 1.5
