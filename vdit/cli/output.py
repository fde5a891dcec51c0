"""What the commands share that make videos: options of the model and the sampler, names of files, writing them.

Nothing heavy is imported before it is needed: help must be quick.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdit import paths
from vdit.cli.parser import UsageError, at_least, nearest, seed
from vdit.data.captions import SUFFIXES
from vdit.errors import ConfigError
from vdit.outputs import check_output, write_whole

if TYPE_CHECKING:
    from vdit.cli.status import Status, Work

VIDEO, IMAGE = (".mp4", ".webm", ".gif", ".mkv"), (".png", ".jpg")
# Names with these are files too, of kinds that are not written.
OTHER_MEDIA = (
    *sorted(set(SUFFIXES) - set(VIDEO)), ".apng", ".avif", ".bmp", ".heic", ".jpeg", ".mxf", ".tif", ".tiff", ".webp",
)  # fmt: skip
MANY = 1000  # videos of a prompt; more of them are told before anything else
GIF_FPS = 50  # the most that the format can say
# As in vdit.samplers, which is not imported here. A test compares them.
SAMPLERS = ("consistency", "ddim", "ddpm", "dpmpp2m", "euler", "heun", "resample", "unipc")
WEIGHTS, COMPUTE = ("float32", "bfloat16", "int8", "fp8"), ("float32", "bfloat16")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options of which model it is, and how it is held and shared out."""
    parser.add_argument("--model", metavar="PATH", help="public weights instead of RUN: a folder, or a Wan in one file")
    parser.add_argument(
        "--parts", action="append", default=[], metavar="PATH",
        help="for a Wan in one file: its text encoder, VAE, tokenizer, or a folder of them; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH][@EXPERT]",
        help="may be repeated; EXPERT of Wan 2.2 A14B: high, low or both; default: as the file's name says",
    )  # fmt: skip
    parser.add_argument("--weights", choices=WEIGHTS, help="dtype of the weights in memory; default: as stored")
    parser.add_argument(
        "--compute", choices=COMPUTE, help="dtype of products; default: as trained; public: bfloat16, on CPU float32"
    )
    parser.add_argument(
        "--mesh", metavar="AXES", help="how devices share the work, as in fsdp=2,sequence=4; default: data=-1"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options of how videos are sampled."""
    parser.add_argument("--seed", type=seed, default=0, help="from 0 to 2**64 - 1; default: 0")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="sampler steps")
    parser.add_argument("--guidance", type=at_least(0, float), metavar="SCALE", help="guidance to the prompt; 1: off")
    parser.add_argument("--negative", default="", metavar="TEXT", help="a prompt to guide away from")
    parser.add_argument("--sampler", metavar="NAME", help=f"one of {', '.join(SAMPLERS)}")
    parser.add_argument(
        "--reuse", type=at_least(0, float), metavar="CHANGE",
        help="skip blocks whose output changed less since the last step; try 0.05 to 0.2; faster, slightly less exact",
    )


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Options of making each video several times."""
    parser.add_argument("--seeds", type=_seeds, metavar="A,B,...", help="one video for each prompt and seed")
    parser.add_argument("--count", type=at_least(1), metavar="N", help="N videos for each prompt, from --seed upward")


def seeds_of(options: argparse.Namespace) -> list[int]:
    """The seeds of --seed, --seeds and --count."""
    if options.seeds is not None and (options.count is not None or options.seed):
        raise UsageError("--seeds names all seeds: leave --seed and --count out, or give --seed and --count instead")
    return options.seeds or seeds_from(options.seed, options.count)


def seeds_from(first: int, count: int | None) -> list[int]:
    """`count` seeds (None: one) from the first one up; UsageError where they leave the 64 bits."""
    from vdit.seeds import MAX_SEED

    count = count or 1
    if first + count - 1 > MAX_SEED:
        raise UsageError(f"--count {count}: from seed {first} up there are fewer seeds of 64 bits: give a lower --seed")
    if count > MANY:
        say(f"--count {count}: {count} videos of each prompt, one after the other; Ctrl-C ends it")
    return [first + k for k in range(count)]


def split_model(options: argparse.Namespace) -> tuple[str, list[str]]:
    """(the model's folder, the words after it) of options.words and --model."""
    if not options.words and not options.model:
        help_ = f"(see vdit {options.command} --help)"
        raise UsageError(f"no model: give RUN, the folder of a run, or --model FOLDER {help_}")
    folder, *words = options.words if options.model is None else [options.model, *options.words]
    return folder, words


def no_run(options: argparse.Namespace, folder: str) -> str:
    """"" if `folder` may be a run; else what to say where the words are too few: that RUN was left out."""
    if options.model is not None or paths.is_hub(folder) or paths.is_dir(paths.shipped(folder)):
        return ""
    kind = "a file" if paths.is_file(folder) else "not there"
    return f"{folder!r} is where RUN, the folder of a run, should be, and is {kind}: give RUN first; "


def check_texts(options: argparse.Namespace, prompts: Sequence[str]) -> None:
    """UsageError where a text of the command line holds bytes that are not UTF-8, which Python keeps as surrogates."""
    for name, text in [*(("the prompt", prompt) for prompt in prompts), ("--negative", options.negative)]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{name} {text!r} is not UTF-8 text: set the terminal to UTF-8") from None


def check_sampler(options: argparse.Namespace) -> None:
    if options.sampler is None or options.sampler in SAMPLERS:
        return
    from vdit import registry  # with the samplers of plugins

    known = registry.names("sampler")
    if options.sampler not in known:
        hint = nearest(options.sampler, known)
        raise UsageError(f"sampler {options.sampler!r} is unknown{hint} (samplers: {', '.join(known)})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Where a video goes. replace: the user named this very file; else the next free name is taken (vdit.outputs)."""

    path: Path
    replace: bool


def target(out: str | None, name: str, seed: int, *, several: bool = False) -> Target:
    """Where the video of a seed goes.

    out: --out, a file or a folder; None is this folder. name: of a file in a folder, to which the seed is added.
    several: videos are made; then the seed is added to the name of a file too.
    """
    if out is not None and is_file(out):
        path = paths.path(out)
        return Target(path=with_seed(path, seed) if several else path, replace=not several)
    return Target(path=paths.path(out or "") / with_seed(Path(name), seed), replace=False)


def is_file(out: str) -> bool:
    """Whether --out names one file: by its ending, unless a folder of this name is there, or it ends in "/".

    "samples.v2" is a folder; "dog.mp5" is a file whose ending is mistaken.
    """
    suffix = Path(out).suffix.lower()
    if not suffix or out.endswith(("/", os.sep)) or paths.is_dir(out):
        return False
    # Letters alone, as in "out.xyz": an ending that is not written. "samples.v2" is a folder.
    if suffix[1:].isalpha() and len(suffix) <= 5:
        return True
    return suffix in OTHER_MEDIA or bool(difflib.get_close_matches(suffix, VIDEO + IMAGE, n=1, cutoff=0.7))


def check_target(target: Target, given: Sequence[str | Path]) -> None:
    """OutputError where nothing can be written there, or what the user gave would be replaced."""
    check_output(target.path, given=given if target.replace else (), name=f"--out {target.path}")


def given_files(options: argparse.Namespace, *files: str) -> list[str]:
    """What the user gave: the files, and those that options name. None of it is replaced by an output."""
    named = [getattr(options, name, None) for name in ("model", "data", "file", "image", "mask", "script", "actions")]
    # FILE:STRENGTH@EXPERT; a file's own name may hold these signs too.
    loras = [name for text in getattr(options, "lora", ()) for name in (text, text.rpartition("@")[0])]
    loras += [name.rpartition(":")[0] for name in loras]
    return [name for name in (*files, *named, *loras, *getattr(options, "parts", ())) if name]


def check_suffix(path: Path, frames: int | None, fps: float | None = None, *, name: str) -> None:
    """UsageError, beginning with `name`, where a video of `frames` frames and this rate is not written so."""
    suffix = path.suffix.lower()
    if suffix not in VIDEO + IMAGE:
        folder = "" if name.startswith("out ") else ", or a folder, with a / at its end"
        raise UsageError(f"{name}: ends in {path.suffix!r}; use {', '.join(VIDEO + IMAGE)}{folder}")
    if suffix in IMAGE and frames != 1:
        raise UsageError(f"{name}: is an image; add --frames 1, or use {', '.join(VIDEO)}")
    if suffix == ".gif" and fps is not None and fps > GIF_FPS:
        raise UsageError(f"{name}: a gif shows at most {GIF_FPS} frames a second, not --fps {fps:g}: use .mp4")


def file_name(number: int, prompt: str, *, frames: int) -> str:
    """"003-a-red-circle.mp4"; the seed is added to it (see `target`)."""
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48].strip("-") or "empty"
    return f"{number:03}-{slug}{'.png' if frames == 1 else '.mp4'}"


def with_seed(path: Path, seed: int) -> Path:
    return path.with_stem(f"{path.stem}-seed{seed}")


@contextlib.contextmanager
def opened(options: argparse.Namespace, folder: str, *, about: Mapping[str, str] | None = None) -> Iterator[tuple]:
    """Around the work: (the generator, the Status), on one host or on several that start the same command.

    The generator's weights are read when they are first needed (vdit.generate.open_generator): what is asked of it is
    checked before.

    about: more than the command that must be the same on all hosts.
    """
    from vdit.cli.process import distributed_session, keep_compiled
    from vdit.cli.status import Status, shown_model
    from vdit.config import to_json
    from vdit.dist.mesh import make_mesh
    from vdit.generate import open_generator

    asked = {name: value for name, value in vars(options).items() if name not in ("run", "parser")}
    with distributed_session({"the command": str(asked)} | dict(about or {})), Status(options.command) as status:
        keep_compiled()
        mesh = make_mesh(read_mesh(options.mesh))
        how = {"compute": options.compute, "weights": options.weights, "lora": options.lora}
        how["parts"] = options.parts
        generator = open_generator(folder, mesh, loading=status.loading, drawn=status.drawn, **how)
        parts = (generator.experiment.backbone, generator.experiment.vae, generator.experiment.text)
        status.model = " ".join([*map(to_json, parts), str(options.weights)])
        status.tell("model", shown_model(folder, generator.experiment))
        yield generator, status


def rate(options: argparse.Namespace, experiment) -> float:
    """Frames a second of what is read and written: the model's own, or --fps, of which a line says what it means."""
    from vdit.generate.inputs import same_rate

    own = experiment.sample.fps
    if options.fps is None or same_rate(options.fps, own):
        return options.fps or own
    say(
        f"--fps {options.fps:g}: the model makes {own:g} frames a second, so what it makes will move "
        f"{options.fps / own:.3g} times as fast"
    )
    return options.fps


def read_mesh(text: str | None):
    """"fsdp=2,sequence=4" -> MeshConfig, in which what is not named is 1, or all that are left along data."""
    from vdit.config import apply_overrides
    from vdit.dist.mesh import MeshConfig

    try:
        return apply_overrides(MeshConfig(), [] if text is None else text.split(","))
    except ConfigError as error:
        raise UsageError(f"--mesh {text}: {error}") from None


def write(
    target: Target, video, fps: float, *, sound: Soundtrack | None = None, comment: str | None = None
) -> Path:
    """Writes a video, makes its folder, prints the path and returns it. On several hosts the first alone writes.

    Args:
        video: float32 [t h w 3] in [-1, 1] (of an image one frame), or such pieces, which are written as they come.
        sound: Soundtrack of pieces; None for none.
        comment: a text in the file's own metadata.
    """
    from vdit.dist.multihost import is_primary_host
    from vdit.video.read import write_image, write_video

    whole = hasattr(video, "ndim") or hasattr(video, "shape")
    pieces = None if whole else Pieces(video)
    if not is_primary_host():
        for _ in pieces or ():  # all hosts make what one writes
            pass
        return target.path

    def fill(part: Path) -> None:
        if part.suffix.lower() in IMAGE:
            write_image(part, video[0] if whole else next(iter(pieces))[0])
            return
        along = {} if sound is None else {"sound": lambda: sound.parts(pieces.done, fps)}
        along |= {} if comment is None else {"metadata": {"comment": comment}}
        write_video(part, video if whole else pieces, fps=fps, **along)

    return put(target, fill)


def put(target: Target, write: Callable[[Path], None]) -> Path:
    """Writes a file by `write`, which is called with a path to fill; makes its folder, prints the path, returns it."""
    from vdit.errors import VideoError

    def named(part: Path) -> None:
        try:
            write(part)
        except VideoError as error:
            raise VideoError(str(error).replace(str(part), str(target.path))) from error

    if isinstance(target.path, Path):
        target.path.parent.mkdir(parents=True, exist_ok=True)
    path = write_whole(target.path, named, replace=target.replace)
    print(path, flush=True)
    return path


def say(line: str) -> None:
    """To the person who waits, on stderr: stdout is for names of files. On several hosts the first alone says it."""
    from vdit.dist.multihost import is_primary_host

    if is_primary_host():
        print(line, flush=True, file=sys.stderr)


def _seeds(text: str) -> list[int]:
    seeds = [seed(part) for part in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} must be different seeds, as in 0,1,2")
    return seeds


def batches(items: Sequence, size: int) -> Iterator[list]:
    """Runs of `size` items; the last may be shorter."""
    return (list(items[start : start + size]) for start in range(0, len(items), size))


class Interrupts:
    """While entered, the first Ctrl-C sets `asked`, the second raises KeyboardInterrupt as usual.

    `at_once`: while entered, the first raises too, where nothing is lost by it. On several hosts, of which only one
    may have heard it, Ctrl-C is left as it is.
    """

    def __init__(self):
        self.asked = self._raising = False
        self._before = None

    def __enter__(self) -> Interrupts:
        import jax

        alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        self._before = signal.signal(signal.SIGINT, self._handle) if alone else None
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        self._raising = True
        try:
            yield
        finally:
            self._raising = False

    def _handle(self, number: int, frame: object) -> None:
        if self.asked or self._raising:
            raise KeyboardInterrupt
        self.asked = True
        print("vdit: stops once the frames in work are made; Ctrl-C again leaves no file", file=sys.stderr, flush=True)


def stream(
    target: Target, pieces: Iterable, fps: float, status: Status, *,
    display: Work | None = None, interrupts: Interrupts | None = None, sound: Soundtrack | None = None,
) -> bool:  # fmt: skip
    """Writes pieces [t h w 3] to a video file as they come, makes its folder, and prints its path. Whether all came.

    display: shows how many frames there are. After Ctrl-C the piece that is being made is waited for, and the file
    holds what was made; a second Ctrl-C leaves no file (`interrupts`: for pieces that ask about it themselves). On
    several hosts the first alone writes, and all of them make. sound: what goes along with the frames.
    """
    from vdit.dist.multihost import is_primary_host
    from vdit.video.read import write_video

    with Interrupts() if interrupts is None else interrupts as interrupts:
        pieces = Pieces(pieces, display, interrupts)
        if is_primary_host():
            along = {} if sound is None else {"sound": lambda: sound.parts(pieces.done, fps)}
            status.wrote(put(target, lambda part: write_video(part, pieces, fps=fps, **along)))
        else:
            for _ in pieces:
                pass
    return not interrupts.asked


class Pieces:
    """Pieces, until an interrupt is asked for. done: frames so far."""

    def __init__(self, pieces: Iterable, display: Work | None = None, interrupts: Interrupts | None = None):
        self._pieces, self._display, self._interrupts, self.done = pieces, display, interrupts, 0

    def __iter__(self) -> Iterator:
        for piece in self._pieces:
            yield piece
            self.done += len(piece)
            if self._display is not None:
                self._display.update(self.done, {})
            if self._interrupts is not None and self._interrupts.asked:
                return


class Counted:
    """A video that is given (vdit.generate.sliding.Frames). read: frames of it that were read the last time."""

    def __init__(self, video):
        self._video, self.read = video, 0

    def __getattr__(self, name: str):
        return getattr(self._video, name)

    def __iter__(self) -> Iterator:
        self.read = 0
        for piece in self._video:
            self.read += piece.shape[1]
            yield piece


@dataclasses.dataclass(frozen=True)
class Soundtrack:
    """What is heard along with a video, in the order of its frames.

    Each entry is a function that gives (file or None for silence, its first frame, how many frames), asked once all
    frames are made: None frames are as many as there are left.
    """

    entries: tuple[Callable[[], tuple[Path | None, int, int | None]], ...]

    @classmethod
    def of(cls, *entries) -> Soundtrack:
        return cls(entries=entries)

    def parts(self, frames: int, fps: float) -> list:
        """vdit.video.sound.SoundPart of each entry, of a video of so many frames."""
        from vdit.video.sound import SoundPart

        parts = []
        for entry in self.entries:
            path, first, count = entry()
            count = frames if count is None else min(count, frames)
            frames -= count
            parts.append(SoundPart(path=path, start=first / fps, seconds=count / fps))
        return parts
