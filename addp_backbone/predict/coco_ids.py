"""The ids that COCO results need: those of the data set's annotation file, so that its evaluation takes them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine import Config

from addp_backbone.datasets.coco_file import load_coco
from addp_backbone.predict.web import is_url

Identifier = int | str


class CocoIds:
    """Image and category ids.

    Args:
        categories: The category id of each class, in the model's order.
        images: Path -> id of the data set's images; others get numbers behind the largest.
    """

    def __init__(self, categories: Sequence[Identifier], images: Mapping[Path, Identifier] | None = None) -> None:
        self.categories = list(categories)
        self.images = {_name(str(path)): key for path, key in (images or {}).items()}
        self._targets: dict[str, Identifier] = {}  # where links lead; several images may be links to one file
        for path, key in (images or {}).items():
            self._targets.setdefault(str(path.resolve()), key)
        self._next = max([0, *(key for key in self.images.values() if isinstance(key, int))]) + 1

    @classmethod
    def of_config(cls, cfg: Config, classes: Sequence[str]) -> CocoIds:
        """The ids of the annotation file of ``test_dataloader``; without one categories and images count from 1.

        Args:
            cfg: A detector's config.
            classes: Class names in the model's order.

        Raises:
            CocoError: If the file has errors, or lacks a class.
        """
        dataset = cfg.test_dataloader.dataset
        root = Path(dataset.get('data_root') or '')
        file = root / (dataset.get('ann_file') or '')
        if not file.is_file():
            return cls(range(1, len(classes) + 1))
        coco = load_coco(file, with_annotations=False)
        folder = root / ((dataset.get('data_prefix') or {}).get('img') or '')
        return cls(
            coco.class_ids(list(classes)), {folder / record['file_name']: record['id'] for record in coco.images}
        )

    def image_id(self, image: str) -> Identifier:
        """The id of an image file, a URL, or a frame (``VIDEO#NUMBER``); always the same for the same image."""
        name = _name(image)
        key = self.images.get(name)
        if key is None and not is_url(image):
            key = self._targets.get(str(Path(image).resolve()))
        if key is None:
            key, self._next = self._next, self._next + 1
        self.images[name] = key
        return key

    def remember(self, images: Mapping[str, Identifier]) -> None:
        """Keeps ids that an earlier run gave."""
        self.images.update({_name(image): key for image, key in images.items()})
        self._next = max([self._next, *(key + 1 for key in images.values() if isinstance(key, int))])


def _name(image: str) -> str:
    """A path that does not depend on the current folder; links stay as they are. A URL as it is."""
    return image if is_url(image) else os.path.normpath(Path(image).absolute())


def table_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of ``predictions.csv`` for one image's record: an object, a class, or the error each."""
    common = {name: record[name] for name in ('file_name', 'frame', 'time_s') if name in record}
    if 'error' in record:
        return [dict(common, error=record['error'])]
    if 'objects' in record:
        return [
            common
            | {name: one[name] for name in ('category', 'label', 'score')}
            | dict(zip(('x', 'y', 'width', 'height'), one['bbox'], strict=True))
            for one in record['objects']
        ]
    if 'fractions' in record:
        return [dict(common, category=name, fraction=share) for name, share in record['fractions'].items()]
    return [dict(common, **one) for one in record['classes']]
