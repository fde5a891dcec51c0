"""The notebook runs from its first cell to its last, shrunk, and is stored without outputs."""

import os
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY

NEEDS = "the notebook test needs nbclient and ipykernel: pip install -e '.[test]'"
nbformat = pytest.importorskip("nbformat", reason=NEEDS)
nbclient = pytest.importorskip("nbclient", reason=NEEDS)
pytest.importorskip("ipykernel", reason=NEEDS)

NOTEBOOK = ROOT / "experiments" / "colab" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.usefixtures("tiny_run")  # trains the same experiment first, so that little is left to compile
def test_it_runs_to_the_end(notebook, tmp_path: Path, compile_cache: Path):
    environment = os.environ | {
        "VDIT_OVERRIDES": " ".join(TINY),
        "VDIT_PROMPTS": "4",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compile_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": str(ROOT),
    }
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    done = client.execute(env=environment)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data.get("text/html", "") for output in outputs if output.output_type == "display_data"]
    pages = [html for html in shown if "<iframe" in html]
    assert len(pages) == 4
    assert sum(page.count("data:video/mp4") for page in pages) == 4 + 2 + 8
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    for name in ("shares", "rendered", "shuffled", "chance"):
        assert re.search(rf"^{name} .*'direction': '\d+%'", text, re.MULTILINE)
    assert (tmp_path / "sample.mp4").exists()
    assert (tmp_path / "runs" / "notebook" / "dit" / "2").is_dir()
