"""Exported files, run by onnxruntime: equal to the models at several sizes and batch sizes, and described."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_configs import REPOSITORY
from small_exports import batch, build, samples, save, write_detector, write_segmentor
from torch import nn

from addp_backbone.export.build import plan_export
from addp_backbone.export.comparison import Comparison, Difference
from addp_backbone.export.onnx_file import OPSET, PACKAGES, write_onnx
from addp_backbone.export.onnx_model import ArrayDetections, OnnxModel
from addp_backbone.networks.timm_vit import TimmViT

MAIN, LATENCY = (runpy.run_path(str(REPOSITORY / 'tools' / f'{name}.py'))['main'] for name in ('export', 'latency'))
ALLOWED = ('numpy', 'onnxruntime', 'PIL')
BLOCKED = ('torch', 'addp_backbone', 'mmdet', 'mmseg', 'mmcv', 'mmengine', 'cv2', 'torchvision', 'timm', 'onnx')


class Given:
    """What a comparison wants of a predictor."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.pipeline = model, None


@pytest.fixture(scope='module')
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('photographs') / 'a.png'
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(noise).resize((120, 90), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope='module', autouse=True)
def _packages() -> None:
    for name in PACKAGES:
        pytest.importorskip(name, reason=f'export needs {name} (extra [export])')


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory, photograph: Path) -> Iterator[tuple[nn.Module, Path]]:
    """A detector and its file, written by the command with a check on a photograph."""
    config = write_detector(tmp_path_factory.mktemp('detector'))
    file = config.with_suffix('.onnx')
    assert MAIN([str(config), str(save(config)), str(file), '--check', str(photograph)]) == 0
    yield build(config), file


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory: pytest.TempPathFactory, photograph: Path) -> Iterator[tuple[nn.Module, Path]]:
    config = write_segmentor(tmp_path_factory.mktemp('segmentor'))
    file = config.with_suffix('.onnx')
    assert MAIN([str(config), str(save(config)), str(file), '--check', str(photograph)]) == 0
    yield build(config), file


def assert_small(differences: list[Difference]) -> None:
    assert differences and not any(difference.too_large for difference in differences), list(map(str, differences))


@pytest.mark.parametrize(('number', 'height', 'width'), [(1, 96, 96), (3, 64, 128), (2, 32, 32)])
def test_a_detector_finds_the_same_at_any_size_in_any_batch(
    detector: tuple[nn.Module, Path], number: int, height: int, width: int
) -> None:
    model, file = detector
    images, sizes = batch(number, height, width)
    differences = Comparison(Given(model), OnnxModel(file)).of_batch(images, samples(sizes, (height, width)))
    assert {difference.name for difference in differences} == {'boxes', 'scores', 'unmatched', 'masks'}
    assert_small(differences)


@pytest.mark.parametrize(('number', 'height', 'width'), [(1, 32, 32), (3, 41, 75)])
def test_a_segmentor_gives_the_same_class_map_at_any_size_in_any_batch(
    segmentor: tuple[nn.Module, Path], number: int, height: int, width: int
) -> None:
    model, file = segmentor
    images, _ = batch(number, height, width)
    whole = samples([(height, width)] * number, (height, width))
    assert_small(Comparison(Given(model), OnnxModel(file)).of_batch(images, whole))


def test_a_file_describes_itself_and_nothing_of_the_machine(detector: tuple[nn.Module, Path]) -> None:
    about = OnnxModel(detector[1]).description
    assert about['classes'] == ['disc', 'box', 'wedge'] and about['task'] == 'detection' and about['channels'] == 'RGB'
    assert (about['longest'], about['shortest'], about['multiple'], about['opset']) == (96, 96, 32, 18)
    np.testing.assert_allclose(about['mean'], [123.675, 116.28, 103.53], rtol=1e-6)
    content = detector[1].read_bytes()
    assert str(REPOSITORY).encode() not in content and b'site-packages' not in content


def test_only_standard_operators_are_used(detector: tuple[nn.Module, Path]) -> None:
    import onnx

    model = onnx.load(detector[1])
    assert {node.domain for node in model.graph.node} <= {''} and not model.functions
    assert {'NonMaxSuppression', 'RoiAlign'} <= {node.op_type for node in model.graph.node}


def test_predictions_are_those_of_the_model(
    detector: tuple[nn.Module, Path], segmentor: tuple[nn.Module, Path], photograph: Path
) -> None:
    from addp_backbone.predict.predictor import Predictor

    with Image.open(photograph) as image:
        found = OnnxModel(detector[1])(image)
        class_map = OnnxModel(segmentor[1])(image)
    assert isinstance(found, ArrayDetections) and found.masks is not None and len(found.boxes)
    config = segmentor[1].with_suffix('.py')
    wanted = Predictor(config, config.with_suffix('.pth'), device='cpu')(photograph).label_map
    assert (
        class_map.shape == (90, 120) and np.mean(class_map != wanted) < 0.02
    )  # OpenCV rounds resized pixels otherwise


