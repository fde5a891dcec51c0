"""The process that compiles: `python -m vdit.plan.worker OUT`, a request as JSON on its input.

It says on its output what it is doing, and leaves {"plan": ...} or {"error": ...} in the file OUT.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from vdit.errors import VditError
from vdit.plan.plan import make_plan
from vdit.plan.topology import parse_topology


def main(out: str) -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    from vdit.config import from_dict, load_plugin
    from vdit.experiment.experiment import Experiment

    def progress(text: str) -> None:
        print(text, flush=True)

    try:
        for plugin in request["plugins"]:
            load_plugin(plugin)
        plan = make_plan(
            from_dict(Experiment, request["experiment"]),
            parse_topology(request["topology"]),
            programs=request["programs"],
            effort=request["effort"],
            progress=progress,
        )
        answer = {"plan": dataclasses.asdict(plan)}
    except VditError as error:
        answer = {"error": str(error)}
    Path(out).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
