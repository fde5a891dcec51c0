"""`vdit caption`: captions for a folder of videos, by an endpoint, public weights, or a captioner of our own."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vdit import paths
from vdit.cli.parser import Command, UsageError, at_least, seed
from vdit.errors import EX_OK, EX_USAGE, VditError
from vdit.outputs import check_output

if TYPE_CHECKING:
    import numpy as np

    from vdit.cli.status import Status
    from vdit.language.base import Frames, TextModel
    from vdit.language.captioning import Captioner
    from vdit.language.checks import CaptionRules
    from vdit.language.folder import Pace, Tally

SUMMARY = "write captions for a folder of videos, with a language model that sees"
DESCRIPTION = """\
Shows a model some frames of each video, and writes what it says: a short caption, a detailed one, and how the camera
moves, with the model, the prompt and the date, a line for each video in FOLDER/captions.jsonl. `vdit train --data
FOLDER` reads that file as it is. Captions that are there already stay as they are: then the new ones go to
FOLDER/synthetic_captions.jsonl beside them, and training mixes both (--cfg.data.synthetic_prob).

A refusal, a repetition, an empty or over-long answer, broken JSON or another language is asked for once more, and then
marked in the file by its problem; it never becomes a caption. The same command goes on where it stopped. Answers are
cached by the content of what was asked, so nothing is paid for twice. A page shows the videos beside their captions."""
EPILOG = """\
examples:
  export OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_API_KEY=...     # vLLM, llama.cpp, a hosted model
  vdit caption my_videos --endpoint Qwen3-VL-8B-Instruct --concurrency 16
  vdit caption my_videos --lm SmolVLM2-500M-Video-Instruct    # public weights, on this machine
  vdit caption my_videos --run runs/captioner                 # one of our own: vdit train experiments/captioner.py
  vdit caption my_videos --endpoint MODEL --prompt my_prompt.md --language de
  vdit train --data my_videos --workdir runs/mine

