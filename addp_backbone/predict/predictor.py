"""A trained model that looks at images: files, Pillow images or arrays.

>>> predictor = Predictor('my_cars.py', 'work_dirs/my_cars')
>>> detections = predictor('photos/a.jpg')

For many files, with results on disk: :func:`addp_backbone.predict.run.predict_images`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseTTAModel, revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.checkpoint.matching import unwrap_state_dict
from addp_backbone.checkpoint.storage import read_checkpoint
from addp_backbone.datasets.palette import class_palette
from addp_backbone.files.image_limits import check_image_size
from addp_backbone.files.images import DECODING_ERRORS, as_shown, inspect_image, read_pixels, reading_error
from addp_backbone.predict.predictions import ClassInfo, Prediction, prediction_from_sample
from addp_backbone.runtime.launch import load_config
from addp_backbone.runtime.runner import check_weights
from addp_backbone.runtime.unlabelled import without_annotations

DEFAULT_SCORE_THR = 0.3
ImageSource = str | Path | Image.Image | NDArray[np.uint8]


class UnreadableImageError(ValueError):
    """An image file is missing, truncated or no image."""


class Predictor:
    """A trained model, ready to look at image files.

    Args:
        config: Config file that the checkpoint was trained with.
        checkpoint: Its checkpoint, or the work dir of the run; nothing in it is executed, and it has to fit.
        score_thr: Detections below are left out.
        device: Where to compute; None takes the first GPU if there is one.
        options: Replaces values of the config, as ``--cfg-options`` does.

    Attributes:
        config: The config as it is used.
        checkpoint: The checkpoint file.
        classes: The classes.
        max_per_img: Most objects that the detector reports in an image; None without such a limit.
        wants_bgr: Whether the pipeline takes BGR pixels, as OpenMMLab's do; classification takes RGB.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit the config.
        LaunchError: If the config does not exist, or options do not fit it.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        score_thr: float = DEFAULT_SCORE_THR,
        device: str | None = None,
        options: dict[str, Any] | None = None,
    ):
        cfg = load_config(str(config), options)
        self.config, self.checkpoint = cfg, find_checkpoint(checkpoint)
        content = read_checkpoint(self.checkpoint)
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        if cfg.model.get('num_classes', 0) is None:  # left open, as the data tells: a checkpoint has noted it
            cfg.model.num_classes = (
                len((content.get('meta', {}).get('dataset_meta') or {}).get('classes') or ()) or None
            )
        weights = unwrap_state_dict(content)
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        network = model.module if isinstance(model, BaseTTAModel) else model
        check_weights(str(checkpoint), weights, network.state_dict())
        network.load_state_dict({name.removeprefix('module.'): tensor for name, tensor in weights.items()})
        self.model = model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu')).eval()
        steps = without_annotations(cfg.test_dataloader.dataset.pipeline)
        self.wants_bgr = any(map(_reads_image, steps))  # otherwise the data set reads, as Pillow does (classification)
        self.pipeline = Compose([step for step in steps if not _reads_image(step)])
        self.classes = find_classes(content.get('meta', {}), cfg, count_classes(network))
        self.score_thr = score_thr
        test_cfg = _detector_test_cfg(network)
        self.max_per_img: int | None = test_cfg.get('max_per_img')
        if hasattr(network, 'roi_head') and test_cfg:
            test_cfg['encode_masks'] = True  # a mask at a time in pixels, where the mask head can

    def __call__(self, image: ImageSource) -> Prediction:
        """Predicts for one image.

        Args:
            image: A file; an image as Pillow opens it; or (H, W, 3) uint8 RGB. A file gives the same result as what
                Pillow opens from it, and as its pixels in a viewer's frame.

        Raises:
            UnreadableImageError: If a file is missing, truncated or no image, or an image is beyond the limits of
                :mod:`addp_backbone.files.image_limits`.
            TypeError: If an array is not (H, W, 3) uint8.
        """
        path = str(image) if isinstance(image, (str, Path)) else ''
        return self.predict_pixels(read_source(image), path)

    def predict_pixels(self, pixels: NDArray[np.uint8], path: str = '') -> Prediction:
        """Predicts for pixels that are in memory.

        Args:
            pixels: (H, W, 3) uint8 **BGR**, as :func:`read_source` returns them.
            path: The file they are of, for the pipeline's metadata.

        Raises:
            UnreadableImageError: If the config's pipeline would resize a side to nothing.
        """
        shape = pixels.shape[:2]
        results: dict[str, Any] = dict(img_path=path, img_id=0, sample_idx=0)
        if self.wants_bgr:
            results.update(img=pixels, img_shape=shape, ori_shape=shape)
        else:
            results.update(img=Image.fromarray(np.ascontiguousarray(pixels[..., ::-1])))
        try:
            data = pseudo_collate([self.pipeline(results)])
        except cv2.error as error:  # a side of less than half a pixel
            raise UnreadableImageError(
                f'{path or "the image"}: has {shape[1]} x {shape[0]} pixels, too thin for the size that the config '
                'resizes to; cut it into pieces'
            ) from error
        with torch.inference_mode():
            sample = self.model.test_step(data)[0]
        if 'ori_shape' not in sample:
            sample.set_metainfo(dict(ori_shape=shape))
        return prediction_from_sample(sample, self.classes, self.score_thr)


