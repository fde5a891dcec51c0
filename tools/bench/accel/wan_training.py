"""A training step of Wan's transformer on both sides: forward, backward, AdamW; as DiTTraining of cases.py."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


def make_training(forward: type, *, remat: str) -> type:
    """The class of a case: a subclass of `forward` (cases.WanForward) that trains.

    remat: "full" recomputes blocks in the backward on both sides: without, 32,760 tokens do not fit a GPU.
    """
    from case import Run, numpy_of, to_torch

    from vdit.dist.mesh import compiler_options
    from vdit.experiment.training import OptimizerConfig, TrainConfig
    from vdit.pretrained import wan
    from vdit.pretrained.model import one_device
    from vdit.train.state import plan_state
    from vdit.train.step import make_train_step

    class WanTraining(forward):
        steps = 2

        def __init__(self, only: str | None = None):
            self.config = dataclasses.replace(self.config, remat=remat)
            super().__init__(only)
            self.what += f", forward, backward, AdamW, remat {remat}"
            self.flops *= 3
            self.target = self.normal(*self.latents.shape)

        def ours(self) -> Run:
            rules = wan.diffusers_rules(self.config)
            params = {"dit": self.params(rules, lambda key: self.network.init(key)["dit"])}
            network = self.network

            def loss(params, batch, key, step):
                del key, step
                prediction = self.predict(params, batch["row"], batch["times"], batch["text"])
                return jnp.mean(jnp.square(prediction - batch["target"])), {}

            optimizer = OptimizerConfig(learning_rate=1e-4, weight_decay=0.01, clip_norm=None)
            train = TrainConfig(steps=10**6, batch_size=1, ema_decay=None, optimizer=optimizer)
            plan = plan_state(lambda key: {"dit": network.init(key)["dit"]}, train, mesh=one_device())
            step = make_train_step(loss, plan, compiler_options=compiler_options())
            box = [plan.with_params(params, jax.random.key(0))]
            batch = {"row": self.row(), "times": self.times, "text": self.text, "target": self.target}
            batch = jax.device_put(batch, step.shardings(batch))

            def run():
                box[0], metrics = step(box[0], batch)
                return numpy_of(metrics["loss"])

            return self._losses(run)

        def theirs(self, module) -> Run:
            import torch

            if remat == "full":
                module.enable_gradient_checkpointing()
            module.train()
            optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
            given = [to_torch(x) for x in (self.latents.transpose(0, 4, 1, 2, 3), self.times, self.text)]
            target = to_torch(self.target.transpose(0, 4, 1, 2, 3))

            def run():
                optimizer.zero_grad(set_to_none=True)
                loss = torch.nn.functional.mse_loss(module(*given, return_dict=False)[0], target)
                loss.backward()
                optimizer.step()
                return numpy_of(loss)

            return self._losses(run)

        def _losses(self, run: Run) -> Run:
            """The first call makes a few steps, to be compared; the others one."""
            first = [True]

            def call():
                if not first[0]:
                    return run()
                first[0] = False
                return np.array([run() for _ in range(self.steps)])

            return call

    return WanTraining
