"""Two CPU processes started by the project's scripts: same weights, the mean gradient, the numbers of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import run_script, run_tool

NUM_ITERS = 20


@pytest.fixture(scope='module')
def trained(tiny_det_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work dir of 20 iterations of Mask R-CNN on two ranks, batch 1 each; one image of the data set has no objects."""
    work_dir = tmp_path_factory.mktemp('two_ranks')
    leaf = work_dir / 'leaf.py'
    leaf.write_text(
        f"""_base_ = {str(tiny_det_config)!r}
custom_imports = dict(imports=['addp_backbone', 'rank_probe'], allow_failed_imports=False)
custom_hooks = [dict(type='RankProbe')]
train_dataloader = dict(batch_size=1)
train_cfg = dict(max_iters={NUM_ITERS})
default_hooks = dict(checkpoint=dict(interval={NUM_ITERS}))
""",
        encoding='utf-8',
    )
    run_script('dist_train.sh', leaf, '2', '--work-dir', work_dir)
    return work_dir


@pytest.fixture(scope='module')
def ranks(trained: Path) -> list[dict[str, Any]]:
    """What tests/helpers/rank_probe.py wrote on each rank."""
    return [json.loads((trained / f'rank{rank}.json').read_text()) for rank in range(2)]


def test_parameters_stay_identical_across_ranks(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]['digests'] == ranks[1]['digests']
    assert len(set(ranks[0]['digests'])) == NUM_ITERS


def test_the_gradient_is_the_mean_of_what_each_rank_computes_alone(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]['gradient_error'] < 1e-5


def test_no_rank_waits_for_a_batch_without_objects(ranks: list[dict[str, Any]]) -> None:
    pairs = list(zip(*(rank['num_objects'] for rank in ranks), strict=True))
    assert any(min(pair) == 0 < max(pair) for pair in pairs), (
        'no iteration had objects on one rank only; the test tests nothing'
    )
    assert len(pairs) == NUM_ITERS


def test_two_processes_measure_the_ap_of_one_on_an_odd_number_of_images(
    trained: Path, tiny_det_config: Path, tmp_path: Path
) -> None:
    checkpoint, option = trained / f'iter_{NUM_ITERS}.pth', 'model.test_cfg.rcnn.score_thr=0.0'
    run_script(
        'dist_test.sh',
        tiny_det_config,
        checkpoint,
        '2',
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'two.json',
        '--cfg-options',
        option,
    )
    run_tool(
        'test', tiny_det_config, checkpoint, '--work-dir', tmp_path, '--out', tmp_path / 'one.json', options=(option,)
    )
    one, two = (json.loads((tmp_path / name).read_text()) for name in ('one.json', 'two.json'))
    assert one == two and one['coco/bbox_mAP_50'] > 0
