"""The table in docs/lora.md, cell by cell: each layout of a LoRA file on each model is applied, or refused, as it says.

Files are written by the names and formulas of the programs that publish them, which stand here a second time; what
PEFT applies is taken from PEFT itself.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import vdit
from tests.conftest import run_vdit
from tests.data_paths import shared_data
from tests.pretrained import public_folders as public
from tests.pretrained.load import fill
from tests.pretrained.test_wan import inputs_for, run, run_ours
from vdit.cli.main import main
from vdit.errors import ConfigError, VditWarning, WeightsError
from vdit.experiment.experiment import Experiment
from vdit.models.dit.config import WAN, DiTConfig, preset
from vdit.models.vision import CLIPVisionConfig
from vdit.nn.lora import merge
from vdit.pretrained.lora import LoRAFile, open_loras, read_lora
from vdit.pretrained.wan import diffusers_rules, expert_of_name, original_rules, tensor_shape

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HIDDEN, RANK = 48, 64, 4
# Names of a module in Wan's own repositories and in diffusers, after "blocks.N.", and its weight [out in].
MODULES = {
    "self_attn.q": ("attn1.to_q", (WIDTH, WIDTH)),
    "self_attn.o": ("attn1.to_out.0", (WIDTH, WIDTH)),
    "cross_attn.k": ("attn2.to_k", (WIDTH, WIDTH)),
    "ffn.0": ("ffn.net.0.proj", (HIDDEN, WIDTH)),
    "ffn.2": ("ffn.net.2", (WIDTH, HIDDEN)),
}
SQUARE = (WIDTH, WIDTH)
IMAGE = {"cross_attn.k_img": ("attn2.add_k_proj", SQUARE), "cross_attn.v_img": ("attn2.add_v_proj", SQUARE)}


def table() -> tuple[list[str], dict[str, list[str]]]:
    """(models, layout -> what its cells say) of docs/lora.md."""
    lines = [line for line in (ROOT / "docs" / "lora.md").read_text().splitlines() if line.startswith("|")]
    (_, *models), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return models, {name: cells for name, *cells in rows}


COLUMNS, ROWS = table()
CELLS = [(layout, model, cell) for layout, cells in ROWS.items() for model, cell in zip(COLUMNS, cells, strict=True)]


@functools.cache
def experiment(model: str) -> Experiment:
    """A small model of each column."""
    changes = {"in_channels": 16, "width": WIDTH, "depth": 2, "heads": 2, "mlp_width": HIDDEN, "text_width": 32}
    parts = {}
    if "TI2V" in model:
        changes["in_channels"] = 48
    elif "I2V" in model:
        changes["condition_channels"] = 20
    if model == "Wan 2.1 I2V":
        changes["image_width"] = 32
        parts["vision"] = CLIPVisionConfig(width=32, mlp=64, layers=3, heads=2, image_size=28, patch=14)
    if model == "not a Wan":
        changes |= {"qk_norm": "head"}
    if "A14B" in model:
        parts["expert_boundary"] = 875.0
    start = Experiment(name="tiny")
    vae = dataclasses.replace(start.vae, latent_channels=changes["in_channels"])
    return dataclasses.replace(start, vae=vae, backbone=DiTConfig(**{**WAN, **changes}), **parts)


@functools.cache
def state(config: DiTConfig) -> dict[str, np.ndarray]:
    """Weights of a model under diffusers' names."""
    rng = np.random.default_rng(7)
    shapes = {rule.name: tensor_shape(rule, config) for rule in diffusers_rules(config)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """What a layout's file holds. change: tensor of diffusers -> what the file adds to it.

    second: of the second expert, where the file tells them apart. config: adapter_config.json.
    """

    tensors: dict[str, np.ndarray]
    change: dict[str, np.ndarray]
    metadata: dict[str, str] | None = None
    config: dict | None = None
    second: dict[str, np.ndarray] | None = None
    name: str = "style.safetensors"

    def write(self, folder: Path) -> Path:
        folder = folder / "lora"
        folder.mkdir()
        save_file(self.tensors, folder / self.name, metadata=self.metadata)
        if self.config is not None:
            (folder / "adapter_config.json").write_text(json.dumps(self.config))
            return folder
        return folder / self.name


def draw(*shape: int, seed: object) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(str(seed).encode())).normal(size=shape).astype(np.float32)