A prompt file is Markdown with the headings `# system` and `# caption` (one question, answered in JSON), or `# short`,
`# detailed` and `# camera` (a question each). A file that cannot be read is named, the others are still done, and the
exit code is 2, as it is if an answer was marked."""
PAGE_VIDEOS = 100
_SIDE = 160  # pixels of the longer side of a frame on the page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a folder of videos")
    back = parser.add_mutually_exclusive_group(required=True)
    back.add_argument(
        "--endpoint", metavar="MODEL", help="a model of the OpenAI-compatible server at $OPENAI_BASE_URL"
    )
    back.add_argument("--lm", metavar="WEIGHTS", help="public weights of a vision-language model: a SmolVLM2 folder")
    back.add_argument("--run", dest="run_folder", metavar="RUN", help="a captioner that vdit train has trained")
    parser.add_argument("--batch", type=at_least(1, most=256), default=4, help="videos at a time, of --lm and --run")
    parser.add_argument("--out", metavar="FILE", help="a .jsonl file; default: see above")
    parser.add_argument("--missing", action="store_true", help="only videos that have no caption of any kind")
    parser.add_argument("--retry", action="store_true", help="ask again about videos that were marked with a problem")
    parser.add_argument(
        "--frames", type=at_least(1, most=128), help="that the model sees; default: 8, with --run as it was trained"
    )
    parser.add_argument(
        "--side", type=at_least(16, most=4096), default=384, metavar="PIXELS",
        help="of the frames' longer side, at most; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--prompt", metavar="FILE", help="prompt file; default: vdit's own")
    parser.add_argument("--language", default="en", help="of the captions; any: not checked; default: %(default)s")
    parser.add_argument("--max-tokens", type=at_least(1, most=100_000), default=512, help="of one answer")
    parser.add_argument("--seed", type=seed, default=0, help="default: %(default)s")
    parser.add_argument("--page", metavar="FILE", help="the page; default: beside --out, with the ending .html")
    server = parser.add_argument_group("endpoint")
    server.add_argument("--concurrency", type=at_least(1, most=1024), default=4, help="requests at a time")
    server.add_argument(
        "--per-minute", type=at_least(0, float), default=0.0, metavar="N", help="requests a minute; 0: no limit"
    )
    server.add_argument("--timeout", type=at_least(0.1, float), default=120.0, metavar="SECONDS", help="of a request")
    server.add_argument("--retries", type=at_least(0, most=100), default=6, help="of a request; default: %(default)s")
    server.add_argument("--price", metavar="IN,OUT", help="of a million tokens, to count the cost")
    server.add_argument("--cache", metavar="FOLDER", help="where answers are kept; default: ~/.cache/vdit/answers")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    price = _price(options.price)
    folder = paths.path(options.folder)
    from vdit.cli.status import Status
    from vdit.language.checks import CaptionRules
    from vdit.language.folder import caption_videos
    from vdit.language.records import CaptionFile

    rules = CaptionRules(language=options.language)
    videos, captioned = _videos(folder)
    out = _target(folder, options.out, bool(captioned))
    wanted = {name: path for name, path in videos.items() if not (options.missing and name in captioned)}
    page = paths.path(options.page) if options.page else out.with_suffix(".html")
    if page == out:
        raise UsageError(f"--page {page}: is the captions file; give another name")
    check_output(out, given=[*videos.values(), *filter(None, [options.prompt])], name=f"--out {out}")
    check_output(page, given=[*videos.values(), *filter(None, [options.prompt])], name=f"--page {page}")
    if options.run_folder is not None and options.prompt is not None:
        raise UsageError("--prompt: a run's captioner answers the one question it was trained on; leave it out")
    if options.endpoint is None:
        from vdit.cli.process import keep_compiled

        keep_compiled()
    with Status("caption", devices=options.endpoint is None) as status:
        captioner, pace = _captioner(options, rules, status)
        with CaptionFile.opened(out, again=options.retry) as file:
            left = [name for name in wanted if name not in file.records]
            there = len(wanted) - len(left)
            stay = f", {len(captioned)} with captions, which stay as they are" if captioned else ""
            status.tell("found", f"{len(videos)} videos in {folder}{stay}")
            done = f" ({there} are there already)" if there else ""
            status.tell("makes", f"captions for {len(left)} of them -> {out}{done}")
            status.tell("model", f"{captioner.model.name}, {pace.frames} frames a video; {captioner.prompts.name}")
            status.begin()
            sheets: dict[str, np.ndarray] = {}
            with status.progress("videos", len(left)) as display:

                def show(tally: Tally, name: str, frames: Frames | None) -> None:
                    display.update(tally.done, {})
                    if frames is not None and len(sheets) < PAGE_VIDEOS:
                        sheets[name] = contact_sheet(frames)

                tally = caption_videos({name: wanted[name] for name in left}, captioner, file, pace, show)
            if file.records:
                status.wrote(out)
                print(out, flush=True)
                _save_page(page, file.records, videos, sheets, captioner.model.name)
                status.wrote(page)
        _tell_end(tally, price, status)
        status.next = f"vdit train --data {shlex.quote(str(folder))} --workdir runs/mine"
        if options.out is not None:
            status.next += f" --cfg.data.source.captions={shlex.quote(str(out))}"
    return EX_USAGE if tally.marked or tally.failed else EX_OK


def _videos(folder: paths.AnyPath) -> tuple[dict[str, paths.AnyPath], set[str]]:
    """(name -> path of each video in a folder, names of those that have captions which no model wrote)."""
    from vdit.data.captions import SUFFIXES, read_captions, video_files
    from vdit.language.records import is_written_here

    if not paths.is_dir(folder):
        raise UsageError(f"{folder}: is not a folder; name the folder of the videos")
    files = video_files(folder)
    videos = {path.relative_to(folder).as_posix(): path for path in files}
    if not videos:
        raise UsageError(f"{folder}: has no video files ({', '.join(SUFFIXES)})")
    ours = paths.exists(folder / "captions.jsonl") and is_written_here(folder / "captions.jsonl")
    entries = [] if ours else read_captions(folder).entries
    return videos, {entry.file for entry in entries if any(entry.captions)}


def _target(folder: paths.AnyPath, out: str | None, captioned: bool) -> paths.AnyPath:
    """The file to write: no file that somebody else has written."""
    from vdit.data.captions import TABLE_NAMES
    from vdit.language.records import SIDECAR, is_written_here

    if out is not None:
        if not out.endswith(".jsonl"):
            raise UsageError(f"--out {out}: must end in .jsonl")
        return paths.path(out)
    usual = folder / "captions.jsonl"
    if paths.exists(usual) and is_written_here(usual):
        return usual
    others = captioned or any(paths.exists(folder / name) for name in TABLE_NAMES)
    return folder / SIDECAR if others or paths.exists(folder / SIDECAR) else usual


def _captioner(options: argparse.Namespace, rules: CaptionRules, status: Status) -> tuple[Captioner, Pace]:
    from vdit.language.captioning import Captioner
    from vdit.language.folder import Pace
    from vdit.language.prompts import CaptionPrompts, PromptFile

    prompts = None if options.prompt is None else CaptionPrompts.of(PromptFile.read(options.prompt))
    frames, tokens, together = options.frames or 8, options.max_tokens, {"batch": options.batch}
    if options.endpoint is not None:
        model, together = _endpoint(options), {"workers": options.concurrency}
        prompts = prompts or CaptionPrompts.of(PromptFile.shipped("caption.md"))
    elif options.lm is not None:
        from vdit.pretrained.lm import open_lm

        with status.loading():
            model = open_lm(options.lm)
        prompts = prompts or CaptionPrompts.of(PromptFile.shipped("caption_steps.md"))
    else:
        from vdit.generate.captions import load_captioner

        with status.loading():
            model = load_captioner(options.run_folder)
        frames, tokens, prompts = options.frames or model.frames, min(tokens, model.max_tokens), model.prompts
    one = Captioner(model=model, prompts=prompts, rules=rules, max_tokens=tokens, seed=options.seed)
    return one, Pace(frames=frames, side=options.side, **together)


def _endpoint(options: argparse.Namespace) -> TextModel:
    from vdit.language.cache import CachedModel, default_folder
    from vdit.language.endpoint import Endpoint, EndpointLimits

    limits = EndpointLimits(concurrency=options.concurrency, per_minute=options.per_minute, seconds=options.timeout,
                            retries=options.retries)  # fmt: skip
    model = Endpoint.from_environment(options.endpoint, limits)
    folder = Path(options.cache) if options.cache else default_folder()
    return CachedModel(model=model, folder=folder, identity=model.url, fresh=options.retry)


def _price(text: str | None) -> tuple[float, float] | None:
    """"0.1,0.4" -> money for a million tokens in and out."""
    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--price {text!r}: write two numbers, as in 0.15,0.60") from None
    if not (0 <= first < 1e9 and 0 <= second < 1e9):
        raise UsageError(f"--price {text!r}: prices are 0 or more")
    return first, second


def _tell_end(tally: Tally, price: tuple[float, float] | None, status: Status) -> None:
    """What became of the videos, and what it cost."""
    for name, problem in [*tally.marked.items(), *tally.failed.items()]:
        print(f"vdit: {name}: {problem}", file=sys.stderr, flush=True)
    words = f"{tally.captioned} videos captioned"
    if tally.marked:
        words += f", {len(tally.marked)} marked with a problem (--retry asks again)"
    if tally.failed:
        words += f", {len(tally.failed)} failed and have no record (the same command tries them again)"
    status.tell("done", words)
    cost = ""
    if price is not None:
        cost = f", cost {(tally.tokens_in * price[0] + tally.tokens_out * price[1]) / 1e6:.4f}"
    status.tell("tokens", f"{tally.tokens_in} in, {tally.tokens_out} out{cost}; answers from the cache count none")


def contact_sheet(frames: Frames) -> np.ndarray:
    """At most 8 frames, small, in rows of four: uint8 [h w 3]."""
    import numpy as np
    from PIL import Image

    picked = frames.pixels[np.unique(np.linspace(0, len(frames.pixels) - 1, 8).astype(int))]
    h, w = picked.shape[1:3]
    size = max(1, round(w * _SIDE / max(h, w))), max(1, round(h * _SIDE / max(h, w)))
    small = np.stack([np.asarray(Image.fromarray(pixels).resize(size)) for pixels in picked])
    columns = min(4, len(small))
    small = np.concatenate([small, np.zeros((-len(small) % columns, *small.shape[1:]), np.uint8)])
    t, h, w, _ = small.shape
    return small.reshape(t // columns, columns, h, w, 3).swapaxes(1, 2).reshape(t // columns * h, columns * w, 3)


def _save_page(
    page: Path, records: Mapping[str, dict], videos: Mapping[str, Path], sheets: dict[str, np.ndarray], model: str
) -> None:
    """A contact sheet of each video beside its caption, those with a problem first."""
    from vdit.eval.page import Page
    from vdit.language.captioning import sample_frames

    cards = []
    shown = sorted((name for name in records if name in videos), key=lambda name: "problem" not in records[name])
    for name in shown[:PAGE_VIDEOS]:
        record = records[name]
        try:
            if name not in sheets:
                sheets[name] = contact_sheet(sample_frames(paths.local_copy(videos[name]), count=8, side=_SIDE))
        except VditError:
            continue
        text = " / ".join(record[key] for key in ("caption", "detailed") if record.get(key))
        text = text or f"no caption: {record.get('problem')}"
        camera = f" / camera: {record['camera']}" if record.get("camera") else ""
        cards.append((sheets[name][None], f"{name}: {text}{camera}", "wrong" if "problem" in record else "ok"))
    marked = sum("problem" in record for record in records.values())
    more = "" if len(cards) == len(records) else f"; {len(cards)} of {len(records)} videos are shown"
    page_of = Page("captions", f"{len(records) - marked} captions, {marked} marked with a problem, by {model}{more}")
    paths.write_atomic(page, page_of.videos(cards, 8, columns=2).html())


CAPTION = Command(
    summary=SUMMARY, description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run,
    takes_overrides=False,
)  # fmt: skip
