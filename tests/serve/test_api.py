"""The routes, as a client calls them: a real server on loopback, and a generator that makes noise at once."""

import contextlib
import http.client
import io
import json
import re
import shlex
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")

import vdit
from tests import tiny
from tests.serve.serving import Client, make_service, quick, serving
from vdit.cli.main import parse
from vdit.video.read import probe, read_video
from vdit.video.write import encode_bytes

H, W = tiny.SIZE


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return make_service(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def client(service):
    with serving(service) as client:
        yield client


def png(height=H, width=W, value=200) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def clip(frames=9, value=90) -> bytes:
    return encode_bytes(np.full((frames, H, W, 3), value, np.uint8), 8, "mkv")


@pytest.fixture(scope="module")
def video(client):
    return client.form("/v1/files", {"file": ("../../etc/dog.mkv", clip())}).json


@pytest.fixture(scope="module")
def image(client):
    return client.form("/v1/files", {"file": ("dog.png", png())}).json


def test_a_prompt_becomes_a_video(client, tmp_path):
    job = client.post("/v1/videos", {"prompt": "a dog", "num_frames": 9, "seed": 5, "num_inference_steps": 3}).json
    assert job["object"] == "video"
    assert (job["size"], job["frames"], job["seconds"], job["seed"]) == (f"{W}x{H}", 9, "1.125", 5)
    done = client.ended(job["id"])
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    assert done["expires_at"] > done["completed_at"] >= done["created_at"]
    for format, kind in {"mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif", "mkv": "x-matroska"}.items():
        answer = client.get(f"/v1/videos/{job['id']}/content?format={format}")
        assert kind in answer.headers["content-type"]
        file = tmp_path / f"v.{format}"
        file.write_bytes(answer.data)
        assert (probe(file).height, probe(file).width, len(read_video(file).frames)) == (H, W, 9)
    picture = client.get(f"/v1/videos/{job['id']}/content?variant=thumbnail").data
    assert Image.open(io.BytesIO(picture)).size == (W, H)
    part = client.get(f"/v1/videos/{job['id']}/content", headers={"Range": "bytes=0-9"})
    assert (part.status, len(part.data)) == (206, 10)  # browsers seek
    assert client.call("DELETE", f"/v1/videos/{job['id']}").json["deleted"]
    assert client.get(f"/v1/videos/{job['id']}").status == 404


def test_what_is_served_is_told(client):
    info = client.get("/v1/info").json
    assert info["model"] == "tiny"
    assert (info["defaults"]["size"], info["fps"], info["keys"], info["expand"]) == (f"{W}x{H}", 8.0, None, False)
    assert set(info["tasks"]) >= {"text", "extend", "canvas"}
    assert client.get("/v1/models").json["data"][0]["id"] == "tiny"
    assert client.get("/v1/models/tiny").json["object"] == "model"
    assert client.get("/health").json["status"] == "ok"
    document = client.get("/openapi.json")
    assert "/v1/videos" in document.json["paths"]
    named = set(re.findall(r"#/components/schemas/(\w+)", document.data.decode()))
    assert named <= set(document.json["components"]["schemas"])
    page = client.get("/docs").data.decode()
    assert "num_inference_steps" in page
    assert "<script" not in page
    assert client.post("/v1/expand", {"prompt": "a dog"}).error["code"] == "no_expander"


@pytest.mark.parametrize(
    ("asked", "files", "frames"),
    [
        ({"task": "animate", "num_frames": 9}, ["image"], 9),
        ({"num_frames": 13}, ["image", "image"], 13),
        ({"task": "extend", "num_frames": 8}, ["video"], 17),
        ({"task": "extend", "num_frames": 8, "direction": "backward"}, ["video"], 17),
        ({"task": "extend", "num_frames": 8, "direction": "both"}, ["video"], 25),
        ({"task": "loop", "seconds": 1.0}, ["video"], 17),
        ({"task": "loop", "num_frames": 9}, [], 17),
        ({"task": "connect", "num_frames": 8}, ["video", "video"], 26),
        ({"task": "edit", "strength": 0.5}, ["video"], 9),
        ({"task": "edit", "num_frames": 5}, ["video"], 5),
        ({"task": "inpaint", "mask": "mask"}, ["video"], 9),
        ({"task": "outpaint", "size": f"{2 * W}x{H}"}, ["video"], 9),
        ({"task": "inpaint", "mask": "mask"}, ["image"], 1),
        ({"task": "outpaint", "size": f"{2 * W}x{H}"}, ["image"], 1),
        ({"task": "rollout", "num_frames": 33, "prompts": [{"seconds": 2, "prompt": "b"}]}, [], 33),
        ({"task": "rollout", "num_frames": 21}, ["image"], 21),
        ({"canvas": [{"file": "video"}, {"file": "image", "at_frame": 13, "x": 8, "width": 8, "height": 8}],
          "num_frames": 17}, [], 17),
    ],
)
def test_every_task_makes_its_frames(client, video, image, asked, files, frames):
    """And keeps what was given, bit for bit, where the task does."""
    white = np.zeros((H, W, 3), np.uint8)
    white[:, : W // 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(white).save(buffer, "png")
    ids = {"video": video["id"], "image": image["id"]}
    if "mask" in asked:
        asked = asked | {"mask": client.form("/v1/files", {"file": ("m.png", buffer.getvalue())}).json["id"]}
    if "canvas" in asked:
        asked = asked | {"canvas": [one | {"file": ids[one["file"]]} for one in asked["canvas"]]}
    body = {"prompt": "a", "num_inference_steps": 2, "seed": 1, "files": [ids[name] for name in files]} | asked
    answer = client.post("/v1/videos", body)
    assert answer.status == 200, answer.json
    job = client.ended(answer.json["id"])
    assert (job["status"], job["error"], job["frames"]) == ("completed", None, frames)
    made = read_video(client.get(f"/v1/videos/{job['id']}/content?format=mkv").data).frames
    assert len(made) == frames
    assert (made.max(), made.min()) != (90, 90)
    kept = {
        "extend": slice(8, 17) if job["task"] == "extend" and "direction" in asked else slice(0, 9),
        "loop": slice(0, 9), "connect": slice(0, 9), "canvas": slice(0, 9),
    }.get(job["task"])  # fmt: skip
    if kept is not None and (files or job["task"] == "canvas"):
        assert (made[kept] == 90).all()
    if job["task"] == "animate":
        assert (made[0] == 200).all()
    if job["task"] == "inpaint":
        assert (made[:, :, W // 2 :] == (90 if files == ["video"] else 200)).all()
    if job["task"] == "canvas":
        assert (made[13, :8, 8:16] == 200).all()
        assert (made[12, :8, 8:16] != 200).any()  # an image is one frame
    options, _ = parse(shlex.split(job["command"])[1:])  # the parser takes what clients are shown
    assert options.seed == 1
    compile(job["python"], "call", "exec")


@pytest.mark.parametrize("make", [quick, pytest.param(lambda: tiny.generator(slides=True), marks=pytest.mark.slow)])
def test_the_files_of_a_canvas_make_it_again(tmp_path, make):
    """Those that its command and its Python call name."""
    generator = make()
    with serving(make_service(tmp_path / "data", generator)) as client:
        given = client.form("/v1/files", {"file": ("a.mkv", clip(5))}).json["id"]
        asked = {"canvas": [{"file": given, "at_frame": 2, "x": 8}], "num_frames": 9, "seed": 3, "prompt": "a"}
        job = client.ended(client.post("/v1/videos", asked).json["id"])
        assert job["status"] == "completed", job["error"]
        for name in ("composed", "mask"):
            answer = client.get(f"/v1/videos/{job['id']}/content?variant={name}")
            (tmp_path / f"{job['id']}.{name}.mkv").write_bytes(answer.data)
            assert f"{job['id']}.{name}.mkv" in job["command"]
        made = read_video(client.get(f"/v1/videos/{job['id']}/content?format=mkv").data).frames
        with contextlib.chdir(tmp_path), pytest.MonkeyPatch.context() as patch:
            patch.setattr(vdit, "load", lambda run: generator, raising=False)
            patch.setattr(vdit, "write_video", lambda path, video, fps: np.save("out.npy", video), raising=False)
            exec(job["python"], {})
        again = np.round((np.clip(np.load(tmp_path / "out.npy"), -1, 1) + 1) * 127.5)
        np.testing.assert_array_equal(again, made)
        other = client.ended(client.post("/v1/videos", {"num_frames": 1, "num_inference_steps": 1}).json["id"])
        assert client.get(f"/v1/videos/{other['id']}/content?variant=mask").error["param"] == "variant"
        assert client.call("DELETE", f"/v1/videos/{job['id']}").status == 200
    assert list((tmp_path / "data" / "results").glob(f"{job['id']}*")) == []


def test_a_result_is_given_to_the_next_job(client, video):
    first = client.ended(client.post("/v1/videos", {"prompt": "a", "num_frames": 9}).json["id"])
    job = client.post("/v1/videos", {"task": "extend", "files": [first["id"]], "num_frames": 8}).json
    job = client.ended(job["id"])
    assert job["frames"] == 17
    own, longer = (
        read_video(client.get(f"/v1/videos/{id}/content?format=mkv").data).frames for id in (first["id"], job["id"])
    )
    assert (longer[:9] == own).all()


def test_a_form_brings_its_file(client):
    fields = {"prompt": "a", "seconds": "1", "size": f"{W}x{H}", "input_reference": ("a.png", png())}
    job = client.form("/v1/videos", fields).json
    assert job["task"] == "animate"
    assert client.ended(job["id"])["status"] == "completed"


def test_events_tell_steps_and_pictures_and_then_end(tmp_path):
    with serving(make_service(tmp_path, quick(pause=0.05))) as client:
        asked = {"prompt": "a", "num_inference_steps": 12, "preview": True, "num_frames": 9}
        job = client.post("/v1/videos", asked).json
        lines = client.get(f"/v1/videos/{job['id']}/events").data.decode().replace("\r", "").split("\n\n")
        events = [dict(line.split(": ", 1) for line in one.split("\n")) for one in lines if one.startswith("event")]
        told = [json.loads(one["data"]) for one in events if one["event"] == "progress"]
        assert [one["progress"] for one in told] == sorted(one["progress"] for one in told)
        assert told[-1]["status"] == "completed"
        assert {one["steps"] for one in told[1:-1]} >= {12}
        assert any(one["event"] == "preview" and "png" in json.loads(one["data"]) for one in events)
        done = client.get(f"/v1/videos/{job['id']}/events")
        assert b"completed" in done.data


def test_a_rollout_is_played_while_it_is_made(tmp_path):
    generator = quick(pause=0.1)
    with serving(make_service(tmp_path, generator)) as client:
        job = client.post("/v1/videos", {"task": "rollout", "num_frames": 41, "num_inference_steps": 3}).json
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
        connection.request("GET", f"/v1/videos/{job['id']}/stream", headers={"X-Client-Id": client.name})
        answer = connection.getresponse()
        head = answer.read(64)
        assert b"ftyp" in head
        assert client.get(f"/v1/videos/{job['id']}").json["status"] == "in_progress"
        whole = head + answer.read()
        connection.close()
        assert len(read_video(whole, on_error="keep").frames) == 41
        client.ended(job["id"])
        assert client.get(f"/v1/videos/{job['id']}/stream").headers["content-type"] == "video/mp4"
        other = client.post("/v1/videos", {"num_inference_steps": 8}).json["id"]
        assert client.get(f"/v1/videos/{other}/stream").status in (200, 409)


def test_sync_answers_with_the_bytes(client):
    answer = client.post("/v1/videos/sync?format=mkv", {"prompt": "a", "num_frames": 9})
    assert len(read_video(answer.data).frames) == 9


def test_jobs_of_one_shape_go_together_and_each_is_its_own(tmp_path):
    generator = quick(pause=0.1)
    with serving(make_service(tmp_path, generator)) as client:
        blocking = client.post("/v1/videos", {"num_frames": 13, "num_inference_steps": 4}).json["id"]
        first = client.post("/v1/videos", {"prompt": "a", "num_frames": 9, "n": 3, "seed": 7}).json
        more = client.post("/v1/videos", {"prompt": "b", "negative_prompt": "c", "num_frames": 9}).json
        assert [client.ended(id)["seed"] for id in first["ids"]] == [7, 8, 9]
        client.ended(more["id"])
        client.ended(blocking)
    counts = [count for task, count in generator.asked if task.frames == 9]
    assert counts == [4]
    assert generator.packed == []


def test_the_videos_of_a_request_are_made_by_one_call(tmp_path):
    generator = quick()
    with serving(make_service(tmp_path, generator)) as client:
        for id in client.post("/v1/videos", {"num_frames": 9, "n": 4}).json["ids"]:
            assert client.ended(id)["status"] == "completed"
    assert [count for _, count in generator.asked] == [4]


def test_jobs_of_several_shapes_go_side_by_side(tmp_path):
    generator = quick(pause=0.1)
    with serving(make_service(tmp_path, generator)) as client:
        blocking = client.post("/v1/videos", {"task": "loop", "num_inference_steps": 4}).json["id"]
        shapes = [(9, f"{W}x{H}"), (13, f"{W}x{H}"), (9, f"{W + 8}x{H}"), (1, "8x8")]
        jobs = [client.post("/v1/videos", {"num_frames": f, "size": size}).json["id"] for f, size in shapes]
        done = [client.ended(id) for id in jobs]
        assert [(job["status"], job["frames"], job["size"]) for job in done] == [("completed", *one) for one in shapes]
        client.ended(blocking)
    assert generator.packed == [4]


def test_without_packing_only_one_shape_goes_together(tmp_path):
    generator = quick(pause=0.1)
    with serving(make_service(tmp_path, generator, pack=False)) as client:
        blocking = client.post("/v1/videos", {"task": "loop", "num_inference_steps": 4}).json["id"]
        jobs = [client.post("/v1/videos", {"num_frames": frames}).json["id"] for frames in (9, 13, 9, 13)]
        assert {client.ended(id)["status"] for id in [*jobs, blocking]} == {"completed"}
    assert generator.packed == []
    assert [count for _, count in generator.asked if count > 1] == [2, 2]


def test_cancel_stops_what_runs_between_steps_and_what_waits_at_once(tmp_path):
    generator = quick(pause=0.05)
    with serving(make_service(tmp_path, generator)) as client:
        long = client.post("/v1/videos", {"num_inference_steps": 200}).json["id"]
        waits = client.post("/v1/videos", {"num_frames": 5}).json["id"]
        while client.get(f"/v1/videos/{long}").json["progress"] < 1:
            time.sleep(0.02)
        assert client.post(f"/v1/videos/{waits}/cancel").json["status"] == "cancelled"
        client.post(f"/v1/videos/{long}/cancel")
        began = time.monotonic()
        job = client.ended(long)
        assert time.monotonic() - began < 30
        assert job["status"] == "cancelled"
        assert client.get(f"/v1/videos/{long}/content").error["code"] == "not_completed"
        assert client.ended(client.post("/v1/videos", {}).json["id"])["status"] == "completed"


def test_the_same_key_gives_the_same_job(client):
    key = {"Idempotency-Key": "k1"}
    first = client.post("/v1/videos", {"prompt": "a", "n": 2}, headers=key).json
    again = client.post("/v1/videos", {"n": 2, "prompt": "a"}, headers=key).json
    assert again["id"] == first["id"]
    other = client.post("/v1/videos", {"prompt": "b"}, headers=key)
    assert (other.status, other.error["code"]) == (409, "idempotency_key_reused")
    assert Client(client.port, "two").post("/v1/videos", {"prompt": "b"}, headers=key).status == 200


def test_clients_see_their_own(client, video):
    other = Client(client.port, "other")
    job = client.post("/v1/videos", {"prompt": "mine"}).json["id"]
    assert job not in [one["id"] for one in other.get("/v1/videos").json["data"]]
    for method, path in [
        ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/content"), ("GET", "/events")
    ]:  # fmt: skip
        assert other.call(method, f"/v1/videos/{job}{path}").status == 404
    assert other.get(f"/v1/files/{video['id']}/content").status == 404
    assert other.post("/v1/videos", {"task": "extend", "files": [video["id"]]}).status == 404
    page = client.get("/v1/videos?limit=2").json
    assert page["has_more"]
    later = client.get(f"/v1/videos?limit=2&after={page['last_id']}").json["data"]
    assert not {one["id"] for one in later} & {one["id"] for one in page["data"]}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"num_frames": 10}, 400, "num_frames"),
        ({"size": "17x16"}, 400, "size"),
        ({"size": "16"}, 400, "size"),
        ({"seconds": -1}, 400, "seconds"),
        ({"sampler": "none"}, 400, "sampler"),
        ({"colour": "red"}, 400, "colour"),
        ({"prompt": ["a"]}, 400, "prompt"),
        ({"prompt": "a" * 5000}, 400, "prompt"),
        ({"seed": 2**64}, 400, "seed"),
        ({"model": "sora"}, 404, "model"),
        ({"files": ["file_000000000000000000000000"]}, 404, "files"),
        ({"files": ["../jobs.sqlite"]}, 400, "files.0"),
        ({"task": "extend"}, 400, "files"),
        ({"task": "text", "strength": 0.5}, 400, "strength"),
        ({"num_frames": 4001}, 413, "num_frames"),
        ({"size": "4096x4096"}, 413, "size"),
        ({"num_inference_steps": 1000}, 413, "num_inference_steps"),
        ({"n": 20}, 413, "n"),
        ({"expand": True}, 400, "expand"),
        ({"task": "rollout", "num_frames": 33, "window": 5}, 400, "window"),
        ({"task": "loop", "window": 5}, 400, "window"),
    ],
)
def test_what_cannot_be_made_is_said_at_once(client, body, status, param):
    answer = client.post("/v1/videos", body)
    assert (answer.status, answer.error["param"]) == (status, param)


