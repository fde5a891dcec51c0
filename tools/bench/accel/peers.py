"""Stage 3: beside torch, on the same weights and inputs: the cases of tools/bench/cases.py at Wan's true sizes."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accel import entry
from accel.expected import reached
from accel.record import Probe
from accel.timing import healthy, memory, seconds

__all__ = ["healthy", "probes", "reached"]


def probes(dry: bool, out: Path, until: float) -> list[Probe]:
    del out, until
    tokens = (64,) if dry else (8192, 32_768, 75_600)
    attention = [_attention(count, dry, gradient) for count in tokens for gradient in (False, True)]
    wan, encode, decode = (_of_case(name, dry) for name in ("wan", "vae-encode", "vae-decode"))
    return [wan, attention[0], attention[1], _of_case("wan-training", dry), decode, encode, *attention[2:]]


def _of_case(name: str, dry: bool) -> Probe:
    flops, share, what = {
        "wan": (283e12, 0.5, "Wan 1.3B, 480p, 81 frames: one denoising call"),
        "wan-training": (848e12, 0.35, "the same: forward, backward with remat, AdamW"),
        "vae-decode": (275e12, 0.3, "Wan 2.1 VAE: latents to 81 frames of 480x832"),
        "vae-encode": (164e12, 0.3, "Wan 2.1 VAE: 81 frames of 480x832 to latents"),
    }[name]
    return Probe(
        name=name,
        what=what,
        run=functools.partial(beside, name, dry),
        flops=0.0 if dry else flops,
        share=share,
        needs=10,
        bound=1e-3 if dry else 5e-2,
    )


def cases(dry: bool) -> dict[str, type]:
    """The cases of this stage; dry ones are a few layers of a narrow model."""
    from cases import VAEDecode, VAEEncode, WanForward

    from accel.wan_training import make_training
    from vdit.models.dit.config import preset
    from vdit.models.vae import preset as vae_preset

    if not dry:
        size = {"size": (81, 480, 832)}
        made = {
            "wan": (WanForward, {}),
            "vae-encode": (VAEEncode, size),
            "vae-decode": (VAEDecode, size),
            "wan-training": (make_training(WanForward, remat="full"), {}),
        }
    else:
        narrow = preset("wan2.1-t2v-1.3b", width=64, heads=2, depth=2, mlp_width=96, scan=False)
        wan = {"config": narrow, "grid": (2, 3, 4), "captions": 8}
        vae = {"config": vae_preset("wan21", base_channels=8), "size": (5, 16, 16)}
        made = {
            "wan": (WanForward, wan),
            "vae-encode": (VAEEncode, vae),
            "vae-decode": (VAEDecode, vae),
            "wan-training": (make_training(WanForward, remat="none"), wan),
        }
    return {name: type(base.__name__, (base,), changes) for name, (base, changes) in made.items()}


def beside(name: str, dry: bool) -> dict[str, Any]:
    """Compares, then times both sides in turn; torch is eager, with its flash attention."""
    case = cases(dry)[name]()
    ours = case.ours()
    first = ours()
    found = seconds(_launch(ours), repeats=5, budget=5.0) | memory()
    theirs = case.eager()
    case.compare(first, theirs(), "eager")
    torch = seconds(_launch(theirs), repeats=5, budget=5.0)
    return found | _ratio(found, torch) | {"error": case.error, "counted_flops": case.flops}


def _launch(run: Any):
    """Without the copy of the results to the host, where a run knows how."""
    return getattr(run, "launch", run)


def _ratio(ours: dict[str, float], torch: dict[str, float]) -> dict[str, Any]:
    ratio = torch["seconds"] / ours["seconds"]
    return {
        "torch_seconds": torch["seconds"],
        "torch_over_vdit": round(ratio, 3),
        "note": f"{ratio:.2f} of torch's speed",
    }


def _attention(tokens: int, dry: bool, gradient: bool) -> Probe:
    heads, head_dim = (2, 16) if dry else (12, 128)

    def run() -> dict[str, Any]:
        import torch

        random = np.random.default_rng(0)
        given = [random.standard_normal((1, tokens, heads, head_dim), np.float32) for _ in range(4)]
        place = {"device": "cuda" if entry.GPU else "cpu", "dtype": torch.bfloat16 if entry.GPU else torch.float32}
        theirs = [torch.from_numpy(x.transpose(0, 2, 1, 3).copy()).to(**place) for x in given]
        ours = [jnp.asarray(x, jnp.bfloat16 if entry.GPU else jnp.float32) for x in given]
        ids = jnp.ones((1, tokens), jnp.int32)

        def forward(q, k, v):
            return entry.attention(q, k, v, ids, ids)

        def both(q, k, v, w):
            out, back = jax.vjp(forward, q, k, v)
            return out, *back(w)

        jitted = jax.jit(both if gradient else (lambda q, k, v, w: (forward(q, k, v),)))
        for x in theirs[:3]:
            x.requires_grad_(gradient)

        def by_torch():
            q, k, v, w = theirs
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            outs = (out, *torch.autograd.grad(out, (q, k, v), w)) if gradient else (out,)
            if entry.GPU:
                torch.cuda.synchronize()
            return outs

        found = seconds(lambda: jitted(*ours)) | memory()
        torch_found = seconds(lambda: by_torch() and None)
        gaps = [
            _gap(np.asarray(a, np.float32), b.detach().float().cpu().numpy().transpose(0, 2, 1, 3))
            for a, b in zip(jitted(*ours), by_torch())
        ]
        return found | _ratio(found, torch_found) | {"error": max(gaps)}

    flops = 4.0 * heads * head_dim * tokens**2 * (3.5 if gradient else 1)
    return Probe(
        name=f"attention-{math.ceil(tokens / 1024)}k" + ("-gradient" if gradient else ""),
        run=run,
        flops=flops,
        what=f"attention alone, {tokens:,} tokens, {heads} heads of {head_dim}"
        + (", with gradients" if gradient else ""),
        bytes=8.0 * tokens * heads * head_dim,
        share=0.4,
        bound=2e-2,
        needs=5,
    )


def _gap(ours: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(ours - want) / max(np.linalg.norm(want), 1e-30))
