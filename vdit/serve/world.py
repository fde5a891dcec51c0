"""The live world: keys come in by a websocket, frames go out, and the latest key wins.

    client: {"type": "begin", "prompt": "...", "seed": 0, "steps": 4, "start": "rendered"}
    server: {"type": "ready", "keys": [...], "fps": 8, ...} and the first frames
    client: {"type": "key", "key": "d", "id": 1, "down": true}
    server: {"type": "frames", "number": 1, "key": "d", "id": 1, ...} and the frames of one step
    client: {"type": "seen", "number": 1}

A step is made for the key that is held when the step begins. A key that was tapped between two steps is played in the
next one, unless a later key was: then the message of that step says how many were skipped. Each message with frames
is binary: four bytes, the length of a head in JSON, little end first; the head; the pictures, whose lengths the head
has. No step begins before the client has seen the frames of the step before the last, so a slow line delays frames
but never lets them pile up. Beside the model, its world's renderer can play the same keys (vdit.worlds).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import struct
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from vdit import worlds
from vdit.data.data_source import WorldsSource
from vdit.errors import VditError, reason
from vdit.generate.generator import Generator
from vdit.generate.images import as_bytes, read_image
from vdit.generate.simulator import NOTHING, Simulator, action_shape, world_keys
from vdit.serve.schema import ApiError, Name, Prompt, error_body
from vdit.video.write import encode_bytes

MOST_WORLDS = 4  # that are played at a time
MOST_MESSAGE = 8 * 1024  # characters of a client's message
MOST_RECORDED = 1800  # frames of a recording
MOST_RECORDED_BYTES = 256 << 20
IDLE_SECONDS = 20.0  # of frames without a key: then no steps are made until one comes
MOST_IDLE_SECONDS = 900.0
AHEAD = 2  # steps that a client may not have seen yet
SMALL = 160 * 160  # pixels of a picture up to which it is sent without loss
WORLD_SEED = 7919  # of rendered worlds, so that they begin as no clip of the training did


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Begin(_Message):
    """Begins a world, or begins again with all of it changed.

    start: the id of an uploaded image; "rendered", the first frame of a rendered world that then plays the same keys;
    None: frames that the model makes itself.
    """

    type: Literal["begin"]
    prompt: Prompt = ""
    seed: int = Field(0, ge=0, le=2**63 - 1)
    steps: int | None = Field(None, ge=1, le=200)
    start: Literal["rendered"] | Name | None = None


class Press(_Message):
    """A key goes down or up. id: of the client's own, which the frames of the key come back with."""

    type: Literal["key"]
    key: Annotated[str, Field(min_length=1, max_length=1)]
    id: int = Field(ge=0, le=2**53)
    down: bool = True


class Reset(_Message):
    """The same world from its start."""

    type: Literal["reset"]
    seed: int | None = Field(None, ge=0, le=2**63 - 1)


class Record(_Message):
    """Begins to keep frames; or ends, and sends what was kept as an MP4."""

    type: Literal["record"]
    on: bool


class Seen(_Message):
    """The frames of a step are on the client's screen."""

    type: Literal["seen"]
    number: int = Field(ge=0)


_MESSAGES = TypeAdapter(Annotated[Begin | Press | Reset | Record | Seen, Field(discriminator="type")])


class Latest:
    """Which key the next step plays."""

    def __init__(self) -> None:
        self._held: list[tuple[str, int]] = []  # the latest last
        self._tapped: tuple[str, int] | None = None
        self._skipped = 0

    def press(self, key: str, id: int) -> None:
        if self._tapped is not None:
            self._skipped += 1
        self.release(key)
        self._held.append((key, id))
        self._tapped = (key, id)

    def release(self, key: str) -> None:
        self._held = [one for one in self._held if one[0] != key]

    def clear(self) -> None:
        self.__init__()

    @property
    def idle(self) -> bool:
        """Whether nothing is held or was tapped."""
        return not self._held and self._tapped is None

    def take(self) -> tuple[str, int | None, int]:
        """(key, id of its press if this step is its first, keys that were skipped since the last step)."""
        skipped, tapped = self._skipped, self._tapped
        self._skipped, self._tapped = 0, None
        if tapped is not None:
            return *tapped, skipped
        return (self._held[-1][0] if self._held else NOTHING), None, skipped


