"""Every script starts, and every command that the project prints or documents is one that a user can type."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vdit.cli.main import COMMANDS, parse
from vdit.cli.parser import take_plugins
from vdit.cli.train import find_experiment
from vdit.config import apply_overrides
from vdit.errors import VditError
from vdit.experiment.experiment import Experiment
from vdit.quickstart.config import experiment as quickstart_experiment

SOURCES = sorted(path for folder in ("vdit", "experiments", "tools", "data_pipelines") for path in
                 (ROOT / folder).rglob("*.py"))  # fmt: skip
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")])
# What another script starts, not a user.
WORKERS = ("tools/killed_run.py", "tools/fuzz/common.py", "data_pipelines/isolate.py")
SCRIPTS = sorted(name for path in SOURCES if 'if __name__ == "__main__"' in path.read_text()
                 for name in [path.relative_to(ROOT).as_posix()] if not name.startswith("vdit/"))  # fmt: skip
LAUNCHERS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments" / "launch").rglob("*")
                   if path.suffix in (".sh", ".sbatch"))  # fmt: skip

NAMED = "(?:" + "|".join(COMMANDS) + r")(?![\w-])"

# Runs scripts one after another as `python SCRIPT --help`, in one process, so that jax is imported once.
HELP = """
import contextlib, io, json, os, runpy, sys
shown = {}
for script in sys.argv[1:]:
    sys.argv, out = [script, "--help"], io.StringIO()
    module = "python -m " + script.removesuffix(".py").replace("/", ".")  # where its docstring says to start it so
    sys.path[0] = os.getcwd() if module in open(script).read() else os.path.dirname(script)
    code = None
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code = repr(error)
    shown[script] = (code, out.getvalue())
json.dump(shown, sys.stdout)
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[object, str]]:
    """Script -> (exit code, what it prints) of `python SCRIPT --help`."""
    import json

    done = subprocess.run([sys.executable, "-c", HELP, *SCRIPTS], cwd=ROOT, capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in WORKERS])
def test_every_script_shows_its_help(helps, script):
    code, shown = helps[script]
    assert code in (0, None), shown
    assert "usage:" in shown
    assert len(shown.splitlines()) > 3


@pytest.mark.parametrize("script", LAUNCHERS)
def test_every_launcher_is_one_that_bash_can_read(script):
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def blocks(text: str) -> list[str]:
    """The commands that stand on lines of their own, indented or fenced; those that end in \\ with what follows."""
    start = rf"(?:\S*/)?(?:vdit (?:{NAMED}|COMMAND|-)|python3? |pip )"
    lines = re.findall(rf"^ *(?:\$ )?({start}(?:[^\n]*\\\n)*[^\n]*)$", text, re.MULTILINE)
    return [re.sub(r"\\\n\s*", "", line) for line in lines]


def inline(text: str) -> list[str]:
    """`vdit ...` in backticks, and in a message from "vdit COMMAND" to the end of its line."""
    quoted = re.findall(rf"(?<!`)`(vdit (?:{NAMED}|COMMAND)[^`\n]*)`", text)
    named = re.findall(rf"(?<![\w/.`-])vdit (?:{NAMED})[^\n`)]*", text)
    return quoted + [line for line in named if " --" in line and not line.endswith("\\")]


def strings(path: Path) -> list[str]:
    """The texts of a source file; what an f-string fills in reads X."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def documented() -> dict[str, str]:
    """Every documented command -> the first place that has it."""
    found: dict[str, str] = {}
    for path in [*DOCUMENTS, *SOURCES]:
        for text in [path.read_text()] if path.suffix == ".md" else strings(path):
            indented = path.suffix == ".md" or "\n" in text
            for command in [*(blocks(text) if indented else ()), *inline(text)]:
                found.setdefault(command.strip(), path.relative_to(ROOT).as_posix())
    return found


COMMANDS_FOUND = documented()


def found(start: str) -> list[str]:
    return [command for command in COMMANDS_FOUND if re.match(start, command)]


def experiment_of(options) -> Experiment:
    """The experiment that a command names, or where it is a user's own any other: keys are the same."""
    try:
        return find_experiment(options.experiment)
    except (VditError, AttributeError):
        return quickstart_experiment()


def test_enough_commands_are_found_to_be_worth_looking_at():
    assert len(COMMANDS_FOUND) > 100
    assert "vdit train --data my_videos --workdir runs/mine" in COMMANDS_FOUND


def test_a_shell_takes_every_documented_command():
    refused = {}
    for command, place in COMMANDS_FOUND.items():
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        if done.returncode:
            refused[f"{place}: {command}"] = done.stderr
    assert not refused


@pytest.mark.parametrize("command", found(r"(\S*/)?vdit "))
def test_vdit_takes_every_documented_command(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *words = shlex.split(command.split(" | ")[0], comments=True)[1:]
    if name == "COMMAND" or not set(words) - {"--help", "..."}:  # the name alone
        return
    if all(word.startswith("-") and "=" not in word for word in words):  # an option is named, without its value
        words.append("1")
    words, plugins = take_plugins([name, *words])
    options, overrides = parse(words)
    if overrides and not plugins:  # what a plugin brings, tests/test_docs.py runs
        assert isinstance(apply_overrides(experiment_of(options), overrides), Experiment)


@pytest.mark.parametrize("command", found(r"(\S*/)?python3? \S+\.py"))
def test_every_documented_script_is_there_and_has_the_options(helps, command):
    script, *words = shlex.split(command, comments=True)[1:]
    if not words and any(f"```python\n# {script}\n" in page.read_text() for page in (ROOT / "docs").rglob("*.md")):
        return  # written by the page that names it (tests/test_docs.py runs it)
    assert script in SCRIPTS
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{option.partition('.')[0]}\b", helps[script][1]), option
