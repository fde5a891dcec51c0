"""The routes: the community's videos API, vdit's own tasks beside it, and the page."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from sse_starlette.sse import EventSourceResponse, ServerSentEvent
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

import vdit
from vdit.errors import VditError
from vdit.serve.guard import Guard
from vdit.serve.intake import Intake
from vdit.serve.live import Live
from vdit.serve.reference import reference_page
from vdit.serve.reproduce import media_type
from vdit.serve.schema import (
    CANVAS_FILES,
    FORMATS,
    ApiError,
    Deleted,
    Expanded,
    ExpandRequest,
    Upload,
    VideoJob,
    VideoList,
    VideoRequest,
    error_body,
)
from vdit.serve.service import Service, digest_of
from vdit.serve.store import Job, new_id
from vdit.serve.world import add_world

PAGE = Path(__file__).parent / "playground"
CHUNK = 1 << 18
SYNC_SECONDS = 3600.0
KEEPALIVE = 15  # seconds between comments of an idle stream of events
_LISTS = ("files", "canvas", "prompts")
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, text in {
        400: "the request cannot be fulfilled as it is", 401: "no token, or another", 403: "another host's page",
        404: "there is no such thing", 405: "no such method", 408: "the request came too slowly",
        409: "it stands otherwise", 413: "more than a limit allows", 429: "too many jobs wait",
        503: "the server is ending",
    }.items()
}  # fmt: skip


def make_app(
    service: Service, *, token: str | None = None, hosts: tuple[str, ...] | None = (), frames: bool = False,
    close: bool = True,
) -> FastAPI:  # fmt: skip
    """The application of a service.

    Args:
        service: whose it is.
        token: what clients must give; None for a server of this machine alone.
        hosts: more names under which the server may be asked; None for any, with a token.
        frames: whether other pages may show this one inside them.
        close: whether the service ends with the application.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.ending.set()
        if close:
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="vdit serve", version=vdit.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Videos from prompts, images and videos. Errors are {\"error\": {message, type, param, code}}.",
        responses=_ERRORS,
    )  # fmt: skip
    app.state.service, app.state.ending = service, asyncio.Event()
    _add_errors(app)
    _add_model(app, service)
    _add_files(app, service)
    _add_videos(app, service)
    _add_events(app, service)
    _add_stream(app, service)
    add_world(app, service)
    _add_page(app)
    app.add_middleware(Guard, limits=service.limits, token=token, hosts=hosts, frames=frames)
    _with_error_schema(app)
    return app


def client_of(request: Request) -> tuple[str, str]:
    """(client, address) of a request."""
    return request.scope.get("vdit.client", ("local", "local"))


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def invalid(request: Request, error: RequestValidationError | ValidationError) -> JSONResponse:
        message, param = _first_problem(error)
        return JSONResponse(error_body(message, status=400, param=param, code="invalid_value"), status_code=400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        body = error_body(str(error.detail), status=error.status_code)
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(VditError)
    async def vdit_error(request: Request, error: VditError) -> JSONResponse:
        return JSONResponse(error_body(str(error), status=400), status_code=400)


def _first_problem(error: RequestValidationError | ValidationError) -> tuple[str, str | None]:
    """(message, field) of what is wrong first; the value that was given is not repeated."""
    first = error.errors()[0]
    places = [str(place) for place in first["loc"] if place not in ("body", "query", "path", "header")]
    param = ".".join(places)[:100] or None
    message = str(first["msg"])[:300]
    return (f"{param}: {message}" if param else message), param


def _with_error_schema(app: FastAPI) -> None:
    """The form of errors in the OpenAPI document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        text = {"type": ["string", "null"]}
        inner = {"message": {"type": "string"}, "type": {"type": "string"}, "param": text, "code": text}
        error = {"type": "object", "required": list(inner), "properties": inner}
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        asked = VideoRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= asked.pop("$defs", {}) | {"VideoRequest": asked}
        schemas["Error"] = {"type": "object", "required": ["error"], "properties": {"error": error}}
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return schema

    app.openapi = openapi


def _add_model(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["model"])
    async def health() -> dict[str, Any]:
        """Whether the server works, and how many jobs have not ended."""
        if not service.alive:
            raise ApiError("the devices' thread has ended", status=503, code="not_alive")
        return {"status": "ok", "model": service.settings.name, "waiting": service.waiting}

    @app.get("/v1/models", tags=["model"])
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{model}", tags=["model"])
    async def model(model: str) -> dict[str, Any]:
        """The model, by its name."""
        if model != service.settings.name:
            raise ApiError(f"model {model[:80]!r}: there is only {service.settings.name!r}", status=404, param="model")
        return _model(service)

    @app.get("/v1/info", tags=["model"])
    async def info() -> dict[str, Any]:
        """What the model makes: tasks, sizes, lengths, defaults, limits."""
        return service.info()

    @app.post("/v1/expand", tags=["model"])
    async def expand(asked: ExpandRequest) -> Expanded:
        """A detailed caption of a prompt, as the model's training captions are."""
        made = await asyncio.wrap_future(service.expand(asked.prompt, asked.seed))
        return Expanded(text=made.text, note=made.note)


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.settings.name, "object": "model", "created": int(service.began), "owned_by": "vdit"}


