"""OCR of overlaid text, where its package is installed."""

import pickle
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from data_pipelines import ocr
from data_pipelines.measures import MeasureOptions
from data_pipelines.records import ClipRecord
from vdit.errors import ConfigError


def test_boxes_of_letters_have_an_area():
    pytest.importorskip("rapidocr_onnxruntime")
    image = Image.new("RGB", (480, 270), (60, 90, 60))
    font, text = ImageFont.load_default(size=40), "SOME LETTERS"
    ImageDraw.Draw(image).text((60, 180), text, font=font)
    left, top, right, bottom = ImageDraw.Draw(image).textbbox((60, 180), text, font=font)
    blank = np.full((1, 270, 480, 3), 90, np.uint8)
    record = ClipRecord(path="a")
    share = (right - left) * (bottom - top) / (480 * 270)
    assert ocr.OcrText().score(np.asarray(image)[None], record) == pytest.approx(share, rel=0.5)
    assert ocr.OcrText().score(blank, record) == 0


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    ocr._engine.cache_clear()
    with pytest.raises(ConfigError, match="pip install"):
        ocr.OcrText().score(np.zeros((1, 32, 32, 3), np.uint8), ClipRecord(path="a"))


def test_it_travels_to_workers():
    options = MeasureOptions(scorers=(ocr.OcrText(),))
    assert pickle.loads(pickle.dumps(options)) == options
