"""Encode videos to latents on disk with the VAE of a run, for instance a data set too large for `vdit train`.

    python data_pipelines/encode_latents.py runs/clips latents/clips --samples 100000 \\
        --data.source=folder --data.source.path=videos --data.threads=16

Clips (sizes, durations, frame rates) are sampled as in the run's experiment; --data.KEY=VALUE changes it.
vdit.data.LatentStore reads the result. Videos that the run holds out stay out. Unreadable files are skipped and listed.
After an interruption the same command resumes, if the videos have not changed. To split the work between machines that
share the folder, give each --shard INDEX/COUNT; when all are done, the same command without it completes the folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdit.config import apply_overrides, to_json
from vdit.data import encode_clips, open_source
from vdit.data.changes import digest_of, look_at_videos
from vdit.errors import ConfigError, VditError
from vdit.experiment.experiment import Experiment
from vdit.experiment.upgrade import upgrade_overrides
from vdit.generate import load_vae
from vdit.models.vae.video import VideoVAE
from vdit.train.encoding import vae_identity
from vdit.train.workspace import Workspace


def load(run: str) -> tuple[VideoVAE, Experiment]:
    """(VAE that gives latents as they are, experiment) of a run."""
    vae, experiment = load_vae(run), Workspace(run).experiment()
    channels = experiment.vae.latent_channels
    plain = {"mean": np.zeros(channels, np.float32), "std": np.ones(channels, np.float32)}
    return dataclasses.replace(vae, statistics=plain), experiment


def _share(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} must be INDEX/COUNT, 0/4 to 3/4 for four shards")
    return int(index), int(count)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of the run that trained the VAE")
    parser.add_argument("out", help="new folder for the latents")
    parser.add_argument("--samples", type=int, default=0, help="clips to encode; 0: each video once")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--shard", type=_share, default=(0, 1), metavar="INDEX/COUNT", help="encode only this shard")
    args, rest = parser.parse_known_args(arguments)
    vae, experiment = load(args.run)
    unknown = [text for text in rest if not text.startswith("--data.") or "=" not in text]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is unknown: write settings as --data.KEY=VALUE")
    data, seed = experiment.data, experiment.seed
    overrides = upgrade_overrides(text.removeprefix("--") for text in rest)
    data = apply_overrides(data, [override.removeprefix("data.") for override in overrides])
    # What the run holds out of its own data stays out; other data has other names.
    holdout = experiment.holdout if data.source == experiment.data.source else ()
    source = open_source(data, seed=seed, exclude=holdout)
    record = look_at_videos(data, holdout)
    for line in source.summary.lines() if source.summary is not None else ():
        print(line, file=sys.stderr)
    told = set(source.report())
    samples = args.samples or len(source)
    print(f"{args.run}: its VAE encodes {samples} cuts of {len(source)} clips ({data.source}) to {args.out}, as "
          f"{args.dtype}", file=sys.stderr)

    def progress(done: int, total: int) -> None:
        print(f"\r{done} of {total}", end="", file=sys.stderr, flush=True)

    index = encode_clips(source, vae.encode, Path(args.out), samples=samples, vae=vae_identity(vae.params),
                         dtype=args.dtype, threads=data.threads, progress=progress,
                         key=[to_json(data), seed, digest_of(record)], record=record,
                         shard_index=args.shard[0], shard_count=args.shard[1])
    if index is None:
        print(f"\nshare {args.shard[0]} of {args.shard[1]} is encoded; when all are, run the command without --shard")
    else:
        print(f"\n{args.out}: {index['count']} latents in {len(index['shards'])} file(s)")
    for name, reason in source.report().items():
        if name not in told:
            print(f"skipped {name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except VditError as error:
        print(f"encode_latents: {error}", file=sys.stderr)
        sys.exit(2)
