"""One owner of the devices, and the jobs that wait for them.

A thread takes jobs from the queue, the next ones that go together by one call, and looks up between the steps of
sampling: whether a job was cancelled, whether a world that is being played wants its next frames, whether the server
ends. Everything else (requests, files, events) runs beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import logging
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from vdit.errors import NumericsError, VditError, VditWarning, reason
from vdit.generate.generator import Generator, noise_of
from vdit.language.expansion import Expander, Expansion
from vdit.sampling.stepwise import SampledStep
from vdit.seeds import key_of
from vdit.serve import planning, reproduce, tasks
from vdit.serve.intake import Reader
from vdit.serve.live import Cancelled, Live, Settings, Stopping
from vdit.serve.planning import Given, Plan
from vdit.serve.queue import FairQueue, Waiting
from vdit.serve.results import Results, png_of
from vdit.serve.schema import CANVAS_FILES, ApiError, JobError, VideoJob, VideoRequest
from vdit.serve.store import Job, Store, new_id
from vdit.serve.urgent import Urgent
from vdit.serve.watcher import Watcher
from vdit.video.write import write_video

log = logging.getLogger("vdit.serve")
T = TypeVar("T")
PREVIEW_SECONDS = 0.3
PREVIEW_PIXELS = 320
MOST_STARTS = 3
BACKLOG = 8  # results that wait to be written, beside the one that is made


class Service:
    """A model that is served: see the module.

    Args:
        generator: of `vdit.load`.
        settings: how.
        expander: of prompts; None where there is none.
    """

    def __init__(self, generator: Generator, settings: Settings, *, expander: Expander | None = None):
        self.generator, self.settings, self.expander = generator, settings, expander
        self.limits = settings.limits
        self.store = Store(settings.folder)
        self.results = Results(self.store.results)
        self._queue, self._live = FairQueue(), {}
        self._lock, self._one_expansion = threading.RLock(), threading.Lock()
        self._wake, self._stopping = threading.Event(), False
        self._urgent = Urgent(helped=generator.mesh.size == 1)
        self._writers = ThreadPoolExecutor(1, thread_name_prefix="vdit-write")
        self._backlog = threading.Semaphore(BACKLOG)
        self._used = (0.0, 0)
        self._expired = 0.0
        self._previewed = 0.0
        self.began = time.time()
        self._reading = self._receiving = self._expanding = 0
        self._readers = [Reader() for _ in range(self.limits.uploads)]
        for job in self.store.unended():
            self._again(job)
        self._worker = threading.Thread(target=self._work, name="vdit-devices", daemon=True)
        self._worker.start()

    def close(self, timeout: float = 30.0) -> None:
        """Stops between two steps. Jobs that have not ended go on when a service starts with this folder."""
        self._stopping = True
        self._wake.set()
        self._worker.join(timeout)
        self._urgent.close(timeout)
        self._writers.shutdown(wait=True, cancel_futures=True)
        for reader in self._readers:
            reader.close()
        self.store.close()

    @property
    def alive(self) -> bool:
        """Whether the devices' thread runs."""
        return self._worker.is_alive()

    @property
    def waiting(self) -> int:
        """Jobs that have not ended."""
        return len(self._live)

    def warm(self, frames: int, size: tuple[int, int], *, batches: Sequence[int] = ()) -> None:
        """Compiles the programs of text to video for a shape.

        Args:
            frames: of a video. size: (height, width).
            batches: how many videos by one call, powers of two; none: all up to the largest batch of the settings.
        """
        for count in batches or [1 << k for k in range(self.settings.batch.bit_length())]:
            self.on_device(functools.partial(self._compile, frames, tuple(size), count)).result()

    def _compile(self, frames: int, size: tuple[int, int], count: int) -> None:
        watched = dataclasses.replace(self.generator, watch=lambda step: self._seen(step.estimate[0]))
        task = watched.task(watched.method(), frames, size)
        tokens = watched.tokens([""] * count), watched.tokens([""] * count)
        noise = noise_of(watched, range(count), frames=frames, size=size)
        jax.block_until_ready(watched.run(task, tokens, key_of(0), noise))

    # What clients ask for.

    def submit(
        self, request: VideoRequest, *, client: str, address: str = "", key: tuple[str, str] | None = None
    ) -> list[Job]:
        """Accepts a request: its jobs are on disk when this returns.

        Args:
            request: checked by its schema.
            client: whose it is. address: where it came from.
            key: (Idempotency-Key, digest of the request).

        Raises:
            ApiError: 400, 404, 413 or 429; 409 where the key was used for another request.
        """
        if request.model not in (None, self.settings.name):
            raise ApiError(
                f"model {request.model!r}: this server has {self.settings.name!r}", status=404, param="model",
                code="model_not_found",
            )  # fmt: skip
        if request.expand and self.expander is None:
            raise ApiError("expand: this model has no expander; leave it out", param="expand", code="no_expander")
        given = self._given(request, client)
        made = planning.plan(request, self.generator, self.limits, given)
        with self._lock:
            if key is not None and (known := self._repeated(client, key)) is not None:
                return known
            self._check_room(client, request.n)
            first = secrets.randbelow(2**31) if request.seed is None else request.seed
            now, ids = time.time(), [new_id("video") for _ in range(request.n)]
            jobs = [
                Job(
                    id=id, client=client, request=request.model_dump(exclude_defaults=True),
                    plan=dataclasses.asdict(made), seed=first + k, created=now, priority=request.priority,
                    note=made.note, ids=ids if len(ids) > 1 else None,
                )
                for k, id in enumerate(ids)
            ]  # fmt: skip
            self.store.add(jobs, key)
            self._enqueue([Live(job, address) for job in jobs])
        return jobs

    def _repeated(self, client: str, key: tuple[str, str]) -> list[Job] | None:
        known = self.store.keyed(client, key[0])
        if known is None:
            return None
        digest, ids = known
        if digest != key[1]:
            raise ApiError(
                "Idempotency-Key: was used for another request: give each request a key of its own", status=409,
                code="idempotency_key_reused",
            )  # fmt: skip
        jobs = [job for id in ids if (job := self.job(id)) is not None]
        return jobs or None

    def _check_room(self, client: str, count: int) -> None:
        limits, mine = self.limits, sum(live.job.client == client for live in self._live.values())
        for name, there, most in (
            ("waiting", len(self._live), limits.waiting), ("waiting_per_client", mine, limits.waiting_per_client)
        ):
            if there + count > most:
                raise ApiError(
                    f"{there} jobs wait ({name}), at most {most} may: try again when some have ended", status=429,
                    code=name, headers={"Retry-After": "5"},
                )  # fmt: skip
        self.check_disk()

    def check_disk(self, more: int = 0) -> None:
        """ApiError 429 where uploads and results fill their room, or the disk is nearly full."""
        now = time.monotonic()
        if now - self._used[0] > 2.0:
            self._used = (now, self.store.used_bytes())
        full = self._used[1] + more > self.limits.stored_bytes
        if full or shutil.disk_usage(self.settings.folder).free < (256 << 20) + more:
            raise ApiError(
                "the server's room for uploads and results is full: delete some, or try again later", status=429,
                code="storage_full", headers={"Retry-After": "60"},
            )  # fmt: skip

    def job(self, id: str, client: str | None = None) -> Job | None:
        """A job, as it stands; None where there is none, or it is another client's."""
        live = self._live.get(id)
        found = live.job if live is not None else self.store.job(id)
        return found if found is not None and client in (None, found.client) else None

    def live(self, id: str) -> Live | None:
        """A job that has not ended."""
        return self._live.get(id)

    def view(self, job: Job) -> VideoJob:
        """What clients are told of a job."""
        plan, request = Plan.of(job.plan), VideoRequest.model_validate(job.request)
        prompt = job.prompt_used if job.prompt_used is not None else request.prompt
        given = {id: self._named(id) for id in planning.given_ids(request)}
        again = {"seed": job.seed, "prompt": prompt, "id": job.id}
        whole = lambda time: None if time is None else int(time)  # noqa: E731
        return VideoJob(
            id=job.id, status=job.status, progress=job.progress, created_at=int(job.created),
            started_at=whole(job.started), completed_at=whole(job.completed), expires_at=whole(job.expires),
            model=self.settings.name, seconds=f"{plan.frames / plan.fps:.4g}", size=f"{plan.size[1]}x{plan.size[0]}",
            frames=plan.frames, fps=plan.fps, prompt=request.prompt, prompt_used=job.prompt_used, note=job.note,
            seed=job.seed, task=plan.task, error=None if job.error is None else JobError(**job.error),
            command=reproduce.command_of(self.settings.run, plan, request, given, **again),
            python=reproduce.python_of(self.settings.run, plan, request, given, **again), ids=job.ids,
        )  # fmt: skip

    def cancel(self, id: str) -> Job | None:
        """Stops a job, between two steps if it runs; gives it as it stands then or will."""
        with self._lock:
            live = self._live.get(id)
            if live is None:
                return self.store.job(id)
            live.cancelled = True
            if self._queue.remove(id):
                self._end(live, "cancelled")
        return live.job

    def delete(self, id: str) -> bool:
        """Forgets a job and its files; one that runs is stopped first."""
        found = self.cancel(id) is not None
        with self._lock:
            live = self._live.pop(id, None)
            self.store.delete(id)
            if live is not None:  # it runs: what it writes goes away with its end
                live.cancelled = True
        return found

    def expand(self, prompt: str, seed: int, task: str = "video") -> Future[Expansion]:
        """vdit.language.expansion.Expansion of a prompt, on the devices."""
        if self.expander is None:
            raise ApiError("this model has no expander", status=404, code="no_expander")
        with self._lock:
            if self._expanding >= self.limits.expansions:
                raise ApiError("too many prompts wait to be expanded: try again", status=429, code="expansions",
                               headers={"Retry-After": "2"})  # fmt: skip
            self._expanding += 1

        def done(future: Future) -> None:
            with self._lock:
                self._expanding -= 1

        made = self.on_device(lambda: self._expanded(prompt, seed, task))
        made.add_done_callback(done)
        return made

    def _expanded(self, prompt: str, seed: int, task: str) -> Expansion:
        with self._one_expansion:
            return self.expander.expand([prompt], seed=seed % 2**63, task=task)[0]

    def on_device(self, work: Callable[[], T]) -> Future[T]:
        """Runs short work on the devices, ahead of what waits and between the steps of what runs."""
        if self._stopping:
            raise ApiError("the server is ending: try again", status=503, headers={"Retry-After": "5"})
        future = self._urgent.put(work)
        self._wake.set()
        return future

    # Files.

    @contextlib.contextmanager
    def receiving(self, claimed: int) -> Iterator[None]:
        """Around a form that comes: few at a time, and only where there is room for what it claims to have."""
        self.check_disk(claimed)
        if self._receiving >= 4 * self.limits.uploads:
            raise ApiError("too many uploads come at a time: try again", status=429, code="uploads",
                           headers={"Retry-After": "5"})  # fmt: skip
        self._receiving += 1
        try:
            yield
        finally:
            self._receiving -= 1

    @contextlib.asynccontextmanager
    async def upload_slot(self) -> AsyncIterator[Reader]:
        """A reader of uploads: there are few, so more uploads wait their turn, and too many are answered with 429."""
        if self._reading >= 32 * self.limits.uploads:
            raise ApiError("too many uploads wait: try again", status=429, code="uploads",
                           headers={"Retry-After": "5"})  # fmt: skip
        self._reading += 1
        try:
            while not self._readers:
                await asyncio.sleep(0.05)
            reader = self._readers.pop()
            try:
                yield reader
            finally:
                self._readers.append(reader)
        finally:
            self._reading -= 1

    def given(self, id: str, client: str | None = None) -> Given | None:
        """An upload, or a finished job's result, by id."""
        if id.startswith("video_"):
            job = self.job(id, client)
            if job is None or job.status != "completed":
                return None
            plan = Plan.of(job.plan)
            one = plan.frames == 1
            return Given(
                id=id, path=self.results.master(id), kind="video", size=plan.size, frames=plan.frames,
                fps=None if one else plan.fps,
            )  # fmt: skip
        found = self.store.file(id)
        if found is None or client not in (None, found[0]):
            return None
        body = found[1]
        ending = {"image": ".png", "video": ".mkv"}[body["kind"]]
        return Given(
            id=id, path=self.store.uploads / f"{id}{ending}", kind=body["kind"],
            size=(body["height"], body["width"]), frames=body["frames"], fps=body["fps"],
        )  # fmt: skip

    def _named(self, id: str) -> Given:
        """For the commands of jobs whose files may be gone."""
        return self.given(id) or Given(id=id, path=Path(), kind="video", size=(0, 0))

    def _given(self, request: VideoRequest, client: str) -> dict[str, Given]:
        found = {}
        for id in planning.given_ids(request):
            one = self.given(id, client)
            if one is None or not one.path.is_file():
                raise ApiError(f"{id}: there is no such file, or it has expired", status=404, param="files",
                               code="file_not_found")  # fmt: skip
            found[id] = one
        return found

    # The devices' thread.

    def _again(self, job: Job) -> None:
        """A job of an earlier life of the server."""
        if job.starts >= MOST_STARTS:
            live = Live(job)
            self._fail(live, f"the server ended {job.starts} times while it made this video", "server_error")
            return
        job.status, job.progress, job.started = "queued", 0, None
        self.store.save(job)
        self._enqueue([Live(job)])

    def _enqueue(self, lives: Sequence[Live]) -> None:
        for live in lives:
            self._live[live.job.id] = live
        self._queue.put([self._waiting(live) for live in lives])
        self._wake.set()

    def _waiting(self, live: Live) -> Waiting:
        job, plan = live.job, Plan.of(live.job.plan)
        try:
            key = planning.batch_key(plan, self.generator, pack=self.settings.pack)
        except VditError:
            key = None
        pixels = plan.made * plan.size[0] * plan.size[1]
        return Waiting(
            id=job.id, address=live.address, client=job.client, priority=job.priority, key=key,
            work=float(pixels * plan.sampling.get("steps", self.generator.experiment.sample.steps)),
        )  # fmt: skip

    def _room(self, first: Waiting) -> int:
        """How many jobs go together: a power of two, so that few programs are compiled."""
        if first.key is None:
            return 1
        there = min(self._queue.together(first.key), self.settings.batch)
        return 1 << (max(1, there).bit_length() - 1)

    def _work(self) -> None:
        while not self._stopping:
            self._urgent.serve()
            self._expire()
            taken = self._queue.take(self._room)
            if not taken:
                self._wake.wait(0.5)
                self._wake.clear()
                continue
            lives = [live for one in taken if (live := self._live.get(one.id)) is not None]
            try:
                self._run(lives)
            except Stopping:
                return
            except BaseException:  # the thread must not end: every other job waits for it
                log.exception("a job failed in a way that was not expected")
                for live in lives:
                    if not live.job.ended:
                        self._fail(live, "the server failed to make this video", "server_error")

    def _expire(self) -> None:
        now = time.monotonic()
        if now - self._expired < 10.0:
            return
        self._expired = now
        used = {id for live in list(self._live.values()) for id in planning.given_ids(live.request)}
        self.store.expire(time.time(), used)

    def _run(self, lives: Sequence[Live]) -> None:
        lives = [live for live in lives if not self._was_cancelled(live)]
        if not lives:
            return
        for live in lives:
            job = live.job
            job.status, job.started, job.starts = "in_progress", time.time(), job.starts + 1
            self.store.save(job)
            live.changed()
            if self.settings.log_prompts:
                log.info("%s: %r", job.id, live.request.prompt)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", VditWarning)
                self._make(lives)
            self._remark(lives, said)
        except Cancelled:
            pass
        except Stopping:
            for live in lives:
                live.job.status = "queued"
                self.store.save(live.job)
            raise
        except Exception as error:
            if len(lives) > 1:  # find out whose fault it is
                for live in lives:
                    self._run([live])
                return
            self._fail(lives[0], *_said(error))
        for live in lives:
            self._was_cancelled(live)

    def _remark(self, lives: Sequence[Live], said: Sequence[warnings.WarningMessage]) -> None:
        """What vdit warned of while a job was made alone is told to its client."""
        texts = dict.fromkeys(str(one.message) for one in said if issubclass(one.category, VditWarning))
        if texts and len(lives) == 1:
            [live] = lives
            live.job.note = "; ".join(filter(None, [live.job.note, *texts]))[:2000]
            self.store.save(live.job)

    def _was_cancelled(self, live: Live) -> bool:
        if live.cancelled and not live.job.ended:
            self._end(live, "cancelled")
        return live.cancelled

    def _make(self, lives: Sequence[Live]) -> None:
        plans = [Plan.of(live.job.plan) for live in lives]
        prompts, plan = [self._prompt(live) for live in lives], plans[0]
        watcher = Watcher(self, lives, plan)
        watched = dataclasses.replace(self.generator, watch=watcher, drawn=watcher.drawn)
        if planning.batch_key(plan, self.generator, pack=self.settings.pack) is not None:
            self._make_together(lives, plans, prompts, watched)
            return
        [live], [prompt] = lives, prompts
        given = self._given(live.request, live.job.client)
        made = tasks.pieces(plan, live.request, watched, given, seed=live.job.seed, prompt=prompt)
        pieces = watcher.between(piece[0] for piece in made)
        count = self.results.write_master(live.job.id, pieces, plan.fps, grows=plan.task == "rollout")
        if plan.task == "canvas":
            parts = tasks.files_of_canvas(plan, live.request, self.generator, given)
            for name, frames in zip(CANVAS_FILES, parts):
                write_video(self.results.part(live.job.id, name), frames, fps=plan.fps)
        self._publish(live, count, plan.fps)

    def _make_together(
        self, lives: Sequence[Live], plans: Sequence[Plan], prompts: Sequence[str], generator: Generator
    ) -> None:
        """Videos of one method, each as its seed makes it alone: of one shape as a batch, of several in packed rows."""
        method = planning.text_method(plans[0], generator)
        made = [generator.task(method, plan.frames, plan.size) for plan in plans]
        negative = [plan.sampling.get("negative", "") for plan in plans]
        tokens = generator.tokens(prompts), generator.tokens(negative)
        noise = [
            noise_of(generator, [live.job.seed], frames=plan.frames, size=plan.size)[0]
            for live, plan in zip(lives, plans)
        ]
        if len(set(made)) == 1:
            videos = np.asarray(generator.run(made[0], tokens, key_of(0), np.stack(noise)))
        else:
            videos = generator.run_packed(made, tokens, noise, planning.row_size(generator))
        for live, plan, video in zip(lives, plans, videos):
            if live.cancelled:
                continue
            if not np.isfinite(video).all():
                self._fail(live, *_said(NumericsError("what was sampled holds NaN or infinity: lower the guidance")))
                continue
            pixels = np.round((np.clip(video, -1, 1) + 1.0) * 127.5).astype(np.uint8)
            self._publish(live, pixels, plan.fps)

    def _publish(self, live: Live, made: np.ndarray | int, fps: float) -> None:
        """Has a result's files written while the devices go on. made: uint8 [t h w 3], or frames of a master."""
        self._backlog.acquire()
        self._writers.submit(self._write, live, made, fps)

    def _write(self, live: Live, made: np.ndarray | int, fps: float) -> None:
        try:
            if not self._was_cancelled(live):
                id = live.job.id
                count = made if isinstance(made, int) else self.results.write_master(id, iter([made]), fps)
                self.results.publish(id, fps)
                self._finish(live, count)
        except Exception as error:
            self._fail(live, *_said(error))
        finally:
            self._backlog.release()

    def _prompt(self, live: Live) -> str:
        """The prompt that is sampled; the job is told of an expansion."""
        job, request = live.job, live.request
        if not request.expand or self.expander is None or not request.prompt.strip():
            job.prompt_used = request.prompt
        elif job.prompt_used is None:
            task = "video" if not planning.files_in_order(request) else "image"
            made = self._expanded(request.prompt, job.seed, task)
            job.prompt_used = made.text
            if made.note:
                job.note = "; ".join(filter(None, [job.note, f"the prompt is {made.note}"]))
        self.store.save(job)
        live.changed()
        return job.prompt_used

    def look_up(self, lives: Sequence[Live]) -> None:
        """Between two steps: what is urgent, who has cancelled, whether the server ends."""
        self._urgent.serve()
        if self._stopping:
            raise Stopping
        if all(live.cancelled for live in lives):
            raise Cancelled

    def preview(self, lives: Sequence[Live], step: SampledStep) -> None:
        """A picture for those who want one: the first frame, as the network expects it."""
        now = time.monotonic()
        if now - self._previewed < PREVIEW_SECONDS and step.done < step.calls:
            return
        for number, live in enumerate(lives):
            if not live.request.preview or live.cancelled or number >= len(step.estimate):
                continue
            self._show(live, self._seen(step.estimate[number]))

    def _seen(self, latents: np.ndarray) -> np.ndarray:
        """The first frame [h w 3] of latents [t h w c]."""
        with jax.set_mesh(self.generator.mesh):
            return np.asarray(self.generator.vae.decode(latents[None, :1]))[0, 0]

    def show_piece(self, live: Live, frames: np.ndarray) -> None:
        """The newest of the frames [t h w 3] that are made, for one who wants to see them."""
        if live.request.preview and time.monotonic() - self._previewed >= PREVIEW_SECONDS:
            self._show(live, frames[-1])

    def _show(self, live: Live, frame: np.ndarray) -> None:
        self._previewed = time.monotonic()
        if np.isfinite(frame).all():
            live.preview = png_of(frame, longest=PREVIEW_PIXELS)
            live.preview_version = live.version + 1

    # How jobs end.

    def _finish(self, live: Live, frames: int) -> None:
        plan = Plan.of(live.job.plan)
        if frames != plan.frames:  # a file whose head claims another length than it has
            live.job.plan["frames"] = frames
        self._end(live, "completed")

    def _fail(self, live: Live, message: str, kind: str) -> None:
        message = message.replace(f"{self.store.folder}/", "")  # a client sees which file, not where it lies
        live.job.error = {"message": message, "type": kind, "param": None, "code": kind}
        self._end(live, "failed")

    def _end(self, live: Live, status: str) -> None:
        job = live.job
        with self._lock:
            if job.ended:
                return
            job.status, job.completed = status, time.time()
            kept = self.limits.keep_seconds if status == "completed" else min(3600.0, self.limits.keep_seconds)
            job.expires = job.completed + kept
            job.progress = 100 if status == "completed" else job.progress
            self.store.save(job)
            self._live.pop(job.id, None)
            if status != "completed" or self.store.job(job.id) is None:
                self.results.forget(job.id)
        live.changed()

    def info(self) -> dict[str, Any]:
        """For /v1/info."""
        how = {"name": self.settings.name, "examples": self.settings.examples, "expander": self.expander}
        return planning.info(self.generator, self.limits, **how)


def _said(error: Exception) -> tuple[str, str]:
    """(message, type) of an error for the client; what it does not say of the server's inside is logged."""
    if isinstance(error, ApiError | VditError):
        return str(error), "invalid_request_error" if not isinstance(error, NumericsError) else "numerics_error"
    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return "the devices are out of memory for this video: ask for fewer frames or a smaller size", "out_of_memory"
    log.error("a job failed: %s", reason(error), exc_info=error)
    return "the server failed to make this video", "server_error"


def digest_of(request: VideoRequest) -> str:
    """Of what a request asks, for Idempotency-Key."""
    return hashlib.sha256(request.model_dump_json(exclude_defaults=True).encode()).hexdigest()
