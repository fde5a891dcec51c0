"""Every experiment, shrunk: trains VAE and DiT two steps, saves, restores, goes on, and samples."""

import dataclasses
import importlib.util
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import vdit
from vdit.cli.main import main
from vdit.config import apply_overrides, load_config
from vdit.data import EpisodesSource, FolderSource, TfdsSource, WorldsSource
from vdit.dist.mesh import MeshConfig
from vdit.experiment.experiment import Experiment
from vdit.experiment.objectives import DenoisingLoss
from vdit.generate import load_vae
from vdit.models.vae.config import preset as vae_preset
from vdit.train.stages import Logging, run
from vdit.train.workspace import Workspace
from vdit.video.read import write_video

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
# Pods differ in sizes, which shrinking takes away, and in layouts, which tests/plan compiles: one of them trains.
# A captioner samples no videos: tests/generate/test_captions.py trains one.
# recaption is the quickstart's model, smaller; pong and the other emulators are worlds_steer, of other data.
UNTRAINED = (
    "pod_tiny", "t2v_3b_pod", "sora_10b_minute", "worlds_captioner", "captioner", "recaption", "pong", "pong_gpu",
    "vizdoom_corridor", "halfcheetah",
)  # fmt: skip
# With -m slow: tests/plan compiles layouts, tests/train/test_distill.py distils, tests/data packs clips of files.
SLOW = ("dit_xl_pod", "worlds_fast", "clips")
TRAINED = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES if name not in UNTRAINED
]
STEPS = 2
VIDEOS = {"wide.mp4": (48, 80), "tall.mp4": (80, 48), "square.mp4": (64, 64), "held_out.mp4": (48, 64)}
FRAMES = 20


def shrunk_source(source, path):
    """The same source, small: of 12 scenes, or of the data at a path."""
    if isinstance(source, WorldsSource):
        return dataclasses.replace(source, count=12)
    return dataclasses.replace(source, path=path)


def shrink(experiment: Experiment, data: str) -> Experiment:
    """The same structure at a size that trains in seconds: one width, one depth, sizes, steps.

    Kept: stages, source, objective, prediction, modulation, positions, classes, packing, sampler, losses, types
    of the arithmetic. The VAE is the smallest preset (each has its own tests) with the same strides.
    data: the folder or data set that stands in for the experiment's own.
    """
    e = experiment
    stride, multiple = e.vae.temporal_stride, e.size_multiple
    frames = (1,) if e.data.frames == (1,) else (1, 1 + stride)
    optimizer = {"learning_rate": 1e-3, "warmup_steps": 1}
    train = {"steps": STEPS, "batch_size": 2, "save_every": 1, "log_every": 1, "sample_every": 0, "keep": 2}
    changed = dataclasses.replace(
        e,
        mesh=MeshConfig(),
        holdout=("held_out.mp4",) if e.holdout else (),
        data=dataclasses.replace(
            e.data,
            source=shrunk_source(e.data.source, data),
            size_multiple=multiple,
            pixel_budgets=((2 * multiple) ** 2, (3 * multiple) ** 2)[: len(e.data.pixel_budgets)],
            frames=frames,
            row_tokens=64,
            max_text_per_row=128,
            max_frames_per_row=24,
            max_clips_per_row=8,
            buffer_rows=4,
            threads=1,
            read_ahead=2,
        ),
        vae=vae_preset(
            "tiny", latent_channels=4, base_channels=8, patch_frames=stride, dtype=e.vae.dtype, remat=e.vae.remat
        ),
        vae_loss=dataclasses.replace(e.vae_loss, adversarial_start=min(1, e.vae_loss.adversarial_start)),
        discriminator=dataclasses.replace(
            e.discriminator, base_channels=8, patch=4, channel_mults=(1,), temporal_down=(True,)
        ),
        vae_clips=dataclasses.replace(e.vae_clips, frames=min(e.vae_clips.frames, 1 + stride), size=(32, 32)),
        latents=dataclasses.replace(e.latents, samples=6),
        text=dataclasses.replace(
            e.text, vocab_size=300, max_length=24, width=32, depth=1, heads=2, t5=None, tokenizer=None
        ),
        backbone=dataclasses.replace(
            e.backbone, in_channels=4, width=32, depth=2, heads=2, mlp_width=None, classes=min(e.backbone.classes, 10),
            text_width=32 if e.backbone.text_width else None,
        ),
        sample=dataclasses.replace(e.sample, frames=frames[-1], size=(multiple, 2 * multiple), steps=2),
    )
    stages = {
        name: dataclasses.replace(
            getattr(e, name),
            **train,
            accumulation=min(getattr(e, name).accumulation, train["batch_size"]),
            optimizer=dataclasses.replace(getattr(e, name).optimizer, **optimizer),
        )
        for name in ("vae_train", "dit_train")
    }
    return dataclasses.replace(changed, **stages)


