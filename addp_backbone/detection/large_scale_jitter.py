"""Large-scale jitter (LSJ) for detection in one step: random flip, random size, random crop, with masks.

It gives what detectron2's pipeline of ViTDet gives (``projects/ViTDet/configs/common/coco_loader_lsj.py``): the same
draws from numpy's global generator, the same boxes and masks, and the same pixels to a grey level. It does no work on
what the crop throws away: it draws first, and enlarges only the part of the image up to the crop's end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS

from addp_backbone.detection.geometry import Geometry, transform_image


@TRANSFORMS.register_module()
class LargeScaleJitter:
    """Flips and resizes an image at random, keeping its aspect ratio, and cuts a random window out if it is too large.

    As detectron2: polygons are flipped, scaled and clipped as polygons, and boxes are the extents of what is left of
    them. A mask in RLE is sampled at the pixels' centres; its box is that of its pixels. Objects that are not in the
    window are dropped; an image that lost all objects stays, as a negative. Shrinking averages over the pixels that
    vanish (antialiasing, as Pillow's bilinear filter); enlarging interpolates linearly.

    Annotations that leave the image are cut by the window only: to the right of and below an image that is smaller than
    the window, they stay (as in detectron2; COCO has none).

    Departures from detectron2: crowds are kept, flagged as ignored, which changes nothing unless an assigner has
    ``ignore_iof_thr`` above 0. Polygons and RLE may be mixed. Whole numbers in polygons are scaled as real numbers.

    Reads ``img`` (H, W, C) and ``instances``. Writes ``img`` (h, w, C; a view of an array in C, h, w order, which is
    how ``PackDetInputs`` wants it), ``img_shape``, ``scale_factor``, ``flip``, ``flip_direction``, ``gt_bboxes``,
    ``gt_bboxes_labels``, ``gt_ignore_flags``, and with masks ``gt_masks``
    (:class:`~addp_backbone.detection.instance_masks.InstanceMasks`).

    Args:
        scale: Width and height in pixels into which the image fits at ratio 1.
        ratio_range: Smallest and largest ratio; drawn uniformly.
        crop_size: Width and height in pixels of the window.
        flip_prob: Probability of a horizontal flip.
        with_mask: Whether the instances have masks. Without, boxes are the annotated ones, flipped, scaled and clipped
            to the image.
        min_box_px: Objects whose boxes are not wider and higher than this are dropped; detectron2's 1e-5 by default.

    Raises:
        ValueError: If ``ratio_range`` is not ascending and above 0.
    """

    def __init__(
        self,
        scale: tuple[int, int],
        ratio_range: tuple[float, float],
        crop_size: tuple[int, int],
        flip_prob: float = 0.5,
        with_mask: bool = True,
        min_box_px: float = 1e-5,
    ) -> None:
        low, high = ratio_range
        if not 0 < low <= high:
            raise ValueError(f'ratio_range is {ratio_range}, wanted (smallest, largest) with 0 < smallest <= largest')
        self.scale, self.ratio_range, self.crop_size = scale, (low, high), crop_size
        self.flip_prob = flip_prob
        self.with_mask = with_mask
        self.min_box_px = min_box_px

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Applies the step to one sample.

        Raises:
            KeyError: If masks are wanted and an object has no segmentation; the message has the image's path.
            ValueError: If a segmentation is not usable; likewise.
        """
        height, width = results['img'].shape[:2]
        geometry = self._draw(height, width)
        results['img'] = transform_image(results['img'], geometry)
        results.update(
            img_shape=geometry.crop_size[::-1],
            scale_factor=geometry.scale,
            flip=geometry.flip,
            flip_direction='horizontal' if geometry.flip else None,
        )
        self._add_objects(results, geometry)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(scale={self.scale}, ratio_range={self.ratio_range}, crop_size={self.crop_size}, '
            f'flip_prob={self.flip_prob}, with_mask={self.with_mask}, min_box_px={self.min_box_px})'
        )

    def _draw(self, height: int, width: int) -> Geometry:
        """Three draws, as detectron2's: flip, ratio, and one for both offsets of the crop."""
        flip = bool(np.random.uniform() < self.flip_prob)
        ratio = np.random.uniform(*self.ratio_range)
        offset = np.random.uniform()
        scale = min(self.scale[1] * ratio / height, self.scale[0] * ratio / width)
        new_w, new_h = max(round(width * scale), 1), max(round(height * scale), 1)
        spare_w, spare_h = max(new_w - self.crop_size[0], 0), max(new_h - self.crop_size[1], 0)
        corner = round(spare_w * offset), round(spare_h * offset)
        return Geometry(flip, (width, height), (new_w, new_h), corner, self.crop_size)

    def _add_objects(self, results: dict[str, Any], geometry: Geometry) -> None:
        """Adds boxes, labels, flags and masks of the objects in the crop."""
        from mmdet.structures.bbox import HorizontalBoxes

        from addp_backbone.detection.ground_truth import transform_boxes, transform_masks
        from addp_backbone.detection.instance_masks import InstanceMasks

        instances = results.get('instances', [])
        masks = None
        if self.with_mask:
            try:
                objects = transform_masks(instances, geometry)
            except (KeyError, ValueError) as error:
                raise type(error)(f'{results.get("img_path", "an image")}: {error.args[0]}') from error
            masks = InstanceMasks(objects, *results['img_shape'])
            boxes = masks.boxes()
        else:
            boxes = transform_boxes([instance['bbox'] for instance in instances], geometry)
        keep = (boxes[:, 2:] - boxes[:, :2] > self.min_box_px).all(axis=1)
        labels = [instance['bbox_label'] for instance in instances]
        ignored = [bool(instance['ignore_flag']) for instance in instances]
        results['gt_bboxes'] = HorizontalBoxes(boxes[keep])
        results['gt_bboxes_labels'] = np.array(labels, dtype=np.int64)[keep]
        results['gt_ignore_flags'] = np.array(ignored, dtype=bool)[keep]
        if masks is not None:
            results['gt_masks'] = masks[keep]
