"""Editing images: which tokens to sample anew (mask image, boxes, ratio or outpainting), and sampling them.

Everything happens at the model's size: the shorter side of an image is resized to it, and the centre is cropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torch.nn import functional as F

from pretrain.data.figures import contact_sheet, grey_out, to_pil, to_tensor
from pretrain.generation.sampling import Sampling, image_generator
from pretrain.generation.trajectory import generate
from pretrain.networks.addp import ADDP
from pretrain.networks.mask_schedule import masks_from_noise, num_masked

Box = tuple[float, float, float, float]

_WHITE = 255
_HALF = 128


class Edit(NamedTuple):
    """An image, masks and the results.

    Attributes:
        before: (1, 3, S, S) in [0, 1].
        mask: (N, L) bool, True = sampled anew.
        results: (N, 3, S, S) in [0, 1].
    """

    before: Tensor
    mask: Tensor
    results: Tensor


def fit(image: Image.Image, size_px: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Resizes the shorter side of an image to ``size_px`` and crops the centre square."""
    width, height = image.size
    scale = size_px / min(width, height)
    resized = image.resize((max(size_px, round(width * scale)), max(size_px, round(height * scale))), resample)
    left, top = (resized.width - size_px) // 2, (resized.height - size_px) // 2
    return resized.crop((left, top, left + size_px, top + size_px))


def mask_of_boxes(boxes: Sequence[Box], image_size: tuple[int, int]) -> Image.Image:
    """Draws a mask image, white inside the boxes.

    Args:
        boxes: (left, top, right, bottom) in pixels of the original image; right and bottom are exclusive.
        image_size: (width, height) of the original image, in pixels.

    Raises:
        ValueError: If a box is empty or lies outside.
    """
    width, height = image_size
    mask = Image.new('L', image_size, 0)
    for left, top, right, bottom in boxes:
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(
                f'box {left:g} {top:g} {right:g} {bottom:g} is empty or lies outside of the image '
                f'({width} x {height}): give left top right bottom with left < right and top < bottom'
            )
        ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=_WHITE)
    return mask


def tokens_of_mask(mask: Image.Image, image_size: tuple[int, int], model: ADDP, invert: bool = False) -> Tensor:
    """Returns the tokens that a mask image touches.

    Args:
        mask: Image of the original image's size, read by :func:`mask_as_grey`; white (128 and up) = sample anew.
        image_size: (width, height) of the original image, in pixels.
        model: The model, for its size and grid.
        invert: Whether black means "sample anew" instead.

    Returns:
        (L,) bool: True where at least one pixel of the token's patch is to be sampled anew.

    Raises:
        ValueError: If the sizes differ, or the mask is dark all over but not black (values of 0 and 1).
    """
    mask = ImageOps.exif_transpose(mask)
    if mask.size != image_size:
        raise ValueError(
            f'the mask is {mask.width} x {mask.height} pixels, the image {image_size[0]} x {image_size[1]}: '
            'they must be the same'
        )
    grey = mask_as_grey(mask)
    brightest = int(np.asarray(grey).max())
    if 0 < brightest < _HALF:
        raise ValueError(
            f'the brightest pixel of the mask is {brightest} of 255, and {_HALF} and more is drawn anew: save the mask '
            'in black and white (0 and 255)'
        )
    fitted = fit(grey, model.img_size, Image.Resampling.BOX)
    redrawn = (to_tensor([fitted.convert('RGB')])[:, :1] * _WHITE >= _HALF) != invert  # (1, 1, S, S)
    return F.max_pool2d(redrawn.float(), model.patch_size).flatten().bool()


def mask_as_grey(mask: Image.Image) -> Image.Image:
    """Reads a mask image in the ways in which editors write them.

    Without transparency it is the brightness that counts. With transparency it is what is painted: opaque pixels are
    white, whatever their colour; but if nothing but black is opaque, the transparent hole in it is white (as OpenAI's
    image editing has it).

    Args:
        mask: As Pillow opens it.

    Returns:
        Greyscale with 8 bits.
    """
    if mask.mode.startswith('I;16'):
        return Image.fromarray((np.asarray(mask).astype(np.uint16) >> 8).astype(np.uint8))
    if not mask.has_transparency_data:
        return mask.convert('L')
    pixels = np.asarray(mask.convert('RGBA'))
    opaque = pixels[..., 3] >= _HALF
    if opaque.all():
        return mask.convert('RGB').convert('L')
    hole = not (pixels[opaque][:, :3] >= _HALF).any()
    return Image.fromarray(np.where(opaque != hole, _WHITE, 0).astype(np.uint8))


