"""The train.py and test.py that mmdet and mmseg package run our leaves, given nothing but our installed package."""

from __future__ import annotations

from pathlib import Path

import mmdet
import mmseg
import pytest
from stock_tools import train_and_test


@pytest.mark.parametrize(
    ('leaf', 'data', 'package', 'metric'),
    [
        ('det_configs/addp_tiny_maskrcnn.py', 'tiny_coco', mmdet, 'coco/bbox_mAP'),
        pytest.param('seg_configs/addp_tiny_upernet.py', 'tiny_ade', mmseg, 'mIoU', marks=pytest.mark.long),
    ],
    ids=['mmdet', 'mmseg'],
)
def test_stock_tools_train_two_iterations_and_test_the_checkpoint(leaf, data, package, metric, request, tmp_path: Path):
    assert metric in train_and_test(leaf, package, request.getfixturevalue(data), tmp_path)
