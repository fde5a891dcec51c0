"""How a command ends: the line that says why, and the exit code."""

from __future__ import annotations

from vdit.errors import AGAIN, INTERRUPTED, MEND, HostsError, Preempted, VditError


def ending(error: BaseException, *, resumes: bool = True) -> tuple[str, int] | None:
    """(the line, the exit code) of what a command ended with; None for vdit's own faults, which want a traceback.

    resumes: the command keeps checkpoints.
    """
    later = "; the same command goes on from the last checkpoint" if resumes else ""
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{later}", INTERRUPTED
    if isinstance(error, Preempted):
        return f"stopped by SIGTERM{later}", AGAIN
    if isinstance(error, HostsError):
        return _line(str(error)), AGAIN
    if isinstance(error, VditError):
        return _line(str(error)), MEND
    if isinstance(error, OSError) and error.filename is not None:
        return _line(f"{error.filename}: {error.strerror}"), MEND
    return None


def _line(text: str) -> str:
    return " ".join(text.split())
