"""The command and the Python call that make a job's video again, to be copied."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from vdit.serve.planning import Given, Plan, corner, files_in_order
from vdit.serve.schema import CANVAS_FILES, FORMATS, VideoRequest

FILE = {"image": ".png", "video": ".mkv"}


def file_name(given: Given) -> str:
    """What a file is called in a command: by its id, which is also the name that it is downloaded under."""
    return f"{given.id}{FILE[given.kind]}"


def canvas_names(id: str) -> tuple[str, str]:
    """What the files of a canvas' job are called: of what is known, and of the mask."""
    composed, mask = CANVAS_FILES
    return f"{id}.{composed}.mkv", f"{id}.{mask}.mkv"


def command_of(
    run: str, plan: Plan, request: VideoRequest, given: Mapping[str, Given], *, seed: int, prompt: str,
    id: str,
) -> str:  # fmt: skip
    """The line to type. run: the model, as `vdit` takes it. id: of the job."""
    names = [file_name(given[id]) for id in files_in_order(request)]
    height, width = plan.size
    options: list[str] = []
    if plan.task in ("text", "animate") or (plan.task in ("loop", "rollout") and not names):
        options += ["--frames", str(plan.amount)]
    options += {
        "extend": {"forward": ["--after", str(plan.amount)], "backward": ["--before", str(plan.amount)]}.get(
            request.direction, ["--before", str(plan.amount), "--after", str(plan.amount)]
        ),
        "loop": ["--passage", str(plan.amount)] if names else [],
        "connect": ["--frames", str(plan.amount)],
        "rollout": ["--frames", str(plan.amount)] if names else [],
        "edit": ["--take", str(plan.amount)],
        "inpaint": ["--take", str(plan.amount)],
    }.get(plan.task, [])
    if plan.task == "edit" and request.strength is not None:
        options += ["--strength", f"{request.strength:g}"]
    if plan.task == "connect" and request.blend:
        options += ["--blend", *(["--strength", f"{request.strength:g}"] if request.strength is not None else [])]
    if request.mask is not None and plan.task != "canvas":
        options += ["--mask", file_name(given[request.mask])]
    for change in sorted(request.prompts, key=lambda change: change.seconds):
        options += ["--prompt-at", f"{change.seconds:g}s", change.prompt]
    if plan.task == "outpaint":
        options += ["--outpaint", f"{height}x{width}"]
        at = corner(request)
        options += [] if isinstance(at, str) else ["--at", f"{at[0]},{at[1]}"]
        height, width = plan.inner
    if plan.task == "animate":
        names = [name if time == 0 else f"{name}@{time}" for name, time in zip(names, plan.times)]
    options += ["--size", f"{height}x{width}"]
    if request.fps is not None:
        options += ["--fps", f"{request.fps:g}"]
    if plan.window is not None and plan.task != "text":
        options += ["--window", str(plan.window)]
    for name, value in plan.sampling.items():
        options += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    name = {"text": "sample", "outpaint": "inpaint", "canvas": "inpaint"}.get(plan.task, plan.task)
    if plan.task == "canvas":  # both are files of the job
        composed, mask = canvas_names(id)
        names, options = [composed], ["--mask", mask, *options]
    # What begins with a dash is a prompt all the same.
    words = ["vdit", name, run, *names, *options, "--seed", str(seed), "--out", "out.mp4"]
    at = 3 + len(names)
    return shlex.join([*words[:at], prompt, *words[at:]] if not prompt.startswith("-") else [*words, "--", prompt])


def python_of(
    run: str, plan: Plan, request: VideoRequest, given: Mapping[str, Given], *, seed: int, prompt: str,
    id: str,
) -> str:  # fmt: skip
    """Lines of Python. The arguments are command_of's."""
    files = [given[id] for id in files_in_order(request)]
    inner = plan.size if plan.inner is None else plan.inner
    lines = ["import vdit", "", f"generator = vdit.load({run!r})"]
    names = []
    for number, file in enumerate(files):
        names.append(f"given{number}")
        lines.append(_read(names[-1], file, inner, plan))
    more = [f"{name}={value!r}" for name, value in plan.sampling.items()] + [f"seed={seed}"]
    if plan.window is not None and plan.task != "text":
        more.append(f"window={plan.window}")
    size, frames = f"size={plan.size}", f"frames={plan.amount}"
    if request.mask is not None and plan.task != "canvas":
        lines.append(_read("mask", given[request.mask], inner, plan))
        lines.append("mask = (mask if mask.ndim == 3 else mask.frames).mean(-1) >= 127.5")
    if plan.task == "canvas":
        composed, mask = canvas_names(id)
        lines.append(f"composed = vdit.read_video({composed!r}).frames")
        lines.append(f"mask = vdit.read_video({mask!r}).frames.mean(-1) >= 127.5")
    call = {
        "text": ("generator", [], [frames, size]),
        "animate": ("vdit.animate", [_listed(names)], [f"times={list(plan.times)}", frames, size]),
        "extend": ("vdit.extend", names, [
            f"{side}={plan.amount}"
            for side in {"forward": ["after"], "backward": ["before"]}.get(request.direction, ["before", "after"])
        ]),
        "loop": ("vdit.loop", names, [f"passage={plan.amount}"] if names else [frames, size]),
        "connect": ("vdit.connect", names, [frames, *(["blend=True"] if request.blend else [])]),
        "edit": ("vdit.edit", names, ["mask=mask"] if request.mask else []),
        "inpaint": ("vdit.inpaint", [*names, "mask"], []),
        "outpaint": ("vdit.outpaint", names, [size, f"at={corner(request)!r}"]),
        "rollout": ("vdit.rollout", [], [frames, *_start(files, names), *([] if names else [size])]),
        "canvas": ("vdit.inpaint", ["composed", "mask"], []),
    }[plan.task]  # fmt: skip
    function, places, named = call
    if plan.task in ("edit", "connect") and request.strength is not None:
        named.append(f"strength={request.strength!r}")
    said: str = repr(prompt)
    if request.prompts:
        said = repr([(0.0, prompt), *sorted((change.seconds, change.prompt) for change in request.prompts)])
    first = [said] if plan.task == "text" else ["generator", said]
    lines.append(f"videos = {function}({', '.join([*first, *places, *named, *more])})")
    result = "videos" if plan.task == "rollout" else "videos[0]"
    lines.append(f'vdit.write_video("out.mp4", {result}, fps={plan.fps:g})')
    return "\n".join(lines)


def _read(name: str, file: Given, size: tuple[int, int], plan: Plan) -> str:
    if file.kind == "image":
        return f"{name} = vdit.read_video({file_name(file)!r}).frames[0]"
    return f"{name} = vdit.read_video({file_name(file)!r}, fps={plan.fps:g}, size={size})"


def _listed(names: Sequence[str]) -> str:
    return f"[{', '.join(names)}]"


def _start(files: Sequence[Given], names: Sequence[str]) -> list[str]:
    return [f"{'image' if file.kind == 'image' else 'video'}={name}" for file, name in zip(files, names)]


def media_type(format: str) -> str:
    """Of a file that is answered."""
    return FORMATS.get(format, "application/octet-stream")
