"""Weak scaling on paper: what a chip sends in a training step as a pod grows from 8 to 512, from compiled programs.

    python tools/weak_scaling.py --out docs/weak_scaling          # .json, .md, .png; about 20 minutes on 2 cores
    python tools/weak_scaling.py --out docs/weak_scaling --draw   # the table and the picture again, from the .json

The work of a chip stays constant. There are three ways to grow (v5p, 2x2x2 to 8x8x8):

    fsdp      one row a chip, parameters sharded over all chips. A chip gathers (g-1)/g of the parameters: flat up to
              32 chips, and flat again from 64 on at twice the bytes, where XLA gathers by all-reducing padded shards.
    data      one row a chip, parameters sharded over 8. Adds an all-reduce of gradient shards, 2 (g-1)/g of a shard.
    sequence  one row as long as the pod is large, its tokens split over all chips. Up to 16 chips exchange heads:
              (s-1)/s of a chip's tokens, flat. Beyond, keys go round a ring of s/16 groups: a chip's bytes grow with
              the ring, and so do its FLOPs (attention is quadratic), so bytes a FLOP are flat.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from vdit.config import load_config
from vdit.dist.mesh import MeshConfig
from vdit.plan.plan import gib, plan
from vdit.plan.topology import parse_topology

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
WAYS = ("fsdp", "data", "sequence")
TOKENS = 2048  # a chip's


def experiment(way: str, chips: int):
    """A DiT of 4 layers, width 1024, 16 heads, without text: what it sends a layer is what a deep one does."""
    full = load_config(ROOT / "experiments" / "pod_tiny.py")
    mesh = {"fsdp": MeshConfig(data=1, fsdp=chips), "data": MeshConfig(data=chips // 8, fsdp=8),
            "sequence": MeshConfig(data=1, sequence=chips)}[way]  # fmt: skip
    rows, tokens = (1, TOKENS * chips) if way == "sequence" else (chips, TOKENS)
    return dataclasses.replace(
        full,
        mesh=mesh,
        data=dataclasses.replace(full.data, row_tokens=tokens, max_frames_per_row=1, max_clips_per_row=1),
        backbone=dataclasses.replace(
            full.backbone, width=1024, depth=4, heads=16, text="none", text_pool=False, remat="attention"
        ),
        dit_train=dataclasses.replace(full.dit_train, batch_size=rows),
    )


def measure(out: Path) -> list[dict]:
    """One line for each way and size; a file of them is kept as they come, and what it holds is not done again."""
    lines = json.loads(out.read_text()) if out.exists() else []
    done = {(line["way"], line["topology"]) for line in lines}
    todo = [(way, f"v5p:{shape}") for way in WAYS for shape in SHAPES]
    for number, (way, name) in enumerate(todo, 1):
        if (way, name) in done:
            continue
        chips = parse_topology(name).chips
        print(f"{number} of {len(todo)}: {way}, {name}", flush=True)
        program = plan(experiment(way, chips), name, programs=("train",), effort="quick").programs[0]
        lines.append({
            "way": way, "topology": name, "chips": chips, "flops_a_chip": program.flops / chips,
            "bytes_a_chip": sum(line["bytes"] for line in program.traffic), "memory_a_chip": program.total,
            "hbm_a_chip": program.hbm, "traffic": list(program.traffic),
        })  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(lines, indent=1) + "\n")
    return lines


def by_kind(line: dict) -> dict[str, float]:
    """Bytes of each kind and mesh axes, those under a thousandth left out."""
    sums: dict[str, float] = {}
    for one in line["traffic"]:
        name = f"{one['kind']} ({' x '.join(one['axes'])})"
        sums[name] = sums.get(name, 0.0) + one["bytes"]
    return {name: size for name, size in sums.items() if size > 1e-3 * line["bytes_a_chip"]}


def table(lines: list[dict]) -> str:
    """Markdown: chips down, what a chip sends across."""
    text = []
    for way in WAYS:
        mine = [line for line in lines if line["way"] == way]
        kinds = sorted({kind for line in mine for kind in by_kind(line)},
                       key=lambda kind: -max(by_kind(line).get(kind, 0) for line in mine))  # fmt: skip
        text += [f"**{way}**", "", f"| chips | all | {' | '.join(kinds)} | FLOPs | bytes a GFLOP | memory |"]
        text.append("| --- " * (len(kinds) + 5) + "|")
        for line in mine:
            cells = [gib(by_kind(line)[kind]) if kind in by_kind(line) else "" for kind in kinds]
            flops, sent = line["flops_a_chip"], line["bytes_a_chip"]
            cells = [str(line["chips"]), gib(sent), *cells, f"{flops / 1e12:.2f} T", f"{sent / flops * 1e9:,.0f}"]
            text.append(f"| {' | '.join(cells)} | {gib(line['memory_a_chip'])} |")
        text.append("")
    return "\n".join(text)


def draw(lines: list[dict], path: Path) -> None:
    """A panel for each way: bytes a chip by kind, over chips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (*panels, rates) = plt.subplots(1, len(WAYS) + 1, figsize=(16, 4.2), constrained_layout=True)
    for way, panel in zip(WAYS, panels):
        mine = [line for line in lines if line["way"] == way]
        chips = [line["chips"] for line in mine]
        totals: dict[str, float] = {}
        for line in mine:
            for kind, size in by_kind(line).items():
                totals[kind] = max(totals.get(kind, 0.0), size)
        shown = sorted(totals, key=totals.get, reverse=True)[:5]
        panel.plot(chips, [line["bytes_a_chip"] / 2**20 for line in mine], "k-o", lw=2, ms=4, label="all")
        for kind in shown:
            panel.plot(chips, [by_kind(line).get(kind, float("nan")) / 2**20 for line in mine], "-o", ms=3, label=kind)
        panel.set(title=way, ylabel="MiB a chip sends in a step" if way == WAYS[0] else "")
        panel.set_ylim(0, 1.5 * panel.get_ylim()[1])  # room for the legend
        rates.plot(chips, [line["bytes_a_chip"] / line["flops_a_chip"] * 1e9 for line in mine], "-o", ms=4, label=way)
    rates.set(title="bytes a GFLOP")
    rates.set_ylim(bottom=0)
    for panel in (*panels, rates):
        panel.set_xscale("log", base=2)
        panel.set_xticks(chips, [str(count) for count in chips])
        panel.set_xlabel("chips")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/weak_scaling", help="path without its ending")
    parser.add_argument("--draw", action="store_true", help="compile nothing")
    options = parser.parse_args()
    out = Path(options.out)
    kept = out.with_suffix(".json")
    lines = json.loads(kept.read_text()) if options.draw else measure(kept)
    title, *rest = __doc__.splitlines()
    picture = f"![bytes that a chip sends]({out.name}.png)"
    preface = "\n".join([f"# {title}", *rest, "", picture, "", ""])
    out.with_suffix(".md").write_text(preface + table(lines))
    draw(lines, out.with_suffix(".png"))
    print(table(lines))


if __name__ == "__main__":
    main()
