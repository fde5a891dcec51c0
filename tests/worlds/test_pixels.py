"""What is drawn is where the facts say it is: tracks, hiding, cameras."""

import numpy as np
import pytest

from vdit import worlds
from vdit.worlds.raycast import Solid


def colourful(video):
    """The part [t h w] of each pixel that is not grey; all that is not the objects is grey."""
    return np.ptp(video.astype(np.float64), axis=-1)


def centroid(weight):
    """The centre of mass [t 2] (x, y) of weights [t h w], in pixels."""
    _, height, width = weight.shape
    total = weight.sum((1, 2))
    x = weight.sum(1) @ (np.arange(width) + 0.5) / total
    y = weight.sum(2) @ (np.arange(height) + 0.5) / total
    return np.stack([x, y], 1)


def samples(name, count, **options):
    """Samples whose objects have a colour other than white."""
    world = worlds.make(name, **options)
    every = (world[i] for i in range(count))
    return [s for s in every if all(thing["colour"] != "white" for thing in s.meta["objects"])]


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (96, 50)])
@pytest.mark.parametrize(
    ("name", "options"), [("moving", {}), ("bounce", {"balls": (1, 1)}), ("collide", {"balls": (1, 1)})]
)
def test_centre_of_mass_follows_the_track(name, options, size):
    for sample in samples(name, 24, size=size, **options):
        track = sample.meta["objects"][0]["position"] * sample.meta["scale"]
        assert np.abs(centroid(colourful(sample.video)) - track).max() < 0.15


@pytest.mark.parametrize("name", ["moving", "occluder"])
def test_velocity_is_the_slope_of_the_track(name):
    for sample in samples(name, 8):
        (thing,) = sample.meta["objects"]
        slope = np.diff(thing["position"], axis=0) * sample.fps
        np.testing.assert_allclose(slope, thing["velocity"][1:], atol=1e-12)


@pytest.mark.parametrize("size", [(64, 64), (40, 88), (88, 40)])
@pytest.mark.parametrize("frames", [2, 17, 90])
def test_moving_shapes_stay_whole_in_the_frame(size, frames):
    world = worlds.make("moving", size=size, frames=frames)
    for i in range(64):
        video = world[i].video.astype(int)
        edge = np.concatenate([video[:, [0, -1]].reshape(-1, 3), video[:, :, [0, -1]].reshape(-1, 3)])
        assert edge.max() < 110
        assert np.ptp(edge, axis=1).max() < 10  # the soft tip of a triangle may reach the edge's pixel


def test_occluder_hides_all_and_lets_out_where_it_must():
    for sample in samples("occluder", 48, frames=33, fps=16.0):
        (thing,), times = sample.meta["objects"], sample.meta["times"]
        first, last = sample.meta["hidden"]
        hidden = (times >= first) & (times <= last)
        weight = colourful(sample.video)
        pixel = 1 / sample.meta["scale"] / np.abs(thing["velocity"]).max()
        assert hidden.any()
        assert weight[(times >= first + pixel) & (times <= last - pixel)].max() == 0
        assert weight[hidden].max() < 60  # the soft edges of shape and wall share a pixel
        assert (thing["visibility"][hidden] < 1e-9).all()
        out = (times < first - pixel) | (times > last + pixel)
        assert (thing["visibility"][out] > 0).all()

        whole = thing["visibility"] > 1 - 1e-9
        assert whole[0]
        assert whole[-1]
        track = thing["position"] * sample.meta["scale"]
        assert np.abs(centroid(weight[whole]) - track[whole]).max() < 0.15
        seen = weight.sum((1, 2)) / weight[whole].sum((1, 2)).mean()
        np.testing.assert_allclose(seen, thing["visibility"], atol=0.05)

        before, after = track[times < first], track[times > last]
        step = (before[-1] - before[0]) / (len(before) - 1)
        np.testing.assert_allclose(before[0] + step * (len(times) - 1), after[-1], atol=1e-6)


@pytest.mark.parametrize("fps", [8.0, 24.0])
def test_occluder_can_show_the_shape_whole_at_both_ends_and_hide_it_for_frames_between(fps):
    options = {"sizes": (0.08, 0.1), "hiding": (0.06, 0.09), "place": (0.45, 0.55), "colours": ("red", "blue")}
    world = worlds.make("occluder", size=(48, 48), frames=17, fps=fps, **options)
    for i in range(200):
        (thing,) = world.render(i, size=(8, 8)).meta["objects"]
        hidden, whole = np.flatnonzero(thing["visibility"] < 1e-9), thing["visibility"] > 1 - 1e-9
        assert 2 <= len(hidden) <= 4
        assert 2 <= whole[: hidden[0]].sum() <= 5
        assert 2 <= whole[hidden[-1] :].sum() <= 5
        assert 0.08 <= thing["size"] <= 0.1
        assert thing["colour"] in ("red", "blue")


