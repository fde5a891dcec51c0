"""The command line says what is wrong in one line, and teaches."""

import dataclasses
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import vdit
from vdit.cli import main as cli
from vdit.cli.main import main
from vdit.cli.parser import UsageError, size, take_overrides

COMMANDS = ("quickstart", "train", "sample", "reconstruct")


def put_in_place(monkeypatch, command, run):
    """`run` is what the command does."""
    monkeypatch.setitem(cli.COMMANDS, command, dataclasses.replace(cli.COMMANDS[command], run=run))


def refused(capsys, *arguments):
    """The one line on stderr that the arguments are refused with."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vdit: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"vdit {command}" in text
    assert max(map(len, text.splitlines())) <= 120


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {command}\s", text, re.MULTILINE) for command in COMMANDS)


def test_no_command_prints_the_help(capsys):
    assert main([]) == 2
    assert "examples:" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vdit {vdit.__version__}\n"


def test_help_starts_nothing_heavy():
    code = "import sys; from vdit.cli.main import main; main(['sample', '--help']); " \
           "sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'av')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("arguments", "named"), [
    (["sampel"], "nearest: sample"),
    (["--vresion"], "nearest: --version"),
    (["sample", "run", "a", "--guidence=3"], "nearest: --guidance"),
    (["sample", "run", "a", "--seed", "1", "b"], "unexpected argument 'b'"),
    (["sample"], "RUN"),
    (["sample", "run"], "nothing to sample"),
    (["sample", "a dog runs"], "'a dog runs' is where RUN"),
    (["animate", "dog.jpg", "a dog"], "'dog.jpg' is where RUN"),
    (["train", "x.py", "--backbone.depth=4"], "write --cfg.backbone.depth=VALUE"),
    (["train", "x.py", "--backbone.dpeth", "4"], "nearest: --cfg.backbone.depth"),
    (["train", "x.py", "backbone.depth=4"], "write --cfg.backbone.depth=VALUE"),
    (["train", "x.py", "--cfg-backbone.depth=4"], "nearest: --cfg.backbone.depth"),
    (["quickstart", "--seed=4"], "write --cfg.seed=VALUE"),
    (["quickstart", "--cfg.depth=4"], "nearest: text.depth or backbone.depth"),
    (["sample", "run", "a", "--dit.depth=4"], "unknown option --dit.depth"),
    (["sample", "run", "a", "--frames", "0s"], "a duration above 0"),
    (["sample", "run", "a", "--seed", str(2**64)], "from 0 to 18446744073709551615"),
    (["edit", "run", "a.mp4", "b", "--grow", "4"], "--grow has no effect"),
    (["plan", "x.py", "--jobs", "2"], "--jobs has no effect"),
    (["plan", "x.py", "--search", "--quick"], "--quick has no effect"),
    (["train", "dog.mp4"], "vdit train --data FOLDER"),
    (["sample", "run", "a", "--size", "64"], "HEIGHTxWIDTH"),
    (["sample", "run", "a", "--size", "0x64"], "HEIGHTxWIDTH"),
    (["sample", "run", "a", "--steps", "0"], "'0' must be a whole number from 1 up"),
    (["sample", "run", "a", "--guidance", "nan"], "'nan' must be a number"),
    (["sample", "run", "a", "--fps", "1001"], "'1001' must be a number from 0.1 to 1000"),
    (["sample", "run", "a", "--sampler", "eulr"], "nearest: euler"),
    (["sample", "run", "a", "b", "--out", "x.mp4"], "one file for 2 prompts"),
    (["sample", "run", "a", "--out", "x.avi"], "'.avi'"),
    (["sample", "run", "a", "--out", "x.png"], "--frames 1"),
    (["sample", "no-such-run", "a"], "no-such-run holds no trained model"),
    (["sample", "run", "a", "--cfg.backbone.depth=3"], "takes no overrides"),
    (["sample", "run", "--prompts", "none.txt"], "none.txt: cannot be read"),
    (["reconstruct", "no-such-run", "x.mp4"], "no-such-run holds no trained model"),
    (["reconstruct", "run"], "VIDEO"),
    (["train"], "give an EXPERIMENT.py, or --data FOLDER"),
    (["train", "none.py"], "none.py: no such experiment file"),
    (["train", "--data", "no-such-folder"], "no-such-folder is not a folder"),
    (["train", "x.py", "--stage", "veo"], "stage 'veo' is unknown; nearest: vae"),
    (["quickstart", "--cfg.backbone.dept=4"], "nearest: backbone.depth"),
    (["quickstart", "--cfg.backbone.depth=four"], "'four' is not of type int"),
    (["quickstart", "--cfg.backbone.depth"], "needs a value"),
    (["quickstart", "--cfg.data.source.world=orbit"], "the world 'moving' only"),
    (["quickstart", "--cfg.dit_train.steps=3", "--cfg.dit_train.optimizer.warmup_steps=4"], "warmup_steps"),
])  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert named in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("sample", "R"), ("extend", "R", "a.mp4", "--after", "4")])
def test_a_prompt_that_is_not_utf_8_is_refused(capsys, command):
    name, *words = command
    words, rest = words[:2], words[2:]
    assert "the prompt 'a d\\udcf6g' is not UTF-8" in refused(capsys, name, *words, "a d\udcf6g", *rest)
    assert "--negative '\\udcf6' is not UTF-8" in refused(capsys, name, *words, "a", *rest, "--negative=\udcf6")


def test_a_warm_up_is_shortened_where_only_the_steps_are_set(capsys):
    from vdit.quickstart.config import experiment

    assert main(["quickstart", "--help-config", "--cfg.dit_train.steps=30"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^--cfg.dit_train.optimizer.warmup_steps +int +3$", out, re.MULTILINE)
    before = experiment().dit_train.optimizer.warmup_steps
    assert f"dit_train.optimizer.warmup_steps is shortened from {before} to 3" in err
    assert err.count("\n") == 1


def test_a_folder_of_videos_is_trained_on_by_data(capsys, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"")
    line = refused(capsys, "train", tmp_path / "videos")
    assert f"is a folder of videos; to train on a folder of videos, write vdit train --data {tmp_path}" in line


@pytest.mark.parametrize(("width", "told"), [(192, True), (256, False)])
def test_a_network_too_narrow_for_the_noise_of_its_tokens_is_told(capsys, tmp_path, monkeypatch, width, told):
    from vdit.train import stages

    monkeypatch.setattr(stages, "run", lambda *_, **__: None)
    videos = tmp_path / "videos"
    videos.mkdir()
    vdit.write_video(videos / "a.mp4", np.zeros((9, 64, 64, 3), np.uint8), fps=8)
    changes = (f"backbone.width={width}", "backbone.text=none", "diffusion.prediction=velocity")
    train = ["train", "--data", str(videos), "--workdir", str(tmp_path / "run")]
    assert main([*train, *(f"--cfg.{change}" for change in changes)]) == 0
    assert ("192 values" in capsys.readouterr().out) == told


def test_a_file_in_the_place_of_a_folder_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "quickstart", tmp_path / "file" / "run")


def test_an_experiment_that_fails_names_its_line(capsys, tmp_path):
    (tmp_path / "mine.py").write_text("def config():\n    return 1 / 0\n")
    assert "mine.py: line 2: ZeroDivisionError" in refused(capsys, "train", tmp_path / "mine.py")
    (tmp_path / "other.py").write_text("from vdit.models.dit import DiTConfig\ndef config():\n    return DiTConfig()\n")
    assert "DiTConfig, vdit train needs an Experiment" in refused(capsys, "train", tmp_path / "other.py")


def test_traceback_on_request(capsys):
    assert main(["--traceback", "train"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_not_hidden(monkeypatch):
    put_in_place(monkeypatch, "train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "x.py"])


def test_interrupted_is_130(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    put_in_place(monkeypatch, "sample", interrupt)
    assert main(["sample", "runs/mine", "a dog"]) == 130
    assert capsys.readouterr().err == "vdit: interrupted\n"  # and no word of a checkpoint


@pytest.mark.parametrize("busy", [0, 0.05])
def test_an_interrupt_in_a_callback_of_the_garbage_collector_is_not_lost(capsys, monkeypatch, busy):
    """Where Python drops it, the command would go on. busy: seconds for which the machine holds the main thread up."""
    start = threading.Thread.start

    def held_up(thread):
        start(thread)
        time.sleep(busy)

    def interrupt(*_):
        gc.callbacks.remove(interrupt)
        raise KeyboardInterrupt

    def work(*_):
        gc.callbacks.append(interrupt)
        gc.collect()
        for _ in range(1000):  # a signal that comes just before a long sleep does not end it
            time.sleep(0.01)

    monkeypatch.setattr(threading.Thread, "start", held_up)
    put_in_place(monkeypatch, "sample", work)
    hook = sys.unraisablehook
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert main(["sample", "runs/mine", "a dog"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "vdit: interrupted\n"
    assert sys.unraisablehook is hook


def test_a_closed_output_ends_nothing(monkeypatch):
    put_in_place(monkeypatch, "sample", lambda *_: print("made", flush=True) or 0)
    monkeypatch.setattr(sys, "stdout", None)  # what Python has after >&-
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["sample", "runs/mine", "a dog"]) == 0
    assert sys.stdout is None


def test_overrides_may_stand_anywhere():
    rest, overrides = take_overrides(["train", "--cfg.a.b=(1,2)", "x.py", "--cfg.c", "3", "--", "--cfg.d=1"])
    assert rest == ["train", "x.py", "--", "--cfg.d=1"]
    assert overrides == ["a.b=(1,2)", "c=3"]


def test_sizes():
    assert size("64x96") == size("64X96") == (64, 96)
    for wrong in ("64", "64x", "64x96x3", "-64x96", "axb", "²x4"):
        with pytest.raises(UsageError, match="HEIGHTxWIDTH"):
            size(wrong)


def test_help_config_lists_keys_that_overrides_take(capsys):
    assert main(["quickstart", "--help-config", "--cfg.backbone.depth=9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["--cfg.backbone.depth", "int", "9"] for line in lines)
    assert all(line.startswith("--cfg.") for line in lines)


def test_command_line_says_what_the_library_does():
    from vdit import samplers
    from vdit.cli.output import SAMPLERS
    from vdit.cli.train import STAGES
    from vdit.train import stages

    assert set(SAMPLERS) == set(samplers.SAMPLERS)
    assert STAGES == stages.STAGES


def test_work_goes_on_when_nobody_reads_its_output():
    """`vdit sample ... | head -1` makes its other videos too."""
    code = """if True:
        import dataclasses
        import sys
        from vdit.cli import main

        def run(*_):
            for number in range(3):
                print("a line longer than a buffer" * 1000, flush=True)
                print("made", number, file=sys.stderr, flush=True)
            return 0

        main.COMMANDS["plan"] = dataclasses.replace(main.COMMANDS["plan"], run=run)
        sys.exit(main.main(["plan", "x.py"]))
    """
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdout.close()
    assert child.stderr.read() == "made 0\nmade 1\nmade 2\n"
    assert child.wait() == 0
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as disk:
            done = subprocess.run([sys.executable, "-c", code], stdout=disk, stderr=subprocess.PIPE, text=True)
        lines = done.stderr.splitlines()
        assert done.returncode == 0
        assert [line for line in lines if line.startswith("made")] == ["made 0", "made 1", "made 2"]
        assert [line for line in lines if not line.startswith("made")] == [
            "vdit: warning: output is lost: the disk is full: make room there; the work goes on"
        ]


@pytest.mark.parametrize(("error", "named"), [
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17592194433024 bytes."), "16 TiB were wanted"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2147483648 bytes."), "2 GiB were wanted"),
    (RuntimeError("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used "
                  "26.75G of 15.48G hbm."), "26.75 G were wanted"),
    (MemoryError("Unable to allocate 128. TiB for an array with shape (17592186044416,)"), "128 TiB were wanted"),
    (MemoryError(), "the host is out of memory: "),
])  # fmt: skip
def test_out_of_memory_is_one_line_with_what_was_wanted_and_what_helps(capsys, monkeypatch, error, named):
    def fail(*_):
        raise error

    put_in_place(monkeypatch, "sample", fail)
    line = refused(capsys, "sample", "runs/mine", "a dog")
    assert named in line
    assert "--weights int8" in line
