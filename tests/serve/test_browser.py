"""The page in a browser, as people use it: Chromium of the distribution, driven by Playwright.

All but the tests marked `slow` take pixels in the place of a model's work, so that every flow is quick; requests, their
checks, files, events and the page itself are the real ones. VDIT_SCREENSHOTS names a folder for pictures of each flow.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vdit
from tests import tiny
from vdit.data.data_source import WorldsSource

pytest.importorskip("fastapi", reason="vdit serve needs fastapi: pip install -e '.[serve]'")
NEEDS = "the browser tests need playwright and axe-playwright-python: pip install -e '.[test]'"
api = pytest.importorskip("playwright.sync_api", reason=NEEDS)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no chromium on this machine", allow_module_level=True)

from vdit.language.expansion import Expansion  # noqa: E402
from vdit.sampling.stepwise import SampledStep  # noqa: E402
from vdit.serve import planning, tasks, world  # noqa: E402
from vdit.serve.notebook import playground  # noqa: E402

DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SLOW_MS = 90_000


class Parrot:
    """In the place of an expander."""

    def expand(self, prompts, *, seed=0, task="video"):
        more = [f"{prompt}, on a plain grey background, seed {seed}" for prompt in prompts]
        return [Expansion(prompt=prompt, text=text) for prompt, text in zip(prompts, more)]


def steered(**options):
    """A tiny world model of the world that is steered."""
    generator = tiny.generator(stride=1, actions=2, causal=True, slides=True, **options)
    experiment = generator.experiment
    data = dataclasses.replace(experiment.data, source=WorldsSource(world="steer", count=16))
    return dataclasses.replace(generator, experiment=dataclasses.replace(experiment, data=data))


PREVIEW_SEEN = threading.Event()  # a video "over grass" waits for it, so that its preview can be looked at


def moving(plan, request, generator, given, *, seed, prompt):
    """In the place of vdit.serve.tasks.pieces: three steps with previews, then a bar that moves."""
    del request, given
    height, width = plan.size
    for done in range(1, 1000 if "cancelled" in prompt else 4):
        time.sleep(0.05)
        shape = generator.experiment.vae.latent_shape(1, height, width)
        generator.watch(SampledStep(done=min(done, 3), calls=3, estimate=np.zeros((1, *shape), np.float32)))
    if "over grass" in prompt:
        PREVIEW_SEEN.wait(SLOW_MS / 1000)
    video = np.full((plan.frames, height, width, 3), -0.5, np.float32)
    for k in range(plan.frames):
        video[k, :, (k + seed) % width] = 1.0
    return iter([video[None]])


class Toy:
    """In the place of vdit.Simulator: a grey picture that the actions make lighter or darker."""

    action_shape = (1, 2)

    def __init__(self, generator, prompt, *, start=None, seed=0, **options):
        self.size = generator.experiment.sample.size
        self.reset()

    def reset(self, **changes):
        self.world = 0.0
        return self.frames

    @property
    def frames(self):
        return np.full((1, *self.size, 3), self.world, np.float32)

    def step(self, action):
        self.world = float(np.clip(self.world + 0.1 * np.sum(action), -1, 1))
        return self.frames


@pytest.fixture(scope="module")
def quick():
    """A page whose model takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "pieces", moving)
        patch.setattr(planning, "batch_key", lambda *_, **how: None)
        patch.setattr(world, "Simulator", Toy)
        with playground(steered(), run="runs/steer", expander=Parrot(), show=False) as page:
            yield page


@pytest.fixture(scope="module")
def chromium():
    api.expect.set_options(timeout=SLOW_MS)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium):
    """Opens a page; at the end of a test nothing may have gone wrong in it (a script, a policy, a file)."""
    wrong, contexts = [], []

    def browse(server, part: str = "create", *, size=DESK, scheme="dark"):
        context = chromium.new_context(viewport=size, color_scheme=scheme, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SLOW_MS)
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{server.url}#{part}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield browse
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """A folder with in.mp4 (17 frames of 16x16) and in.png."""
    folder = tmp_path_factory.mktemp("media")
    frames = np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), np.uint8)
    vdit.write_video(folder / "in.mp4", frames, fps=8)
    Image.fromarray(frames[0]).save(folder / "in.png")
    return folder