def test_the_largest_shapes_are_hidden_whole():
    world = worlds.make("occluder", sizes=(0.12, 0.12), hiding=(0.03, 0.03), frames=2, size=(8, 8))
    for i in range(100):
        sample = world[i]
        first, last = sample.meta["hidden"]
        (thing,), axis = sample.meta["objects"], 0 if sample.meta["combo"][2] in ("left", "right") else 1
        wall, travel = sample.meta["occluder"]["box"], sample.fps * np.diff(thing["position"][:, axis]).item()
        assert (last - first) * abs(travel) == pytest.approx(0.06, abs=1e-9)
        assert wall[axis + 2] - wall[axis] > 0.2


def test_camera_matrices_are_one_pinhole_camera():
    for sample in samples("orbit", 8, size=(48, 80)):
        camera = sample.meta["camera"]
        rotation = camera["extrinsics"][:, :3, :3]
        np.testing.assert_allclose(
            rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (17, 1, 1)), atol=1e-12
        )
        np.testing.assert_allclose(np.linalg.det(rotation), 1)
        for thing in sample.meta["objects"]:
            point = np.append(thing["position"][0], 1)
            pixel = (camera["extrinsics"] @ point)[:, :3] @ camera["intrinsics"].T
            np.testing.assert_allclose(pixel[:, :2] / pixel[:, 2:], thing["projected"], atol=1e-9)
            np.testing.assert_allclose(pixel[:, 2], thing["depth"], atol=1e-9)
        reach = np.linalg.norm(camera["centre"] - camera["target"], axis=1)
        np.testing.assert_allclose(reach, camera["distance"], atol=1e-12)
        angle = np.unwrap(np.arctan2(*camera["centre"].T[1::-1]))
        np.testing.assert_allclose(np.diff(angle) * sample.fps, np.radians(camera["degrees_per_second"]))


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_spheres_are_drawn_where_they_project(size):
    for sample in samples("orbit", 24, size=size, solids=(1, 1), kinds=("sphere",)):
        weight = colourful(sample.video)
        mask = weight > 0.4 * weight.max((1, 2), keepdims=True)
        assert np.abs(centroid(mask) - sample.meta["objects"][0]["projected"]).max() < 0.5


def test_cubes_fill_the_outline_of_their_corners():
    for sample in samples("orbit", 24, size=(96, 96), solids=(1, 1), kinds=("cube",)):
        (thing,), camera = sample.meta["objects"], sample.meta["camera"]
        cube = Solid(kind="cube", size=thing["size"], centre=tuple(thing["position"][0]), yaw=thing["yaw"])
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
        corners = np.concatenate([np.array(cube.centre) + cube.size * signs @ cube.axes(), np.ones((8, 1))], 1)
        seen = np.einsum("ij,tjk,nk->tni", camera["intrinsics"], camera["extrinsics"][:, :3], corners)
        pixels = seen[..., :2] / seen[..., 2:]
        weight = colourful(sample.video)
        for frame, outline in zip(weight > 0.3 * weight.max((1, 2), keepdims=True), pixels):
            rows, columns = np.nonzero(frame)
            drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.concatenate([outline.min(0), outline.max(0)]) - drawn).max() < 1.5


def test_nearer_solids_hide_farther_ones():
    """The visible share of each solid is the area of its own colour, next to that of its clip alone."""
    hidden = 0
    for sample in samples("orbit", 60, size=(96, 96), frames=5, solids=(2, 2), kinds=("sphere",)):
        colours = [np.array(worlds.COLOURS[thing["colour"]], float) for thing in sample.meta["objects"]]
        cosine = colours[0] @ colours[1] / np.linalg.norm(colours[0]) / np.linalg.norm(colours[1])
        if cosine > 0.8:
            continue
        video = sample.video.astype(float)
        mask = colourful(sample.video) > 60
        alike = np.stack([video @ c / np.linalg.norm(c) for c in colours])
        eye = sample.meta["camera"]["centre"]
        reach = [np.linalg.norm(thing["position"] - eye, axis=1) for thing in sample.meta["objects"]]
        for k, (thing, other) in enumerate(zip(sample.meta["objects"], (1, 0))):
            clearly_nearer = reach[k] < reach[other] - 0.2
            np.testing.assert_allclose(thing["visibility"][clearly_nearer], 1, atol=1e-6)
            area = (mask & (alike[k] > alike[other])).sum((1, 2))
            focal = sample.meta["camera"]["intrinsics"][0, 0]
            full = np.pi * (focal * thing["size"] / thing["depth"]) ** 2
            np.testing.assert_allclose(area / full, thing["visibility"], atol=0.12)
            hidden += (thing["visibility"] < 0.8).sum()
    assert hidden >= 3


def test_every_solid_is_in_sight_at_first():
    world = worlds.make("orbit", size=(48, 48), frames=1)
    for i in range(60):
        assert min(thing["visibility"][0] for thing in world[i].meta["objects"]) > 0.2
