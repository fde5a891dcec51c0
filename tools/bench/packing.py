"""How full packed rows are, and how fast they are built, on a realistic mix of images and clips.

    python tools/bench/packing.py [--rows 200] [--row-tokens 4096 8192 16384] [--width 64]
    python tools/bench/packing.py --balance 8 16 32       # and how alike the rows of a batch are in FLOPs

The mix: three resolutions (256, 480 and 720 on a side), eleven aspect ratios, images (40%) and clips of 9 to
81 frames, captions of 8 to 120 tokens; latents 8x smaller in space and 4x in time, patch (1, 2, 2). For each
row size the largest clips are those that fit. Prints useful tokens of the best-fit packer against grain's
first-fit and best-fit packers and against padding each clip to its row.

With --balance: 16 devices have a row each, so a step takes as long as its dearest row. Prints the FLOPs of that row
over those of the mean row, averaged over batches, by the formula of DiTConfig.flops for the size of Wan 1.3B; for rows
as they are packed, and for rows given by rank out of windows of so many (data.balance_rows).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator

import grain
import numpy as np

from vdit.data import DataConfig, PackItem, RowShape
from vdit.data.clips import fit_size
from vdit.data.packing import Balance, PackedRows
from vdit.models.dit.config import DiTConfig

ASPECTS = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16, 2.0, 1 / 2, 2.39, 1.85)
AREAS = ((256 * 256, 0.5), (480 * 480, 0.3), (720 * 720, 0.2))
FRAMES = ((1, 0.4), (9, 0.1), (17, 0.2), (33, 0.15), (49, 0.1), (81, 0.05))


def draw_grid(rng: np.random.Generator, limit: int) -> tuple[int, int, int]:
    """Tokens along t, h, w of one sample of the mix with at most `limit` tokens."""
    while True:
        area, frames = (int(rng.choice([v for v, _ in table], p=[p for _, p in table]))
                        for table in (AREAS, FRAMES))
        aspect = float(rng.choice(ASPECTS))
        h, w = fit_size(round(1000 / math.sqrt(aspect)), round(1000 * math.sqrt(aspect)), area, 16)
        grid = (1 + (frames - 1) // 4, h // 16, w // 16)
        if math.prod(grid) <= limit:
            return grid


def mix(count: int, limit: int, width: int, seed: int = 0) -> list[PackItem]:
    """`count` clips of the mix; values share memory, so the cost of reading is left out."""
    rng = np.random.default_rng(seed)
    clips = []
    for i in range(count):
        grid = draw_grid(rng, limit)
        values = np.broadcast_to(np.float16(1), (math.prod(grid), width))
        text = np.ones(int(rng.integers(8, 121)), np.int32)
        clips.append(PackItem(values=values, grid=grid, text=text, place=i))
    return clips


def ours(clips: list[PackItem], limits: RowShape, config: DataConfig) -> tuple[float, float, float]:
    """(useful share, share in the worst row, clips a second) of the rows of a long stream."""
    alone = dataclasses.replace(config, threads=0, read_ahead=0)
    order = {0: grain.MapDataset.range(len(clips))}
    rows = PackedRows(order, lambda index, place: clips[index], limits, alone, rows_each=1, identity={})
    start, shares, packed = time.process_time(), [], 0
    for row in rows:
        shares.append(float((row.segment_ids > 0).mean()))
        packed += int(row.segment_ids.max())
        if packed > len(clips) - config.buffer_clips:  # the tail of a finite stream is not the mix
            break
    return float(np.mean(shares)), min(shares), packed / (time.process_time() - start)


def grains(clips: list[PackItem], limits: RowShape, packer: type) -> float:
    """Useful share of one of grain's packers with 8 open rows."""
    def items() -> grain.IterDataset:
        stream = grain.MapDataset.range(len(clips))
        return stream.map(lambda i: {"tokens": np.ones(len(clips[int(i)].values), np.int8),
                                     "text": clips[int(i)].text}).to_iter_dataset()

    lengths = {"tokens": limits.tokens, "text": limits.text}
    rows: Iterator = iter(packer(items(), length_struct=lengths, num_packing_bins=8))
    return float(np.mean([(row["tokens_segment_ids"] > 0).mean() for row in rows]))


DEVICES = 16


def dearest(clips: list[PackItem], limits: RowShape, config: DataConfig, window: int) -> tuple[float, float]:
    """(FLOPs of a batch's dearest row over its mean row, the same of the worst batch), of full batches."""
    model = DiTConfig(width=1536, depth=30, heads=12)
    orders = {k: grain.MapDataset.range(len(clips))[k::DEVICES] for k in range(DEVICES)}
    alone = dataclasses.replace(config, threads=0, read_ahead=0)
    rows = PackedRows(orders, lambda index, place: clips[index], limits, alone, rows_each=1, identity={},
                      balance=Balance(rows=window) if window > 1 else None)  # fmt: skip
    ratios = []
    for row in rows:
        sizes = [np.bincount(ids[ids > 0])[1:] for ids in np.asarray(row.segment_ids)]
        if min(size.sum() for size in sizes) < 0.9 * limits.tokens:  # the tail of a finite stream is not the mix
            break
        costs = [sum(model.flops(int(n), float(n)) for n in size) for size in sizes]
        ratios.append(max(costs) / np.mean(costs))
    return float(np.mean(ratios)), max(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200, help="about how many rows to pack for each size")
    parser.add_argument("--row-tokens", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--width", type=int, default=64, help="values of a token")
    parser.add_argument("--balance", type=int, nargs="*", default=[], help="windows of rows that are given by rank")
    args = parser.parse_args()
    print("row tokens  text  clips/row |  useful  worst row | grain first-fit  best-fit | padded | clips/min")
    for tokens in args.row_tokens:
        config = DataConfig(row_tokens=tokens, max_text_per_row=tokens // 4, max_frames_per_row=512,
                            max_clips_per_row=128)
        limits = RowShape.of(config)
        mean = np.mean([len(clip.values) for clip in mix(500, tokens, 1)])
        clips = mix(int(args.rows * tokens / mean) + config.buffer_clips, tokens, args.width)
        useful, worst, speed = ours(clips, limits, config)
        first = grains(clips, limits, grain.experimental.FirstFitPackIterDataset)
        best = grains(clips, limits, grain.experimental.BestFitPackIterDataset)
        print(f"{tokens:10d} {limits.text:5d} {tokens / mean:10.1f} | {useful:7.4f} {worst:10.4f} | "
              f"{first:15.4f} {best:9.4f} | {mean / tokens:6.3f} | {speed * 60:9.0f}")
    if args.balance:
        print("\nrow tokens  window | dearest row / mean row   worst batch")
    for tokens, window in itertools.product(args.row_tokens if args.balance else (), [1, *args.balance]):
        config = DataConfig(row_tokens=tokens, max_text_per_row=tokens // 4, max_frames_per_row=512,
                            max_clips_per_row=128)  # fmt: skip
        mean = np.mean([len(clip.values) for clip in mix(500, tokens, 1)])
        clips = mix(int(args.rows * DEVICES * tokens / mean), tokens, args.width)
        ratio, worst = dearest(clips, RowShape.of(config), config, window)
        print(f"{tokens:10d} {window:7d} | {ratio:23.3f} {worst:13.3f}")


if __name__ == "__main__":
    main()
