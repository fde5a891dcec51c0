"""`vdit animate`, `extend`, `loop`, `connect` and `rollout`: new frames beside those that the user gives."""

from __future__ import annotations

import argparse

from vdit.cli import canvas, output
from vdit.cli.output import Soundtrack
from vdit.cli.parser import Command, Duration, UsageError, at_least, duration, length
from vdit.data.tables import read_lines
from vdit.errors import INTERRUPTED, TextError


def _animate_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "IMAGE[@TIME]...", out="animated.mp4")
    parser.add_argument("--frames", type=length, metavar="TIME", help="video length; default: the model's own")


def _animate(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("IMAGE[@TIME]...",))
    files, times = zip(*map(canvas.split_time, words.inputs))
    if times.count(None) > 1:
        untimed = [file for file, time in zip(files, times) if time is None]
        raise UsageError(f"{' and '.join(untimed)}: one is the first frame; give others times, as in end.jpg@2s")
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate.images import read_image
        from vdit.generate.sliding import animate

        inputs, fps = canvas.open_inputs(options, files, generator, status, max_frames=1)
        # As they are, not as they were fitted: a model's image encoder cuts them in its own way.
        images = [read_image(given.path) if given.fps is None else _first_frame(given) for given in inputs]
        frames = generator.experiment.sample.frames if options.frames is None else options.frames.frames(fps)
        moments = [0 if time is None else time.frames(fps) for time in times]
        size = inputs[0].size
        with canvas.making(options, words, generator, status, fps=fps, frames=frames, size=size):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                pieces = animate(run, images, times=moments, frames=frames, size=size)
                canvas.finish(options, pieces, fps, status, seed)
    return 0


def _first_frame(video):
    """uint8 [h w 3]"""
    from vdit.generate.images import as_bytes

    return as_bytes(next(iter(video))[0, 0])[0]


ANIMATE = Command(
    summary="make a video from an image, or from several at chosen times",
    description="""\
Writes a video that contains the images as frames: the first image is the first frame, others come at the time after
their name. Images are scaled to cover the size, then cropped to their centre.""",
    epilog="""\
examples:
  vdit animate runs/mine dog.jpg "a dog runs" --frames 2s --out dog.mp4
  vdit animate runs/mine dog.jpg end.jpg@1.5s "a dog runs" --frames 2s --fps 24
  vdit animate --model Wan2.1-I2V-14B-480P-Diffusers dog.jpg "a dog runs" --size 480x832 --out dog.mp4

Durations and times are frames (48) or seconds (2s).""",
    add_arguments=_animate_arguments,
    run=_animate,
)


def _extend_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "VIDEO", out="longer.mp4")
    parser.add_argument("--after", type=duration, metavar="TIME", help="how much to generate after the video")
    parser.add_argument("--before", type=duration, metavar="TIME", help="how much to generate before it")
    parser.add_argument("--context", type=at_least(1), metavar="N", help="at most N of its frames are used as context")


def _extend(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("VIDEO",))
    if not any(time is not None and time.amount for time in (options.after, options.before)):
        raise UsageError("nothing to make: give --after TIME, --before TIME, or both, above 0")
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate.sliding import extend

        (video,), fps = canvas.open_inputs(options, words.inputs, generator, status)
        asked = {"before": options.before, "after": options.after}
        lengths = {name: 0 if time is None else time.frames(fps) for name, time in asked.items()}
        made = sum(lengths.values())
        shape = {"fps": fps, "frames": video.count + made, "made": made, "size": video.size}
        sound = Soundtrack.of(
            lambda: (None, 0, lengths["before"]), lambda: (video.path, 0, video.read), lambda: (None, 0, None)
        )
        with canvas.making(options, words, generator, status, **shape):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                pieces = extend(run, video, **lengths, context=options.context)
                canvas.finish(options, pieces, fps, status, seed, sound=sound)
    return 0


EXTEND = Command(
    summary="make a video longer, forward, backward, or both",
    description="""\
Writes the video with new frames after it (--after), before it (--before), or both. Its own frames do not change. An
extension longer than one window is generated window by window; each sees the end of the one before.""",
    epilog="""\
examples:
  vdit extend runs/mine dog.mp4 "a dog runs" --after 2s --out longer.mp4
  vdit extend runs/mine dog.mp4 "a dog runs" --before 24 --after 24 --context 9 --size 64x96
  vdit extend --model Wan2.2-TI2V-5B cat.mp4 "the cat jumps" --after 5s --out jump.mp4

Durations are frames (48) or seconds (2s).""",
    add_arguments=_extend_arguments,
    run=_extend,
)


