"""Parameters of ours to files in a public layout, and `vdit export`: a model of ours as a diffusers folder.

Weights are safetensors, sharded with an index as diffusers does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from vdit import buckets, paths
from vdit.checkpoint import MANIFEST, load_meta, write_manifest
from vdit.errors import CheckpointError, OutputError, WeightsError, reason, writing
from vdit.experiment.experiment import Experiment
from vdit.models.text.t5_tokenizer import is_json
from vdit.nn.lora import detach, merge, without_lora
from vdit.outputs import check_new_folder
from vdit.paths import read_bytes
from vdit.pretrained import clip, dit, kl_vae, t5, wan, wan_vae
from vdit.pretrained.diffusers_folder import INDEX
from vdit.pretrained.model import MAX_EXTRA
from vdit.pretrained.scheduler import Scheduling, scheduler_json, usual_scheduling
from vdit.pretrained.tensors import NAMES, TensorInfo, write_safetensors
from vdit.pretrained.weights import Part, Rule, flatten
from vdit.registry import name_of
from vdit.reprs import listed
from vdit.samplers.grid import GridOptions
from vdit.train.workspace import FILES, PUBLIC, SAMPLED, Workspace
from vdit.types import PyTree

_PARTIAL = ".partial"
TRANSFORMERS = {"dit": "transformer", "dit_low": "transformer_2"}


def save_tensors(
    rules: Iterable[Rule],
    params: PyTree,
    folder: str | Path,
    *,
    stem: str = "diffusion_pytorch_model",
    dtype: str | None = None,
    max_shard: float = 5e9,
) -> Path:
    """Write parameters under their public names, in safetensors files.

    One tensor is in host memory at a time. The files get their names when all are written.

    Args:
        rules: the map of the family.
        params: nested dicts of arrays.
        folder: where to write; created if missing. A folder with files of this stem is refused.
        stem: "diffusion_pytorch_model" for parts of diffusers, "model" for those of transformers.
        dtype: floats become this. None: each parameter keeps its own.
        max_shard: bytes of one file; a single tensor may exceed it.

    Returns:
        The file, or the index of shards.

    Raises:
        WeightsError: the folder is taken or cannot be written, or parameters and map do not go together.
    """
    folder, ours = Path(folder), flatten(params)
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(file.name for file in folder.glob(f"{stem}*safetensors*") if file.suffix != _PARTIAL)
    if there:
        raise WeightsError(f"{folder}: holds {listed(there)} already; give a new folder")
    info, source = _describe(list(rules), ours, dtype)
    shards = _split_shards(info, max_shard)
    names = _file_names(stem, len(shards))
    written: list[Path] = []
    try:
        for name, shard in zip(names, shards):
            written.append(folder / (name + _PARTIAL))
            written[-1].unlink(missing_ok=True)
            values = lambda tensor: _tensor_values(source[tensor], ours, info[tensor].dtype)  # noqa: E731
            write_safetensors(written[-1], shard, values)
        if len(shards) > 1:
            written.append(folder / f"{stem}.safetensors.index.json{_PARTIAL}")
            written[-1].write_text(_shard_index(names, shards))
        for file in written:
            file.rename(file.with_suffix(""))
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be written: {reason(error)}") from None
    finally:
        for file in written:
            file.unlink(missing_ok=True)
    return written[-1].with_suffix("")


def _describe(
    rules: list[Rule], ours: Mapping[str, jax.Array], dtype: str | None
) -> tuple[dict[str, TensorInfo], dict[str, Rule]]:
    """What each file tensor will be, and the rule that makes it."""
    shapes = {path: tuple(leaf.shape) for path, leaf in ours.items()}
    used = {part.path for rule in rules for part in rule.parts}
    if used != set(shapes):
        odd = sorted(used ^ set(shapes))
        raise WeightsError(f"parameters and map do not go together: {listed(odd)}; use the config of the parameters")
    info, source = {}, {}
    for rule in rules:
        types = {np.dtype(ours[part.path].dtype) for part in rule.parts}
        if dtype is not None:
            types = {np.dtype(dtype) if jax.numpy.issubdtype(t, jax.numpy.floating) else t for t in types}
        if len(types) > 1 or not types <= set(NAMES):
            kinds = ", ".join(sorted(map(str, types)))
            raise WeightsError(f"{rule.name}: its parts are {kinds}; say dtype='float32' or 'bfloat16'")
        for name in (rule.name, *rule.copies):
            info[name], source[name] = TensorInfo(rule.shape(shapes), types.copy().pop()), rule
    return info, source


def _file_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


def _split_shards(info: Mapping[str, TensorInfo], most: float) -> list[dict[str, TensorInfo]]:
    """Tensors in their order, a new shard where the next one would not fit."""
    shards: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, tensor in info.items():
        more = _tensor_bytes(tensor)
        if shards[-1] and size + more > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += more
    return shards


def _tensor_values(rule: Rule, ours: Mapping[str, jax.Array], dtype: np.dtype) -> np.ndarray:
    return rule.write([_part(part, ours[part.path]) for part in rule.parts], np.concatenate).astype(dtype, copy=False)


def _part(part: Part, array: jax.Array) -> np.ndarray:
    """A part of a parameter on the host; of a stack only the layer leaves the devices."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        raise WeightsError(f"{part.path}: is spread over several hosts: export on one host, from the checkpoint")
    if part.layer is not None:
        array = array[part.layer]
    whole = np.asarray(array)
    return whole[Part(path=part.path, chunk=part.chunk).index(whole.shape)]


