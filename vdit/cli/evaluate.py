"""`vdit eval`: videos measured, of runs and of folders, beside real ones."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdit import paths
from vdit.cli import emulated
from vdit.cli.parser import RATE, Command, UsageError, at_least, seed, size
from vdit.outputs import check_folder, check_output, write_whole

if TYPE_CHECKING:
    from vdit.cli.status import Status
    from vdit.eval.evaluate import Case, Evaluation, FeatureNet, Features, Need, VideoSet
    from vdit.generate.evaluation import FolderReading, Task

JSON, PAGE, TABLE = "evaluation.json", "evaluation.html", "evaluation.txt"
USUAL_VIDEOS = 16  # of a run


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sets", nargs="+", metavar="RUN|FOLDER", help="runs of vdit train, and folders of videos")
    parser.add_argument("--real", metavar="FOLDER", help="real videos; for a run the default is its held-out data")
    parser.add_argument("--out", default="evaluation", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--metrics", type=_names, metavar="A,B,...", help="default: all that can be measured")
    parser.add_argument(
        "--features", metavar="NET",
        help="a folder of public weights (CLIP, SigLIP, V-JEPA 2, VideoMAE); worlds (the default), the small net that "
        "ships; or none",
    )  # fmt: skip
    parser.add_argument("--videos", type=at_least(1), metavar="N", help="the first N; default: all, of a run 16")
    parser.add_argument("--frames", type=at_least(1), metavar="N", help="of each; default: the run's own, else 49")
    parser.add_argument("--size", type=size, metavar="HxW", help="default: a run's own; of files at most 256 a side")
    parser.add_argument("--fps", type=RATE, help="resample files to this rate; default: their own")
    parser.add_argument("--given", type=at_least(0), default=0, metavar="N", help="of a run: true frames that it gets")
    parser.add_argument("--seeds", type=at_least(1), default=1, metavar="N", help="of a run: videos of each prompt")
    parser.add_argument("--seed", type=seed, default=0, help="the first seed; default: 0")
    parser.add_argument("--batch", type=at_least(1), default=8, metavar="N", help="of a run: videos at once")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="of a run: sampler steps")
    parser.add_argument("--guidance", type=at_least(0, float), metavar="SCALE", help="of a run; 1: off")
    parser.add_argument(
        "--vbench", metavar="PROMPTS.txt", help="of a run: make videos of these prompts, named as VBench wants them"
    )
    parser.add_argument(
        "--vbench-results", action="append", default=[], metavar="FILE",
        help="VBench's _eval_results.json of each set, in their order: its scores join the table",
    )  # fmt: skip
    parser.add_argument(
        "--physics-iq", metavar="DIR", help="the folder of that benchmark: score folders of videos for its scenes"
    )
    parser.add_argument(
        "--emulator", metavar="EPISODES",
        help="of runs that are world models: compare with the emulator, from states of this folder of vdit record",
    )  # fmt: skip
    parser.add_argument(
        "--predictor-steps", type=at_least(0), default=1500, metavar="N",
        help="with --emulator: train a small predictor to compare with; 0: none; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--show", type=at_least(0), default=8, metavar="N", help="videos on the page; default: 8")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    runs = [_is_run(name) for name in options.sets]
    for name, run in zip(options.sets, runs):
        if not run and not paths.is_dir(name):
            raise UsageError(f"{name}: is no folder; give a run of vdit train, or a folder of videos")
    if len(options.vbench_results) not in (0, len(options.sets)):
        count = len(options.vbench_results)
        raise UsageError(f"--vbench-results: {count} files for {len(options.sets)} sets: give one for each, in order")
    if options.vbench and (not all(runs) or options.given or options.real):
        raise UsageError("--vbench: makes videos of prompts alone, by runs: leave folders, --given and --real out")
    if options.physics_iq is not None and (any(runs) or options.real):
        raise UsageError("--physics-iq: scores folders of videos against its own real ones: leave runs and --real out")
    if not any(runs):
        for option in ("given", "steps", "guidance"):
            if getattr(options, option):
                raise UsageError(f"--{option}: is for runs, and {options.sets[0]} is a folder of videos: leave it out")
    if options.emulator is not None:
        emulated.check(options, runs)
    out = Path(options.out)
    check_folder(out, name=f"--out {out}")
    for name in (JSON, PAGE, TABLE, *(emulated.FILES if options.emulator else [])):
        check_output(out / name, given=[*options.sets, *([options.real] if options.real else [])])
    from vdit.cli.process import keep_compiled
    from vdit.cli.status import Status

    keep_compiled()
    with Status("eval") as status:
        _evaluate(options, runs, out, status)
    return 0


def _is_run(name: str) -> bool:
    """Whether videos can be sampled of it: a run, or a model that `vdit export` wrote."""
    folder = paths.path(paths.shipped(name))
    return any(paths.is_file(folder / file) for file in ("experiment.json", "model.json"))


def _evaluate(options: argparse.Namespace, runs: Sequence[bool], out: Path, status: Status) -> None:
    from vdit.cli.status import counted
    from vdit.eval.evaluate import embed, evaluate, metrics_of
    from vdit.eval.vbench import read_results, video_name
    from vdit.eval.video_metrics import score_figure
    from vdit.pretrained.features import SHIPPED, open_features
    from vdit.video.read import write_video

    given = [read_results(file) for file in options.vbench_results]
    sets, real, known = _sets(options, runs, out, status)
    of_vbench = given or [[] for _ in sets]
    net = None if options.features == "none" or options.emulator else open_features(options.features or SHIPPED)
    if net is not None:
        known = [*known, "features", *(["texts"] if net.reads_text and "caption" in known else [])]
        status.tell("features", net.name)
    metrics = metrics_of(options.metrics, known)
    if not any(hasattr(metric, "compare") for metric in metrics):
        net = None
    total = sum(map(len, sets)) + (0 if real is None else len(real))
    status.tell("makes", f"{counted(len(metrics), 'metric')} of {counted(total, 'video')} -> {out}")
    shown, done = _Shown(options.show), 0
    found: list[Evaluation] = []
    with status.progress("videos", total, work=float(total)) as display:

        def watch(name: str) -> Callable[[Case], None]:
            def seen(case: Case) -> None:
                nonlocal done
                done += 1
                shown.see(name, case)
                if options.vbench and name != "real":
                    prompt, _, number = case.name.rpartition("-")
                    file = out / "vbench" / name / video_name(prompt, int(number) - options.seed)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(file, lambda part: write_video(part, case.video, fps=case.fps), replace=True)
                display.update(done, {})

            return seen

        truth: Features | None = None
        reference: Evaluation | None = None
        if real is not None:
            alone = [metric for metric in metrics if hasattr(metric, "measure") and "truth" not in metric.needs]
            reference = evaluate(real, alone, seed=options.seed, progress=watch(real.name))
            truth = None if net is None else embed(real, net)
        for one, results in zip(sets, of_vbench):
            measured = evaluate(one, metrics, net=net, real=truth, seed=options.seed, progress=watch(one.name))
            score = score_figure(measured, seed=options.seed)
            figures = (*([] if score is None else [score]), *results, *measured.figures)
            found.append(dataclasses.replace(measured, figures=figures))
    _write(options, [*found, *([] if reference is None else [reference])], shown, net, out, status)


def _sets(
    options: argparse.Namespace, runs: Sequence[bool], out: Path, status: Status
) -> tuple[list[VideoSet], VideoSet | None, list[Need]]:
    """The sets to measure, the real one or None, and what is known of their videos."""
    from vdit.generate.evaluation import FolderReading, folder_videos, paired, physics_iq_videos, true_videos

    reading = FolderReading(
        frames=options.frames or 49, size=options.size, fps=options.fps, videos=options.videos
    )  # fmt: skip
    names = _short_names(options.sets)
    if options.emulator is not None:
        return emulated.sets(options, names, out, status), None, ["scene", "truth"]
    if options.physics_iq is not None:
        fps = round(options.fps or 30)
        sets = [physics_iq_videos(place, options.physics_iq, fps=fps, name=name)
                for name, place in zip(names, options.sets)]  # fmt: skip
        status.tell("found", f"{options.physics_iq}: {len(sets[0])} scenes at {fps} fps, each with two takes")
        return sets, None, ["take", "truth"]
    known: set[Need] = set()
    sets: list[VideoSet] = []
    real: VideoSet | None = None
    if options.real is not None:
        real = folder_videos(options.real, reading, name="real")
        known.add("real")
        status.tell("real", f"{options.real}: {len(real)} videos")
    for name, place, run in zip(names, options.sets, runs):
        if run:
            made, tasks = _of_run(options, name, place, reading, status)
            sets.append(made)
            if real is None and not options.vbench:
                real = true_videos(tasks, given=options.given)
            known |= {"caption"} | (set() if options.vbench else {"real"}) | ({"truth"} if options.given else set())
            known |= {"scene"} if any(task.scene is not None for task in tasks) else set()
            known |= {"group"} if options.seeds > 1 else set()
            continue
        made = folder_videos(place, reading, name=name, truth=None if options.real is None else real)
        pairs = 0 if options.real is None else paired(made, real)
        known |= {"truth"} if pairs else set()
        known |= {"group"} if any(case.keywords["group"] for case in made.cases) else set()
        known |= {"caption"} if all(case.keywords["caption"] for case in made.cases) else set()
        with_truth = "" if options.real is None else f", {pairs} of them with a true one of the same name"
        status.tell("found", f"{place}: {len(made)} videos{with_truth}")
        sets.append(made)
    return sets, real, sorted(known)


def _of_run(
    options: argparse.Namespace, name: str, place: str, reading: FolderReading, status: Status
) -> tuple[VideoSet, list[Task]]:
    """A run's videos, and what it was asked for."""
    from vdit.cli.status import shown_model
    from vdit.generate import open_generator
    from vdit.generate.evaluation import folder_tasks, held_out_tasks, prompt_tasks, sampled_videos

    generator = open_generator(place, loading=status.loading)
    sample = generator.experiment.sample
    count, frames, size_ = options.videos or USUAL_VIDEOS, options.frames or sample.frames, options.size or sample.size
    if options.vbench:
        tasks = prompt_tasks(options.vbench, generator, options.videos, frames=frames, size=size_)
    elif options.real is None:
        tasks = held_out_tasks(generator, count, frames=frames, size=size_)
    else:
        own = dataclasses.replace(reading, frames=frames, size=size_, videos=count)
        tasks = folder_tasks(options.real, generator, own)
    status.tell("model", shown_model(place, generator.experiment))
    what = f"{options.given} true frames and the prompt" if options.given else "the prompt alone"
    status.tell("asks", f"{len(tasks)} videos of {frames} frames, {size_[0]}x{size_[1]}, of {what}")
    sampling: dict[str, Any] = {
        key: value for key, value in (("steps", options.steps), ("guidance", options.guidance)) if value is not None
    }
    seeds = [options.seed + k for k in range(options.seeds)]
    made = sampled_videos(
        name, generator, tasks, given=options.given, seeds=seeds, batch=options.batch, numbered=bool(options.vbench),
        **sampling,
    )  # fmt: skip
    return made, tasks