def test_the_example_of_the_documentation_runs_without_our_packages(
    detector: tuple[nn.Module, Path], segmentor: tuple[nn.Module, Path], photograph: Path, tmp_path: Path
) -> None:
    page = (REPOSITORY / 'docs/export.md').read_text(encoding='utf-8')
    example, mask_example = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    assert set(re.findall(r'^(?:import|from) (\w+)', example, re.MULTILINE)) - {'json', 'sys'} == set(ALLOWED)
    block = f'import sys\nsys.modules.update(dict.fromkeys({BLOCKED}))\n'
    paste = 'if about["task"] == "detection":\n    i = 0\n' + re.sub('^', '    ', mask_example, flags=re.MULTILINE)
    script = tmp_path / 'example.py'
    script.write_text(block + example + paste + '\n    print("mask", int(mask.sum()))\n', encoding='utf-8')
    with Image.open(photograph) as image:
        found, class_map = OnnxModel(detector[1])(image), OnnxModel(segmentor[1])(image)
    lines = run_example(script, detector[1], photograph)
    best = [float(value) for value in lines[0].split()[1:]]
    np.testing.assert_allclose(best, [found.scores[0], *found.boxes[0]], atol=0.06)
    assert len(lines) == len(found.boxes) + 1 and abs(int(lines[-1].split()[1]) - int(found.masks[0].sum())) <= 2
    shares = [float(line.split()[1]) for line in run_example(script, segmentor[1], photograph)]
    np.testing.assert_allclose(shares, np.bincount(class_map.ravel(), minlength=3) / class_map.size, atol=0.002)


def run_example(script: Path, file: Path, photograph: Path) -> list[str]:
    done = subprocess.run([sys.executable, script, file, photograph], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class TimmModel(nn.Module):
    """A backbone of timm with windows and another stride."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        options = dict(img_size=64, window_size=3, global_attn_indices=[1], out_indices=(1,), stride=32)
        self.backbone = TimmViT('test_vit', **options)


def test_a_timm_backbone_gives_the_same_maps_in_onnxruntime_in_any_batch(tmp_path: Path) -> None:
    model = TimmModel().eval()
    plan = plan_export(model, 'backbone', (128, 160))
    file = OnnxModel(write_onnx(plan, tmp_path / 'timm.onnx'))
    assert (file.description['fixed_size'], file.description['opset']) == ([128, 160], OPSET)
    (difference,) = Comparison(Given(model), file).of_batch(torch.randn(3, 3, 128, 160), [])
    assert difference.name == 'map_0' and not difference.too_large, difference
    assert [path.name for path in tmp_path.iterdir()] == ['timm.onnx']


def test_a_difference_that_is_too_large_ends_the_command_with_1(
    segmentor: tuple[nn.Module, Path],
    photograph: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = segmentor[1].with_suffix('.py')
    other = torch.load(config.with_suffix('.pth'))
    other['state_dict']['decode_head.conv_seg.weight'] *= -1
    checkpoint = config.with_name('other.pth')
    torch.save(other, checkpoint)
    module = sys.modules[MAIN.__globals__['export_model'].__module__]
    monkeypatch.setitem(MAIN.__globals__, 'export_model', lambda *args: plan_export(segmentor[0]))
    assert module.__name__ == 'addp_backbone.export.command'
    assert MAIN([str(config), str(checkpoint), str(segmentor[1]), '--check', str(photograph)]) == 1
    assert 'differs from the model on 1 of 1 images' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['detector', 'segmentor'])
def test_a_model_is_timed_in_one_table(
    name: str,
    request: pytest.FixtureRequest,
    photograph: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, 'which', lambda program: None)  # compiling takes minutes
    config = request.getfixturevalue(name)[1].with_suffix('.py')
    arguments = [str(config), str(config.with_suffix('.pth')), str(photograph), '--threads', '1', '--repeats', '2']
    assert LATENCY([*arguments, '--precision', 'int8']) == 0
    lines = capsys.readouterr().out.splitlines()
    first, _, *rows = lines[[line.startswith('input (1, 3, ') for line in lines].index(True) :]
    assert first.endswith('1 threads, 2 calls each') and len(rows) == 6
    assert [len(re.findall(r'[0-9]+\.[0-9]', row)) for row in rows] == [3, 3, 3, 0, 3, 3]
    assert rows[-1].startswith('onnxruntime, int8')


def test_a_smaller_file_states_its_loss(
    detector: tuple[nn.Module, Path], photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = detector[1].with_suffix('.py')
    file = tmp_path / 'small.onnx'
    arguments = [str(config), str(config.with_suffix('.pth')), str(file), '--check', str(photograph)]
    assert MAIN([*arguments, '--precision', 'fp16']) == 0
    assert 'fp16, largest differences to the model on 1 images:' in capsys.readouterr().out
    about = OnnxModel(file).description
    assert about['precision'] == 'fp16' and about['loss']['images'] == 1 and about['task'] == 'detection'
    assert {one['name'] for one in about['loss']['differences']} >= {'boxes', 'scores', 'unmatched'}
    assert file.stat().st_size < 0.8 * detector[1].stat().st_size and [*tmp_path.iterdir()] == [file]