@pytest.mark.parametrize(
    ("body", "files", "status", "param"),
    [
        ({"task": "text", "window": 9}, [], 400, "window"),
        ({"task": "animate", "window": 1}, ["image"], 400, "window"),
        ({"task": "animate", "num_frames": 5, "canvas": [{"file": "image", "at_frame": 5}]}, ["image"], 400, "canvas"),
        ({"task": "extend", "window": 1}, ["video"], 400, "window"),
        ({"task": "extend", "window": 4, "direction": "backward"}, ["video"], 400, "window"),
        ({"task": "extend", "window": 5000}, ["video"], 413, "window"),
        ({"task": "extend", "direction": "both"}, ["frame"], 400, "files"),
        ({"task": "loop", "window": 5}, ["video"], 400, "window"),
        ({"task": "loop"}, ["frame"], 400, "files"),
        ({"task": "connect", "window": 5}, ["video", "video"], 400, "window"),
        ({"task": "connect", "window": 1 << 20}, ["video", "video"], 413, "window"),
        ({"task": "connect"}, ["video", "frame"], 400, "files"),
        ({"task": "connect", "blend": True, "num_frames": 8}, ["video", "video"], 400, "num_frames"),
        ({"task": "connect", "blend": True, "num_frames": 4, "window": 5}, ["video", "video"], 400, "num_frames"),
        ({"task": "edit", "window": 1}, ["video"], 400, "window"),
        ({"task": "edit", "window": 1025}, ["video"], 413, "window"),
        ({"task": "canvas", "window": 1, "canvas": [{"file": "image"}]}, [], 400, "window"),
        ({"task": "canvas", "canvas": [{"file": "video"}], "num_frames": 9}, [], 400, "canvas"),
        ({"task": "canvas", "canvas": [{"file": "image", "x": W}], "num_frames": 9}, [], 400, "canvas"),
        ({"task": "canvas", "canvas": [{"file": "image"}], "num_frames": 1}, [], 400, "canvas"),
        ({"task": "canvas", "window": 2000, "canvas": [{"file": "image"}]}, [], 413, "window"),
    ],
)
def test_too_short_and_too_long_is_refused_before_a_job(client, video, image, body, files, status, param):
    frame = client.form("/v1/files", {"file": ("one.mkv", clip(frames=1))}).json
    assert (frame["kind"], frame["frames"]) == ("video", 1)
    ids = {"video": video["id"], "image": image["id"], "frame": frame["id"]}
    body = json.loads(json.dumps({**body, "files": [ids[name] for name in files]}))
    for placed in body.get("canvas", ()):
        placed["file"] = ids[placed["file"]]
    before = client.get("/v1/videos").json["data"]
    answer = client.post("/v1/videos", body)
    assert (answer.status, answer.error["param"]) == (status, param), answer.error
    assert "\n" not in answer.error["message"]
    assert client.get("/v1/videos").json["data"] == before


def test_too_many_jobs_are_told_to_come_again(tmp_path):
    with serving(make_service(tmp_path, quick(pause=0.3), waiting=4, waiting_per_client=2)) as client:
        other = Client(client.port, "other")
        assert client.post("/v1/videos", {"n": 2}).status == 200
        refused = client.post("/v1/videos", {})
        assert (refused.status, refused.error["code"]) == (429, "waiting_per_client")
        assert int(refused.headers["retry-after"]) > 0
        assert other.post("/v1/videos", {"n": 2}).status == 200
        assert Client(client.port, "third").post("/v1/videos", {}).error["code"] == "waiting"
