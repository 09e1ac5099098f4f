"""Writes data sets of generated shapes: instances and masks, a class-folder tree, plain images.

The command is ``tools/make_shapes.py``.

Picture ``i`` of a part is a function of the seed, the part and ``i`` alone. Every file is written atomically, a
picture's record last: a run that was cut goes on where it stopped, whatever the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

from addp_backbone.datasets.shapes.scenes import MAX_CLUTTER, SHAPE_CLASSES, Scene, render_scene
from addp_backbone.files.atomic import replace_file
from addp_backbone.files.images import write_png
from addp_backbone.files.run_length import encode_mask
from addp_backbone.runtime.processes import process_pool

BACKGROUND = 'background'
SEG_CLASSES = (BACKGROUND, *SHAPE_CLASSES)  # mask values 1..11; 0 (void) never occurs
SETTINGS_FILE = 'settings.json'
PARTS = {'scenes/train': 0, 'scenes/val': 1, 'classes/train': 2, 'classes/val': 3, 'plain': 4}  # seeds: never renumber


@dataclass(frozen=True)
class ShapeSettings:
    """What is written.

    Attributes:
        height: Rows of every picture.
        width: Columns of every picture.
        seed: Seed of everything.
        train_scenes: Number of training scenes, with instances and masks.
        val_scenes: Number of validation scenes.
        train_per_class: Number of training pictures of one main object in the class-folder tree, for each class.
        val_per_class: The same for validation.
        plain_images: Number of scenes without labels, for pre-training.
        typical: Probability that a shape is of its class's typical material, in [0, 1].
        clutter: Largest number of things behind the shapes.
        min_size: Smallest square root of a shape's area in a scene, as a share of the picture's shorter side.
        max_size: Largest.
    """

    height: int = 256
    width: int = 256
    seed: int = 0
    train_scenes: int = 200
    val_scenes: int = 50
    train_per_class: int = 0
    val_per_class: int = 0
    plain_images: int = 0
    typical: float = 0.0
    clutter: int = MAX_CLUTTER
    min_size: float = 0.1
    max_size: float = 0.36

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16:
            raise ValueError(f'pictures must be at least 16 x 16 pixels, got {self.height} x {self.width}')
        counts = {name: value for name, value in asdict(self).items() if name not in ('height', 'width')}
        if min(counts.values()) < 0:
            raise ValueError(f'the seed and the numbers of pictures must not be negative, got {counts}')
        if not (0 <= self.typical <= 1 and 0 < self.min_size <= self.max_size <= 1):
            raise ValueError(
                'wanted typical in [0, 1] and 0 < min_size <= max_size <= 1, '
                f'got {self.typical}, {self.min_size} and {self.max_size}'
            )

    def counts(self) -> dict[str, int]:
        """Number of pictures of every part."""
        numbers = (
            self.train_scenes,
            self.val_scenes,
            self.train_per_class * len(SHAPE_CLASSES),
            self.val_per_class * len(SHAPE_CLASSES),
            self.plain_images,
        )
        return dict(zip(PARTS, numbers, strict=True))


def write_shapes(
    out: Path,
    settings: ShapeSettings,
    num_workers: int = 1,
    progress: Callable[[Iterator[None], int], Iterator[None]] | None = None,
) -> None:
    """Writes the data set, or the rest of it.

    Args:
        out: Folder; new, empty, or begun with the same settings.
        settings: What to write.
        num_workers: Processes.
        progress: Wraps the iterator over finished pictures (second argument: how many there will be).

    Raises:
        ValueError: If the folder holds something else, or was begun with other settings.
    """
    _claim_folder(out, settings)
    jobs = [(part, i) for part, count in settings.counts().items() for i in range(count)]
    todo = [job for job in jobs if not _record_path(out, *job).exists()]
    finished = _run(partial(_write_picture, out, settings), todo, num_workers)
    for _ in progress(finished, len(todo)) if progress else finished:
        pass
    for split in ('train', 'val'):
        records = [
            json.loads(_record_path(out, f'scenes/{split}', i).read_text(encoding='utf-8'))
            for i in range(settings.counts()[f'scenes/{split}'])
        ]
        if records:
            _write_json(out / f'instances_{split}.json', _coco(records, settings))
    _write_json(out / 'classes.json', {'classes': list(SEG_CLASSES), 'things': list(SHAPE_CLASSES)})


def _claim_folder(out: Path, settings: ShapeSettings) -> None:
    """Makes the folder, or checks that it was begun with the same settings."""
    path, wanted = out / SETTINGS_FILE, asdict(settings)
    if path.exists():
        found = json.loads(path.read_text(encoding='utf-8'))
        if found != wanted:
            differing = ', '.join(
                f'{key}: {found.get(key)} there, {value} now'
                for key, value in wanted.items()
                if found.get(key) != value
            )
            raise ValueError(
                f'{out} was begun with other settings ({differing}): give the same or choose another folder'
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'{out} exists and was not written by this tool: choose a new or an empty folder')
    _write_json(path, wanted)


def _run(write: Callable[[tuple[str, int]], None], jobs: list[tuple[str, int]], num_workers: int) -> Iterator[None]:
    if num_workers <= 1 or len(jobs) < 2:
        yield from map(write, jobs)
        return
    cv2.setNumThreads(0)  # OpenCV's own threads do not survive a fork
    with process_pool(num_workers) as pool:
        yield from pool.map(write, jobs, chunksize=max(1, min(4, len(jobs) // (4 * num_workers))))


def _record_path(out: Path, part: str, index: int) -> Path:
    return out / '.records' / part / f'{index:06d}.json'


def _write_picture(out: Path, settings: ShapeSettings, job: tuple[str, int]) -> None:
    """Renders and writes one picture, and its record last."""
    part, index = job
    rng = np.random.default_rng([settings.seed, PARTS[part], index])
    if part.startswith('classes'):
        label = index % len(SHAPE_CLASSES)
        scene = render_scene(
            rng, settings.height, settings.width, [label], (0.35, 0.6), 0.25, settings.typical, settings.clutter
        )
        write_png(scene.image, out / part / SHAPE_CLASSES[label] / f'{index:06d}.png')
        record: dict[str, Any] = {}
    else:
        scene = render_scene(
            rng,
            settings.height,
            settings.width,
            size=(settings.min_size, settings.max_size),
            typical=settings.typical,
            clutter=settings.clutter,
        )
        folder = 'plain' if part == 'plain' else part.replace('scenes', 'images')
        write_png(scene.image, out / folder / f'{index:06d}.png')
        record = {}
        if part != 'plain':
            write_png(_semantic_mask(scene), out / part.replace('scenes', 'annotations') / f'{index:06d}.png')
            record = {'file_name': f'{index:06d}.png', 'annotations': _instances(scene)}
    _write_json(_record_path(out, part, index), record)


def _semantic_mask(scene: Scene) -> NDArray[np.uint8]:
    """Values 1 (background) to 11, by ADE20K's convention."""
    mask = np.full(scene.image.shape[:2], 1, np.uint8)
    for label, visible in zip(scene.labels, scene.masks, strict=True):
        mask[visible] = label + 2
    return mask


def _instances(scene: Scene) -> list[dict[str, Any]]:
    """COCO's annotations of a scene, without ids; masks are run-length coded, which keeps holes and hidden parts."""
    annotations = []
    for label, visible in zip(scene.labels.tolist(), scene.masks, strict=True):
        code = encode_mask(visible)
        annotations.append(
            {
                'category_id': label + 1,
                'bbox': coco_masks.toBbox(code).tolist(),
                'area': int(visible.sum()),
                'iscrowd': 0,
                'segmentation': code,
            }
        )
    return annotations


def _coco(records: list[dict[str, Any]], settings: ShapeSettings) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, start=1):
        images.append(
            {'id': image_id, 'file_name': record['file_name'], 'width': settings.width, 'height': settings.height}
        )
        for annotation in record['annotations']:
            annotations.append({'id': len(annotations) + 1, 'image_id': image_id, **annotation})
    return {
        'info': {'description': 'textured shapes, generated'},
        'images': images,
        'annotations': annotations,
        'categories': [{'id': i, 'name': name} for i, name in enumerate(SHAPE_CLASSES, start=1)],
    }


def _write_json(path: Path, content: Any) -> None:
    replace_file(path, json.dumps(content))
