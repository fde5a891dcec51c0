"""A model of few steps: the quickstart's model, distilled.

    vdit quickstart runs/quickstart
    vdit train experiments/worlds_fast.py --out runs/fast --cfg.start_from=runs/quickstart
    vdit sample runs/fast "a red circle moves to the left" --steps 2 --out circle.mp4
    python tools/few_steps.py runs/quickstart runs/fast

Hardware: 2 CPU cores. Expected: not measured yet.

Consistency distillation with the guidance distilled in (vdit/train/distill.py): one call a step instead of two, and a
few steps instead of twenty. Any trained run is distilled likewise; the experiment's model must be that run's.
"""

import dataclasses

from vdit.quickstart.config import experiment
from vdit.train.config import DistillConfig, OptimizerConfig, TrainConfig
from vdit.train.experiment import Experiment


def config() -> Experiment:
    teacher = experiment()
    return dataclasses.replace(
        teacher,
        name="worlds_fast",
        start_from="runs/quickstart",
        text_dropout=0.0,
        distill=DistillConfig(guidance=4.0, interval=(0.0, 0.7), steps=32),
        dit_train=TrainConfig(
            steps=1500,
            batch_size=2,
            ema_decay=0.99,
            optimizer=OptimizerConfig(
                learning_rate=3e-4, warmup_steps=50, schedule="cosine", final_scale=0.1, b2=0.95
            ),
        ),
        sample=dataclasses.replace(
            teacher.sample, sampler="consistency", steps=4, guidance=1.0, interval=(0.0, 1.0)
        ),
    )
