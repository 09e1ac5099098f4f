"""The benchmarks of data and evaluation: equal results; a worker's memory does not follow the data set's length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from addp_backbone.datasets.shapes.writer import ShapeSettings, write_shapes
from tools.benchmark import coco_eval, lsj, worker_memory
from tools.benchmark.pairs import Measured

MEGABYTE = 1e-3  # in units of 10^9 bytes


def test_lsj_of_ours_and_of_mmdet_read_the_same_images_and_objects(tmp_path: Path) -> None:
    write_shapes(tmp_path / 'shapes', ShapeSettings(48, 64, train_scenes=3, val_scenes=0))
    annotations, images = tmp_path / 'shapes' / 'instances_train.json', tmp_path / 'shapes' / 'images' / 'train'
    lsj.store_like_coco(annotations, images)
    job = lsj.Job(annotations, images, num_images=6, side_px=64, ratio_range=(1, 1))  # neither resized nor cropped
    ours, *peers = lsj.prepare_ours(job), lsj.prepare_peer(job, True), lsj.prepare_peer(job, False)
    for _ in range(2):
        found = np.reshape(ours(), (-1, 3))
        for peer in peers:
            wanted = np.reshape(peer(), (-1, 3))
            assert np.array_equal(found[:, [0, 2]], wanted[:, [0, 2]])  # pixels, number of masks
            assert (np.abs(found - wanted)[:, 1] <= 4 * found[:, 2]).all()  # boxes, a pixel a side
            assert wanted[:, 2].min() > 0


def test_evaluations_in_the_benchmark_give_the_same_twelve_numbers() -> None:
    for kind in ('bbox', 'segm'):
        job = coco_eval.Job(kind, num_images=6, num_detections=30)
        numbers = {who: coco_eval.prepare(job, who) for who in ('ours', 'pycocotools', 'faster')}
        for _ in range(2):
            results = {who: call() for who, call in numbers.items()}
            np.testing.assert_allclose(results['ours'], results['pycocotools'], rtol=0, atol=1e-12)
            np.testing.assert_allclose(results['faster'], results['pycocotools'], rtol=0, atol=1e-12)
        assert 0.05 < results['ours'][0] < 0.9


def test_a_row_of_several_kinds_adds_their_times_up() -> None:
    kinds = [
        {
            who: Measured((seconds,), 0.1, (1.0,))
            for who, seconds in dict(ours=ours, pycocotools=10.0, faster=5.0).items()
        }
        for ours in (1.0, 3.0)
    ]
    row = coco_eval.make_row('boxes + masks', coco_eval.Job('segm'), kinds, 1)
    assert (row.ratio, row.ours, row.difference) == (5.0, 250.0, 0.0) and '2.00 x' in row.note


@pytest.mark.long
def test_a_workers_memory_does_not_follow_the_number_of_images(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / 'grey.jpg'), np.zeros((worker_memory.HEIGHT_PX, worker_memory.WIDTH_PX, 3), np.uint8))
    memory = {}
    for length in (30, 300):
        worker_memory.write_annotations(tmp_path / f'{length}.json', length)
        memory[length] = worker_memory.worker_memory_gb(tmp_path / f'{length}.json', 300)
    assert abs(memory[300] - memory[30]) < 2 * MEGABYTE
    as_dicts = worker_memory.worker_memory_gb(tmp_path / '300.json', 300, serialize=False)
    assert as_dicts > memory[300] + 2 * MEGABYTE, 'what the measure has to show'


def test_the_memory_command_prints_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    worker_memory.main(['--smoke', '--json'])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('{')]
    row = json.loads(line)
    assert row['ratio'] == pytest.approx(row['ours'] / row['peer']) and row['goal'] == '<= 1.1' and row['ours'] > 0
