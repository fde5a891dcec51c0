"""`vdit export`: a model of ours as a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdit.checkpoint import load_meta, write_manifest
from vdit.errors import CheckpointError, WeightsError, writing
from vdit.experiment.experiment import Experiment
from vdit.models.text.t5_tokenizer import is_json
from vdit.nn.lora import detach, merge, without_lora
from vdit.outputs import check_new_folder
from vdit.paths import read_bytes
from vdit.pretrained import clip, dit, kl_vae, t5, wan, wan_vae
from vdit.pretrained.diffusers_folder import INDEX
from vdit.pretrained.importing import MAX_EXTRA
from vdit.pretrained.save import save_tensors
from vdit.pretrained.scheduler import Scheduling, scheduler_json, usual_scheduling
from vdit.pretrained.weights import Rule
from vdit.samplers.grid import GridOptions
from vdit.train.workspace import FILES, PUBLIC, SAMPLED, Workspace
from vdit.types import PyTree

TRANSFORMERS = {"dit": "transformer", "dit_low": "transformer_2"}


def export_model(
    space: Workspace,
    experiment: Experiment,
    params: PyTree,
    vae_params: PyTree,
    out: str | Path,
    *,
    dtype: str | None = None,
    max_shard: float = 5e9,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes a diffusers folder: weights, configs, scheduler, tokenizer, model_index.json, and checksums of all.

    space: the run's folder. params: {"text", "dit", ...}; a LoRA kept apart is merged. vae_params: the VAE's.
    out: a new or empty folder. dtype: of the written weights; None keeps each parameter's own, so that what was
    imported comes out with the same bits. max_shard: bytes of a file. WeightsError where diffusers has no such model.
    """
    out = Path(out)
    check_new_folder(out)
    parts = _parts(experiment)  # raises before anything is written
    # Without what the imported folder had besides weights, an export makes its own.
    space.check_files(load_meta(space.dit).get(FILES, {}), names=None if (space.root / PUBLIC).is_dir() else SAMPLED)
    files = _small_files(space, experiment, parts)
    statistics = space.statistics()
    trees = {name: _plain(tree) for name, tree in params.items()} | {"vae": vae_params}
    for tree, (folder, _, rules, make_json) in parts.items():
        say(f"{folder} ...")
        stem = "model" if tree in ("text", "vision") else "diffusion_pytorch_model"
        save_tensors(rules, trees[tree], out / folder, stem=stem, dtype=dtype, max_shard=max_shard)
        files.setdefault(f"{folder}/config.json", _dump(make_json(statistics)))
    index = files.pop(INDEX)
    for name, content in files.items():
        target = out / name
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    # Last: a folder without it is no model, so an export that was cut short is not taken for one.
    with writing(out / INDEX):
        (out / INDEX).write_bytes(index)
        write_manifest(out)
    say(f"{out / INDEX}: done")


def check_export(space: Workspace, experiment: Experiment) -> None:
    """WeightsError or CheckpointError where the model cannot be exported; reads no weights."""
    _small_files(space, experiment, _parts(experiment))


Part = tuple[str, tuple[str, str], list[Rule], Callable[[Any], dict[str, Any]]]


