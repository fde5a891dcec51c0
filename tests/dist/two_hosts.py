"""One of two processes that train the toy together: saves at step 2, restores, and goes on to step 4."""

import json
import sys

import jax

from tests import tiny
from vdit.checkpoint import Checkpointer
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.dist.multihost import initialize, is_primary_host
from vdit.train.loop import Report, start, train
from vdit.train.state import plan_state
from vdit.train.step import make_train_step


class Share:
    """This host's half of each batch, and its place."""

    def __init__(self):
        self._batches = tiny.batches()
        self.get_state, self.set_state = self._batches.get_state, self._batches.set_state

    def __next__(self):
        half = slice(None, 4) if jax.process_index() == 0 else slice(4, None)
        return {name: array[half] for name, array in next(self._batches).items()}


class Losses:
    """A writer that remembers the losses."""

    def __init__(self):
        self.values = {}

    def scalars(self, step, values):
        self.values[step] = values["loss"]

    def flush(self):
        pass


def part(directory, steps, losses):
    plan = plan_state(tiny.init_params, tiny.train_config(steps=steps, save_every=2), mesh=make_mesh(MeshConfig(fsdp=2)))
    data = Share()
    with Checkpointer(directory, meta={"hosts": jax.process_count()}) as checkpointer:
        state = start(plan, jax.random.key(0), checkpointer, data)
        step = make_train_step(tiny.loss_fn, plan)
        return train(state, step, data, checkpointer=checkpointer, report=Report(writers=(losses,)))


def main(directory):
    assert initialize()
    losses = Losses()
    part(directory, 2, losses)
    state = part(directory, 4, losses).state
    kernel = state.params["up"]["kernel"]
    held = kernel.addressable_shards[0].data.shape
    answer = {"losses": losses.values, "held": held, "first": is_primary_host()}
    print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
