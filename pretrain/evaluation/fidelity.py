"""FID and IS (and KID, precision and recall) of a folder of generated images, by torch-fidelity as a library.

The published protocol needs Inception weights, which are given by path; nothing is downloaded. Another extractor can be
chosen by name; its results are then never labelled as Inception's.
"""

from __future__ import annotations

import hashlib
import platform
import time
import warnings
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from addp_backbone.checkpoint.storage import read_checkpoint
from pretrain.evaluation import feature_extractors  # noqa: F401  (registers them)
from pretrain.evaluation.image_sets import ImageSet, ImageSetDataset, protocol, protocol_mismatches

INCEPTION = 'inception-v3-compat'
INCEPTION_FILE = URL_INCEPTION_V3.rpartition('/')[2]
SEARCHED_FOLDERS = (Path('exp/pretrained_model'), Path(torch.hub.get_dir()) / 'checkpoints')
METRICS = ('fid', 'isc', 'kid', 'prc')

_ISC_SPLITS = 10
_KID_SUBSET_SIZE = 1000
_PRC_NEIGHBOURS = 3
_MANY_IMAGES = 10_000  # with more, all distances between two sets do not fit into memory
# torch-fidelity's names, which imply Inception, and the names of the same metrics with another extractor.
_GENERAL_NAMES = {
    'frechet_inception_distance': 'frechet_distance',
    'inception_score_mean': 'class_score_mean',
    'inception_score_std': 'class_score_std',
    'kernel_inception_distance_mean': 'kernel_distance_mean',
    'kernel_inception_distance_std': 'kernel_distance_std',
}


def find_inception_weights(path: Path | None = None) -> Path:
    """Finds torch-fidelity's Inception weights.

    Args:
        path: ``--inception-weights``; None looks in ``exp/pretrained_model/`` and torch's own folder.

    Raises:
        ValueError: If the file is not there; names it and its source.
    """
    candidates = [path] if path else [folder / INCEPTION_FILE for folder in SEARCHED_FOLDERS]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(
        f'the Inception weights are missing (looked for {", ".join(map(str, candidates))}). Download {INCEPTION_FILE} '
        f'from {URL_INCEPTION_V3} and give its path with --inception-weights, or choose another --feature-extractor, '
        'which does not measure FID and IS'
    )


def measure(
    generated: ImageSet,
    reference: ImageSet,
    extractor: str = INCEPTION,
    weights: Path | None = None,
    metrics: Collection[str] = METRICS,
    batch_size: int = 64,
    allow_mismatch: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """Compares generated images with reference images.

    Args:
        generated: Generated images (torch-fidelity's first input).
        reference: Reference images (its second input).
        extractor: Name of a registered feature extractor.
        weights: File of the Inception weights; see :func:`find_inception_weights`. Other extractors need none.
        metrics: A selection from :data:`METRICS`.
        batch_size: Number of images per forward pass.
        allow_mismatch: Measure even if the protocol is not followed; the result then says so.
        verbose: Whether torch-fidelity reports its progress on stderr.

    Returns:
        A dict of JSON types: ``metrics``, ``protocol``, ``feature_extractor``, ``generated``, ``reference``,
        ``options``, ``versions``, ``seconds``, ``time``.

    Raises:
        ValueError: If an option is wrong, or the protocol is not followed and that is not allowed.
    """
    if extractor not in FEATURE_EXTRACTORS_REGISTRY:
        raise ValueError(f'unknown feature extractor {extractor!r}: use one of {sorted(FEATURE_EXTRACTORS_REGISTRY)}')
    if not metrics or not set(metrics) <= set(METRICS):
        raise ValueError(f'metrics must be some of {METRICS}, got {tuple(metrics)}')
    mismatches = protocol_mismatches(generated, reference)
    described: dict[str, Any] = dict(name=extractor)
    if extractor == INCEPTION:
        weights = find_inception_weights(weights)
        described.update(weights=weights.name, weights_sha256=_checksum(weights))
        read_checkpoint(weights)  # refuses what torch-fidelity's unrestricted unpickling would execute
        mismatches += _foreign_weights(described['weights_sha256'])
    else:
        mismatches.append(f'feature extractor {extractor}, wanted {INCEPTION}')
    if mismatches and not allow_mismatch:
        raise ValueError(
            'the protocol of the published figures is not followed, so the numbers could not be compared with them:\n  '
            + '\n  '.join(mismatches)
            + '\nMend that, or give --allow-protocol-mismatch, which the result will say'
        )
    options = _options(generated, reference, metrics)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            'ignore', 'This DataLoader will create'
        )  # torch-fidelity takes four workers on any machine
        numbers = calculate_metrics(
            input1=ImageSetDataset(generated),
            input2=ImageSetDataset(reference),
            cuda=torch.cuda.is_available(),
            batch_size=1 if _mixed_sizes(generated, reference) else batch_size,
            cache=False,
            verbose=verbose,
            feature_extractor=extractor,
            feature_extractor_weights_path=str(weights) if weights else None,
            **{name: name in metrics for name in METRICS},
            **options,
        )
    return dict(
        metrics=label(numbers, extractor),
        protocol=dict(followed=not mismatches, mismatches=mismatches, wanted=protocol()),
        feature_extractor=described,
        generated=generated.describe(),
        reference=reference.describe(),
        options=options,
        versions=dict(
            python=platform.python_version(),
            **{name: version(name) for name in ('torch-fidelity', 'torch', 'numpy', 'pillow')},
        ),
        seconds=round(time.perf_counter() - began, 1),
        time=datetime.now(timezone.utc).isoformat(timespec='seconds'),
    )


def label(numbers: dict[str, float], extractor: str) -> dict[str, float]:
    """Renames metrics as :func:`name_of` does."""
    return {name_of(name, extractor): number for name, number in numbers.items()}


def name_of(metric: str, extractor: str) -> str:
    """torch-fidelity's name of a metric, or a general name and the extractor's if that is not Inception."""
    return metric if extractor == INCEPTION else f'{_GENERAL_NAMES.get(metric, metric)} ({extractor})'


def _options(generated: ImageSet, reference: ImageSet, metrics: Collection[str]) -> dict[str, Any]:
    """torch-fidelity's settings: its defaults, reduced where the sets are too small for them."""
    smaller, larger = sorted((len(generated.files), len(reference.files)))
    if 'prc' in metrics and smaller < 2:
        raise ValueError(f'precision and recall need at least 2 images in each set, got {smaller}: leave prc out')
    return dict(
        isc_splits=min(_ISC_SPLITS, len(generated.files)),
        kid_subset_size=min(_KID_SUBSET_SIZE, smaller),
        prc_neighborhood=min(_PRC_NEIGHBOURS, smaller - 1),
        save_cpu_ram='prc' in metrics and larger > _MANY_IMAGES,
    )


def _mixed_sizes(*sets: ImageSet) -> bool:
    return any(len(image_set.sizes) > 1 for image_set in sets)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _foreign_weights(checksum: str) -> Sequence[str]:
    """The mismatch if the checksum does not begin with the digits at the end of the published file's name."""
    wanted = Path(INCEPTION_FILE).stem.rpartition('-')[2]
    return (
        []
        if checksum.startswith(wanted)
        else [f'Inception weights with SHA-256 {checksum[:8]}..., wanted {INCEPTION_FILE}']
    )
