"""Writing an ONNX file: traced, optimised, described, loaded once by onnxruntime, and only then put in place."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from addp_backbone.export.onnx_ops import translations
from addp_backbone.export.plan import ExportError, Plan

OPSET = 18  # the lowest with antialiased Resize and reductions in ScatterND; torch's exporter is written for it
PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
LARGEST_FILE_BYTES = 1_900_000_000  # protobuf ends at 2 GiB; larger weights go into a second file


def check_packages() -> None:
    """Refuses to start where a package is missing.

    Raises:
        ExportError: With the command that installs them.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"export needs {', '.join(missing)}: pip install {' '.join(PACKAGES)} (or the project's extra [export])"
        )


def write_onnx(plan: Plan, path: str | Path) -> Path:
    """Exports a plan.

    Args:
        plan: What to export.
        path: The file; folders are made. Weights of more than 1.9 GB go into ``path`` + ``.data`` beside it.

    Returns:
        The path.

    Raises:
        ExportError: If packages are missing, the graph cannot be traced, or onnxruntime refuses the file.
    """
    check_packages()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    program = _trace(plan)
    _describe(program.model, plan)
    num_bytes = sum(tensor.nbytes for tensor in plan.graph.state_dict().values())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}.') as folder:
        draft = Path(folder) / path.name
        program.save(str(draft), external_data=num_bytes > LARGEST_FILE_BYTES)
        _load(draft)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):  # the model itself last
            file.replace(path.with_name(file.name))
    return path


def _trace(plan: Plan) -> Any:
    try:
        with torch.no_grad(), _quiet():
            traced = torch.export.export(plan.graph, plan.example(), dynamic_shapes=plan.dynamic_shapes(), strict=False)
            program = torch.onnx.export(
                traced,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(plan.inputs),
                output_names=list(plan.outputs),
                custom_translation_table=translations(),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        raise ExportError(f'the graph cannot be exported: {_first_line(error)}') from error
    return program


def _describe(model: Any, plan: Plan) -> None:
    """Replaces what the exporter notes about this machine's source files by the plan's description."""
    for nodes in (model.graph, *model.functions.values()):
        for node in nodes:
            node.metadata_props.clear()
            node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name, model.producer_name, model.producer_version = 'addp', 'addp-transfer', _version()
    model.metadata_props.clear()
    description = dict(plan.metadata, opset=model.opset_imports[''], outputs=plan.outputs)
    model.metadata_props.update({name: json.dumps(value) for name, value in description.items()})


def _version() -> str | None:
    try:
        return importlib.metadata.version('addp-transfer')
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return None


def _load(path: Path) -> None:
    import onnxruntime

    try:
        onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    except Exception as error:  # its errors have no common class
        raise ExportError(f'onnxruntime refuses the exported graph: {_first_line(error)}') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about its own internals."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'torch.export', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    """What an error, or the first of those that led to it, says in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'