def video(number: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 [t h w 3]: a slope of colour that drifts."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [127 + 120 * np.sin((x + k * y) / 9 + np.arange(FRAMES)[:, None, None] / 5 + number) for k in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Nearly all the time here is XLA's: ask it for less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Four small videos of different shapes, with captions."""
    path = tmp_path_factory.mktemp("videos")
    lines = []
    for number, (name, size) in enumerate(VIDEOS.items()):
        write_video(path / name, video(number, size), fps=24)
        lines.append(json.dumps({"file": name, "caption": f"colours drift over a {name.split('.')[0]} picture"}))
    (path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return str(path)


def tfds_folder(path: Path, experiment: Experiment) -> str:
    """A TFDS data set with the features that the experiment's config names."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources", reason="tensorflow_datasets needs it to prepare a data set")
    data = experiment.data.source
    features = {data.video_feature: tfds.features.Tensor(shape=(None, 48, 64, 3), dtype=np.uint8)}
    if data.caption_feature:
        features[data.caption_feature] = tfds.features.Text()
    if data.label_feature:
        features[data.label_feature] = tfds.features.Scalar(dtype=np.int64)

    class Drifting(tfds.core.GeneratorBasedBuilder):
        name = f"drifting_{experiment.name}"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {data.split: self._generate_examples()}

        def _generate_examples(self):
            for number in range(6):
                values = {data.video_feature: video(number, (48, 64)), data.caption_feature: f"colours drift, {number}",
                          data.label_feature: number + 1}  # fmt: skip
                yield number, {name: values[name] for name in features}

    builder = Drifting(data_dir=str(path), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def episodes_folder(path: Path) -> str:
    """Two episodes of a game, as long as a clip needs."""
    pytest.importorskip("ale_py", reason="needs the extra gym")
    from vdit.emulators import Recording, record

    record(Recording(env="ALE/Pong-v5", episodes=2, frames=24, skip=8), path / "played")
    return str(path / "played")


@pytest.fixture(scope="module", params=TRAINED)
def trained(request, tmp_path_factory, folder) -> tuple[Experiment, Path]:
    """A shrunk experiment, trained for two steps."""
    full = load_config(ROOT / "experiments" / f"{request.param}.py")
    data = ""
    if isinstance(full.data.source, FolderSource):
        data = folder
    elif isinstance(full.data.source, EpisodesSource):
        data = episodes_folder(tmp_path_factory.mktemp("episodes"))
    elif isinstance(full.data.source, TfdsSource):
        data = tfds_folder(tmp_path_factory.mktemp("tfds"), full)
    workdir = tmp_path_factory.mktemp(request.param)
    return run(with_base(shrink(full, data), tmp_path_factory), Workspace(workdir), logging=quiet()), workdir


def with_base(experiment: Experiment, tmp_path_factory) -> Experiment:
    """The experiment with a model to start from, where it starts from one: the same thing, trained here."""
    if experiment.start_from is None:
        return experiment
    base = tmp_path_factory.mktemp("base")
    latents = dataclasses.replace(experiment.latents, text=False)
    alone = dataclasses.replace(
        experiment, name="base", start_from=None, lora=None, objective=DenoisingLoss(), latents=latents
    )
    run(alone, Workspace(base), logging=quiet())
    return dataclasses.replace(experiment, start_from=str(base))


def own_stages(experiment: Experiment) -> tuple[str, ...]:
    """What a run trains itself: with a model to start from it has that model's VAE."""
    return ("vae", "dit") if experiment.start_from is None else ("dit",)


def quiet() -> Logging:
    return Logging(tensorboard=False, console=Console(file=io.StringIO()))


def log(workdir: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (workdir / "logs" / f"{stage}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_how_it_is_run(name):
    text = (ROOT / "experiments" / f"{name}.py").read_text()
    for needed in (f"vdit train experiments/{name}.py", "Hardware:", "Expected:"):
        assert needed in text.split('"""')[1]
    assert load_config(ROOT / "experiments" / f"{name}.py").name == name


def test_it_trains(trained):
    experiment, workdir = trained
    for stage in own_stages(experiment):
        lines = log(workdir, stage)
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        assert all(np.isfinite(line["loss"]) and line["skipped"] == 0 for line in lines)


def test_it_restores_and_goes_on(trained):
    experiment, workdir = trained
    longer = apply_overrides(experiment, [f"dit_train.steps={STEPS + 1}"])
    before = {stage: log(workdir, stage) for stage in own_stages(experiment)}
    run(longer, Workspace(workdir), logging=quiet())
    assert [line["step"] for line in log(workdir, "dit")] == list(range(1, STEPS + 2))
    assert np.isfinite(log(workdir, "dit")[-1]["loss"])
    for stage in set(before) - {"dit"}:
        assert log(workdir, stage) == before[stage]  # what is complete is left alone


def test_it_samples(trained):
    experiment, workdir = trained
    wanted = experiment.sample
    prompt = "7" if experiment.backbone.classes else "colours drift over a wide picture"
    videos = vdit.load(workdir)(prompt, guidance=2.0)
    assert videos.shape == (1, wanted.frames, *wanted.size, 3)
    assert bool(np.isfinite(videos).all())
    assert np.ptp(videos) > 0


def test_its_vae_restores(trained):
    experiment, workdir = trained
    vae = load_vae(workdir)
    shape = (1, 1, *experiment.sample.size, 3)
    latents = vae.encode(np.zeros(shape, np.uint8))
    assert latents.shape == (1, *experiment.vae.latent_shape(*shape[1:4]))
    assert vae.decode(latents).shape == shape
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(vae.params))


@pytest.mark.parametrize("trained", ["clips"], indirect=True)
def test_the_report_on_clips(trained):
    _, workdir = trained
    spec = importlib.util.spec_from_file_location("clips_report", ROOT / "tools" / "clips_report.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    result = tool.report(str(workdir), frames=5, rows=5, samples=1)

    assert {row["clip"] for row in result["clips"]} == set(VIDEOS)
    assert {row["clip"] for row in result["clips"] if not row["seen"]} == {"held_out.mp4"}
    figures = ("psnr", "linear code, psnr", "noisy latents, psnr", "ssim")
    assert all(np.isfinite([row[key] for key in figures]).all() for row in result["clips"])
    video = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    whole, part = (
        tool.linear_code({"noise": video}, vae_preset("tiny", latent_channels=n), ())["noise"] for n in (768, 24)
    )
    assert part < 20 < whole  # nothing is lost with a channel for each value
    shapes = {row["clip"]: tuple(map(int, row["size"].split("x"))) for row in result["clips"]}
    assert shapes["wide.mp4"][0] > shapes["wide.mp4"][1]  # each keeps its own aspect ratio
    assert shapes["tall.mp4"][0] < shapes["tall.mp4"][1]
    assert 0 < result["token_use"]["tokens"] <= 1
    assert json.loads((workdir / "report.json").read_text())["mean"] == pytest.approx(result["mean"])
    assert (workdir / "report.html").read_text().count("<video") == 8  # real and made, for one seen and one left out


def test_an_experiment_samples_at_a_rate_that_it_is_trained_at(tmp_path, capsys):
    for name in NAMES:
        load_config(ROOT / "experiments" / f"{name}.py").check_rate()
    write_video(tmp_path / "a.mp4", np.zeros((3, 32, 32, 3), np.uint8))
    command = ["train", "--data", tmp_path, "--workdir", tmp_path / "run", "--cfg.data.fps=24"]
    assert main([str(part) for part in command]) == 2
    assert "sample.fps=8: the model is trained at 24 frames a second" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
