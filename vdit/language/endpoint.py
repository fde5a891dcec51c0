"""Language models behind an OpenAI-compatible server: vLLM, llama.cpp, SGLang, hosted models.

    export OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_API_KEY=...
    model = Endpoint.from_environment("qwen3-vl-8b")
    [completion] = model.complete([Request(messages=(user("Say hello."),))], GenerationOptions(max_tokens=16))

What a server does wrong is tried again: lost connections, answers that are cut off, late or no JSON, status 408, 409,
429 and 5xx. Waits double, with jitter, up to `longest_wait`; a server's Retry-After goes before them. Other refusals
(a wrong key, an unknown model) are errors at once. Answers are bounded in bytes and time, and no redirect is followed.
"""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import email.utils
import io
import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vdit import paths
from vdit.errors import ConfigError, LanguageError, one_line
from vdit.language.base import Completion, GenerationOptions, Message, Request, parts_of
from vdit.language.http import Answer, HttpFailure, check_url, post
from vdit.reprs import short_repr

URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
_AGAIN = (408, 409, 429)  # and 5xx
_SHORTEST_WAIT = 0.5  # seconds
_DEPTH = 32  # of JSON in an answer
_QUALITY = 90  # of JPEG


@dataclasses.dataclass
class Usage:
    """What an endpoint was asked for, over all threads.

    requests: that were sent, those that failed too. retries: of them, those that were sent again.
    tokens_in, tokens_out: as the server counts them.
    """

    requests: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointLimits:
    """How hard a server is asked.

    Attributes:
        concurrency: requests at a time.
        per_minute: requests a minute, retries counted; 0 for no limit.
        seconds: for one request, from the connection to the last byte.
        answer_bytes: of one answer.
        retries: of one request.
        longest_wait: seconds between two tries. A Retry-After above it is an error: the server is out for longer.
    """

    concurrency: int = 4
    per_minute: float = 0.0
    seconds: float = 120.0
    answer_bytes: int = 4 << 20
    retries: int = 6
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("per_minute", 0), ("seconds", 0.01), ("answer_bytes", 1),
                            ("retries", 0), ("longest_wait", 0)):  # fmt: skip
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {least} or more")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A chat model behind `url`/chat/completions. A `TextModel`.

    Attributes:
        name: of the model, as the server knows it.
        url: of the server, up to and with /v1.
        key: sent as a bearer token; "" for none. It is in no message, file or repr.
        limits: how hard the server is asked.
        usage: counts of all that was sent.
    """

    name: str
    url: str
    key: str = dataclasses.field(default="", repr=False)
    limits: EndpointLimits = EndpointLimits()
    usage: Usage = dataclasses.field(default_factory=Usage, compare=False)
    _gate: _Gate = dataclasses.field(default_factory=lambda: _Gate(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", check_url(self.url, URL))
        if not self.name.strip():
            raise ConfigError("the endpoint's model has no name: give the one that the server lists at /models")
        if not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError(f"{KEY} holds characters that no header may: check the key")

    @classmethod
    def from_environment(cls, name: str, limits: EndpointLimits = EndpointLimits()) -> Endpoint:
        """The endpoint at OPENAI_BASE_URL, with the key in OPENAI_API_KEY, if there is one.

        Raises:
            ConfigError: OPENAI_BASE_URL is not set, or no address.
        """
        url = os.environ.get(URL, "").strip()
        if not url:
            raise ConfigError(f"{URL} is not set: export the server's address, such as http://localhost:8000/v1")
        return cls(name=name, url=url, key=os.environ.get(KEY, "").strip(), limits=limits)

    def complete(self, requests: Sequence[Request], options: GenerationOptions) -> list[Completion]:
        """Answers each request, `limits.concurrency` at a time; see TextModel.

        Raises:
            LanguageError: the server refuses a request, or does not answer it after all retries.
        """
        if len(requests) == 1:
            return [self._answer(requests[0], options)]
        with concurrent.futures.ThreadPoolExecutor(self.limits.concurrency) as pool:
            futures = [pool.submit(self._answer, request, options) for request in requests]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _answer(self, request: Request, options: GenerationOptions) -> Completion:
        data = json.dumps(_body(self.name, request, options)).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        jitter, problem, wait = random.Random(request.digest(options.seed)), "", 0.0
        for attempt in range(self.limits.retries + 1):
            if attempt:
                self._wait(wait, attempt, jitter)
            self._gate.enter(self.limits.per_minute)
            self.usage.add(requests=1, retries=int(attempt > 0))
            wait = 0.0
            try:
                answer = post(f"{self.url}/chat/completions", data, headers, seconds=self.limits.seconds,
                              limit=self.limits.answer_bytes)  # fmt: skip
                if answer.status != 200:
                    problem, wait = self._refused(answer)
                    continue
                completion = _read(answer.body)
            except HttpFailure as reason:
                problem = str(reason)
                continue
            self.usage.add(tokens_in=completion.tokens_in, tokens_out=completion.tokens_out)
            return completion
        tries = self.limits.retries + 1
        raise LanguageError(f"{self.url}: no answer after {tries} tries; the last time: {problem}; is the server well?")

    def _wait(self, asked: float, attempt: int, jitter: random.Random) -> None:
        """Waits before another try: as long as the server asks, else twice as long each time, give or take a half."""
        usual = min(self.limits.longest_wait, _SHORTEST_WAIT * 2 ** (attempt - 1)) * jitter.uniform(0.5, 1.5)
        time.sleep(min(asked or usual, self.limits.longest_wait))

    def _refused(self, answer: Answer) -> tuple[str, float]:
        """(what the server said, seconds that it asks to wait); LanguageError where another try is of no use."""
        said = _message_of(answer.body)
        problem = f"status {answer.status}{f' ({said})' if said else ''}"
        if answer.status in (401, 403):
            raise LanguageError(f"{self.url}: {problem}: set {KEY} to a key that may use {self.name!r}")
        if answer.status == 404:
            raise LanguageError(f"{self.url}: {problem}: check {URL} (does it end in /v1?) and the model {self.name!r}")
        if answer.status not in _AGAIN and answer.status < 500:
            raise LanguageError(f"{self.url}: {problem}: the server refuses this request")
        wait = _retry_after(answer.headers.get("retry-after", ""))
        if wait > self.limits.longest_wait:
            raise LanguageError(f"{self.url}: {problem}: asks to wait {wait:.0f} s: start the same command again then")
        return problem, wait


class _Gate:
    """Lets so many requests through a minute, evenly, over all threads."""

    def __init__(self) -> None:
        self._lock, self._next = threading.Lock(), 0.0

    def enter(self, per_minute: float) -> None:
        if not per_minute:
            return
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + 60.0 / per_minute
        time.sleep(at - now)


def _body(name: str, request: Request, options: GenerationOptions) -> dict[str, Any]:
    """The request as an OpenAI-compatible server reads it. Frames are JPEG images, each after its time."""
    body = {
        "model": name,
        "messages": [_message(message) for message in request.messages],
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": options.seed % 2**31,
    }
    if options.top_p != 1.0:
        body["top_p"] = options.top_p
    if options.stop:
        body["stop"] = list(options.stop)
    return body


def _message(message: Message) -> dict[str, Any]:
    parts = parts_of(message)
    if all(isinstance(part, str) for part in parts):
        return {"role": message["role"], "content": "\n".join(parts)}
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
            continue
        for number, pixels in enumerate(part.pixels):
            if part.times:
                content.append({"type": "text", "text": f"Frame at {part.times[number]:.1f} s:"})
            content.append({"type": "image_url", "image_url": {"url": _jpeg(pixels)}})
    return {"role": message["role"], "content": content}


def _jpeg(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def _read(body: bytes) -> Completion:
    """The completion in an answer; HttpFailure where there is none."""
    try:
        answer = paths.parse_json(body.decode(), name="the answer", depth=_DEPTH, error=LanguageError)
        choice = answer["choices"][0]
        message, usage = choice["message"], answer.get("usage") or {}
        text = message.get("content")
        if text is None and message.get("refusal"):
            return _completion("", "filter", usage)
        if not isinstance(text, str):
            raise TypeError
        reason = choice.get("finish_reason")
        finish = {"length": "length", "content_filter": "filter"}.get(reason, "stop")
        return _completion(text, finish, usage)
    except (LanguageError, ValueError, LookupError, TypeError, AttributeError):
        begin = one_line(body[:80].decode(errors="replace"))
        raise HttpFailure(f"the answer is no chat completion: {begin!r}") from None


def _completion(text: str, finish: Any, usage: Mapping[str, Any]) -> Completion:
    counts = {}
    for ours, theirs in (("tokens_in", "prompt_tokens"), ("tokens_out", "completion_tokens")):
        count = usage.get(theirs, 0)
        counts[ours] = count if type(count) is int and 0 <= count < 2**40 else 0
    return Completion(text=text, finish_reason=finish, **counts)


def _message_of(body: bytes) -> str:
    """What an error's body says, in a few words; "" where it is no JSON."""
    try:
        error = json.loads(body[:65536]).get("error")
        said = error.get("message") if isinstance(error, dict) else error
        return one_line(said)[:200] if isinstance(said, str) else ""
    except (ValueError, AttributeError, RecursionError):
        return ""


def _retry_after(value: str) -> float:
    """Seconds from now; 0 where the header says nothing. It holds a number of seconds or a date."""
    try:
        return max(0.0, min(float(value), 1e6))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
