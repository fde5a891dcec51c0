"""The playground beside the cells of a notebook.

    generator = vdit.load("runs/mine")
    page = vdit.playground(generator)       # shown under the cell
    page.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from vdit.errors import ConfigError
from vdit.generate.generator import Generator
from vdit.language.expansion import Expander
from vdit.serve.app import make_app
from vdit.serve.live import Settings
from vdit.serve.planning import largest_area
from vdit.serve.schema import Limits
from vdit.serve.server import make_server
from vdit.serve.service import Service

START_SECONDS = 30.0


class Playground:
    """A server in a thread of this process. Close it, or leave it to the end of the process.

    Attributes:
        url: of the page, on this machine. port: where it listens. height: of the frame in the notebook, pixels.
    """

    def __init__(self, service: Service, *, port: int = 0, height: int = 900, temporary: Path | None = None):
        self._service, self._temporary = service, temporary
        self._listening = socket.socket()
        try:
            self._listening.bind(("127.0.0.1", port))
        except OSError as error:
            service.close()
            raise ConfigError(f"port={port}: {error.strerror}: give another, or 0 for any") from None
        self.port, self.height = self._listening.getsockname()[1], height
        self.url = f"http://127.0.0.1:{self.port}/"
        app = make_app(service, frames=True, hosts=None if in_colab() else (), close=False)
        self._server = make_server(_LocalOrigin(app) if in_colab() else app, limits=service.limits)
        self._thread = threading.Thread(target=self._run, name="vdit-playground", daemon=True)
        self._started = threading.Event()
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            raise ConfigError(f"the playground did not start within {START_SECONDS:g} s at {self.url}")

    def _run(self) -> None:
        async def serve() -> None:
            serving = asyncio.ensure_future(self._server.serve(sockets=[self._listening]))
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.01)
            self._started.set()
            await serving

        with contextlib.suppress(SystemExit):
            asyncio.run(serve())

    def show(self) -> None:
        """Shows the page under the cell; outside of a notebook, prints where it is."""
        if in_colab():
            from google.colab import output

            output.serve_kernel_port_as_iframe(self.port, height=str(self.height))
        elif _in_notebook():
            from IPython.display import IFrame, display

            display(IFrame(self.url, width="100%", height=self.height))
            print(f"{self.url} (of the machine where this notebook runs)")
        else:
            print(self.url)

    def close(self) -> None:
        """Ends the server. Files of a folder that was made for it go with it."""
        self._server.should_exit = True
        self._thread.join(START_SECONDS)
        self._service.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Playground:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Playground({self.url!r})"


class _LocalOrigin:
    """Around the app in Colab, whose proxy alone reaches this machine: its page has another name than we are told."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if "headers" in scope:
            hidden = (b"origin", b"sec-fetch-site")
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0].lower() not in hidden]}
        await self._app(scope, receive, send)


def playground(
    generator: Generator,
    *,
    run: str = "RUN",
    data: str | Path | None = None,
    port: int = 0,
    height: int = 900,
    expander: Expander | None = None,
    show: bool = True,
) -> Playground:
    """Opens the page to play with, for this machine alone, while the notebook goes on.

    Args:
        generator: of `vdit.load`.
        run: what stands for the model in the commands that the page shows: the folder that `vdit.load` was given.
        data: folder of jobs, uploads and results; None: one that is removed by `close`.
        port: 0 for any.
        height: of the frame under the cell, in pixels.
        expander: of prompts (vdit.open_expander); None for none.
        show: whether to show the page. If not, open `url` in a browser.

    Returns:
        The running server: `url`, `show()`, `close()`.

    Raises:
        ConfigError: the port is taken, or the server cannot start.

    Example:
        page = vdit.playground(vdit.load("runs/mine"), run="runs/mine")
        page.close()
    """
    temporary = Path(tempfile.mkdtemp(prefix="vdit-playground-")) if data is None else None
    folder = Path(data) if temporary is None else temporary
    limits = Limits(pixels=4 * largest_area(generator.experiment))
    settings = Settings(folder=folder, name=Path(run).name or "model", run=run, limits=limits)
    page = Playground(
        Service(generator, settings, expander=expander), port=port, height=height, temporary=temporary
    )
    if show:
        page.show()
    return page


def in_colab() -> bool:
    """Whether this process is a notebook of Google Colab."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:  # there is no package `google`
        return False


def _in_notebook() -> bool:
    if importlib.util.find_spec("IPython") is None:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})
