"""Public weights from a bucket and from a hub, and an export to both."""

from __future__ import annotations

import dataclasses

import pytest

from tests.loopback import Hub, serve_buckets
from tests.pretrained import public_folders as public
from vdit import paths
from vdit.cli.main import main
from vdit.pretrained.model import import_model, open_model
from vdit.pretrained.open import open_tensors

NAME = "vdit-test"
server = pytest.fixture(scope="module")(serve_buckets)


@pytest.fixture(scope="module")
def folder(torch, tmp_path_factory):
    """A small Wan 2.1 as diffusers saves it."""
    folder = tmp_path_factory.mktemp("public") / "wan"
    folder.mkdir()
    public.wan(folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", found.token)
        yield found


def same_bits(a, b) -> None:
    for part in ("transformer", "vae", "text_encoder"):
        ours, theirs = open_tensors(paths.local_folder(a) / part), open_tensors(paths.local_folder(b) / part)
        assert dict(ours.info) == dict(theirs.info)
        for name in ours.info:
            assert ours.read(name).tobytes() == theirs.read(name).tobytes(), name


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_model_goes_through_a_bucket_and_a_hub_with_the_same_bits(
    server, hub, folder, tmp_path, monkeypatch, scheme, capsys
):
    monkeypatch.setenv("VDIT_FILE_CACHE", str(tmp_path / "cache"))
    server.reset()
    root = f"{scheme}://{NAME}"
    paths.copy_folder(folder, f"{root}/wan")
    import_model(f"{root}/wan", f"{root}/imported")
    assert server.names_of(NAME, "imported/dit/0/")[-1].endswith("sha256.json")
    assert main(["export", f"{root}/imported", f"{root}/exported", "--push", "hf://me/wan"]) == 0
    same_bits(folder, f"{root}/exported")
    same_bits(folder, "hf://me/wan")
    pulled = dataclasses.replace(open_model("hf://me/wan").experiment, name="wan")
    assert pulled == open_model(folder).experiment


def test_without_a_token_nothing_is_exported(server, hub, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["export", str(folder), str(tmp_path / "out"), "--push", "hf://me/wan"]) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not hub.models
