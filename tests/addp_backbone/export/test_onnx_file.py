"""The packages that writing a file needs; the files themselves are tested in tests/long/test_onnx.py."""

from __future__ import annotations

import pytest

from addp_backbone.export import onnx_file
from addp_backbone.export.plan import ExportError


def test_a_missing_package_is_named_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, 'PACKAGES', ('torch', 'surely_not_installed'))
    with pytest.raises(ExportError, match='export needs surely_not_installed: pip install'):
        onnx_file.check_packages()
