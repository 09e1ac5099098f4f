"""Long: trainings that are killed at random moments, again and again, end as if nothing had happened."""

from __future__ import annotations

import random
import re
import sys
import time
from pathlib import Path

import pytest
from forked_runs import assert_equal, final_state, start_training
from running import write_toy_config
from tiny_training import MODELS, make_images, write_leaf

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='processes that end with their parent')
NUM_KILLS, NUM_ITERS = 100, 320
NUM_STAGE_KILLS, NUM_STAGE_ITERS = 6, 10
TOKENIZER = MODELS['tokenizer_tiny']


def kill_again_and_again(config: Path, folder: Path, kills: int, iterations: list[int]) -> int:
    """Starts with --resume and kills after some iterations and a random moment; returns how often it was alive."""
    rng = random.Random(0)
    killed = 0
    for number in range(kills):
        count = rng.choice(iterations)
        run = start_training(folder / f'{number}.log', config, folder / 'run', '--resume', iterations=count)
        run.wait_for_iterations(count)
        time.sleep(rng.uniform(0, 0.05 if count else 1.0))
        killed += run.kill()
        assert 'Traceback' not in run.output, run.output[-3000:]
    return killed


def finish(config: Path, folder: Path) -> None:
    for name, resume in (('unbroken', ()), ('run', ('--resume',))):
        run = start_training(folder / f'{name}.log', config, folder / name, *resume)
        assert run.wait(400) == 0, run.output[-3000:]


def test_after_a_hundred_kills_in_a_row_weights_and_optimizer_are_those_of_the_unbroken_run(tmp_path: Path) -> None:
    hooks = [dict(type='TellProgress')]
    changes = {'train_cfg.max_iters': NUM_ITERS, 'train_cfg.val_interval': 50, 'default_hooks.checkpoint.interval': 1}
    changes |= {'default_hooks.checkpoint.max_keep_ckpts': 2, 'train_dataloader.num_workers': 1, 'log_level': 'WARNING'}
    changes |= {'param_scheduler': [dict(type='CosineAnnealingLR', by_epoch=False, T_max=NUM_ITERS)]}
    config = write_toy_config(tmp_path / 'toy.py', custom_hooks=hooks, **changes)
    assert kill_again_and_again(config, tmp_path, NUM_KILLS, [0, 1, 1, 2, 3, 4]) == NUM_KILLS
    reached = max(int(re.findall(r'\d+', path.name)[0]) for path in (tmp_path / 'run').glob('iter_*.pth'))
    assert NUM_KILLS // 2 < reached < NUM_ITERS
    finish(config, tmp_path)
    expected, got = (final_state(tmp_path / name, NUM_ITERS) for name in ('unbroken', 'run'))
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_equal(expected[key], got[key], key)
    assert not list((tmp_path / 'run').glob('.*.part'))


@pytest.mark.parametrize('stage', ['det', 'seg', 'pretrain'])
def test_detection_segmentation_and_pretraining_survive_kills(
    stage: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    hooks = [dict(type='TellProgress')]
    if stage == 'pretrain':
        base = write_leaf(tmp_path / 'leaf', 'tokenizer_tiny', make_images(tmp_path / 'images'), TOKENIZER)
        hooks.append(dict(type='ReviveCodesHook', interval=1))
    else:
        base = request.getfixturevalue(f'tiny_{stage}_config')
    config = tmp_path / 'config.py'
    config.write_text(
        f"""_base_ = {str(base)!r}
custom_hooks = {hooks!r}
train_cfg = dict(max_iters={NUM_STAGE_ITERS}, val_begin=1000)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2))
""",
        encoding='utf-8',
    )
    kill_again_and_again(config, tmp_path, NUM_STAGE_KILLS, [1, 2, 3])
    finish(config, tmp_path)
    expected, got = (final_state(tmp_path / name, NUM_STAGE_ITERS) for name in ('unbroken', 'run'))
    for key in ('state_dict', 'optimizer'):
        assert_equal(expected[key], got[key], key)
