"""An exported file as a model: image in, detections or a class map of the image's own size out; numpy and Pillow only.

What it does after the graph is short enough to be written again in any language; docs/export.md has it in full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from addp_backbone.export.preprocessing import prepare_image


@dataclass(frozen=True)
class ArrayDetections:
    """Objects in an image, best first.

    Attributes:
        boxes: (N, 4) float32, x1, y1, x2, y2 in pixels of the image.
        scores: (N,) float32.
        labels: (N,) int64.
        masks: (N, height, width) bool; None where the model has no masks.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None


class OnnxModel:
    """An ONNX file of :func:`addp_backbone.export.onnx_file.write_onnx`, run by onnxruntime.

    Args:
        path: The file.
        num_threads: Of onnxruntime; 0 = as many as there are cores.
        providers: Where onnxruntime computes.

    Attributes:
        description: The file's metadata.
    """

    def __init__(
        self, path: str | Path, num_threads: int = 0, providers: Sequence[str] = ('CPUExecutionProvider',)
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        metadata: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.description: dict[str, Any] = {name: json.loads(value) for name, value in metadata.items()}

    def run(
        self, images: NDArray[np.float32], sizes: Sequence[tuple[int, int]] | None = None, names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Runs the graph.

        Args:
            images: (B, 3, H, W) float32, normalised and padded.
            sizes: Of a detector, height and width of each image without its padding.
            names: The outputs wanted; all if there are none.

        Returns:
            Output name -> array.
        """
        inputs: dict[str, Any] = {'images': np.ascontiguousarray(images, np.float32)}
        if sizes is not None:
            inputs['sizes'] = np.asarray(sizes, np.int64).reshape(-1, 2)
        wanted = list(names) or [output.name for output in self.session.get_outputs()]
        return dict(zip(wanted, self.session.run(wanted, inputs), strict=True))

    def __call__(self, image: Image.Image) -> ArrayDetections | NDArray[Any]:
        """Predicts for one RGB image, at its own size.

        Args:
            image: As a viewer shows it.

        Returns:
            Detections, or a class map (height, width), uint8 or, for over 256 classes, uint16.

        Raises:
            ValueError: If the file is no whole model.
        """
        task = self.description['task']
        tensor, size = prepare_image(image, self.description)
        if task == 'detection':
            outputs = self.run(tensor[None], [size])
            return detections_of(outputs, 0, size, (image.height, image.width), self.description['mask_threshold'])
        if task == 'segmentation':
            return class_map_of(self.run(tensor[None], names=['logits'])['logits'][0], size, image.size)
        raise ValueError(f'the file has the part {self.description["part"]!r}, predictions need the whole model')


def detections_of(
    outputs: Mapping[str, Any], index: int, size: tuple[int, int], image_size: tuple[int, int], mask_threshold: float
) -> ArrayDetections:
    """The detections of an image of a batch.

    Args:
        outputs: Of the graph.
        index: Which image.
        size: Height and width that the image has in the batch, without padding.
        image_size: Its own height and width, which boxes and masks are returned for.
        mask_threshold: Pixels of at least this probability belong to an object.

    Returns:
        The detections.
    """
    number = int(outputs['counts'][index])
    scale = np.array([image_size[1] / size[1], image_size[0] / size[0]] * 2, np.float32)
    boxes = outputs['boxes'][index][:number] * scale
    masks = None
    if 'masks' in outputs:
        pasted = [
            paste_mask(mask, box, *image_size) >= mask_threshold
            for mask, box in zip(outputs['masks'][index], boxes, strict=False)
        ]
        masks = np.array(pasted, bool).reshape(number, *image_size)
    return ArrayDetections(boxes, outputs['scores'][index][:number], outputs['labels'][index][:number], masks)


def paste_mask(mask: NDArray[np.float32], box: NDArray[np.float32], height: int, width: int) -> NDArray[Any]:
    """Resizes a mask (28, 28) to its box in an image, bilinearly, zero outside: (height, width) probabilities."""
    x1, y1, x2, y2 = (float(value) for value in box)
    rows, cols = _weights(y1, y2, height, mask.shape[0]), _weights(x1, x2, width, mask.shape[1])
    return rows @ mask @ cols.T


def _weights(start: float, end: float, length: int, size: int) -> NDArray[Any]:
    """(length, size): how much each cell of a mask counts for each pixel of an axis."""
    position = (np.arange(length, dtype=np.float32) + 0.5 - start) / max(end - start, 1e-6) * size - 0.5
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size, dtype=np.float32)))


def class_map_of(logits: NDArray[np.float32], size: tuple[int, int], image_size: tuple[int, int]) -> NDArray[Any]:
    """The class of every pixel of an image.

    Args:
        logits: (K, H, W) of the graph.
        size: Height and width of the image in it, without padding.
        image_size: The image's own width and height.

    Returns:
        (height, width), uint8 or, for over 256 classes, uint16.
    """
    resized = [
        Image.fromarray(layer[: size[0], : size[1]]).transform(
            image_size,
            Image.Transform.AFFINE,
            (size[1] / image_size[0], 0, 0, 0, size[0] / image_size[1], 0),
            Image.Resampling.BILINEAR,
        )
        for layer in logits
    ]
    classes = np.argmax(np.stack([np.asarray(layer) for layer in resized]), axis=0)
    return classes.astype(np.uint8 if len(logits) <= 256 else np.uint16)