def _parts(experiment: Experiment) -> dict[str, Part]:
    """Tree of ours -> (folder, (library, class), rules, statistics -> config.json)."""
    classes = experiment.dit.classes > 0
    parts: dict[str, Part] = {}
    for tree in experiment.network.experts:
        if classes:
            side = experiment.sample.size[0] // experiment.vae.spatial_stride
            config = dit.dit_json(experiment.dit, sample_size=side)
            rules = dit.diffusers_rules(experiment.dit)
        else:
            config, rules = wan.wan_json(experiment.dit), wan.diffusers_rules(experiment.dit)
        parts[tree] = (TRANSFORMERS[tree], ("diffusers", config["_class_name"]), rules, lambda _, config=config: config)
    family, name = (kl_vae, "AutoencoderKL") if classes else (wan_vae, "AutoencoderKLWan")
    vae = experiment.vae
    parts["vae"] = ("vae", ("diffusers", name), family.diffusers_rules(vae), lambda stats: family.vae_json(vae, stats))
    if not classes:
        if experiment.text.t5 is None:
            rule = "which diffusers does not have: only Wan and DiT models can be exported"
            raise WeightsError(f"this model's text encoder is vdit's own, {rule}")
        encoder = experiment.text.t5
        json = t5.t5_json(encoder)
        names = ("transformers", json["architectures"][0])
        parts["text"] = ("text_encoder", names, t5.diffusers_rules(encoder), lambda _: json)
    if experiment.vision is not None:
        image = clip.clip_json(experiment.vision)
        names = ("transformers", "CLIPVisionModel")
        parts["vision"] = ("image_encoder", names, clip.diffusers_rules(experiment.vision), lambda _: image)
    return parts


def _small_files(space: Workspace, experiment: Experiment, parts: dict[str, Part]) -> dict[str, bytes]:
    """Path -> content of what is no weight: as the imported folder had it, or made from the experiment."""
    kept = space.root / PUBLIC
    files = {
        str(file.relative_to(kept)): _small(file) for file in sorted(kept.rglob("*")) if file.is_file()
    }
    if INDEX in files:
        return files
    scheduling = _scheduling(experiment)
    files["scheduler/scheduler_config.json"] = _dump(scheduler_json(scheduling))
    index: dict[str, Any] = {"_class_name": _pipeline(experiment)}
    index |= {folder: list(names) for folder, names, _, _ in parts.values()}
    index["scheduler"] = ["diffusers", scheduler_json(scheduling)["_class_name"]]
    if "text" in parts:
        index["tokenizer"] = ["transformers", "T5TokenizerFast"]
        index["expand_timesteps"] = experiment.vae.spatial_stride == 16
        index["boundary_ratio"] = None if experiment.expert_boundary is None else experiment.expert_boundary / 1000
        index.setdefault("transformer_2", [None, None])
        if experiment.vision is not None:
            index["image_processor"] = ["transformers", "CLIPImageProcessor"]
            files["image_processor/preprocessor_config.json"] = _dump(clip.clip_preprocessor_json(experiment.vision))
        if not space.tokenizer.is_file():
            raise CheckpointError(f"{space.tokenizer}: is missing, which the exported model needs: restore it")
        tokenizer = _small(space.tokenizer)
        files[f"tokenizer/{'tokenizer.json' if is_json(tokenizer) else 'spiece.model'}"] = tokenizer
        if (settings := space.root / "tokenizer_config.json").is_file():
            files[f"tokenizer/{settings.name}"] = _small(settings)
    elif experiment.label_names:
        index["id2label"] = {str(i): name for i, name in enumerate(experiment.label_names)}
    files[INDEX] = _dump(index)
    return files


def _small(file: Path) -> bytes:
    return read_bytes(file, limit=MAX_EXTRA, error=CheckpointError)


def _pipeline(experiment: Experiment) -> str:
    if experiment.dit.classes:
        return "DiTPipeline"
    return "WanImageToVideoPipeline" if experiment.dit.condition_channels else "WanPipeline"


def _scheduling(experiment: Experiment) -> Scheduling:
    """The experiment's own sampler, or where diffusers has none of its form, the usual one for its diffusion."""
    sample = experiment.sample
    scheduling = Scheduling(
        diffusion=experiment.diffusion,
        sampler=sample.sampler,
        options=sample.sampler_options,
        grid=sample.grid or GridOptions(),
    )
    try:
        scheduler_json(scheduling)
    except WeightsError:
        return usual_scheduling(experiment.diffusion)
    return scheduling


def _plain(tree: PyTree) -> PyTree:
    """Parameters with a LoRA apart -> the same sum in plain kernels; others as they are."""
    lora = detach(tree)
    return merge(without_lora(tree), lora) if lora.layers else tree


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
