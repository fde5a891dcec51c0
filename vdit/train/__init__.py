"""Training: the state, the step, the loop and the stages of a run."""

from vdit.lazy import exports

# Imported on first use, so that a config alone does not wait for jax, grain or flax.
_HOMES = {
    "DenoisingEvaluator": "evaluate",
    "Evaluation": "loop",
    "EvaluationRun": "evaluate",
    "Hook": "loop",
    "JsonLines": "logging",
    "Logging": "logging",
    "ReconstructionEvaluator": "evaluate",
    "Report": "loop",
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
