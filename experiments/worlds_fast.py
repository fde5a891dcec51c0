"""A model of few steps: the quickstart's model, distilled.

    vdit quickstart runs/quickstart
    vdit train experiments/worlds_fast.py --out runs/fast --cfg.start_from=runs/quickstart
    vdit sample runs/fast "a red circle moves to the left" --steps 2 --out circle.mp4
    python tools/few_steps.py runs/quickstart runs/fast --seeds 4

Hardware: 2 busy CPU cores, 8 minutes. Expected: the share of correct videos for 256 held-out prompts (standard error 2
to 3 points), and the number of network calls for a video:

    | teacher | share | calls |    | student | share | calls |
    | ------- | ----- | ----- |    | ------- | ----- | ----- |
    | Heun 20 |   89% |    67 |    | 8 steps |   93% |     8 |
    | Euler 8 |   84% |    13 |    | 4 steps |   86% |     4 |
    | Euler 4 |   78% |     6 |    | 2 steps |   78% |     2 |
    | Euler 2 |   64% |     3 |    | 1 step  |   64% |     1 |

The shares were measured with an older detector, which also accepted deformed shapes, and a teacher of 4,400 steps
without canvases: expect lower ones now.

Consistency distillation with the guidance distilled in (vdit/experiment/distill.py). With few steps
only the shape suffers: colour and direction are right in 98% from one step on. Three times the learning rate with a
grid half as fine gave the same figures. Any run of a model that predicts velocity, v or clean data can be the
teacher; the student's experiment is the teacher's with these changes:

    --cfg.start_from=RUN --cfg.objective.guidance=4 --cfg.sample.sampler=consistency --cfg.sample.guidance=1
"""

import dataclasses

from vdit.experiment.distill import ConsistencyDistillation
from vdit.experiment.experiment import Experiment
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.quickstart.config import experiment
from vdit.samplers import GridOptions


def config() -> Experiment:
    teacher = experiment()
    return dataclasses.replace(
        teacher,
        name="worlds_fast",
        start_from="runs/quickstart",
        # Guided where the teacher is when it samples.
        objective=ConsistencyDistillation(guidance=teacher.sample.guidance, interval=teacher.sample.interval, steps=32),
        dit_train=TrainConfig(
            steps=1500,
            batch_size=2,
            ema_decay=0.99,
            optimizer=OptimizerConfig(
                learning_rate=3e-4, warmup_steps=50, schedule="cosine", final_scale=0.1, b2=0.95
            ),
        ),
        # Shapes are decided at high levels: of a few steps most are better spent there (4 even ones: 80%).
        sample=dataclasses.replace(
            teacher.sample, sampler="consistency", grid=GridOptions(shift=2.0), steps=4, guidance=1.0,
            interval=(0.0, 1.0),
        ),
    )  # fmt: skip
