"""Overlaid text by OCR: a measure for `MeasureOptions.scorers`, where the package rapidocr-onnxruntime is installed.

    MeasureOptions(scorers=(OcrText(),))        # the column ocr_text_area

Its detection model is in the package; nothing is downloaded, and no letter is read, since only the boxes count. The
package asks for opencv-python, which would write over opencv-python-headless: install it without its dependencies.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import cv2
import numpy as np

from data_pipelines.records import ClipRecord
from vdit.errors import ConfigError

INSTALL = "pip install --no-deps rapidocr-onnxruntime && pip install onnxruntime pyclipper shapely pyyaml six tqdm"


@functools.cache
def _engine() -> Any:
    """The detector; one a process."""
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError as error:
        raise ConfigError(f"OCR of text needs the package rapidocr-onnxruntime ({error}): {INSTALL}") from None
    return RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OcrText:
    """Share of the picture under boxes of text, the mean over frames.

    Args:
        frames: how many of a clip are looked at.
        name: of the column.
    """

    frames: int = 3
    name: str = "ocr_text_area"

    def score(self, frames: np.ndarray, record: ClipRecord) -> float:
        """frames: uint8 [n h w 3]; the mean share, 0..1.

        Raises:
            ConfigError: the package is not installed.
        """
        shares = []
        for image in frames:
            boxes, _ = _engine()(np.ascontiguousarray(image[..., ::-1]), use_det=True, use_cls=False, use_rec=False)
            covered = np.zeros(image.shape[:2], np.uint8)
            for box in boxes if boxes is not None else ():
                cv2.fillPoly(covered, [np.asarray(box, np.float32).round().astype(np.int32)], (1,))
            shares.append(np.count_nonzero(covered) / covered.size)
        return float(np.mean(shares))
