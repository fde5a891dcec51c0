"""Where the NaN of a step comes from: its data, its weights, or the step itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vdit.finite import nonfinite_names
from vdit.reprs import listed
from vdit.train.state import TrainState
from vdit.types import PyTree

# What arrays of a batch hold, for users who never see a Row.
_HOLDS = {"values": "latents", "video": "pixels", "action": "actions"}


def origin_of_nan(state: TrainState, batch: PyTree, frozen: PyTree | None, metrics: Mapping[str, float]) -> str:
    """One sentence on where a loss or gradient that is not finite comes from, and what to do.

    Args:
        state: after the step, which was skipped: parameters are those that the step began with.
        batch: a batch on the devices that gave such a loss.
        frozen: weights that are not trained, or None.
        metrics: of such a step, with its "loss" and "grad_norm".
    """
    found = nonfinite_names(batch)
    if found:
        names = [_HOLDS.get(name.rpartition(".")[2], name) for name in found]
        rule = "check its files, and encode the latents again"
        return f"the data holds NaN or infinity already ({listed(names)}): {rule}"
    for what, tree in (("frozen weights", frozen), ("parameters", state.params)):
        found = nonfinite_names(tree)
        if found:
            return (
                f"{what} hold NaN or infinity already ({listed(found)}), the data does not: start from other weights, "
                "or go on from an earlier checkpoint"
            )
    found = nonfinite_names(state.opt_state)
    if found:
        return f"the optimizer's state holds NaN or infinity ({listed(found)}): go on from an earlier checkpoint"
    if math.isfinite(metrics["loss"]):
        groups = [name.partition("/")[2] for name, value in metrics.items() if _spoilt_group(name, value)]
        where = f" of {listed(groups)}" if groups else ""
        arises = f"the gradient{where} overflows, though data, parameters and loss are finite"
    else:
        arises = "the loss overflows in the network, though data and parameters are finite"
    return f"{arises}: lower the learning rate, lengthen the warm-up, clip gradients, or compute in float32"


def _spoilt_group(name: str, value: float) -> bool:
    return name.startswith("grad_norm/") and not math.isfinite(value)
