"""Discs in a box against mechanics: conservation, known answers, contacts that the tracks bear out."""

import math

import numpy as np
import pytest

from vdit import worlds
from vdit.worlds.physics import Discs, simulate

BOX = (0.0, 0.0, 1.5, 1.0)


def scene(seed=0, count=5, **options):
    random = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(np.linspace(0.2, 1.3, 5), [0.25, 0.7]), -1).reshape(-1, 2)
    radius = random.uniform(0.05, 0.1, count)
    return Discs(
        radius=radius,
        mass=radius**2 * random.uniform(0.5, 2, count),
        position=random.permutation(place)[:count],
        velocity=random.normal(0, 0.7, (count, 2)),
        box=BOX,
        **options,
    )


def energy(discs, position, velocity):
    """[t]: of motion and, with y down, of height."""
    kinetic = 0.5 * (discs.mass[:, None] * velocity**2).sum((1, 2))
    return kinetic - discs.gravity * (discs.mass * position[..., 1]).sum(1)


@pytest.mark.parametrize("gravity", [0.0, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_elastic_energy_is_conserved(seed, gravity):
    discs = scene(seed, gravity=gravity)
    motion = simulate(discs, 6.0)
    assert len(motion.contacts) > 20
    total = energy(discs, *motion.at(np.linspace(0, 6, 301)))
    np.testing.assert_allclose(total, total[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("restitution", [1.0, 0.6])
def test_each_contact_obeys_its_law(restitution):
    """Momentum is kept; the normal speed turns by the restitution; the loss is what that implies."""
    discs = scene(1, gravity=1.5, restitution=restitution)
    contacts = simulate(discs, 4.0).contacts
    assert {c.kind for c in contacts} == {"pair", "wall"}
    for contact in contacts:
        before, after, normal = (np.array(x) for x in (contact.before, contact.after, contact.normal))
        mass = discs.mass[list(contact.objects)]
        if contact.kind == "pair":
            np.testing.assert_allclose(mass @ after, mass @ before, rtol=0, atol=1e-14)
            closing, opening = (before[0] - before[1]) @ normal, (after[0] - after[1]) @ normal
            reduced = mass.prod() / mass.sum()
        else:
            closing, opening, reduced = before[0] @ normal, after[0] @ normal, mass[0]
        acted = restitution if closing >= discs.rest_speed else 1.0
        assert contact.restitution == acted
        assert closing > 0
        assert opening == pytest.approx(-acted * closing, abs=1e-13)
        tangent = np.array([-normal[1], normal[0]])
        np.testing.assert_allclose(before @ tangent, after @ tangent, atol=1e-13)
        lost = 0.5 * (mass[:, None] * (before**2 - after**2)).sum()
        assert lost == pytest.approx(0.5 * reduced * (1 - acted**2) * closing**2, abs=1e-14)


def test_total_momentum_is_kept_between_walls():
    discs = scene(2)
    motion = simulate(discs, 6.0)
    momentum = np.einsum("n,enk->ek", discs.mass, motion.velocity)
    at_pairs = [k for k, c in enumerate(motion.contacts) if c.kind == "pair"]
    assert at_pairs
    for k in at_pairs:
        np.testing.assert_allclose(momentum[k + 1], momentum[k], rtol=0, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"gravity": 1.5}, {"gravity": 1.5, "restitution": 0.7}])
def test_contacts_and_tracks_agree(options):
    discs = scene(3, **options)
    motion = simulate(discs, 5.0)
    position, _ = motion.at(np.linspace(0, 5, 2001))
    low, high = np.array(BOX[:2]), np.array(BOX[2:])
    assert (position >= low + discs.radius[:, None] - 1e-9).all()
    assert (position <= high - discs.radius[:, None] + 1e-9).all()
    apart = np.linalg.norm(position[:, :, None] - position[:, None], axis=-1)
    apart -= discs.radius[:, None] + discs.radius
    assert apart[:, *np.triu_indices(len(discs.radius), 1)].min() > -1e-9
    for contact in motion.contacts:
        place, velocity = (x[0, list(contact.objects)] for x in motion.at(np.array([contact.time])))
        reach = np.linalg.norm(place - np.array(contact.point), axis=1)
        np.testing.assert_allclose(reach, discs.radius[list(contact.objects)], atol=1e-12)
        np.testing.assert_allclose(velocity, contact.after, atol=1e-12)
        if contact.wall:
            edge = BOX[("left", "top", "right", "bottom").index(contact.wall)]
            axis = 0 if contact.wall in ("left", "right") else 1
            assert contact.point[axis] == pytest.approx(edge, abs=1e-12)
    times = [contact.time for contact in motion.contacts]
    assert times == sorted(times)


def test_a_dropped_ball_lands_and_rises_on_time():
    height, gravity, restitution = 0.6, 2.0, 0.8
    discs = Discs(
        radius=np.array([0.1]),
        mass=np.ones(1),
        position=np.array([[0.5, 0.9 - height]]),
        velocity=np.zeros((1, 2)),
        box=BOX,
        gravity=gravity,
        restitution=restitution,
    )
    motion = simulate(discs, 4.0)
    fall = math.sqrt(2 * height / gravity)
    expected = fall
    for k, contact in enumerate(motion.contacts[:5]):
        assert contact.time == pytest.approx(expected, abs=1e-12)
        top = contact.time + restitution ** (k + 1) * fall
        rise = 0.9 - motion.at(np.array([top]))[0][0, 0, 1]
        assert rise == pytest.approx(restitution ** (2 * k + 2) * height, abs=1e-12)
        expected += 2 * fall * restitution ** (k + 1)


def test_equal_balls_swap_their_speeds():
    discs = Discs(
        radius=np.array([0.1, 0.1]),
        mass=np.ones(2),
        position=np.array([[0.3, 0.5], [0.9, 0.5]]),
        velocity=np.array([[0.5, 0.0], [-0.25, 0.0]]),
        box=BOX,
    )
    (contact,) = simulate(discs, 0.6).contacts
    assert contact.time == pytest.approx(0.4 / 0.75, abs=1e-14)
    np.testing.assert_allclose(contact.after, [[-0.25, 0], [0.5, 0]], atol=1e-14)


def test_elastic_motion_runs_backwards():
    discs = scene(4, count=3, gravity=1.5)
    end_place, end_speed = (x[0] for x in simulate(discs, 1.5).at(np.array([1.5])))
    back = Discs(
        radius=discs.radius, mass=discs.mass, position=end_place, velocity=-end_speed, box=BOX, gravity=1.5
    )
    place, speed = (x[0] for x in simulate(back, 1.5).at(np.array([1.5])))
    np.testing.assert_allclose(place, discs.position, atol=1e-7)
    np.testing.assert_allclose(speed, -discs.velocity, atol=1e-6)


def test_a_longer_run_begins_with_the_shorter():
    short, long = (simulate(scene(5, gravity=1.5, restitution=0.8), t) for t in (1.0, 3.0))
    assert long.contacts[: len(short.contacts)] == short.contacts
    times = np.linspace(0, 1, 50)
    np.testing.assert_array_equal(short.at(times)[0], long.at(times)[0])


def test_lossy_balls_come_to_rest_without_end():
    discs = scene(6, gravity=2.0, restitution=0.3)
    motion = simulate(discs, 12.0)
    speed = np.abs(motion.at(np.linspace(11, 12, 50))[1][..., 1])
    assert speed.max() < 0.2
    assert len(motion.contacts) < 20_000


@pytest.mark.parametrize("name", ["bounce", "collide"])
def test_worlds_report_the_simulation(name):
    """The tracks and contacts of a sample obey the same laws as the simulation they come from."""
    world = worlds.make(name, seed=7, frames=65, fps=32.0, size=(32, 32))
    for i in range(6):
        meta = world[i].meta
        mass = np.array([thing["mass"] for thing in meta["objects"]])
        place = np.stack([thing["position"] for thing in meta["objects"]], 1)
        speed = np.stack([thing["velocity"] for thing in meta["objects"]], 1)
        kinetic = 0.5 * (mass[:, None] * speed**2).sum((1, 2))
        total = kinetic - meta["gravity"] * (mass * place[..., 1]).sum(1)
        lost = np.zeros_like(total)
        for contact in meta["contacts"]:
            m = mass[list(contact["objects"])]
            change = 0.5 * (m[:, None] * (np.square(contact["before"]) - np.square(contact["after"]))).sum()
            lost += change * (meta["times"] >= contact["time"])
        np.testing.assert_allclose(total + lost, total[0], rtol=0, atol=1e-12)
        if meta["restitution"] == 1:
            np.testing.assert_allclose(lost, 0, atol=1e-12)
