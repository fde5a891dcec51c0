"""Renders chat templates in a process of its own: JSON on standard input, JSON on standard output.

This file is run as a script by `vdit.models.lm.chat` and imports nothing of vdit. A template comes with a model, from
outside: jinja2's sandbox keeps it from Python, and the limits set here from the machine. A template that loops for ever
or doubles a text again and again takes this process with it and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import sys

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """{% generation %} marks what an assistant has written; it renders as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def _limit(seconds: int, memory: int) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # systems without such limits have the time-out
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )  # fmt: skip


def main() -> None:
    job = json.load(sys.stdin)
    _limit(job["seconds"], job["memory"])
    try:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        template = environment.from_string(job["template"])
        texts = [template.render(messages=messages, **job["variables"]) for messages in job["conversations"]]
        answer = {"texts": texts} if sum(map(len, texts)) <= job["most"] else {"error": "it writes too much"}
    except Exception as error:  # whatever a template does is said, and is no fault of ours
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
