"""Discs in a box: exact motion from contact to contact.

Between contacts every path is a parabola, all with the same gravity, so two discs move against each
other in a straight line and each next contact is the root of a quadratic. Nothing is integrated: no
time step, and energy and momentum hold to rounding.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from vdit.reprs import short_repr

WALLS = ("left", "right", "top", "bottom")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Discs:
    """Discs at time 0, x right and y down; gravity points down.

    radius, mass: [n]. position, velocity: [n 2]. box: (left, top, right, bottom).
    restitution: speed after a contact over speed before it, along the normal. Contacts slower than
    rest_speed keep their speed: without that, a lossy bounce has infinitely many contacts in a finite
    time. What stays is too small to see, and each contact tells the restitution that it had.
    """

    radius: np.ndarray
    mass: np.ndarray
    position: np.ndarray
    velocity: np.ndarray
    box: tuple[float, float, float, float]
    gravity: float = 0.0
    restitution: float = 1.0
    rest_speed: float = 0.03


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contact:
    """One contact: kind "wall" or "pair", the discs, their velocities just before and just after.

    point: where they touch. normal: from the first disc to what it hits. wall: its name, or None.
    restitution: the one that acted.
    """

    time: float
    kind: str
    objects: tuple[int, ...]
    wall: str | None
    point: tuple[float, float]
    normal: tuple[float, float]
    before: tuple[tuple[float, float], ...]
    after: tuple[tuple[float, float], ...]
    restitution: float


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """All of the motion: the state just after each event (times [e], position and velocity [e n 2])."""

    times: np.ndarray
    position: np.ndarray
    velocity: np.ndarray
    gravity: float
    contacts: tuple[Contact, ...]

    def at(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity, each [t n 2], at times [t]; at a contact, just after it."""
        event = np.searchsorted(self.times, times, side="right") - 1
        lag = (times - self.times[event])[:, None, None]
        fall = np.array([0.0, self.gravity])
        velocity = self.velocity[event] + fall * lag
        return self.position[event] + self.velocity[event] * lag + fall * (lag * lag / 2), velocity


def simulate(discs: Discs, duration: float) -> Motion:
    """Moves discs from contact to contact.

    Args:
        discs: their state at time 0.
        duration: seconds.

    Returns:
        The motion; a longer one begins with the same events, bit for bit.
    """
    position = [tuple(map(float, p)) for p in discs.position]
    velocity = [tuple(map(float, v)) for v in discs.velocity]
    radius = [float(r) for r in discs.radius]
    time, times, states, contacts = 0.0, [0.0], [(list(position), list(velocity))], []
    while True:
        wait, what = _next_event(position, velocity, radius, discs)
        if time + wait > duration:
            break
        time += wait
        _advance(position, velocity, wait, discs.gravity)
        contacts.append(_collide(time, what, position, velocity, discs))
        times.append(time)
        states.append((list(position), list(velocity)))
    return Motion(
        times=np.array(times),
        position=np.array([p for p, _ in states]),
        velocity=np.array([v for _, v in states]),
        gravity=discs.gravity,
        contacts=tuple(contacts),
    )


def _advance(position: list, velocity: list, wait: float, gravity: float) -> None:
    for i, ((x, y), (u, v)) in enumerate(zip(position, velocity)):
        position[i] = (x + u * wait, y + v * wait + gravity * wait * wait / 2)
        velocity[i] = (u, v + gravity * wait)


def _next_event(
    position: list, velocity: list, radius: list, discs: Discs
) -> tuple[float, tuple[int, int] | tuple[int, str] | None]:
    """The wait to the next contact, and who: (i, j) or (i, wall)."""
    best, what = math.inf, None
    left, top, right, bottom = discs.box
    for i, ((x, y), (u, v), r) in enumerate(zip(position, velocity, radius)):
        waits = (
            ("left", (x - r - left) / -u if u < 0 else math.inf),
            ("right", (right - r - x) / u if u > 0 else math.inf),
            ("top", _rise(y - r - top, -v, discs.gravity)),
            ("bottom", _rise(bottom - r - y, v, -discs.gravity)),
        )
        for wall, wait in waits:
            if wait < best:
                best, what = wait, (i, wall)
        for j in range(i):
            wait = _meet(position[j], velocity[j], radius[j], (x, y), (u, v), r)
            if wait < best:
                best, what = wait, (j, i)
    return max(best, 0.0), what


def _rise(gap: float, speed: float, pull: float) -> float:
    """The wait until a path at that speed towards a wall has covered the gap; pull slows it."""
    if pull >= 0:
        square = speed * speed - 2 * pull * gap
        if speed <= 0 or square < 0:
            return math.inf
        return 2 * gap / (speed + math.sqrt(square))
    root = math.sqrt(max(speed * speed - 2 * pull * gap, 0.0))
    if speed >= 0:
        return 2 * gap / (speed + root) if root > 0 else 0.0
    return (root - speed) / -pull


def _meet(p: tuple, v: tuple, r: float, q: tuple, w: tuple, s: float) -> float:
    """The wait until two discs (centre, velocity, radius) touch."""
    x, y, u, z = q[0] - p[0], q[1] - p[1], w[0] - v[0], w[1] - v[1]
    approach = -(x * u + y * z)
    if approach <= 0:
        return math.inf
    speed2, gap = u * u + z * z, x * x + y * y - (r + s) ** 2
    square = approach * approach - speed2 * gap
    if square < 0:
        return math.inf
    return gap / (approach + math.sqrt(square))


def _collide(time: float, what: tuple, position: list, velocity: list, discs: Discs) -> Contact:
    """Change the velocities of those who touch, and say how."""
    i, other = what
    wall = other if isinstance(other, str) else None
    if wall:
        touching, normal, share = (i,), _settle(i, wall, position, discs), (1.0,)
        closing = velocity[i][0] * normal[0] + velocity[i][1] * normal[1]
    else:
        touching, normal = (i, other), _towards(position[i], position[other])
        a, b = float(discs.mass[i]), float(discs.mass[other])
        share = (b / (a + b), -a / (a + b))
        closing = sum((velocity[i][k] - velocity[other][k]) * normal[k] for k in (0, 1))
    restitution = discs.restitution if closing >= discs.rest_speed else 1.0
    before = tuple(velocity[k] for k in touching)
    for k, part in zip(touching, share):
        kick = -(1 + restitution) * closing * part
        velocity[k] = (velocity[k][0] + kick * normal[0], velocity[k][1] + kick * normal[1])
    reach = float(discs.radius[i])
    return Contact(
        time=time,
        kind="wall" if wall else "pair",
        objects=touching,
        wall=wall,
        point=(position[i][0] + reach * normal[0], position[i][1] + reach * normal[1]),
        normal=normal,
        before=before,
        after=tuple(velocity[k] for k in touching),
        restitution=restitution,
    )


def _settle(i: int, wall: str, position: list, discs: Discs) -> tuple[float, float]:
    """Put disc i exactly on the wall that it touches; the normal towards the wall."""
    left, top, right, bottom = discs.box
    (x, y), r = position[i], float(discs.radius[i])
    position[i] = {
        "left": (left + r, y),
        "right": (right - r, y),
        "top": (x, top + r),
        "bottom": (x, bottom - r),
    }[wall]
    return {"left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, -1.0), "bottom": (0.0, 1.0)}[wall]


def _towards(p: tuple, q: tuple) -> tuple[float, float]:
    x, y = q[0] - p[0], q[1] - p[1]
    length = math.hypot(x, y)
    return x / length, y / length
