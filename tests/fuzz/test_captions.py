"""The short form of tools/fuzz/captions.py: right files read as they were meant, changed ones refused in one line."""

from tools.fuzz.captions import HOSTILE, make
from tools.fuzz.common import attempt
from vdit.data.captions import read_captions

QUICK = ("a device", "a folder", "a link to itself", "a pipe", "brackets", "columns", "digits")


def test_captions_and_prompts_files(tmp_path):
    results = []
    for seed in [seed for seed in range(200) if seed % 10 != 9]:  # the tenth of each ten takes megabytes
        folder = tmp_path / str(seed)
        folder.mkdir()
        results.append(attempt(make, seed, folder))
    assert [result for result in results if result.outcome == "failed"] == []
    assert sum(result.outcome == "ok" for result in results) > 60
    assert sum(result.outcome == "refused" for result in results) > 30


def test_files_made_to_hurt(tmp_path):
    assert set(QUICK) <= set(HOSTILE)
    for kind in QUICK:
        folder = tmp_path / kind
        folder.mkdir()
        HOSTILE[kind](folder)
        file = next(folder.iterdir())
        case = lambda seed, folder, file=file: (file.name, lambda: read_captions(folder, file))  # noqa: E731
        result = attempt(case, 0, folder)
        assert result.outcome == "refused", result
        assert file.name in result.detail
