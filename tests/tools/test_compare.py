"""tools/compare.py: from a plan to the table, also when it is killed on the way."""

import json
import multiprocessing
import time

import numpy as np
import pytest
from dying_runs import TOOL, run_and_die

from addp_backbone.files.image_results import write_image_results
from experiments.probes.bench import Bench


@pytest.fixture
def plan(tiny_ade, tmp_path):
    (tmp_path / 'classes.txt').write_text('background\ndisc\nbox\nwedge\n', encoding='utf-8')
    content = dict(
        backbones=['random/test_vit', 'random/tiny'],
        classes=str(tmp_path / 'classes.txt'),
        train_images=str(tiny_ade / 'images/training'),
        train_masks=str(tiny_ade / 'annotations/training'),
        val_images=str(tiny_ade / 'images/validation'),
        val_masks=str(tiny_ade / 'annotations/validation'),
        void='zero',
        protocols=['logistic', 'knn'],
        blocks=[1],
        seeds=[0, 1],
    )
    return content


def words(plan, folder):
    folder.mkdir(exist_ok=True)
    (folder / 'plan.json').write_text(json.dumps(plan), encoding='utf-8')
    return [str(folder / 'plan.json'), f'--out={folder / "out"}', f'--cache={folder / "cache"}', '--cache-gb=1']


def table(folder):
    results = json.loads((folder / 'out/results.json').read_text(encoding='utf-8'))
    for row in results['rows']:
        del row['seconds']
    return results


def test_a_run_that_is_killed_three_times_ends_with_the_same_table(plan, tmp_path):
    assert TOOL.main(words(plan, tmp_path / 'whole')) == 0
    command = words(plan, tmp_path / 'killed')
    run_and_die(command, 'Extraction', '_write', 1)  # features of the training images are there, no more
    run_and_die(command, 'RowStore', 'write', 2)
    run_and_die(command, 'RowStore', 'write', 3)
    assert len(list((tmp_path / 'killed/out/rows').glob('*.npz'))) == 5
    assert TOOL.main(command) == 0
    assert table(tmp_path / 'killed') == table(tmp_path / 'whole')
    csv = [(tmp_path / name / 'out/results.csv').read_text(encoding='utf-8') for name in ('whole', 'killed')]
    assert csv[0] == csv[1] and csv[0].startswith('backbone,protocol,block,fraction,mIoU,sd,num_seeds\n')
    page = (tmp_path / 'killed/out/report.html').read_text(encoding='utf-8')
    assert 'Differences' in page and 'paired bootstrap' in page


def test_a_row_that_another_run_is_making_is_left_to_it_and_waited_for(plan, tmp_path, monkeypatch):
    small = {**plan, 'backbones': ['random/tiny'], 'protocols': ['knn'], 'seeds': [0, 1]}
    command, context = words(small, tmp_path / 'shared'), multiprocessing.get_context('fork')
    begun, made = context.Event(), context.Queue()
    make = Bench.row

    def slow(bench, job):
        begun.set()
        time.sleep(0.5)
        made.put(job.seed)
        return make(bench, job)

    monkeypatch.setattr(Bench, 'row', slow)
    other = context.Process(target=TOOL.main, args=(command,))
    other.start()
    assert begun.wait(60)
    assert TOOL.main(command) == 0
    other.join()
    assert other.exitcode == 0 and len(table(tmp_path / 'shared')['rows']) == 2
    assert sorted(made.get(timeout=1) for _ in range(2)) == [0, 1] and made.empty()