def _short_names(places: Sequence[str]) -> list[str]:
    """The last part of each path; more of it where two are the same."""
    short = [Path(place).name or place for place in places]
    return [name if short.count(name) == 1 else place for name, place in zip(short, places)]


class _Shown:
    """The first videos of each set, for the page."""

    def __init__(self, most: int):
        self.most = most
        self.cases: dict[str, dict[str, Case]] = {}

    def see(self, name: str, case: Case) -> None:
        """Keeps a video, if it is one of the first, or belongs to one that is kept."""
        task = case.group or case.name  # of several videos of one prompt the first
        if task in self.cases or sum(name in kept for kept in self.cases.values()) < self.most:
            self.cases.setdefault(task, {}).setdefault(name, case)


def _write(
    options: argparse.Namespace, found: list[Evaluation], shown: _Shown, net: FeatureNet | None, out: Path,
    status: Status,
) -> None:  # fmt: skip
    from vdit.eval import report

    about = {
        "command": f"vdit {shlex.join(_command(options))}",
        "features": "none" if net is None else net.name,
        "given frames": options.given,
    }
    headers, rows = report.table(found)
    text = report.text_table(headers, rows)
    data = json.dumps(report.to_json(found, about), indent=1, ensure_ascii=False) + "\n"
    videos = [report.side_by_side(cases) for cases in list(shown.cases.values())[: 2 * shown.most]]
    fps = next((case.fps for cases in shown.cases.values() for case in cases.values()), 8.0)
    page = report.page(found, videos, title="Evaluation", about=about, fps=fps)
    print(text, end="")
    out.mkdir(parents=True, exist_ok=True)
    for name, write in ((JSON, data), (TABLE, text)):
        write_whole(out / name, lambda part, write=write: part.write_text(write, encoding="utf-8"), replace=True)
    page.save(out / PAGE)
    for name in (PAGE, JSON, TABLE):
        status.wrote(out / name)
        print(out / name, flush=True)
    if options.emulator is not None:
        emulated.write_beside(list(shown.cases.values())[: shown.most], out, status)
    skipped = sum(len(one.skipped) for one in found)
    if skipped:
        print(f"{skipped} videos could not be read: see {out / JSON}", flush=True)
    status.next = f"open {out / PAGE} in a browser"


