"""The commands of docs/photos_to_onnx.md run one after the other, as they stand there, with a shorter training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_configs import REPOSITORY

PAGE, LISTING = 'docs/photos_to_onnx.md', 'docs/export.md'
SHORTER = {'--train 150 --val 40': '--train 8 --val 4', 'max_iters=150': 'max_iters=4', '=75': '=2'}


def blocks(page: str, language: str) -> list[str]:
    text = (REPOSITORY / page).read_text(encoding='utf-8')
    return re.findall(rf'```{language}\n(.*?)```', text, flags=re.DOTALL)


def test_the_page_leads_from_images_to_detections_of_the_exported_file(tmp_path: Path) -> None:
    pytest.importorskip('onnxruntime', reason='export needs onnxruntime (extra [export])')
    for name in ('tools', 'det_configs'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / 'detect.py').write_text(blocks(LISTING, 'python')[0])
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    commands = blocks(PAGE, 'bash')
    assert [re.findall(r'python (?:tools/)?(\w+)\.py', command)[0] for command in commands] == [
        *('make_shapes', 'new_dataset', 'train', 'test', 'predict', 'export', 'detect')
    ]
    for command in commands:
        for old, new in SHORTER.items():
            command = command.replace(old, new)
        environment = {**os.environ, 'PATH': path, 'OMP_NUM_THREADS': '1'}
        done = subprocess.run(
            ['bash', '-c', command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
    assert isinstance(json.loads((tmp_path / 'metrics.json').read_text()), dict), 'empty after so few iterations'
    assert len(list((tmp_path / 'predictions' / 'labelme').glob('*.json'))) == 4
