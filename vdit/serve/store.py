"""What outlives the server: jobs, uploads and idempotency keys in one SQLite file, beside the folder of their bytes.

Ids are made here, never taken from a client, and files are named by ids alone. A job that was accepted is on disk
before its client hears of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vdit.errors import ConfigError, reason
from vdit.serve.schema import ENDED

VERSION = 1
_TABLES = """
create table if not exists jobs (
    number integer primary key autoincrement, id text unique not null, client text not null, status text not null,
    expires real, body text not null);
create index if not exists jobs_status on jobs (status);
create index if not exists jobs_client on jobs (client, number);
create table if not exists files (
    id text primary key, client text not null, expires real not null, bytes integer not null, body text not null);
create table if not exists keys (
    client text not null, name text not null, digest text not null, ids text not null, expires real not null,
    primary key (client, name));
"""


def new_id(kind: str) -> str:
    """"video_0123...": 96 random bits, so that nobody guesses another's."""
    return f"{kind}_{secrets.token_hex(12)}"


@dataclasses.dataclass(kw_only=True)
class Job:
    """A job as it is kept.

    Attributes:
        id, client: whose it is. status: queued, in_progress, completed, failed or cancelled.
        request: what was asked, as JSON. plan: what it comes to: task, frames, size, fps, made, sampling.
        seed: of this video. priority: among the client's own.
        created, started, completed, expires: seconds of the epoch.
        progress: 0 to 100. prompt_used, note, error: as clients are told.
        ids: of all jobs of the request, where there are several.
        starts: how often it was begun.
    """

    id: str
    client: str
    request: dict[str, Any]
    plan: dict[str, Any]
    seed: int
    created: float
    status: str = "queued"
    priority: int = 0
    started: float | None = None
    completed: float | None = None
    expires: float | None = None
    progress: int = 0
    prompt_used: str | None = None
    note: str | None = None
    error: dict[str, Any] | None = None
    ids: list[str] | None = None
    starts: int = 0

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class Store:
    """The SQLite file and the folders in one data folder. Safe to call from any thread.

    Raises:
        ConfigError: the folder cannot be used, another server uses it, or a newer vdit wrote it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()
        self.results, self.uploads = self.folder / "results", self.folder / "uploads"
        self.partial = self.folder / "partial"
        self._lock = threading.RLock()
        try:
            for part in (self.results, self.uploads):
                part.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir()
            self._base = sqlite3.connect(self.folder / "jobs.sqlite", check_same_thread=False, timeout=1.0)
            self._base.execute("pragma journal_mode=wal")
            self._base.execute("pragma locking_mode=exclusive")
            found = self._base.execute("pragma user_version").fetchone()[0]
            with self._base:
                self._base.executescript(_TABLES)
                self._base.execute(f"pragma user_version={max(found, VERSION)}")
        except (OSError, sqlite3.Error) as error:
            locked = "another server uses it: stop that, or give another --data" if "locked" in str(error) else ""
            raise ConfigError(f"--data {folder}: {locked or reason(error)}") from None
        if found > VERSION:
            raise ConfigError(f"--data {folder}: is of a newer vdit (format {found}): give another folder")

    def close(self) -> None:
        """Ends the use of the file; further calls fail."""
        with self._lock:
            self._base.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._base:
            yield self._base

    def _rows(self, query: str, *values: object) -> list[tuple]:
        with self._lock:
            return self._base.execute(query, values).fetchall()

    def add(self, jobs: Sequence[Job], key: tuple[str, str] | None = None) -> None:
        """Keeps new jobs, all or none. key: (Idempotency-Key, digest of the request)."""
        with self._writing() as base:
            base.executemany(
                "insert into jobs (id, client, status, expires, body) values (?, ?, ?, ?, ?)",
                [(job.id, job.client, job.status, job.expires, _text(job)) for job in jobs],
            )
            if key is not None:
                until = time.time() + 86400.0
                row = (jobs[0].client, *key, json.dumps([job.id for job in jobs]), until)
                base.execute("insert or replace into keys values (?, ?, ?, ?, ?)", row)

    def keyed(self, client: str, name: str) -> tuple[str, list[str]] | None:
        """(digest, ids of jobs) of an Idempotency-Key that this client has used."""
        rows = self._rows("select digest, ids from keys where client = ? and name = ?", client, name)
        return (rows[0][0], json.loads(rows[0][1])) if rows else None

    def save(self, job: Job) -> None:
        """Writes a job's state; nothing where it was deleted meanwhile."""
        with self._writing() as base:
            base.execute(
                "update jobs set status = ?, expires = ?, body = ? where id = ?",
                (job.status, job.expires, _text(job), job.id),
            )

    def job(self, id: str) -> Job | None:
        rows = self._rows("select body from jobs where id = ?", id)
        return Job(**json.loads(rows[0][0])) if rows else None

    def jobs(self, client: str | None, *, limit: int, after: str | None, newest: bool = True) -> list[Job]:
        """Of one client (None: of all), in the order in which they came, from the one after `after` on."""
        sign, order = ("<", "desc") if newest else (">", "asc")
        rows = self._rows(
            f"select body from jobs where (?1 is null or client = ?1) and "
            f"(?2 is null or number {sign} (select number from jobs where id = ?2)) order by number {order} limit ?3",
            client, after, limit,
        )  # fmt: skip
        return [Job(**json.loads(row[0])) for row in rows]

    def unended(self) -> list[Job]:
        """Jobs that were accepted and have not ended, the oldest first."""
        marks = ",".join("?" * len(ENDED))
        rows = self._rows(f"select body from jobs where status not in ({marks}) order by number", *ENDED)
        return [Job(**json.loads(row[0])) for row in rows]

    def delete(self, id: str) -> None:
        """Forgets a job and its files."""
        with self._writing() as base:
            base.execute("delete from jobs where id = ?", (id,))
        for file in self.results.glob(f"{id}*"):
            file.unlink(missing_ok=True)

    def add_file(self, id: str, client: str, expires: float, body: dict[str, Any]) -> None:
        with self._writing() as base:
            row = (id, client, expires, body["bytes"], json.dumps(body))
            base.execute("insert into files values (?, ?, ?, ?, ?)", row)

    def file(self, id: str) -> tuple[str, dict[str, Any]] | None:
        """(whose it is, what is known of it)."""
        rows = self._rows("select client, body from files where id = ?", id)
        return (rows[0][0], json.loads(rows[0][1])) if rows else None

    def delete_file(self, id: str) -> None:
        with self._writing() as base:
            base.execute("delete from files where id = ?", (id,))
        for file in self.uploads.glob(f"{id}*"):
            file.unlink(missing_ok=True)

    def files_of(self, client: str | None = None) -> int:
        """How many uploads a client has; None: of all."""
        return self._rows("select count(*) from files where ?1 is null or client = ?1", client)[0][0]

    def used_bytes(self) -> int:
        """Of uploads and results, and of what is kept of jobs."""
        total = 0
        for folder in (self.folder, self.results, self.uploads, self.partial):
            for file in folder.iterdir():
                with contextlib.suppress(OSError):
                    total += file.stat().st_size
        return total

    def expire(self, now: float, used: set[str] = frozenset()) -> list[str]:
        """Forgets what is kept no longer; gives the ids. used: files that jobs still read."""
        jobs = [row[0] for row in self._rows("select id from jobs where expires < ?", now)]
        files = [row[0] for row in self._rows("select id from files where expires < ?", now) if row[0] not in used]
        for id in jobs:
            self.delete(id)
        for id in files:
            self.delete_file(id)
        with self._writing() as base:
            base.execute("delete from keys where expires < ?", (now,))
        return jobs + files


def _text(job: Job) -> str:
    return json.dumps(dataclasses.asdict(job))