def test_a_dry_run_checks_everything_and_tells_the_time(plan, tmp_path, capsys):
    assert TOOL.main([*words(plan, tmp_path / 'dry'), '--dry-run']) == 0
    assert 'random/tiny: 4 rows, 4 to do, about 0:0' in capsys.readouterr().out
    assert not (tmp_path / 'dry/out').exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(protocol='knn'), "unknown key 'protocol', did you mean 'protocols'?"),
        (dict(classes=None), 'a value is of the wrong kind'),
        (dict(reference='random/small'), "the reference 'random/small' is none of the backbones"),
        (dict(block='first'), "block must be 'best', 'last' or a number from 1, got 'first'"),
        (dict(size='400'), 'wanted WIDTHxHEIGHT'),
        (dict(seeds='many'), 'invalid literal'),
        (dict(seeds=[0.5]), 'seeds: wanted whole numbers, got 0.5'),
        (dict(precision='fp8'), "precision must be one of fp32, bf16, got 'fp8'"),
        (dict(l2=float('nan')), 'L2 at least 0'),
        (dict(backbones=[]), 'no backbones are given'),
        (dict(block=2, blocks=[1]), 'is not probed: add it to blocks'),
        (dict(mask_suffix=3), 'mask_suffix must be text'),
        (dict(patches=1.5), 'must be whole numbers, got (1.5'),
        (dict(trainings={'name': 'a'}), 'trainings must be a list of mappings'),
        (
            dict(trainings=[dict(name='a', runs=[dict(backbone='b', seed=0, folder='none')])]),
            'none/per_image.npz holds',
        ),
    ],
)
def test_a_plan_that_cannot_work_is_refused_with_the_reason(plan, tmp_path, change, message, capsys):
    assert TOOL.main(words({**plan, **change}, tmp_path / 'wrong')) == 1
    assert message in capsys.readouterr().err


def test_a_plan_may_be_yaml_with_hyphens_and_single_values(plan, tmp_path, capsys):
    lines = [f'{key.replace("_", "-")}: {json.dumps(value)}' for key, value in plan.items()]
    path = tmp_path / 'plan.yaml'
    path.write_text('\n'.join(lines) + '\nl2: 1e-4\nfraction: 0.5\n', encoding='utf-8')
    loaded, _ = TOOL.read_plan(path, 'cpu')
    assert loaded.settings.l2 == 1e-4 and loaded.settings.fractions == (0.5,) and loaded.settings.blocks == ('1',)


def test_trainings_made_elsewhere_enter_the_same_page_and_a_failed_one_is_told(
    plan, tiny_seg_config, tmp_path, monkeypatch, capsys
):
    rng = np.random.default_rng(0)
    areas = dict(images=np.array(['a', 'b']), areas=rng.integers(50, 90, (2, 3, 4)))
    for name in ('first', 'second'):
        (tmp_path / name).mkdir()
        write_image_results(tmp_path / name / 'per_image.npz', {'areas': areas})
    runs = [dict(backbone=name, seed=0, folder=str(tmp_path / name)) for name in ('first', 'second')]
    here = dict(name='UperNet', config=str(tiny_seg_config), backbones='random/tiny', seeds=3)
    trainings = [dict(name='UperNet', runs=runs), here]
    monkeypatch.setattr(TOOL, 'run_trainings', lambda jobs, out, report: [jobs[0].train])
    small = {**plan, 'backbones': ['random/tiny'], 'protocols': ['knn'], 'seeds': [0], 'trainings': trainings}
    assert TOOL.main(words(small, tmp_path / 'run')) == 1
    assert 'UperNet, random/tiny, seed 3 failed; its log' in capsys.readouterr().err
    results = table(tmp_path / 'run')
    assert [row['backbone'] for row in results['trained']['means']] == ['first', 'second']
    assert results['trained']['differences'][0]['higher'] is None
    assert results['trained']['unfinished'] == ['UperNet, random/tiny, seed 3']
    csv = (tmp_path / 'run/out/trained.csv').read_text(encoding='utf-8').splitlines()
    assert csv[0] == 'training,backbone,measure,mean,low,high,sd,seeds' and len(csv) == 3
    page = (tmp_path / 'run/out/report.html').read_text(encoding='utf-8')
    assert '<h2>Trainings</h2>' in page and 'Not finished' in page
