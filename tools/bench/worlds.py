"""Clips a second of each world, on one core.

python tools/bench/worlds.py --size 64 64 --frames 17
"""

import argparse
import time

from vdit import worlds
from vdit.eval.detectors import detect


def rate(work, seconds: float) -> tuple[float, float]:
    """Calls of work(i) a second, by the wall clock and by this process's own time."""
    work(0)
    start, own, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        calls += 1
        work(calls)
    return calls / (time.perf_counter() - start), calls / (time.process_time() - own)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to run each world")
    args = parser.parse_args()
    print(f"{args.frames} frames of {args.size[0]}x{args.size[1]}   clips/s   clips/s of processor time")
    for name in worlds.names():
        world = worlds.make(name, size=tuple(args.size), frames=args.frames)
        wall, own = rate(world.__getitem__, args.seconds)
        print(f"{name:24s} {wall:8.0f} {own:12.0f}")
    video = worlds.make("moving", size=tuple(args.size), frames=args.frames)[0].video
    wall, own = rate(lambda _: detect(video), args.seconds)
    print(f"{'detector':24s} {wall:8.0f} {own:12.0f}")


if __name__ == "__main__":
    main()
