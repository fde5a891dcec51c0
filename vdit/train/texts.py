"""Captions encoded once, by a text encoder that training does not change; the training step then holds none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vdit.data.latents import LatentStore
from vdit.data.texts import BATCH, TextStore, all_captions, write_texts
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.dist.multihost import is_primary_host, wait_for_all
from vdit.errors import DataError
from vdit.experiment.experiment import Experiment
from vdit.models.text import Tokenizer
from vdit.models.text.encoder import make_encoder
from vdit.train.encoded import encoded_texts
from vdit.train.logging import Logging
from vdit.train.pretrained import pretrained_identity, trained_params
from vdit.train.progress import make_display
from vdit.train.workspace import Workspace
from vdit.types import PyTree

_STEP = 64  # lengths of captions are rounded up to multiples of this: each length is compiled once


class TextEncoding:
    """The text encoder of the model that training starts from: captions -> float32 [tokens width] of each.

    The weights are read at the first call, onto this host's devices, and go with the object.
    """

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer):
        self.experiment, self.tokenizer = experiment, tokenizer
        self._mesh = make_mesh(MeshConfig(data=1, fsdp=-1), jax.local_devices())
        self._params: PyTree | None = None
        encoder = make_encoder(experiment.text)
        self._apply = jax.jit(lambda params, *row: encoder.apply({"params": params}, *row))

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        return [one for start in range(0, len(captions), BATCH) for one in self._batch(captions[start : start + BATCH])]

    def _batch(self, captions: Sequence[str]) -> list[np.ndarray]:
        if self._params is None:
            base = Workspace(self.experiment.start_from)
            found = trained_params(base.experiment(), base, self._mesh, as_stored=True, parts=("text",))
            self._params = found["text"]
        limit = self.experiment.text.max_length
        texts = [self._ids(caption)[:limit] for caption in captions]
        length = min(-(-max(map(len, texts)) // _STEP) * _STEP, limit)
        text, segment_ids = np.zeros((2, BATCH, length), np.int32)
        for row, ids in enumerate(texts):
            text[row, : len(ids)], segment_ids[row, : len(ids)] = ids, 1
        position = np.broadcast_to(np.arange(length, dtype=np.int32), text.shape) * segment_ids
        with jax.set_mesh(self._mesh):
            features = self._apply(self._params, text, segment_ids, position)
        features = np.asarray(features.astype(jnp.float32))
        return [features[row, : len(ids)] for row, ids in enumerate(texts)]

    def _ids(self, caption: str) -> list[int]:
        """Without padding at the end, whose features are zeros (vdit.models.text.t5)."""
        ids = self.tokenizer.encode(caption)
        t5 = self.experiment.text.t5
        while t5 is not None and len(ids) > 1 and ids[-1] == t5.pad_id:
            ids.pop()
        return ids


def text_identity(experiment: Experiment, workspace: Workspace) -> str:
    """Changes with the text encoder's weights, its config and its tokenizer."""
    config = dataclasses.asdict(experiment.text) | {"tokenizer": None}
    base = pretrained_identity(experiment) or {}
    tokenizer = workspace.file_sums()["tokenizer.model"]
    values = [config, base.get("step"), base.get("sha256"), tokenizer]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def encode_texts(experiment: Experiment, workspace: Workspace, logging: Logging) -> TextStore:
    """Encodes the captions of the run's latents into its folder `texts`; all hosts call it.

    What is there and still right stays, new captions are added, and an interrupted call goes on.
    """
    store, dtype = LatentStore(workspace.latents), experiment.latents.text_dtype
    captions, identity = all_captions(store), text_identity(experiment, workspace)
    former = _former(workspace, logging)
    if former is not None and former.identity == identity and former.dtype == dtype:
        missing = sum(caption not in former for caption in captions)
        if not missing:
            return former
        logging.say(f"texts: {missing} of {len(captions)} captions are new: encoding them")
    elif former is not None:
        logging.say("texts: the text encoder, or the type on disk, is another one: encoding all captions again")
    beside = encoded_texts(experiment)
    if beside is not None and beside.identity == identity and beside.dtype == dtype:
        known = sum(caption in beside for caption in captions)
        logging.say(f"texts: takes {known} of {len(captions)} captions that are encoded already, in {beside.path}")
        former = beside
    display = make_display("texts", len(captions) + 1, 0, console=logging.console) if is_primary_host() else None

    def show(done: int, total: int) -> None:
        if display is not None:  # a host knows of its own share only, and shows the whole as far as that
            display.update(done * (len(captions) + 1) // total, {})

    tokenizer = workspace.open_tokenizer(experiment)
    share = jax.process_index(), jax.process_count()
    try:
        return write_texts(
            workspace.texts, captions, TextEncoding(experiment, tokenizer), identity=identity, dtype=dtype,
            former=former, progress=show, share=share, wait=wait_for_all,
        )  # fmt: skip
    finally:
        if display is not None:
            display.close()


def _former(workspace: Workspace, logging: Logging) -> TextStore | None:
    """The texts that are there; None where they are damaged: they are made again."""
    try:
        return TextStore(workspace.texts)
    except DataError as error:
        if (workspace.texts / "index.json").exists():
            logging.say(f"texts: {error}; encoding all captions again")
        return None


def open_texts(experiment: Experiment, workspace: Workspace, store: LatentStore) -> TextStore:
    """The run's encoded captions; DataError unless they are of its text encoder and hold the captions of its latents.

    Of the latents only the first ones are looked at: a caption that is missing later on stops training with its name.
    """
    texts = TextStore(workspace.texts)
    if texts.identity != text_identity(experiment, workspace):
        raise DataError(f"{workspace.texts}: was encoded by another text encoder or tokenizer: run vdit encode-text")
    for place in range(min(len(store), BATCH)):
        for caption in store.read(place, 0)["captions"] or [""]:
            texts.features(caption)
    return texts
