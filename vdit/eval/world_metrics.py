"""Metrics against the exact truth of rendered worlds: attributes, trajectories, permanence, physics, camera and space.

Each is for some worlds only (`worlds`), and looks at the video with the detectors alone. Where a figure compares
motion, the truth goes through the same finite differences as what was detected. How exact the detectors are is measured
on the true videos themselves (tests/eval/test_world_metrics.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vdit.errors import ShapeError
from vdit.eval.detectors import detect, is_permanent, position_error, track, track_colours
from vdit.eval.evaluate import Better, Case, Metric, Need, Values
from vdit.registry import register

_FLAT = ("moving", "bounce", "collide", "occluder", "steer")
_NEAR = 0.1  # short sides within which an object is in its place
_IN_SIGHT = 0.9  # share of an object that must be visible for its centre to count
_JOLT = 0.15  # short sides a second: a change of velocity that counts as a contact
_LATE = 1.5  # frames by which a contact may be early or late
_TURN = 0.5  # degrees of the grid on which the camera is looked for


@register("metric", "attributes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Attributes(Metric):
    """Whether colour, shape and direction are those of the caption: shares, and "attributes" for all three at once."""

    needs: ClassVar[tuple[Need, ...]] = ("scene",)
    worlds: ClassVar[tuple[str, ...]] = ("moving",)
    better: ClassVar[Mapping[str, Better]] = dict.fromkeys(("colour", "shape", "direction", "attributes"), "higher")

    def measure(self, case: Case) -> Values:
        seen = detect(case.video)
        names = (seen.colour, seen.shape, seen.direction)
        right = [found == wanted for found, wanted in zip(names, case.scene["combo"])]
        return dict(zip(self.better, map(float, (*right, all(right)))))


@register("metric", "trajectory")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory(Metric):
    """Where the objects are.

    "trajectory": distance of each object's centre from the true one, in short sides, by frame. "in_sight": share of the
    objects that should be visible and are found. Only meaningful where the scene is determined: by given frames, or
    because the video is to equal the true one.
    """

    needs: ClassVar[tuple[Need, ...]] = ("scene", "truth")
    worlds: ClassVar[tuple[str, ...]] = (*_FLAT, "orbit")
    better: ClassVar[Mapping[str, Better]] = {"trajectory": "lower", "in_sight": "higher"}

    def measure(self, case: Case) -> Values:
        places, truth, visible = _places(case)
        error = np.where(visible, position_error(places, truth), np.nan)
        seen = np.where(visible, np.isfinite(places).all(-1), np.nan)
        return {"trajectory": _row_means(error), "in_sight": _row_means(seen)}


@register("metric", "permanence")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Permanence(Metric):
    """Share of shapes that vanish behind the wall and come out of it, with their colour, where they must."""

    needs: ClassVar[tuple[Need, ...]] = ("scene", "truth")
    worlds: ClassVar[tuple[str, ...]] = ("occluder",)

    def measure(self, case: Case) -> Values:
        thing = case.scene["objects"][0]
        truth = np.asarray(thing["position"]) * case.scene["scale"]
        near = _NEAR * min(case.video.shape[1:3])
        found = is_permanent(track(case.video), truth, thing["visibility"], thing["colour"], within=near)
        return {"permanence": float(found)}


@register("metric", "energy")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Energy(Metric):
    """Error of the kinetic and potential energy of all balls, by step, over the true scene's largest.

    A ball that is not seen has none.
    """

    needs: ClassVar[tuple[Need, ...]] = ("scene", "truth")
    worlds: ClassVar[tuple[str, ...]] = ("bounce", "collide")
    better: ClassVar[Better] = "lower"

    def measure(self, case: Case) -> Values:
        made, true = (_energy(points, case) for points in _tracks(case))
        return {"energy": np.abs(made - true) / true.max()}


@register("metric", "momentum")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum(Metric):
    """Error of the sum of the balls' momenta, by step, over the true scene's largest sum of their lengths."""

    needs: ClassVar[tuple[Need, ...]] = ("scene", "truth")
    worlds: ClassVar[tuple[str, ...]] = ("bounce", "collide")
    better: ClassVar[Better] = "lower"

    def measure(self, case: Case) -> Values:
        mass = _masses(case)
        made, true = (np.nan_to_num(_velocity(points, case)) * mass[:, None] for points in _tracks(case))
        largest = np.linalg.norm(true, axis=-1).sum(1).max()
        return {"momentum": np.linalg.norm((made - true).sum(1), axis=-1) / largest}


@register("metric", "contacts")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Contacts(Metric):
    """F1 of contacts: of each ball's jolts, how many are there at their time (1.5 frames), and how many are made up.

    A jolt is a change of velocity by 0.15 short sides a second or more, gravity aside. Scenes without any are left out.
    """

    needs: ClassVar[tuple[Need, ...]] = ("scene", "truth")
    worlds: ClassVar[tuple[str, ...]] = ("bounce", "collide")

    def measure(self, case: Case) -> Values:
        hits = count = 0
        made, true = ([_jolts(points[:, k], case) for k in range(points.shape[1])] for points in _tracks(case))
        for found, wanted in zip(made, true):
            count += len(found) + len(wanted)
            left = list(found)
            for time in wanted:
                near = [other for other in left if abs(other - time) <= _LATE]
                if near:
                    left.remove(min(near, key=lambda other: abs(other - time)))
                    hits += 1
        return {"contacts": 2 * hits / count if count else math.nan}


@register("metric", "camera")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraAndSpace(Metric):
    """Whether a still scene is seen from where the camera should be, and stays one rigid scene.

    "camera": degrees between the true place of the camera on its circle and the place from which the true solids would
    look as they do. "space": solids are placed by triangulation from those cameras; the mean distance of where they are
    seen from where they should then be seen, in short sides. Both by frame; solids more than 10% hidden do not count.
    """

    needs: ClassVar[tuple[Need, ...]] = ("scene", "truth")
    worlds: ClassVar[tuple[str, ...]] = ("orbit",)
    better: ClassVar[Mapping[str, Better]] = {"camera": "lower", "space": "lower"}

    def measure(self, case: Case) -> Values:
        camera, objects = case.scene["camera"], case.scene["objects"]
        seen, _, visible = _places(case, unit=False)
        seen = np.where(visible[..., None], seen, np.nan)
        solids = np.array([thing["position"][0] for thing in objects])
        place = np.asarray(camera["centre"])[case.given :] - np.asarray(camera["target"])
        true = np.degrees(np.arctan2(place[:, 1], place[:, 0]))
        grid = np.arange(0, 360, _TURN)
        views = np.stack([_view(camera, angle) for angle in np.radians(grid)])  # [g 3 4]
        expected = _project(views, solids)  # [g k 2]
        found = np.full(len(seen), np.nan)
        gaps = np.linalg.norm(seen[:, None] - expected[None], axis=-1)  # [t g k]
        some = np.isfinite(gaps).any((1, 2))
        found[some] = grid[np.nanmean(gaps[some], axis=-1).argmin(1)]
        error = np.abs((found - true + 180) % 360 - 180)
        return {"camera": error, "space": _rigid_error(seen, camera, np.radians(found)) / min(case.video.shape[1:3])}


def _places(case: Case, *, unit: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres that are seen [t k 2], true ones [t k 2], and which must be visible [t k]; of frames not given.

    unit: in short sides of the frame; else in pixels.
    """
    scene = case.scene
    objects, start = scene["objects"], case.given
    places, _ = track_colours(case.made, [thing["colour"] for thing in objects])
    truth = np.stack([_pixels(thing, scene) for thing in objects], 1)[start:]
    visible = np.stack([np.asarray(thing["visibility"]) for thing in objects], 1)[start:] >= _IN_SIGHT
    if truth.shape != places.shape:
        raise ShapeError(f"{case.name}: {len(places)} frames are made, the scene has {len(truth)}: make as many")
    side = min(case.video.shape[1:3]) if unit else 1
    return places / side, truth / side, visible