class Rendered(Protocol):
    """A rendered world that plays the same actions as the model."""

    first: np.ndarray
    prompt: str

    def step(self, actions: np.ndarray) -> np.ndarray:
        """float32 [t a] -> uint8 [t h w 3]"""
        ...


class RenderedSteer:
    """The world `steer` (vdit.worlds.steer), one step after another.

    Args:
        generator: of the model, for size, rate and the options of the world that it was trained on.
        index: which scene.

    Attributes:
        first: uint8 [h w 3], how it begins. prompt: its caption.
    """

    def __init__(self, generator: Generator, index: int):
        experiment = generator.experiment
        options = {**experiment.data.source.arguments(), "size": experiment.sample.size, "fps": experiment.sample.fps}
        self._world = worlds.make("steer", seed=WORLD_SEED, **options)
        self._index = index % len(self._world)
        self._moved = np.zeros(2, np.float32)  # in the units of actions
        began = self._world.play(self._index, np.zeros((1, 2), np.float32))
        self.first = began.video[0]
        self.prompt = self._world.play(self._index, np.zeros((2, 2), np.float32)).caption

    def step(self, actions: np.ndarray) -> np.ndarray:
        """float32 [t 2] -> uint8 [t h w 3]"""
        # What has been done so far is one action that leads to the same place.
        played = self._world.play(self._index, np.concatenate([np.zeros((1, 2)), self._moved[None], actions]))
        self._moved = (played.meta["displacement"].sum(0) / played.meta["step"]).astype(np.float32)
        return played.video[2:]


def can_render(generator: Generator) -> bool:
    """Whether the model's world has a renderer that plays actions."""
    source = generator.experiment.data.source
    return isinstance(source, WorldsSource) and source.world == "steer"


class Devices(Protocol):
    """What a world needs of vdit.serve.service.Service: its model, its devices, its uploads."""

    generator: Generator

    def on_device(self, work): ...

    def given(self, id: str, client: str | None = None): ...


@dataclasses.dataclass(kw_only=True)
class _Recording:
    frames: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.frames) >= MOST_RECORDED or sum(frame.nbytes for frame in self.frames) >= MOST_RECORDED_BYTES


