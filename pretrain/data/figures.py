"""Pictures as files and figures: lossless PNGs that are whole or not there, contact sheets, masks drawn over images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

SHEET_FILE = 'grid.png'
STEPS_FILE = 'steps.png'
FIGURE_FILES = (SHEET_FILE, STEPS_FILE)  # in the folder of the images, but none of them

GAP_PX = 4
CAPTION_PX = 16
PAPER = (255, 255, 255)
INK = (0, 0, 0)
MASK_GREY = 0.5
READABLE_PX = 96  # captions need this width


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Turns images into 8-bit pictures.

    Args:
        images: (N, 3, H, W) in [0, 1]; clamped to it.

    Returns:
        N RGB pictures.

    Raises:
        ValueError: If a value is not finite.
    """
    if not images.isfinite().all():
        raise ValueError(
            'the images hold values that are not finite: the checkpoint is that of a run that diverged, or the '
            'precision does not reach; try float32'
        )
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def to_images(pictures: Sequence[Image.Image]) -> Tensor:
    """Images (N, 3, H, W) float32 in [0, 1] of N RGB pictures of one size."""
    flat = [torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in pictures]
    width, height = pictures[0].size
    return torch.stack(flat).view(-1, height, width, 3).permute(0, 3, 1, 2).float() / 255


def enlarge(picture: Image.Image, width_px: int = READABLE_PX) -> Image.Image:
    """Repeats pixels, a whole number of times, until a picture is at least so wide; a wide one stays as it is."""
    factor = max(1, math.ceil(width_px / picture.width))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def contact_sheet(
    pictures: Sequence[Image.Image],
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
) -> Image.Image:
    """Lays pictures of one size out in rows.

    Args:
        pictures: At least one.
        columns: Pictures in a row; about as many as rows if None.
        captions: A line above each picture, which is enlarged to be as wide as a caption; none if None.
        titles: A line above each column; pictures are enlarged as for captions. None writes none.

    Raises:
        ValueError: If there is no picture, or another number of captions.
    """
    if not pictures or (captions is not None and len(captions) != len(pictures)):
        raise ValueError(
            f'a sheet needs a picture and one caption for each, got {len(pictures)} pictures and '
            f'{"no" if captions is None else len(captions)} captions'
        )
    pictures = [enlarge(picture) for picture in pictures] if captions or titles else pictures
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    top, header = (CAPTION_PX if captions else 0), (CAPTION_PX if titles else 0)
    size = (columns * (width + GAP_PX) - GAP_PX, header + rows * (height + top + GAP_PX) - GAP_PX)
    sheet = Image.new('RGB', size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles or ()):
        pen.text((column * (width + GAP_PX) + 2, 2), title, fill=INK)
    for index, picture in enumerate(pictures):
        x, y = index % columns * (width + GAP_PX), header + index // columns * (height + top + GAP_PX)
        sheet.paste(picture, (x, y + top))
        if captions:
            pen.text((x + 2, y + 2), captions[index], fill=INK)
    return sheet


def grey_out(images: Tensor, mask: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Images (N, 3, H, W) with the masked places of ``mask`` (N, L) bool in grey; L places are on a ``grid``, a square one if None."""
    rows, columns = grid or (math.isqrt(mask.shape[1]),) * 2
    pixels = F.interpolate(mask.view(-1, 1, rows, columns).float(), size=images.shape[-2:], mode='nearest') > 0
    return torch.where(pixels, MASK_GREY, images)
