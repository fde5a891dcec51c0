"""What the API takes and gives: requests, limits, errors in the form of OpenAI's."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from vdit.errors import VditError
from vdit.paths import GIB, KIB, MIB

Task = Literal[
    "text", "animate", "extend", "loop", "connect", "edit", "inpaint", "outpaint", "rollout", "canvas"
]  # fmt: skip
TASKS: tuple[str, ...] = get_args(Task)
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
ENDED = ("completed", "failed", "cancelled")
FORMATS = {"mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif", "mkv": "video/x-matroska"}
CANVAS_FILES = ("composed", "mask")  # what is known of a timeline canvas, and where something is made
MOST_SEED = 2**64 - 1


class ApiError(VditError):
    """What a client is answered.

    Attributes:
        status: of HTTP. kind: "type" of the body. param: the field it is about. code: for programs.
        headers: more of the answer.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}"""
        return error_body(str(self), status=self.status, param=self.param, code=self.code)


def error_body(message: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's API words it."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client, and all of them, may ask for; what is above it is answered with 413 or 429.

    Attributes:
        frames: of a video that is made.
        pixels: of a frame that is made.
        steps: of the sampler.
        videos: of one request (n).
        waiting: jobs of all clients that have not ended.
        waiting_per_client: of one client.
        connections: that are open at a time.
        requests: of one address that are answered at a time, streams of events among them.
        expansions: of prompts, that wait for the devices.
        json_bytes: of a request without files.
        upload_bytes: of a file that is uploaded.
        upload_frames: of a video that is uploaded, at the model's rate.
        upload_pixels: of its frames; larger ones are scaled down.
        uploads: files that are read at a time; four times as many may be on their way.
        stored_bytes: of all uploads and results.
        stored_files: uploads that are kept at a time.
        read_seconds: for the processor to read an upload; the clock allows three times as much.
        read_bytes: of memory for it.
        body_seconds: for a client to send a request; an upload has more, at `body_rate`.
        body_rate: the least bytes a second of an upload.
        keep_seconds: how long uploads and results are kept.
    """

    frames: int = 1024
    pixels: int = 1 << 20
    steps: int = 200
    videos: int = 8
    waiting: int = 256
    waiting_per_client: int = 64
    connections: int = 512
    requests: int = 128
    expansions: int = 4
    json_bytes: int = 256 * KIB
    upload_bytes: int = 256 * MIB
    upload_frames: int = 2048
    upload_pixels: int = 1920 * 1088
    uploads: int = 2
    stored_bytes: int = 8 * GIB
    stored_files: int = 2000
    read_seconds: int = 60
    read_bytes: int = 4 * GIB
    body_seconds: float = 30.0
    body_rate: int = 64 * KIB
    keep_seconds: float = 3 * 86400.0

    def public(self) -> dict[str, Any]:
        """What clients are told of them."""
        names = (
            "frames", "pixels", "steps", "videos", "waiting", "waiting_per_client", "upload_bytes", "upload_frames",
            "upload_pixels", "keep_seconds",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


class _Body(BaseModel):
    # Numbers and texts as clients of forms send them are read; unknown fields are refused, not dropped.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


Name = Annotated[str, StringConstraints(pattern=r"^(file|video)_[0-9a-f]{24}$")]
Prompt = Annotated[str, StringConstraints(max_length=4000)]


class Placed(_Body):
    """A picture or a video on a canvas: where it lies, in pixels of the result, and from which frame on."""

    file: Name
    at_frame: int = Field(0, ge=0, le=1 << 20)
    x: int = Field(0, ge=-(1 << 16), le=1 << 16)
    y: int = Field(0, ge=-(1 << 16), le=1 << 16)
    width: int | None = Field(None, ge=1, le=1 << 16, description="pixels of the result; its own, fitted, if absent")
    height: int | None = Field(None, ge=1, le=1 << 16)


class PromptAt(_Body):
    """Of a rollout: the prompt from a moment on."""

    seconds: float = Field(gt=0, le=1e6)
    prompt: Prompt


class VideoRequest(_Body):
    """A video to be made. Fields of OpenAI's videos API, of the servers that took it over, and of vdit's own tasks."""

    prompt: Prompt = Field("", description="what is seen; may be empty")
    model: str | None = Field(None, max_length=200, description="the model's name, as /v1/models has it; or absent")
    seconds: float | None = Field(None, gt=0, le=1e5, description="rounded to a length that the model makes")
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT")
    input_reference: Name | None = Field(None, description="an upload, put first in `files`")

    width: int | None = Field(None, ge=1, le=1 << 16)
    height: int | None = Field(None, ge=1, le=1 << 16)
    num_frames: int | None = Field(None, ge=1, le=1 << 20)
    fps: float | None = Field(None, ge=0.1, le=1000, description="the rate of inputs and result; the model's own")
    num_inference_steps: int | None = Field(None, ge=1, le=10000)
    guidance_scale: float | None = Field(None, ge=0, le=1000)
    negative_prompt: Prompt | None = None
    seed: int | None = Field(None, ge=0, le=MOST_SEED, description="drawn if absent")
    n: int = Field(1, ge=1, le=1000, description="videos of seeds from `seed` upward; a job for each")

    task: Task | None = Field(None, description="text; with files animate or extend, by what the first is")
    files: list[Name] = Field(default_factory=list, max_length=64)
    expand: bool = Field(False, description="make a detailed caption of the prompt first")
    preview: bool = Field(False, description="pictures while it samples, in /events")
    canvas: list[Placed] = Field(default_factory=list, max_length=64)
    mask: Name | None = Field(None, description="white is made: an image, or a video with as many frames")
    direction: Literal["forward", "backward", "both"] = "forward"
    strength: float | None = Field(None, gt=0, le=1, description="of edit: 1 makes it of the prompt alone")
    prompts: list[PromptAt] = Field(default_factory=list, max_length=64)
    blend: bool = Field(False, description="of connect: both play at once while one turns into the other")
    sampler: str | None = Field(None, max_length=40)
    window: int | None = Field(None, ge=1, le=1 << 20)
    priority: int = Field(0, ge=-10, le=10, description="among the jobs of one client: the higher first")


class ExpandRequest(_Body):
    """A prompt to be made into a detailed caption."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=4000)]
    seed: int = Field(0, ge=0, le=MOST_SEED)


class JobError(_Body):
    """Why a job failed."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class VideoJob(_Body):
    """A video that is made, will be made, or was."""

    id: str
    object: Literal["video"] = "video"
    status: Status
    progress: int = Field(ge=0, le=100)
    created_at: int
    started_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    model: str
    seconds: str
    size: str = Field(description="WIDTHxHEIGHT")
    frames: int
    fps: float
    prompt: str
    prompt_used: str | None = None
    note: str | None = Field(None, description="what was rounded, left out or kept as it was")
    seed: int
    task: Task
    error: JobError | None = None
    command: str
    python: str
    remixed_from_video_id: str | None = None
    ids: list[str] | None = Field(None, description="of all jobs of the request, where n is above 1")


class VideoList(_Body):
    """Jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[VideoJob]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Deleted(_Body):
    """Something that is there no more."""

    id: str
    object: Literal["video.deleted", "file.deleted"]
    deleted: Literal[True] = True


class Upload(_Body):
    """A file that was uploaded and read."""

    id: str
    object: Literal["file"] = "file"
    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int
    fps: float | None = None
    bytes: int
    created_at: int
    expires_at: int
    note: str | None = Field(None, description="what was scaled or resampled")


class Expanded(_Body):
    """A detailed caption; the prompt itself, with a note that says why, where none was good."""

    text: str
    note: str = ""
