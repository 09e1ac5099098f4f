"""The first step of every pipeline: an image file as a viewer shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS

from addp_backbone.files.image_limits import open_image
from addp_backbone.files.images import DECODING_ERRORS, mask_problem, read_pixels, reading_error

MAX_LABEL = 255  # mmseg's LoadAnnotations wraps larger ones


@TRANSFORMS.register_module()
class LoadImage:
    """Reads ``img_path`` as everything else in the project reads it (:mod:`addp_backbone.files.images`).

    For ordinary JPEG and PNG files the pixels are those of mmcv's ``LoadImageFromFile``. Beyond that the EXIF
    orientation of PNG, WebP and TIFF is applied too, transparency is composited, and formats that OpenCV cannot read
    are read.

    An image whose size is not that of its record (COCO's ``width`` and ``height``) or of its mask is refused, as by
    ``tools/new_dataset.py``: its boxes and labels would lie elsewhere.

    Adds ``img`` (BGR, (H, W, 3), uint8), ``img_shape`` and ``ori_shape`` ((H, W)).
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads the file.

        Raises:
            OSError: If it is missing or cannot be read; the message names it.
            ValueError: If its record or mask is of another size, or the mask is of another kind.
        """
        try:
            image = read_pixels(results['img_path'])
        except DECODING_ERRORS as error:
            raise OSError(f'{results["img_path"]} {reading_error(error)}') from error
        _check_record(results, image.shape[1], image.shape[0])
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


def _check_record(results: dict[str, Any], width: int, height: int) -> None:
    """Compares an image with what a COCO file says of it, or with the header of its mask."""
    stated = results.get('width', width), results.get('height', height)
    if stated != (width, height):
        raise ValueError(
            f'{results["img_path"]} has {width} x {height} pixels, its record says {stated[0]} x {stated[1]}: boxes '
            'would lie elsewhere. tools/new_dataset.py checks all images'
        )
    mask = results.get('seg_map_path')
    if not mask or 'reduce_zero_label' not in results or not Path(mask).is_file():  # missing: said where it is read
        return
    try:
        with open_image(mask) as header:
            problem = mask_problem(header)
            if problem is None and header.mode not in ('1', 'L', 'P') and np.asarray(header).max() > MAX_LABEL:
                problem = f'has values over {MAX_LABEL}, and labels are read in 8 bits'
            if problem is None and header.size != (width, height):
                problem = f'has {header.size[0]} x {header.size[1]} pixels, its image {width} x {height}'
    except DECODING_ERRORS as error:
        raise OSError(f'{mask} {reading_error(error)}') from error
    if problem:
        raise ValueError(f'{mask} {problem}. tools/new_dataset.py checks all masks')
