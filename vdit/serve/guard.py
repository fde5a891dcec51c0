"""What stands before every request: who may ask, from where, how large, how slowly; and headers for browsers.

Plain ASGI, so that bodies and streams pass without being held.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vdit.serve.schema import Limits, error_body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

COOKIE = "vdit_token"
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
}
OPEN = ("/health",)


class TooLarge(Exception):
    """A body above its limit, or one that comes too slowly. status: of the answer."""

    def __init__(self, status: int, message: str, code: str):
        super().__init__(message)
        self.status, self.code = status, code


class Guard:
    """Around the app.

    Args:
        app: what is guarded.
        limits: of bodies.
        token: what clients must give; None: any client of this machine may ask.
        hosts: names under which the server may be asked, besides loopback ones; a page of another name that resolves
            here (DNS rebinding) is refused. None: any, where there is a token.
        frames: whether other pages may show this one inside them (a notebook).
    """

    def __init__(
        self, app: Callable, *, limits: Limits, token: str | None = None, hosts: tuple[str, ...] | None = (),
        frames: bool = False,
    ):  # fmt: skip
        self._app, self._limits, self._token, self._hosts = app, limits, token, hosts
        self._busy: collections.Counter[str] = collections.Counter()  # requests by address
        headers = dict(HEADERS)
        if frames:
            del headers["x-frame-options"]
            policy = headers["content-security-policy"]
            headers["content-security-policy"] = policy.replace("frame-ancestors 'none'", "frame-ancestors *")
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        refused = self._refused(scope, headers)
        if refused is not None:
            await _refuse(scope, receive, send, *refused)
            return
        if (login := self._login(scope, headers)) is not None:
            await _redirect(send, login)
            return
        scope["vdit.client"] = _client(scope, headers)
        address = scope["vdit.client"][1]
        if self._busy[address] >= self._limits.requests:
            said = f"{self._limits.requests} requests of one address are being answered: end some, or try again"
            await _refuse(scope, receive, send, 429, said, "requests")
            return
        self._busy[address] += 1
        try:
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
            else:
                await self._answered(scope, receive, send, headers)
        finally:
            self._busy[address] -= 1
            if not self._busy[address]:
                del self._busy[address]

    async def _answered(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        """A request, its body bounded, its answer with the headers for browsers."""
        bounded = _Bounded(receive, scope, headers, self._limits)
        started = False

        async def answered(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                there = {name for name, _ in message["headers"]}
                more = [pair for pair in self._headers if pair[0] not in there]
                if b"cache-control" not in there:
                    more.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self._app(scope, bounded, answered)
        except TooLarge as error:
            if not started:
                body = error_body(str(error), status=error.status, code=error.code)
                await _answer(answered, error.status, body, close=True)

    def _refused(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        """(status, message, code) for a request that goes no further."""
        host = headers.get("host", "")
        if self._hosts is not None and not _known_host(host, self._hosts):
            return 403, f"host {host[:80]!r}: the server is not called so (see --allow-host)", "unknown_host"
        origin = headers.get("origin")
        if origin is not None and not _same_origin(origin, host):
            return 403, f"origin {origin[:80]!r}: pages of other hosts may not ask", "foreign_origin"
        fetched = headers.get("sec-fetch-site", "same-origin")
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and fetched == "cross-site":
            return 403, "pages of other hosts may not ask", "foreign_origin"
        if self._token is None or scope["path"] in OPEN:
            return None
        given = _token(scope, headers)
        if given is None or not hmac.compare_digest(given.encode(), self._token.encode()):
            return 401, "give the server's token: Authorization: Bearer TOKEN", "invalid_token"
        return None

    def _login(self, scope: Scope, headers: dict[str, str]) -> list[tuple[bytes, bytes]] | None:
        """Where the page is opened with ?token=..., the headers that keep it as a cookie and take it off the line."""
        if self._token is None or scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            return None
        if not parse_qs(scope["query_string"].decode("latin-1")).get("token"):
            return None
        cookie = f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        return [(b"location", b"/"), (b"set-cookie", cookie.encode()), *self._headers]


class _Bounded:
    """A request's body, up to its limit and no slower than it may come."""

    def __init__(self, receive: Receive, scope: Scope, headers: dict[str, str], limits: Limits):
        self._receive, self._limits, self._seen = receive, limits, 0
        form = headers.get("content-type", "").startswith("multipart/")
        self._most = limits.upload_bytes + limits.json_bytes if form else limits.json_bytes
        self._began: float | None = None
        self._done = False
        try:
            claimed = int(headers.get("content-length", "0"))
        except ValueError:
            claimed = 0
        self._claimed = claimed

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._done:
            return await self._receive()
        if self._claimed > self._most:
            raise TooLarge(413, f"a body of {self._claimed} bytes: at most {self._most} are taken", "body_limit")
        loop = asyncio.get_running_loop()
        self._began = loop.time() if self._began is None else self._began
        # A body has its time, and more for what it has sent at the least rate.
        until = self._began + self._limits.body_seconds + self._seen / self._limits.body_rate
        try:
            async with asyncio.timeout_at(until):
                message = await self._receive()
        except TimeoutError:
            raise TooLarge(408, "the request came too slowly", "timeout") from None
        if message["type"] != "http.request":
            return message
        self._seen += len(message.get("body", b""))
        self._done = not message.get("more_body", False)
        if self._seen > self._most:
            raise TooLarge(413, f"a body above {self._most} bytes", "body_limit")
        return message


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _token(scope: Scope, headers: dict[str, str]) -> str | None:
    """What a client gives: a header, a cookie, or in the address of the page."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and given.strip():
        return given.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        cookie = {}
    if COOKIE in cookie:
        return cookie[COOKIE].value
    if scope["path"] != "/" and scope["type"] == "http":
        return None
    asked = parse_qs(scope["query_string"].decode("latin-1")).get("token")
    return asked[0] if asked else None


def _client(scope: Scope, headers: dict[str, str]) -> tuple[str, str]:
    """(whose the jobs are, the address). Without a name of its own, a client is its address."""
    address = scope["client"][0] if scope.get("client") else "local"
    name = headers.get("x-client-id", "")[:64]
    return hashlib.sha256(f"{address} {name}".encode("utf-8", "replace")).hexdigest()[:16], address


def _known_host(host: str, hosts: tuple[str, ...]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in hosts:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _same_origin(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, message: str, code: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": code})
        return
    await _answer(send, status, error_body(message, status=status, code=code), close=True)


async def _redirect(send: Send, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, status: int, body: dict[str, Any], *, close: bool) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if close:  # what is left of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
