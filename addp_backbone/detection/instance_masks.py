"""Ground-truth masks as detectron2 keeps them: polygons stay polygons; other masks are bitmaps of the object's box.

A bitmap of the whole image for every object, mmdet's way, takes 1 MB an object at 1024 px, and moves its outline to
whole pixels. mmdet sees the ``BitmapMasks`` it knows: ``masks`` builds bitmaps when something asks for them, which
Mask R-CNN never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks
from pycocotools import mask as coco_masks
from torch import Tensor
from torchvision.ops import roi_align

from addp_backbone.detection.polygons import rasterize_in_boxes

MASK_THRESHOLD = 0.5  # detectron2: a target pixel is set if at least half of it is covered


class Cutout(NamedTuple):
    """The mask of one object within its box; everything outside is 0.

    Attributes:
        pixels: (h, w) uint8 of 0 and 1, without elements if the mask is empty.
        x: Column of its left pixels in the image.
        y: Row of its upper pixels in the image.
    """

    pixels: np.ndarray
    x: int
    y: int


Polygons = list[np.ndarray]  # the parts of one object, (n, 2) float64 arrays of x, y


class InstanceMasks(BitmapMasks):
    """The masks of one image's objects, each of them polygons or a cut-out.

    Args:
        objects: One entry an object: a list of polygons, (n, 2) float64 arrays of x, y in pixels from the image's upper
            left corner, or a :class:`Cutout`, which lies in the image.
        height: Of the image in pixels.
        width: Of the image in pixels.
    """

    def __init__(self, objects: Sequence[Polygons | Cutout], height: int, width: int) -> None:
        self.objects = list(objects)
        self.height = height
        self.width = width

    @property
    def masks(self) -> np.ndarray:
        """(N, height, width) uint8, built anew each time; polygons are drawn by pycocotools."""
        bitmaps = np.zeros((len(self), self.height, self.width), dtype=np.uint8)
        for bitmap, item in zip(bitmaps, self.objects, strict=True):
            if isinstance(item, Cutout):
                height, width = item.pixels.shape
                bitmap[item.y : item.y + height, item.x : item.x + width] = item.pixels
            elif item:
                numbers = [polygon.reshape(-1) for polygon in item]
                drawn = coco_masks.frPyObjects(numbers, self.height, self.width)
                bitmap[:] = coco_masks.decode(coco_masks.merge(drawn))
        return bitmaps

    def __len__(self) -> int:
        return len(self.objects)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.masks)

    def __getitem__(self, index: int | slice | np.ndarray) -> InstanceMasks:
        """Chooses objects; a bool or int array, a slice, or one number, as ``BitmapMasks`` takes them."""
        chosen = np.arange(len(self))[index].reshape(-1)
        return InstanceMasks([self.objects[i] for i in chosen], self.height, self.width)

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Grows the image to the right and below; takes no time for zeros."""
        if pad_val != 0 or out_shape[0] < self.height or out_shape[1] < self.width:
            return super().pad(out_shape, pad_val)
        return InstanceMasks(self.objects, *out_shape)

    @classmethod
    def cat(cls, masks: Sequence[BitmapMasks]) -> BitmapMasks:
        """Joins masks of images of one size."""
        ours = [m for m in masks if isinstance(m, cls)]
        if not ours or len(ours) < len(masks) or len({(m.height, m.width) for m in ours}) > 1:
            return BitmapMasks.cat(masks)
        return cls([item for m in ours for item in m.objects], ours[0].height, ours[0].width)

    def boxes(self) -> np.ndarray:
        """Makes boxes from masks, as detectron2 does with ``recompute_boxes``.

        Returns:
            (N, 4) float32 x1, y1, x2, y2: the smallest box around an object's vertices or pixels (x2 and y2 are one
            beyond the last pixel); zeros if there are none.
        """
        return np.array([_box(item) for item in self.objects], dtype=np.float32).reshape(-1, 4)

    def crop_and_resize(
        self,
        bboxes: np.ndarray | Tensor,
        out_shape: tuple[int, int],
        inds: np.ndarray | Tensor,
        device: str | torch.device = 'cpu',
        interpolation: str = 'bilinear',
        binarize: bool = True,
    ) -> BitmapMasks:
        """Makes mask targets in the form that mmdet's own mask heads ask for; see :meth:`targets`.

        Args:
            bboxes: (K, 4) float x1, y1, x2, y2 in the image.
            out_shape: Height and width of the results.
            inds: (K,) int, which object each box is of.
            device: Where cut-outs are pooled.
            interpolation: Bilinear, the only one there is.
            binarize: True, the only way that polygons have.

        Returns:
            K masks of ``out_shape``, bool.

        Raises:
            ValueError: If ``binarize`` is False.
        """
        if not binarize:
            raise ValueError('polygons give binary targets only: leave soft_mask_target out of train_cfg.rcnn')
        boxes = torch.as_tensor(bboxes).cpu().numpy()
        targets = self.targets(boxes, np.asarray(inds), out_shape, torch.device(device))
        return BitmapMasks(targets.cpu().numpy(), *out_shape)

    def targets(self, boxes: np.ndarray, owners: np.ndarray, size: tuple[int, int], device: torch.device) -> Tensor:
        """Makes the targets of a mask head: each object as it looks in a box, stretched to ``size``.

        Polygons are rasterised on the CPU, all boxes at once. Cut-outs lie on a canvas each, from which one RoIAlign
        takes all boxes. The number of tensor operations does not depend on that of objects or boxes.

        Args:
            boxes: (K, 4) float32 x1, y1, x2, y2 in the image.
            owners: (K,) int, which object each box is of.
            size: Height and width of the targets.
            device: Where the targets are wanted, and cut-outs pooled.

        Returns:
            (K, height, width) bool.
        """
        from_cutout = np.array([isinstance(item, Cutout) for item in self.objects], dtype=bool)[owners]
        of_polygons = [[] if isinstance(item, Cutout) else item for item in self.objects]
        drawn = torch.from_numpy(rasterize_in_boxes([of_polygons[i] for i in owners], boxes, size)).to(device)
        if not from_cutout.any():
            return drawn
        pooled = self._pool_cutouts(boxes[from_cutout], owners[from_cutout], size, device)
        if from_cutout.all():
            return pooled
        drawn[torch.from_numpy(np.flatnonzero(from_cutout)).to(device)] = pooled
        return drawn

    def _pool_cutouts(
        self, boxes: np.ndarray, owners: np.ndarray, size: tuple[int, int], device: torch.device
    ) -> Tensor:
        """The targets of boxes whose owners are cut-outs."""
        used, canvas_index = np.unique(owners, return_inverse=True)
        cutouts = [item for item in (self.objects[index] for index in used) if isinstance(item, Cutout)]
        image = np.array((self.height, self.width))
        # Each canvas is a window of the image, with a margin of one empty pixel where the image goes on: beyond an
        # edge of the image RoIAlign sees what it would see there of the whole image.
        sizes = np.array([item.pixels.shape for item in cutouts])
        height, width = np.minimum(sizes.max(axis=0) + 2, image)
        corners = np.clip([(item.y - 1, item.x - 1) for item in cutouts], 0, image - (height, width))
        canvases = np.zeros((len(cutouts), 1, height, width), dtype=np.uint8)
        for canvas, (pixels, x, y), (top, left) in zip(canvases, cutouts, corners, strict=True):
            canvas[0, y - top : y - top + pixels.shape[0], x - left : x - left + pixels.shape[1]] = pixels
        offsets = np.tile(corners[canvas_index, ::-1], 2)
        rois = np.concatenate((canvas_index[:, None], boxes - offsets), axis=1).astype(np.float32)
        features = torch.from_numpy(canvases).to(device).float()
        pooled = roi_align(features, torch.from_numpy(rois).to(device), size, sampling_ratio=0, aligned=True)
        return pooled[:, 0] >= MASK_THRESHOLD


def _box(item: Polygons | Cutout) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 around one object; zeros if it is empty."""
    if isinstance(item, Cutout):
        height, width = item.pixels.shape
        return (item.x, item.y, item.x + width, item.y + height) if height and width else (0, 0, 0, 0)
    if not item:
        return 0, 0, 0, 0
    vertices = np.concatenate(item)
    (left, top), (right, bottom) = vertices.min(axis=0), vertices.max(axis=0)
    return left, top, right, bottom
