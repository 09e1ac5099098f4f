"""Editing pictures: which tokens to draw anew (by picture, boxes, ratio or around the picture), and drawing them.

Everything is done at the model's size: a picture is resized by its shorter side and cropped at its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from pretrain.data.figures import contact_sheet, grey_out, to_images, to_pictures
from pretrain.generation.sampling import Sampling, image_generator
from pretrain.generation.trajectory import generate
from pretrain.networks.addp import ADDP
from pretrain.networks.mask_schedule import masks_from_noise, num_masked

Box = tuple[float, float, float, float]

_WHITE = 255
_HALF = 128


class Edit(NamedTuple):
    """A picture and what was made of it.

    Attributes:
        before: (1, 3, S, S) in [0, 1].
        mask: (N, L) bool, True = drawn anew.
        results: (N, 3, S, S) in [0, 1].
    """

    before: Tensor
    mask: Tensor
    results: Tensor


def fit(picture: Image.Image, size_px: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Resizes a picture by its shorter side and crops the centre square."""
    width, height = picture.size
    scale = size_px / min(width, height)
    resized = picture.resize((max(size_px, round(width * scale)), max(size_px, round(height * scale))), resample)
    left, top = (resized.width - size_px) // 2, (resized.height - size_px) // 2
    return resized.crop((left, top, left + size_px, top + size_px))


def mask_of_boxes(boxes: Sequence[Box], picture_size: tuple[int, int]) -> Image.Image:
    """A mask picture, white inside of boxes.

    Args:
        boxes: (left, top, right, bottom) in pixels of the original picture; right and bottom are exclusive.
        picture_size: Its (width, height).

    Raises:
        ValueError: If a box is empty or lies outside.
    """
    width, height = picture_size
    mask = Image.new('L', picture_size, 0)
    for left, top, right, bottom in boxes:
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(
                f'box {left:g} {top:g} {right:g} {bottom:g} is empty or lies outside of the picture '
                f'({width} x {height}): give left top right bottom with left < right and top < bottom'
            )
        ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=_WHITE)
    return mask


def tokens_of_mask(mask: Image.Image, picture_size: tuple[int, int], model: ADDP, invert: bool = False) -> Tensor:
    """The tokens that a mask picture touches.

    Args:
        mask: Of the original picture's size; white (128 and up) = draw anew.
        picture_size: Its (width, height).
        model: Whose grid it is.
        invert: Draw anew what is black instead.

    Returns:
        (L,) bool: True where a pixel of the token's patch is to be drawn anew.

    Raises:
        ValueError: If the sizes differ.
    """
    if mask.size != picture_size:
        raise ValueError(
            f'the mask is {mask.width} x {mask.height} pixels, the picture {picture_size[0]} x {picture_size[1]}: '
            'they must be the same'
        )
    fitted = fit(mask.convert('L'), model.img_size, Image.Resampling.BOX)
    redrawn = (to_images([fitted.convert('RGB')])[:, :1] * _WHITE >= _HALF) != invert  # (1, 1, S, S)
    return F.max_pool2d(redrawn.float(), model.patch_size).flatten().bool()


def shrink(picture: Image.Image, border_px: int, model: ADDP) -> tuple[Image.Image, Tensor]:
    """Makes room around a picture, for outpainting.

    Args:
        picture: Any size.
        border_px: Room on each side, at the model's size; a multiple of the patch size, so that whole tokens are kept.
        model: Whose size and grid it is.

    Returns:
        The picture at the model's size with a grey border, and the border's tokens (L,) bool.

    Raises:
        ValueError: If the border does not fit.
    """
    inner = model.img_size - 2 * border_px
    if border_px < 1 or border_px % model.patch_size or inner < model.patch_size:
        raise ValueError(
            f'the border must be a multiple of {model.patch_size} px under {model.img_size // 2}, got {border_px}'
        )
    canvas = Image.new('RGB', (model.img_size, model.img_size), (_HALF,) * 3)
    canvas.paste(fit(picture.convert('RGB'), inner), (border_px, border_px))
    border = torch.ones(model.grid, dtype=torch.bool)
    edge = border_px // model.patch_size
    border[edge:-edge, edge:-edge] = False
    return canvas, border.flatten()


def edit(
    model: ADDP,
    picture: Image.Image,
    mask: Tensor | float,
    num_results: int,
    seed: int,
    sampling: Sampling,
    paste: bool = False,
) -> Edit:
    """Draws masked tokens of a picture anew; the others stay.

    Args:
        model: Runs under the autocast around, on its device.
        picture: RGB, at the model's size.
        mask: (L,) bool, for all results; or the ratio of tokens, drawn for each result on its own.
        num_results: N; result i depends on ``seed`` and i.
        seed: Of all draws.
        sampling: How to draw.
        paste: Puts the picture's own pixels back where no token was drawn anew (else they are the tokenizer's
            reconstruction).

    Returns:
        Before, masks and results, on the CPU.
    """
    generators = [image_generator(seed, index) for index in range(num_results)]
    if isinstance(mask, Tensor):
        masks = mask.cpu().expand(num_results, -1)
    else:
        noise = torch.stack([torch.rand(model.num_tokens, generator=generator) for generator in generators])
        (masks,) = masks_from_noise(noise, num_masked(mask, model.num_tokens))
    before = to_images([picture])
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


def edit_figure(done: Edit) -> Image.Image:
    """Before, mask and result, side by side; a row for each mask, the results of a common mask in one row."""
    common = bool((done.mask == done.mask[:1]).all())
    masked = grey_out(done.before.expand(len(done.mask), -1, -1, -1), done.mask)
    if common:
        rows = torch.cat((done.before, masked[:1], done.results))
        captions = ['before', 'mask', *(f'result {i}' for i in range(len(done.results)))]
        return contact_sheet(to_pictures(rows), len(captions), captions)
    rows = torch.stack((done.before.expand_as(masked), masked, done.results), 1).flatten(0, 1)
    captions = [caption for i in range(len(masked)) for caption in ('before', 'mask', f'result {i}')]
    return contact_sheet(to_pictures(rows), 3, captions)
