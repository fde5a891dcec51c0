"""An experiment: every choice of a run, in one frozen tree."""

from vdit.lazy import exports

# Imported on first use, so that a config alone does not wait for jax, grain or flax.
_HOMES = {
    "CanvasConfig": "canvases",
    "Corrupted": "objectives",
    "DenoisingLoss": "objectives",
    "DiffusionModel": "objectives",
    "Experiment": "experiment",
    "LatentsConfig": "experiment",
    "LoRAConfig": "training",
    "LossFn": "objectives",
    "Muon": "optimizer",
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
