"""From a config and a checkpoint to an ONNX file, and back to the model for a comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.model import BaseTTAModel

from addp_backbone.export.build import plan_export
from addp_backbone.export.comparison import Comparison, Difference
from addp_backbone.export.evaluation import evaluate_onnx
from addp_backbone.export.latency import Timing, compare_latency
from addp_backbone.export.onnx_file import check_packages, write_onnx
from addp_backbone.export.onnx_model import OnnxModel
from addp_backbone.export.plan import ExportError, Plan
from addp_backbone.export.preprocessing import describe_preprocessing
from addp_backbone.predict.predictor import Predictor
from addp_backbone.predict.sources import find_images


def export_model(
    config: str,
    checkpoint: str,
    out: str | Path,
    part: str = 'model',
    size: Sequence[int] | None = None,
    check: Sequence[str] = (),
) -> Plan:
    """Writes a trained model as an ONNX file.

    Args:
        config: Config file of the training run.
        checkpoint: Its checkpoint, or the work dir.
        out: The ONNX file.
        part: 'model', 'neck' (backbone and neck) or 'backbone'.
        size: Fixed height and width in pixels; None = free where the model allows it.
        check: Images that will be compared on; looked for before the work starts.

    Returns:
        What was exported.

    Raises:
        ExportError: If packages are missing or the model cannot be exported as asked.
        ValueError: If config, checkpoint or images cannot be used.
    """
    check_packages()
    if check:
        find_images(check)
    plan = _plan(Predictor(config, checkpoint, device='cpu'), part, size)
    write_onnx(plan, out)
    return plan


def _plan(predictor: Predictor, part: str = 'model', size: Sequence[int] | None = None) -> Plan:
    """The plan of a predictor's model, described by its config."""
    if isinstance(predictor.model, BaseTTAModel):
        raise ExportError(
            'the config averages several views of an image: export the one without test-time augmentation'
        )
    described = describe_preprocessing(predictor.config, predictor.model)
    described['classes'] = list(predictor.classes.names)
    return plan_export(predictor.model, part, size, described)


def check_model(
    config: str, checkpoint: str, onnx_file: str | Path, images: Sequence[str]
) -> Iterator[tuple[Path, list[Difference]]]:
    """Compares an exported file with the model on photographs.

    Args:
        config: Config file of the training run.
        checkpoint: Its checkpoint, or the work dir.
        onnx_file: The exported file.
        images: Files, folders or glob patterns.

    Yields:
        Each image's path and its differences.
    """
    if not images:
        return
    comparison = Comparison(Predictor(config, checkpoint, score_thr=0.0, device='cpu'), OnnxModel(onnx_file))
    for path in find_images(images):
        yield path, comparison.of_image(path)


def evaluate_model(config: str, checkpoint: str, onnx_file: str | Path) -> dict[str, float]:
    """Tests an exported file on the config's test data; arguments as in :func:`check_model`.

    Returns:
        Metric -> value, as ``tools/test.py`` reports them for the checkpoint.
    """
    predictor = Predictor(config, checkpoint, device='cpu')
    return evaluate_onnx(predictor.config, predictor.model.data_preprocessor, OnnxModel(onnx_file))


def time_model(
    config: str, checkpoint: str, image: str, size: Sequence[int] | None = None, num_threads: int = 0, repeats: int = 20
) -> tuple[Sequence[int], list[Timing]]:
    """Times a model on the CPU, in torch and exported.

    Args:
        config: Config file of the training run.
        checkpoint: Its checkpoint, or the work dir.
        image: Photograph.
        size: See :func:`export_model`.
        num_threads: Of the CPU; 0 = all cores.
        repeats: Timed calls of each way.

    Returns:
        Shape of the input, and the timings.

    Raises:
        ExportError: As :func:`export_model`.
    """
    check_packages()
    find_images([image])
    if num_threads:
        torch.set_num_threads(num_threads)
    predictor = Predictor(config, checkpoint, device='cpu')
    plan = _plan(predictor, 'model', size)
    with tempfile.TemporaryDirectory() as folder:
        onnx_model = OnnxModel(write_onnx(plan, Path(folder) / 'model.onnx'), num_threads)
        images, samples = Comparison(predictor, onnx_model).prepare(image)
        return images.shape, compare_latency(predictor.model, plan, onnx_model, images, samples, repeats)
