"""Smaller files: weights in 16 bits, or matrix products in 8 bits; what that costs is noted in the file."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from addp_backbone.export.comparison import Difference
from addp_backbone.export.plan import ExportError

PRECISIONS = ('fp32', 'fp16', 'int8')
LARGEST_INPUT_BYTES = 1_900_000_000  # a file with its weights beside it is not taken
_LEAST_ELEMENTS = 1024  # of a tensor that is worth a conversion


def reduce_precision(source: Path, target: Path, precision: str) -> None:
    """Writes a smaller file that computes nearly the same.

    ``'fp16'`` stores weights in 16 bits and computes in float32, in every runtime alike. ``'int8'`` is onnxruntime's
    dynamic quantisation of matrix products: weights in 7 bits, a scale for each output channel, as 8 bits saturate on
    processors without VNNI; activations in 8 bits, scaled as they come. Convolutions stay as they are.

    Args:
        source: An exported file in float32.
        target: The new file; the description is kept.
        precision: 'fp16' or 'int8'.

    Raises:
        ExportError: If the precision is another one, or the file is too large.
    """
    if precision not in PRECISIONS[1:]:
        raise ExportError(f'precision is {precision!r}, wanted one of {", ".join(PRECISIONS[1:])}')
    if source.with_name(f'{source.name}.data').exists() or source.stat().st_size > LARGEST_INPUT_BYTES:
        raise ExportError(f'files over 1.9 GB are exported in fp32 only, not in {precision}')
    import onnx

    if precision == 'fp16':
        model = onnx.load(source)
        _store_halves(model.graph)
        onnx.save(model, target)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # advice about a step that the exporter has done
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=['MatMul', 'Gemm'],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.root.setLevel(level)
    model = onnx.load(target)
    model.ClearField('metadata_props')
    model.metadata_props.extend(onnx.load(source).metadata_props)
    onnx.save(model, target)


def _store_halves(graph: Any) -> None:
    """Replaces large float32 weights by float16 ones and a cast; what float16 cannot hold stays as it is."""
    from onnx import TensorProto, helper, numpy_helper

    casts, kept = [], []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight) if weight.data_type == TensorProto.FLOAT else None
        if values is None or values.size < _LEAST_ELEMENTS or np.abs(values).max() > np.finfo(np.float16).max:
            kept.append(weight)
            continue
        half = f'{weight.name}_fp16'
        kept.append(numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(helper.make_node('Cast', [half], [weight.name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    graph.ClearField('initializer')
    graph.initializer.extend(kept)
    graph.ClearField('node')
    graph.node.extend(nodes)


def describe_loss(differences: Sequence[Difference], num_images: int) -> dict[str, Any]:
    """The largest differences to the model in torch, as they stand in the file's metadata.

    Args:
        differences: One of each name.
        num_images: How many photographs they are of.
    """
    return dict(
        images=num_images, differences=[dict(name=one.name, value=one.value, unit=one.unit) for one in differences]
    )


def annotate(path: Path, values: Mapping[str, Any]) -> None:
    """Adds to an exported file's metadata, atomically.

    Args:
        path: The file.
        values: Name -> value, written as JSON.
    """
    import onnx

    model = onnx.load(path)
    known = {entry.key: entry.value for entry in model.metadata_props}
    known.update({name: json.dumps(value) for name, value in values.items()})
    onnx.helper.set_model_props(model, known)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}.') as folder:
        onnx.save(model, Path(folder) / path.name)
        (Path(folder) / path.name).replace(path)
