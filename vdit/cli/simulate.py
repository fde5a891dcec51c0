"""`vdit simulate`: a world model that is played, by keys or by a file of actions."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vdit.cli import actions, canvas, output, streaming, terminal_image
from vdit.cli.parser import UsageError, at_least
from vdit.cli.status import Status, numbers, shown_method
from vdit.errors import INTERRUPTED, VditWarning

if TYPE_CHECKING:
    import numpy as np

    from vdit.generate.simulator import Simulator

SUMMARY = "play a world model: actions in, frames out"
DESCRIPTION = """\
Plays a world model (one that was trained with actions) and writes what it shows. It starts from an image, a video, or
frames that the model generates. --keys gives the actions step by step, --actions names a file with a row of numbers
for each frame, and --interactive asks for keys in the terminal."""
EPILOG = """\
examples:
  vdit simulate runs/steer "a red circle that is steered" --keys "dddd ssss aaaa" --out played.mp4
  vdit simulate runs/steer start.png "a red circle that is steered" --interactive --show --steps 4
  vdit simulate runs/mine start.mp4 "a car" --actions drive.csv
  vdit simulate runs/mine "a car" --keys "wwwad" --key-map "w=1,0 a=0.5,-1 d=0.5,1"

Keys of the world "steer": w a s d, q e z c (diagonal); of "orbit": a d (the camera turns left, right), A D (quickly).
A dot does nothing. A key holds for one step, which may be several frames. Files are .csv, .jsonl (a list
in each line) or .npy."""
TAKES_OVERRIDES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "[IMAGE|VIDEO]", out="played.mp4", joins=False)
    parser.add_argument("--keys", metavar="KEYS", help="actions, one key for each step; spaces are ignored")
    parser.add_argument("--actions", metavar="FILE", help="actions, a row of numbers for each frame")
    parser.add_argument("--interactive", action="store_true", help="read keys from the terminal, line by line")
    parser.add_argument("--key-map", metavar="MAP", help='actions of keys, as in "w=0,-1 d=1,0"; default: the world\'s')
    parser.add_argument("--show", action="store_true", help="show frames in the terminal, in coloured half blocks")
    parser.add_argument("--context", type=at_least(1), metavar="N", help="frames of context; default: all that fit")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
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
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate.simulator import Simulator

        inputs, fps = canvas.open_inputs(options, words.inputs, generator, status)
        keys, rows = _what_is_done(options, generator, fps)
        begins = {"start": _start(inputs[0])} if inputs else {"size": canvas.asked_size(options)}
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
            play = _Play(simulator=simulator, status=status, fps=fps, keys=keys, show=options.show, rows=rows)
            if not play.write(canvas.target(options, seed)):
                return INTERRUPTED
    return 0


def _start(video) -> np.ndarray:
    """uint8 [t h w 3]: all of it is shown before the world is played."""
    import numpy as np

    from vdit.generate.images import as_bytes

    return np.concatenate([as_bytes(piece[0]) for piece in video])


def _what_is_done(options: argparse.Namespace, generator, fps: float) -> tuple[dict, list[actions.Action] | None]:
    """Actions of the keys, and of each frame; None if they are typed."""
    import jax

    from vdit.generate.simulator import action_shape

    data, (frames, width) = generator.experiment.data, action_shape(generator)
    keys = actions.world_keys(getattr(data.source, "world", ""), width, fps)
    if options.key_map is not None:
        keys = actions.read_key_map(options.key_map, width)
    if options.interactive:
        if jax.process_count() > 1:
            raise UsageError("--interactive is for one host: give --keys or --actions")
        return keys, None
    if options.actions:
        return keys, actions.read_actions(options.actions, width)
    rows = [action for action in actions.of_keys(options.keys, keys) for _ in range(frames)]
    if not rows:
        raise UsageError(f"--keys {options.keys!r}: holds no key, give one for each step")
    return keys, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Play:
    """How the world is played. rows: actions of each frame; None: they are typed."""

    simulator: Simulator
    status: Status
    fps: float
    keys: dict[str, actions.Action]
    show: bool
    rows: list[actions.Action] | None = None

    def write(self, target: output.Target) -> bool:
        """Plays and writes the frames. Returns whether all actions were played."""
        interrupts = streaming.Interrupts()
        if self.rows is None:
            return streaming.write(target, self._typed(interrupts), self.fps, self.status, interrupts=interrupts)
        output.say(f"{len(self.rows)} frames to play, {len(self.rows) / self.fps:.4g} s at {self.fps:.4g} fps")
        more = {"interrupts": interrupts}
        if self.show:  # the frames are what is shown
            return streaming.write(target, self._scripted(), self.fps, self.status, **more)
        with self.status.progress("frames", len(self.simulator.frames) + len(self.rows)) as display:
            return streaming.write(target, self._scripted(), self.fps, self.status, display=display, **more)

    def _scripted(self) -> Iterator:
        step = self.simulator.action_shape[0]
        yield self._seen(self.simulator.frames)
        for start in range(0, len(self.rows), step):
            rows = self.rows[start : start + step]
            nothing = [(0.0,) * len(rows[0])] * (step - len(rows))
            yield self._seen(self.simulator.step([*rows, *nothing])[: len(rows)], again=True)

    def _typed(self, interrupts: streaming.Interrupts) -> Iterator:
        yield self._seen(self.simulator.frames)
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
                pressed = actions.of_keys(line.strip() or actions.NOTHING, self.keys)
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
            lines = terminal_image.rows_of(((frames[-1] + 1) * 127.5).round().astype("uint8"))
            _tell((f"\x1b[{len(lines)}A" if again else "") + "\n".join(lines))
        return frames


def _tell(line: str, end: str = "\n") -> None:
    """To the person who plays: stdout is for names of files."""
    print(line, end=end, file=sys.stderr, flush=True)
