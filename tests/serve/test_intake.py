"""The process that reads uploads: what it loads, and what it finds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="vdit serve needs fastapi: pip install -e '.[serve]'")

from PIL import Image

from tests.conftest import ROOT
from vdit.serve.intake import Intake, Reader
from vdit.serve.schema import Limits
from vdit.video.write import write_video

HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "fastapi", "uvicorn", "torch"}


@pytest.fixture
def uploads(tmp_path) -> dict[str, Path]:
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 24, 3), np.uint8)
    write_video(tmp_path / "film.mp4", frames, fps=12)
    Image.fromarray(frames[0]).save(tmp_path / "picture.png")
    return {kind: tmp_path / name for kind, name in (("video", "film.mp4"), ("image", "picture.png"))}


def asked(source: Path) -> Intake:
    return Intake.of(source, source.with_suffix(".read"), fps=8, limits=Limits())


def test_what_reads_an_upload_loads_no_model_code(uploads):
    """The real process, by what it has mapped, and the modules of one that has read both kinds."""
    reader = Reader()
    try:
        found = {kind: reader.read(asked(path)) for kind, path in uploads.items()}
        assert {kind: one["kind"] for kind, one in found.items()} == {"video": "video", "image": "image"}
        maps = Path(f"/proc/{reader._process.pid}/maps")
        if maps.is_file():
            assert "jaxlib" not in maps.read_text()
    finally:
        reader.close()
    code = (
        "import json, sys\n"
        "from vdit.serve import intake\n"
        "intake.main()\n"  # no line comes: it only imports what reading takes
        "for asked in json.loads(sys.argv[1]):\n"
        "    assert 'error' not in intake._outcome(intake.Intake(**asked))\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    words = json.dumps([vars(asked(path)) for path in uploads.values()])
    command = [sys.executable, "-c", code, words]
    said = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=120)
    loaded = set(json.loads(said.stdout))
    assert {"av", "PIL", "numpy"} <= loaded
    assert not HEAVY & loaded
