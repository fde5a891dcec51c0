"""Ray casting in numpy: spheres and cubes on a chequered floor, seen by a pinhole camera.

The floor is filtered in closed form, one ray a pixel. Each solid is cast with several rays a pixel, only
on a window that follows it, and painted from near to far on what is still in sight. The order of their
power distances is right for that, because the solids' bounding spheres do not meet.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from vdit.reprs import short_repr

KINDS = ("sphere", "cube")

_FOCAL = 1.1  # in short sides of the frame
_RAYS = 3  # along each side of a pixel
_LIGHT = np.array([0.45, 0.25, 0.86], np.float32)
_AMBIENT = 0.55
_SKY = (132.0, 146.0, 162.0)
_FADE = 9.0  # metres at which the floor has mostly become the sky


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solid:
    """kind: "sphere" (size: its radius) or "cube" (size: half its side), turned by yaw about z."""

    kind: str
    size: float
    centre: tuple[float, float, float]
    yaw: float

    @property
    def bound(self) -> float:
        """The radius of a sphere around it."""
        return self.size if self.kind == "sphere" else self.size * math.sqrt(3)

    def axes(self) -> np.ndarray:
        """Its own axes [3 3], one a row."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera for each frame.

    size: (h, w). centre: [t 3]. rotation: [t 3 3], world to camera: its rows are the camera's right,
    down and forward in the world. focal: in pixels.
    """

    size: tuple[int, int]
    centre: np.ndarray
    rotation: np.ndarray
    focal: float

    @classmethod
    def orbiting(
        cls,
        size: tuple[int, int],
        azimuth: np.ndarray,
        elevation: float,
        distance: float,
        target: tuple[float, float, float],
    ) -> Camera:
        """A camera on a circle around a target.

        Args:
            size: (h, w) in pixels.
            azimuth: [t], radians; a rising azimuth moves the camera to its right.
            elevation: radians above the floor.
            distance: to the target.
            target: (x, y, z).
        """
        flat = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros_like(azimuth)], 1)
        up = np.array([0.0, 0.0, 1.0])
        forward = -(math.cos(elevation) * flat + math.sin(elevation) * up)
        right = np.stack([-np.sin(azimuth), np.cos(azimuth), np.zeros_like(azimuth)], 1)
        down = np.cross(forward, right)
        return cls(
            size=size,
            centre=np.array(target) - distance * forward,
            rotation=np.stack([right, down, forward], 1),
            focal=_FOCAL * min(size),
        )

    @property
    def intrinsics(self) -> np.ndarray:
        """float64 [3 3], in pixels."""
        height, width = self.size
        return np.array([[self.focal, 0, width / 2], [0, self.focal, height / 2], [0, 0, 1]])

    @property
    def extrinsics(self) -> np.ndarray:
        """float64 [t 4 4], world to camera."""
        matrix = np.tile(np.eye(4), (len(self.centre), 1, 1))
        matrix[:, :3, :3] = self.rotation
        matrix[:, :3, 3] = -np.einsum("tij,tj->ti", self.rotation, self.centre)
        return matrix

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [t ... 2] (x, y) and depth [t ...] of world points [... 3]."""
        relative = points - self.centre.reshape(-1, *(1,) * (points.ndim - 1), 3)
        seen = np.einsum("tij,t...j->t...i", self.rotation, relative)
        height, width = self.size
        pixels = seen[..., :2] / seen[..., 2:] * self.focal + np.array([width / 2, height / 2])
        return pixels, seen[..., 2]

    def rays(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Directions float32 [3 t r c] of depth 1 through columns x [t c] and rows y [t r] in pixels."""
        height, width = self.size
        x = ((x - width / 2) / self.focal).astype(np.float32)
        y = ((y - height / 2) / self.focal).astype(np.float32)
        right, down, forward = (self.rotation[:, k].T.astype(np.float32)[:, :, None, None] for k in range(3))
        return right * x[None, :, None, :] + (down * y[None, :, :, None] + forward)


def draw_scene(
    camera: Camera, solids: list[Solid], colours: list[tuple[int, int, int]], level: float, tile: float
) -> tuple[np.ndarray, np.ndarray]:
    """Renders solids on a chequered floor.

    Args:
        camera: for each frame.
        solids: what stands on the floor.
        colours: (r, g, b) of each solid, 0 to 255.
        level: grey level of the floor, 0 to 255.
        tile: side of a tile.

    Returns:
        (video float32 [t h w 3] of 0..255, visibility [t s] of each solid).
    """
    video = _floor(camera, solids, level, tile)
    layers = [_cast(camera, solid) for solid in solids]
    centres = np.array([solid.centre for solid in solids])[:, None]
    bounds = np.array([solid.bound for solid in solids])[:, None]
    order = (((centres - camera.centre) ** 2).sum(-1) - bounds**2).argsort(0)
    visibility = np.zeros((len(video), len(solids)))
    for t, frame in enumerate(video):
        sight = np.ones(camera.size, np.float32)
        seen = np.zeros_like(frame)
        for k in order[:, t]:
            (x, y), cover, light = (part[t] for part in layers[k])
            x0, y0 = max(x, 0), max(y, 0)
            x1, y1 = min(x + cover.shape[1], frame.shape[1]), min(y + cover.shape[0], frame.shape[0])
            if x0 >= x1 or y0 >= y1:
                continue
            window, inside = np.s_[y0:y1, x0:x1], np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
            share = cover[inside] * sight[window]
            visibility[t, k] = share.sum() / cover.sum()
            sight[window] -= share
            seen[window] += (share * light[inside])[..., None] * np.asarray(colours[k], np.float32)
        frame *= sight[..., None]
        frame += seen
    return video, visibility


def _floor(camera: Camera, solids: list[Solid], level: float, tile: float) -> np.ndarray:
    """The chequered floor and the sky, float32 [t h w 3]."""
    frames = len(camera.centre)
    height, width = camera.size
    columns = np.tile(np.arange(width) + 0.5, (frames, 1))
    rows = np.tile(np.arange(height) + 0.5, (frames, 1))
    ray = camera.rays(columns, rows)
    centre = camera.centre.T.astype(np.float32)[:, :, None, None]
    down = np.minimum(ray[2], -1e-3)
    depth = -centre[2] / down
    x, y = centre[0] + depth * ray[0], centre[1] + depth * ray[1]

    wave_x, wave_y = _square_wave(x / tile), _square_wave(y / tile)
    value = level * (1 + 0.2 * wave_x * wave_y)
    for solid in solids:
        reach = 1.25 * solid.size
        near = ((x - solid.centre[0]) ** 2 + (y - solid.centre[1]) ** 2) / np.float32(reach * reach)
        value *= 1 - 0.5 * np.exp(-near * near)

    away = np.exp(-((x * x + y * y) / _FADE**2))
    away = np.where(ray[2] < -1e-3, away, 0)
    sky = np.array(_SKY, np.float32)
    return (value * away)[..., None] + sky * (1 - away)[..., None]


def _square_wave(x: np.ndarray) -> np.ndarray:
    """A wave of -1 and 1 that changes at each whole x [t h w], averaged over the pixel's footprint."""
    width = np.abs(np.gradient(x, axis=1)) + np.abs(np.gradient(x, axis=2)) + 1e-4
    low, high = _triangle_wave(x - width / 2), _triangle_wave(x + width / 2)
    return (high - low) / width


def _triangle_wave(x: np.ndarray) -> np.ndarray:
    """The integral of the square wave: 0 at even x, 1 at odd x."""
    half = x * 0.5
    return 1 - np.abs(2 * (half - np.floor(half)) - 1)


def _cast(camera: Camera, solid: Solid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First pixels [t 2] (x, y) of the windows, the share [t r c] of pixels covered, and their light."""
    pixels, depth = camera.project(np.array(solid.centre))
    reach = camera.focal * solid.bound / (depth - solid.bound)
    reach = math.ceil(reach.max() * 1.1) + 1
    first = np.floor(pixels - reach).astype(np.int64)
    count = 2 * reach + 1
    step = (np.arange(count * _RAYS) + 0.5) / _RAYS
    ray = camera.rays(first[:, :1] + step, first[:, 1:] + step)
    origin = (camera.centre - np.array(solid.centre)).astype(np.float32)
    hit, light = (_sphere if solid.kind == "sphere" else _cube)(solid, origin, ray)
    hit = hit.astype(np.float32)
    hits = _pool(hit)
    return first, hits / _RAYS**2, _pool(hit * light) / np.maximum(hits, 1)


def _pool(x: np.ndarray) -> np.ndarray:
    """The sum over each pixel's rays: [t r c] -> [t r/RAYS c/RAYS]."""
    rows = sum(x[:, k::_RAYS] for k in range(_RAYS))
    return sum(rows[:, :, k::_RAYS] for k in range(_RAYS))


def _shade(normal: np.ndarray) -> np.ndarray:
    """Light 0..1 on a surface with a unit normal, given its dot product with the light."""
    return _AMBIENT + (1 - _AMBIENT) * np.maximum(normal, 0)


def _sphere(solid: Solid, origin: np.ndarray, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays [3 t r c] from origin [t 3] (seen from the sphere's centre) hit, and the light there."""
    o = origin.T[:, :, None, None]
    a = (ray * ray).sum(0)
    b = (ray * o).sum(0)
    square = b * b - a * ((o * o).sum(0) - np.float32(solid.size**2))
    hit = square > 0
    depth = (-b - np.sqrt(np.maximum(square, 0))) / a
    towards = sum(_LIGHT[k] * (o[k] + depth * ray[k]) for k in range(3))
    return hit, _shade(towards / np.float32(solid.size))


def _cube(solid: Solid, origin: np.ndarray, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for a cube."""
    axes = solid.axes().astype(np.float32)
    o = (origin @ axes.T).T[:, :, None, None]
    light = axes @ _LIGHT
    near, far, shade = None, None, None
    for k in range(3):
        along = sum(axes[k, j] * ray[j] for j in range(3))
        along = np.where(np.abs(along) < 1e-6, np.float32(1e-6), along)
        middle, half = -o[k] / along, np.float32(solid.size) / np.abs(along)
        face = _shade(-np.sign(along) * light[k])
        enter, leave = middle - half, middle + half
        if near is None:
            near, far, shade = enter, leave, face
        else:
            shade = np.where(enter > near, face, shade)
            near, far = np.maximum(near, enter), np.minimum(far, leave)
    return near < far, shade