def shrink(image: Image.Image, border_px: int, model: ADDP) -> tuple[Image.Image, Tensor]:
    """Makes room around an image, for outpainting.

    Args:
        image: An image of any size.
        border_px: Width of the border at the model's size, in pixels; a multiple of the patch size, so that whole
            tokens are kept.
        model: The model, for its size and grid.

    Returns:
        The image at the model's size with a grey border, and a mask (L,) bool of the border's tokens.

    Raises:
        ValueError: If the border does not fit.
    """
    inner = model.img_size - 2 * border_px
    if border_px < 1 or border_px % model.patch_size or inner < model.patch_size:
        raise ValueError(
            f'the border must be a multiple of {model.patch_size} px under {model.img_size // 2}, got {border_px}'
        )
    canvas = Image.new('RGB', (model.img_size, model.img_size), (_HALF,) * 3)
    canvas.paste(fit(image.convert('RGB'), inner), (border_px, border_px))
    border = torch.ones(model.grid, dtype=torch.bool)
    edge = border_px // model.patch_size
    border[edge:-edge, edge:-edge] = False
    return canvas, border.flatten()


def edit(
    model: ADDP,
    image: Image.Image,
    mask: Tensor | float,
    num_results: int,
    seed: int,
    sampling: Sampling,
    paste: bool = False,
    first: int = 0,
) -> Edit:
    """Samples masked tokens of an image anew and keeps the others.

    Args:
        model: ADDP; runs under the surrounding autocast, on its device.
        image: RGB image of the model's size.
        mask: (L,) bool for all results, or (N, L); or a ratio in [0, 1], whose tokens are drawn for each result
            separately.
        num_results: Number N of results; result i depends on ``seed`` and i.
        seed: Seed of all random draws.
        sampling: How tokens are sampled.
        paste: Whether the original pixels replace the tokenizer's reconstruction where no token was sampled anew.
        first: The number i of the first result.

    Returns:
        The image, masks and results, on the CPU.
    """
    masks = draw_masks(model, mask, num_results, seed, first)
    generators = [image_generator(seed, first + index) for index in range(num_results)]
    if not isinstance(mask, Tensor):
        for generator in generators:  # goes on behind the mask's draw
            torch.rand(model.num_tokens, generator=generator)
    before = to_tensor([image])
    results = generate(
        model,
        num_results,
        sampling.steps,
        sampling.schedule,
        sampling.temperature,
        generators,
        before,
        masks,
        dynamic=sampling.dynamic,
        top_p=sampling.top_p,
    ).cpu()
    if paste:
        patches = masks.view(num_results, 1, *model.grid).float()
        results = torch.where(F.interpolate(patches, scale_factor=float(model.patch_size)) > 0, results, before)
    return Edit(before, masks, results)


def draw_masks(model: ADDP, mask: Tensor | float, num_results: int, seed: int, first: int = 0) -> Tensor:
    """The masks of :func:`edit`, whose arguments these are: (N, L) bool."""
    if isinstance(mask, Tensor):
        return mask.cpu().expand(num_results, -1)
    generators = [image_generator(seed, first + index) for index in range(num_results)]
    noise = torch.stack([torch.rand(model.num_tokens, generator=generator) for generator in generators])
    (masks,) = masks_from_noise(noise, num_masked(mask, model.num_tokens))
    return masks


def edit_figure(done: Edit) -> Image.Image:
    """Shows image, mask and results side by side: one row if all results have the same mask, else a row for each."""
    common = bool((done.mask == done.mask[:1]).all())
    masked = grey_out(done.before.expand(len(done.mask), -1, -1, -1), done.mask)
    if common:
        rows = torch.cat((done.before, masked[:1], done.results))
        captions = ['before', 'mask', *(f'result {i}' for i in range(len(done.results)))]
        return contact_sheet(to_pil(rows), len(captions), captions)
    rows = torch.stack((done.before.expand_as(masked), masked, done.results), 1).flatten(0, 1)
    captions = [caption for i in range(len(masked)) for caption in ('before', 'mask', f'result {i}')]
    return contact_sheet(to_pil(rows), 3, captions)