def factors(name: str, shape: tuple[int, int], rank: int = RANK, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(A [r in], B [out r])."""
    return draw(rank, shape[1], seed=(name, "a", seed)), draw(shape[0], rank, seed=(name, "b", seed))


def low_rank(name, *, alpha: float | None = None, seed: int = 0, modules=MODULES, depth: int = 2) -> File:
    """A LoRA. name(block, their module in the original, in diffusers) -> (name of A, of B, of alpha)."""
    tensors, change = {}, {}
    for i in range(depth):
        for original, (diffusers, shape) in modules.items():
            a, b = factors(f"{i}.{original}", shape, seed=seed)
            name_a, name_b, name_alpha = name(i, original, diffusers)
            tensors |= {name_a: a, name_b: b}
            if alpha is not None and name_alpha:
                tensors[name_alpha] = np.array(alpha, np.float32)
            scale = 1.0 if alpha is None else alpha / RANK
            change[f"blocks.{i}.{diffusers}.weight"] = scale * (b @ a)
    return File(tensors=tensors, change=change)


def as_diffusers(prefix: str):
    return lambda i, original, theirs: (
        f"{prefix}blocks.{i}.{theirs}.lora_A.weight", f"{prefix}blocks.{i}.{theirs}.lora_B.weight", None
    )  # fmt: skip


def as_original(prefix: str, a: str, b: str, flat: str = ""):
    """flat: which dots become underscores: none "", "all", or those of the block alone, "block"."""

    def name(i, original, theirs):
        module = f"blocks.{i}.{original}"
        if flat == "all":
            module = module.replace(".", "_")
        elif flat == "block":
            module = module.replace("blocks.", "blocks_")
        return tuple(f"{prefix}{module}.{end}" for end in (a, b, "alpha"))

    return name


def header(**values) -> dict[str, str]:
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in values.items()})}


def diffusers_one(**options) -> File:
    made = low_rank(as_diffusers("transformer."), alpha=8.0)
    return dataclasses.replace(made, metadata=header(r=RANK, lora_alpha=8), **options)


def diffusers_both() -> File:
    one, two = (low_rank(as_diffusers(f"{name}."), seed=s) for name, s in (("transformer", 1), ("transformer_2", 2)))
    return File(tensors=one.tensors | two.tensors, change=one.change, second=two.change)


def peft_folder(**options) -> File:
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["to_q"], "use_rslora": False}
    made = low_rank(as_diffusers("base_model.model."), alpha=8.0)
    return dataclasses.replace(made, name="adapter_model.safetensors", config=config | options)


def peft_patterns() -> File:
    """Ranks and alphas by pattern; rsLoRA: alpha / sqrt(rank)."""
    tensors, change = {}, {}
    for i in range(2):
        for original, (theirs, shape) in MODULES.items():
            rank = 2 if (i, theirs) == (1, "attn1.to_q") else RANK
            alpha = 3.0 if theirs == "ffn.net.2" else 8.0
            a, b = factors(f"{i}.{original}", shape, rank)
            start = f"base_model.model.blocks.{i}.{theirs}"
            tensors |= {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}
            change[f"blocks.{i}.{theirs}.weight"] = alpha / np.sqrt(rank) * (b @ a)
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"blocks.1.attn1.to_q": 2},
        "alpha_pattern": {r"ffn\.net\.2": 3},
    }  # fmt: skip
    return File(tensors=tensors, change=change, config=config, name="adapter_model.safetensors")


def lightx2v(config: DiTConfig) -> File:
    """A and B of the layers, and differences of biases, norms, tables and whole weights."""
    made = low_rank(as_original("diffusion_model.", "lora_down.weight", "lora_up.weight"))
    whole = {
        "blocks.1.self_attn.q.diff_b": ("blocks.1.attn1.to_q.bias", (WIDTH,)),
        "blocks.0.norm3.diff": ("blocks.0.norm2.weight", (WIDTH,)),
        "blocks.0.norm3.diff_b": ("blocks.0.norm2.bias", (WIDTH,)),
        "blocks.1.cross_attn.norm_k.diff": ("blocks.1.attn2.norm_k.weight", (WIDTH,)),
        "blocks.1.diff_m": ("blocks.1.scale_shift_table", (1, 6, WIDTH)),
        "head.diff_m": ("scale_shift_table", (1, 2, WIDTH)),
        "head.head.diff": ("proj_out.weight", (config.token_values, WIDTH)),
        "patch_embedding.diff": (
            "patch_embedding.weight", (WIDTH, config.in_channels + config.condition_channels, 1, 2, 2)
        ),
    }  # fmt: skip
    drawn = {name: draw(*shape, seed=name) for name, (_, shape) in whole.items()}
    tensors = {f"diffusion_model.{name}": value for name, value in drawn.items()}
    change = {theirs: drawn[name] for name, (theirs, _) in whole.items()}
    return File(tensors=made.tensors | tensors, change=made.change | change)


def lycoris(kind: str, *, peft: bool) -> File:
    """LoHa and LoKr: by LyCORIS with an alpha for each module, or by PEFT with one in its config."""
    tensors, change = {}, {}
    for i in range(2):
        for j, (original, (theirs, (rows, columns))) in enumerate(MODULES.items()):
            flat = f"lycoris_blocks_{i}_{original.replace('.', '_')}"
            module = f"base_model.model.blocks.{i}.{theirs}" if peft else flat
            d = lambda *shape, end, module=module: draw(*shape, seed=(module, end))  # noqa: E731
            alpha = 6.0
            if kind == "loha":
                parts = {"hada_w1_a": d(rows, 2, end=1), "hada_w1_b": d(2, columns, end=2),
                         "hada_w2_a": d(rows, 2, end=3), "hada_w2_b": d(2, columns, end=4)}  # fmt: skip
                one, two = (parts[f"hada_{w}_a"] @ parts[f"hada_{w}_b"] for w in ("w1", "w2"))
                weight = alpha / 2 * one * two
            else:
                parts = {"lokr_w1": d(4, 4, end=1), "lokr_w2": d(rows // 4, columns // 4, end=2)}
                if j % 2:  # its second matrix in two factors
                    parts = {"lokr_w1": parts["lokr_w1"], "lokr_w2_a": d(rows // 4, 2, end=3),
                             "lokr_w2_b": d(2, columns // 4, end=4)}  # fmt: skip
                second = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
                # LyCORIS scales what is of low rank; PEFT scales all.
                weight = (alpha / 2 if peft or j % 2 else 1.0) * np.kron(parts["lokr_w1"], second)
            tensors |= {f"{module}.{name}": value for name, value in parts.items()}
            if not peft:
                tensors[f"{module}.alpha"] = np.array(alpha, np.float32)
            change[f"blocks.{i}.{theirs}.weight"] = weight
    config = {"peft_type": kind.upper(), "r": 2, "alpha": 6} if peft else None
    name = "adapter_model.safetensors" if peft else "style.safetensors"
    return File(tensors=tensors, change=change, config=config, name=name)


def own() -> File:
    made = {f"vdit.block_1.attention.q.lora_{x}.weight": t for x, t in zip("AB", factors("own", (WIDTH, WIDTH)))}
    a, b = made.values()
    return File(tensors=made, change={"blocks.1.attn1.to_q.weight": b @ a})


def with_more(file: File, tensors: dict[str, np.ndarray]) -> File:
    return dataclasses.replace(file, tensors=file.tensors | tensors)


def wider() -> File:
    twice = {name: (theirs, (2 * rows, 2 * columns)) for name, (theirs, (rows, columns)) in MODULES.items()}
    return low_rank(as_original("diffusion_model.", "lora_A.weight", "lora_B.weight"), modules=twice)


def layout(name: str, model: str) -> File:
    """The file of a row, for the model of a column."""
    comfy = as_original("diffusion_model.", "lora_A.weight", "lora_B.weight")
    kohya = {"a": "lora_down.weight", "b": "lora_up.weight"}
    first = "diffusion_model.blocks.0.self_attn.q"
    makers = {
        "diffusers": diffusers_one,
        "diffusers, named high": lambda: diffusers_one(name="style-HighNoise_v2.safetensors"),
        "diffusers, both experts": diffusers_both,
        "PEFT folder": peft_folder,
        "PEFT rsLoRA with patterns": peft_patterns,
        "ComfyUI, lora_A": lambda: dataclasses.replace(low_rank(comfy), name="style_LOW_fp16.safetensors"),
        "ComfyUI, lora_down and alpha": lambda: low_rank(as_original("diffusion_model.", **kohya), alpha=2.0),
        "lightx2v, whole differences": lambda: lightx2v(experiment(model).backbone),
        "kohya, underscores": lambda: low_rank(as_original("lora_unet_", **kohya, flat="all"), alpha=2.0),
        "kohya, dots": lambda: low_rank(as_original("lora_unet_", **kohya, flat="block"), alpha=2.0),
        "VideoX-Fun": lambda: low_rank(as_original("lora_unet__", **kohya, flat="all"), alpha=2.0),
        "DiffSynth": lambda: low_rank(as_original("pipe.dit.", "lora_A.default.weight", "lora_B.default.weight")),
        "OneTrainer": lambda: low_rank(
            lambda i, original, theirs: tuple(
                f"lora_transformer_blocks_{i}_{theirs.replace('.', '_')}.{end}" for end in (*kohya.values(), "alpha")
            ),
            alpha=2.0,
        ),
        "LyCORIS LoHa": lambda: lycoris("loha", peft=False),
        "LyCORIS LoKr": lambda: lycoris("lokr", peft=False),
        "PEFT LoHa": lambda: lycoris("loha", peft=True),
        "PEFT LoKr": lambda: lycoris("lokr", peft=True),
        "Wan 2.1 I2V, k_img and v_img": lambda: low_rank(comfy, modules=MODULES | IMAGE),
        "PEFT DoRA": lambda: peft_folder(use_dora=True),
        "ComfyUI dora_scale": lambda: with_more(low_rank(comfy), {f"{first}.dora_scale": draw(WIDTH, 1, seed=0)}),
        "OFT": lambda: File(tensors={f"{first}.oft_blocks": draw(4, 12, 12, seed=0)}, change={}),
        "PiSSA": lambda: peft_folder(init_lora_weights="pissa"),
        "of a wider Wan": wider,
        "of a deeper Wan": lambda: low_rank(comfy, depth=3),
        "vdit's own": own,
    }
    return makers[name]()


REASONS = {
    "expert": r"expert|one transformer", "not a Wan": "not a Wan", "DoRA": "DoRA", "OFT": "OFT", "PiSSA": "PiSSA",
    "width": r"\[96, 96\].*\[48, 48\].*width 48", "block": "block 2.*2 blocks",
}  # fmt: skip


def test_the_table_names_every_layout_that_is_tested():
    assert len(ROWS) == 25
    assert (COLUMNS[0], COLUMNS[-1]) == ("Wan 2.1 T2V", "not a Wan")
    assert {cell.partition(": ")[2] for _, _, cell in CELLS if cell.startswith("refused")} == set(REASONS)


@pytest.mark.parametrize(("name", "model", "cell"), CELLS, ids=[f"{a}-{b}" for a, b, _ in CELLS])
def test_each_cell_of_the_table(tmp_path, name, model, cell):
    file, about = layout(name, model), experiment(model)
    path, notes = file.write(tmp_path), []
    expert = "@" + cell.rpartition("@")[2] if "@" in cell else ""
    given = f"{path}:0.5{expert}"
    if cell.startswith("refused"):
        with pytest.raises(WeightsError, match=REASONS[cell.partition(": ")[2]]) as error:
            open_loras([given], about, notes.append)
        assert str(path) in str(error.value)
        return
    loras = open_loras([given], about, notes.append)
    assert any("left out 8 tensors" in note for note in notes) == cell.startswith("rest")
    trees = about.network.experts
    target = cell.rpartition(" to ")[2].removeprefix("@") if " to " in cell else None
    wanted = {"high": trees[:1], "low": trees[1:], "both": trees, None: trees}[target]
    assert sorted(tree for tree, _, _ in loras) == sorted(wanted)
    base = state(about.backbone) if model != "not a Wan" else None
    for tree, lora, strength in loras:
        assert strength == 0.5
        change = file.second if tree == "dit_low" and file.second is not None else file.change
        if base is None:  # its layers have no public names
            (low,) = lora.layers.values()
            np.testing.assert_array_equal((low.a @ low.b).T, change["blocks.1.attn1.to_q.weight"])
            assert (list(lora.layers), low.scale) == (["block_1/attention/q"], 1.0)
            continue
        changed = {key: value for key, value in change.items() if key in base}
        after = {key: value + strength * changed.get(key, 0) for key, value in base.items()}
        rules = diffusers_rules(about.backbone)
        same(merge(fill(rules, base), lora, strength), fill(rules, after))


def same(ours, theirs) -> None:
    for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=str(path))


@pytest.mark.parametrize("rules", [diffusers_rules, original_rules])
@pytest.mark.parametrize("kind", ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b", "wan2.2-ti2v-5b", "flf2v, by tiny steps"])
def test_shapes_of_public_tensors_are_those_of_the_model(rules, kind):
    tiny = experiment("Wan 2.1 I2V")
    config = dataclasses.replace(tiny.backbone, image_positions=10) if "tiny" in kind else preset(kind, depth=1)
    vision = tiny.vision if config.image_width == 32 else None
    if config.image_width and vision is None:
        vision = CLIPVisionConfig(layers=2)
    vae = dataclasses.replace(tiny.vae, latent_channels=config.in_channels)
    about = dataclasses.replace(tiny, backbone=config, vision=vision, vae=vae)
    about = dataclasses.replace(about, text=dataclasses.replace(about.text, width=config.text_width, heads=8))
    shapes = jax.eval_shape(about.network.init, jax.random.key(0))["dit"]
    flat = {
        "/".join(key.key for key in path if hasattr(key, "key")): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    for rule in rules(config):
        assert tensor_shape(rule, config) == rule.shape(flat), rule.name


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("high_noise_model.safetensors", "high"), ("style-low-noise.pt", "low"), ("Wan2.2_HighNoise_x", "high"),
        ("T2V-A14B-4steps-lora_HIGH_fp16.safetensors", "high"), ("Wan22-I2V-A14B-LOW-rCM1_0_lora_rank_64_bf16", "low"),
        ("StyleLow.safetensors", "low"), ("high_quality_low_noise", "low"), ("slow_motion.safetensors", None),
        ("low_light.safetensors", None), ("lora_low_rank_64.safetensors", None), ("high_to_low.safetensors", None),
        ("highway.safetensors", None), ("style.safetensors", None),
    ],
)  # fmt: skip
def test_what_a_files_name_says_of_its_expert(name, expert):
    assert expert_of_name(name) == expert


def test_a_file_with_its_strength_and_expert(tmp_path):
    odd = tmp_path / "a:2@low"
    odd.write_bytes(b"")
    file = tmp_path / "style.safetensors"
    file.write_bytes(b"")
    for text, strength, expert in [
        (f"{file}", 1.0, None), (f"{file}:0.5", 0.5, None), (f"{file}@low", 1.0, "low"),
        (f"{file}:-1@both", -1.0, "both"), (str(odd), 1.0, None), (f"{odd}:3@high", 3.0, "high"),
    ]:  # fmt: skip
        got = LoRAFile.parse(text)
        assert (got.strength, got.expert) == (strength, expert)
        assert got.path in (file, odd)
    for text in (f"{file}:nan", f"{file}:strong", f"{file}@hihg", f"{file}:0.5@l"):
        with pytest.raises(ConfigError, match=r"strength|expert"):
            LoRAFile.parse(text)


AT = "diffusion_model.blocks.0"
# What is put into a good file (None: taken out) -> what the error names.
BAD = {
    "missing half": ({f"{AT}.ffn.0.lora_B.weight": None}, r"blocks\.0\.ffn\.0.*up"),
    "half of another rank": ({f"{AT}.ffn.0.lora_B.weight": (HIDDEN, 3)}, r"\[64, 3\].*\[4, 48\]"),
    "the same weight twice": ({"transformer.blocks.0.ffn.net.0.proj.lora_A.weight": (RANK, WIDTH)}, "one weight"),
    "NaN": ({f"{AT}.ffn.0.lora_A.weight": np.full((RANK, WIDTH), np.nan, np.float32)}, r"ffn\.0\.lora_A"),
    "quantised": ({f"{AT}.ffn.0.lora_A.weight": np.ones((RANK, WIDTH), np.int8)}, "int8"),
    "bias of another width": ({f"{AT}.ffn.0.diff_b": (9,)}, r"diff_b.*\[9\].*\[64\]"),
    "table of another width": ({f"{AT}.diff_m": (1, 6, 9)}, r"diff_m.*9.*48"),
    "enlarged patch": ({"diffusion_model.patch_embedding.diff": (WIDTH, 36, 1, 2, 2)}, r"36.*16"),
    "a difference in vdit's own layout": ({"vdit.block_0.attention.q.diff": (WIDTH, WIDTH)}, r"vdit\.block_0"),
    "text encoder": ({"lora_te_layers_0.lora_down.weight": (4, 4)}, "text encoder"),
    "saved modules": ({f"{AT}.ffn.0.modules_to_save.default.weight": (4, 4)}, "saved modules"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(tmp_path, what):
    file = low_rank(as_original("diffusion_model.", "lora_A.weight", "lora_B.weight"))
    changes, named = BAD[what]
    drawn = {name: draw(*new, seed=0) if isinstance(new, tuple) else new for name, new in changes.items()}
    tensors = {name: tensor for name, tensor in (file.tensors | drawn).items() if tensor is not None}
    path = dataclasses.replace(file, tensors=tensors).write(tmp_path)
    with pytest.raises(WeightsError, match=named) as error:
        open_loras([str(path)], experiment("Wan 2.1 T2V"), lambda line: None)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"r": 8}, "rank 8.*have 4"), ({"lora_alpha": "2"}, "lora_alpha='2'"),
        ({"lora_alpha": 1e999}, "lora_alpha=inf"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "alpha_pattern"), ({"rank_pattern": [1]}, "rank_pattern"),
        ({"peft_type": "VERA"}, "VERA"), ({"bias": "all"}, "bias='all'"), ({"peft_type": "LOHA"}, "LOHA"),
        ({"modules_to_save": ["x"]}, "modules_to_save"),
    ],
)  # fmt: skip
def test_an_adapter_config_that_cannot_be_followed_is_refused(tmp_path, changes, named):
    path = peft_folder(**changes).write(tmp_path)
    with pytest.raises(WeightsError, match=named):
        open_loras([path], experiment("Wan 2.1 T2V"), lambda line: None)


def test_which_alpha_counts(tmp_path):
    """The module's own, then the header's, then adapter_config.json's, and only that of the file itself."""
    about = experiment("Wan 2.1 T2V")
    scale = lambda path, notes: open_loras([path], about, notes.append)[0][1].layers["block_0/attention/q"].scale  # noqa: E731
    own = low_rank(as_original("diffusion_model.", "lora_A.weight", "lora_B.weight"), alpha=2.0)
    without = low_rank(as_diffusers("transformer."))
    for kind, file, wanted in [
        ("own", dataclasses.replace(own, metadata=header(r=RANK, lora_alpha=8), config={"lora_alpha": 16}), 0.5),
        ("header", dataclasses.replace(without, metadata=header(lora_alpha=8), config={"lora_alpha": 16}), 2.0),
        ("config", dataclasses.replace(without, config={"lora_alpha": 16}), 4.0),
        ("none", without, 1.0),
    ]:
        (tmp_path / kind).mkdir()
        path, notes = file.write(tmp_path / kind), []
        assert scale(path, notes) == wanted, kind
        assert any("alpha" in note for note in notes) == (kind == "none")
    folder = tmp_path / "config" / "lora"
    save_file(without.tensors, folder / "another.safetensors")
    assert scale(folder / "another.safetensors", []) == 1.0


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr"])
def test_peft_itself_gives_the_same_numbers(torch, tmp_path, parity, kind):
    """What PEFT saves, with ranks and alphas by pattern, in its own folder."""
    import peft

    model = public.wan_transformer()
    options = {"target_modules": ["attn1.to_q", "attn2.to_out.0", "ffn.net.2"], "r": 4}
    options["rank_pattern"] = {"attn1.to_q": 3}
    made = {
        "LoRA": lambda: peft.LoraConfig(lora_alpha=6, use_rslora=True, alpha_pattern={r"ffn.net.2": 5}, **options),
        "LoHa": lambda: peft.LoHaConfig(alpha=6, alpha_pattern={r"ffn.net.2": 5}, **options),
        "LoKr": lambda: peft.LoKrConfig(alpha=6, alpha_pattern={r"ffn.net.2": 5}, **options),
    }[kind]()
    about = dataclasses.replace(experiment("Wan 2.1 T2V"))
    tensors = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    base = fill(diffusers_rules(about.backbone), tensors)
    adapted = peft.get_peft_model(model, made)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if any(part in name for part in ("lora_", "hada_", "lokr_")):
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(tmp_path)
    theirs, ours = inputs_for(model, b=1, shape=(2, 4, 6), texts=8)
    ((_, lora, _),) = open_loras([tmp_path], about, lambda line: None)
    params = jax.tree.map(np.asarray, merge(base, lora))
    want = run(torch, adapted, theirs)
    parity(f"Wan, a {kind} that PEFT saved", run_ours(about.backbone, params, ours, (2, 4, 6)), want)
    assert np.abs(run_ours(about.backbone, base, ours, (2, 4, 6)) - want.numpy()).max() > 0.01


@pytest.fixture(scope="module")
def a14b(torch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a14b")
    public.wan_experts(folder)
    return folder


def kernel(generator, tree: str) -> np.ndarray:
    return np.asarray(generator.params[tree]["blocks"]["attention"]["q"]["kernel"][0])


def test_a_pair_of_files_from_python(a14b):
    """One on each expert, with its own strength; in one call and in the other order."""
    pair = [shared_data("faults", "lora_wan22_pair", f"{name}_noise.safetensors") for name in ("low", "high")]
    name = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
    low, high = ((t := load_file(path))[name.format("B")] @ t[name.format("A")] for path in pair)
    plain = vdit.load(a14b)
    with pytest.warns(VditWarning, match="low-noise"):
        made = vdit.load(a14b, lora=[f"{pair[0]}:0.5", vdit.LoRAFile(path=str(pair[1]), strength=2.0)], merge_lora=True)
    for tree, change in (("dit", 2.0 * high.T), ("dit_low", 0.5 * low.T)):
        np.testing.assert_allclose(kernel(made, tree) - kernel(plain, tree), change, atol=1e-5)


def single_files(folder: Path, target: Path) -> Path:
    """The experts of a diffusers folder as ComfyUI has them, one file each; returns the high one's."""
    config = experiment("Wan 2.2 T2V A14B").backbone
    names = {theirs.name: own.name for theirs, own in zip(diffusers_rules(config), original_rules(config), strict=True)}
    for name, part in (("low", "transformer_2"), ("high", "transformer")):
        (source,) = (folder / part).glob("*.safetensors")
        path = target / f"mix_{name}_noise.safetensors"
        save_file({names[key]: tensor for key, tensor in load_file(source).items()}, path)
    return path


def test_the_command_makes_what_python_makes(a14b, tmp_path, compile_cache):
    """A LoRA with whole differences on a model of single files: as on the folder that they are of, and it says so."""
    file = shared_data("faults", "lora_lightx2v", "lightx2v.safetensors")
    words = ["sample", "--model", single_files(a14b, tmp_path), "--parts", a14b, "--lora", f"{file}:0.5@both", "a dog"]
    words += ["--frames", 1, "--size", "32x48", "--steps", 1, "--out", tmp_path / "a.png"]
    done = run_vdit(*words, cache=compile_cache)
    assert done.returncode == 0, done.stderr
    assert "alpha" in done.stderr
    with pytest.warns(VditWarning, match="alpha"):
        generator = vdit.load(a14b, lora=f"{file}:0.5@both", merge_lora=True)
    video = np.asarray(generator("a dog", frames=1, size=(32, 48), steps=1)[0, 0])
    assert np.abs(np.asarray(Image.open(tmp_path / "a.png")) - (video + 1) * 127.5).max() < 1.0


def test_a_lora_is_checked_before_weights_are_loaded(a14b, tmp_path, capsys):
    shutil.copytree(a14b, tmp_path / "model")
    for path in (tmp_path / "model").glob("transformer*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8] + b"\xff" * 8)  # NaN, which is found on loading
    words = ["sample", "--model", str(tmp_path / "model"), "a dog", "--out", str(tmp_path / "a.mp4")]
    assert main([*words, "--lora", str(shared_data("faults", "lora_lightx2v", "lightx2v.safetensors"))]) == 2
    assert "@high" in capsys.readouterr().err
    assert main([*words, "--lora", str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err


SHAPES = [(), (0,), (1,), (0, 48), (48, 0), (2, 3, 4), (1, 1, 1, 1, 1, 1), (48, 48), (64, 48), (4, 4)]
WORDS = ["", ".", "alpha", "lora_A", "lora_down.weight", "hada_w1_a", "lokr_w1", "diff", "blocks.", "blocks_9" * 9]
METADATA = [
    "{", "[]", "null", '{"r": -1}', '{"lora_alpha": [1]}', '{"transformer.r": "4"}', '{"r": 1e400}', "[" * 9999,
    '{"alpha_pattern": {"(": 1}}', '{"rank_pattern": {"x": null}}', '{"peft_type": []}', '{"use_dora": {}}',
]  # fmt: skip


def test_hostile_files_end_in_one_error():
    """Names, shapes, types and metadata changed at random: a LoRA, or a WeightsError."""
    rng, config, refused = np.random.default_rng(0), experiment("Wan 2.1 T2V").backbone, []
    comfy = as_original("diffusion_model.", "lora_A.weight", "lora_B.weight")
    sources = [low_rank(comfy, alpha=2.0), lycoris("loha", peft=False), lycoris("lokr", peft=False), lightx2v(config)]
    sources += [diffusers_one(), peft_patterns()]
    for _ in range(400):
        file = sources[rng.integers(len(sources))]
        tensors = dict(file.tensors)
        for name in rng.choice(sorted(tensors), size=rng.integers(1, 4), replace=False):
            what, cut = rng.integers(4), rng.integers(len(name))
            if what == 0:
                tensors.pop(name)
            elif what == 1:
                tensors[name] = np.zeros(SHAPES[rng.integers(len(SHAPES))], rng.choice(["float32", "int8", "float16"]))
            elif what == 2:
                tensors[name[:cut] + WORDS[rng.integers(len(WORDS))] + name[cut + 1 :]] = tensors.pop(name)
            else:
                tensors[name] = np.full_like(tensors[name], np.inf)
        text = METADATA[rng.integers(len(METADATA))]
        metadata = {"lora_adapter_metadata": text} if rng.random() < 0.3 else file.metadata
        try:
            lora = read_lora(tensors, config, metadata=metadata, adapter=file.config)
            for name in lora.differences:
                lora.differences[name]
        except WeightsError as error:
            refused.append(str(error))
    assert 100 < len(refused) < 400
    assert all("\n" not in line for line in refused)
