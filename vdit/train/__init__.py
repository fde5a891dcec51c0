"""Training: the state, the step, the loop and the stages of a run.

Imported on first use.
"""

from vdit.lazy import exports

_HOMES = {
    "DenoisingEvaluator": "evaluate",
    "Evaluation": "loop",
    "EvaluationRun": "evaluate",
    "Hook": "loop",
    "JsonLines": "logging",
    "Logging": "logging",
    "ReconstructionEvaluator": "evaluate",
    "SampleEvaluator": "evaluate",
    "SampleHook": "loop",
    "StatePlan": "state",
    "TensorBoard": "logging",
    "TrainResult": "loop",
    "TrainState": "state",
    "TrainStep": "step",
    "WandB": "logging",
    "Workspace": "workspace",
    "Writer": "logging",
    "make_train_step": "step",
    "plan_state": "state",
    "run": "stages",
    "start": "loop",
    "train": "loop",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = exports(__name__, _HOMES)
