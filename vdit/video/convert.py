"""One decoded frame to RGB as displayed: colour, transparency, HDR, size, orientation.

The rules:
- Matrix: the stream's tag (BT.601, BT.709, FCC, SMPTE 240M, BT.2020; another is an error). Untagged
  streams are BT.709 when at least 1280 wide or more than 576 high as stored, else BT.601.
- Range: full where tagged full (or a "yuvj" or RGB format), else limited. The result is full range.
- Depth: 8 bits a channel, rounded by swscale with accurate rounding and full chroma interpolation.
- HDR (PQ and HLG): linear light relative to reference white (203 nits), BT.2020 to BT.709 primaries,
  one curve on the largest channel (so that hues stay) that leaves light below 0.6 alone and rolls
  1000 nits off to white, then the sRGB curve. Other transfers and primaries are left as they are.
- Transparency: composited on one background colour, white unless asked otherwise.
- Orientation: the display matrix, turned to the nearest of the 8 turns and mirrorings.
- Pixel aspect: the picture is shown with square pixels. Where the file's are not square (anamorphic
  video; by more than 1%), the side that is too short grows: nothing is squashed, no pixel is lost.
- Size: (h, w) as displayed; area averaging to shrink, bicubic to grow, in swscale before the pixels
  reach Python. `fit="cover"` keeps the shape of things: scaled to cover (h, w), the overhang cut off
  evenly; `fit="stretch"` scales each side by itself. An int is the shorter side; the longer follows.
"""

from __future__ import annotations

import dataclasses
import functools
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from vdit.errors import VideoError

Size = tuple[int, int] | int
Fit = Literal["cover", "stretch"]

# A frame above this is taken for a broken or hostile header: 8192 x 8192.
MAX_FRAME_PIXELS = 2**26

# AVCOL_SPC of a stream -> SWS_CS of swscale; 2 is "unspecified", 0 is RGB.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_BT709, _BT601 = 1, 5
_LIMITED, _FULL = 1, 2
_PQ, _HLG = 16, 18
_SIDE_DATA_KINDS = 64  # FFmpeg 8 numbers about 32 kinds
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orientation:
    """How the stored frame is turned for display: transpose first, then mirror left-right and up-down."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def rotation(self) -> int:
        """Degrees counterclockwise in (-180, 180], after the mirroring that `mirrored` tells of."""
        if self.transpose:
            return -90 if self.mirror_x else 90
        return 180 if self.mirror_y else 0

    @property
    def mirrored(self) -> bool:
        """Whether left and right are exchanged before the rotation."""
        return self.transpose ^ self.mirror_x ^ self.mirror_y

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) stored to (h, w) displayed; it is its own inverse."""
        return (width, height) if self.transpose else (height, width)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """[h w c] as stored to [h w c] as displayed."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """The turn that the frame's display matrix asks for; none without one."""
    for item in _side_data(frame):
        if item.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(item), np.int32)[:5].astype(np.int64)
            # A pixel (x, y) is shown at (a x + c y, b x + d y), up to a shift.
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return Orientation(mirror_x=bool(a < 0), mirror_y=bool(d < 0))
            return Orientation(transpose=True, mirror_x=bool(c < 0), mirror_y=bool(b < 0))
    return Orientation()


def _side_data(frame: av.VideoFrame) -> list:
    """What the decoder attached to a frame; without the kinds that PyAV has no name for (EXIF of camera pictures)."""
    try:
        return list(frame.side_data)
    except ValueError:  # PyAV up to 18.1 gives nothing then; a filter of FFmpeg takes the unknown kinds off
        graph = av.filter.Graph()
        last = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
        )
        known = {kind.value for kind in av.sidedata.sidedata.Type}
        for kind in sorted(set(range(_SIDE_DATA_KINDS)) - known):
            step = graph.add("sidedata", f"mode=delete:type={kind}")
            last.link_to(step)
            last = step
        last.link_to(graph.add("buffersink"))
        graph.configure()
        graph.push(frame)
        return list(graph.pull().side_data)


def square_size(height: int, width: int, pixel_aspect: float) -> tuple[int, int]:
    """(h, w) of the picture with square pixels, from that as stored: the shorter side grows, none shrinks."""
    if pixel_aspect >= 1:
        return height, round(width * pixel_aspect)
    return round(height / pixel_aspect), width


def check_size(size: Size | None, fit: str) -> None:
    """Raises VideoError unless size and fit are ones that the converter takes."""
    if fit not in ("cover", "stretch"):
        raise VideoError(f'fit is {fit!r}, must be "cover" or "stretch"')
    sides = tuple(size) if isinstance(size, tuple | list) and len(size) == 2 else (size,)
    if size is not None and not all(isinstance(n, int) and n > 0 for n in sides):
        raise VideoError(f"size is {size!r}, must be (height, width) or the shorter side, in pixels above 0")


