"""Times by hand: what lies between devices, and how long each kind of collective takes over it."""

from types import SimpleNamespace

import numpy as np
import pytest

from vdit.dist.collectives import Collective
from vdit.plan.roofline import Path, Traffic, network_seconds, path, times
from vdit.plan.topology import parse_topology

V5P = parse_topology("v5p:4x4x8")
LINK = 100e9


def mesh(shape, *, cores=1, order=(0, 1, 2)):
    """A mesh of devices in the order of their coordinates: axes a, b, c along the torus's dimensions."""
    devices = np.empty((*shape, cores), object)
    for place in np.ndindex(devices.shape):
        devices[place] = SimpleNamespace(coords=[place[i] for i in order], core_on_chip=place[3])
    return SimpleNamespace(devices=devices, axis_names=("a", "b", "c", "core"))


def sent(kind, payload, share=1.0, where=""):
    return Collective(kind=kind, axes=("a",), bytes=payload * share, count=1, payload=payload, where=where)


def test_axes_lie_along_dimensions_of_the_torus():
    whole = mesh((4, 4, 8))
    assert path(V5P, whole, ("a",)) == Path(rings=(4,))
    assert path(V5P, whole, ("a", "c")) == Path(rings=(4, 8))
    small = parse_topology("v5p:2x2x4")
    assert path(small, mesh((2, 2, 4)), ("a", "c")) == Path(rings=(4,), lines=(2,))
    assert path(parse_topology("v5e:4x4"), mesh((4, 4, 1)), ("a",)) == Path(lines=(4,))
    # a part of a dimension is no ring: the other half of the axis is another mesh axis
    half = mesh((4, 4, 8))
    half.devices = half.devices[:, :, :4]
    assert path(V5P, half, ("c",)) == Path(lines=(4,))


def test_rings_are_used_both_ways_and_dimensions_add_up():
    gather = sent("all-gather", 8e9, 3 / 4)
    assert network_seconds(V5P, Path(rings=(4,)), gather) == pytest.approx(6e9 / (2 * LINK))
    assert network_seconds(V5P, Path(lines=(4,)), gather) == pytest.approx(6e9 / LINK)
    assert network_seconds(V5P, Path(rings=(4, 8)), gather) == pytest.approx(6e9 / (4 * LINK))


def test_an_all_to_all_is_a_quarter_of_an_all_gather_on_a_ring():
    """A gather of B bytes a device makes n B everywhere: n B / (2 link); an all-to-all takes n B / (8 link)."""
    n, payload = 8, 1e9
    exchange = network_seconds(V5P, Path(rings=(n,)), sent("all-to-all", payload))
    gather = network_seconds(V5P, Path(rings=(n,)), sent("all-gather", n * payload))
    assert exchange == pytest.approx(gather / 4)
    # the slowest dimension's middle counts
    assert network_seconds(V5P, Path(rings=(4, 8)), sent("all-to-all", payload)) == pytest.approx(exchange)


def test_neighbours_send_over_one_link_unless_xla_sends_halves_both_ways():
    ring = Path(rings=(4,))
    assert network_seconds(V5P, ring, sent("collective-permute", 1e9)) == pytest.approx(1e9 / LINK)
    both = sent("collective-permute", 1e9, where="jit(step)/attention/k/dot_general")
    assert network_seconds(V5P, ring, both) == pytest.approx(0.5e9 / LINK)


def test_slices_are_slow_and_cores_of_a_chip_are_near():
    gather = sent("all-reduce", 1e9)
    assert network_seconds(V5P, Path(rings=(4,), slices=2), gather) == pytest.approx(1e9 / 6.25e9)
    pair = parse_topology("7x:4x4x4")
    assert network_seconds(pair, Path(), gather) == pytest.approx(1e9 / (6 * LINK))
    # the two devices of a chip share its links
    assert network_seconds(pair, Path(rings=(4,)), gather) == pytest.approx(1e9 / (2 * LINK / 2))


def test_the_roofline_is_between_all_at_once_and_one_after_the_other():
    topology = parse_topology("v5p:2x2x2")
    line = Traffic(kind="all-gather", axes=("fsdp",), bytes=1.0, count=1, seconds=0.5)
    least = times(topology, flops=8 * 459e12, hbm=2 * 2765e9, lines=[line, line])
    assert (least.arithmetic, least.hbm, least.network) == pytest.approx((1.0, 2.0, 1.0))
    assert (least.overlapped, least.serial, least.bound) == (pytest.approx(2.0), pytest.approx(3.0), "hbm")