def read_source(image: ImageSource) -> NDArray[np.uint8]:
    """Reads an image in any of the forms that :class:`Predictor` takes.

    Returns:
        (H, W, 3) uint8 BGR, in the frame that a viewer shows.

    Raises:
        UnreadableImageError: If it cannot be read, or is beyond the limits on sizes.
        TypeError: If an array is not (H, W, 3) uint8.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise TypeError(f'got an array {image.shape} of {image.dtype}, wanted (H, W, 3) of uint8: RGB, 0 to 255')
        return np.ascontiguousarray(image[..., ::-1])
    try:
        if isinstance(image, Image.Image):
            check_image_size(*image.size)
            return np.ascontiguousarray(np.asarray(as_shown(image))[..., ::-1])
        info = inspect_image(Path(image))  # decodes as Pillow does, which notices what is truncated
        if info.error:
            raise UnreadableImageError(f'{image}: {info.error}')
        return read_pixels(image)
    except UnreadableImageError:
        raise
    except DECODING_ERRORS as error:
        name = 'the image' if isinstance(image, Image.Image) else f'{image}:'
        raise UnreadableImageError(f'{name} {reading_error(error)}') from error


def _reads_image(step: Any) -> bool:
    """Whether a step of a pipeline reads the image file, which :func:`read_source` does in its place."""
    return 'LoadImage' in str(step['type'])


def _detector_test_cfg(network: nn.Module) -> Any:
    """Where a detector's limits stand: ``test_cfg.rcnn`` of two stages, ``test_cfg`` of one; else an empty dict."""
    stages: Any = getattr(getattr(network, 'roi_head', network), 'test_cfg', None)
    return stages if isinstance(stages, dict) else {}


def count_classes(model: nn.Module) -> int | None:
    """Number of classes of a model's head; None if it has none that is known."""
    for name in ('roi_head.bbox_head', 'decode_head', 'bbox_head', 'head'):
        head: Any = model
        for part in name.split('.'):
            head = getattr(head, part, None)
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        if getattr(head, 'num_classes', None):
            return int(head.num_classes)
    return int(model.num_classes) if isinstance(getattr(model, 'num_classes', None), int) else None  # type: ignore[arg-type]


def find_classes(meta: Mapping[str, Any], cfg: Config, num_classes: int | None) -> ClassInfo:
    """Finds class names and colours: in the checkpoint, in the config, or at the data set's class.

    Args:
        meta: The checkpoint's ``meta``.
        cfg: The config.
        num_classes: How many the model has; a source with another number is passed over.

    Returns:
        Names and colours; where no source fits, 'class 0' and so on in colours of ours.
    """
    dataset = cfg.test_dataloader.dataset
    kind = dataset.type
    if isinstance(kind, str):  # get() alone looks in mmengine's registry, which does not have the libraries' data sets
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            kind = registry.get(kind)
    for source in (meta.get('dataset_meta'), dataset.get('metainfo'), getattr(kind, 'METAINFO', None)):
        names = (source or {}).get('classes')
        if names and (num_classes is None or len(names) == num_classes):
            palette = (source or {}).get('palette') or ()
            fits = len(palette) == len(names) and not isinstance(palette, str)
            return ClassInfo(
                tuple(names),
                tuple(tuple(int(c) for c in color) for color in (palette if fits else class_palette(len(names)))),
            )
    count = num_classes or 0
    return ClassInfo(tuple(f'class {i}' for i in range(count)), tuple(class_palette(count)))
