"""Weights on a hub: names, downloads and uploads, against a server on loopback."""

import pytest

from tests.loopback import Hub
from vdit import hub, paths
from vdit.errors import OutputError, WeightsError


@pytest.fixture
def server(tmp_path, monkeypatch):
    with Hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", found.token)
        found.models["org/model"] = {"main": {"config.json": b"{}", "vae/w.safetensors": bytes(300)},
                                     "v2": {"config.json": b"[]"}}  # fmt: skip
        yield found


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf://org/model", ("org/model", None, None)),
        ("hf://org/model@v2", ("org/model", "v2", None)),
        ("hf://org/model/vae/w.safetensors", ("org/model", None, "vae/w.safetensors")),
        ("hf:/org/model.1@abc/f", ("org/model.1", "abc", "f")),
    ],
)
def test_a_name_has_its_parts(name, parts):
    found = hub.parse(name)
    assert (found.repo, found.revision, found.file) == parts


@pytest.mark.parametrize("name", ["hf://model", "hf://", "hf://a/b/../../c", "hf://a b/c"])
def test_other_names_are_refused(name):
    with pytest.raises(WeightsError, match="hf://ORG/NAME"):
        hub.parse(name)


def test_a_model_a_revision_and_a_file_are_read(server):
    folder = paths.local_folder("hf://org/model")
    assert (folder / "vae/w.safetensors").read_bytes() == bytes(300)
    assert paths.read_json("hf://org/model@v2/config.json", limit=10) == []
    assert paths.local_copy("hf://org/model/vae/w.safetensors").stat().st_size == 300


def test_what_is_in_the_cache_needs_no_hub(server, monkeypatch):
    before = paths.local_folder("hf://org/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert paths.local_folder("hf://org/model") == before
    with pytest.raises(WeightsError, match="other"):
        paths.local_folder("hf://org/other", error=WeightsError)


@pytest.mark.parametrize("name", ["hf://org/absent", "hf://org/model@v3", "hf://org/model/absent.json"])
def test_what_is_missing_is_named(server, name):
    with pytest.raises(WeightsError, match=name):
        paths.local_folder(name, error=WeightsError)


def test_a_download_that_breaks_is_gone_on_with(server):
    server.cut = 1
    assert (paths.local_folder("hf://org/model") / "vae/w.safetensors").read_bytes() == bytes(300)
    assert server.cut == 0


def test_a_folder_is_pushed_and_read_back(server, tmp_path):
    (tmp_path / "made" / "vae").mkdir(parents=True)
    (tmp_path / "made" / "vae" / "config.json").write_text('{"a": 1}')
    hub.check_push("hf://org/mine")
    assert "commit" in hub.push(tmp_path / "made", "hf://org/mine")
    assert server.models["org/mine"]["main"]["vae/config.json"] == b'{"a": 1}'
    assert paths.read_json("hf://org/mine/vae/config.json", limit=100) == {"a": 1}


def test_without_a_right_nothing_is_pushed(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    (tmp_path / "made").mkdir()
    for act in (lambda: hub.check_push("hf://org/mine"), lambda: hub.push(tmp_path / "made", "hf://org/mine")):
        with pytest.raises(OutputError, match="HF_TOKEN"):
            act()
    assert "org/mine" not in server.models
