"""An experiment: every choice of a run, in one frozen tree.

Imported on first use.
"""

from vdit.lazy import exports

_HOMES = {
    "CanvasConfig": "canvases",
    "Corrupted": "objectives",
    "DenoisingLoss": "objectives",
    "DiffusionModel": "objectives",
    "Experiment": "experiment",
    "LatentsConfig": "experiment",
    "LoRAConfig": "training",
    "LossFn": "objectives",
    "Objective": "objectives",
    "Optimizer": "optimizer",
    "OptimizerConfig": "optimizer",
    "SampleConfig": "experiment",
    "TrainConfig": "training",
    "VAETrainConfig": "experiment",
    "corrupt": "objectives",
    "denoising_loss": "objectives",
    "forward": "objectives",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = exports(__name__, _HOMES)