def scaled_size(
    height: int, width: int, size: Size | None, fit: Fit
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(the size to scale to, the size to cut out of its middle), both (h, w), of a displayed frame."""
    if size is None:
        return (height, width), (height, width)
    if isinstance(size, int):
        ratio = size / min(height, width)
        size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        return size, size
    if fit == "stretch":
        return size, size
    ratio = max(size[0] / height, size[1] / width)
    return (max(size[0], round(height * ratio)), max(size[1], round(width * ratio))), size


@dataclasses.dataclass(kw_only=True)
class FrameConverter:
    """Turns decoded frames of one stream into uint8 [h w 3] as displayed, all of one size.

    The first frame settles the size; frames of another size (a stream may change it) are scaled to it.
    pixel_aspect: width over height of a stored pixel. Holds swscale's context, so one converter serves one thread.
    """

    size: Size | None = None
    fit: Fit = "cover"
    background: tuple[int, int, int] = (255, 255, 255)
    pixel_aspect: float = 1.0

    def __post_init__(self) -> None:
        check_size(self.size, self.fit)
        self._swscale = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        orientation = orientation_of(frame)
        shown = orientation.size(*square_size(frame.height, frame.width, self.pixel_aspect))
        if self.size is None:
            self.size, self.fit = shown, "stretch"
        scaled, cut = scaled_size(*shown, self.size, self.fit)
        if scaled[0] * scaled[1] > MAX_FRAME_PIXELS:
            most = f"at most {MAX_FRAME_PIXELS} pixels"
            raise VideoError(f"size {self.size} scales a frame of {shown} to {scaled}, must be {most}")
        self.size = cut
        if any(part.is_alpha for part in frame.format.components) or frame.format.has_palette:
            frame = self._on_background(frame)
        image = self._rgb(frame, *orientation.size(*scaled))
        top, left = (scaled[0] - cut[0]) // 2, (scaled[1] - cut[1]) // 2
        image = orientation.apply(image)[top : top + cut[0], left : left + cut[1]]
        return np.ascontiguousarray(image)

    def _rgb(self, frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
        hdr = frame.color_trc in (_PQ, _HLG) and not frame.format.is_rgb
        image = self._scale(frame, height, width, "rgb48le" if hdr else "rgb24").to_ndarray()
        return tone_map(image, "pq" if frame.color_trc == _PQ else "hlg") if hdr else image

    def _scale(self, frame: av.VideoFrame, height: int, width: int, pixels: str) -> av.VideoFrame:
        shrinks = height * width < frame.height * frame.width
        return self._swscale.reformat(
            frame,
            width=width,
            height=height,
            format=pixels,
            src_colorspace=_matrix(frame),
            src_color_range=_range(frame),
            dst_color_range=_FULL,
            interpolation=(Interpolation.AREA if shrinks else Interpolation.BICUBIC) | _EXACT,
            threads=1,
        )

    def _on_background(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Composites at the stored size: scaling first would bleed the colour of hidden pixels."""
        image = self._scale(frame, frame.height, frame.width, "rgba").to_ndarray().astype(np.int32)
        alpha = image[..., 3:]
        mixed = image[..., :3] * alpha + np.asarray(self.background, np.int32) * (255 - alpha)
        return av.VideoFrame.from_ndarray(((mixed + 127) // 255).astype(np.uint8), format="rgb24")


def _matrix(frame: av.VideoFrame) -> int:
    tag = int(frame.colorspace)
    if frame.format.is_rgb or tag == 2 or tag == 0:
        return _BT709 if frame.width >= 1280 or frame.height > 576 else _BT601
    if tag not in _MATRICES:
        raise VideoError(f"colour matrix {tag} (of H.273) is not supported: convert the file to BT.709")
    return _MATRICES[tag]


def _range(frame: av.VideoFrame) -> int:
    full = frame.format.is_rgb or frame.format.name.startswith("yuvj") or frame.color_range == _FULL
    return _FULL if full else _LIMITED


_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
    np.float32,
)
_WHITE_NITS, _PEAK_NITS, _KNEE = 203.0, 1000.0, 0.6


def tone_map(image: np.ndarray, transfer: Literal["pq", "hlg"]) -> np.ndarray:
    """uint16 [h w 3], PQ- or HLG-coded BT.2020, to uint8 [h w 3] sRGB, by the rule of the module."""
    light = _light_table(transfer)[image]
    if transfer == "hlg":
        # The system gamma of a 1000-nit screen, driven by the luminance.
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= (_PEAK_NITS / _WHITE_NITS) * np.maximum(luminance, 1e-6)[..., None] ** 0.2
    light = np.maximum(light @ _TO_BT709.T, 0.0)
    peak = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    over = np.maximum(peak - _KNEE, 0.0) / (1 - _KNEE)
    most = (_PEAK_NITS / _WHITE_NITS - _KNEE) / (1 - _KNEE)
    rolled = _KNEE + (1 - _KNEE) * over * (1 + over / most**2) / (1 + over)
    light *= np.where(peak > _KNEE, np.minimum(rolled, 1.0), peak) / peak
    return _srgb_table()[np.minimum(light * 65535 + 0.5, 65535).astype(np.uint16)]


@functools.cache
def _light_table(transfer: str) -> np.ndarray:
    """float32 [65536]: code value to light; PQ relative to reference white, HLG of the scene in 0..1."""
    code = np.linspace(0.0, 1.0, 65536)
    if transfer == "hlg":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)
    power = code ** (32 / 2523)
    ratio = np.maximum(power - 107 / 128, 0.0) / (2413 / 128 - 2392 / 128 * power)
    return (10000 / _WHITE_NITS * ratio ** (8192 / 1305)).astype(np.float32)


@functools.cache
def _srgb_table() -> np.ndarray:
    """uint8 [65536]: linear light to sRGB code value."""
    light = np.linspace(0.0, 1.0, 65536)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(coded * 255).astype(np.uint8)