def _add_files(app: FastAPI, service: Service) -> None:
    @app.post("/v1/files", tags=["files"], openapi_extra=_form({"file": {"type": "string", "format": "binary"}}))
    async def upload(request: Request) -> Upload:
        """Reads a video, an image or a mask, to be named in requests by its id. In a form, as `file`."""
        async with _form_of(request, service) as form:
            found = [value for name, value in form.multi_items() if isinstance(value, UploadFile) and name == "file"]
            if len(found) != 1:
                raise ApiError("give one file, in the form's field `file`", param="file", code="missing_file")
            return await keep_upload(service, found[0], *client_of(request))

    @app.get("/v1/files/{id}", tags=["files"])
    async def file(request: Request, id: str) -> Upload:
        """What is known of an upload."""
        return _upload(service, id, client_of(request)[0])

    @app.get("/v1/files/{id}/content", tags=["files"], response_class=FileResponse)
    async def content(
        request: Request, id: str, original: Annotated[bool, Query(description="lossless, as jobs read it")] = False
    ) -> FileResponse:
        """An upload as it was read: a PNG, or an MP4 that browsers play."""
        known = _upload(service, id, client_of(request)[0])
        ending = "png" if known.kind == "image" else "mkv" if original else "mp4"
        kind = "image/png" if ending == "png" else media_type(ending)
        path = service.store.uploads / f"{known.id}.{ending}"
        if not path.is_file():
            raise _no_file(id)
        return FileResponse(path, media_type=kind, filename=path.name, content_disposition_type="inline")

    @app.delete("/v1/files/{id}", tags=["files"])
    async def delete(request: Request, id: str) -> Deleted:
        """Forgets an upload. Jobs that wait for it fail."""
        _upload(service, id, client_of(request)[0])
        await asyncio.to_thread(service.store.delete_file, id)
        return Deleted(id=id, object="file.deleted")


def _no_file(id: str) -> ApiError:
    return ApiError(f"{id[:40]}: there is no such file, or it has expired", status=404, code="file_not_found")


def _upload(service: Service, id: str, client: str) -> Upload:
    found = service.store.file(id)
    if found is None or found[0] != client:
        raise _no_file(id)
    return Upload(id=id, **found[1])


