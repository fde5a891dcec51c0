"""Shares of hosts: every row once, whichever devices of the mesh a host holds."""

import types

import numpy as np
import pytest
from jax.sharding import Mesh

from vdit.dist.mesh import AXES, MeshConfig, make_mesh
from vdit.dist.mesh import HostShare, host_share
from vdit.errors import ConfigError


def mesh_of(processes, shape):
    """A mesh of devices of which only the host is known."""
    devices = np.array([types.SimpleNamespace(process_index=int(p)) for p in processes], object).reshape(shape)
    return types.SimpleNamespace(devices=devices, axis_names=AXES, shape=dict(zip(AXES, shape)))


def test_one_process_reads_everything():
    assert host_share(make_mesh(MeshConfig())) == HostShare(0, 1, (0,))
    assert isinstance(make_mesh(MeshConfig()), Mesh)
    assert HostShare().rows(6) == (0, 6)
    assert HostShare().local(slice(None), 6) == slice(0, 6)


@pytest.mark.parametrize(("processes", "shape", "shares"), [
    (np.repeat(range(4), 2), (8, 1, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (np.repeat(range(4), 2), (2, 4, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (np.repeat(range(4), 2), (1, 2, 4, 1), [(0, 2), (0, 2), (1, 2), (1, 2)]),  # a row's tokens on two hosts
    (np.repeat(range(4), 2), (1, 1, 2, 4), [(0, 1)] * 4),
    (np.repeat(range(2), 4), (1, 4, 1, 2), [(0, 2), (1, 2)]),
    ([0, 0, 1, 1, 0, 0, 1, 1], (1, 8, 1, 1), [(0, 2), (1, 2)]),  # 2 x 2 hosts on a grid
])
def test_hosts_of_one_group_read_the_same_rows_and_others_different_ones(processes, shape, shares):
    mesh, size = mesh_of(processes, shape), 16
    found = [host_share(mesh, process) for process in range(len(shares))]
    assert [(share.index, share.count) for share in found] == shares
    assert sorted({share.rows(size) for share in found}) == [
        (i * size // shares[0][1], (i + 1) * size // shares[0][1]) for i in range(shares[0][1])]


@pytest.mark.parametrize(("processes", "shape"), [
    (np.repeat(range(4), 2), (8, 1, 1, 1)), ([0, 0, 1, 1, 0, 0, 1, 1], (2, 4, 1, 1)),
    ([0, 0, 2, 2, 1, 1, 3, 3], (1, 4, 1, 2)), ([3, 2, 1, 0], (1, 4, 1, 1))])
def test_devices_take_each_row_of_the_batch_exactly_once(processes, shape):
    mesh, size, ways = mesh_of(processes, shape), 16, shape[0] * shape[1]
    array = {}
    for group, devices in enumerate(mesh.devices.reshape(ways, -1)):
        for device in devices:
            share = host_share(mesh, device.process_index)
            batch = np.arange(*share.rows(size))
            asked = slice(group * size // ways, (group + 1) * size // ways)
            array.setdefault(group, []).append(batch[share.local(asked, size)].tolist())
    assert all(parts.count(parts[0]) == len(parts) for parts in array.values())
    assert sorted(row for parts in array.values() for row in parts[0]) == list(range(size))


def test_meshes_without_equal_shares_are_refused():
    with pytest.raises(ConfigError, match=r"batch groups \[0, 1\] and \[1, 2\]"):
        host_share(mesh_of([0, 0, 0, 1, 1, 1], (1, 3, 1, 2)), 0)
    with pytest.raises(ConfigError, match=r"\[0, 1, 2\] and \[3\]"):
        host_share(mesh_of([0, 0, 0, 1], (4, 1, 1, 1)), 0)
    with pytest.raises(ConfigError, match="host 7 holds no device"):
        host_share(mesh_of([0, 1], (2, 1, 1, 1)), 7)
    with pytest.raises(ConfigError, match="multiple of 4"):
        HostShare(0, 4).rows(6)
    with pytest.raises(ConfigError, match="rows 0 to 4 of 8 are not those of share 1"):
        HostShare(1, 2).local(slice(0, 4), 8)
    with pytest.raises(ConfigError, match="the index must be"):
        HostShare(2, 2)
