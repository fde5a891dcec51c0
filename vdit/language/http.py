"""One HTTP request with a deadline and a limit on the answer, whatever the server does; for endpoints of models."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from vdit.errors import ConfigError

_PIECE = 1 << 16


class HttpFailure(Exception):
    """A request did not bring an answer. It may be sent again."""


class Answer(NamedTuple):
    """What a server sent: status, headers (names in lower case), body."""

    status: int
    headers: dict[str, str]
    body: bytes


def check_url(url: str, where: str) -> str:
    """The URL without a slash at its end; ConfigError, which begins with `where`, unless it is http(s)://HOST/..."""
    parts = urlsplit(url.strip())
    try:
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        known = False
    if not known or parts.query or parts.fragment or parts.username:
        raise ConfigError(f"{where}={url!r}: must be an address such as http://localhost:8000/v1")
    return url.strip().rstrip("/")


def post(url: str, data: bytes, headers: Mapping[str, str], *, seconds: float, limit: int) -> Answer:
    """Sends one POST request. Follows no redirect, so that a key goes to no other host.

    Args:
        url: http:// or https://. The environment's proxies are used (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).
        data: the body.
        headers: sent beside those of the connection.
        seconds: for all of it, however slowly the server sends.
        limit: bytes of the answer's body.

    Raises:
        HttpFailure: no connection, no whole answer in time, or one above the limit.
    """
    parts, late = urlsplit(url), threading.Event()
    deadline = time.monotonic() + seconds
    connection, target = _connection(parts, seconds)
    sockets: list[socket.socket] = []

    def stop() -> None:
        late.set()
        if sockets:
            with contextlib.suppress(OSError):
                sockets[0].shutdown(socket.SHUT_RDWR)  # wakes a read that waits

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        connection.connect()
        sockets.append(connection.sock)
        connection.request("POST", target, body=data, headers=dict(headers))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        body = bytearray()
        while piece := response.read1(_PIECE):
            body += piece
            if len(body) > limit:
                raise HttpFailure(f"the answer is longer than {limit} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        missing = response.length
        if late.is_set():
            raise TimeoutError
        if missing:
            raise HttpFailure(f"the answer breaks off: {missing} bytes are missing")
        return Answer(response.status, found, bytes(body))
    except (OSError, http.client.HTTPException, ValueError) as reason:
        if late.is_set() or isinstance(reason, TimeoutError):
            raise HttpFailure(f"no whole answer within {seconds:g} s") from None
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise ConfigError(f"{url}: its certificate is not trusted ({reason.verify_message})") from None
        raise HttpFailure(str(reason) or type(reason).__name__) from None
    finally:
        timer.cancel()
        connection.close()


def _connection(parts, seconds: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection to the host or to the environment's proxy, and the target to ask it for."""
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    path = parts.path or "/"
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname):
        return kind(parts.hostname, parts.port, timeout=seconds), path
    through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = kind(through.hostname, through.port or 3128, timeout=seconds)
    if secure:
        connection.set_tunnel(parts.hostname, parts.port or 443)
        return connection, path
    return connection, parts.geturl()
