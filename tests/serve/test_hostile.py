"""Clients that mean harm, or know no better: no 500, no hang, no file outside the data folder, bounded memory."""

import io
import json
import os
import random
import resource
import socket
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")

from tests.data_paths import DATA
from tests.serve.serving import Client, make_service, serving
from vdit.serve.guard import COOKIE
from vdit.video.write import encode_bytes

FIELDS = (
    "prompt", "model", "seconds", "size", "input_reference", "width", "height", "num_frames", "fps",
    "num_inference_steps", "guidance_scale", "negative_prompt", "seed", "n", "task", "files", "expand", "preview",
    "canvas", "mask", "direction", "strength", "prompts", "blend", "sampler", "window", "priority",
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 1, 2**70, 1.5, 1e308, "", "a", "a" * 10_000, "../../etc/passwd", "\x00", "\ud800", "1e999",
    "<script>", [], [[]], ["x"] * 100, {}, {"a": {"b": []}}, [{"file": "x"}], ["file_" + "0" * 24], "file_" + "f" * 24,
)  # fmt: skip
PATHS = (
    "/v1/videos/../../../etc/passwd", "/v1/videos/..%2f..%2fjobs.sqlite", "/v1/files/..%2fjobs.sqlite/content",
    "/static/../store.py", "/static/%2e%2e/store.py", "/static/..%2fstore.py", "/static//etc/passwd",
    "/static/%00", "/v1/videos/%00", "/v1/videos/" + "a" * 5000, "/v1/videos/video_" + "0" * 24 + "/content?format=exe",
    "/v1/videos?limit=-1", "/v1/videos?limit=1e9", "/v1/videos?after='; drop table jobs; --", "/v1/videos?after=%ff",
    "/v1/videos?order=up", "/%", "/v1/models/%F0%9F", "/v1/files/" + "%2e%2e%2f" * 50, "//", "/v1//videos",
)  # fmt: skip
BODIES = (
    b"", b"{", b"[" * 200_000, b"{\"a\":" * 50_000, b"null", b"[]", b"1" * 100_000, b'"text"', b"\xff\xfe", b"{}" * 9,
    b'{"seed": NaN}', b'{"seed": Infinity}', b'{"seed": ' + b"9" * 5000 + b"}", b'{"prompt": "\\ud800"}',
    b'{"prompt": "' + b"a" * 300_000 + b'"}', b'{"prompt": "a", "prompt": 3}', b"prompt=a",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def service(place):
    return make_service(
        place / "data", waiting=50, waiting_per_client=50, body_seconds=1.5, upload_bytes=4 << 20, upload_frames=64,
        read_seconds=5, stored_files=60, json_bytes=200_000, frames=64, steps=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def client(service):
    with serving(service) as client:
        yield client


def fine(answer) -> None:
    assert answer.status < 500, answer
    if answer.status >= 400 and answer.data and answer.headers.get("content-type") == "application/json":
        assert answer.error["message"].isprintable()


def test_wrong_types_values_and_bodies(client):
    rng = random.Random(0)
    for field in FIELDS:
        for value in rng.sample(VALUES, 9):
            fine(client.post("/v1/videos", {"prompt": "a", "num_inference_steps": 1, field: value}))
        fine(client.form("/v1/videos", {"prompt": "a", field: rng.choice(("", "[", "{}", "-1", "a\x00", "9" * 400))}))
    for body in BODIES:
        for path in ("/v1/videos", "/v1/expand", "/v1/videos/sync", "/v1/files"):
            answer = client.post(path, body, headers={"Content-Type": "application/json"})
            if not (path.endswith("sync") and answer.status == 200):
                fine(answer)
    for kind in ("text/plain", "multipart/form-data", "multipart/form-data; boundary=", "a" * 3000, "\xff"):
        fine(client.post("/v1/videos", b"--x\r\n\r\n", headers={"Content-Type": kind}))
        fine(client.post("/v1/files", b"--x\r\n\r\n", headers={"Content-Type": kind}))
    fine(client.post("/v1/videos", b"--x\r\n" * 1000, headers={"Content-Type": "multipart/form-data; boundary=x"}))
    for key in ("", "k" * 300, "\x7f", "../x"):
        fine(client.post("/v1/videos", {"prompt": "a"}, headers={"Idempotency-Key": key, "X-Client-Id": "\xff" * 99}))
    assert client.get("/health").status == 200


def test_paths_and_methods(client):
    for path in PATHS:
        for method in ("GET", "DELETE", "POST"):
            answer = client.call(method, path.replace(" ", "+"))
            fine(answer)
            assert b"root:" not in answer.data
            assert b"import " not in answer.data
    for method in ("PUT", "PATCH", "OPTIONS", "TRACE", "HEAD", "BREW"):
        for path in ("/", "/v1/videos", "/v1/files", "/health"):
            fine(client.call(method, path))


def test_pages_of_others_may_not_ask(client):
    for headers in (
        {"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}, {"Host": ""},
        {"Sec-Fetch-Site": "cross-site"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "[::1"},
    ):  # fmt: skip
        answer = client.post("/v1/videos", {"prompt": "a"}, headers=headers)
        assert answer.status in (400, 403), headers
        assert "access-control-allow-origin" not in answer.headers
    own = client.post("/v1/videos", {"prompt": "a", "num_inference_steps": 1}, headers={"Origin": client.url})
    assert own.status in (200, 429)
    for path in ("/", "/v1/info", "/v1/videos/none"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]


def uploads() -> dict[str, bytes]:
    """Files that are not what they say, or are far more than they look."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def bomb(side: int, rows: int) -> bytes:
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        packer, data = zlib.compressobj(9), []
        for _ in range(rows):
            data.append(packer.compress(bytes(3 * side + 1)))
        pixels = b"".join([*data, packer.flush()])
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    film = encode_bytes(np.zeros((9, 16, 16, 3), np.uint8), 8, "mp4")
    many = io.BytesIO()
    frames = [Image.new("L", (4, 4), k % 255) for k in range(400)]
    frames[0].save(many, "gif", save_all=True, append_images=frames[1:], duration=125)
    return {
        "empty.mp4": b"", "text.mp4": b"not a video", "cut.mp4": film[: len(film) // 2], "head.mp4": film[:64],
        "flipped.mp4": bytes(255 - b if 40 < i < 400 else b for i, b in enumerate(film)),
        "wide.png": bomb(100_000, 10), "bomb.png": bomb(20_000, 3), "cut.png": bomb(100, 100)[:-40],
        "many.gif": many.getvalue(), "zip.mp4": b"PK\x03\x04" + bytes(5000), "page.html": b"<script>alert(1)</script>",
        "list.m3u8": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "concat.txt": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "svg.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "../../../escape.mp4": b"x", "\x00.png": b"x", "a" * 5000: b"x", "big.bin": bytes(5 << 20),
    }  # fmt: skip


def test_uploads_that_are_not_what_they_say(client, service, place):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    for name, data in uploads().items():
        try:
            answer = client.form("/v1/files", {"file": (name.replace("\x00", "%00"), data)})
        except (ConnectionResetError, BrokenPipeError):  # refused by its size, before it had all come
            assert len(data) > 4 << 20
            continue
        fine(answer)
        assert answer.status in (400, 413, 429), (name, answer)
        assert str(place) not in answer.data.decode()
    assert time.monotonic() - began < 600
    for fields in ({"other": ("a.png", b"x")}, {"file": "text"}, {"file": ("a", b"x"), "more": ("b", b"y")}):
        fine(client.form("/v1/files", fields))
    assert list((place / "data" / "partial").iterdir()) == []
    assert list((place / "data" / "uploads").iterdir()) == []
    assert sorted(path.name for path in place.iterdir()) == ["data"]
    assert not Path("/tmp/escape.mp4").exists()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024  # KiB; the bombs are opened elsewhere
    assert client.form("/v1/files", {"file": ("fine.png", _png())}).status == 200


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 20_000 + b"\r\n",
        b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\n{}",
        b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{",
        b"GET /v1/world HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_raw_bytes_end_in_an_answer_or_a_closed_connection(client, raw):
    with socket.create_connection(("127.0.0.1", client.port), timeout=15) as connection:
        connection.sendall(raw)
        said = b""
        try:
            while part := connection.recv(65536):
                said += part
        except ConnectionResetError:
            pass
    assert not said.startswith(b"HTTP/1.1 5")
    assert client.get("/health").status == 200


def test_slow_clients_keep_nobody_waiting(client):
    """Connections that drip are closed, and others are answered meanwhile."""
    head = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n"
    slow = [socket.create_connection(("127.0.0.1", client.port), timeout=15) for _ in range(20)]
    try:
        for connection in slow:
            connection.sendall(head)
        began = time.monotonic()
        assert client.get("/v1/info").status == 200
        assert time.monotonic() - began < 30
        while time.monotonic() - began < 1.0:
            for connection in slow:
                connection.sendall(b" ")
            time.sleep(0.2)
        for connection in slow:
            assert b" 408 " in connection.recv(65536)
    finally:
        for connection in slow:
            connection.close()


def test_a_token_is_asked_for_everywhere(tmp_path):
    token = "t" * 24
    with serving(make_service(tmp_path), token=token, hosts=None) as client:
        for method, path in [
            ("GET", "/"), ("GET", "/v1/info"), ("POST", "/v1/videos"), ("GET", "/v1/videos"), ("POST", "/v1/files"),
            ("GET", "/static/index.html"), ("GET", "/openapi.json"),
        ]:  # fmt: skip
            assert client.call(method, path).status == 401
            wrong = client.call(method, path, headers={"Authorization": f"Bearer {token[:-1]}x"})
            assert wrong.status == 401
            assert wrong.error["type"] == "authentication_error"
        assert client.get("/health").status == 200
        assert client.get("/v1/info", headers={"Authorization": f"Bearer {token}"}).status == 200
        login = client.get(f"/?token={token}")
        assert login.status == 303
        cookie = login.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert client.get("/v1/info", headers={"Cookie": f"{COOKIE}={token}"}).status == 200
        assert client.get("/v1/info", headers={"Cookie": f"{COOKIE}=x; a=\x80"}).status == 401


def test_a_client_cannot_fill_the_disk(tmp_path):
    with serving(make_service(tmp_path, stored_files=2, stored_bytes=2_000_000)) as client:
        sent = [client.form("/v1/files", {"file": ("a.png", _png())}) for _ in range(3)]
        assert [one.status for one in sent] == [200, 200, 429]
        (tmp_path / "results" / "filler.mkv").write_bytes(bytes(2_100_000))
        time.sleep(2.1)  # how long the count of bytes is kept
        refused = client.post("/v1/videos", {"prompt": "a"})
        assert (refused.status, refused.error["code"]) == (429, "storage_full")


@pytest.mark.slow
def test_500_requests_at_once_and_the_odd_videos(place):
    """Every file of the shared data that is a video or pretends to be, and 500 random requests, from many threads."""
    folder = place / "many"
    odd = [path for path in sorted(DATA.rglob("*")) if path.is_file() and path.stat().st_size < 8 << 20]
    service = make_service(folder, body_seconds=20, upload_bytes=8 << 20, waiting=20, frames=64, steps=8)
    seen, lock = [], threading.Lock()

    def work(client: Client, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            kind = rng.randrange(4)
            if kind == 0:
                fields = {rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.randrange(6))}
                answer = client.post("/v1/videos", json.dumps(fields).encode())
            elif kind == 1:
                answer = client.call(rng.choice(("GET", "POST", "DELETE")), rng.choice(PATHS).replace(" ", "+"))
            elif kind == 2:
                answer = client.post("/v1/videos", rng.choice(BODIES))
            else:
                name, data = rng.choice(list(uploads().items()))
                answer = client.form("/v1/files", {"file": (name.replace("\x00", "%00"), data)}, timeout=300)
            with lock:
                seen.append(answer.status)

    with serving(service) as client:
        threads = [threading.Thread(target=work, args=(client, seed)) for seed in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
            assert not thread.is_alive()
        assert len(seen) == 500
        assert max(seen) < 500
        for file in odd:
            assert client.form("/v1/files", {"file": (file.name, file.read_bytes())}, timeout=300).status < 500, file
        assert client.get("/health").status == 200
    assert sorted(os.listdir(place)) == sorted({"data", "many"} & set(os.listdir(place)))
