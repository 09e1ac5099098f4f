"""What is done in numpy and Pillow behind a segmentor's file: by our class and by the listing of the documentation."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_configs import REPOSITORY
from torch.nn import functional as F

from addp_backbone.export.onnx_model import class_map_of

LISTING = re.findall(r'```python\n(.*?)```', (REPOSITORY / 'docs/export.md').read_text(encoding='utf-8'), re.DOTALL)[0]
ABOUT = dict(
    task='segmentation', classes=['disc', 'box', 'wedge'], longest=64, shortest=48, multiple=1, smallest=(32, 32),
    mean=(120.0, 115.0, 105.0), std=(58.0, 57.0, 57.5),
)  # fmt: skip


def expected(logits: np.ndarray, size: tuple[int, int], image_size: tuple[int, int]) -> np.ndarray:
    """As mmseg does it: bilinear without antialiasing, then the largest."""
    layers = torch.from_numpy(logits)[None, :, : size[0], : size[1]]
    return F.interpolate(layers, image_size[::-1], mode='bilinear')[0].argmax(dim=0).numpy()


@pytest.mark.parametrize('image_size', [(20, 15), (33, 9), (101, 80)], ids=['smaller', 'flat', 'larger'])
def test_the_documentations_listing_gives_mmsegs_class_map_for_images_of_any_size(
    image_size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}

    def run(names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        shape = (1, 3, *inputs['images'].shape[2:])
        found['logits'] = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        return [found['logits']]

    metadata = {name: json.dumps(value) for name, value in ABOUT.items()}
    session = SimpleNamespace(get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=metadata), run=run)
    monkeypatch.setitem(sys.modules, 'onnxruntime', SimpleNamespace(InferenceSession=lambda path: session))
    Image.new('RGB', image_size).save(tmp_path / 'a.png')
    monkeypatch.setattr(sys, 'argv', ['segment.py', 'model.onnx', str(tmp_path / 'a.png')])
    names: dict[str, Any] = {}
    exec(compile(LISTING, 'listing', 'exec'), names)
    wanted = expected(found['logits'][0], (names['h'], names['w']), image_size)
    assert (names['class_map'] != wanted).mean() <= 1e-3
    assert np.array_equal(names['class_map'], class_map_of(found['logits'][0], (names['h'], names['w']), image_size))


def test_a_class_map_of_over_256_classes_keeps_their_numbers() -> None:
    logits = np.zeros((300, 4, 4), np.float32)
    logits[299, :, 2:] = 1
    class_map = class_map_of(logits, (4, 4), (4, 4))
    assert class_map.dtype == np.uint16 and class_map[:, :2].max() == 0 and (class_map[:, 2:] == 299).all()


@pytest.mark.parametrize('longest', [None, 64])
def test_the_command_says_where_the_metadata_cannot_describe_the_preprocessing(
    longest: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(REPOSITORY / 'tools/export.py'))['main']
    plan = SimpleNamespace(inputs=['images'], outputs=['logits'], sizes='any', metadata=dict(ABOUT, longest=longest))
    monkeypatch.setitem(main.__globals__, 'export_model', lambda *arguments: plan)
    assert main(['config.py', 'work_dir', 'out.onnx']) == 0
    assert ('the metadata lack resizing' in capsys.readouterr().err) == (longest is None)
