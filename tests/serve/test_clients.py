"""Public clients: openai's own, and a schema test of every route."""

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
                    base_url=client.url, timeout=60,
                    excluded_checks=[
                        schemathesis.checks.CHECKS.get_one(name)
                        for name in ("unsupported_method", "positive_data_acceptance", "missing_required_header")
                    ],
                )

            check()
        assert len(routes) >= 16
        assert client.get("/health").status == 200
