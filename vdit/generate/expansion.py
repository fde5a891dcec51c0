"""Expanders of prompts: the run's own small language model, a public one, or an endpoint.

    expander = open_expander("runs/quickstart")
    expander.expand(["red circle left"], seed=1)[0].text

A run's own expander is a folder of transformers' layout, RUN/expander, so that other libraries read it, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from vdit import paths
from vdit.data.latents import LatentStore
from vdit.data.tables import read_lines
from vdit.errors import ConfigError, DataError
from vdit.language.endpoint import Endpoint
from vdit.language.expansion import Expander, ExpansionPrompts
from vdit.language.prompts import PromptFile
from vdit.pretrained.export import save_tensors
from vdit.pretrained.lm import lm_json, lm_rules, open_lm
from vdit.train.expander import SPECIAL, ExpanderConfig, TrainedExpander, caption_pairs, train_expander
from vdit.train.workspace import Workspace

FOLDER, NOTE = "expander", "expander.json"
FORMAT = "vdit-expander-1"
OWN_TRIES, OWN_TOKENS, OWN_BATCH = 8, 256, 32  # a small model is quick and often wrong
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}<|answer|>"
)


def open_expander(
    run: str | Path | None = None, *, lm: str | Path | None = None, endpoint: str | None = None,
    prompt_file: str | Path | None = None, tries: int | None = None,
) -> Expander:  # fmt: skip
    """Opens what expands prompts.

    Args:
        run: the folder of a run whose own expander is used.
        lm: a public language model instead: a folder of transformers, or a .gguf file.
        endpoint: the name of a model of the OpenAI-compatible server at $OPENAI_BASE_URL instead.
        prompt_file: what the model is asked (vdit/language/prompt_files/expand.md is vdit's own). Not for a run's own.
        tries: answers that are looked at for each prompt; None: 3, and 8 of a run's own.

    Returns:
        The expander.

    Raises:
        ConfigError: several models are named, or none; or the run has no expander.
        WeightsError: the model cannot be read.

    Example:
        expander = open_expander("runs/quickstart")
        expander.expand(["a red circle"])[0].text
    """
    if (lm is not None) + (endpoint is not None) > 1:
        raise ConfigError("lm and endpoint name two models: give one")
    more = {} if tries is None else {"tries": tries}
    if lm is None and endpoint is None:
        if run is None:
            raise ConfigError("nothing to expand with: name a run that has an expander, lm, or endpoint")
        if prompt_file is not None:
            raise ConfigError("a prompt file is for lm and endpoint: a run's own expander reads the prompt alone")
        return Expander(model=open_lm(_own(run), batch=OWN_BATCH), max_tokens=OWN_TOKENS, **{"tries": OWN_TRIES} | more)
    if lm is not None and paths.is_file(paths.path(lm) / NOTE):
        return Expander(model=open_lm(lm, batch=OWN_BATCH), max_tokens=OWN_TOKENS, **{"tries": OWN_TRIES} | more)
    file = PromptFile.shipped("expand.md") if prompt_file is None else PromptFile.read(prompt_file)
    prompts = ExpansionPrompts.of(file)
    model = Endpoint.from_environment(endpoint) if endpoint is not None else open_lm(lm)
    return Expander(model=model, prompts=prompts, **more)


def _own(run: str | Path) -> Path:
    folder = Workspace(run).root / FOLDER
    if not paths.is_file(folder / NOTE):
        raise ConfigError(
            f"{run}: has no expander: train one on its captions (vdit expand {run} --train), or name a language model "
            "with --lm or --endpoint"
        )
    return paths.local_folder(folder, error=ConfigError)


def run_pairs(run: str | Path) -> list[tuple[str, str]]:
    """(short, detailed) captions of a run's latents, each pair once."""
    store = LatentStore(Workspace(run).latents)
    return caption_pairs(store.read(place, 0)["captions"] for place in range(len(store)))


def file_pairs(path: str | Path) -> list[tuple[str, str]]:
    """(short, long) of a .jsonl file with both in each line; DataError where a line has not."""
    pairs = []
    for number, line in read_lines(paths.path(path), error=DataError):
        where = f"{path}, line {number}"
        value = paths.parse_json(line, name=where, error=DataError)
        found = [value.get(key) for key in ("short", "long")] if isinstance(value, dict) else []
        if len(found) != 2 or not all(isinstance(text, str) and text.strip() for text in found):
            raise DataError(f'{where}: must be an object with the texts "short" and "long"')
        pairs.append((found[0], found[1]))
    return list(dict.fromkeys(pairs))


def train_run_expander(
    run: str | Path, config: ExpanderConfig | None = None, *, pairs: Sequence[tuple[str, str]] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Path:  # fmt: skip
    """Trains an expander on the captions of a run, and keeps it in the run's folder.

    Args:
        run: its folder, on this disk.
        config: size and steps; None is the usual.
        pairs: (short, detailed) instead of the run's own captions.
        progress: called with (steps done, loss).

    Returns:
        The folder of the expander.

    Raises:
        DataError: there are too few pairs.
        ConfigError: the run has one already.
    """
    folder = Workspace(run).root / FOLDER
    if paths.exists(folder):
        raise ConfigError(f"{folder}: is there already; remove it to train another")
    pairs = run_pairs(run) if pairs is None else list(pairs)
    trained = train_expander(pairs, config or ExpanderConfig(), progress=progress)
    save_expander(folder, trained, pairs=len(pairs))
    return folder


def save_expander(folder: Path, trained: TrainedExpander, *, pairs: int) -> None:
    """Writes an expander as a folder of transformers' layout, which appears when it is whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    paths.remove_folder(partial)
    partial.mkdir(parents=True)
    begin, _, end = SPECIAL
    about = {"model_type": "llama", "eos_token_id": trained.tokenizer.id_of(end)}
    texts = {
        "config.json": lm_json(trained.config) | about,
        "tokenizer_config.json": {"bos_token": begin, "eos_token": end, "chat_template": _TEMPLATE},
        NOTE: {
            "format": FORMAT, "pairs": pairs, "cut": trained.cut, "steps": len(trained.losses),
            "loss": [round(loss, 4) for loss in (trained.losses[0], trained.losses[-1])],
        },
    }  # fmt: skip
    for name, value in texts.items():
        (partial / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    trained.tokenizer.save(partial / "tokenizer.json")
    save_tensors(lm_rules(trained.config), trained.params, partial, stem="model")
    paths.move_folder(partial, folder, last=(NOTE,))