def _shard_index(names: list[str], shards: list[dict[str, TensorInfo]]) -> str:
    places = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
    total = sum(_tensor_bytes(tensor) for shard in shards for tensor in shard.values())
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2, sort_keys=True) + "\n"


def _tensor_bytes(tensor: TensorInfo) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def export_model(
    space: Workspace,
    experiment: Experiment,
    params: PyTree,
    vae_params: PyTree,
    out: Path,
    *,
    dtype: str | None = None,
    max_shard: float = 5e9,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a diffusers folder: weights, configs, scheduler, tokenizer, model_index.json, and checksums of all.

    Args:
        space: the run's folder.
        experiment: of the run.
        params: {"text", "dit", ...}; a LoRA that is kept apart is merged.
        vae_params: parameters of the autoencoder.
        out: a new or empty folder of this disk.
        dtype: of the written weights. None: each parameter keeps its own, so that what was imported comes out with the
            same bits.
        max_shard: bytes of one file.
        say: told what is done, in one line each.

    Raises:
        WeightsError: diffusers has no such model.
        CheckpointError: a file of the run is missing or changed.
        OutputError: the folder is taken or cannot be written.
    """
    check_new_folder(out)
    parts = _parts(experiment)  # raises before anything is written
    # Without what the imported folder had besides weights, an export makes its own.
    space.check_files(load_meta(space.dit).get(FILES, {}), names=None if paths.is_dir(space.root / PUBLIC) else SAMPLED)
    files = _small_files(space, experiment, parts)
    statistics = space.statistics()
    trees = {name: plain(tree) for name, tree in params.items()} | {"vae": vae_params}
    for tree, (folder, _, rules, make_json) in parts.items():
        say(f"{folder} ...")
        stem = "model" if tree in ("text", "vision") else "diffusion_pytorch_model"
        save_tensors(rules, trees[tree], out / folder, stem=stem, dtype=dtype, max_shard=max_shard)
        files.setdefault(f"{folder}/config.json", _dump(make_json(statistics)))
    write_small_files(out, files, last=INDEX)
    say(f"{out / INDEX}: done")


def write_small_files(out: Path, files: Mapping[str, bytes], *, last: str) -> None:
    """Ends an export: what is no weight, by its path in the folder, and checksums of all.

    last: without this file a folder is no model, so an export that was cut short is not taken for one.
    """
    for name in [*(name for name in files if name != last), last]:
        target = out / name
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files[name])
    with writing(out / MANIFEST):
        write_manifest(out)


def exported_to(out: str | Path, last: str, write: Callable[[Path], None]) -> None:
    """Has an export written to `out`: for a bucket to a folder of this disk first, which is then uploaded.

    Args:
        out: a new or empty folder, here or in a bucket.
        last: the file without which the folder is no model; it is uploaded last, with the checksums.
        write: told the folder to write.

    Raises:
        OutputError: the folder is taken or cannot be written.
    """
    if not paths.is_remote(out):
        write(Path(out))
        return
    check_new_folder(out)
    with tempfile.TemporaryDirectory(prefix="vdit-export-") as folder:
        write(Path(folder))
        with buckets.failures(paths.url_of(out), OutputError):
            buckets.send_folder(Path(folder), paths.url_of(out).rstrip("/"), last=(last, MANIFEST))


def native_instead(
    space: Workspace, experiment: Experiment, layout: Literal["diffusers", "vdit"] | None = None
) -> bool:
    """Whether a model is exported in vdit's own layout; checks that it can be, without reading its weights.

    Args:
        space: the run's folder.
        experiment: of the run.
        layout: what was asked for; None takes diffusers' where diffusers has such a model.

    Raises:
        WeightsError: diffusers' layout was asked for, and diffusers has no such model.
        CheckpointError: a file of the run is missing.
    """
    if layout == "vdit":
        return True
    try:
        parts = _parts(experiment)
    except WeightsError:
        if layout is not None:
            raise
        return True
    _small_files(space, experiment, parts)
    return False


_Folder = tuple[str, tuple[str, str], list[Rule], Callable[[Any], dict[str, Any]]]


def _parts(experiment: Experiment) -> dict[str, _Folder]:
    """Tree of ours -> (folder, (library, class), rules, statistics -> config.json)."""
    classes = experiment.backbone.classes > 0
    parts: dict[str, _Folder] = {}
    for tree in experiment.network.experts:
        if classes:
            side = experiment.sample.size[0] // experiment.vae.spatial_stride
            config = dit.dit_json(experiment.backbone, sample_size=side)
            rules = dit.diffusers_rules(experiment.backbone)
        else:
            config, rules = wan.wan_json(experiment.backbone), wan.diffusers_rules(experiment.backbone)
        parts[tree] = (TRANSFORMERS[tree], ("diffusers", config["_class_name"]), rules, lambda _, config=config: config)
    family, name = (kl_vae, "AutoencoderKL") if classes else (wan_vae, "AutoencoderKLWan")
    vae = experiment.vae
    parts["vae"] = ("vae", ("diffusers", name), family.diffusers_rules(vae), lambda stats: family.vae_json(vae, stats))
    if not classes:
        if experiment.text.t5 is None:
            rule = "which diffusers does not have: export it in vdit's own layout (--layout vdit)"
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


def _small_files(space: Workspace, experiment: Experiment, parts: dict[str, _Folder]) -> dict[str, bytes]:
    """Path -> content of what is no weight: as the imported folder had it, or made from the experiment."""
    kept = space.root / PUBLIC
    files = {
        name: _small(kept / name) for name in paths.files_below(kept)
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
        if not paths.is_file(space.tokenizer):
            raise CheckpointError(f"{space.tokenizer}: is missing, which the exported model needs: restore it")
        tokenizer = _small(space.tokenizer)
        files[f"tokenizer/{'tokenizer.json' if is_json(tokenizer) else 'spiece.model'}"] = tokenizer
        if paths.is_file(settings := space.root / "tokenizer_config.json"):
            files[f"tokenizer/{settings.name}"] = _small(settings)
    elif experiment.label_names:
        index["id2label"] = {str(i): name for i, name in enumerate(experiment.label_names)}
    files[INDEX] = _dump(index)
    return files


def _small(file: Path) -> bytes:
    return read_bytes(file, limit=MAX_EXTRA, error=CheckpointError)


def _pipeline(experiment: Experiment) -> str:
    if experiment.backbone.classes:
        return "DiTPipeline"
    return "WanImageToVideoPipeline" if experiment.backbone.condition_channels else "WanPipeline"


def _scheduling(experiment: Experiment) -> Scheduling:
    """The experiment's own sampler, or where diffusers has none of its form, the usual one for its diffusion."""
    sample = experiment.sample
    scheduling = Scheduling(
        diffusion=experiment.diffusion,
        sampler=name_of("sampler", sample.sampler),
        options=tuple(
            (field.name, getattr(sample.sampler, field.name))
            for field in sorted(dataclasses.fields(sample.sampler), key=lambda field: field.name)
            if getattr(sample.sampler, field.name) != field.default
        ),
        grid=sample.grid or GridOptions(),
    )
    try:
        scheduler_json(scheduling)
    except WeightsError:
        return usual_scheduling(experiment.diffusion)
    return scheduling


def plain(tree: PyTree) -> PyTree:
    """Parameters with a LoRA apart -> the same sum in plain kernels; others as they are."""
    lora = detach(tree)
    return merge(without_lora(tree), lora) if lora.layers else tree


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