async def keep_upload(service: Service, file: UploadFile, client: str, address: str) -> Upload:
    """Reads an upload in a child process and keeps what that wrote."""
    limits = service.limits
    service.check_disk(file.size or 0)
    if service.store.files_of() >= limits.stored_files:
        raise ApiError(
            f"{limits.stored_files} uploads are kept, and no more: delete some", status=429, code="stored_files",
            headers={"Retry-After": "60"},
        )  # fmt: skip
    if (file.size or 0) > limits.upload_bytes:
        raise ApiError(f"a file of {file.size} bytes: at most {limits.upload_bytes} are taken", status=413,
                       param="file", code="upload_bytes_limit")  # fmt: skip
    if not file.size:
        raise ApiError("the file is empty", param="file", code="unreadable_file")
    id, store = new_id("file"), service.store
    source = store.partial / f"{id}.upload"
    try:
        with source.open("wb") as out:
            await file.seek(0)
            while chunk := await file.read(CHUNK):
                await asyncio.to_thread(out.write, chunk)
        intake = Intake.of(source, store.partial / id, fps=service.generator.experiment.sample.fps, limits=limits)
        async with service.upload_slot() as reader:
            found = await asyncio.to_thread(reader.read, intake)
        now = time.time()
        size = 0
        for made in store.partial.glob(f"{id}.*"):
            if made != source:
                size += made.stat().st_size
        service.check_disk(size)
        for made in store.partial.glob(f"{id}.*"):
            if made != source:
                made.replace(store.uploads / made.name)
        body = found | {"bytes": file.size, "created_at": int(now), "expires_at": int(now + limits.keep_seconds)}
        store.add_file(id, client, now + limits.keep_seconds, body)
        return Upload(id=id, **body)
    finally:
        for left in store.partial.glob(f"{id}*"):
            left.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _form_of(request: Request, service: Service):
    """A multipart form, its files on disk while they come."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError("give a form: multipart/form-data", status=400, code="not_a_form")
    claimed = request.headers.get("content-length", "")
    try:
        with service.receiving(int(claimed) if claimed.isascii() and claimed.isdigit() else 0):
            async with request.form(max_files=2, max_fields=64, max_part_size=service.limits.json_bytes) as form:
                yield form
    except (MultiPartException, HTTPException) as error:
        said = error.message if isinstance(error, MultiPartException) else error.detail
        raise ApiError(f"the form cannot be read: {said}", code="malformed_form") from None


def _form(fields: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _video_body() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/VideoRequest"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _video_request(request: Request, service: Service) -> VideoRequest:
    """A request's body, as JSON or as a form with a file."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with _form_of(request, service) as form:
            values: dict[str, Any] = {}
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name not in ("input_reference", "mask"):
                        raise ApiError(f"{name[:40]}: give files as input_reference or mask", param=name[:40])
                    value = (await keep_upload(service, value, *client_of(request))).id
                elif name in _LISTS:
                    value = _json(value, name)
                values[name] = value
        return VideoRequest.model_validate(values)
    if kind not in ("application/json", ""):
        raise ApiError(f"content type {kind[:60]!r}: give JSON or a form", status=400, code="content_type")
    value = _json(await request.body(), None)
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object", code="malformed_json")
    reference = value.get("input_reference")
    if isinstance(reference, dict) and set(reference) == {"file_id"}:
        value["input_reference"] = reference["file_id"]
    return VideoRequest.model_validate(value)


