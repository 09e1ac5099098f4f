"""A stopped and resumed run continues as if it had never stopped; checkpoints survive a kill and stay good."""

from __future__ import annotations

import itertools
import pickle
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import RepeatDataset
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from running import ROOT, ToyDataset, logged_losses, run_command_line, run_tool, toy_config, train_toy

from addp_backbone.checkpoint.storage import CheckpointError, read_checkpoint
from addp_backbone.runtime.launch import use_safe_hooks
from addp_backbone.runtime.saving import BadLossError, StopOnBadLoss, find_latest_checkpoint
from addp_backbone.runtime.seeding import SampleIndex, SeedAugmentation, SeededInfiniteSampler, seed_everything


def stream(sampler: SeededInfiniteSampler, length: int) -> list[tuple[int, int]]:
    """The first samples: (index, seed)."""
    return [(int(index), index.seed) for index in itertools.islice(sampler, length)]


def test_two_ranks_together_see_what_one_process_would_see() -> None:
    one = SeededInfiniteSampler(range(7), seed=3)
    ranks = []
    for rank in range(2):
        sampler = SeededInfiniteSampler(range(7), seed=3)
        sampler.rank, sampler.world_size = rank, 2
        ranks.append(stream(sampler, 10))
    together = [sample for pair in zip(*ranks, strict=True) for sample in pair]
    assert together == stream(one, 20)


def test_every_pass_visits_every_sample_in_another_order() -> None:
    indices = [index for index, _ in stream(SeededInfiniteSampler(range(50), seed=0), 100)]
    assert sorted(indices[:50]) == sorted(indices[50:]) == list(range(50))
    assert indices[:50] != indices[50:]


def test_skipping_continues_the_stream_at_once_however_far() -> None:
    sampler = SeededInfiniteSampler(range(7), seed=1)
    whole = stream(sampler, 20)
    sampler.skip(9)
    assert stream(sampler, 11) == whole[9:]
    sampler.skip(10**15)
    assert len(stream(sampler, 1)) == 1


def test_seeding_a_sample_gives_the_draws_of_torch_manual_seed_without_visiting_other_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    seed_everything(11)
    wanted = draws()
    monkeypatch.setattr(torch, 'manual_seed', pytest.fail)
    SeedAugmentation()(dict(sample_idx=SampleIndex(0, seed=11)))
    assert draws() == wanted


def test_the_same_sample_gets_another_seed_in_the_next_pass() -> None:
    seeds = [seed for _, seed in stream(SeededInfiniteSampler(range(7), seed=1), 70)]
    assert len(set(seeds)) == 70


def test_the_seed_survives_pickling_and_data_set_wrappers() -> None:
    index = pickle.loads(pickle.dumps(SampleIndex(9, 77)))
    assert (index, index.seed) == (9, 77)
    repeated = RepeatDataset(ToyDataset(pipeline=[dict(type='SeedAugmentation'), dict(type='ToyNoise')]), times=3)
    first, second = repeated[index]['inputs'], repeated[SampleIndex(2, 77)]['inputs']
    assert torch.equal(first, second)
    assert not torch.equal(first, repeated[SampleIndex(2, 78)]['inputs'])


def test_an_empty_data_set_is_refused_with_the_options_to_look_at() -> None:
    with pytest.raises(ValueError, match=r'no samples.*data_root, ann_file'):
        SeededInfiniteSampler([], seed=0)


def test_augmentation_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    batches = []
    for num_workers in (0, 2):
        loader = toy_config(tmp_path).train_dataloader
        loader.num_workers = num_workers
        batches.append([batch['inputs'] for batch in itertools.islice(Runner.build_dataloader(loader, seed=5), 3)])
    assert all(
        torch.equal(a, b) for a, b in zip(itertools.chain(*batches[0]), itertools.chain(*batches[1]), strict=True)
    )


CASES: dict[str, dict[str, Any]] = {
    'dropout, schedule, validation': {},
    'bfloat16, a cut within a gradient accumulation': {
        'optim_wrapper.type': 'BFloat16OptimWrapper',
        'optim_wrapper.accumulative_counts': 4,
    },
    'moving average, workers, one checkpoint kept': {
        'custom_hooks': [dict(type='EMAHook', momentum=0.1)],
        'train_dataloader.num_workers': 1,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
    },
}


