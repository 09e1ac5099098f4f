"""tools/probe.py from the command line to results.json and report.html."""

import json
import re

import pytest
from PIL import Image
from running import load_tool

from experiments.probes.bench import Bench
from experiments.probes.run import Prober

TOOL = load_tool('probe')


@pytest.fixture
def words(tiny_ade, tmp_path):
    (tmp_path / 'classes.txt').write_text('background\ndisc\nbox\nwedge\n', encoding='utf-8')
    folders = [
        f'--{name}-{kind}={tiny_ade / folder / split}'
        for name, split in (('train', 'training'), ('val', 'validation'))
        for kind, folder in (('images', 'images'), ('masks', 'annotations'))
    ]
    return [*folders, f'--classes={tmp_path / "classes.txt"}', f'--out={tmp_path / "out"}', f'--cache={tmp_path / "c"}']


def test_all_protocols_write_results_and_page_and_a_second_run_computes_nothing(words, tmp_path, monkeypatch, capsys):
    asked = [
        'random/test_vit',
        'random/tiny',
        *words,
        '--protocols',
        'logistic',
        'linear',
        'knn',
        '--blocks',
        '1',
        '1+2',
    ]
    asked += ['--fraction', '0.5', '1', '--seeds', '1', '--linear-iters', '3', '--void', 'zero']
    assert TOOL.main(asked) == 0
    results = json.loads((tmp_path / 'out/results.json').read_text(encoding='utf-8'))
    assert len(results['rows']) == 2 * 3 * 2 * 2
    assert {'backbone', 'protocol', 'block', 'fraction', 'seed', 'mIoU', 'aAcc'} <= set(results['rows'][0])
    assert {row['block'] for row in results['rows']} == {1, '1+2'}
    assert all(0 <= row['mIoU'] <= row['aAcc'] <= 100 for row in results['rows'])
    assert {row['num_images'] for row in results['rows']} == {3, 6}
    page = (tmp_path / 'out/report.html').read_text(encoding='utf-8')
    of_class_token = 3  # of random/test_vit; ADDPViT has none
    assert 'random/tiny' in page and page.count('data:image/png') == 3 + 2 * 2 * 2 * 3 + of_class_token
    assert page.count('No class token') == 1
    for owner, name in ((Bench, 'row'), (Prober, '_features')):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail('computed again'))
    assert TOOL.main(asked) == 0
    assert json.loads((tmp_path / 'out/results.json').read_text(encoding='utf-8')) == results
    assert '24 of them finished before' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (['random/tiny', '--blocks', '2', '5'], r'random/tiny has blocks 1 to 4, but \[5\] was asked for'),
        (['random/tiny', '--blocks', '0'], "blocks are numbers from 1, .* got '0'"),
        (['random/tiny', '--fraction', '1.5'], r'label fractions must lie in \(0, 1\]'),
        (['random/tiny', '--seeds', '1', '1'], 'seeds must differ'),
        (['random/tiny', 'random/tiny'], 'backbones must differ'),
        (['random/tiny', '--cache-gb', '1e-6'], 'raise --cache-gb'),
        (['random/tiny', '--train-masks=nowhere'], 'nowhere: is no folder'),
    ],
)
def test_what_cannot_be_probed_is_refused_before_any_work(words, change, message, capsys):
    backbones = [word for word in change if word.startswith('random')]
    assert TOOL.main([*backbones, *words, *change[len(backbones) :]]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_class_outside_the_list_is_refused_with_the_mask(words, tiny_ade, tmp_path, capsys):
    folder = tmp_path / 'masks'
    folder.mkdir()
    for path in (tiny_ade / 'annotations/validation').glob('*.png'):
        Image.open(path).point(lambda value: 9 if value == 2 else value).save(folder / path.name)
    assert TOOL.main(['random/tiny', *words, f'--val-masks={folder}', '--void=zero']) == 1
    assert 'ids outside the classes' in capsys.readouterr().err


def test_a_size_is_width_by_height():
    assert TOOL.size_argument('392x308') == (392, 308)
    with pytest.raises(Exception, match='wanted WIDTHxHEIGHT'):
        TOOL.size_argument('392')


def test_iterations_of_a_detector_that_is_not_asked_for_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        TOOL.parse_args(['random/tiny', *words, '--detection-iters', '5'])
    assert '--detection-iters goes with --detection CONFIG' in capsys.readouterr().err


@pytest.mark.long
def test_a_detector_is_trained_on_each_frozen_backbone(words, tmp_path, tiny_det_config):
    """Real trainings and tests of one iteration each, in processes of their own."""
    asked = ['random/test_vit', 'random/tiny', *words, '--void', 'zero', '--blocks', '2']
    asked += ['--detection', str(tiny_det_config), '--detection-iters', '1']
    assert TOOL.main(asked) == 0
    results = json.loads((tmp_path / 'out/results.json').read_text(encoding='utf-8'))
    means = results['trained']['means']
    assert {(one['training'], one['backbone'], one['measure']) for one in means} == {
        ('frozen detection', backbone, measure)
        for backbone in ('random/test_vit', 'random/tiny')
        for measure in ('AP box', 'AP mask')
    }
    assert len(results['rows']) == 2 and not results['trained']['unfinished']
    assert '<h2>Trainings</h2>' in (tmp_path / 'out/report.html').read_text(encoding='utf-8')
    assert (tmp_path / 'out/trained.csv').is_file()
