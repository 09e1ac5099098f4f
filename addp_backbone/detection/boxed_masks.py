"""Instance masks that keep each object's box only, in place of a bitmap of the whole image for every object.

At 1024 px a bitmap takes 1 MB an object, most of it zeros, which a data loader would fill, copy, and send from process
to process. mmdet sees the ``BitmapMasks`` it knows: ``masks`` builds the bitmaps when something asks for them, which
Mask R-CNN never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmcv.ops import roi_align
from mmdet.structures.mask import BitmapMasks
from pycocotools import mask as mask_codec
from torch import Tensor

MIN_NUMBERS = 6  # of a polygon: three corners


class BoxedMasks(BitmapMasks):
    """Bitmap masks stored as one cut-out an object.

    Args:
        cutouts: (h, w) uint8 arrays of 0 and 1, one an object; everything outside is 0. Of an empty mask, an array
            without elements.
        corners: (N, 2) int, x and y of the cut-outs' top left pixels. They lie in the image.
        height: Of the image in pixels.
        width: Of the image in pixels.
    """

    def __init__(self, cutouts: Sequence[np.ndarray], corners: np.ndarray, height: int, width: int) -> None:
        self.cutouts = list(cutouts)
        self.corners = np.asarray(corners, dtype=np.int64).reshape(-1, 2)
        self.height = height
        self.width = width

    @property
    def masks(self) -> np.ndarray:
        """(N, height, width) uint8, built anew each time."""
        bitmaps = np.zeros((len(self), self.height, self.width), dtype=np.uint8)
        for bitmap, cutout, (x, y) in zip(bitmaps, self.cutouts, self.corners, strict=True):
            bitmap[y : y + cutout.shape[0], x : x + cutout.shape[1]] = cutout
        return bitmaps

    @property
    def areas(self) -> np.ndarray:
        """(N,) pixels of each object."""
        return np.array([cutout.sum(dtype=np.int64) for cutout in self.cutouts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.cutouts)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.masks)

    def __getitem__(self, index: int | slice | np.ndarray) -> BoxedMasks:
        """Chooses objects; a bool or int array, a slice, or one number, as ``BitmapMasks`` takes them."""
        chosen = np.arange(len(self))[index].reshape(-1)
        return BoxedMasks([self.cutouts[i] for i in chosen], self.corners[chosen], self.height, self.width)

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Grows the image to the right and below; takes no time for zeros."""
        if pad_val != 0 or out_shape[0] < self.height or out_shape[1] < self.width:
            return super().pad(out_shape, pad_val)
        return BoxedMasks(self.cutouts, self.corners, *out_shape)

    def crop_and_resize(
        self,
        bboxes: np.ndarray | Tensor,
        out_shape: tuple[int, int],
        inds: np.ndarray | Tensor,
        device: str = 'cpu',
        interpolation: str = 'bilinear',
        binarize: bool = True,
    ) -> BitmapMasks:
        """Cuts a box out of an object's mask for every pair of both; the mask head's targets.

        ``BitmapMasks`` pools from as many bitmaps of the whole image as there are boxes, in float32: 512 MB for 128
        boxes at 1024 px. Here each object's cut-out is pooled from by all its boxes. Only coordinates are rounded
        otherwise, by about 1e-4 px.

        Args:
            bboxes: (K, 4) float x1, y1, x2, y2 in the image.
            out_shape: Height and width of the results.
            inds: (K,) int, which object each box is of.
            device: Where to compute.
            interpolation: Bilinear, the only one there is.
            binarize: Whether to threshold at 0.5.

        Returns:
            K masks of ``out_shape``, bool or float.
        """
        if not len(self) or not len(bboxes):
            return super().crop_and_resize(bboxes, out_shape, inds, device, interpolation, binarize)
        boxes = torch.as_tensor(bboxes, device=device)
        owners = np.asarray(inds)
        targets = boxes.new_zeros((len(boxes), *out_shape))
        for index in np.unique(owners):
            pixels, corner = self._with_margin(index)
            of_it = torch.from_numpy(np.flatnonzero(owners == index)).to(device)
            shifted = boxes[of_it] - boxes.new_tensor(corner * 2)
            rois = torch.cat((shifted.new_zeros(len(of_it), 1), shifted), dim=1)
            mask = torch.from_numpy(pixels).to(device=device, dtype=boxes.dtype)
            targets[of_it] = roi_align(mask[None, None], rois, out_shape, 1.0, 0, 'avg', True).squeeze(1)
        return BitmapMasks(((targets >= 0.5) if binarize else targets).cpu().numpy(), *out_shape)

    def _with_margin(self, index: int) -> tuple[np.ndarray, tuple[int, int]]:
        """A cut-out with the empty pixels next to it, where the image goes on, and its corner's x and y: what interpolation sees."""
        (x, y), (height, width) = self.corners[index].tolist(), self.cutouts[index].shape
        before, after = (int(y > 0), int(x > 0)), (int(y + height < self.height), int(x + width < self.width))
        return np.pad(self.cutouts[index], tuple(zip(before, after, strict=True))), (x - before[1], y - before[0])

    @classmethod
    def cat(cls, masks: Sequence[BitmapMasks]) -> BitmapMasks:
        """Joins masks of images of one size."""
        boxed = [m for m in masks if isinstance(m, cls)]
        if not boxed or len(boxed) < len(masks) or len({(m.height, m.width) for m in boxed}) > 1:
            return BitmapMasks.cat(masks)
        corners = np.concatenate([m.corners for m in boxed])
        return cls([cutout for m in boxed for cutout in m.cutouts], corners, boxed[0].height, boxed[0].width)

    def boxes(self) -> np.ndarray:
        """(N, 4) float32 x1, y1, x2, y2 of the cut-outs (x2 and y2 are one beyond the last pixel); zeros for an empty one."""
        sizes = np.array([cutout.shape[::-1] for cutout in self.cutouts], dtype=np.int64).reshape(-1, 2)
        boxes = np.concatenate((self.corners, self.corners + sizes), axis=1).astype(np.float32)
        return boxes * (sizes.prod(axis=1, keepdims=True) > 0)


