"""What a model says about an image: detections, a class map or classes, as JSON and drawn on the image.

A further task is one more class with ``from_sample``, ``to_json``, ``draw`` and ``extra_files``, and one entry in
:data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from addp_backbone.predict.class_info import ClassInfo, Prediction
from addp_backbone.predict.class_results import ClassMap, ClassRanking
from addp_backbone.predict.detections import Detections

KINDS: Mapping[str, type[Detections] | type[ClassMap] | type[ClassRanking]] = {
    kind.key: kind for kind in (Detections, ClassMap, ClassRanking)
}


def prediction_from_sample(sample: Any, classes: ClassInfo, score_thr: float) -> Prediction:
    """Wraps what a model returned for one image.

    Raises:
        ValueError: If it holds no prediction of a known kind.
    """
    for key, kind in KINDS.items():
        if key in sample:
            return kind.from_sample(sample, classes, score_thr)
    raise ValueError(
        f'the model returned {sorted(sample.keys())}, wanted one of {sorted(KINDS)}: is the config that of a '
        'detector, a segmentor or a classifier?'
    )
