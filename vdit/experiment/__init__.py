"""An experiment: every choice of a run, in one frozen tree.

Imported on first use.
"""

from vdit.lazy import exports

_HOMES = {
    "CanvasConfig": "canvases",
    "DistillConfig": "training",
    "Experiment": "experiment",
    "LatentsConfig": "experiment",
    "LoRAConfig": "training",
    "OptimizerConfig": "training",
    "SampleConfig": "experiment",
    "TrainConfig": "training",
    "VAETrainConfig": "experiment",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = exports(__name__, _HOMES)
