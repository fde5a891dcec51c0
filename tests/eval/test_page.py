import base64
import importlib.resources
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vdit.errors import ShapeError, VditError
from vdit.eval.histogram import svg_histogram
from vdit.eval.page import Page, svg_curves
from vdit.video.read import read_video

VOID = {"meta", "img", "br", "input"}  # closed by themselves
HOSTILE = "<script>alert('x')</script> & \"quotes\" $x_1$"
SCRIPT = importlib.resources.files("vdit.eval").joinpath("page.js").read_text()


class Checker(HTMLParser):
    """Collects tags, attributes and text, and fails where a tag is not closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def moving(frames=5, h=16, w=24):
    video = np.full((frames, h, w, 3), 40, np.uint8)
    for t in range(frames):
        video[t, 4:10, 2 + 2 * t : 8 + 2 * t] = (220, 60, 30)
    return video


@pytest.fixture(scope="module")
def html():
    steps = np.arange(2000)
    page = Page(HOSTILE, HOSTILE)
    page.text("# Heading\n\nA **bold** word, `code **not bold** <i>`.\nSame paragraph.\n\n- one\n- two")
    page.text(HOSTILE)
    page.figures({"colour": "95%", "tokens/s": 12345.6, HOSTILE: 0.25})
    page.videos(
        [
            (moving(), HOSTILE, "ok"),
            (moving().astype(np.float32) / 127.5 - 1, "float", "wrong"),
            (moving(3, 161, 181), "odd"),
            (moving(1), "still", None),
        ],
        fps=8,
        title="Samples",
        columns=2,
    )
    page.compare([({HOSTILE: moving(), "real": moving()}, HOSTILE, "wrong")], fps=8)
    page.curves({HOSTILE: (steps, np.exp(-steps / 500))}, HOSTILE, log_y=True, y_label=HOSTILE)
    page.curves({"a": ([0, 1], [1, 2])}, "second")
    page.table(["name", HOSTILE], [[HOSTILE, 1.23456], ["b", 12345], [None, float("inf")]], title="Table")
    page.commands([f"vdit sample --prompt {HOSTILE}"], title="Go on")
    return page.html()


@pytest.fixture(scope="module")
def parsed(html):
    return Checker(html)


def test_the_page_is_one_well_formed_document(html, parsed):
    assert html.startswith("<!doctype html>")
    assert [tag for tag, _ in parsed.tags[:2]] == ["html", "head"]
    assert len(parsed.all("title")) >= 1


def test_nothing_comes_from_outside_and_only_the_player_runs(html, parsed):
    assert parsed.all("script") == [{}]
    assert html.count("<script>") == html.count(f"<script>{SCRIPT}</script>") == 1
    for tag, attrs in parsed.tags:
        assert tag not in ("link", "iframe", "base", "object", "form")
        assert tag != "a" or attrs.keys() == {"class", "download", "title"}  # the player fills in where it leads
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "poster", "data"):
                assert value.startswith("data:")
    without_data = re.sub(r'src="data:[^"]*"', "", html)
    assert not re.search(r"https?:|url\(|@import|//", without_data)


def test_every_given_text_is_escaped(parsed):
    text = "".join(parsed.texts)
    # Title twice, subtitle, paragraph, figure label, video, name of one of a pair, its caption, curve (title, legend),
    # plot (title, axis), head cell, cell, command: each came through as plain text.
    assert text.count(HOSTILE) == 15
    assert len(parsed.all("script")) == 1


def test_text_reads_light_markdown(html):
    assert "<h2>Heading</h2>" in html
    assert "<p>A <strong>bold</strong> word, <code>code **not bold** &lt;i&gt;</code>. Same paragraph.</p>" in html
    assert "<p>2*v5p:4x4x4 and 2*v5p, _x_ **</p>" in Page("a").text("2*v5p:4x4x4 and 2*v5p, _x_ **").html()
    assert re.search(r"<ul>\s*<li>one</li>\s*<li>two</li>\s*</ul>", html)


def test_videos_decode_back_with_their_frames(parsed, tmp_path):
    videos = parsed.all("video")
    assert len(videos) == 5
    for attrs, want in zip(videos, (moving(), moving(), moving(3, 161, 181), moving(), moving())):
        assert {"controls", "loop", "muted", "playsinline"} <= attrs.keys()  # the browser's own, without scripts
        assert (attrs["data-frames"], attrs["data-fps"]) == (str(len(want)), "8")
        assert (int(attrs["height"]), int(attrs["width"])) == want.shape[1:3]
        path = tmp_path / "video.mp4"
        path.write_bytes(base64.b64decode(attrs["src"].removeprefix("data:video/mp4;base64,"), validate=True))
        clip = read_video(path)
        assert len(clip.frames) == len(want)
        assert clip.fps == pytest.approx(8)
        h, w = clip.frames.shape[1:3]
        assert h % 2 == w % 2 == 0  # what every browser can play
        scale = 2 if attrs.get("class") == "small" else 1
        shown = clip.frames[:, ::scale, ::scale][:, : want.shape[1], : want.shape[2]].astype(int)
        assert np.abs(shown - want).mean() < 3


def test_one_frame_is_an_exact_image(parsed):
    (image,) = parsed.all("img")
    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)))[::2, ::2], moving(1)[0])


def test_badges_and_columns_are_shown(html):
    assert '<span class="badge ok">ok</span>' in html
    assert '<span class="badge wrong">wrong</span>' in html
    assert "(100% - 14px)/2)" in html


def test_each_video_can_be_saved_under_a_name_of_its_own(parsed):
    names = [attrs["download"] for attrs in parsed.all("a")]
    assert len(set(names)) == len(names) == len(parsed.all("video")) + len(parsed.all("img"))
    assert names[1] == "002-float"
    assert all(re.fullmatch(r"\d{3}(-[a-z0-9]+)*", name) for name in names)


def test_a_page_without_videos_runs_nothing():
    assert "<script" not in Page("a").text("b").html()


def test_tables_show_numbers_short(html):
    assert "<td class=number>1.235</td>" in html
    assert "<td class=number>12,345</td>" in html
    assert "<td></td><td class=number>inf</td>" in html


def test_plots_that_follow_each_other_share_a_row(html):
    assert html.count('<div class="plots">') == 1
    assert html.count('<figure class="plot">') == 2


def curve_points(svg, name="curve0"):
    path = re.search(rf'<g class="{name}">.*?<path d="([^"]*)"', svg, re.S)[1]
    return [(kind, float(x), float(y)) for kind, x, y in re.findall(r"([ML]) (-?[\d.]+) (-?[\d.]+)", path)]


def labels(svg):
    return [float(text.replace("−", "-")) for text in re.findall(r"<text[^>]*>([^<a-z]+)</text>", svg)]


def test_curves_are_drawn_to_scale():
    points = curve_points(svg_curves({"a": ([0, 5, 10], [0, 1, 3])}))
    (_, x0, y0), (_, x1, y1), (_, x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert 2 * (y0 - y1) == pytest.approx(y1 - y2, abs=0.2)
    assert y2 < y0  # larger is higher on the page
    on_log = curve_points(svg_curves({"a": ([0, 5, 10], [1, 10, 1000])}, log_y=True))
    assert 2 * (on_log[0][2] - on_log[1][2]) == pytest.approx(on_log[1][2] - on_log[2][2], abs=0.2)


def test_ticks_are_round_numbers():
    linear = svg_curves({"a": ([0, 9_800], [0.013, 0.96])})
    assert {0, 2000, 4000, 6000, 8000, 0.2, 0.4, 0.6, 0.8} <= set(labels(linear))
    assert {1e-6, 1e-2, 1e2} & set(labels(svg_curves({"a": ([0, 1], [0.9e-6, 2e3])}, log_y=True)))
    assert {0.2, 0.5, 1, 2} <= set(labels(svg_curves({"a": ([0, 1], [0.11, 2.1])}, log_y=True)))


def test_colours_follow_the_page_and_each_curve_has_its_own():
    svg = svg_curves({name: ([0, 1], [i, i + 1]) for i, name in enumerate("abcdefg")})
    strokes = [re.search(rf'<g class="curve{i}">.*?stroke: ([^;"]*)', svg, re.S)[1] for i in range(7)]
    assert strokes == [f"var(--c{i % 6})" for i in range(7)]
    assert not re.search("#[0-9a-f]{6}", svg)  # no colour that a dark page could not change


def test_values_that_cannot_be_drawn_are_gaps():
    svg = svg_curves({"a": (range(7), [1, np.nan, 2, np.inf, 3, 4, 5])})
    assert [kind for kind, _, _ in curve_points(svg)].count("M") >= 1
    assert len(re.findall("<use ", re.search(r'<g class="dots0">.*?</g>\s*</g>', svg, re.S)[0])) == 2
    points = curve_points(svg_curves({"a": (range(6), [1, 2, np.nan, 3, 4, 5])}))
    assert [kind for kind, _, _ in points] == ["M", "L", "M", "L", "L"]
    points = curve_points(svg_curves({"a": (range(6), [1, 2, 0, 3, 5, 4])}, log_y=True))
    assert [kind for kind, _, _ in points] == ["M", "L", "M", "L", "L"]


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(("xs", "ys"), [
    ([], []), ([1], [np.nan]), ([3], [4.0]), ([3, 3], [4, 4]), ([0, 1], [0, 0]), ([0, 1], [-5, -5]),
    ([0, 1], [np.nextafter(1e-3, 0), 1e-2]), ([0, 1], [1e-300, 1e300]), ([0, 1e9], [1e9, 1e9 + 1]),
    ([np.nan, 1], [1, 2]),
])  # fmt: skip
def test_degenerate_curves_still_give_a_sound_svg(xs, ys, log_y):
    svg = svg_curves({"a": (xs, ys)}, log_y=log_y)
    drawable = any(np.isfinite(y) and (y > 0 or not log_y) for x, y in zip(xs, ys) if np.isfinite(x))
    assert svg.startswith("<svg") == drawable
    assert "no finite values" in Page("a").curves({"a": (xs, ys)}, log_y=log_y).html() or drawable
    Checker(svg)
    assert "nan" not in svg
    assert not re.search(r'[^a-z]inf[^a-z]', svg)


def test_long_curves_are_thinned_and_keep_their_spikes():
    ys = np.ones(100_000)
    ys[54_321] = 7.0
    svg = svg_curves({"a": (np.arange(100_000), ys)})
    points = curve_points(svg)
    assert len(points) <= 600
    assert len([y for _, _, y in points if y < points[0][2] - 50]) == 1
    noise = np.random.default_rng(0).random(100_000)
    assert len(svg_curves({"a": (np.arange(100_000), noise)})) < 100_000


def test_the_same_page_has_the_same_bytes_and_plots_share_no_ids():
    page = Page("a").curves({"a": ([0, 1], [1, 2])}).text("and").curves({"a": ([0, 1], [1, 2])})
    assert page.html() == page.html()
    svg = svg_curves({"a": ([0, 1], [1, 2])})
    assert all(re.fullmatch("m[0-9a-f]{10}", name) for name in re.findall(r' id="([^"]*)"', svg))


def test_save_is_whole_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "sub" / "report.html"
    assert Page("a").text("first").save(path) == path
    Page("a").text("half a pair \ud800").save(path)
    assert "half a pair" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_what_draws_a_page_is_loaded_when_one_is_made():
    """Commands that only import the page (`vdit quickstart`, `vdit plan`) do not wait for matplotlib."""
    code = (
        "import sys, vdit.eval.page, vdit.eval.metrics\n"
        "heavy = {'matplotlib', 'jinja2', 'markdown_it', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_wrong_input_is_one_clear_line(tmp_path):
    with pytest.raises(ShapeError, match=r"frames of shape \(16, 24, 3\) cannot be shown"):
        Page("a").videos([(moving()[0], "x")], 8)
    with pytest.raises(ShapeError, match="NaN"):
        Page("a").videos([(np.full((2, 8, 8, 3), np.nan), "x")], 8)
    with pytest.raises(VditError, match="badge 'fine' is unknown"):
        Page("a").videos([(moving(), "x", "fine")], 8)
    with pytest.raises(VditError, match="row has 1 cells, its header 2"):
        Page("a").table(["a", "b"], [["x"]])
    with pytest.raises(ShapeError, match="3 xs and 2 ys"):
        Page("a").curves({"a": ([1, 2, 3], [1, 2])})
    with pytest.raises(VditError, match="cannot write the page"):
        Page("a").save(tmp_path)


@pytest.mark.parametrize(
    ("edges", "lines"), [((0, 1, 2, 4), (3.0,)), ((-2e-7, 0, 1e-7, 5e-7), ()), ((5, 6, 7, 8), (0.0, 9.5))]
)
def test_a_histogram_draws_each_bar_as_high_as_its_count_inside_the_axes(edges, lines):
    svg = svg_histogram(np.array([4, 0, 2]), np.array(edges, float), lines=lines, x_label=HOSTILE)
    checker = Checker(svg)
    (bars,) = [tag["d"] for name, tag in checker.tags if name == "path" and "fill" in tag]
    numbers = [float(x) for x in re.findall(r"-?[\d.]+", bars)]
    (x0, base, top0, x1, _), (x2, _, top2, x3, _) = numbers[:5], numbers[5:]
    assert len(numbers) == 10
    assert base - top0 == pytest.approx(2 * (base - top2), abs=0.2)
    assert (x3 - x2) / (x1 - x0) == pytest.approx((edges[3] - edges[2]) / (edges[1] - edges[0]), rel=0.05)
    places = [x0, x3, *(float(tag["d"][1:].split()[0]) for _, tag in checker.tags if "c1" in tag.get("stroke", ""))]
    assert all(46 <= place <= 395 for place in places)
    assert HOSTILE in checker.texts
