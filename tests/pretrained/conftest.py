"""Numbers beside the reference: fixtures, and the rule that nothing here is skipped in CI."""

from __future__ import annotations

import os

import numpy as np
import pytest


@pytest.fixture(scope="session")
def torch():
    """PyTorch on one thread; skips without it, but not in CI, where it has to be there."""
    if os.environ.get("CI"):
        import torch
    else:
        torch = pytest.importorskip("torch", reason="pip install -e '.[parity]' for the reference to compare with")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    return torch


@pytest.fixture
def parity(record_property):
    """parity(module, ours, theirs, atol=1e-4): compares, and adds a row to the table that ends the test output."""

    def compare(module: str, ours, theirs, *, atol: float = 1e-4) -> None:
        ours = np.asarray(ours, np.float64)
        theirs = np.asarray(theirs.detach().cpu() if hasattr(theirs, "detach") else theirs).astype(np.float64)
        assert ours.shape == theirs.shape, f"{module}: ours {ours.shape}, theirs {theirs.shape}"
        assert np.isfinite(theirs).all(), f"{module}: the reference gives no finite numbers"
        assert theirs.std() > 1e-3, f"{module}: the reference gives nothing to compare"
        gap = float(np.abs(ours - theirs).max())
        relative = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        shape = "x".join(map(str, theirs.shape))
        assert gap <= atol, f"{module} {shape}: max abs error {gap:.2e} is above {atol:.0e} (relative {relative:.2e})"
        # After the check: tests that expect a difference leave no row.
        record_property("parity", f"{module}|{shape}|{gap:.1e}|{relative:.1e}|{atol:.0e}")

    return compare
