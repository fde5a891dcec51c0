"""Training: the state, the step, the loop and the stages of a run.

Imported on first use.
"""

from vdit.lazy import exports

_HOMES = {
    "Hook": "loop",
    "JsonLines": "metrics",
    "Logging": "reporting",
    "SampleHook": "loop",
    "StatePlan": "state",
    "TensorBoard": "metrics",
    "TrainResult": "loop",
    "TrainState": "state",
    "TrainStep": "step",
    "WandB": "metrics",
    "Workspace": "workspace",
    "Writer": "metrics",
    "make_train_step": "step",
    "plan_state": "state",
    "run": "stages",
    "start": "loop",
    "train": "loop",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = exports(__name__, _HOMES)
