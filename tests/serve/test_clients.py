"""Public clients: openai's own, curl through every route, and a schema test of all of them."""

import json
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("fastapi")

from tests import tiny
from tests.serve.serving import make_service, quick, serving
from vdit.video.read import read_video
from vdit.video.write import encode_bytes

H, W = tiny.SIZE


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_openai_client_makes_and_fetches_a_video(tmp_path):
    openai = pytest.importorskip("openai")
    with serving(make_service(tmp_path, quick(pause=0.01))) as client:
        api = openai.OpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in api.models.list().data] == ["tiny"]
        film = encode_bytes(np.full((9, H, W, 3), 90, np.uint8), 8, "mp4")
        job = api.videos.create(prompt="a dog", seconds="1", size=f"{W}x{H}", extra_body={"seed": 3})
        while job.status not in ("completed", "failed"):
            job = api.videos.retrieve(job.id)
        assert (job.status, job.progress, job.error, job.size) == ("completed", 100, None, f"{W}x{H}")
        assert len(read_video(api.videos.download_content(job.id).read()).frames) == 9
        picture = api.videos.download_content(job.id, variant="thumbnail").read()
        assert picture.startswith(b"\x89PNG")
        longer = api.videos.create(prompt="on", input_reference=("dog.mp4", film), seconds="1")
        assert longer.id in [one.id for one in api.videos.list()]
        assert api.videos.delete(job.id).deleted
        with pytest.raises(openai.NotFoundError) as missing:
            api.videos.retrieve(job.id)
        assert missing.value.code == "video_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            api.videos.create(prompt="a", size="17x16")
        assert wrong.value.param == "size"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_through_every_route(tmp_path):
    """As a shell calls it; which routes there are, the server's own document says."""
    called: set[tuple[str, str]] = set()
    for name, value in (("dog", 90), ("white", 255)):
        (tmp_path / f"{name}.mp4").write_bytes(encode_bytes(np.full((9, H, W, 3), value, np.uint8), 8, "mp4"))

    with serving(make_service(tmp_path, quick(pause=0.01))) as client:

        def curl(method: str, route: str, *options: str, **named: str) -> bytes:
            called.add((method, route))
            where = client.url + route.format(**named)
            done = subprocess.run(["curl", "-sSN", "--fail-with-body", "-X", method, where, *options],
                                  capture_output=True, timeout=120, check=False)  # fmt: skip
            assert done.returncode == 0, (route, done.stderr, done.stdout)
            return done.stdout

        def job(*options: str) -> str:
            made = json.loads(curl("POST", "/v1/videos", *options))
            events = curl("GET", "/v1/videos/{id}/events", id=made["id"]).decode()
            assert '"status": "completed"' in events
            assert json.loads(curl("GET", "/v1/videos/{id}", id=made["id"]))["status"] == "completed"
            return made["id"]

        sent = lambda **body: ("-H", "Content-Type: application/json", "-d", json.dumps(body))  # noqa: E731
        for route in ("/health", "/v1/models", "/v1/info", "/v1/videos"):
            json.loads(curl("GET", route))
        assert json.loads(curl("GET", "/v1/models/{model}", model="tiny"))["id"] == "tiny"
        file, white, black = (json.loads(curl("POST", "/v1/files", "-F", f"file=@{tmp_path / name}.mp4"))["id"]
                              for name in ("dog", "white", "dog"))  # fmt: skip
        assert json.loads(curl("GET", "/v1/files/{id}", id=file))["id"] == file
        assert len(read_video(curl("GET", "/v1/files/{id}/content", id=file)).frames) == 9

        text = job(*sent(prompt="a dog", num_frames=9))
        tasks = {
            "animate": {"num_frames": 9}, "extend": {"num_frames": 8}, "loop": {"num_frames": 8}, "edit": {},
            "connect": {"num_frames": 8, "files": [file, file]}, "outpaint": {"size": f"{2 * W}x{H}"},
            "inpaint": {"mask": white}, "rollout": {"num_frames": 17, "files": []},
        }  # fmt: skip
        for task, body in tasks.items():
            job(*sent(**{"prompt": "a dog", "task": task, "files": [file]} | body))
        refused = json.loads(curl("POST", "/v1/videos", *sent(prompt="a", task="inpaint", files=[file], mask=black)))
        curl("GET", "/v1/videos/{id}/events", id=refused["id"])
        error = json.loads(curl("GET", "/v1/videos/{id}", id=refused["id"]))["error"]["message"]
        assert black in error
        assert str(tmp_path) not in error
        assert len(read_video(curl("GET", "/v1/videos/{id}/content", id=text)).frames) == 9
        assert curl("POST", "/v1/videos/sync", *sent(prompt="a dog", num_frames=9))
        rolled = json.loads(curl("POST", "/v1/videos", *sent(prompt="a", task="rollout", num_frames=17)))["id"]
        assert curl("GET", "/v1/videos/{id}/stream", id=rolled)
        waiting = json.loads(curl("POST", "/v1/videos", *sent(prompt="a", task="rollout", num_frames=40)))["id"]
        curl("POST", "/v1/videos/{id}/cancel", id=waiting)
        curl("DELETE", "/v1/videos/{id}", id=text)
        curl("DELETE", "/v1/files/{id}", id=file)
        every = {(method.upper(), route) for route, methods in client.get("/openapi.json").json["paths"].items()
                 for method in methods}  # fmt: skip
        # A model without an expander refuses to expand (test_api.py); a websocket is no call of curl's.
        assert every - called <= {("POST", "/v1/expand"), ("GET", "/v1/world")}


@pytest.mark.slow
def test_every_route_keeps_its_schema(tmp_path):
    """schemathesis: requests drawn from the OpenAPI document, right and wrong ones; no 500, answers as documented."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    service = make_service(tmp_path, waiting=40, waiting_per_client=40, frames=40, steps=4, body_seconds=10)
    with serving(service) as client:
        schema = schemathesis.openapi.from_url(f"{client.url}/openapi.json")
        routes = set()
        for result in schema.get_all_operations():
            operation = result.ok()
            if operation.path == "/v1/world":
                continue
            routes.add((operation.method.upper(), operation.path))

            @given(case=operation.as_strategy())
            @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
            def check(case):
                case.call_and_validate(
                    base_url=client.url,
                    timeout=60,
                    excluded_checks=[
                        schemathesis.checks.CHECKS.get_one(name)
                        for name in ("unsupported_method", "positive_data_acceptance", "missing_required_header")
                    ],
                )

            check()
        assert len(routes) >= 16
        assert client.get("/health").status == 200