def _json(text: str | bytes, param: str | None) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError("the body is not JSON" if param is None else f"{param}: is not JSON", param=param,
                       code="malformed_json") from None  # fmt: skip


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _add_videos(app: FastAPI, service: Service) -> None:
    async def submitted(request: Request, key: str | None) -> list[Job]:
        asked = await _video_request(request, service)
        if key is not None and not 1 <= len(key) <= 255:
            raise ApiError("Idempotency-Key: give 1 to 255 characters", param="Idempotency-Key")
        client, address = client_of(request)
        pair = None if key is None else (key, digest_of(asked))
        return await asyncio.to_thread(service.submit, asked, client=client, address=address, key=pair)

    @app.post("/v1/videos", tags=["videos"], openapi_extra=_video_body())
    async def create(
        request: Request, idempotency_key: Annotated[str | None, Header(max_length=255)] = None
    ) -> VideoJob:
        """Asks for a video. As JSON, or as a form with a file as `input_reference` or `mask`."""
        return service.view((await submitted(request, idempotency_key))[0])

    @app.post("/v1/videos/sync", tags=["videos"], response_class=FileResponse, openapi_extra=_video_body())
    async def sync(
        request: Request, format: Annotated[Literal["mp4", "webm", "gif", "mkv"], Query()] = "mp4"
    ) -> Response:
        """Asks for a video, and answers with its bytes when it is made. Who goes away cancels it."""
        [job, *_] = await submitted(request, None)
        live = service.live(job.id)
        try:
            if live is not None:
                with live.followed() as changed:
                    while not job.ended:
                        changed.clear()
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(changed.wait(), 1.0)
                        if await request.is_disconnected() or app.state.ending.is_set():
                            await asyncio.to_thread(service.cancel, job.id)
                            raise ApiError("the server is ending: try again", status=503)
        except asyncio.CancelledError:
            service.cancel(job.id)
            raise
        if job.status != "completed":
            said = (job.error or {}).get("message", f"the job is {job.status}")
            raise ApiError(said, status=400 if job.error is None else 409, code=job.status)
        return await _content(service, job, "video", format)

    @app.get("/v1/videos", tags=["videos"])
    async def listed(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=64)] = None,
        order: Annotated[Literal["asc", "desc"], Query()] = "desc",
    ) -> VideoList:
        """The client's jobs, the newest first."""
        client = client_of(request)[0]
        jobs = await asyncio.to_thread(
            lambda: service.store.jobs(client, limit=limit + 1, after=after, newest=order == "desc")
        )
        data = [service.view(service.job(job.id) or job) for job in jobs[:limit]]
        ids = [job.id for job in data]
        return VideoList(
            data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=len(jobs) > limit
        )

    @app.get("/v1/videos/{id}", tags=["videos"])
    async def retrieve(request: Request, id: str) -> VideoJob:
        """A job, as it stands."""
        return service.view(_known(service, request, id))

    @app.delete("/v1/videos/{id}", tags=["videos"])
    async def delete(request: Request, id: str) -> Deleted:
        """Forgets a job and its video; one that is made is stopped."""
        _known(service, request, id)
        await asyncio.to_thread(service.delete, id)
        return Deleted(id=id, object="video.deleted")

    @app.post("/v1/videos/{id}/cancel", tags=["videos"])
    async def cancel(request: Request, id: str) -> VideoJob:
        """Stops a job, between two steps if it is being made. One that has ended stays as it is."""
        _known(service, request, id)
        await asyncio.to_thread(service.cancel, id)
        return service.view(_known(service, request, id))

    @app.get("/v1/videos/{id}/content", tags=["videos"], response_class=FileResponse)
    async def content(
        request: Request,
        id: str,
        variant: Annotated[Literal["video", "thumbnail", "composed", "mask"], Query()] = "video",
        format: Annotated[Literal["mp4", "webm", "gif", "mkv"], Query()] = "mp4",
    ) -> Response:
        """The video's bytes, or a picture of it. mkv is lossless.

        Of a timeline canvas also what is known of it (composed) and where something is made (mask), in mkv: the files
        that the job's command names.
        """
        return await _content(service, _known(service, request, id), variant, format)


def _known(service: Service, request: Request, id: str) -> Job:
    """A job of the client that asks; ApiError 404 where there is none."""
    job = service.job(id, client_of(request)[0])
    if job is None:
        raise ApiError(f"{id[:40]}: there is no such video, or it has expired", status=404, code="video_not_found")
    return job


def _add_stream(app: FastAPI, service: Service) -> None:
    @app.get(
        "/v1/videos/{id}/stream", tags=["videos"], response_class=StreamingResponse,
        responses={200: {"content": {"video/mp4": {}}, "description": "an MP4 that grows while the video is made"}},
    )  # fmt: skip
    async def stream(request: Request, id: str) -> Response:
        """A rollout while it is made, frame by frame; of a video that is finished, its bytes."""
        job = _known(service, request, id)
        live = service.live(id)
        if live is None:
            return await _content(service, job, "video", "mp4")
        if job.plan["task"] != "rollout":
            raise ApiError("only a rollout can be watched while it is made: see /events", status=409,
                           code="not_completed")  # fmt: skip
        return StreamingResponse(_growing(service, live, app.state.ending), media_type="video/mp4")


