"""An OpenAI-compatible server on loopback that misbehaves as it is told."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from tests.loopback import Loopback, _Handler

GOOD = json.dumps({"short": "A dog runs.", "detailed": "A brown dog runs over the green grass of a wide field, and "
                   "the sky above it is blue.", "camera": "static"})  # fmt: skip
REPEATED = json.dumps({"short": "A dog.", "detailed": "the dog runs and " * 60, "camera": "static"})
GERMAN = json.dumps({"short": "Ein Hund läuft.", "detailed": "Ein brauner Hund läuft über die grüne Wiese und der "
                     "Himmel ist blau, während die Sonne über dem Feld scheint.", "camera": "static"})  # fmt: skip
UNICODE = json.dumps({"short": "A café sign “Zürich – 東京” 🐕.", "detailed": "A dog 🐕 sits in front of a café; the "
                      "sign above the door reads “Zürich – 東京”, and people walk past.", "camera": "pans left"},
                     ensure_ascii=False)  # fmt: skip
REFUSAL = "I'm sorry, but I can't help with that."

# What the server can do instead of answering well. The first eight go away with another try of the request.
FAULTS = ("500", "slow", "truncated", "reset", "429", "html", "cut_json", "huge")
ANSWERS = {"refusal": REFUSAL, "german": GERMAN, "repetition": REPEATED, "empty": "", "unicode": UNICODE}


class Stub(Loopback):
    """Serves /v1/chat/completions.

    plan: called with the number of the request, from 0, and its body; gives the name of a fault or of an answer, a text
    to answer, or None for GOOD. requests: bodies so far.
    """

    def __init__(self, plan: Callable[[int, dict], str | None] | Iterable[str | None] = lambda number, body: None):
        if callable(plan):
            self.plan = plan
        else:
            steps = list(plan)
            self.plan = lambda number, body: steps[number] if number < len(steps) else None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.slow, self.retry_after = 5.0, "0.05"

    @property
    def base(self) -> str:
        return f"{self.url}/v1"

    class handler(_Handler):
        def do_POST(self) -> None:
            stub: Stub = self.server.store
            body = json.loads(self.body())
            with stub.lock:
                number = len(stub.requests)
                stub.requests.append(body)
                stub.headers.append(dict(self.headers.items()))
            step = stub.plan(number, body)
            if step in FAULTS:
                getattr(self, f"fault_{step}")(stub)
                return
            text = GOOD if step is None else ANSWERS.get(step, step)
            self.answer(text)

        def answer(self, text: str) -> None:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 100, "completion_tokens": 20}
            self.send_json({"choices": [choice], "usage": usage})

        def fault_500(self, stub: Stub) -> None:
            self.send(500, b"oops")

        def fault_slow(self, stub: Stub) -> None:
            time.sleep(stub.slow)
            self.answer(GOOD)

        def fault_truncated(self, stub: Stub) -> None:
            """Fewer bytes than were announced."""
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"mess')
            self.close_connection = True

        def fault_reset(self, stub: Stub) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def fault_429(self, stub: Stub) -> None:
            self.send(429, b'{"error": {"message": "slow down"}}', Retry_After=stub.retry_after)

        def fault_html(self, stub: Stub) -> None:
            self.send(200, b"<html><body>Gateway</body></html>", Content_Type="text/html")

        def fault_cut_json(self, stub: Stub) -> None:
            self.send(200, b'{"choices": [{"message": {"content": "a d', Content_Type="application/json")

        def fault_huge(self, stub: Stub) -> None:
            """Sends as much as the client takes."""
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 30))
            self.end_headers()
            try:
                for _ in range(1 << 10):
                    self.wfile.write(b"x" * (1 << 20))
            except OSError:
                pass
            self.close_connection = True
