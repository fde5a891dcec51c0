"""The quickstart, shrunk: its measures mean what they say, its page stands alone, and it can be interrupted."""

import json
import re
from html import unescape

import jax
import numpy as np
import pytest

from tests.conftest import TINY
from vdit.config import apply_overrides
from vdit.eval.detectors import detect
from vdit.quickstart import config
from vdit.quickstart.run import StepTimer, expected_seconds
from vdit.quickstart.score import PARTS, chance, derangement, hits, shares
from vdit.sampling.config import sampling_config
from vdit.train.progress import clock_face
from vdit.worlds.moving import combinations, subset


def test_nothing_held_out_is_trained_on():
    experiment = config.experiment()
    assert experiment.data.source.arguments()["subset"] == "train"
    wanted = config.held_out()
    assert len(wanted) == 64
    assert {w[:3] for w in wanted} == set(subset("held_out")) == set(combinations()) - set(subset("train"))
    assert config.held_out_world(experiment).seed != experiment.seed


def test_its_model_is_told_what_is_given():
    """So that animate, extend, loop, connect, inpaint and rollout, which its page and README show, need not guess."""
    experiment = config.experiment()
    assert sampling_config(experiment).conditioning == "clean"
    assert all(fraction > 0 for fraction in experiment.canvases.fractions())
    assert experiment.canvases.window > 0


def test_every_pair_of_a_held_out_combination_is_trained_on():
    seen, held_out = subset("train"), subset("held_out")
    assert len(held_out) == len(combinations()) / 4
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {(c[a], c[b]) for c in held_out} <= {(c[a], c[b]) for c in seen}


def test_prompts_name_what_they_ask_for_in_two_lengths():
    wanted = config.held_out()
    words = {"left": "left", "right": "right", "up": "up", "down": "down"}
    for w in wanted:
        assert {w.colour, w.shape, words[w.direction]} <= set(re.findall(r"\w+", w.prompt.lower()))
    assert max(len(w.prompt) for w in wanted[:32]) < min(len(w.prompt) for w in wanted[32:])


def test_real_videos_are_right_and_against_other_prompts_at_chance():
    experiment = config.experiment()
    wanted, world = config.held_out(experiment), config.held_out_world(experiment)
    found = [detect(world[i].video) for i in range(64)]
    assert shares(hits(found, wanted)) == dict.fromkeys((*PARTS, "all"), 1.0)
    others = shares(hits(found, [wanted[i] for i in derangement(64)]))
    for name, expected in chance(wanted).items():
        # Four standard errors of a share of 64.
        assert others[name] == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 64) + 1e-9)


def test_derangement_moves_everything():
    for count in (2, 3, 64):
        order = derangement(count)
        assert sorted(order) == list(range(count))
        assert (order != np.arange(count)).all()


def test_clock_adds_up_over_interruptions_and_scales_what_is_left(tmp_path, monkeypatch):
    now = iter([0.0, 30.0, 100.0, 110.0])
    monkeypatch.setattr("vdit.quickstart.run.time.perf_counter", lambda: next(now))
    expected = {"vae": 10.0, "dit": 20.0}
    clock = StepTimer(tmp_path / "seconds.json", expected)
    assert clock.left() == 30
    with pytest.raises(KeyboardInterrupt), clock.step("vae"):
        raise KeyboardInterrupt
    assert clock.left() == 60  # three times slower than expected
    again = StepTimer(tmp_path / "seconds.json", expected)
    with again.step("vae"):
        pass
    assert again.seconds == {"vae": 40.0}
    (tmp_path / "seconds.json").write_text("[")
    assert StepTimer(tmp_path / "seconds.json", expected).seconds == {}
    assert clock_face(130.4) == "2:10"


def test_every_step_is_expected_to_take_time():
    seconds = expected_seconds(config.experiment(), 64)
    assert list(seconds) == ["vae", "latents", "tokenizer", "dit", "expander", "samples", "page"]
    assert all(value > 0 for value in seconds.values())


def test_it_says_what_it_does_and_what_came_out(tiny_quickstart):
    folder, output = tiny_quickstart
    results = json.loads((folder / "results.json").read_text())
    for step in range(1, 8):
        assert re.search(rf"\[{step}/7\] .*\(about \d+:\d\d left in all\)", output)
    for line, key in (("samples of held-out", "shares"), ("real videos", "rendered"), ("shuffled", "shuffled")):
        shown = re.search(rf"{line}.*?((?: +\d+\.\d%){{4}})\n", output)
        assert shown[1].split() == [f"{results[key][part]:.1%}" for part in (*PARTS, "all")]
    sharpness, after_vae = results["sharpness"], results["rendered_sharpness"]
    assert f"edges {sharpness:.0%} as sharp as the real, {after_vae:.0%} after the VAE" in output
    assert min(sharpness, after_vae) > 0
    assert str(folder / "report.html") in output.splitlines()[-2]  # then the next command


def test_results_hold_every_sample(tiny_quickstart):
    results = json.loads((tiny_quickstart[0] / "results.json").read_text())
    assert [s["prompt"] for s in results["samples"]] == [w.prompt for w in config.held_out(_tiny(), 4)]
    for part in PARTS:
        assert results["shares"][part] == np.mean([s["right"][part] for s in results["samples"]])
    assert set(results["seconds"]) == {"vae", "latents", "tokenizer", "dit", "expander", "samples", "page"}
    assert 0 < results["figures"]["share of useful tokens"] <= 1


def test_page_asks_for_nothing_from_outside(tiny_quickstart):
    folder, _ = tiny_quickstart
    text = (folder / "report.html").read_text()
    assert all(inside.startswith("#") for inside in re.findall(r'xlink:href="([^"]*)"', text))  # marks of a curve
    sources = re.findall(r'(?:src|(?<!xlink:)href)="([^"]*)"', text)
    assert len(sources) == 2 * 4 + 2 * 4  # all samples beside the real ones, reconstructions
    assert all(source.startswith("data:") for source in sources)
    without_data = re.sub(r'src="data:[^"]*"', "", text)
    assert not re.search(r"https?://(?!www\.w3\.org)|<script |@import|url\(", without_data)
    assert text.count('class="badge ') == 4
    assert f"vdit sample {folder}" in text
    assert "vdit.load(" in text
    assert "vdit train clips --workdir" in text
    assert text.count("<svg") == 3


def test_page_says_when_on_what_and_by_which_command_it_was_made(tiny_quickstart):
    folder, _ = tiny_quickstart
    made = json.loads((folder / "results.json").read_text())["made"]
    assert made["command"].startswith(f"vdit quickstart {folder} --prompts 4 --batch 2 --cfg.")
    assert made["date"][:10] >= "2026"
    assert f"jax {jax.__version__}" in made["versions"]
    text = (folder / "report.html").read_text()
    assert all(value in unescape(text) for value in made.values())
    assert text.index(f"vdit sample {folder}") < text.index("<video")  # next steps come first


def _tiny():
    return apply_overrides(config.experiment(), TINY)
