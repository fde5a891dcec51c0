"""Weights on a model hub: hf://ORG/NAME[@REVISION][/FILE], read and written by huggingface_hub.

The token is huggingface_hub's own: HF_TOKEN, or the file that `hf auth login` writes. vdit takes none and stores none.
Downloads are kept in huggingface_hub's cache; with HF_HUB_OFFLINE=1 only what is there is used.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vdit.errors import BucketError, OutputError, VditError, WeightsError, install_command

# Formats of other frameworks, and pictures of a model's page.
_IGNORED = ["*.onnx*", "*.msgpack", "*.h5", "*.ot", "*.tflite", "*.mlmodel", "*.gguf"]
_IGNORED += ["*.png", "*.jpg", "*.gif", "*.mp4"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubName:
    """What hf://ORG/NAME[@REVISION][/FILE] names. revision: a branch, tag or commit; file: None for all files."""

    repo: str
    revision: str | None = None
    file: str | None = None


def parse(name: str) -> HubName:
    """The parts of a name; WeightsError where it is none."""
    found = re.fullmatch(r"hf:/+([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?", name.rstrip("/"), re.ASCII)
    if found is None or ".." in (found[3] or "").split("/"):
        raise WeightsError(f"{name}: write hf://ORG/NAME, hf://ORG/NAME@REVISION, or either with /FILE after it")
    return HubName(repo=found[1], revision=found[2], file=found[3])


def pull(name: str, *, error: type[VditError] = WeightsError) -> Path:
    """The folder, or the file or folder in it, that a name stands for, on this disk.

    Args:
        name: hf://ORG/NAME[@REVISION][/FILE].
        error: the class that is raised.

    Returns:
        A path in huggingface_hub's cache.

    Raises:
        error: there is no such model, revision or file, no right to read it, or the connection keeps failing.
    """
    told = parse(name)
    library = _library(name, error)
    where = {"revision": told.revision, "cache_dir": os.environ.get("HF_HUB_CACHE"), "endpoint": _endpoint()}
    with _failures(name, error):
        patterns = None if told.file is None else [told.file, f"{told.file}/*"]
        folder = library.snapshot_download(told.repo, allow_patterns=patterns, ignore_patterns=_IGNORED, **where)
    path = Path(folder) if told.file is None else Path(folder) / told.file
    if not path.exists():
        raise error(f"{name}: {told.repo} has no file or folder {told.file!r}: check its name")
    return path


def push(folder: str | Path, name: str, *, private: bool = True) -> str:
    """Uploads a folder as a model, in one commit, and returns the commit's address.

    Args:
        folder: on this disk.
        name: hf://ORG/NAME[@BRANCH]; the model is made where it is missing.
        private: whether a model that is made is private.

    Raises:
        OutputError: no right to write there, or a name with a file in it.
        BucketError: the connection keeps failing; nothing of the commit is visible then.
    """
    told = parse(name)
    if told.file is not None:
        raise OutputError(f"{name}: a model is pushed as a whole: write hf://ORG/NAME")
    api = _library(name, OutputError).HfApi(endpoint=_endpoint())
    with _failures(name, OutputError):
        api.create_repo(told.repo, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=told.repo, folder_path=str(folder), revision=told.revision, commit_message="Exported by vdit"
        )
    return str(made.commit_url)


def check_push(name: str) -> None:
    """OutputError unless there is a token and it may be used; call it before a long export."""
    parse(name)
    api = _library(name, OutputError).HfApi(endpoint=_endpoint())
    with _failures(name, OutputError):
        api.whoami()


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _library(name: str, error: type[VditError]):
    if importlib.util.find_spec("huggingface_hub") is None:
        raise error(f"{name}: needs huggingface_hub: {install_command('hub')}")
    import huggingface_hub

    return huggingface_hub


@contextmanager
def _failures(name: str, error: type[VditError]) -> Iterator[None]:
    """Turns what huggingface_hub raises into one line."""
    try:
        yield
    except VditError:
        raise
    except Exception as failure:
        kinds = {kind.__name__ for kind in type(failure).__mro__}
        text = (str(failure).strip().splitlines() or [type(failure).__name__])[0][:200]
        status = getattr(getattr(failure, "response", None), "status_code", None)
        if "GatedRepoError" in kinds:
            line = "you must accept the model's terms on its page first, and log in (hf auth login, or HF_TOKEN)"
        elif kinds & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"} and os.environ.get("HF_HUB_OFFLINE"):
            line = "is not in the cache, and HF_HUB_OFFLINE is set: unset it to download"
        elif "LocalTokenNotFoundError" in kinds or status in (401, 403):
            line = f"you have no right to it ({text}): log in with hf auth login, or set HF_TOKEN"
        elif "RevisionNotFoundError" in kinds:
            line = "there is no such revision: check what stands after @"
        elif "RepositoryNotFoundError" in kinds or "EntryNotFoundError" in kinds or status == 404:
            line = "there is no such model, or none that you may see: check its name, or log in (hf auth login)"
        else:
            line = f"the connection to the hub keeps failing ({text}): start the same command again"
            if error is OutputError:
                raised = BucketError(f"{name}: {line}")
                raised.transient = True
                raise raised from failure
        raise error(f"{name}: {line}") from failure
