"""The endpoint back end against a server that misbehaves: every fault is waited out or named, in bounded time."""

import time

import numpy as np
import pytest

from tests.language.stub import FAULTS, Stub
from vdit.errors import ConfigError, LanguageError, ShapeError
from vdit.language.base import Frames, GenerationOptions, Request, system, user
from vdit.language.endpoint import Endpoint, EndpointLimits

OPTIONS = GenerationOptions(max_tokens=32)
LIMITS = EndpointLimits(seconds=0.4, longest_wait=0.02, retries=2, answer_bytes=1 << 16)


def ask(stub, limits=LIMITS, **more):
    model = Endpoint(name="m", url=stub.base, limits=limits, **more)
    return model, model.complete([Request(messages=(user("hello"),))], OPTIONS)[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again_and_then_answered(fault):
    with Stub([fault, fault]) as stub:
        stub.slow, stub.retry_after = 0.8, "0.01"
        began = time.monotonic()
        model, completion = ask(stub)
    assert completion.text.startswith("{")
    assert len(stub.requests) == 3
    assert model.usage.requests == 3
    assert model.usage.retries == 2
    assert (model.usage.tokens_in, model.usage.tokens_out) == (100, 20)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("fault", ["500", "truncated", "html", "huge"])
def test_a_fault_that_stays_is_one_error(fault):
    with Stub(lambda number, body: fault) as stub, pytest.raises(LanguageError, match="3 tries"):
        ask(stub)
    assert len(stub.requests) == 3


def test_a_server_that_drips_is_late():
    """Each byte comes in time; the whole answer does not."""
    class Drip(Stub):
        class handler(Stub.handler):
            def answer(self, text):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                try:
                    for _ in range(40):
                        self.wfile.write(b"x")
                        self.wfile.flush()
                        time.sleep(0.1)
                except OSError:
                    pass

    began = time.monotonic()
    with Drip() as stub, pytest.raises(LanguageError, match=r"within 0\.4 s"):
        ask(stub, EndpointLimits(seconds=0.4, retries=0))
    assert time.monotonic() - began < 2


def test_retry_after_is_waited_for_and_a_long_one_is_an_error():
    with Stub(["429"]) as stub:
        stub.retry_after = "0.3"
        began = time.monotonic()
        ask(stub, EndpointLimits(seconds=2, longest_wait=1))
        assert 0.3 <= time.monotonic() - began < 1.5
    with Stub(["429"]) as stub:
        stub.retry_after = "3600"
        with pytest.raises(LanguageError, match="3600"):
            ask(stub)
    assert len(stub.requests) == 1


def test_a_refused_key_is_an_error_at_once_and_is_not_shown(monkeypatch):
    class Closed(Stub):
        class handler(Stub.handler):
            def do_POST(self):
                self.server.store.headers.append(dict(self.headers.items()))
                self.body()
                self.send_json({"error": {"message": "wrong key"}}, 401)

    with Closed() as stub:
        monkeypatch.setenv("OPENAI_BASE_URL", stub.base + "/")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        model = Endpoint.from_environment("m", LIMITS)
        with pytest.raises(LanguageError, match="wrong key") as caught:
            model.complete([Request(messages=(user("hello"),))], OPTIONS)
    assert stub.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in f"{caught.value} {model!r}"


def test_no_redirect_is_followed():
    class Elsewhere(Stub):
        class handler(Stub.handler):
            def do_POST(self):
                self.server.store.requests.append(self.path)
                self.body()
                self.send(307, Location="/v1/other")

    with Elsewhere() as stub, pytest.raises(LanguageError, match="307"):
        ask(stub)
    assert stub.requests == ["/v1/chat/completions"]


def test_many_requests_are_answered_in_their_order_a_few_at_a_time():
    running, most = [], []

    def plan(number, body):
        running.append(number)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return "500" if number == 2 else body["messages"][0]["content"]

    with Stub(plan) as stub:
        model = Endpoint(name="m", url=stub.base, limits=EndpointLimits(concurrency=3, longest_wait=0.01))
        texts = [f"text {i}" for i in range(8)]
        done = model.complete([Request(messages=(user(text),)) for text in texts], OPTIONS)
    assert [one.text for one in done] == texts
    assert max(most) <= 3


def test_the_rate_limit_holds_over_threads():
    with Stub() as stub:
        model = Endpoint(name="m", url=stub.base, limits=EndpointLimits(concurrency=4, per_minute=600))
        began = time.monotonic()
        model.complete([Request(messages=(user(str(i)),)) for i in range(6)], OPTIONS)
        assert time.monotonic() - began >= 0.5


def test_frames_go_as_jpeg_with_their_times():
    video = np.zeros((2, 16, 16, 3), np.uint8)
    with Stub() as stub:
        model = Endpoint(name="m", url=stub.base, limits=LIMITS)
        request = Request(messages=(system("Be brief."), user("What is it?", Frames(pixels=video, times=(0.0, 1.5)))))
        model.complete([request], GenerationOptions(max_tokens=7, temperature=0.5, stop=("\n",), seed=3))
    body = stub.requests[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    kinds = [part["type"] for part in body["messages"][1]["content"]]
    assert kinds == ["text", "text", "image_url", "text", "image_url"]
    assert "1.5 s" in body["messages"][1]["content"][3]["text"]
    assert body["messages"][1]["content"][2]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert (body["max_tokens"], body["temperature"], body["stop"], body["seed"]) == (7, 0.5, ["\n"], 3)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1", "http://host:port/v1", "http://u:p@host/v1"])
def test_an_address_that_is_none_is_refused(url, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        Endpoint.from_environment("m")


def test_requests_and_options_are_checked_where_they_are_built():
    with pytest.raises(ConfigError, match="messages"):
        Request(messages=())
    with pytest.raises(ConfigError, match="wizard"):
        Request(messages=({"role": "wizard", "content": "hi"},))
    with pytest.raises(ConfigError, match="int"):
        Request(messages=({"role": "user", "content": [3]},))
    with pytest.raises(ShapeError, match="float32"):
        Frames(pixels=np.zeros((1, 4, 4, 3), np.float32))
    for wrong in ({"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"stop": ("",)}, {"seed": -1}):
        with pytest.raises(ConfigError):
            GenerationOptions(**wrong)


def test_a_digest_changes_with_text_pixels_and_options():
    video = np.zeros((1, 4, 4, 3), np.uint8)
    other = video.copy()
    other[0, 0, 0, 0] = 1
    requests = [Request(messages=(user("a", Frames(pixels=pixels)),)) for pixels in (video, other)]
    requests.append(Request(messages=(user("b", Frames(pixels=video)),)))
    digests = [request.digest() for request in requests] + [requests[0].digest(1)]
    assert len(set(digests)) == 4
    assert requests[0].digest() == Request(messages=(user("a", Frames(pixels=video.copy())),)).digest()
