"""Large-scale jitter (LSJ) for detection in one step: random flip, random size, random crop, with masks.

It gives what mmdet's ``LoadAnnotations``, ``RandomFlip``, ``RandomResize``, ``RandomCrop`` and ``FilterAnnotations``
give one after another, from the same draws of numpy's global generator, but does no work on what the crop throws away:
it draws size and place first, decodes the masks of objects in the crop only, each within its box, and resizes the part
of the image up to the crop's end.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LargeScaleJitter:
    """Flips an image at random, resizes it to a random scale with its aspect ratio, and cuts a random place out if it is too large.

    Equal to mmdet's steps: boxes, labels, flags, masks, and the image. Boxes are made anew from the cropped masks
    (ViTDet); without masks they are the clipped ones. Objects outside the crop go; an image that lost all objects
    stays, as a negative.

    Reads ``img`` (H, W, C) and ``instances``. Writes ``img`` (h, w, C; a view of an array in C, h, w order, which is
    how ``PackDetInputs`` wants it), ``img_shape``, ``scale_factor``, ``flip``, ``flip_direction``, ``gt_bboxes``,
    ``gt_bboxes_labels``, ``gt_ignore_flags``, and with masks ``gt_masks``
    (:class:`~addp_backbone.detection.boxed_masks.BoxedMasks`).

    Args:
        scale: Width and height in pixels into which the image fits at ratio 1.
        ratio_range: Smallest and largest ratio; drawn uniformly.
        crop_size: Width and height in pixels of the crop.
        flip_prob: Probability of a horizontal flip.
        with_mask: Whether the instances have masks.
        min_box_px: Boxes not wider and higher than this are dropped.
    """

    def __init__(
        self,
        scale: tuple[int, int],
        ratio_range: tuple[float, float],
        crop_size: tuple[int, int],
        flip_prob: float = 0.5,
        with_mask: bool = True,
        min_box_px: float = 1e-2,
    ) -> None:
        low, high = ratio_range
        if not 0 < low <= high:
            raise ValueError(f'ratio_range is {ratio_range}, wanted (smallest, largest) with 0 < smallest <= largest')
        self.scale, self.ratio_range, self.crop_size = scale, (low, high), crop_size
        self.flip_prob = flip_prob
        self.with_mask = with_mask
        self.min_box_px = min_box_px

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Applies the step to one sample."""
        height, width = results['img'].shape[:2]
        flip, (new_w, new_h), (x, y, w, h) = self._draw(height, width)
        results['img'] = _crop_of_resized(
            cv2.flip(results['img'], 1) if flip else results['img'], (new_w, new_h), (x, y, w, h)
        )
        results.update(
            img_shape=(h, w),
            scale_factor=(new_w / width, new_h / height),
            flip=flip,
            flip_direction='horizontal' if flip else None,
        )
        self._add_objects(
            results, _nearest(new_w, width)[x : x + w], _nearest(new_h, height)[y : y + h], (height, width), (x, y)
        )
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(scale={self.scale}, ratio_range={self.ratio_range}, crop_size={self.crop_size}, '
            f'flip_prob={self.flip_prob}, with_mask={self.with_mask}, min_box_px={self.min_box_px})'
        )

    def _draw(self, height: int, width: int) -> tuple[bool, tuple[int, int], tuple[int, int, int, int]]:
        """Whether to flip, the resized image's width and height, and the crop's x, y, width and height in it."""
        from mmcv import rescale_size

        flip = bool(np.random.random_sample() < self.flip_prob)
        low, high = self.ratio_range
        ratio = np.random.random_sample() * (high - low) + low
        new_w, new_h = rescale_size((width, height), tuple(int(side * ratio) for side in self.scale))
        w, h = min(self.crop_size[0], new_w), min(self.crop_size[1], new_h)
        y = int(np.random.randint(0, new_h - h + 1))
        x = int(np.random.randint(0, new_w - w + 1))
        return flip, (new_w, new_h), (x, y, w, h)

    def _add_objects(
        self,
        results: dict[str, Any],
        columns: np.ndarray,
        rows: np.ndarray,
        size: tuple[int, int],
        corner: tuple[int, int],
    ) -> None:
        """Adds boxes, labels, flags and masks of the objects in the crop, whose pixels are ``columns`` and ``rows`` of the flipped source."""
        from mmdet.structures.bbox import HorizontalBoxes

        from addp_backbone.detection.boxed_masks import BoxedMasks

        instances = results.get('instances', [])
        boxes = HorizontalBoxes(np.array([instance['bbox'] for instance in instances], dtype=np.float32).reshape(-1, 4))
        if results['flip']:
            boxes.flip_(size)
        boxes.rescale_(results['scale_factor'])
        boxes.translate_([-corner[0], -corner[1]])
        boxes.clip_(results['img_shape'])
        inside = boxes.is_inside(results['img_shape']).numpy()
        instances = [instance for instance, keep in zip(instances, inside, strict=True) if keep]
        boxes = boxes[inside]
        ignored = [bool(instance['ignore_flag']) for instance in instances]
        masks = None
        if self.with_mask:
            cutouts = [_cutout(instance, columns, rows, size, results['flip']) for instance in instances]
            ignored = [flag or cutout is None for flag, cutout in zip(ignored, cutouts, strict=True)]
            found = [cutout or _NOTHING for cutout in cutouts]
            masks = BoxedMasks(
                [pixels for pixels, _ in found], np.array([place for _, place in found]), *results['img_shape']
            )
            boxes = HorizontalBoxes(masks.boxes())
        keep = ((boxes.widths > self.min_box_px) & (boxes.heights > self.min_box_px)).numpy()
        results['gt_bboxes'] = boxes[keep]
        results['gt_bboxes_labels'] = np.array([instance['bbox_label'] for instance in instances], dtype=np.int64)[keep]
        results['gt_ignore_flags'] = np.array(ignored, dtype=bool)[keep]
        if masks is not None:
            results['gt_masks'] = masks[keep]


