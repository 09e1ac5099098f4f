"""Smaller files: what is converted, what is noted, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from addp_backbone.export.command import export_model
from addp_backbone.export.comparison import Difference
from addp_backbone.export.plan import ExportError
from addp_backbone.export.precision import annotate, describe_loss, reduce_precision

onnx = pytest.importorskip('onnx', reason='export needs onnx (extra [export])')
onnxruntime = pytest.importorskip('onnxruntime', reason='export needs onnxruntime (extra [export])')
WEIGHT = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)


def write(path: Path, weight: np.ndarray = WEIGHT) -> Path:
    """A file that multiplies by a matrix and adds a vector."""
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node('MatMul', ['x', 'weight'], ['z']), make.make_node('Add', ['z', 'bias'], ['y'])],
        'g',
        [make.make_tensor_value_info('x', onnx.TensorProto.FLOAT, ['n', 64])],
        [make.make_tensor_value_info('y', onnx.TensorProto.FLOAT, ['n', 48])],
        [onnx.numpy_helper.from_array(weight, 'weight'), onnx.numpy_helper.from_array(weight[0] / 3, 'bias')],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid('', 18)], ir_version=9)
    make.set_model_props(model, {'task': '"features"'})
    onnx.save(model, path)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    assert session.get_modelmeta().custom_metadata_map['task'] == '"features"'
    return session.run(None, {'x': x})[0]


def test_weights_in_16_bits_are_rounded_and_products_are_not(tmp_path: Path) -> None:
    source, target = write(tmp_path / 'a.onnx'), tmp_path / 'b.onnx'
    reduce_precision(source, target, 'fp16')
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    wanted = x @ WEIGHT.astype(np.float16).astype(np.float32) + WEIGHT[0] / 3
    np.testing.assert_allclose(run(target, x), wanted, rtol=1e-5, atol=1e-5)
    assert target.stat().st_size < 0.6 * source.stat().st_size


def test_weights_that_16_bits_cannot_hold_stay(tmp_path: Path) -> None:
    large = WEIGHT * 1e6
    reduce_precision(write(tmp_path / 'a.onnx', large), tmp_path / 'b.onnx', 'fp16')
    x = np.eye(64, dtype=np.float32)
    np.testing.assert_allclose(run(tmp_path / 'b.onnx', x), large + large[0] / 3, rtol=1e-6)


def test_products_in_8_bits_are_near(tmp_path: Path) -> None:
    source, target = write(tmp_path / 'a.onnx'), tmp_path / 'b.onnx'
    reduce_precision(source, target, 'int8')
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    wanted = run(source, x)
    difference = np.abs(run(target, x) - wanted).max() / np.abs(wanted).max()
    assert 1e-4 < difference < 0.03 and target.stat().st_size < 0.5 * source.stat().st_size
    assert {node.domain for node in onnx.load(target).graph.node} == {''}, 'standard operators'


def test_what_was_measured_is_noted_beside_what_stands_there(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.onnx')
    annotate(path, dict(precision='int8', loss=describe_loss([Difference('boxes', 0.25, 0.5, 'px')], 3)))
    noted = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert noted == dict(
        task='features',
        precision='int8',
        loss=dict(images=3, differences=[dict(name='boxes', value=0.25, unit='px')]),
    )
    assert [file.name for file in tmp_path.iterdir()] == ['a.onnx']


def test_another_precision_and_files_with_weights_beside_them_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.onnx')
    with pytest.raises(ExportError, match="precision is 'fp8', wanted one of fp16, int8"):
        reduce_precision(path, tmp_path / 'b.onnx', 'fp8')
    (tmp_path / 'a.onnx.data').write_bytes(b'')
    with pytest.raises(ExportError, match='in fp32 only, not in int8'):
        reduce_precision(path, tmp_path / 'b.onnx', 'int8')


def test_a_loss_that_nothing_measures_is_refused_before_the_model_is_read() -> None:
    with pytest.raises(ExportError, match='int8 changes the results: give photographs to --check'):
        export_model('no.py', 'no.pth', 'a.onnx', precision='int8')
