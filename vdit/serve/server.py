"""uvicorn, with a limit on how long a connection may take to say what it wants."""

from __future__ import annotations

import asyncio
import logging
import socket

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vdit.serve.schema import Limits

HEADER_SECONDS = 10.0
MOST_HEADERS = 32 * 1024


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections which send no whole request head in time: they would hold a place for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # a part of a head
            self._wait_for_head()
        else:
            self._stop_waiting()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._stop_waiting()  # a websocket's head has come, and another protocol goes on with its connection
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._close_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


def make_server(app, *, limits: Limits) -> uvicorn.Server:
    """A server that is not started yet."""
    logging.getLogger("vdit.serve").setLevel(logging.INFO)
    config = uvicorn.Config(
        app, http=PatientProtocol, ws="websockets-sansio", log_level="warning", access_log=False, server_header=False,
        date_header=True, limit_concurrency=limits.connections, timeout_keep_alive=15, timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=MOST_HEADERS, ws_max_size=64 * 1024, ws_max_queue=8, ws_ping_interval=20,
        ws_ping_timeout=20, proxy_headers=False, lifespan="on",
    )  # fmt: skip
    return uvicorn.Server(config)


def run_server(app, listening: socket.socket, *, limits: Limits) -> None:
    """Serves until a signal ends it."""
    server = make_server(app, limits=limits)
    asyncio.run(server.serve(sockets=[listening]))
