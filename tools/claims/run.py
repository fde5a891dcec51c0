"""The command line: `python -m tools.claims.run compute|sizes|physics OUT`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import tools.claims
from tools.claims import compute, physics, sizes

CLAIMS = {"compute": compute, "sizes": sizes, "physics": physics}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.claims.run",
        description=tools.claims.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="claim", required=True)
    for name, module in CLAIMS.items():
        command = commands.add_parser(name, help=module.__doc__.splitlines()[0])
        command.add_argument("out", type=Path, help="a folder for all claims; they share a VAE")
        module.add_arguments(command)
    options = parser.parse_args(arguments)
    CLAIMS[options.claim].main(options)


if __name__ == "__main__":
    main()