class WorldSession:
    """One client that plays. Lives as long as its websocket."""

    def __init__(self, socket: WebSocket, devices: Devices):
        self._socket, self._devices, generator = socket, devices, devices.generator
        self._frames_per_step, width = action_shape(generator)
        experiment = generator.experiment
        self._fps = experiment.sample.fps
        self._keys = world_keys(getattr(experiment.data.source, "world", ""), width, self._fps)
        self._client = socket.scope.get("vdit.client", ("local", "local"))[0]
        self._latest, self._pressed = Latest(), time.monotonic()
        self._simulator: Simulator | None = None
        self._rendered: Rendered | None = None
        self._begin: Begin | None = None
        self._number = self._seen = self._quiet = 0  # steps: made, seen, made since the last key
        self._recording: _Recording | None = None
        self._todo: asyncio.Queue[Begin | Reset | Record] = asyncio.Queue(8)
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until the client leaves, or has not played for a long time."""
        reading = asyncio.create_task(self._read())
        playing = asyncio.create_task(self._play())
        try:
            await asyncio.wait([reading, playing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, playing):
                task.cancel()
            said = await asyncio.gather(reading, playing, return_exceptions=True)
        for error in said:
            if isinstance(error, Exception) and not isinstance(error, WebSocketDisconnect):
                await self._fail(error)

    async def _read(self) -> None:
        while True:
            text = await self._socket.receive_text()
            if len(text) > MOST_MESSAGE:
                raise ApiError(f"a message of {len(text)} characters: at most {MOST_MESSAGE} are taken", status=413)
            try:
                message = _MESSAGES.validate_json(text)
            except (ValidationError, RecursionError) as error:
                first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "too deep"
                raise ApiError(f"a message cannot be read: {first}"[:300]) from None
            match message:
                case Press():
                    if message.key not in self._keys:
                        raise ApiError(f"key {message.key!r} means nothing here: press one of {' '.join(self._keys)}")
                    if message.down:
                        self._latest.press(message.key, message.id)
                    else:
                        self._latest.release(message.key)
                    self._pressed, self._quiet = time.monotonic(), 0
                case Seen():
                    self._seen = max(self._seen, min(message.number, self._number))
                case _:
                    if self._todo.full():
                        raise ApiError("too many messages wait: read the frames first", status=429)
                    self._todo.put_nowait(message)
            self._changed.set()

    async def _play(self) -> None:
        due = 0.0
        while True:
            self._changed.clear()
            if not self._todo.empty():
                await self._do(self._todo.get_nowait())
                due = time.monotonic()
                continue
            if time.monotonic() - self._pressed > MOST_IDLE_SECONDS:
                raise ApiError("nobody has played for a while: begin again", status=408, code="idle")
            waiting = self._simulator is None or self._number - self._seen >= AHEAD
            if waiting or (self._latest.idle and self._quiet * self._frames_per_step > IDLE_SECONDS * self._fps):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 5.0)
                due = time.monotonic()
                continue
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            due = max(due, time.monotonic()) + self._frames_per_step / self._fps
            await self._step()

    async def _do(self, message: Begin | Reset | Record) -> None:
        if isinstance(message, Record):
            if message.on:
                self._recording = _Recording()
            else:
                await self._send_recording()
            return
        if isinstance(message, Reset):
            if self._begin is None:
                raise ApiError("a world is reset that has not begun: send begin first")
            changed = {} if message.seed is None else {"seed": message.seed}
            message = self._begin.model_copy(update=changed)
        self._latest.clear()
        first = await self._on_device(lambda: self._opened(message))
        self._pressed = time.monotonic()  # only now can it be played: opening may have taken long
        self._begin, self._number, self._seen, self._quiet = message, 0, 0, 0
        simulator = self._simulator
        await self._send_frames(
            {
                "type": "ready", "keys": list(self._keys), "fps": self._fps, "frames_per_step": self._frames_per_step,
                "height": first.shape[1], "width": first.shape[2], "prompt": self._prompt(message),
                "seed": message.seed, "rendered_too": self._rendered is not None, "number": 0,
                "action_width": simulator.action_shape[1],
            },
            first, None if self._rendered is None else self._rendered.first[None],
        )  # fmt: skip

    def _prompt(self, message: Begin) -> str:
        return message.prompt or ("" if self._rendered is None else self._rendered.prompt)

    def _opened(self, message: Begin) -> np.ndarray:
        """A new world, and its first frames float32 [t h w 3]; runs beside the devices' other work."""
        generator, start = self._devices.generator, None
        self._rendered = None
        if message.start == "rendered":
            if not can_render(generator):
                raise ApiError("start 'rendered': this model's world has no renderer", param="start")
            self._rendered = RenderedSteer(generator, message.seed)
            start = self._rendered.first
        elif message.start is not None:
            given = self._devices.given(message.start, self._client)
            if given is None or given.kind != "image":
                raise ApiError(f"start {message.start}: there is no such image", status=404, param="start")
            start = read_image(given.path)
        prompt, steps = self._prompt(message), {} if message.steps is None else {"steps": message.steps}
        before = self._simulator
        if before is not None and start is not None and self._begin is not None and self._begin.steps == message.steps:
            return before.reset(start=start, prompt=prompt, seed=message.seed)
        simulator = Simulator(generator, prompt, start=start, seed=message.seed, **steps)
        first, world = simulator.frames, simulator.world
        simulator.step(np.zeros(simulator.action_shape[1], np.float32))  # compiles, so that the first key need not wait
        simulator.world, self._simulator = world, simulator
        return first

    async def _step(self) -> None:
        key, id, skipped = self._latest.take()
        action = np.asarray(self._keys[key], np.float32)
        began = time.monotonic()
        simulator, rendered = self._simulator, self._rendered
        made = await self._on_device(lambda: simulator.step(action))
        took = time.monotonic() - began
        beside = None if rendered is None else rendered.step(np.repeat(action[None], len(made), axis=0))
        self._number, self._quiet = self._number + 1, self._quiet + 1
        head = {
            "type": "frames", "number": self._number, "key": key, "id": id, "skipped": skipped,
            "step_ms": round(1000 * took, 1),
        }  # fmt: skip
        await self._send_frames(head, made, beside)

    async def _send_frames(self, head: dict[str, Any], made: np.ndarray, rendered: np.ndarray | None) -> None:
        pictures = as_bytes(made)
        if self._recording is not None:
            self._recording.frames.extend(pictures[: MOST_RECORDED - len(self._recording.frames)])
            head["recorded"] = len(self._recording.frames)
        files = [encode_picture(frame) for frame in pictures]
        beside = [] if rendered is None else [encode_picture(frame) for frame in rendered]
        head |= {"pictures": [len(file) for file in files], "rendered": [len(file) for file in beside]}
        await self._socket.send_bytes(packed(head, [*files, *beside]))
        if self._recording is not None and self._recording.full:
            await self._send_recording()

    async def _send_recording(self) -> None:
        recording, self._recording = self._recording, None
        if recording is None or not recording.frames:
            raise ApiError("nothing was recorded: play first")
        frames = np.stack(recording.frames)
        file = await asyncio.to_thread(encode_bytes, frames, self._fps)
        head = {"type": "recorded", "frames": len(frames), "pictures": [len(file)], "rendered": []}
        await self._socket.send_bytes(packed(head, [file]))

    async def _on_device(self, work):
        return await asyncio.wrap_future(self._devices.on_device(work))

    async def _fail(self, error: Exception) -> None:
        known = isinstance(error, VditError)
        status = error.status if isinstance(error, ApiError) else 400 if known else 500
        message = str(error) if known else f"the world stopped ({reason(error)})"
        where = {name: getattr(error, name, None) for name in ("param", "code")}
        body = error_body(message, status=status, **where)
        with contextlib.suppress(Exception):  # the client may be gone
            await self._socket.send_text(json.dumps({"type": "error"} | body))
            await self._socket.close(1008 if known else 1011)