def decode_segmentation(segmentation: list | dict, height: int, width: int) -> tuple[np.ndarray, int, int] | None:
    """Draws a COCO segmentation as pycocotools does, but within the object's surroundings only.

    Args:
        segmentation: Polygons (lists of x, y, x, y ... in pixels), or an RLE, compressed or not.
        height: Of the image in pixels.
        width: Of the image in pixels.

    Returns:
        (h, w) uint8 cut-out and the x and y of its top left pixel; None if the segmentation is not valid (no polygon
        with three corners, no RLE).
    """
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= MIN_NUMBERS and len(polygon) % 2 == 0]
        return _draw_polygons(polygons, height, width) if polygons else None
    if not isinstance(segmentation.get('counts'), list | str) or segmentation.get('size') is None:
        return None
    rle = (
        mask_codec.frPyObjects(segmentation, height, width)
        if isinstance(segmentation['counts'], list)
        else segmentation
    )
    x, y, w, h = (int(value) for value in mask_codec.toBbox(rle))
    return mask_codec.decode(rle)[y : y + h, x : x + w], x, y


def _draw_polygons(polygons: list[list[float]], height: int, width: int) -> tuple[np.ndarray, int, int]:
    """Draws on a canvas that ends where the polygons end, and decodes it from the column where they begin."""
    numbers = [number for polygon in polygons for number in polygon]
    xs, ys = numbers[0::2], numbers[1::2]
    left, top = min(max(int(min(xs)), 0), width - 1), min(max(int(min(ys)), 0), height - 1)
    canvas = min(max(int(max(ys)) + 2, top + 1), height), min(max(int(max(xs)) + 2, left + 1), width)
    rles = mask_codec.frPyObjects(polygons, *canvas)
    return (
        mask_codec.decode(_without_left(rles[0] if len(rles) == 1 else mask_codec.merge(rles), left))[top:],
        left,
        top,
    )


def _without_left(rle: dict, num_columns: int) -> dict:
    """The RLE without empty columns at its left: they all lie in its first run, for runs go down the columns.

    A number in ``counts`` is a string of characters from 48 on, of five bits each, lowest first; bit 6 says that more
    follow, and the highest of the five bits in the last character is the sign. Only from the fourth on are numbers
    differences, so that the first may change.
    """
    height, width = rle['size']
    run, length, more = 0, 0, 32
    while more:
        character = rle['counts'][length] - 48
        run |= (character & 31) << 5 * length
        length, more = length + 1, character & 32
    run -= num_columns * height
    first = bytearray()
    more = 32
    while more:
        more = 32 if run > 15 else 0
        first.append(48 + (run & 31 | more))
        run >>= 5
    return dict(size=[height, width - num_columns], counts=bytes(first) + rle['counts'][length:])
