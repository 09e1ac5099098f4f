"""Predictions for many images and videos, written as they come; ``tools/predict.py`` is the command.

>>> records = predict_images('my_cars.py', 'work_dirs/my_cars', 'photos/', out='predictions')
"""

from __future__ import annotations

import hashlib
import logging
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from numpy.typing import NDArray

from addp_backbone.files.atomic import sha256_of
from addp_backbone.files.images import encode_png
from addp_backbone.predict.class_info import Prediction
from addp_backbone.predict.coco_ids import CocoIds
from addp_backbone.predict.detections import Detections
from addp_backbone.predict.inputs import Frame, find_inputs, record_key
from addp_backbone.predict.labelme import labelme_file
from addp_backbone.predict.predictor import DEFAULT_SCORE_THR, Predictor
from addp_backbone.predict.reading import UnreadableImageError
from addp_backbone.predict.result_folder import COCO_KEY, Record, ResultFolder
from addp_backbone.predict.sources import LABELME_FOLDER, OVERLAY_FOLDER
from addp_backbone.predict.tiles import Tiles
from addp_backbone.predict.videos import without_password

FORMATS = ('json', 'png', 'coco', 'csv', 'labelme')
DEFAULT_FORMATS = ('json', 'png')
DETECTOR_FORMATS = ('coco', 'labelme')
Progress = Callable[[Iterable[Frame], int], Iterable[Frame]]


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
    *,
    tiles: Tiles | None = None,
    allow_urls: bool = False,
    every: int = 1,
    max_frames: int | None = None,
) -> list[Record]:
    """Predicts for images and keeps all records; :func:`iterate_predictions` keeps none.

    Args:
        config: Config file.
        checkpoint: Checkpoint of a training run with it, or its work dir.
        images: Files, folders (searched with their sub-folders), glob patterns, videos, URLs, ``camera:N``, streams.
        out: Folder for the results; None writes nothing.
        score_thr: Detections below are left out.
        device: Where to compute; None takes the first GPU if there is one.
        progress: Wraps the iterable of frames (second argument: their number, as far as it is known).
        resume: Leaves out images that have a result in ``out``.
        options: Replaces values of the config.
        formats: Of :data:`FORMATS`, what is written besides ``predictions.json``.
        tiles: How large images are cut; None does not.
        allow_urls: Whether URLs and streams of the network may be opened.
        every: Every which frame of a video.
        max_frames: Most frames of each video; None for all.

    Returns:
        The records of the images that were predicted now.

    Raises:
        ValueError: If nothing is found, config or checkpoint cannot be used, or ``out`` has results of other settings.
    """
    sources = [images] if isinstance(images, (str, Path)) else images
    find_inputs(sources, out, allow_urls=allow_urls, every=every, max_frames=max_frames)  # before the model is built
    predictor = Predictor(config, checkpoint, score_thr, device, options, tiles, allow_urls)
    folder = None if out is None else Path(out)
    running = iterate_predictions(
        predictor, sources, folder, resume, progress, formats, every=every, max_frames=max_frames
    )
    return list(running)


def iterate_predictions(
    predictor: Predictor,
    sources: Sequence[str | Path],
    out: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    every: int = 1,
    max_frames: int | None = None,
) -> Generator[Record, None, None]:
    """Predicts for images and frames of videos, one after the other.

    An image that fails costs its own result, whatever the reason; what is in ``out`` is never an input. Into ``out`` go
    ``overlays/NAME.png``, ``label_maps/NAME.png`` (segmentation) and ``instance_maps/NAME.png`` (masks of objects) with
    the format 'png', ``labelme/NAME.json`` with 'labelme'; ``predictions.jsonl``, line by line; and at the end, also if
    the run is interrupted, ``predictions.json``, with 'coco' ``coco_results.json`` (the ids of the config's annotation
    file), with 'csv' ``predictions.csv``. Results of a video's frames lie in a folder of its name.

    Args:
        predictor: The model.
        sources: Files, folders, glob patterns, videos, URLs, ``camera:N``, streams.
        out: Folder for the results; None writes nothing.
        resume: Leaves out images that have a result in ``out`` and whose files did not change since.
        progress: Wraps the iterable of frames (second argument: their number, as far as it is known).
        formats: Of :data:`FORMATS`.
        every: Every which frame of a video.
        max_frames: Most frames of each video; None for all.

    Yields:
        The record of an image when all of it is written: ``file_name``, of a video ``frame`` (from 0) and ``time_s``,
        ``name`` (without ending, unique) and what
        ``to_json`` of its prediction gives (:mod:`addp_backbone.predict.predictions`); ``max_per_img`` if that many
        objects reach the threshold, so that others may be missing; or ``file_name`` and ``error``.

    Raises:
        ValueError: If a source has no image, ``out`` has results of other settings, or a format does not fit the model.
        CocoError: If COCO results are wanted and the annotation file has errors or lacks a class.
        OSError: If results cannot be written.
    """
    _check_formats(predictor, formats)
    ids = CocoIds.of_config(predictor.config, predictor.classes.names) if 'coco' in formats else None
    folder = None
    if out is not None:
        settings = dict(describe_run(predictor), formats=sorted(formats))
        folder = ResultFolder(out, settings, resume, unshown=('fingerprint', 'formats'))
        if ids is not None:
            ids.remember(folder.image_ids())
    done = folder.done() if folder is not None else {}
    inputs = find_inputs(sources, out, done, allow_urls=predictor.allow_urls, every=every, max_frames=max_frames)
    frames: Iterable[Frame] = inputs.frames(done)
    writer = _Writer(predictor, formats, out, ids)
    try:
        for frame in progress(frames, inputs.count(done)) if progress else frames:
            record, files = writer.predict(frame)
            if folder is not None:
                folder.add(record, files)
            yield {name: value for name, value in record.items() if name != COCO_KEY}
    finally:
        if folder is not None:
            folder.finish([without_password(source) for source in inputs.names], formats)


