"""A trained model that looks at images: files, URLs, Pillow images, arrays, folders, patterns, videos.

>>> predictor = Predictor('my_cars.py', 'work_dirs/my_cars')
>>> detections = predictor('photos/a.jpg')

For many files, with results on disk: :func:`addp_backbone.predict.run.predict_images`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseTTAModel, revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from addp_backbone.checkpoint.frozen_base import complete
from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.checkpoint.matching import unwrap_state_dict
from addp_backbone.checkpoint.storage import read_checkpoint
from addp_backbone.predict.class_info import Prediction, count_classes, find_classes
from addp_backbone.predict.detections import Detections
from addp_backbone.predict.inputs import Frame, find_inputs
from addp_backbone.predict.predictions import prediction_from_sample
from addp_backbone.predict.reading import ImageSource, UnreadableImageError, read_source
from addp_backbone.predict.tiles import Tiles, predict_in_tiles
from addp_backbone.runtime.launch import load_config
from addp_backbone.runtime.runner import check_weights
from addp_backbone.runtime.unlabelled import without_annotations

DEFAULT_SCORE_THR = 0.3
TILED_SCOPES = ('mmdet', 'mmseg')


def load_network(cfg: Config, content: dict[str, Any], path: str) -> Any:
    """Builds a config's model and gives it a checkpoint's weights, all of them.

    Args:
        cfg: Config; an open number of classes is filled in.
        content: The checkpoint as it was read; a frozen base that it leaves out is put back.
        path: Its file, for messages.

    Returns:
        The model on the CPU; with test-time augmentation the wrapper around it.

    Raises:
        CheckpointError: If it does not fit the config.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if cfg.model.get('num_classes', 0) is None:  # left open, as the data tells: a checkpoint has noted it
        cfg.model.num_classes = len((content.get('meta', {}).get('dataset_meta') or {}).get('classes') or ()) or None
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    network = model.module if isinstance(model, BaseTTAModel) else model
    complete(content, network, path)
    weights = unwrap_state_dict(content)
    check_weights(path, weights, network.state_dict())
    network.load_state_dict({name.removeprefix('module.'): tensor for name, tensor in weights.items()})
    return model


class Predictor:
    """A trained model, ready to look at image files.

    Args:
        config: Config file that the checkpoint was trained with.
        checkpoint: Its checkpoint, or the work dir of the run; nothing in it is executed, and it has to fit.
        score_thr: Detections below are left out.
        device: Where to compute; None takes the first GPU if there is one.
        options: Replaces values of the config, as ``--cfg-options`` does.
        tiles: How large images are cut; None looks at each as the config's pipeline resizes it.
        allow_urls: Whether URLs are fetched (limits: :mod:`addp_backbone.predict.web`).

    Attributes:
        config: The config as it is used.
        checkpoint: The checkpoint file.
        classes: The classes.
        max_per_img: Most objects that the detector reports in an image; None without such a limit.
        wants_bgr: Whether the pipeline takes BGR pixels, as OpenMMLab's do; classification takes RGB.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit the config.
        LaunchError: If the config does not exist, or options do not fit it.
        ValueError: If tiles are wanted of a model that neither detects nor segments.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        score_thr: float = DEFAULT_SCORE_THR,
        device: str | None = None,
        options: dict[str, Any] | None = None,
        tiles: Tiles | None = None,
        allow_urls: bool = False,
    ):
        cfg = load_config(str(config), options)
        self.config, self.checkpoint = cfg, find_checkpoint(checkpoint)
        if tiles is not None and cfg.get('default_scope') not in TILED_SCOPES:
            raise ValueError('tiles are for detection and segmentation, not for classes of a whole image')
        self.tiles, self.allow_urls = tiles, allow_urls
        content = read_checkpoint(self.checkpoint)
        model = load_network(cfg, content, str(checkpoint))
        network = model.module if isinstance(model, BaseTTAModel) else model
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

    @overload
    def __call__(self, image: ImageSource) -> Prediction: ...

    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...]) -> list[Prediction]: ...

    def __call__(self, image: ImageSource | list[Any] | tuple[Any, ...]) -> Prediction | list[Prediction]:
        """Predicts for one image, or for a list of images of any sizes.

        Args:
            image: A file; a URL; an image as Pillow opens it; or (H, W, 3) uint8 RGB. A file gives the same result as
                what Pillow opens from it, and as its pixels in a viewer's frame. Of a list each in turn, so that a
                result does not depend on its neighbours.

        Raises:
            UnreadableImageError: If a file is missing, truncated or no image, or an image is beyond the limits of
                :mod:`addp_backbone.files.image_limits`.
            TypeError: If it is none of them, or an array is not (H, W, 3) uint8.
            ValueError: If it is a URL and ``allow_urls`` is not set.
        """
        if isinstance(image, list | tuple):
            return [self(one) for one in image]
        path = str(image) if isinstance(image, (str, Path)) else ''
        return self.predict_pixels(read_source(image, self.allow_urls), path)

    def iterate(
        self, sources: str | Path | Sequence[str | Path], every: int = 1, max_frames: int | None = None
    ) -> Iterator[tuple[Frame, Prediction]]:
        """Predicts for folders, glob patterns, videos, streams, files and URLs; one image is in memory at a time.

        Args:
            sources: What :func:`addp_backbone.predict.inputs.find_inputs` takes.
            every: Every which frame of a video.
            max_frames: Most frames of each video; None for all.

        Yields:
            The frame (source, number, time) and its prediction.

        Raises:
            UnreadableImageError: At the first image that cannot be read; ``predict_images`` notes them instead.
            ValueError: If a source has no image.
        """
        given = [sources] if isinstance(sources, (str, Path)) else sources
        inputs = find_inputs(given, allow_urls=self.allow_urls, every=every, max_frames=max_frames)
        for frame in inputs.frames():
            yield frame, self.predict_pixels(frame.read(), frame.source)

    def predict_pixels(self, pixels: NDArray[np.uint8], path: str = '') -> Prediction:
        """Predicts for pixels that are in memory; in tiles, if the predictor was made with them.

        Args:
            pixels: (H, W, 3) uint8 **BGR**, as :func:`read_source` returns them.
            path: The file they are of, for the pipeline's metadata.

        Raises:
            UnreadableImageError: If the config's pipeline would resize a side to nothing.
        """
        if self.tiles is not None:
            return predict_in_tiles(self._predict, pixels, path, self.tiles)
        return self._predict(pixels, path)

    def _predict(self, pixels: NDArray[np.uint8], path: str) -> Prediction:
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
        prediction = prediction_from_sample(sample, self.classes, self.score_thr)
        if isinstance(prediction, Detections) and len(prediction.scores) == self.max_per_img:
            return replace(prediction, at_limit=True)
        return prediction


def _reads_image(step: Any) -> bool:
    """Whether a step of a pipeline reads the image file, which :func:`read_source` does in its place."""
    return 'LoadImage' in str(step['type'])


def _detector_test_cfg(network: nn.Module) -> Any:
    """Where a detector's limits stand: ``test_cfg.rcnn`` of two stages, ``test_cfg`` of one; else an empty dict."""
    stages: Any = getattr(getattr(network, 'roi_head', network), 'test_cfg', None)
    return stages if isinstance(stages, dict) else {}
