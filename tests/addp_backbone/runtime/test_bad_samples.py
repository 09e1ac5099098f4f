"""Training goes on without samples that cannot be used, exactly, up to a limit; evaluation replaces nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from running import ToyDataset, logged_losses, run_tool, toy_config, train_toy

from addp_backbone.checkpoint.storage import read_checkpoint
from addp_backbone.runtime.bad_samples import (
    RECORD_FILE,
    BadSamplesError,
    NoSampleError,
    SubstituteBadSamples,
    substituting,
)
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.saving import BadLossError
from addp_backbone.runtime.seeding import SampleIndex, substitute_index

BAD = {1, 4}


@HOOKS.register_module(force=True)
class CreateFile(Hook):
    """Makes a file after an iteration, counted from 1."""

    def __init__(self, path: str, at: int) -> None:
        self.path, self.at = path, at

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter + 1 == self.at:
            Path(self.path).touch()


def damaged_config(work_dir: Path, *, limit: int = 5, bad: Any = BAD, **changes: Any) -> Any:
    damaged = {'train_dataloader.dataset.type': 'DamagedToyDataset', 'train_dataloader.dataset.bad': sorted(bad)}
    cfg = toy_config(work_dir, **{**damaged, **changes})
    cfg.bad_samples = dict(max_count=limit, max_share=1.0)
    cfg.randomness.seed = 3
    return cfg


def recorded(work_dir: Path, rank: int = 0) -> list[int]:
    lines = (work_dir / RECORD_FILE.format(rank)).read_text(encoding='utf-8').splitlines()
    return sorted(json.loads(line)['index'] for line in lines)


def test_the_substitute_depends_on_the_samples_seed_and_the_attempt_alone() -> None:
    first = [substitute_index(SampleIndex(2, 77), attempt, 100) for attempt in (1, 2)]
    again = [substitute_index(SampleIndex(3, 77), attempt, 100) for attempt in (1, 2)]
    assert first == again and first[0].seed == again[0].seed != first[1].seed  # type: ignore[attr-defined]
    assert first[0] != substitute_index(SampleIndex(2, 78), 1, 100)
    drawn = {int(substitute_index(SampleIndex(0, seed), 1, 10)) for seed in range(200)}
    assert drawn == set(range(10))


def test_an_index_without_a_seed_always_gets_the_same_substitute() -> None:
    assert substitute_index(5, 1, 1000) == substitute_index(5, 1, 1000) != substitute_index(6, 1, 1000)


def test_a_resumed_run_draws_the_substitutes_of_the_unbroken_one_with_any_number_of_workers(tmp_path: Path) -> None:
    unbroken = train_toy(damaged_config(tmp_path / 'unbroken'))
    workers = {'train_dataloader.num_workers': 2}
    with pytest.raises(BadLossError):  # in iteration 4; iteration 3 is repeated
        train_toy(damaged_config(tmp_path / 'resumed', **workers, **{'model.bad_from': 4}))
    resumed = train_toy(damaged_config(tmp_path / 'resumed', **workers), resume='auto')
    assert logged_losses(tmp_path / 'resumed') == logged_losses(tmp_path / 'unbroken')
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.long
def test_bad_samples_are_named_once_in_log_and_file_whatever_the_number_of_workers_and_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for num_workers in (2, 0):
        train_toy(damaged_config(tmp_path, **{'train_dataloader.num_workers': num_workers}))
        output = ''.join(capfd.readouterr())
        for index in BAD:
            assert output.count(f'training sample {index}, number {index}, cannot be used (OSError: sample') == 1
        assert recorded(tmp_path) == sorted(BAD)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_above_the_limit_the_run_saves_and_ends_and_goes_on_after_the_repair(num_workers: int, tmp_path: Path) -> None:
    changes = {'train_dataloader.num_workers': num_workers, 'default_hooks.checkpoint.interval': 100}
    with pytest.raises(BadSamplesError, match=r'2 of the 7 .*allowed are 1 .*max_count=1.*saved iter_\d\.pth'):
        train_toy(damaged_config(tmp_path, limit=1, **changes))
    (saved,) = tmp_path.glob('iter_*.pth')
    assert read_checkpoint(saved)['meta']['iter'] == int(saved.stem[5:]) < 6
    assert train_toy(damaged_config(tmp_path, limit=1, bad=(), **changes), resume='auto').iter == 6


def test_where_all_samples_vanish_the_iterations_before_are_saved(tmp_path: Path) -> None:
    gone: dict[str, Any] = dict(bad=(), **{'train_dataloader.dataset.gone_file': str(tmp_path / 'gone')})
    remove = dict(type='CreateFile', path=str(tmp_path / 'gone'), at=3)
    with pytest.raises(NoSampleError, match=r'no substitute was found in 50 attempts.*saved iter_3\.pth'):
        train_toy(damaged_config(tmp_path / 'run', limit=100, custom_hooks=[remove], **gone))
    (tmp_path / 'gone').unlink()
    train_toy(damaged_config(tmp_path / 'run', **gone), resume='auto')
    train_toy(damaged_config(tmp_path / 'unbroken', **gone))
    assert logged_losses(tmp_path / 'run') == logged_losses(tmp_path / 'unbroken')


def test_a_fault_of_config_or_code_is_no_bad_sample() -> None:
    class Broken(ToyDataset):
        def prepare_data(self, idx: int) -> Any:
            return undefined_name  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(NameError):
        SubstituteBadSamples(Broken(pipeline=[]))[0]


@pytest.mark.parametrize(
    ('size', 'settings', 'limit'),
    [
        (118_000, {}, 100),
        (5000, {}, 50),
        (20, {}, 1),
        (20, dict(max_share=0.5), 10),
        (20, dict(max_count=0), 0),
        (20, dict(max_share=0.0), 0),
    ],
)
def test_the_smaller_limit_counts_and_a_small_data_set_may_have_one_bad_sample(
    size: int, settings: dict[str, Any], limit: int
) -> None:
    assert SubstituteBadSamples(range(size), **settings).bad_samples.limit == limit  # type: ignore[arg-type]


def test_misspelt_and_impossible_limits_are_refused() -> None:
    loader = dict(dataset=dict(type='ToyDataset'))
    with pytest.raises(LaunchError, match='bad_samples has max_counts, wanted max_count and max_share'):
        substituting(loader, dict(max_counts=3))
    with pytest.raises(LaunchError, match=r'max_share=2\.0, wanted 0 or more, and 0 to 1'):
        SubstituteBadSamples(range(3), max_share=2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize('task', [pytest.param('det', marks=pytest.mark.long), 'seg'])
def test_detection_and_segmentation_train_past_a_truncated_image_and_a_missing_mask_but_refuse_to_evaluate(
    task: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue(f'tiny_{task}_config')
    data = shutil.copytree(request.getfixturevalue('tiny_coco' if task == 'det' else 'tiny_ade'), tmp_path / 'data')
    training, validation = ('train2017', 'val2017') if task == 'det' else ('images/training', 'images/validation')
    first, second = sorted((data / training).glob('*.jpg'))[:2]
    first.write_bytes(first.read_bytes()[:300])
    (second if task == 'det' else data / 'annotations/training' / f'{second.stem}.png').unlink()
    root = f'{data}/' if task == 'det' else str(data)
    options = [f'{split}_dataloader.dataset.data_root={root}' for split in ('train', 'val', 'test')]
    options += ['bad_samples.max_share=1.0', 'train_cfg.max_iters=6', 'log_level=CRITICAL']
    run_tool('train', config, '--work-dir', tmp_path / 'run', options=tuple(options))
    assert recorded(tmp_path / 'run') == [0, 1]
    (tmp_path / 'run' / RECORD_FILE.format(0)).unlink()
    resumed = ('train', config, '--work-dir', tmp_path / 'resumed', '--resume', tmp_path / 'run/iter_4.pth')
    run_tool(*resumed, options=tuple(options))
    expected, got = logged_losses(tmp_path / 'run'), logged_losses(tmp_path / 'resumed')
    assert list(got) == [5, 6] and got == {iteration: expected[iteration] for iteration in got}
    next((data / validation).glob('*.jpg')).write_bytes(b'no image')
    with pytest.raises(OSError, match='is not an image'):
        run_tool('test', config, tmp_path / 'run/iter_6.pth', '--work-dir', tmp_path / 'test', options=tuple(options))