def _loop_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "[VIDEO]", out="loop.mp4")
    parser.add_argument("--passage", type=length, metavar="TIME", help="default: half a window")
    parser.add_argument("--frames", type=length, metavar="TIME", help="length of a video of the prompt alone")


def _loop(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("VIDEO",), least=0)
    if words.inputs and options.frames is not None:
        raise UsageError("--frames: is of a video made of the prompt; leave it out where VIDEO is given")
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate import sliding

        inputs, fps = canvas.open_inputs(options, words.inputs, generator, status)
        passage = canvas.passage_frames(options.passage, fps, generator, options.window)
        size, sound = canvas.asked_size(options), None
        if inputs:
            frames, video = inputs[0].count, inputs[0]
            shape = {"frames": frames + passage, "made": passage, "size": video.size}
            sound = Soundtrack.of(lambda: (video.path, 0, video.read), lambda: (None, 0, None))
        else:
            frames = generator.experiment.sample.frames if options.frames is None else options.frames.frames(fps)
            shape = {"frames": frames + passage, "size": size}
        with canvas.making(options, words, generator, status, fps=fps, **shape):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                given = inputs[0] if inputs else sliding.sample(run, frames=frames, size=size)
                pieces = sliding.loop(run, given, passage=run.passage_frames("passage", passage))
                canvas.finish(options, pieces, fps, status, seed, sound=sound)
    return 0


LOOP = Command(
    summary="turn a video, or one made from a prompt, into a loop",
    description="""\
Writes the video followed by a passage that leads from its end back to its start, so that it plays in a loop without a
jump. Its own frames do not change. Without a VIDEO, one is generated from the prompt first.""",
    epilog="""\
examples:
  vdit loop runs/mine dog.mp4 "a dog runs" --out loop.mp4
  vdit loop runs/mine dog.mp4 "a dog runs" --passage 24 --out loop.gif
  vdit loop runs/mine "waves on a beach" --frames 2s --size 64x96 --out waves.mp4

Durations are frames (48) or seconds (2s). A passage is a multiple of the frames that are generated at
once; given in seconds it is rounded to one.""",
    add_arguments=_loop_arguments,
    run=_loop,
)


def _connect_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "VIDEO VIDEO", out="connected.mp4")
    parser.add_argument("--frames", type=length, metavar="TIME", help="default: half a window")
    parser.add_argument("--blend", action="store_true", help="turn one video into the other while both play")
    parser.add_argument(
        "--strength", type=float, metavar="LEVEL", help="of a blend: how freely its middle is generated; default: 0.8"
    )


def _connect(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("VIDEO", "VIDEO"))
    if options.strength is not None and not options.blend:
        raise UsageError("--strength: is of a blend; add --blend, or leave it out")
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate.sliding import connect

        (first, second), fps = canvas.open_inputs(options, words.inputs, generator, status)
        frames = canvas.passage_frames(options.frames, fps, generator, options.window)
        whole = first.count + second.count + (-frames if options.blend else frames)
        strength = (0.8 if options.strength is None else options.strength) if options.blend else None
        half = frames // 2
        between = Soundtrack.of(
            lambda: (first.path, 0, first.read), lambda: (None, 0, frames), lambda: (second.path, 0, None)
        )
        # While both run, the first is heard in the first half and the second in the other.
        blended = Soundtrack.of(lambda: (first.path, 0, first.read - frames + half), lambda: (second.path, half, None))
        shape = {"fps": fps, "frames": whole, "made": frames, "size": first.size}
        with canvas.making(options, words, generator, status, **shape):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                pieces = connect(run, first, second, frames=run.passage_frames("frames", frames), blend=strength)
                canvas.finish(options, pieces, fps, status, seed, sound=blended if options.blend else between)
    return 0


CONNECT = Command(
    summary="join two videos by a generated passage, or blend one into the other",
    description="""\
Writes the first video, a generated passage from its end to the start of the second, and the second. Frames of both do
not change. With --blend both play at once for that long instead, and one gradually turns into the other.""",
    epilog="""\
examples:
  vdit connect runs/mine dog.mp4 cat.mp4 "a dog turns into a cat" --frames 24 --out both.mp4
  vdit connect runs/mine dog.mp4 cat.mp4 "a dog turns into a cat" --frames 2s --blend --strength 0.7

Durations are frames (48) or seconds (2s). A passage, or a blend, is a multiple of the frames that are generated
at once; given in seconds it is rounded to one. Both videos are read at the model's frame rate (or at --fps).""",
    add_arguments=_connect_arguments,
    run=_connect,
)


