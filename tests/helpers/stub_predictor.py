"""A predictor without a model, for the tests of what is done with predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine import Config

from addp_backbone.datasets.palette import class_palette
from addp_backbone.files.run_length import encode_mask
from addp_backbone.predict.class_info import ClassInfo
from addp_backbone.predict.detections import Detections

CLASSES = ClassInfo(('disc', 'box'), tuple(class_palette(2)))


class StubPredictor:
    """Predicts one disc as large as the image; fails where the upper left pixel is black."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        leaf = folder / 'leaf.py'
        leaf.write_text('model = dict()\ntest_dataloader = dict(dataset=dict(pipeline=[]))\n')
        self.config, self.checkpoint = Config.fromfile(leaf), folder / 'weights.pth'
        self.checkpoint.write_bytes(b'weights')
        self.classes, self.score_thr, self.max_per_img = CLASSES, 0.3, 100
        self.tiles, self.allow_urls = None, False
        self.seen: list[str] = []
        self.__dict__.update(changes)

    def predict_pixels(self, pixels: np.ndarray, path: str) -> Detections:
        self.seen.append(Path(path).name)
        if not pixels[0, 0].any():
            raise RuntimeError('out of memory')
        height, width = pixels.shape[:2]
        mask = encode_mask(np.ones((height, width), bool))
        box = np.array([[0, 0, width, height]], np.float32)
        scores, labels = np.ones(1, np.float32), np.zeros(1, np.int64)
        return Detections(width, height, box, scores, labels, [mask], CLASSES, at_limit=self.max_per_img == 1)