def _check_formats(predictor: Predictor, formats: Sequence[str]) -> None:
    detector = predictor.config.get('default_scope') == 'mmdet'
    for name in sorted(set(formats) & set(DETECTOR_FORMATS)):
        if not detector:
            raise ValueError(f'the format {name} is for detections: this config is not a detector')


def describe_run(predictor: Predictor) -> Record:
    """The settings that predictions depend on; ``fingerprint`` is a digest of model, pipeline and checkpoint."""
    cfg = predictor.config
    text = f'{cfg.model} {cfg.test_dataloader.dataset.pipeline} {sha256_of(predictor.checkpoint)}'
    return {
        'config': str(cfg.filename),
        'checkpoint': str(predictor.checkpoint),
        'classes': list(predictor.classes.names),
        'score_thr': predictor.score_thr,
        **({} if predictor.tiles is None else {'tiles': asdict(predictor.tiles)}),
        'fingerprint': hashlib.sha256(text.encode()).hexdigest(),
    }


class _Writer:
    """Predicts for a frame and makes what is written of it: its record, and sub-folder -> content of a file."""

    def __init__(self, predictor: Predictor, formats: Sequence[str], out: Path | None, ids: CocoIds | None) -> None:
        self.predictor, self.formats, self.out, self.ids = predictor, formats, out, ids

    def predict(self, frame: Frame) -> tuple[Record, dict[str, bytes]]:
        """An error, of whatever kind, becomes the record."""
        try:
            pixels = frame.read()
            prediction = self.predictor.predict_pixels(pixels, frame.source)
            record = {**frame.fields(), 'name': frame.name, **prediction.to_json()}
            if isinstance(prediction, Detections):
                record.update(self._details(prediction, record))
            return record, self._files(frame, prediction, pixels)
        except UnreadableImageError as error:
            message = str(error)
        except Exception as error:  # of whatever library: one image must not cost the others their results
            print_log(traceback.format_exc(), logger='current', level=logging.WARNING)
            message = f'{frame.source}: prediction failed, {type(error).__name__}: {error}'
        return {**frame.fields(), 'error': message}, {}

    def _details(self, detections: Detections, record: Record) -> Record:
        found: Record = {'max_per_img': self.predictor.max_per_img} if detections.at_limit else {}
        if self.ids is not None:
            key = self.ids.image_id(record_key(record))
            found.update({'image_id': key, COCO_KEY: detections.to_coco(key, self.ids.categories)})
        return found

    def _files(self, frame: Frame, prediction: Prediction, pixels: NDArray[np.uint8]) -> dict[str, bytes]:
        if self.out is None or not {'png', 'labelme'} & set(self.formats):
            return {}
        rgb = np.ascontiguousarray(pixels[..., ::-1])
        files = {}
        if 'png' in self.formats:
            files.update({OVERLAY_FOLDER: encode_png(prediction.draw(rgb)), **prediction.extra_files()})
        if 'labelme' in self.formats and isinstance(prediction, Detections):
            target = self.out / LABELME_FOLDER / f'{frame.name}.json'
            files[LABELME_FOLDER] = labelme_file(prediction, target, frame.file, rgb)
        return files
