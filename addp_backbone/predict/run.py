"""Predictions for many image files, written as they come; ``tools/predict.py`` is the command.

>>> records = predict_images('my_cars.py', 'work_dirs/my_cars', 'photos/', out='predictions')
"""

from __future__ import annotations

import hashlib
import logging
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from addp_backbone.files.atomic import sha256_of
from addp_backbone.files.images import encode_png
from addp_backbone.predict.coco_ids import CocoIds
from addp_backbone.predict.predictions import Detections
from addp_backbone.predict.predictor import DEFAULT_SCORE_THR, Predictor, UnreadableImageError, read_source
from addp_backbone.predict.result_folder import COCO_KEY, Record, ResultFolder
from addp_backbone.predict.sources import OVERLAY_FOLDER, find_images

FORMATS = ('json', 'png', 'coco', 'csv')
DEFAULT_FORMATS = ('json', 'png')
Progress = Callable[[Iterable[Path], int], Iterable[Path]]


def predict_images(
    config: str | Path,
    checkpoint: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    score_thr: float = DEFAULT_SCORE_THR,
    device: str | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    options: dict[str, Any] | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
) -> list[Record]:
    """Predicts for image files and keeps all records; :func:`iterate_predictions` keeps none.

    Args:
        config: Config file.
        checkpoint: Checkpoint of a training run with it, or its work dir.
        images: Files, folders (searched with their sub-folders) or glob patterns.
        out: Folder for the results; None writes nothing.
        score_thr: Detections below are left out.
        device: Where to compute; None takes the first GPU if there is one.
        progress: Wraps the iterable of paths (second argument: its length).
        resume: Leaves out images that have a result in ``out``.
        options: Replaces values of the config.
        formats: Of :data:`FORMATS`, what is written besides ``predictions.json``.

    Returns:
        The records of the images that were predicted now.

    Raises:
        ValueError: If nothing is found, config or checkpoint cannot be used, or ``out`` has results of other settings.
    """
    sources = [images] if isinstance(images, (str, Path)) else images
    find_images(sources, out)  # before the model is built
    predictor = Predictor(config, checkpoint, score_thr, device, options)
    return list(iterate_predictions(predictor, sources, None if out is None else Path(out), resume, progress, formats))


def iterate_predictions(
    predictor: Predictor,
    sources: Sequence[str | Path],
    out: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
) -> Generator[Record, None, None]:
    """Predicts for image files, one after the other.

    An image that fails costs its own result, whatever the reason; what is in ``out`` is never an input. Into ``out`` go
    ``overlays/NAME.png`` and ``label_maps/NAME.png`` (segmentation), with the format 'png'; ``predictions.jsonl``, line
    by line; and at the end, also if the run is interrupted, ``predictions.json``, with 'coco' ``coco_results.json``
    (the ids of the config's annotation file), with 'csv' ``predictions.csv``.

    Args:
        predictor: The model.
        sources: Files, folders or glob patterns.
        out: Folder for the results; None writes nothing.
        resume: Leaves out images that have a result in ``out`` and whose files did not change since.
        progress: Wraps the iterable of paths (second argument: its length).
        formats: Of :data:`FORMATS`.

    Yields:
        The record of an image when all of it is written: ``file_name``, ``name`` (without ending, unique) and what
        ``to_json`` of its prediction gives (:mod:`addp_backbone.predict.predictions`); ``max_per_img`` if that many
        objects reach the threshold, so that others may be missing; or ``file_name`` and ``error``.

    Raises:
        ValueError: If a source has no image, ``out`` has results of other settings, or a format does not fit the model.
        CocoError: If COCO results are wanted and the annotation file has errors or lacks a class.
        OSError: If results cannot be written.
    """
    ids = _coco_ids(predictor) if 'coco' in formats else None
    folder = None
    if out is not None:
        settings = dict(describe_run(predictor), formats=sorted(formats))
        folder = ResultFolder(out, settings, resume, unshown=('fingerprint', 'formats'))
        if ids is not None:
            ids.remember(folder.image_ids())
    done = folder.done() if folder is not None else {}
    names = find_images(sources, out, done)
    todo = [path for path in names if path not in done]
    try:
        for path in progress(todo, len(todo)) if progress else todo:
            record, pngs = _predict_one(predictor, path, names[path], folder is not None and 'png' in formats, ids)
            if folder is not None:
                folder.add(record, pngs)
            yield {name: value for name, value in record.items() if name != COCO_KEY}
    finally:
        if folder is not None:
            folder.finish(names, formats)


def _coco_ids(predictor: Predictor) -> CocoIds:
    if predictor.config.get('default_scope') != 'mmdet':
        raise ValueError('the format coco is for detections: this config is not a detector')
    return CocoIds.of_config(predictor.config, predictor.classes.names)


def describe_run(predictor: Predictor) -> Record:
    """The settings that predictions depend on; ``fingerprint`` is a digest of model, pipeline and checkpoint."""
    cfg = predictor.config
    text = f'{cfg.model} {cfg.test_dataloader.dataset.pipeline} {sha256_of(predictor.checkpoint)}'
    return {
        'config': str(cfg.filename),
        'checkpoint': str(predictor.checkpoint),
        'classes': list(predictor.classes.names),
        'score_thr': predictor.score_thr,
        'fingerprint': hashlib.sha256(text.encode()).hexdigest(),
    }


def _predict_one(
    predictor: Predictor, path: Path, name: str, drawn: bool, ids: CocoIds | None
) -> tuple[Record, dict[str, bytes]]:
    """The record of an image, and sub-folder -> PNG of what is to be written."""
    try:
        pixels = read_source(path)
        prediction = predictor.predict_pixels(pixels, str(path))
        record = {'file_name': str(path), 'name': name, **prediction.to_json()}
        if isinstance(prediction, Detections) and len(prediction.scores) == predictor.max_per_img:
            record['max_per_img'] = predictor.max_per_img
        if isinstance(prediction, Detections) and ids is not None:
            key = ids.image_id(path)
            record.update({'image_id': key, COCO_KEY: prediction.to_coco(key, ids.categories)})
        if not drawn:
            return record, {}
        overlay = prediction.draw(np.ascontiguousarray(pixels[..., ::-1]))
        return record, {OVERLAY_FOLDER: encode_png(overlay), **prediction.extra_files()}
    except UnreadableImageError as error:
        message = str(error)
    except Exception as error:  # of whatever library: one image must not cost the others their results
        print_log(traceback.format_exc(), logger='current', level=logging.WARNING)
        message = f'{path}: prediction failed, {type(error).__name__}: {error}'
    return {'file_name': str(path), 'error': message}, {}