def picture(page, name: str) -> None:
    if (folder := os.environ.get("VDIT_SCREENSHOTS")) is not None:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def choose(page, task: str, *files: Path) -> None:
    page.locator("#panel-create .tasks label", has_text=re.compile(f"^{task}$")).click()
    for slot, file in zip(page.locator("#panel-create .slot input[type=file]").all(), files):
        slot.set_input_files(file)


def panel(page, part: str = "create"):
    return page.locator(f"#panel-{part}")


def ready(page, files: int) -> None:
    """Waits until the server has read the files."""
    page.wait_for_function("n => document.querySelectorAll('#panel-create .slot-file').length >= n", arg=files)


def accepted(answer) -> bool:
    """Whether an answer is to a request for a video."""
    return answer.request.method == "POST" and answer.url.endswith("/v1/videos")


def make(page) -> dict:
    """Presses the button and gives the job, once it is done."""
    with page.expect_response(accepted) as made:
        page.click("#panel-create button.go")
    job = made.value.json()
    assert made.value.ok, job
    return finished(page, job["id"])


def finished(page, id: str) -> dict:
    for _ in range(SLOW_MS // 100):
        job = page.request.get(f"{page.url.partition('#')[0]}v1/videos/{id}").json()
        if job["status"] not in ("queued", "in_progress"):
            break
        page.wait_for_timeout(100)
    assert job["status"] == "completed", job["error"]
    return job


def drag(page, box, start, end) -> None:
    """From a place to a place in a box, in shares of it."""
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=4)
    page.mouse.up()


def test_a_prompt_becomes_videos(quick, browse):
    page = browse(quick)
    panel(page).get_by_label("Prompt", exact=True).fill("a red circle is steered")
    panel(page).get_by_role("button", name="Expand", exact=True).click()
    expanded = panel(page).get_by_label("Expanded prompt")
    api.expect(expanded).to_have_value(re.compile("on a plain grey background"))
    expanded.fill("a red circle is steered over grass")
    panel(page).get_by_label("Seed", exact=True).fill("7")
    panel(page).get_by_role("group", name="How many videos").get_by_role("button", name="More").click()
    page.click("#panel-create button.go")
    page.wait_for_selector(".screen canvas.lit")  # a preview, while it is made
    picture(page, "preview")
    PREVIEW_SEEN.set()
    page.wait_for_function("() => document.querySelectorAll('[data-status=completed]').length === 2")
    jobs = page.request.get(f"{quick.url}v1/videos").json()["data"]
    assert {job["seed"] for job in jobs} == {7, 8}
    assert all(job["prompt"] == "a red circle is steered over grass" for job in jobs)
    page.wait_for_function("() => document.querySelector('.screen video')?.readyState >= 2")
    picture(page, "result")
    shown = panel(page).locator(".frame-count")
    panel(page).get_by_role("button", name="Pause").click()
    page.get_by_role("slider", name="Frame of the video").fill("1")
    api.expect(shown).to_have_text("2 / 3")
    panel(page).get_by_role("button", name="Next frame").click()
    api.expect(shown).to_have_text("3 / 3")
    for name, start in (("mp4", b"ftyp"), ("webm", b"\x1a\x45\xdf\xa3"), ("gif", b"GIF8")):
        with page.expect_download() as download:
            page.get_by_role("link", name=f"Download {name}").click()
        assert start in Path(download.value.path()).read_bytes()[:16]
    page.get_by_role("button", name="Command").click()
    code = page.locator("dialog pre")
    assert "vdit sample runs/steer 'a red circle is steered over grass'" in code.nth(0).inner_text()
    assert "seed=7" in code.nth(1).inner_text() or "seed=8" in code.nth(1).inner_text()
    picture(page, "command")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings", exact=True).click()
    api.expect(panel(page).get_by_label("Prompt", exact=True)).to_have_value("a red circle is steered over grass")


