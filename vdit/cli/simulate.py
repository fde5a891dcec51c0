"""`vdit simulate`: a world model that is played, by keys or by a file of actions."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import math
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vdit import paths
from vdit.cli import canvas, emulated, output
from vdit.cli.parser import Command, UsageError, at_least
from vdit.cli.status import Status, numbers, shown_method
from vdit.data.tables import read_lines
from vdit.errors import INTERRUPTED, DataError, VditWarning

if TYPE_CHECKING:
    import numpy as np

    from vdit.generate.simulator import Simulator

Action = tuple[float, ...]
NOTHING = "."  # as in vdit.generate.simulator, which is not imported here
MOST_BYTES = 64 * paths.MIB  # of a file of actions


def read_key_map(text: str, width: int) -> dict[str, Action]:
    """"w=0,-1 d=1,0": a character and its numbers; NOTHING means zeros unless the map has it."""
    keys: dict[str, Action] = {NOTHING: (0.0,) * width}
    for part in text.split():
        key, action = part[:1], _numbers(part[2:].split(","))
        if part[1:2] != "=" or action is None:
            raise UsageError(f"--key-map {part!r}: write KEY=NUMBER,NUMBER,... as in w=0,-1")
        if len(action) != width:
            raise UsageError(f"--key-map {part!r}: has {len(action)} numbers, this model is told {width}")
        keys[key] = action
    return keys


def of_keys(text: str, keys: Mapping[str, Action]) -> list[Action]:
    """An action for each character but spaces; UsageError for one that is not in `keys`."""
    pressed = "".join(text.split())
    for key in pressed:
        if key not in keys:
            fix = "" if len(keys) > 1 else "; give --key-map, this model's world has none of its own"
            raise UsageError(f"key {key!r} means nothing here (keys: {' '.join(keys)}){fix}")
    return [keys[key] for key in pressed]


def read_actions(path: str | Path, width: int) -> list[Action]:
    """Rows of `width` numbers: of a .csv, .jsonl (lists) or .npy file.

    A first line of a .csv that holds no number names the columns, and is skipped. Raises DataError, which names the
    row, for anything else. Nothing in a file is executed.
    """
    path = paths.local_copy(path)
    read = {".csv": _csv, ".jsonl": _jsonl, ".npy": _npy}.get(path.suffix.lower())
    if read is None:
        raise DataError(f"actions file {path} ends in {path.suffix!r}: write .csv, .jsonl or .npy")
    actions = []
    for where, row in read(path):
        action = _numbers(row)
        if action is None:
            raise DataError(f"{path}, {where}: {row!r} must be finite numbers")
        if len(action) != width:
            raise DataError(f"{path}, {where}: has {len(action)} numbers, this model is told {width}")
        actions.append(action)
    if not actions:
        raise DataError(f"actions file {path} holds none: write a row for each frame")
    return actions


def _csv(path: Path) -> list[tuple[str, list[str]]]:
    lines = read_lines(path, error=DataError)
    rows = [(f"line {number}", [part.strip(' "') for part in line.split(",")]) for number, line in lines]
    names = bool(rows) and not any(_numbers([part]) for part in rows[0][1])
    return rows[1:] if names else rows


def _jsonl(path: Path) -> list[tuple[str, object]]:
    lines = read_lines(path, error=DataError)
    return [(f"line {number}", paths.parse_json(line, name=f"{path}, line {number}")) for number, line in lines]


def _npy(path: Path) -> list[tuple[str, object]]:
    import numpy as np

    data = paths.read_bytes(path, limit=MOST_BYTES, error=DataError)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is no array of numbers ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu":
        shape = getattr(array, "shape", "several arrays")
        raise DataError(f"{path}: holds {shape}, give numbers [t a], a row for each frame")
    return [(f"row {number}", row) for number, row in enumerate(array.tolist())]


def _numbers(row: object) -> Action | None:
    """Finite numbers, or None."""
    if not isinstance(row, list) or any(isinstance(value, bool) for value in row):
        return None
    try:
        numbers = tuple(float(value) for value in row)
    except (TypeError, ValueError):
        return None
    return numbers if numbers and all(map(math.isfinite, numbers)) else None


def terminal_image(frame, *, columns: int | None = None) -> list[str]:
    """A frame as text: half blocks in 24-bit colour, two pixels in each character (ANSI terminals).

    uint8 [h w 3] -> lines, as wide as the frame, or as `columns` (None: the terminal's) if these are fewer.

    The upper half of a character is its foreground, the lower its background; it is about as high as two are wide.
    """
    import numpy as np
    from PIL import Image

    height, width = frame.shape[:2]
    wide = min(width, shutil.get_terminal_size().columns if columns is None else columns)
    high = max(2, round(height * wide / width / 2) * 2)
    if (high, wide) != (height, width):
        frame = np.asarray(Image.fromarray(frame).resize((wide, high), Image.Resampling.LANCZOS))
    lines = []
    for upper, lower in zip(frame[::2].tolist(), frame[1::2].tolist()):
        cells = (f"\x1b[38;2;{r};{g};{b};48;2;{x};{y};{z}m▀" for (r, g, b), (x, y, z) in zip(upper, lower))
        lines.append("".join(cells) + "\x1b[0m")
    return lines


def _simulate_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "[IMAGE|VIDEO]", out="played.mp4", joins=False)
    parser.add_argument("--keys", metavar="KEYS", help="actions, one key for each step; spaces are ignored")
    parser.add_argument("--actions", metavar="FILE", help="actions, a row of numbers for each frame")
    parser.add_argument("--interactive", action="store_true", help="read keys from the terminal, line by line")
    parser.add_argument("--key-map", metavar="MAP", help='actions of keys, as in "w=0,-1 d=1,0"; default: the world\'s')
    parser.add_argument("--show", action="store_true", help="show frames in the terminal, in coloured half blocks")
    parser.add_argument("--context", type=at_least(1), metavar="N", help="frames of context; default: all that fit")
    parser.add_argument(
        "--beside", metavar="EPISODES",
        help="play the emulator of this folder of vdit record too, from a moment of its episodes; both in one video",
    )  # fmt: skip
    parser.add_argument(
        "--moment", type=at_least(0), metavar="N", help="with --beside: which moment of the episodes; default: 0"
    )


def _simulate(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("[IMAGE|VIDEO]",), least=0)
    asked = [name for name in ("keys", "actions", "interactive") if getattr(options, name)]
    if len(asked) != 1:
        given = " and ".join(f"--{name}" for name in asked) or "nothing to do"
        raise UsageError(f"{given}: give one of --keys KEYS, --actions FILE, --interactive")
    if options.key_map is not None and options.actions:
        warnings.warn("--key-map has no effect with --actions, which names no keys", VditWarning, stacklevel=2)
    if options.interactive and len(canvas.seeds(options)) > 1:
        raise UsageError("--interactive plays one world: give one --seed")
    if options.beside is not None:
        emulated.check_play(options, words)
    elif options.moment is not None:
        raise UsageError("--moment: says from where --beside plays, and there is no --beside")
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate.simulator import Simulator

        inputs, fps = canvas.open_inputs(options, words.inputs, generator, status)
        keys, rows = _what_is_done(options, generator, fps)
        if options.beside is not None:
            emulated.play_beside(options, generator, words.prompt, rows, status)
            return 0
        video = inputs[0] if inputs else None
        begins = {"start": _tail(video, generator, options.window)} if inputs else {"size": canvas.asked_size(options)}
        more = begins | {"window": options.window, "context": options.context}
        where, seeds = options.out or options.usual_name, numbers(canvas.seeds(options))
        status.tell("makes", f"what is seen at {fps:.4g} fps, seed {seeds} -> {where}")
        asked = {name: getattr(options, name) for name in ("steps", "guidance", "sampler", "reuse", "negative")}
        steps = {name: value for name, value in asked.items() if name != "negative"}
        status.tell("with", shown_method(generator.method(given=True, **steps), asked))
        simulator = None
        for seed in canvas.seeds(options):
            if simulator is None:
                simulator = Simulator(generator, words.prompt, **more, **canvas.sampling(options, seed))
            else:
                simulator.reset(seed=seed)
            play = _Play(
                simulator=simulator, status=status, fps=fps, keys=keys, show=options.show, rows=rows, video=video
            )
            if not play.write(canvas.target(options, seed)):
                return INTERRUPTED
    return 0


def _tail(video, generator, window: int | None) -> np.ndarray:
    """uint8 [t h w 3], the last frames of a video that is read piece by piece: as many as a window holds."""
    import numpy as np

    from vdit.generate.generator import window_of
    from vdit.generate.images import as_bytes

    kept: collections.deque = collections.deque(maxlen=window_of(generator, window))
    for piece in video:
        kept.extend(as_bytes(piece[0]))
    return np.stack(kept)


def _what_is_done(options: argparse.Namespace, generator, fps: float) -> tuple[dict, list[Action] | None]:
    """Actions of the keys, and of each frame; None if they are typed."""
    import jax

    from vdit.generate.simulator import action_shape, world_keys

    data, (frames, width) = generator.experiment.data, action_shape(generator)
    keys = world_keys(getattr(data.source, "world", ""), width, fps)
    if options.key_map is not None:
        keys = read_key_map(options.key_map, width)
    if options.interactive:
        if jax.process_count() > 1:
            raise UsageError("--interactive is for one host: give --keys or --actions")
        return keys, None
    if options.actions:
        return keys, read_actions(options.actions, width)
    rows = [action for action in of_keys(options.keys, keys) for _ in range(frames)]
    if not rows:
        raise UsageError(f"--keys {options.keys!r}: holds no key, give one for each step")
    return keys, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Play:
    """How the world is played. rows: actions of each frame; None: they are typed. video: what comes before it."""

    simulator: Simulator
    status: Status
    fps: float
    keys: dict[str, Action]
    show: bool
    rows: list[Action] | None = None
    video: output.Counted | None = None

    def write(self, target: output.Target) -> bool:
        """Plays and writes the frames. Returns whether all actions were played."""
        interrupts = output.Interrupts()
        more = {"interrupts": interrupts}
        if self.video is not None:
            more["sound"] = output.Soundtrack.of(
                lambda: (self.video.path, 0, self.video.read), lambda: (None, 0, None)
            )
        if self.rows is None:
            return output.stream(target, self._typed(interrupts), self.fps, self.status, **more)
        output.say(f"{len(self.rows)} frames to play, {len(self.rows) / self.fps:.4g} s at {self.fps:.4g} fps")
        if self.show:  # the frames are what is shown
            return output.stream(target, self._scripted(), self.fps, self.status, **more)
        before = len(self.simulator.frames) if self.video is None else self.video.count
        with self.status.progress("frames", before + len(self.rows)) as display:
            return output.stream(target, self._scripted(), self.fps, self.status, display=display, **more)

    def _beginning(self) -> Iterator:
        """The frames before the first action; those of a video are read again, piece by piece."""
        if self.video is not None:
            yield from (piece[0] for piece in self.video)
            self._seen(self.simulator.frames)
        else:
            yield self._seen(self.simulator.frames)

    def _scripted(self) -> Iterator:
        step = self.simulator.action_shape[0]
        yield from self._beginning()
        for start in range(0, len(self.rows), step):
            rows = self.rows[start : start + step]
            nothing = [(0.0,) * len(rows[0])] * (step - len(rows))
            yield self._seen(self.simulator.step([*rows, *nothing])[: len(rows)], again=True)

    def _typed(self, interrupts: output.Interrupts) -> Iterator:
        yield from self._beginning()
        _tell(f"keys: {' '.join(self.keys)}; a line of them is played at once; Ctrl-D ends")
        while True:
            try:
                with interrupts.at_once():
                    _tell("> ", end="")
                    line = sys.stdin.readline()
            except KeyboardInterrupt:
                line = ""
            if not line:
                _tell("")
                return
            try:
                pressed = of_keys(line.strip() or NOTHING, self.keys)
            except UsageError as error:
                _tell(str(error))
                continue
            began = time.monotonic()
            for index, action in enumerate(pressed):
                yield self._seen(self.simulator.step(action), again=index > 0)
            _tell(f"{(time.monotonic() - began) / len(pressed) * 1000:.0f} ms a step")

    def _seen(self, frames: np.ndarray, *, again: bool = False) -> np.ndarray:
        """The frames; the last of them is shown, if that is asked for, in the place of the one before if `again`."""
        if self.show:
            lines = terminal_image(((frames[-1] + 1) * 127.5).round().astype("uint8"))
            _tell((f"\x1b[{len(lines)}A" if again else "") + "\n".join(lines))
        return frames


def _tell(line: str, end: str = "\n") -> None:
    """To the person who plays: stdout is for names of files."""
    print(line, end=end, file=sys.stderr, flush=True)


SIMULATE = Command(
    summary="play a world model: actions in, frames out",
    description="""\
Plays a world model (one that was trained with actions) and writes what it shows. It starts from an image, a video, or
frames that the model generates. --keys gives the actions step by step, --actions names a file with a row of numbers
for each frame, and --interactive asks for keys in the terminal.""",
    epilog="""\
examples:
  vdit simulate runs/steer "a red circle that is steered" --keys "dddd ssss aaaa" --out played.mp4
  vdit simulate runs/steer start.png "a red circle that is steered" --interactive --show --steps 4
  vdit simulate runs/pong "a game of Pong" --keys "dddd aaaa ...." --beside pong_test    # and the emulator
  vdit simulate runs/mine start.mp4 "a car" --actions drive.csv
  vdit simulate runs/mine "a car" --keys "wwwad" --key-map "w=1,0 a=0.5,-1 d=0.5,1"

Keys of the world "steer": w a s d, q e z c (diagonal); of "orbit": a d (the camera turns left, right), A D (quickly);
of an Atari game: w a s d, f (fire); in Pong d is up, a is down.
A dot does nothing. A key holds for one step, which may be several frames. Files are .csv, .jsonl (a list
in each line) or .npy.""",
    add_arguments=_simulate_arguments,
    run=_simulate,
)
