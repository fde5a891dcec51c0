"""A language model on this machine's CPU beside llama.cpp: the same GGUF file, prompt and greedy tokens, one table.

    python tools/bench/language_model.py SmolLM2-135M-Instruct.Q4_1.gguf
    python tools/bench/language_model.py MODEL.gguf --sides vdit --tokens 32

Sides: vdit (float32, layers stacked), apart (float32, each layer a piece of the program of its own), and llama.cpp by
the package llama-cpp-python, which computes with the quantised weights. Each side runs in a process of its own, one
after the other. A figure is the median over --repeats. On a busy machine compare processor seconds, with --threads 1:
they are counted over all threads of a process, and llama.cpp's threads wait for each other busily. The first token is
apart, since the prompt has to be read for it. Compiling is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIDES = ("vdit", "apart", "llama.cpp")
PROMPT = "Write a long and detailed description of a video in which a red ball rolls down a green hill."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="default: all")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer; default: 64")
    parser.add_argument("--repeats", type=int, default=3, help="answers of each side; default: 3")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(options.one, options)))
        return
    found = {}
    for side in options.sides:
        print(f"{side} ...", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, str(options.model), "--one", side, "--tokens", str(options.tokens),
                   "--repeats", str(options.repeats), "--threads", str(options.threads)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{side}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", file=sys.stderr)
            continue
        found[side] = json.loads(done.stdout.splitlines()[-1])
    print(f"{'':10} {'tokens/s':>9} {'ms/token':>9} {'cpu ms/token':>13} {'first token s':>14} {'peak MB':>8}")
    for side, x in found.items():
        ms, cpu = x["ms"], x["cpu_ms"]
        print(f"{side:10} {1e3 / ms:9.1f} {ms:9.1f} {cpu:13.1f} {x['first_s']:14.2f} {x['peak_mb']:8.0f}")
    for side, x in found.items():
        print(f"{side}: {x['text'][:160]!r}")
    if "llama.cpp" in found:
        for side in set(found) - {"llama.cpp"}:
            ratio = found[side]["cpu_ms"] / found["llama.cpp"]["cpu_ms"]
            print(f"{side} takes {ratio:.1f} x llama.cpp's processor time")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def _measure(side: str, options: argparse.Namespace) -> dict:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.threads]))
    answer = _llama(options) if side == "llama.cpp" else _ours(options, scan=side == "vdit")
    answer()  # compiles, and fills caches
    runs = [answer() for _ in range(options.repeats)]
    median = lambda name: statistics.median(run[name] for run in runs)  # noqa: E731
    return {
        "first_s": median("first_s"), "ms": median("ms"), "cpu_ms": median("cpu_ms"), "text": runs[0]["text"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }  # fmt: skip


def _timed(first, rest, count: int) -> dict:
    """first(), then rest(), which writes count - 1 tokens more and returns the text."""
    began = time.perf_counter()
    first()
    middle, cpu = time.perf_counter(), time.process_time()
    text = rest()
    ms, cpu_ms = (1e3 * x / (count - 1) for x in (time.perf_counter() - middle, time.process_time() - cpu))
    return {"first_s": middle - began, "ms": ms, "cpu_ms": cpu_ms, "text": text}


def _ours(options: argparse.Namespace, *, scan: bool):
    import jax
    import numpy as np

    from vdit.models.lm import Decoding, extend, pad_prompts, start
    from vdit.pretrained.lm import open_lm

    lm = open_lm(options.model, scan=scan)
    ids = lm.tokenizer.encode(lm.template.render([{"role": "user", "content": PROMPT}]))
    prompts, decoding = pad_prompts([ids], tokens=64), Decoding.make(1, max_tokens=options.tokens)
    state = None

    def first():
        nonlocal state
        state = start(lm.model, lm.params, prompts, decoding, max_tokens=options.tokens)
        jax.block_until_ready(state.tokens)

    def rest():
        made = extend(lm.model, lm.params, state, decoding, options.tokens - 1)
        return lm.tokenizer.decode(np.asarray(made.tokens)[0])

    return lambda: _timed(first, rest, options.tokens)


def _llama(options: argparse.Namespace):
    from llama_cpp import Llama

    from vdit.models.lm import ChatTemplate
    from vdit.pretrained.gguf import open_gguf

    template = ChatTemplate(source=open_gguf(options.model).values["tokenizer.chat_template"])
    text = template.render([{"role": "user", "content": PROMPT}])
    llama = Llama(str(options.model), n_ctx=512, n_threads=options.threads, verbose=False)
    ids = llama.tokenize(text.encode(), add_bos=False, special=True)

    def first():
        llama.reset()
        llama.eval(ids)

    def rest():
        made = []
        for _ in range(options.tokens):
            token = llama.sample(temp=0.0, repeat_penalty=1.0)
            made.append(token)
            if len(made) < options.tokens:
                llama.eval([token])
        return llama.detokenize(made).decode(errors="replace")

    return lambda: _timed(first, rest, options.tokens)


if __name__ == "__main__":
    main()
