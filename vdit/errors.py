"""Errors that a user can cause.

Each carries one line that names the value, the rule it breaks and the fix. The command line prints
that line and exits with code 2; a traceback is shown only for errors that are vdit's own fault.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

_LONGEST = 2000


class VditError(Exception):
    """Base of all errors that a user can cause and fix.

    The message is one printable line: names and values from outside may hold line breaks, control characters or
    megabytes, so control characters are escaped and the middle of a very long message is left out.
    """

    def __init__(self, message: object = "", *details: object):
        super().__init__(one_line(str(message)), *details)


def one_line(text: str) -> str:
    """Text without line breaks, control characters and lone surrogates; shortened in the middle if very long."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} [... {len(text) - _LONGEST} characters ...] {text[-_LONGEST // 2 :]}"
    if text.isprintable():
        return text
    plain = (" " if c.isspace() else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(plain).strip()


class VditWarning(UserWarning):
    """User input was cut, rounded or ignored, or a result is worse than it could be; work continues.

    The commands print it as one line.
    """


class ConfigError(VditError, ValueError):
    """A configuration value is unknown, of the wrong type, or breaks a rule."""


class VideoError(VditError):
    """A video file cannot be read or written; the message names the file and the reason."""


class OutputError(VditError):
    """An output file cannot be written, or would overwrite one of the user's inputs."""


class BucketError(VditError, OSError):
    """A bucket is not there, may not be used, or cannot be reached. transient: the same call may succeed later."""

    transient = False

    def __str__(self) -> str:
        return str(self.args[0])


class DataError(VditError):
    """A data source is empty, malformed, or cannot be resumed as asked."""


class ShapeError(VditError, ValueError):
    """An array has a shape, dtype or range that the called function does not take."""


class TextError(VditError):
    """A tokenizer or caption file cannot be used."""


class LanguageError(VditError):
    """A language model cannot answer, or its answer cannot be used."""


class CheckpointError(VditError):
    """A checkpoint is missing, incomplete, or does not fit what it is restored into."""


class WeightsError(VditError):
    """A public checkpoint cannot be read, or does not hold what its model needs."""


class TrainingError(VditError):
    """Training cannot continue, for instance after too many non-finite steps."""


class PlanError(VditError):
    """A program could not be compiled for the topology that it was planned for."""


class NumericsError(VditError):
    """Weights, latents or a sampled video contain NaN or infinity; the message says where."""


class HostsError(VditError):
    """Host rendezvous failed or a host died. Rerun the same command to resume."""


class Preempted(BaseException):
    """Raised after SIGTERM, once a checkpoint has been written.

    Like KeyboardInterrupt, it derives from BaseException so that `except Exception` does not catch it.
    """


DISTRIBUTION = "vdit-jax"  # vdit's name on package indexes: `vdit` there is somebody else's package


def install_command(extra: str) -> str:
    """The shell command that installs vdit's extra `extra` from the same source as this vdit.

    extra: a name of [project.optional-dependencies] in pyproject.toml.
    """
    import json  # here, because every command imports this module and few need them
    import shlex
    from importlib import metadata
    from urllib.parse import unquote, urlsplit

    requirement = f"{DISTRIBUTION}[{extra}]"
    try:
        origin = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        origin = {}  # not installed, but on the path: from a checkout
        if (checkout := Path(__file__).parents[1] / "pyproject.toml").is_file():
            origin = {"url": checkout.parent.as_uri(), "dir_info": {"editable": True}}
    url = origin.get("url", "")
    if "vcs_info" in origin:
        return f"pip install '{requirement} @ {origin['vcs_info']['vcs']}+{url}'"
    if url.startswith("file:"):
        editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
        return f"pip install {editable}{shlex.quote(f'{unquote(urlsplit(url).path)}[{extra}]')}"
    return f"pip install '{requirement}'"


# Exit codes of `vdit`. Launchers start again on AGAIN (sysexits' EX_TEMPFAIL), never on MEND.
EX_OK = 0
EX_USAGE = 2
EX_TEMPFAIL = 75
INTERRUPTED = 130

# No room: by the system's number, how C++ libraries word it, what to say of it, and the fix.
_NO_ROOM = {
    errno.ENOSPC: (("ENOSPC", "No space left"), "the disk is full", "make room there"),
    errno.EDQUOT: (("EDQUOT", "quota exceeded"), "the quota is used up", "make room there"),
    errno.EFBIG: (("EFBIG", "File too large"), "a file may not grow that large here", "raise the limit (ulimit -f)"),
}


def no_room(error: BaseException) -> tuple[str, str] | None:
    """(problem, fix) if an error of Python or a C++ library means that a disk is full; else None."""
    text = str(error).lower()
    for number, (marks, words, fix) in _NO_ROOM.items():
        if getattr(error, "errno", None) == number or any(mark.lower() in text for mark in marks):
            return words, fix
    return None


def reason(error: BaseException) -> str:
    """One line for a message: the problem and its fix if the disk is full, else the error's first line."""
    known = None if isinstance(error, VditError) else no_room(error)
    if known is not None:
        return ": ".join(known)
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Context manager for writing a file: an OSError that names no file (a full disk, for instance) names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
