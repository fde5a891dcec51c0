"""What several commands print."""

from __future__ import annotations

from typing import Any

from vdit.config import describe
from vdit.reprs import cut


def show_config(config: Any) -> None:
    """Every key that --cfg takes, with its type and its value."""
    shown = lambda value: cut("none" if value is None else str(value))  # noqa: E731
    rows = [(f"--cfg.{key}", kind, shown(value)) for key, kind, value in describe(config)]
    widths = [min(max(len(row[column]) for row in rows), 44) for column in range(2)]
    for key, kind, value in rows:
        print(f"{key:{widths[0]}}  {kind:{widths[1]}}  {value}".rstrip())