def encode_picture(frame: np.ndarray) -> bytes:
    """uint8 [h w 3] -> PNG of small pictures, JPEG of large ones."""
    buffer, image = io.BytesIO(), Image.fromarray(frame)
    if frame.shape[0] * frame.shape[1] <= SMALL:
        image.save(buffer, "png", compress_level=1)
    else:
        image.save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def packed(head: dict[str, Any], files: Sequence[bytes]) -> bytes:
    """A binary message, as the module describes."""
    text = json.dumps(head).encode()
    return b"".join([struct.pack("<I", len(text)), text, *files])


def add_world(app: FastAPI, devices: Devices) -> None:
    """Adds the route of the live world to an application."""
    playing = asyncio.Semaphore(MOST_WORLDS)

    @app.websocket("/v1/world")
    async def world(socket: WebSocket) -> None:
        await socket.accept()
        if not devices.generator.experiment.network.action_width:
            await _refuse(socket, "this model is not told what is done: it is no world to play", 404, "no_world")
        elif playing.locked():
            await _refuse(socket, f"{MOST_WORLDS} worlds are being played: try again later", 429, "worlds")
        else:
            async with playing:
                await WorldSession(socket, devices).run()


async def _refuse(socket: WebSocket, message: str, status: int, code: str) -> None:
    await socket.send_text(json.dumps({"type": "error"} | error_body(message, status=status, code=code)))
    await socket.close(1013 if status == 429 else 1008)
