"""Which models the demo finds, and how many it keeps in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.demo.models import GENERATES, MAX_LOADED, PREDICTS, Loaded, TrainedModel, find_models

SEGMENTOR = "model = dict(type='EncoderDecoder')\ntest_dataloader = dict(batch_size=1)\n"
ADDP = "model = dict(type='ADDPPretraining', network=dict())\n"


def write_run(folder: Path, config: str = SEGMENTOR, name: str = 'config.py') -> Path:
    folder.mkdir(parents=True)
    (folder / name).write_text(config, encoding='utf-8')
    (folder / 'iter_10.pth').write_bytes(b'')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_10.pth'), encoding='utf-8')
    return folder


def test_work_dirs_are_found_below_a_folder_and_told_apart_by_their_configs(tmp_path: Path) -> None:
    write_run(tmp_path / 'all/runs/streets')
    write_run(tmp_path / 'all/addp', ADDP)
    write_run(
        tmp_path / 'all/tokenizer', "model = dict(type='TokenizerTraining')\ntest_dataloader = dict(batch_size=1)\n"
    )
    write_run(tmp_path / 'all/.hidden/streets')
    (tmp_path / 'all/photos').mkdir()
    (tmp_path / 'all/configs').mkdir()
    (tmp_path / 'all/configs/config.py').write_text(SEGMENTOR, encoding='utf-8')
    found = find_models([tmp_path / 'all'])
    assert [(model.name, model.kind) for model in found] == [
        ('all/addp', GENERATES),
        ('all/runs/streets', PREDICTS),
    ]


def test_a_folder_that_is_given_twice_counts_once_and_equal_names_are_numbered(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / 'a/streets'), write_run(tmp_path / 'b/streets')
    assert [model.name for model in find_models([one, one, other])] == ['streets', 'streets (2)']


def test_of_several_configs_the_last_one_is_taken(tmp_path: Path) -> None:
    import os

    run = write_run(tmp_path / 'run', name='b.py')
    (run / 'a.py').write_text(SEGMENTOR, encoding='utf-8')
    os.utime(run / 'b.py', (1, 1))
    assert find_models([run])[0].config.name == 'a.py'


def test_a_config_with_its_checkpoint_is_a_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / 'run')
    (model,) = find_models([], [(run / 'config.py', run / 'iter_10.pth')])
    assert (model.name, model.kind, model.checkpoint) == ('config (iter_10.pth)', PREDICTS, run / 'iter_10.pth')


@pytest.mark.parametrize(
    ('folders', 'pairs', 'message'),
    [
        (['nowhere'], [], 'is no folder: give the work dir'),
        (['empty'], [], 'holds no work dir of a detector, segmentor, classifier or ADDP'),
        ([], [('run/config.py', 'run/nothing.pth')], 'does not exist'),
        (
            [],
            [('run/none.py', 'run/iter_10.pth')],
            "config of no detector, segmentor, classifier or ADDP; its model is 'X'",
        ),
    ],
)
def test_what_holds_no_model_is_refused(folders: list, pairs: list, message: str, tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    run = write_run(tmp_path / 'run')
    (run / 'none.py').write_text("model = dict(type='X')\n", encoding='utf-8')
    with pytest.raises(ValueError, match=message):
        find_models([tmp_path / folder for folder in folders], [[tmp_path / file for file in pair] for pair in pairs])


def test_only_the_models_used_last_stay_in_memory() -> None:
    made: list[str] = []
    models = [TrainedModel(name, Path(name), Path(), PREDICTS) for name in 'abc']
    models.append(TrainedModel('d', Path('d'), Path(), GENERATES))
    loaded = Loaded(models, PREDICTS, lambda config, checkpoint: made.append(config.name) or config.name)
    assert loaded.names == ['a', 'b', 'c']
    for name in ('a', 'b', 'a', 'c', 'a', 'b'):
        assert loaded.get(name) == name
    assert MAX_LOADED == 2 and made == ['a', 'b', 'c', 'b']


@pytest.mark.parametrize('name', ['../secret', None, ['a']])
def test_a_browser_cannot_name_another_model(name: object) -> None:
    with pytest.raises(ValueError, match=r'there is no model .* choose one of a'):
        Loaded([TrainedModel('a', Path(), Path(), PREDICTS)], PREDICTS, lambda config, checkpoint: 0).get(name)