def _pixels(thing: Mapping[str, Any], scene: Mapping[str, Any]) -> np.ndarray:
    """Where an object's centre is: [t 2] in pixels."""
    return np.asarray(thing["projected"] if "projected" in thing else thing["position"] * scene["scale"])


def _tracks(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the balls, seen and true: [t k 2] each, in short sides. At least two frames."""
    places, truth, _ = _places(case)
    if len(places) < 2:
        raise ShapeError(f"{case.name}: one frame has no velocity: give two or more")
    return places, truth


def _masses(case: Case) -> np.ndarray:
    return np.array([thing["mass"] for thing in case.scene["objects"]])


def _velocity(points: np.ndarray, case: Case) -> np.ndarray:
    """Short sides a second between frames: [t ... 2] -> [t-1 ... 2]."""
    return np.diff(points, axis=0) * case.fps


def _energy(points: np.ndarray, case: Case) -> np.ndarray:
    """Kinetic and potential energy of all balls between frames: [t k 2] -> [t-1]. The floor is at height 0."""
    mass, gravity = _masses(case), case.scene["gravity"]
    kinetic = 0.5 * mass * np.square(_velocity(points, case)).sum(-1)
    height = case.scene["box"][3] - (points[1:, :, 1] + points[:-1, :, 1]) / 2
    return np.nan_to_num(kinetic + mass * gravity * height).sum(1)


def _jolts(points: np.ndarray, case: Case) -> np.ndarray:
    """Times, in frames, at which a ball's [t 2] velocity changes by more than gravity does: peaks of the change."""
    change = np.diff(_velocity(points, case), axis=0)
    change[:, 1] -= case.scene["gravity"] / case.fps
    size = np.nan_to_num(np.linalg.norm(change, axis=-1))
    before, after = np.append(0, size[:-1]), np.append(size[1:], 0)
    return np.flatnonzero((size >= _JOLT) & (size >= before) & (size > after)) + 1


def _view(camera: Mapping[str, Any], azimuth: float) -> np.ndarray:
    """The matrix [3 4] that takes points of the world to pixels, for a camera at an angle of its circle in radians."""
    elevation, target = math.radians(camera["elevation"]), np.asarray(camera["target"])
    flat = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
    forward = -(math.cos(elevation) * flat + math.sin(elevation) * np.array([0.0, 0.0, 1.0]))
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    rotation = np.stack([right, np.cross(forward, right), forward])
    place = target - camera["distance"] * forward
    return np.asarray(camera["intrinsics"]) @ np.concatenate([rotation, -(rotation @ place)[:, None]], axis=1)


def _project(views: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Pixels [g k 2] of points [k 3] in views [g 3 4]."""
    seen = np.einsum("gij,kj->gki", views, np.concatenate([points, np.ones((len(points), 1))], axis=1))
    return seen[..., :2] / seen[..., 2:]


def _rigid_error(seen: np.ndarray, camera: Mapping[str, Any], azimuth: np.ndarray) -> np.ndarray:
    """Mean distance [t] in pixels of centres [t k 2] from those of one rigid scene, triangulated from all frames."""
    views = np.stack([_view(camera, angle) for angle in np.nan_to_num(azimuth)])
    error = np.full(seen.shape[:2], np.nan)
    for k in range(seen.shape[1]):
        known = np.isfinite(seen[:, k]).all(-1) & np.isfinite(azimuth)
        if known.sum() < 2:
            continue
        part = views[known]
        rows = part[:, 2:] * seen[known, k][..., None] - part[:, :2]  # [f 2 4], each row times the point is 0
        point = np.linalg.svd(rows.reshape(-1, 4))[2][-1]
        if abs(point[3]) < 1e-9:
            continue
        error[known, k] = np.linalg.norm(_project(part, point[None, :3] / point[3])[:, 0] - seen[known, k], axis=-1)
    return _row_means(error)


def _row_means(table: np.ndarray) -> np.ndarray:
    """Mean of each row [t k] -> [t] over what is not NaN; NaN where all is."""
    known = np.isfinite(table)
    total = np.where(known, table, 0).sum(1)
    return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)
