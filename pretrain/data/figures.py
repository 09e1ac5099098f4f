"""Figures for people: tensors to PIL images and back, contact sheets, masks drawn over images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

SHEET_FILE = 'grid.png'
STEPS_FILE = 'steps.png'
FIGURE_FILES = (SHEET_FILE, STEPS_FILE)  # lie in the folder of generated images without being generated images

GAP_PX = 4
CAPTION_PX = 16
PAPER = (255, 255, 255)
INK = (0, 0, 0)
MASK_GREY = 0.5
READABLE_PX = 96  # width that a caption needs
_SLACK = 2**-10  # of 255; float32 misses whole numbers by less


def to_pil(images: Tensor) -> list[Image.Image]:
    """Converts a tensor to 8-bit PIL images; values are truncated, as in the published code (and MAGE's).

    Rounding would make images half a level brighter on average, which FID sees. Values that are whole up to
    :data:`_SLACK` stay what they are, so that images survive the way to a tensor and back.

    Args:
        images: (N, 3, H, W) float; clamped to [0, 1] here.

    Returns:
        N RGB images.

    Raises:
        ValueError: If a value is not finite.
    """
    if not images.isfinite().all():
        raise ValueError(
            'the images hold values that are not finite: the checkpoint comes from a run that diverged, or the '
            'precision is too low; try float32'
        )
    pixels = (images.detach().float().clamp(0, 1) * 255 + _SLACK).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in pixels]


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Converts N RGB PIL images of one size to a tensor (N, 3, H, W), float32 in [0, 1]."""
    flat = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images]
    width, height = images[0].size
    return torch.stack(flat).view(-1, height, width, 3).permute(0, 3, 1, 2).float() / 255


def enlarge(image: Image.Image, width_px: int = READABLE_PX) -> Image.Image:
    """Enlarges an image by the smallest whole factor that makes it ``width_px`` wide or wider, repeating pixels."""
    factor = max(1, math.ceil(width_px / image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def contact_sheet(
    images: Sequence[Image.Image],
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
) -> Image.Image:
    """Lays out images of one size in rows.

    Args:
        images: At least one.
        columns: Number of images in a row; None makes the sheet about square in images.
        captions: A line above each image; small images are enlarged to the width of a caption. None writes none.
        titles: A line above each column; small images are enlarged likewise. None writes none.

    Raises:
        ValueError: If there is no image, or the number of captions is not that of the images.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise ValueError(
            f'a sheet needs at least one image and a caption for each, got {len(images)} images and '
            f'{"no" if captions is None else len(captions)} captions'
        )
    images = [enlarge(image) for image in images] if captions or titles else images
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    top, header = (CAPTION_PX if captions else 0), (CAPTION_PX if titles else 0)
    size = (columns * (width + GAP_PX) - GAP_PX, header + rows * (height + top + GAP_PX) - GAP_PX)
    sheet = Image.new('RGB', size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles or ()):
        pen.text((column * (width + GAP_PX) + 2, 2), title, fill=INK)
    for index, image in enumerate(images):
        x, y = index % columns * (width + GAP_PX), header + index // columns * (height + top + GAP_PX)
        sheet.paste(image, (x, y + top))
        if captions:
            pen.text((x + 2, y + 2), captions[index], fill=INK)
    return sheet


def grey_out(images: Tensor, mask: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Paints the patches of masked tokens grey.

    Args:
        images: (N, 3, H, W) in [0, 1].
        mask: (N, L) bool.
        grid: Rows and columns of the L tokens; None for a square grid.

    Returns:
        (N, 3, H, W).
    """
    rows, columns = grid or (math.isqrt(mask.shape[1]),) * 2
    pixels = F.interpolate(mask.view(-1, 1, rows, columns).float(), size=images.shape[-2:], mode='nearest') > 0
    return torch.where(pixels, MASK_GREY, images)