async def _growing(service: Service, live: Live, ending: asyncio.Event) -> AsyncIterator[bytes]:
    """The bytes of a file as it grows, until the job ends."""
    path, file = service.results.stream(live.job.id), None
    try:
        while True:
            last = live.job.ended or ending.is_set()
            if file is None:
                with contextlib.suppress(FileNotFoundError):
                    file = path.open("rb")
            if file is None and live.job.status == "completed":  # it ended before anything was read
                path = await asyncio.to_thread(service.results.get, live.job.id, "mp4", live.job.plan["fps"])
                file = path.open("rb")
            while file is not None and (chunk := await asyncio.to_thread(file.read, CHUNK)):
                yield chunk
            if last:
                return
            await asyncio.sleep(0.1)
    finally:
        if file is not None:
            file.close()


async def _content(service: Service, job: Job, variant: str, format: str) -> FileResponse:
    if job.status != "completed":
        raise ApiError(f"the video is {job.status}", status=409, code="not_completed")
    if variant == "thumbnail":
        path, kind = service.results.thumbnail(job.id), "image/png"
    elif variant in CANVAS_FILES:
        if job.plan["task"] != "canvas":
            raise ApiError(f"variant {variant}: only a canvas has it", status=404, param="variant")
        path, kind = service.results.part(job.id, variant), FORMATS["mkv"]
    else:
        service.check_disk()
        path = await asyncio.to_thread(service.results.get, job.id, format, job.plan["fps"])
        kind = FORMATS[format]
    if not path.is_file():
        raise ApiError("the video has expired", status=404, code="video_not_found")
    return FileResponse(path, media_type=kind, filename=path.name, content_disposition_type="inline")


def _add_events(app: FastAPI, service: Service) -> None:
    @app.get(
        "/v1/videos/{id}/events", tags=["videos"], response_class=EventSourceResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "progress and preview events"}},
    )  # fmt: skip
    async def events(request: Request, id: str) -> EventSourceResponse:
        """Progress by step, and pictures where the job asked for them, until it ends."""
        job = _known(service, request, id)
        stream = _events(service, job, service.live(id), app.state.ending)
        return EventSourceResponse(stream, ping=KEEPALIVE, send_timeout=30)


async def _events(
    service: Service, job: Job, live: Live | None, ending: asyncio.Event
) -> AsyncIterator[ServerSentEvent]:
    """What a follower is told: only what is newest, however slowly it reads."""
    if live is None:
        yield _progress(job, None)
        return
    pictured, told = 0, None
    with live.followed() as changed:
        while True:
            changed.clear()
            said = _progress(live.job, live)
            if said.data != told:
                told = said.data
                yield said
            if live.preview is not None and live.preview_version > pictured:
                pictured = live.preview_version
                png = base64.b64encode(live.preview).decode()
                yield ServerSentEvent(event="preview", data=json.dumps({"png": png, "step": live.step}))
            if live.job.ended or ending.is_set():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 1.0)


def _progress(job: Job, live: Live | None) -> ServerSentEvent:
    data = {
        "status": job.status, "progress": job.progress, "step": 0 if live is None else live.step,
        "steps": 0 if live is None else live.steps, "error": job.error, "prompt_used": job.prompt_used,
    }  # fmt: skip
    return ServerSentEvent(event="progress", data=json.dumps(data))


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        file = PAGE / "index.html"
        if not file.is_file():
            return HTMLResponse("<!doctype html><title>vdit</title><p>The API is at /v1/videos: see /openapi.json.")
        return FileResponse(file, media_type="text/html")

    @app.get("/docs", include_in_schema=False)
    async def reference() -> HTMLResponse:
        """The API in words, for people."""
        return HTMLResponse(reference_page(app.openapi()))

    if PAGE.is_dir():
        app.mount("/static", StaticFiles(directory=PAGE), name="static")

