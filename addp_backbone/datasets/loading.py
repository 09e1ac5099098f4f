"""The first step of every pipeline: an image file as a viewer shows it."""

from __future__ import annotations

from typing import Any

from mmengine.registry import TRANSFORMS

from addp_backbone.files.images import DECODING_ERRORS, read_pixels, reading_error


@TRANSFORMS.register_module()
class LoadImage:
    """Reads ``img_path`` as everything else in the project reads it (:mod:`addp_backbone.files.images`).

    For ordinary JPEG and PNG files the pixels are those of mmcv's ``LoadImageFromFile``. Beyond that the EXIF
    orientation of PNG, WebP and TIFF is applied too, transparency is composited, and formats that OpenCV cannot read
    are read.

    Adds ``img`` (BGR, (H, W, 3), uint8), ``img_shape`` and ``ori_shape`` ((H, W)).
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads the file.

        Raises:
            OSError: If it is missing or cannot be read; the message names it.
        """
        try:
            image = read_pixels(results['img_path'])
        except DECODING_ERRORS as error:
            raise OSError(f'{results["img_path"]} {reading_error(error)}') from error
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
