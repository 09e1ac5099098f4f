"""The table in miniature: stages fit one another and the configs they name; numbers come from evaluations' files."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

from experiments.miniature.plan import Miniature
from experiments.miniature.report import make_report
from experiments.miniature.sizes import Sizes
from experiments.miniature.table import GENERATION_ROWS, PROBE_ROW, TRANSFER_ROWS, as_markdown, read_results
from pretrain.evaluation.fidelity import label

ROOT = Path(__file__).resolve().parents[2]
LEAVES = {
    'shapes_det.py': 'det_configs/addp_tiny_maskrcnn_128px.py',
    'shapes_seg.py': 'seg_configs/addp_tiny_upernet_128px.py',
}


def make_miniature(tmp_path, seeds=(0,)):
    return Miniature(tmp_path, Sizes().scaled(0.01), seeds)


def write_results(miniature, value=0.25):
    (miniature.work / 'results').mkdir()
    metrics = label(
        {row.key[-1]: 2.0 for row in GENERATION_ROWS}, 'random-convolutions'
    )  # as tools/evaluate_generation.py writes them
    (miniature.work / 'results/generation.json').write_text(json.dumps(dict(metrics=metrics)))
    for row in TRANSFER_ROWS:
        for i, seed in enumerate(miniature.seeds):
            for init, extra in (('addp', 0.5), ('random', 0.0)):
                file = miniature.result_file(row.task, init, seed)
                old = json.loads(file.read_text()) if file.exists() else {}
                file.write_text(json.dumps(old | {row.key[-1]: value + extra + i}))
    for seed in miniature.seeds:
        rows = [dict(backbone=miniature.probed_backbone(init), mIoU=20.0 + seed) for init in ('random', 'addp')]
        rows[1]['mIoU'] += 5
        miniature.probe_file(seed).parent.mkdir()
        miniature.probe_file(seed).write_text(json.dumps(dict(rows=rows)))


def test_every_option_of_a_training_stage_replaces_a_value_that_its_config_has(tmp_path):
    trainings = [stage for stage in make_miniature(tmp_path).stages() if stage.command[0] == 'tools/train.py']
    assert len(trainings) == 3 + 2 * 4
    for stage in trainings:
        config = LEAVES.get(Path(stage.command[1]).name, stage.command[1])
        cfg = Config.fromfile(ROOT / config)
        for option in stage.command[stage.command.index('--cfg-options') + 1 :]:
            *path, last = option.partition('=')[0].split('.')
            node = cfg
            for part in path:
                node = node[int(part) if part.isdigit() else part]
                node = {} if node is None else node  # tools/train.py sets values below an empty one
            assert last in node or path[-1] in ('init_cfg', 'randomness'), f'{stage.name}: {option}'


def test_both_initialisations_get_the_same_training_but_for_weights_and_folders(tmp_path):
    commands = {
        stage.name: [word for word in stage.command if 'init_cfg' not in word and str(tmp_path / 'runs') not in word]
        for stage in make_miniature(tmp_path).stages()
    }
    for task in ('finetune', 'linear', 'det', 'seg'):
        assert commands[f'{task}_addp_seed0'] == commands[f'{task}_random_seed0']


def test_another_seed_adds_stages_and_changes_none(tmp_path):
    one, two = (
        {stage.name: stage.fingerprint for stage in make_miniature(tmp_path, seeds).stages()}
        for seeds in ((0,), (0, 1))
    )
    assert one.items() < two.items() and len(two) - len(one) == 2 * 2 * 4 + 1  # trainings and tests; a probe


def test_stages_use_only_files_of_stages_before_them_and_need_them(tmp_path):
    made: dict[str, str] = {}
    needs: dict[str, set[str]] = {}
    for stage in make_miniature(tmp_path, (0, 1)).stages():
        needs[stage.name] = {need.name for need in stage.needs}.union(*(needs[need.name] for need in stage.needs))
        used = {word.partition('=')[2] or word for word in stage.command}
        assert {made[path] for path in used & made.keys()} <= needs[stage.name] | {stage.name}, stage.name
        made.update({str(path): stage.name for path in stage.outputs})
    assert 'shapes' in needs['reference'] and 'addp' in needs['generate'] and 'convert' in needs['det_addp_seed1']


def test_stages_use_only_files_of_stages_before_them(tmp_path):
    made = set()
    for stage in make_miniature(tmp_path, (0, 1)).stages():
        used = {word.partition('=')[2] or word for word in stage.command if word.endswith(('.pth', '.py'))}
        own = {str(path) for path in stage.outputs}
        assert {path for path in used - own if path.startswith(str(tmp_path)) and '/runs/' not in path} <= made, (
            stage.name
        )
        made |= own


def test_the_table_holds_the_evaluations_numbers_for_every_seed(tmp_path):
    miniature = make_miniature(tmp_path, (3, 4))
    write_results(miniature)
    results = read_results(miniature)
    assert results['Mask R-CNN: AP box'] == {'addp': [75.0, 175.0], 'random': [25.0, 125.0]}
    assert results['UperNet: mIoU']['random'] == [0.25, 1.25]
    assert results[PROBE_ROW] == {'addp': [28.0, 29.0], 'random': [23.0, 24.0]}
    assert '| Mask R-CNN: AP box | 125.0 ± 70.7 | 75.0 ± 70.7 |' in as_markdown(results)


def test_a_detector_that_predicts_nothing_has_an_ap_of_zero(tmp_path):
    miniature = make_miniature(tmp_path)
    write_results(miniature)
    miniature.result_file('det', 'random', 0).write_text('{}')  # what tools/test.py writes then
    assert read_results(miniature)['Mask R-CNN: AP box']['random'] == [0.0]
    miniature.result_file('det', 'random', 0).write_text('{"coco/segm_mAP": 0.5}')
    with pytest.raises(KeyError, match='bbox_mAP'):
        read_results(miniature)


def test_without_an_evaluations_file_there_is_no_table(tmp_path):
    miniature = make_miniature(tmp_path)
    write_results(miniature)
    miniature.result_file('seg', 'random', 0).unlink()
    with pytest.raises(FileNotFoundError, match='seg_random_0'):
        read_results(miniature)


def test_the_report_holds_its_pictures_and_asks_for_nothing_else(tmp_path):
    miniature = make_miniature(tmp_path)
    write_results(miniature)
    (tmp_path / 'samples').mkdir()
    Image.new('RGB', (2000, 10), 'red').save(tmp_path / 'samples/grid.png')
    for init in ('addp', 'random'):
        (tmp_path / f'det_{init}_predictions/overlays').mkdir(parents=True)
        Image.new('RGB', (20, 10), 'blue').save(tmp_path / f'det_{init}_predictions/overlays/000003.png')
    page = make_report(miniature, read_results(miniature), ['5 < 6 minutes'])
    assert page.count('<img ') == 3 == page.count('data:image/png;base64,')
    assert (
        page.index('Mask R-CNN from ADDP weights') < page.index('Mask R-CNN from random weights')
        and 'for seed 0.' in page
    )
    assert 'http' not in page and 'src="/' not in page
    assert '5 &lt; 6 minutes' in page and '75.0' in page


def test_scaling_keeps_every_stage_possible():
    sizes = Sizes().scaled(0.0001)
    assert min(value for name, value in vars(sizes).items() if name != 'classification_epochs') == 8
    assert sizes.classification_epochs == 3


@pytest.mark.parametrize(
    ('lengthen', 'what'), [(Sizes.pretrained, {'addp'}), (Sizes.transferred, {'detection', 'segmentation'})]
)
def test_pretraining_and_transfer_are_lengthened_apart(lengthen, what):
    longer, usual = vars(lengthen(Sizes(), 2.5)), vars(Sizes())
    assert {name: longer[name] for name in usual if usual[name] != longer[name]} == {
        name: 2.5 * usual[name] for name in what
    }
