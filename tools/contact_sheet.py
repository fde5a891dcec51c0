"""A picture of a model's samples: frames, with their prompts. Without prompts, the held-out ones of the quickstart.

    python tools/contact_sheet.py runs/quickstart docs/quickstart.png
    python tools/contact_sheet.py runs/clips docs/clips.jpg --prompts "A flower." "A black bear."
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import vdit
from vdit.quickstart.config import held_out

SCALE, GAP, TEXT = 2, 4, 20


def sheet(videos: Sequence[np.ndarray], captions: Sequence[str], *, shown: int = 5, columns: int = 2) -> Image.Image:
    """Videos [t h w 3] of one size, uint8 or float in [-1, 1]: `shown` frames of each in a row, its caption above.

    Of a video of one frame there is that one.
    """
    height, width = (side * SCALE for side in videos[0].shape[1:3])
    cell = ((width + GAP) * shown + 3 * GAP, height + TEXT + GAP)
    rows = -(-len(videos) // columns)
    page = Image.new("RGB", (cell[0] * columns, cell[1] * rows), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=13)
    for index, (video, caption) in enumerate(zip(videos, captions)):
        left, top = index % columns * cell[0], index // columns * cell[1]
        draw.text((left + GAP, top + 2), caption, fill="black", font=font)
        count = 1 if len(video) == 1 else shown
        for place, frame in enumerate(video[np.linspace(0, len(video) - 1, count).astype(int)]):
            pixels = frame if frame.dtype == np.uint8 else np.round((frame + 1) * 127.5).astype(np.uint8)
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
            page.paste(image, (left + GAP + place * (width + GAP), top + TEXT))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder that vdit quickstart or vdit train filled")
    parser.add_argument("out", help="the picture, .png or .jpg")
    parser.add_argument("--count", type=int, default=12, help="prompts to show, the first of the held-out ones")
    parser.add_argument("--prompts", nargs="+", help="to show instead of the held-out ones")
    options = parser.parse_args()
    generator = vdit.load(options.run)
    prompts = options.prompts or [wanted.prompt for wanted in held_out(generator.experiment)[: options.count]]
    sheet(np.asarray(generator(prompts)), prompts).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