def _rollout_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "[IMAGE|VIDEO]", out="long.mp4")
    parser.add_argument("--seconds", type=at_least(0, float), metavar="S", help="length of the whole video")
    parser.add_argument("--frames", type=length, metavar="TIME", help="the same: frames (480) or seconds (60s)")
    parser.add_argument("--context", type=at_least(1), metavar="N", help="frames of context; default: half a window")
    parser.add_argument(
        "--prompt-at", nargs=2, action="append", default=[], metavar=("TIME", "PROMPT"),
        help="change to another prompt at a time; may be repeated",
    )  # fmt: skip
    parser.add_argument("--anchor", action="store_true", help="always see the first frames: less drift, less change")
    parser.add_argument("--script", metavar="FILE", help="a file of such changes, one a line")


def _rollout(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("[IMAGE|VIDEO]",), least=0)
    if (options.frames is None) == (options.seconds is None):
        raise UsageError("how long the video is: give --seconds S or --frames TIME")
    later = _prompt_changes(options)
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate import sliding
        from vdit.sampling.sliding import PromptSchedule

        inputs, fps = canvas.open_inputs(options, words.inputs, generator, status)
        frames = round(options.seconds * fps) if options.frames is None else options.frames.frames(fps)
        script = [(0.0, words.prompt), *sorted((time.frames(fps) / fps, prompt) for time, prompt in later)]
        video = inputs[0] if inputs else None
        asked = sliding.Rollout(
            prompts=PromptSchedule.of(script), frames=frames, fps=fps, context=options.context, anchor=options.anchor,
            size=canvas.asked_size(options),
        )  # fmt: skip
        shape = {"fps": fps, "frames": frames, "made": frames - (video.count if inputs else 0)}
        shape["size"] = video.size if inputs else canvas.asked_size(options)
        sound = Soundtrack.of(lambda: (video.path, 0, video.read), lambda: (None, 0, None)) if inputs else None
        work = canvas.tell(options, words, generator, status, **shape)
        for seed in canvas.seeds(options):
            run = canvas.run_of(options, generator, words, seed)
            pieces = (piece[0] for piece in sliding.rollout(run, asked, video))
            with status.progress("frames", frames, work=work / len(canvas.seeds(options))) as display:
                more = {"display": display, "sound": sound}
                if not output.stream(canvas.target(options, seed), pieces, fps, status, **more):
                    return INTERRUPTED
    return 0


def _prompt_changes(options: argparse.Namespace) -> list[tuple[Duration, str]]:
    """Those of --prompt-at and --script: (time, prompt)."""
    given = [(time, prompt, f"--prompt-at {time}") for time, prompt in options.prompt_at]
    if options.script is not None:
        for number, line in read_lines(options.script, error=TextError):
            time, _, prompt = line.partition(" ")
            given.append((time, prompt.strip(), f"{options.script}, line {number}"))
    return [(_prompt_time(time, where), prompt) for time, prompt, where in given]


def _prompt_time(text: str, where: str) -> Duration:
    try:
        time = duration(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{where}: the time {error}") from None
    if not time.amount:
        raise UsageError(f"{where}: the prompt at 0 is the command's own, give a later time")
    return time


ROLLOUT = Command(
    summary="make a video of any length, with prompts that change",
    description="""\
Writes a video of any length, from a prompt alone or as the continuation of an image or a video. A window slides along
time, and sees the end of what was generated before. Memory does not grow with the length. The file is written as
frames are generated: Ctrl-C ends it early, and keeps what is there.""",
    epilog="""\
examples:
  vdit rollout runs/mine "a dog runs" --seconds 60 --out long.mp4
  vdit rollout runs/mine dog.jpg "a dog runs" --seconds 60 --prompt-at 10s "the dog sits down"
  vdit rollout runs/mine dog.mp4 "a dog runs" --frames 480 --script story.txt --context 24

A script is a text file with a line for each prompt after the first: TIME PROMPT, as in "10s the dog sits down".""",
    add_arguments=_rollout_arguments,
    run=_rollout,
)
