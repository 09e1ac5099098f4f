"""What an evaluation found in each image, as one ``.npz``: several measures, each with arrays of its own."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from addp_backbone.files.atomic import replace_file

_SEPARATOR = '.'


def write_image_results(path: str | Path, measures: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    """Writes the arrays of some measures.

    Args:
        path: The file.
        measures: Name without a dot -> name -> array.
    """
    buffer = io.BytesIO()
    flat = {f'{measure}{_SEPARATOR}{name}': a for measure, arrays in measures.items() for name, a in arrays.items()}
    np.savez_compressed(buffer, **flat)  # type: ignore[arg-type]
    replace_file(path, buffer.getvalue())


def read_image_results(path: str | Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Reads what :func:`write_image_results` wrote.

    Raises:
        ValueError: If it cannot be read.
    """
    measures: dict[str, dict[str, NDArray[Any]]] = {}
    try:
        with np.load(path) as file:
            for key in file.files:
                measure, _, name = key.partition(_SEPARATOR)
                measures.setdefault(measure, {})[name] = file[key]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f'{path} holds no results of images, which `tools/test.py --per-image` writes: {error}'
        ) from error
    return measures
