"""Sizes of the mesh and the table of rules, without devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from vdit.dist.mesh import AXES, MeshConfig, make_mesh
from vdit.dist.multihost import HostConfig, from_environment, initialize
from vdit.dist.rules import RULES, batch_shardings, constrain, partition_spec
from vdit.errors import ConfigError
from vdit.types import Row

SIZES = {"data": 2, "fsdp": 4, "sequence": 2, "tensor": 2}


def test_the_free_axis_takes_the_devices_that_are_left():
    assert MeshConfig(fsdp=2, tensor=2).shape(16) == (4, 2, 1, 2)
    assert MeshConfig(data=1, fsdp=-1).shape(8) == (1, 8, 1, 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MeshConfig(fsdp=0), "mesh.fsdp=0"),
        (lambda: MeshConfig(fsdp=-1), "all -1"),
        (lambda: MeshConfig(fsdp=3).shape(8), "does not fit 8 devices"),
        (lambda: MeshConfig(data=2).shape(8), "does not fit 8 devices"),
        (lambda: MeshConfig(fsdp=16).shape(8), "does not fit 8 devices"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_axes_are_auto():
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_the_table_names_mesh_axes_only():
    assert {axis for axes in RULES.values() for axis in axes} <= set(AXES)


def test_a_mesh_axis_serves_the_first_dimension_that_asks():
    spec, notes = partition_spec(("batch", "tokens", "embed"), (8, 6, 16), SIZES)
    assert (spec, notes) == (P(("data", "fsdp"), ("sequence",), None), [])
    assert partition_spec(("embed", "mlp"), (16, 64), SIZES)[0] == P(("fsdp",), ("tensor",))
    assert partition_spec(("embed", "embed"), (16, 16), SIZES)[0] == P(("fsdp",), None)


def test_a_dimension_takes_the_mesh_axes_that_divide_it_and_says_so():
    spec, notes = partition_spec(("batch", None), (6, 3), SIZES)
    assert spec == P(("data",), None)
    assert notes == ["batch of size 6 is not divisible by data*fsdp=8"]


def test_an_unknown_axis_or_a_wrong_number_of_names_is_refused():
    with pytest.raises(ConfigError, match="'tokenz'"):
        partition_spec(("tokenz",), (4,), SIZES)
    with pytest.raises(ConfigError, match="must name each dimension"):
        partition_spec(("tokens",), (4, 4), SIZES)


def test_constrain_adds_nothing_without_a_mesh():
    jaxpr = jax.make_jaxpr(lambda x: constrain(x, ("batch", "embed")))(jnp.zeros((2, 2)))
    assert not jaxpr.eqns


def test_one_process_neither_starts_nor_waits_for_others():
    assert initialize() is None


def test_hosts_come_from_the_environment_as_a_whole():
    given = {"VDIT_COORDINATOR": "first:1234", "VDIT_PROCESSES": "2", "VDIT_PROCESS_ID": "1"}
    assert from_environment(given) == HostConfig(coordinator="first:1234", processes=2, process_id=1)
    assert from_environment({}) is None
    with pytest.raises(ConfigError, match="VDIT_PROCESS_ID"):
        from_environment({key: given[key] for key in ("VDIT_COORDINATOR", "VDIT_PROCESSES")})
    with pytest.raises(ConfigError, match="process_id=1"):
        from_environment(given | {"VDIT_PROCESSES": "1"})


def test_a_batch_lies_as_its_logical_axes_say():
    devices = np.array(jax.devices() * 4)[:4].reshape(2, 1, 2, 1)
    mesh = Mesh(devices, AXES)
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)  # noqa: E731
    row = Row(**{name: struct(4, *[6] * (len(axes) - 1)) for name, axes in Row.AXES.items()})
    row = row.with_cond("label", struct(4, 6), "clip").with_cond("depth", struct(4, 6, 5), "token")
    places = batch_shardings(mesh, {"row": row, "video": struct(4, 8, 6, 6, 3), "weight": struct(4)})
    parts = jax.tree.map(lambda place, leaf: place.shard_shape(leaf.shape), places["row"], row)
    assert (parts.values, parts.segment_ids, parts.position) == ((2, 3, 6), (2, 3), (2, 3, 6))
    assert (parts.text, parts.frame_segment_ids, parts.cond["label"]) == ((2, 6), (2, 6), (2, 6))
    assert parts.cond["depth"] == (2, 3, 5)
    assert places["video"].shard_shape((4, 8, 6, 6, 3)) == (2, 4, 6, 6, 3)
    assert places["weight"].shard_shape((4,)) == (2,)
    pieces = batch_shardings(mesh, struct(3, 4, 5), accumulation=True)
    assert pieces.shard_shape((3, 4, 5)) == (3, 2, 5)


def test_a_batch_that_does_not_divide_is_refused_unless_it_may_stay_whole():
    mesh = Mesh(np.array(jax.devices() * 2)[:2].reshape(2, 1, 1, 1), AXES)
    odd = jax.ShapeDtypeStruct((3, 4), np.float32)
    with pytest.raises(ConfigError, match="a batch of 3 rows must be a multiple of data \\* fsdp = 2"):
        batch_shardings(mesh, odd)
    assert batch_shardings(mesh, odd, strict=False).shard_shape((3, 4)) == (3, 4)