def _command(options: argparse.Namespace) -> list[str]:
    """The command again, with the options that were given."""
    words = ["eval", *options.sets]
    words += [f"--vbench-results={file}" for file in options.vbench_results]
    usual = {"out": "evaluation", "given": 0, "seeds": 1, "seed": 0, "batch": 8, "show": 8,
             "predictor-steps": 1500}  # fmt: skip
    for name in ("real", "out", "metrics", "features", "videos", "frames", "size", "fps", "given", "seeds", "seed",
                 "batch", "steps", "guidance", "vbench", "physics-iq", "emulator",
                 "predictor-steps", "show"):  # fmt: skip
        value = getattr(options, name.replace("-", "_"))
        if value is None or value == usual.get(name):
            continue
        if name in ("metrics", "size"):
            value = (",", "x")[name == "size"].join(map(str, value))
        words += [f"--{name}", str(value)]
    return words


EVAL = Command(
    summary="measure the videos of runs and folders beside real ones: table, JSON, page",
    description="""\
Measures videos: of runs, which are sampled with the prompts of their held-out data, and of folders. Several are
compared side by side. Writes OUT/evaluation.html (figures with 95% intervals, error over time, videos side by side),
.json and .txt.

What is measured depends on what is known. Always: flicker, motion, sharpness, drift of colour. With real videos
(--real, or a run's held-out data): distances between the sets by a feature net. With the true video of each (files of
the same names in --real; a run with --given): PSNR, SSIM, Physics-IQ's measures, retrieval. With rendered worlds:
attributes, trajectories, permanence, energy, momentum, contacts, camera and space, exactly. With --emulator: places of
ball and paddles, bounces, scores, bricks, after the same state and actions. docs/evaluation.md says what each is.""",
    epilog="""\
examples:
  vdit eval runs/quickstart                              # 16 held-out prompts
  vdit eval runs/a runs/b --videos 64 --given 5          # two runs continue the same 64 videos
  vdit eval samples --real clips --features clip-vit-base-patch32
  vdit eval reencoded --real clips --metrics psnr,ssim,ms_ssim --frames 120
  vdit eval runs/mine --vbench vbench_all_dimension.txt --seeds 5 --features none    # for VBench's own scripts
  vdit eval out/vbench/mine --vbench-results mine_eval_results.json
  vdit eval runs/pong --emulator pong_test               # beside the emulator, a small predictor, the last frame
  vdit eval generated_videos --physics-iq physics-IQ-benchmark --fps 24""",
    add_arguments=_add_arguments,
    run=_run,
)
