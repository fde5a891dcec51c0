"""A server on loopback, in a thread of this process, and a client of few lines."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import http.client
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests import tiny
from vdit.generate.generator import Generator
from vdit.sampling.canvas import Prompts
from vdit.sampling.stepwise import SampledStep
from vdit.serve import Limits, Service, Settings, make_app
from vdit.serve.server import make_server


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quick(Generator):
    """In the place of a Generator: noise by what is asked, a pause a step. asked: what it was called for."""

    pause: float = 0.0
    asked: list = dataclasses.field(default_factory=list)
    packed: list = dataclasses.field(default_factory=list)

    def run(self, task, prompts, key, noise=None, given=None):
        count, calls = len(prompts[0].ids), task.method.grid.steps
        self.asked.append((task, count))
        latents = np.zeros((count, *getattr(task, "latent_shape", task.output_shape)), np.float32)
        for done in range(1, calls + 1):
            time.sleep(self.pause)
            if self.watch is not None:
                self.watch(SampledStep(done=done, calls=calls, estimate=latents))
        made = np.random.default_rng(0).uniform(-1, 1, (count, *task.output_shape)).astype(np.float32)
        self._report(task, given, made)
        return made

    def run_packed(self, tasks, prompts, noise, size):
        self.packed.append(len(tasks))
        one = tuple(Prompts(ids=p.ids[:1], length=p.length[:1]) for p in prompts)
        return [self.run(task, one, None)[0] for task in tasks]


_tiny = functools.cache(tiny.generator)


def quick(actions: int = 0, **options) -> Quick:
    """A small generator that makes noise at once."""
    own = _tiny(slides=True, actions=actions)
    return Quick(**{field.name: getattr(own, field.name) for field in dataclasses.fields(Generator)}, **options)


def make_service(folder: Path, generator: Generator | None = None, *, pack: bool = True, **limits) -> Service:
    settings = Settings(folder=folder, name="tiny", run="runs/tiny", pack=pack, limits=Limits(**limits))
    return Service(quick() if generator is None else generator, settings)


@contextlib.contextmanager
def serving(service: Service, **how) -> Iterator[Client]:
    """A server of a service; the service ends with it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = make_server(make_app(service, **how), limits=service.limits)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Client(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self):
        return json.loads(self.data)

    @property
    def error(self) -> dict:
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@dataclasses.dataclass(frozen=True)
class Client:
    port: int
    name: str = "one"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, body=None, *, headers=None, timeout: float = 300) -> Answer:
        """body: bytes as they are, anything else as JSON."""
        headers = {"X-Client-Id": self.name} | (headers or {})
        if body is not None and not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"} | headers
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers)
            got = connection.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            connection.close()

    def get(self, path: str, **more) -> Answer:
        return self.call("GET", path, **more)

    def post(self, path: str, body=None, **more) -> Answer:
        return self.call("POST", path, body, **more)

    def form(self, path: str, fields: dict, **more) -> Answer:
        """fields: a text, or (file name, bytes)."""
        boundary, parts = uuid.uuid4().hex, []
        for name, value in fields.items():
            file = f'; filename="{value[0]}"' if isinstance(value, tuple) else ""
            data = value[1] if isinstance(value, tuple) else str(value).encode()
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
            parts.append(head.encode() + data + b"\r\n")
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return self.call("POST", path, b"".join(parts) + f"--{boundary}--\r\n".encode(), headers=headers, **more)

    def ended(self, id: str, timeout: float = 300) -> dict:
        """A job, once it has ended."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            job = self.get(f"/v1/videos/{id}").json
            if job["status"] in ("completed", "failed", "cancelled"):
                return job
            time.sleep(0.02)
        raise AssertionError(f"{id} has not ended: {job}")
