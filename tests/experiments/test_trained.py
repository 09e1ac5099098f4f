"""Trainings in a comparison: what a plan may say, which commands follow, and what is made of their results."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from running import ROOT

from addp_backbone.detection.image_matches import ImageMatches
from addp_backbone.files.image_results import write_image_results
from addp_backbone.runtime.launch import load_config
from addp_backbone.runtime.option_parsing import parse_options
from experiments.probes.backbones import find_source
from experiments.probes.bootstrap import bootstrap_scores, interval_of
from experiments.trained.curves import curve_charts, read_curve
from experiments.trained.protocols import PER_IMAGE_FILE, MadeRun, read_protocols
from experiments.trained.rows import read_rows
from experiments.trained.section import trained_section
from experiments.trained.stages import backbone_options, plan_trainings
from experiments.trained.summary import Trained, compare_trained, summarise_trained

BACKBONES = ('random/tiny', 'random/test_vit')


def write_run(folder, accuracy, images=40, seed=0, config='lr = 1\n'):
    """Results of a segmentation test: three classes, images that differ in difficulty."""
    rng = np.random.default_rng(seed)
    labelled = rng.poisson([400, 100, 40], (images, 3)) + 1
    right = rng.binomial(labelled, np.clip(accuracy + 0.05 * rng.normal(size=(images, 1)), 0.05, 0.95))
    areas = np.stack([right, right + np.roll(labelled - right, 1, axis=1), labelled], axis=1)
    names = np.array([f'{number}.jpg' for number in range(images)])
    folder.mkdir(parents=True, exist_ok=True)
    write_image_results(folder / PER_IMAGE_FILE, {'areas': dict(images=names, areas=areas)})
    (folder / 'config.py').write_text(config, encoding='utf-8')
    return folder


def run_of(folder, backbone, seed, name='UperNet'):
    return MadeRun(name, backbone, seed, folder)


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        (dict(name='a'), 'lacks config'),
        (dict(name='a', config='c.py', option=[]), "unknown key 'option', did you mean 'options'"),
        (dict(name='a', config='c.py', backbones='random/small'), 'random/small is none of the backbones'),
        (dict(name='a', config='c.py', options=['lr']), 'of the form key=value, got lr'),
        (dict(name='a', config='c.py', seeds=[-1]), 'seeds are numbers of 0 or more, got -1'),
        (dict(name='a', config='c.py', amp='yes'), 'amp must be true or false'),
        (dict(name='a', config='c.py', seeds=[1, 1]), 'stands twice for random/tiny, seed 1'),
        (dict(name='a', runs=[dict(backbone='b', seed=0)]), 'lacks folder'),
        (dict(name='a', runs=['folder']), 'runs are mappings with backbone, seed, folder'),
    ],
)
def test_an_entry_that_cannot_work_is_refused_with_the_reason(entry, message):
    with pytest.raises(ValueError, match=message):
        read_protocols([entry], BACKBONES, (0,))


def planned(config, out, backbones=BACKBONES[:1], seeds=(0, 1), options=('train_cfg.max_iters=5',)):
    entry = dict(name='UperNet frozen', config=str(config), options=list(options), backbones=list(backbones))
    trainings, _ = read_protocols([entry], BACKBONES, seeds)
    sources = {name: find_source(name) for name in BACKBONES}
    return plan_trainings(trainings, sources, dict.fromkeys(BACKBONES, 'digest'), out)


def test_a_training_has_a_command_for_each_seed_and_is_tested_as_it_was_trained(tiny_seg_config, tmp_path):
    jobs = planned(tiny_seg_config, tmp_path)
    assert [job.seed for job in jobs] == [0, 1]
    for job in jobs:
        train, test = job.train.command, job.test.command
        for command in (train, test):
            assert f'randomness.seed={job.seed}' in command and 'train_cfg.max_iters=5' in command
            assert str(tiny_seg_config.absolute()) in command
            assert 'model.backbone.init_cfg=None' in command  # random weights
        assert '--resume' in train
        assert f'--per-image={job.folder / PER_IMAGE_FILE}' in test and str(job.train.folder) in test
        assert job.test.needs == (job.train,) and not job.test.finished


def test_other_options_mean_another_folder_and_the_same_plan_finds_its_own_again(tiny_seg_config, tmp_path):
    first, same, other = (
        planned(tiny_seg_config, tmp_path, options=options)[0].folder
        for options in (['train_cfg.max_iters=5'], ['train_cfg.max_iters=5'], ['train_cfg.max_iters=6'])
    )
    assert first == same != other


def test_the_estimate_grows_with_the_iterations(tiny_seg_config, tmp_path):
    short, long = (
        planned(tiny_seg_config, tmp_path, options=[f'train_cfg.max_iters={iters}'])[0].train.seconds
        for iters in (5, 50)
    )
    assert long == pytest.approx(10 * short) and short > 0


def test_a_config_for_another_kind_of_backbone_is_refused_before_anything_runs(tiny_seg_config, tmp_path):
    with pytest.raises(ValueError, match='its config has a ADDPViT, but random/test_vit is a ViT of timm'):
        planned(tiny_seg_config, tmp_path, BACKBONES)
    with pytest.raises(ValueError, match='does not exist'):
        planned('no_such_config.py', tmp_path)


def test_rows_are_summed_up_over_seeds_and_compared_on_those_that_both_have(tmp_path):
    accuracies = {('a', 0): 0.8, ('a', 1): 0.81, ('a', 2): 0.2, ('b', 0): 0.7, ('b', 1): 0.72}
    runs = [
        run_of(write_run(tmp_path / f'{name}{seed}', accuracy, seed=seed), name, seed)
        for (name, seed), accuracy in accuracies.items()
    ]
    rows = read_rows([], runs)
    first, second = summarise_trained(rows)
    assert [row.seed for row in first.rows] == [0, 1, 2] and first.first.measure == 'mIoU'
    low, high = second.interval
    assert low < second.mean < high
    (pair,) = compare_trained([first, second])
    assert pair.difference.num_seeds == 2 and pair.record()['higher'] == 'a'
    expected = np.mean([first.rows[seed].score - second.rows[seed].score for seed in (0, 1)])
    assert pair.difference.value == pytest.approx(expected)
    assert compare_trained([first, second], reference='a')[0].difference.value == pytest.approx(-expected)


def test_rows_of_other_images_are_not_compared(tmp_path):
    runs = [run_of(write_run(tmp_path / name, 0.8, images), name, 0) for name, images in (('a', 40), ('b', 39))]
    with pytest.raises(ValueError, match=r'tested on other images.*39 and 40'):
        read_rows([], runs)


def test_a_run_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'tools/test\.py --per-image'):
        read_rows([], [run_of(tmp_path, 'a', 0)])


def test_what_has_not_finished_is_named_and_has_no_row(tiny_seg_config, tmp_path):
    jobs = planned(tiny_seg_config, tmp_path)
    write_run(jobs[0].folder, 0.8)
    for stage in (jobs[0].train, jobs[0].test):
        stage.mark_file(tmp_path).write_text(stage.mark(60.0, 1.0), encoding='utf-8')
    write_run(jobs[1].folder, 0.8)  # the file of a test whose training was repeated since, without its mark
    trained = Trained.of(jobs, [], None)
    assert trained.unfinished == ('UperNet frozen, random/tiny, seed 1',)
    (summary,) = trained.summaries
    assert [row.seed for row in summary.rows] == [0]
    section = trained_section(trained)
    assert 'Not finished, so not in the tables: UperNet frozen, random/tiny, seed 1' in section and '1.0 min' in section
    json.dumps(trained.record())


def test_configs_of_one_protocol_that_differ_say_in_what(tmp_path):
    configs = ("lr = 1\nrandomness = dict(seed=0)\nwork_dir = 'a'\n", 'lr = 2\nrandomness = dict(seed=1)\n')
    runs = [
        run_of(write_run(tmp_path / str(seed), 0.8, config=config), 'a', seed) for seed, config in enumerate(configs)
    ]
    trained = Trained.of([], runs, None)
    assert trained.protocols == {'UperNet': ['lr: 1 / 2']}
    assert '<li>lr: 1 / 2</li>' in trained_section(trained)


def test_without_trainings_the_page_says_nothing_of_them():
    trained = Trained.of([], [], None)
    assert trained_section(trained) == '' and trained.record() is None


def test_scores_by_iteration_are_drawn_from_the_trainings_own_logs(tiny_seg_config, tmp_path):
    jobs = planned(tiny_seg_config, tmp_path)
    for job, score in zip(jobs, (10.0, 20.0), strict=True):
        for run, steps in (('20260101_000000', (5, 10)), ('20260101_000001', (10, 15))):
            log = job.train.file(f'{run}/vis_data/scalars.json')
            log.parent.mkdir(parents=True)
            lines = [json.dumps(dict(loss=1.0, step=1))]
            lines += [json.dumps(dict(mIoU=score + step, step=step)) for step in steps]
            log.write_text('\n'.join([*lines, '{"mIoU": 3']), encoding='utf-8')  # cut by a kill
    assert read_curve(jobs[0].train.file(), 'mIoU') == {5: 15.0, 10: 20.0, 15: 25.0}
    charts = curve_charts(jobs)
    assert charts.count('<svg') == 1 and 'random/tiny: 10: 25.0' in charts
    assert curve_charts([]) == ''


def simulated_detections(rng, images, quality):
    """One class; images differ in difficulty, objects in how well they are found, and there are false alarms."""
    objects = rng.poisson(2.0, (images, 1))
    owner = np.repeat(np.arange(images), objects[:, 0])
    overlap = quality + rng.normal(0, 0.4, images)[owner] + rng.normal(size=len(owner))
    found = overlap > -0.5
    false = np.repeat(np.arange(images), rng.poisson(1.5, images))
    image = np.concatenate((owner[found], false)).astype(np.int32)
    score = np.concatenate((overlap[found] + rng.normal(0, 0.5, found.sum()), rng.normal(-0.7, 0.8, len(false))))
    hits = np.zeros((len(image), 2), bool)
    hits[: found.sum()] = overlap[found][:, None] > np.array([-0.5, 0.5])
    names = tuple(map(str, range(images)))
    return ImageMatches(names, image, np.zeros_like(image), score, hits, np.zeros_like(hits), objects)


def test_intervals_of_differences_of_ap_hold_the_true_difference_as_often_as_they_say():
    rng = np.random.default_rng(0)
    qualities = (0.3, 0.15)
    truth = [float(simulated_detections(rng, 20_000, one).scores(np.ones((1, 20_000)))[0]) for one in qualities]
    covered = []
    for trial in range(100):
        draws = [bootstrap_scores(simulated_detections(rng, 60, one), 60, 150, trial) for one in qualities]
        low, high = interval_of(draws[0] - draws[1])
        covered.append(low <= truth[0] - truth[1] <= high)
    assert 0.90 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize('backbone', ['random/test_vit', 'timm/test_vit=weights.pth', 'timm/test_vit'])
def test_a_backbone_of_timm_is_put_into_a_config_by_name_and_weights(backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights.pth').touch()
    config = Config.fromfile(ROOT / 'seg_configs/timm_tiny_upernet.py')
    options = backbone_options('a', config, find_source(backbone))
    cfg = load_config('seg/timm_tiny_upernet', parse_options(options))
    assert cfg.model.backbone.model == 'test_vit'
    weights = (cfg.model.backbone.init_cfg or {}).get('checkpoint'), cfg.model.backbone.get('pretrained', False)
    expected = {'random/test_vit': (None, False), 'timm/test_vit': (None, True)}
    assert weights == expected.get(backbone, (str(tmp_path / 'weights.pth'), False))