_NOTHING = np.zeros((0, 0), np.uint8), (0, 0)


def _nearest(new_length: int, length: int) -> np.ndarray:
    """Source index of each pixel of a side resized to ``new_length``, as OpenCV's nearest neighbour has it; ascending."""
    return np.minimum(np.floor(np.arange(new_length) * (1 / (new_length / length))).astype(np.int64), length - 1)


def _crop_of_resized(image: np.ndarray, new_size: tuple[int, int], crop: tuple[int, int, int, int]) -> np.ndarray:
    """The crop (x, y, width, height) of the image bilinearly resized to ``new_size``; a view of (C, h, w) memory.

    Source pixels beyond the crop's lower right end are left out, and two more keep the border's interpolation as it
    was. Those before its beginning stay: without them OpenCV's sampling places would shift by a fraction of a pixel.
    """
    (new_w, new_h), (x, y, w, h) = new_size, crop
    height, width = image.shape[:2]
    scale_x, scale_y = new_w / width, new_h / height
    end_x, end_y = int(np.ceil((x + w) / scale_x)) + 2, int(np.ceil((y + h) / scale_y)) + 2
    if end_x < width or end_y < height:
        resized = cv2.resize(image[:end_y, :end_x], None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_LINEAR)
    else:
        resized = cv2.resize(image, new_size, interpolation=cv2.INTER_LINEAR)
    resized = resized[y : y + h, x : x + w]
    if resized.ndim == 2:
        return resized
    planes = np.empty((resized.shape[2], h, w), dtype=resized.dtype)
    cv2.split(resized, list(planes))
    return planes.transpose(1, 2, 0)


def _cutout(
    instance: dict[str, Any], columns: np.ndarray, rows: np.ndarray, size: tuple[int, int], flip: bool
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """An object's pixels in the crop, cut to their box, and the box's x and y; None if its segmentation is not valid."""
    from addp_backbone.detection.boxed_masks import decode_segmentation

    height, width = size
    if 'mask' not in instance:
        raise KeyError(
            'an object has no segmentation, wanted polygons or RLE; for data with boxes only set with_mask=False in '
            'LargeScaleJitter and take a Faster R-CNN config'
        )
    decoded = decode_segmentation(instance['mask'], height, width)
    if decoded is None:
        return None
    source, left, top = decoded
    if not source.size:
        return _NOTHING
    if flip:
        source, left = source[:, ::-1], width - left - source.shape[1]
    x, x_end = np.searchsorted(columns, (left, left + source.shape[1]))
    y, y_end = np.searchsorted(rows, (top, top + source.shape[0]))
    if x == x_end or y == y_end:
        return _NOTHING
    pixels = np.take(np.take(source, columns[x:x_end] - left, axis=1), rows[y:y_end] - top, axis=0)
    box_x, box_y, box_w, box_h = cv2.boundingRect(pixels)  # rows and columns at the border may be empty now
    return np.ascontiguousarray(pixels[box_y : box_y + box_h, box_x : box_x + box_w]), (int(x) + box_x, int(y) + box_y)
