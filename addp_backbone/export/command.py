"""From a config and a checkpoint to an ONNX file, and back to the model for a comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.model import BaseTTAModel

from addp_backbone.export.build import plan_export
from addp_backbone.export.comparison import Comparison, Difference, largest
from addp_backbone.export.evaluation import evaluate_onnx
from addp_backbone.export.latency import Timing, compare_latency, measure
from addp_backbone.export.onnx_file import check_packages, write_onnx
from addp_backbone.export.onnx_model import OnnxModel
from addp_backbone.export.plan import ExportError, Plan
from addp_backbone.export.precision import annotate, describe_loss, reduce_precision
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
    precision: str = 'fp32',
) -> Plan:
    """Writes a trained model as an ONNX file.

    Args:
        config: Config file of the training run.
        checkpoint: Its checkpoint, or the work dir.
        out: The ONNX file.
        part: 'model', 'neck' (backbone and neck) or 'backbone'.
        size: Fixed height and width in pixels; None = free where the model allows it.
        check: Images that will be compared on; looked for before the work starts.
        precision: 'fp32', or for a smaller file 'fp16' or 'int8', see
            :func:`addp_backbone.export.precision.reduce_precision`. Their loss is measured on ``check`` and written
            into the metadata.

    Returns:
        What was exported.

    Raises:
        ExportError: If packages are missing or the model cannot be exported as asked; if a loss cannot be measured, as
            no images are given.
        ValueError: If config, checkpoint or images cannot be used.
    """
    check_packages()
    num_images = len(find_images(check)) if check else 0
    if precision != 'fp32' and not num_images:
        raise ExportError(
            f'{precision} changes the results: give photographs to --check, on which the loss is measured'
        )
    plan = _plan(Predictor(config, checkpoint, device='cpu'), part, size)
    out = Path(out)
    if precision == 'fp32':
        write_onnx(plan, out)
        return plan
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as folder:
        reduced = Path(folder) / out.name
        reduce_precision(write_onnx(plan, Path(folder) / 'fp32.onnx'), reduced, precision)
        found = largest(one for _, found in check_model(config, checkpoint, reduced, check) for one in found)
        annotate(reduced, dict(precision=precision, loss=describe_loss(found, num_images)))
        reduced.replace(out)
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
    config: str,
    checkpoint: str,
    image: str,
    size: Sequence[int] | None = None,
    num_threads: int = 0,
    repeats: int = 20,
    precisions: Sequence[str] = (),
) -> tuple[Sequence[int], list[Timing]]:
    """Times a model on the CPU, in torch and exported.

    Args:
        config: Config file of the training run.
        checkpoint: Its checkpoint, or the work dir.
        image: Photograph.
        size: See :func:`export_model`.
        num_threads: Of the CPU; 0 = all cores.
        repeats: Timed calls of each way.
        precisions: Of smaller files, 'fp16' or 'int8', that are timed besides.

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
        file = write_onnx(plan, Path(folder) / 'model.onnx')
        onnx_model = OnnxModel(file, num_threads)
        images, samples = Comparison(predictor, onnx_model).prepare(image)
        timings = compare_latency(predictor.model, plan, onnx_model, images, samples, repeats)
        arrays = images.numpy()
        sizes = [tuple(sample.img_shape[:2]) for sample in samples] if plan.with_sizes else None
        for precision in precisions:
            smaller = Path(folder) / f'{precision}.onnx'
            reduce_precision(file, smaller, precision)
            run = partial(OnnxModel(smaller, num_threads).run, arrays, sizes)
            timings.append(measure(f'onnxruntime, {precision}', run, repeats))
        return images.shape, timings