@pytest.mark.parametrize(("task", "files", "body"), [
    ("Animate", ["in.png"], {"task": "animate"}),
    ("Extend", ["in.mp4"], {"task": "extend", "direction": "forward"}),
    ("Loop", ["in.mp4"], {"task": "loop"}),
    ("Connect", ["in.mp4", "in.mp4"], {"task": "connect"}),
    ("Edit", ["in.mp4"], {"task": "edit", "strength": 0.6}),
    ("Long", [], {"task": "rollout"}),
])  # fmt: skip
def test_tasks_with_files(quick, browse, media, task, files, body):
    page = browse(quick)
    sent = []
    page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
    choose(page, task, *(media / file for file in files))
    ready(page, len(files))
    panel(page).get_by_label("Prompt", exact=True).fill("a bar moves")
    job = make(page)
    assert job["task"] == body["task"]
    asked = next(request.post_data_json for request in sent if request.url.endswith("/v1/videos"))
    assert {name: asked[name] for name in body} == body
    assert len(asked.get("files", [])) == len(files)


def test_a_dropped_file_is_taken(quick, browse, media):
    page = browse(quick)
    data = page.evaluate_handle(
        """data => {
            const all = new DataTransfer(), bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            all.items.add(new File([bytes], 'in.png', {type: 'image/png'}));
            return all;
        }""",
        base64.b64encode((media / "in.png").read_bytes()).decode(),
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("body", event, {"dataTransfer": data})
    ready(page, 1)
    assert page.locator(".tasks input:checked").get_attribute("value") == "animate"


def test_a_painted_mask_moves(quick, browse, media):
    """What is painted at the first frame and dragged at the last is elsewhere in each frame that the server gets."""
    page = browse(quick)
    choose(page, "Inpaint", media / "in.mp4")
    canvas = page.locator(".editor canvas")
    canvas.wait_for()
    box = canvas.bounding_box()
    drag(page, box, (0.2, 0.3), (0.2, 0.5))
    panel(page).get_by_role("radio", name="Move").check()
    panel(page).get_by_label("Frame", exact=True).fill("9")
    drag(page, box, (0.2, 0.4), (0.7, 0.4))
    api.expect(page.locator(".editor [role=status]")).to_have_text(re.compile("key frames: 1, 9"))
    picture(page, "inpaint")
    with page.expect_response(lambda answer: answer.url.endswith("/v1/files")) as upload:
        job = make(page)
    mask = upload.value.json()
    assert (mask["kind"], mask["frames"], mask["width"], mask["height"]) == ("video", 9, 16, 16)
    answer = page.request.get(f"{quick.url}v1/files/{mask['id']}/content?original=true")
    frames = vdit.read_video(io_file(answer.body(), media)).frames.mean(-1) > 127
    centres = [np.flatnonzero(frame.any(0)).mean() for frame in frames]
    assert np.all(np.diff(centres) > 0)
    assert centres[-1] - centres[0] == pytest.approx(8, abs=1)
    assert job["task"] == "inpaint"


def io_file(data: bytes, folder: Path) -> Path:
    path = folder / f"answer{len(data)}.mkv"
    path.write_bytes(data)
    return path


def test_the_brush_by_keyboard(quick, browse, media):
    page = browse(quick)
    choose(page, "Inpaint", media / "in.mp4")
    canvas = page.locator(".editor canvas")
    canvas.wait_for()
    status = page.locator(".editor [role=status]")
    api.expect(status).to_have_text("Nothing is painted yet.")
    canvas.focus()
    for key in ("ArrowLeft", "Shift+ArrowUp", "Space"):
        page.keyboard.press(key)
    api.expect(status).to_have_text(re.compile(r"^\d+% of this frame"))
    page.keyboard.press("Control+z")
    api.expect(status).to_have_text("Nothing is painted yet.")
    page.get_by_role("button", name="Box").click()
    page.get_by_role("button", name="Add", exact=True).click()
    api.expect(status).to_have_text(re.compile("^25% of this frame"))


def test_the_frame_is_dragged_outward(quick, browse, media):
    page = browse(quick)
    choose(page, "Outpaint", media / "in.mp4")
    page.locator(".outpaint-frame").wait_for()
    left = panel(page).get_by_label("Left")
    api.expect(left).to_have_value("16")
    handle = page.locator(".handle.left")
    box = handle.bounding_box()
    drag(page, box, (0.5, 0.5), (-5.0, 0.5))
    assert int(left.input_value()) > 16
    left.fill("8")
    left.press("Tab")
    panel(page).get_by_label("Right").fill("0")
    panel(page).get_by_label("Bottom").fill("8")
    panel(page).get_by_label("Bottom").press("Tab")
    picture(page, "outpaint")
    assert make(page)["size"] == "24x24"


def test_the_timeline(quick, browse, media):
    """An image and a video are placed, moved and resized; a mask covers part of what is known; the rest is made."""
    page = browse(quick, "timeline")
    view = page.locator("#panel-timeline")
    view.locator("input[type=file]").set_input_files(media / "in.png")
    view.locator(".bar").wait_for()
    coverage = view.locator(".coverage canvas")
    api.expect(coverage).to_have_attribute("aria-label", re.compile("^33% is known"))  # one of three frames
    view.locator(".bar").press("ArrowRight")
    api.expect(view.get_by_label("From frame")).to_have_value("2")
    view.get_by_label("Width").fill("8")
    view.get_by_label("Width").press("Tab")
    api.expect(coverage).to_have_attribute("aria-label", re.compile("^17% is known"))
    view.get_by_role("radio", name="Mask").check()
    screen = view.locator(".timeline-screen canvas")
    drag(page, screen.bounding_box(), (0.4, 0.2), (0.4, 0.8))
    assert not coverage.get_attribute("aria-label").startswith("17%")
    picture(page, "timeline")
    with page.expect_response(accepted) as made:
        view.locator("button.go").click()
    assert made.value.ok, made.value.json()
    asked = made.value.request.post_data_json
    [placed] = asked["canvas"]
    assert placed == {"file": placed["file"], "at_frame": 1, "x": 0, "y": 0, "width": 8, "height": 16}
    assert "mask" in asked
    assert finished(page, made.value.json()["id"])["task"] == "canvas"
    assert page.get_by_role("tab", name="Create").get_attribute("aria-selected") == "true"


def test_two_results_play_in_step(quick, browse):
    page = browse(quick)
    for seed in (1, 5):
        panel(page).get_by_label("Seed", exact=True).fill(str(seed))
        make(page)
    page.locator(".actions").get_by_role("button", name="Compare").click()
    view = page.locator("#panel-compare")
    page.wait_for_function("() => [...document.querySelectorAll('.compare video')].every((v) => v.readyState >= 2)")
    assert "seed 5" in view.locator("figcaption").first.inner_text()
    ids = page.evaluate("() => [...document.querySelectorAll('.compare video')].map((v) => v.dataset.id)")
    assert len(set(ids)) == 2  # not one result beside itself
    view.get_by_role("button", name="Play").click()
    page.wait_for_timeout(400)
    view.get_by_role("button", name="Pause").click()
    page.wait_for_function("() => [...document.querySelectorAll('.compare video')].every((v) => !v.seeking)")
    times = page.evaluate("() => [...document.querySelectorAll('.compare video')].map((v) => v.currentTime)")
    assert times[0] == times[1]
    view.get_by_role("radio", name="Wipe").check()
    view.get_by_label("Line").fill("20")
    assert "20%" in view.locator("video").nth(1).evaluate("v => v.style.clipPath")
    picture(page, "compare")
    view.get_by_role("radio", name="Difference").check()
    picture(page, "difference")


def test_the_world_is_played(quick, browse):
    page = browse(quick, "world")
    view = page.locator("#panel-world")
    view.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("() => Number(document.querySelector('#panel-world').dataset.frames) > 2", timeout=60_000)
    view.get_by_role("button", name="Record").click()
    for key in ("d", "ArrowDown", "w"):
        page.keyboard.press(key, delay=150)
    receipts = view.locator(".receipts li")
    api.expect(receipts).not_to_have_count(0)
    view.get_by_role("button", name="w: up").focus()
    page.keyboard.press("Enter")  # the pad by keyboard
    shown = view.locator(".world-screen canvas").nth(1).evaluate(
        "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    )
    assert shown > 2  # the rendered world, with a shape in it
    assert float(view.get_attribute("data-late")) >= 0  # milliseconds; NaN and none fail
    picture(page, "world")
    with page.expect_download() as download:
        view.get_by_role("button", name="Stop recording").click()
    assert b"ftyp" in Path(download.value.path()).read_bytes()[:12]
    before = int(view.get_attribute("data-frames"))
    view.get_by_role("button", name="Reset").click()
    page.wait_for_function("n => Number(document.querySelector('#panel-world').dataset.frames) < n", arg=before)
    view.get_by_role("button", name="Stop", exact=True).click()


def test_a_job_is_cancelled_and_deleted(quick, browse):
    page = browse(quick)
    panel(page).get_by_label("Prompt", exact=True).fill("to be cancelled")
    page.click("#panel-create button.go")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_text("This one was cancelled.").wait_for()
    page.get_by_label("Search the history").fill("to be cancelled")
    cancelled = page.locator(".result[data-status=cancelled]")
    api.expect(cancelled).to_have_count(1)
    page.get_by_role("button", name="Delete", exact=True).click()
    api.expect(cancelled).to_have_count(0)


def test_by_keyboard_alone(quick, browse):
    page = browse(quick)
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the page"
    page.get_by_role("tab", name="Create").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Timeline").get_attribute("aria-selected") == "true"
    page.keyboard.press("Home")
    panel(page).get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("typed")
    with page.expect_response(accepted) as made:
        page.keyboard.press("Control+Enter")
    assert made.value.json()["prompt"] == "typed"


@pytest.mark.parametrize(("name", "size", "scheme"), [
    ("desk", DESK, "dark"), ("phone", PHONE, "light"), pytest.param("desk", DESK, "light", marks=pytest.mark.slow),
    pytest.param("phone", PHONE, "dark", marks=pytest.mark.slow),
])  # fmt: skip
def test_every_view_is_accessible_and_fits(quick, browse, media, name, size, scheme):
    """axe-core finds nothing serious; nothing is wider than the screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=NEEDS)
    page = browse(quick, size=size, scheme=scheme)
    choose(page, "Inpaint", media / "in.mp4")
    page.locator(".editor canvas").wait_for()
    page.locator("details.more summary").first.click()
    for part in ("Create", "Timeline", "Compare", "World"):
        page.get_by_role("tab", name=part).click()
        page.wait_for_timeout(250)  # colours fade
        picture(page, f"{part.lower()}-{name}-{scheme}")
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= size["width"], part
        found = axe.Axe().run(page).response["violations"]
        grave = [one for one in found if one["impact"] in ("serious", "critical")]
        serious = [(one["id"], [node["html"][:90] for node in one["nodes"]]) for one in grave]
        assert not serious, part


@pytest.mark.slow
def test_a_real_model_end_to_end(browse, media):
    """Text, extension, inpainting and a timeline by a model: what was given comes back bit for bit."""
    with playground(tiny.generator(), run="runs/tiny", show=False) as server:
        page = browse(server)
        panel(page).get_by_label("Prompt", exact=True).fill("a bar")
        first = make(page)
        assert first["frames"] == 9
        page.locator(".next").get_by_role("button", name="Extend").click()
        ready(page, 1)
        longer = make(page)
        given, made = (master(page, server, job, media) for job in (first, longer))
        assert len(made) > len(given)
        np.testing.assert_array_equal(made[: len(given)], given)
        page.locator(".next").get_by_role("button", name="Timeline").click()
        view = page.locator("#panel-timeline")
        view.locator(".bar").wait_for()
        view.get_by_label("Width").fill("8")
        view.get_by_label("Width").press("Tab")
        with page.expect_response(accepted) as response:
            view.locator("button.go").click()
        job = finished(page, response.value.json()["id"])
        assert master(page, server, job, media).shape == (9, 16, 16, 3)


def master(page, server, job, folder: Path) -> np.ndarray:
    answer = page.request.get(f"{server.url}v1/videos/{job['id']}/content?format=mkv")
    return vdit.read_video(io_file(answer.body(), folder)).frames
