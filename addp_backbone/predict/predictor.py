"""Predictions for image files, from a config and a checkpoint; ``tools/predict.py`` is the command.

>>> records = predict_images('my_cars.py', 'work_dirs/my_cars/iter_2000.pth', 'photos/', out='predictions')  # what the
command does

>>> predictor = Predictor('my_cars.py', 'work_dirs/my_cars/iter_2000.pth')  # or image by image, with arrays instead of
files >>> detections = predictor('photos/a.jpg')
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseTTAModel, revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.checkpoint.matching import unwrap_state_dict
from addp_backbone.checkpoint.storage import read_checkpoint
from addp_backbone.datasets.palette import class_palette
from addp_backbone.files.atomic import remove_abandoned_parts, replace_file
from addp_backbone.files.images import IMAGE_ENDINGS, encode_png, inspect_image, is_image_name, read_image
from addp_backbone.predict.predictions import ClassInfo, Prediction, prediction_from_sample
from addp_backbone.runtime.launch import load_config
from addp_backbone.runtime.runner import check_weights

DEFAULT_SCORE_THR = 0.3
Progress = Callable[[Iterable[Path], int], Iterable[Path]]


class UnreadableImageError(ValueError):
    """An image file is missing, truncated or no image."""


class Predictor:
    """A trained model, ready to look at image files.

    Args:
        config: Config file that the checkpoint was trained with.
        checkpoint: Its checkpoint, or the work dir of the run; nothing in it is executed, and it has to fit.
        score_thr: Detections below are left out.
        device: Where to compute; None takes the first GPU if there is one.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit the config.
        LaunchError: If the config does not exist.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        score_thr: float = DEFAULT_SCORE_THR,
        device: str | None = None,
    ):
        cfg = load_config(str(config))
        content = read_checkpoint(find_checkpoint(checkpoint))
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
        steps = _without_annotations(cfg.test_dataloader.dataset.pipeline)
        self.pipeline = Compose(steps)
        self.reads_files = any(
            'LoadImage' in str(step['type']) for step in steps
        )  # otherwise the data set does (classification)
        self.classes = find_classes(content.get('meta', {}), cfg, count_classes(network))
        self.score_thr = score_thr

    def __call__(self, image: str | Path) -> Prediction:
        """Predicts for one image file.

        Raises:
            UnreadableImageError: If it is missing, truncated or no image.
        """
        info = inspect_image(Path(image))
        if info.error:
            raise UnreadableImageError(f'{image}: {info.error}')
        results = dict(img_path=str(image), img_id=0)
        if not self.reads_files:
            results.update(img=read_image(image), sample_idx=0)
        data = pseudo_collate([self.pipeline(results)])
        with torch.inference_mode():
            sample = self.model.test_step(data)[0]
        return prediction_from_sample(sample, self.classes, self.score_thr)


def predict_images(
    config: str | Path,
    checkpoint: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    score_thr: float = DEFAULT_SCORE_THR,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Predicts for image files.

    Args:
        config: Config file.
        checkpoint: Checkpoint of a training run with it.
        images: Files, folders (searched with their sub-folders) or glob patterns.
        out: Folder for ``overlays/*.png``, ``label_maps/*.png`` (segmentation) and ``predictions.json``; None writes
            nothing.
        score_thr: Detections below are left out.
        device: Where to compute; None takes the first GPU if there is one.
        progress: Wraps the iterable of paths (second argument: its length).

    Returns:
        A record for each image in the order found: ``file_name`` and either what ``to_json`` of its prediction gives
        (:mod:`addp_backbone.predict.predictions`), or ``error`` if it cannot be read.

    Raises:
        ValueError: If nothing is found, or config or checkpoint cannot be used.
    """
    names = find_images([images] if isinstance(images, (str, Path)) else images)
    predictor = Predictor(config, checkpoint, score_thr, device)
    paths = progress(names, len(names)) if progress else names
    for folder in ('', 'overlays', 'label_maps') if out is not None else ():
        remove_abandoned_parts(Path(out or '') / folder)
    records = [_predict_one(predictor, path, names[path], None if out is None else Path(out)) for path in paths]
    if out is not None:
        summary = {
            'config': str(config),
            'checkpoint': str(checkpoint),
            'classes': list(predictor.classes.names),
            'score_thr': score_thr,
            'images': records,
        }
        replace_file(Path(out) / 'predictions.json', json.dumps(summary))
    return records


def _predict_one(predictor: Predictor, path: Path, name: str, out: Path | None) -> dict[str, Any]:
    """Predicts for an image and writes its overlay and maps; returns its record."""
    try:
        prediction = predictor(path)
    except UnreadableImageError as error:
        return {'file_name': str(path), 'error': str(error)}
    if out is not None:
        overlay = prediction.draw(np.asarray(read_image(path)))
        for folder, png in {'overlays': encode_png(overlay), **prediction.extra_files()}.items():
            replace_file(out / folder / f'{name}.png', png)
    return {'file_name': str(path), 'name': name, **prediction.to_json()}


def find_images(sources: Sequence[str | Path]) -> dict[Path, str]:
    """Finds image files.

    Args:
        sources: Files, folders or glob patterns.

    Returns:
        Path -> name without ending, unique, with sub-folders of a folder given; in the order of the sources, each
        sorted.

    Raises:
        ValueError: If a source has no image.
    """
    found: dict[Path, str] = {}
    for source in map(str, sources):
        root = Path(source)
        if root.is_dir():
            paths = sorted(path for path in root.rglob('*') if is_image_name(path.name) and path.is_file())
        elif root.is_file():
            paths = [root]
        else:
            paths = [path for path in map(Path, sorted(glob.glob(source, recursive=True))) if path.is_file()]  # noqa: PTH207  the pattern may be absolute
        if not paths:
            raise ValueError(
                f'{source}: no such image'
                + (
                    f' ({", ".join(IMAGE_ENDINGS)}) in this folder'
                    if root.is_dir()
                    else ', folder with images or glob pattern that matches one'
                )
            )
        for path in paths:
            if path not in found:
                name = path.relative_to(root) if root.is_dir() else Path(path.name)
                found[path] = _unique(name.with_suffix('').as_posix(), set(found.values()))
    return found


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f'{name}_{number}', number + 1
    return candidate


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


def _without_annotations(steps: Any) -> list[Any]:
    """A test pipeline without the steps that need annotations, at any depth (test-time augmentation nests)."""
    kept: list[Any] = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            kept += [nested] if (nested := _without_annotations(step)) else []
        elif 'transforms' in step:
            kept.append({**step, 'transforms': _without_annotations(step['transforms'])})
        elif 'Annotations' not in str(step['type']):
            kept.append(dict(step))
    return kept