@pytest.mark.parametrize('case', CASES)
def test_losses_after_a_resume_equal_the_unbroken_run(case: str, tmp_path: Path) -> None:
    unbroken = train_toy(toy_config(tmp_path / 'unbroken', **CASES[case]))
    stopped = toy_config(tmp_path / 'stopped', **CASES[case])
    # Stops in iteration 4, so that iteration 3 is repeated from the checkpoint of iteration 2. The seed is drawn, not
    # given.
    stopped.randomness.seed = unbroken.seed
    stopped.model.bad_from = 4
    with pytest.raises(BadLossError):
        train_toy(stopped)
    resumed = train_toy(toy_config(tmp_path / 'stopped', **CASES[case]), resume='auto')
    expected, got = logged_losses(tmp_path / 'unbroken'), logged_losses(tmp_path / 'stopped')
    assert list(got) == list(expected) == [1, 2, 3, 4, 5, 6]
    assert got == expected
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_detection_and_segmentation_resume_exactly(task: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue(f'tiny_{task}_config')
    run_tool('train', config, '--work-dir', tmp_path / 'unbroken')
    run_tool('train', config, '--work-dir', tmp_path / 'resumed', '--resume', tmp_path / 'unbroken' / 'iter_2.pth')
    expected, got = logged_losses(tmp_path / 'unbroken'), logged_losses(tmp_path / 'resumed')
    assert (list(expected), list(got)) == ([1, 2, 3, 4], [3, 4])
    assert got == {iteration: expected[iteration] for iteration in got}


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    assert train_toy(toy_config(tmp_path), resume='auto').iter == 6


def test_resuming_refuses_a_checkpoint_that_lacks_weights(tmp_path: Path) -> None:
    train_toy(toy_config(tmp_path))
    checkpoint = read_checkpoint(tmp_path / 'iter_6.pth')
    del checkpoint['state_dict']['net.0.bias']
    torch.save(checkpoint, tmp_path / 'iter_6.pth')
    with pytest.raises(CheckpointError, match=r'Missing: net\.0\.bias'):
        train_toy(toy_config(tmp_path), resume='auto')


def test_several_processes_may_not_save_within_an_accumulation(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, **{'optim_wrapper.accumulative_counts': 4})
    with pytest.raises(ValueError, match=r'Set default_hooks\.checkpoint\.interval=4'):
        use_safe_hooks(cfg, world_size=2)


def test_a_bad_loss_stops_the_run_and_names_the_last_good_checkpoint_and_remedies(tmp_path: Path) -> None:
    with pytest.raises(BadLossError, match=r'iteration 4 loss is nan.*iter_2\.pth.*learning rate.*clip_grad.*bfloat16'):
        train_toy(toy_config(tmp_path, **{'model.bad_from': 4}))
    assert [path.name for path in tmp_path.glob('iter_*')] == ['iter_2.pth']


@pytest.mark.parametrize(('scale', 'stops'), [(4.0, False), (1.0, False), (0.5, True)])
def test_under_a_loss_scale_a_bad_loss_costs_a_step_until_the_scale_collapses(
    tmp_path: Path, scale: float, stops: bool
) -> None:
    scaler = torch.amp.GradScaler('cpu', init_scale=scale)
    runner = SimpleNamespace(
        optim_wrapper=SimpleNamespace(loss_scaler=scaler),
        message_hub=MessageHub('scale'),
        iter=3,
        work_dir=str(tmp_path),
    )
    with pytest.raises(BadLossError, match='iteration 4 loss is inf') if stops else nullcontext():
        StopOnBadLoss().after_train_iter(runner, 3, outputs=dict(loss=torch.tensor(float('inf'))))  # type: ignore[arg-type]
    assert runner.message_hub.get_scalar('train/loss_scale').current() == scale


def test_a_loss_scale_that_collapses_under_finite_losses_stops_the_run(tmp_path: Path) -> None:
    hook, hub = StopOnBadLoss(), MessageHub('collapse')
    for iteration, scale in enumerate((2.0, 1.0, 1.0, 0.5)):
        runner = SimpleNamespace(
            optim_wrapper=SimpleNamespace(loss_scaler=torch.amp.GradScaler('cpu', init_scale=scale)),
            message_hub=hub,
            iter=iteration,
            work_dir=str(tmp_path),
        )
        with pytest.raises(BadLossError, match=r'scale has fallen to 0\.5: 2 steps') if scale < 1 else nullcontext():
            hook.after_train_iter(runner, iteration, outputs=dict(loss=torch.tensor(1.0)))  # type: ignore[arg-type]
    assert hub.get_scalar('train/skipped_steps').current() == 2


def test_a_fixed_loss_scale_under_which_no_step_is_seen_to_be_skipped_is_refused(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, **{'optim_wrapper.loss_scale': 512.0})
    with pytest.raises(ValueError, match=r'optim_wrapper\.loss_scale is 512\.0.*dict\(init_scale=512\.0\)'):
        use_safe_hooks(cfg, world_size=1)
    cfg.optim_wrapper.loss_scale = dict(init_scale=512.0)
    use_safe_hooks(cfg, world_size=1)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    # An infinite step: the loss it came from was still finite.
    with pytest.raises(BadLossError, match='parameters are not finite'):
        train_toy(
            toy_config(tmp_path, **{'optim_wrapper.optimizer.lr': float('inf'), 'default_hooks.checkpoint.interval': 1})
        )
    assert not list(tmp_path.glob('iter_*'))


def test_the_latest_checkpoint_is_found_when_its_pointer_was_cut_or_the_folder_moved(tmp_path: Path) -> None:
    for name in ('iter_2.pth', 'iter_4.pth'):
        (tmp_path / name).touch()
        time.sleep(0.01)
    (tmp_path / 'last_checkpoint').write_text('')
    assert find_latest_checkpoint(tmp_path) == tmp_path / 'iter_4.pth'
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_2.pth')
    assert find_latest_checkpoint(tmp_path) == tmp_path / 'iter_2.pth'
    assert find_latest_checkpoint(tmp_path / 'empty') is None


def test_of_a_copied_run_the_copys_checkpoint_is_the_latest_not_the_originals(tmp_path: Path) -> None:
    for folder in ('original', 'copy'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'iter_2.pth').touch()
        (tmp_path / folder / 'last_checkpoint').write_text(str(tmp_path / 'original/iter_2.pth'))
    assert find_latest_checkpoint(tmp_path / 'copy') == tmp_path / 'copy/iter_2.pth'


def test_a_run_killed_while_saving_leaves_a_whole_checkpoint_to_resume_from(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2] / 'helpers')!r})
from pathlib import Path
from running import toy_config, train_toy
import torch
torch.manual_seed(0)
cfg = toy_config(Path({str(tmp_path)!r}), **{{'train_cfg.max_iters': 10**6, 'train_cfg.val_interval': 10**6,
                 'default_hooks.checkpoint.interval': 1, 'default_hooks.checkpoint.max_keep_ckpts': 1}})
