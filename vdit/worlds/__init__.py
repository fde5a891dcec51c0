"""Rendered worlds with known physics and exact captions: the embedded data set and benchmark."""

from vdit.worlds import discs, moving, occluder, orbit, steer
from vdit.worlds.base import Mixed, World, WorldSample, make, names
from vdit.worlds.draw import COLOURS, SHAPES
from vdit.worlds.moving import DIRECTIONS, combinations

__all__ = [
    "COLOURS",
    "DIRECTIONS",
    "SHAPES",
    "Mixed",
    "World",
    "WorldSample",
    "combinations",
    "discs",
    "make",
    "moving",
    "names",
    "occluder",
    "orbit",
    "steer",
]
