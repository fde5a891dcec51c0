"""The site builds without a warning, and every block of a how-to runs as a user would run it."""

import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import vdit
import vdit.worlds
from tests.conftest import ROOT, TINY

DOCS = ROOT / "docs"
HOW_TOS = sorted(page for page in (DOCS / "how_to").glob("*.md") if page.stem != "index")
ELSEWHERE = ("data_source", "loss", "evaluator", "backbone", "condition")  # runs of tests/doors take several
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.py)\n")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block of a page."""
    return FENCE.findall(page.read_text())


def commands(text: str) -> list[list[str]]:
    """The command lines of a block, as words."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "trees", DOCS, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    assert all((tmp_path / page).is_file() for page in pages)
    namespaces = {page.stem for page in (DOCS / "api").glob("*.md")} - {"vdit"}
    for name in namespaces:  # every exported name is on its page
        exported = set(__import__(f"vdit.{name}", fromlist=["_"]).__all__)
        shown = set(re.findall(rf'id="vdit\.{name}\.(\w+)"', (tmp_path / "api" / f"{name}.html").read_text()))
        assert exported <= shown


@pytest.mark.parametrize("page", HOW_TOS, ids=lambda page: page.stem)
def test_a_how_to_fits_on_a_screen_or_two(page):
    assert len(page.read_text().splitlines()) < 80


def write_data(home: Path) -> None:
    """What a user of the pages has: my_videos with captions, and the same in shards."""
    (home / "my_videos").mkdir()
    (home / "shards").mkdir()
    world = vdit.worlds.make("moving", seed=5, count=6, size=(32, 32), frames=9, fps=8.0)
    for i in range(6):
        vdit.write_video(home / "my_videos" / f"{i}.mp4", world[i].video, fps=8)
        (home / "my_videos" / f"{i}.txt").write_text(world[i].caption)
        with tarfile.open(home / "shards" / f"{i // 3}.tar", "a") as tar:
            for file in (f"{i}.mp4", f"{i}.txt"):
                tar.add(home / "my_videos" / file, arcname=file)


def sizes(words: list[str]) -> list[str]:
    """The overrides of the tiny run that a command does not set itself."""
    given = {word.split("=")[0].removeprefix("--cfg.") for word in words}
    own = ("data.source.",) if "data.source" in given else ()
    return [f"--cfg.{item}" for item in TINY if item.split("=")[0] not in given and not item.startswith(own)]


@pytest.mark.parametrize("page", [page for page in HOW_TOS if page.stem not in ELSEWHERE], ids=lambda page: page.stem)
def test_a_how_to_runs(page, tmp_path, compile_cache, tiny_run):
    """Files are written, then Python and commands run in the order of the page.

    The folder has my_videos and shards (write_data); runs/quickstart is the tiny run, and `vdit train` gets its sizes.
    """
    write_data(tmp_path)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",  # like the installed command: the folder is not on the path by itself
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compile_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(tiny_run)
    ran = 0
    for language, text in blocks(page):
        if language == "python" and (name := FILE.match(text)):
            (tmp_path / name[1]).write_text(text)
            continue
        if language not in ("python", "bash"):
            continue
        (tmp_path / "block.py").write_text(f"import sys; sys.path.append('.')\n{text}")
        lines = commands(text) if language == "bash" else [["python", "block.py"]]
        for program, *words in lines:
            start = {"vdit": [sys.executable, "-m", "vdit.cli.main"], "python": [sys.executable]}[program]
            if program == "vdit" and words[0] == "train":
                words += sizes(words)
            done = subprocess.run([*start, *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
                                  timeout=300, check=False)  # fmt: skip
            assert done.returncode == 0, f"{shlex.join([program, *words])[:300]}\n{done.stdout}{done.stderr}"
            ran += 1
    assert ran