cfg.default_hooks.pop('logger')
train_toy(cfg)
"""
    process = subprocess.Popen(
        [sys.executable, '-c', script], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while find_latest_checkpoint(tmp_path) is None and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    latest = find_latest_checkpoint(tmp_path)
    assert latest is not None
    checkpoints = list(tmp_path.glob('iter_*.pth'))
    assert 1 <= len(checkpoints) <= 2  # the new one is there before the old one goes
    done = max(read_checkpoint(path)['meta']['iter'] for path in checkpoints)
    resumed = toy_config(tmp_path, **{'train_cfg.max_iters': done + 2, 'train_cfg.val_interval': 10**6})
    assert train_toy(resumed, resume='auto').iter == done + 2


def test_train_and_test_read_no_checkpoint_that_would_execute_code(tmp_path: Path, tiny_seg_config: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / 'executed',)  # type: ignore[return-value]

    torch.save(dict(state_dict=dict(weight=Payload())), tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='refused'):
        run_command_line('test', tiny_seg_config, tmp_path / 'evil.pth', '--work-dir', tmp_path)
    with pytest.raises(CheckpointError, match='refused'):
        train_toy(toy_config(tmp_path, load_from=str(tmp_path / 'evil.pth')))
    assert not (tmp_path / 'executed').exists()
