"""tools/reproduce.py: commands that the tools accept, rows of finished evaluations, resume, what is missing named."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mmengine.config import Config
from running import ROOT, load_tool, run_tool

from addp_backbone.datasets.shapes.writer import ShapeSettings, write_shapes
from addp_backbone.runtime.launch import load_config
from experiments.engine import run_stages
from experiments.paper.commands import METRICS_FILE, make_plan
from experiments.paper.recipes import RECIPES, batch_options
from experiments.paper.rows import (
    DETECTION,
    FINE_TUNING,
    GENERATION,
    LINEAR,
    PAPER_ROWS,
    PUBLISHED,
    ROWS,
    SEGMENTATION,
)
from experiments.paper.settings import RequestError, Settings, read_inits, read_options, read_rows
from experiments.paper.table import collect, describe, write_results
from experiments.processes import Start, start_command
from experiments.slurm import submit_script
from experiments.stages import FINISHED_FILE, Plan, Stage

REPRODUCE = load_tool('reproduce')
MODELS = ('base', 'large')
ALL_ROWS = ','.join(ROWS)
TOOLS = (
    'convert_checkpoint',
    'generate',
    'prepare_imagenet_val',
    'evaluate_generation',
    'train',
    'test',
    'new_dataset',
)
QUICK = (
    '--cfg-options',
    'top1:train_cfg.max_epochs=3',
    *(
        f'top1:{part}_dataloader.{option}'
        for part in ('train', 'val', 'test')
        for option in ('num_workers=0', 'persistent_workers=False')
    ),
)


@pytest.fixture(scope='module')
def tools() -> dict[str, ModuleType]:
    return {name: load_tool(name) for name in TOOLS}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_shapes(
        root,
        ShapeSettings(
            height=32, width=32, train_scenes=2, val_scenes=2, train_per_class=1, val_per_class=1, plain_images=2
        ),
    )
    return root


def settings_of(work_dir: Path, *words: str) -> Settings:
    return REPRODUCE.read_settings(REPRODUCE.parse_args(['--work-dir', str(work_dir), *words]))


def tool_of(command: list[str]) -> tuple[str, list[str]]:
    """Which tool a printed command starts, with which arguments."""
    distributed = re.fullmatch(r'tools/dist_(\w+)\.sh', command[0])
    if distributed:
        number = next(i for i, word in enumerate(command) if word.isdigit())  # the processes, behind CONFIG and CKPT
        return distributed[1], ['--launcher', 'pytorch', *command[1:number], *command[number + 1 :]]
    start = next(i for i, word in enumerate(command) if word.startswith('tools/'))
    return Path(command[start]).stem, command[start + 1 :]


def accept(tools: dict[str, ModuleType], command: list[str]) -> argparse.Namespace:
    """Parses a printed command with the parser of its own tool."""
    tool, words = tool_of(command)
    return tools[tool].parse_args(words)


class Ended:
    """A process that has ended with an exit code."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code


@contextmanager
def in_process(stage: Stage, root: Path, log: Path, lock: int) -> Iterator[Ended]:
    """Runs a stage's tool in this process, which has everything imported."""
    tool, words = tool_of(stage.shell_command('python'))
    assert stage.num_processes == 1
    if tool in ('train', 'test'):
        run_tool(tool, *words)
        yield Ended(0)
    else:
        yield Ended(load_tool(tool).main(words))


def must_not_run(stage: Stage, root: Path, log: Path, lock: int) -> Any:
    raise AssertionError(f'{stage.name} was run')


def run_plan(plan: Plan, report: Callable[[str], None], start: Start = start_command) -> list[Stage]:
    """Runs a plan as tools/reproduce.py does."""
    return run_stages(plan.stages, plan.work_dir, start=start, keep_going=True, report=report)


def quiet(line: str) -> None:
    """Takes the place of print."""


def finish(stage: Stage, metrics: Any) -> None:
    """What a finished evaluation leaves behind."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    (stage.folder / METRICS_FILE).write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
    (stage.folder / FINISHED_FILE).write_text('{}')


@pytest.mark.parametrize(('model', 'num_gpus'), [('base', 4), ('large', 16)])
def test_every_printed_command_is_accepted_by_its_tool_and_its_config_builds(
    model: str,
    num_gpus: int,
    tools: dict[str, ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        REPRODUCE.main(
            ['--model', model, '--rows', ALL_ROWS, '--gpus', str(num_gpus), '--work-dir', str(tmp_path), '--dry-run']
        )
        == 0
    )
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line and not line.startswith('#')]
    assert len(commands) == 14 and list(tmp_path.iterdir()) == []
    configs: dict[tuple[str, str], Config] = {}
    for command in commands:
        arguments = accept(tools, command)
        if hasattr(arguments, 'config'):  # loads as the tool loads it: options that nobody reads are refused
            configs[tool_of(command)[0], Path(arguments.config).stem] = load_config(
                str(ROOT / arguments.config), arguments.cfg_options
            )
    recipe = RECIPES[model]
    for task, training in recipe.training.items():
        cfg = configs['train', Path(training.config).stem]
        accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
        assert cfg.model.backbone.arch == model and cfg.model.backbone.init_cfg.checkpoint.endswith('/weights.pth'), (
            task
        )
        assert cfg.train_dataloader.batch_size * num_gpus * accumulation == training.global_batch
        tested = configs['test', Path(training.config).stem]
        assert tested.model.backbone.init_cfg is None, 'what is tested comes from training alone'
        assert tested.test_dataloader == cfg.test_dataloader
    assert configs['generate', Path(recipe.generator).stem].model.network.arch == model


def test_slurm_jobs_wait_for_what_they_need_and_run_the_same_commands(
    tools: dict[str, ModuleType], tmp_path: Path
) -> None:
    plan = make_plan(settings_of(tmp_path, '--rows', ALL_ROWS, '--gpus', '16'))
    script = submit_script(plan, 'python', ['python', 'tools/reproduce.py', '--table'], '--partition=gpu')
    jobs = re.findall(r"^(job_\w+)=\$\((sbatch [^\n]*) <<'END_OF_JOB'\n(.*?)^END_OF_JOB$", script, re.M | re.S)
    assert len(jobs) == len(plan.stages) + 1
    submitted = {str(stage.folder): f'${variable}' for stage, (variable, _, _) in zip(plan.stages, jobs, strict=False)}
    for stage, (_, head, body) in zip(plan.stages, jobs, strict=False):
        assert '--partition=gpu' in head and f'--ntasks={stage.num_processes} ' in head
        assert re.findall(r'\$job_\d+', head) == [submitted[str(need.folder)] for need in stage.needs]
        command = shlex.split(next(line for line in body.splitlines() if line.startswith('srun')))
        assert getattr(accept(tools, command), 'launcher', None) in (None, 'slurm')
        assert ('--launcher' in command) == (stage.num_processes == 16)
        read = {str(other.folder) for other in plan.stages if other is not stage and str(other.folder) in body}
        assert read == {str(need.folder) for need in stage.needs}, 'it waits for exactly what it reads'
    assert '--dependency=afterany:' in jobs[-1][1] and jobs[-1][1].count('$job_') == len(plan.stages)
    with pytest.raises(RequestError, match='multiple of --gpus-per-node'):
        submit_script(plan, 'python', [], gpus_per_node=10)


def test_a_slurm_job_marks_its_stage_as_finished_only_if_it_went_well(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "it's work")
    stage = plan.add('a stage', 'doctor', [], ['--help'])
    body = re.findall(r"<<'END_OF_JOB'\n(.*?)^END_OF_JOB$", submit_script(plan, 'python', ['true']), re.M | re.S)[0]
    stage.folder.mkdir(parents=True)
    (tmp_path / 'srun').write_text('#!/bin/sh\nexit $CODE\n')
    (tmp_path / 'srun').chmod(0o755)
    for code in (3, 0):
        environment = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'CODE': str(code)}
        assert subprocess.run(['bash', '-c', body], env=environment, check=False).returncode == code
        assert stage.finished == (code == 0)
    assert json.loads((stage.folder / FINISHED_FILE).read_text())['command'] == ['tools/doctor.py', '--help']
    assert submit_script(plan, 'python', ['true']).count('sbatch') == 1, 'only the table is left'


def test_a_tiny_run_fills_the_table_from_its_evaluations_file_and_is_not_repeated(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        '--model',
        'tiny',
        '--shapes',
        str(shapes),
        '--init',
        'random',
        '--rows',
        'top1',
        '--work-dir',
        str(tmp_path),
        *QUICK,
    ]
    monkeypatch.chdir(ROOT)
    settings = settings_of(tmp_path, *words)
    plan = make_plan(settings)
    assert collect(plan, settings)[0].status == 'not run'
    assert run_plan(plan, quiet, in_process) == []
    assert REPRODUCE.main(words) == 0, 'everything is finished: no subprocess is started'
    (entry,) = json.loads((tmp_path / 'tiny/results.json').read_text())['rows']
    metrics = json.loads(Path(entry['file']).read_text())
    assert entry['value'] == pytest.approx(metrics['accuracy/top1']) and entry['status'] == 'measured'
    assert entry['published'] is None and 'changed: train_cfg.max_epochs=3' in entry['protocol']
    assert f'{entry["value"]:.2f}' in capsys.readouterr().out
    assert (tmp_path / 'tiny/results.md').read_text().count('not run') == 0
    assert run_plan(plan, quiet, must_not_run) == []
    for change in (['--gpus', '2'], ['--cfg-options', 'top1:optim_wrapper.optimizer.lr=1.0']):
        other = make_plan(settings_of(tmp_path, *words, *change))
        assert not any(stage.finished for stage in other.stages), 'another command is another stage'
    assert all(stage.finished for stage in plan.stages), 'and the former one keeps its results'


@pytest.mark.parametrize(
    ('metrics', 'status'),
    [
        ('{"coco/bbox_mAP": 0.5', 'not run'),
        ('', 'not run'),
        ('{}', 'no value'),
        ('{"coco/bbox_mAP": null}', 'no value'),
        ('{"coco/bbox_mAP": NaN}', 'no value'),
        ('[0.5]', 'no value'),
    ],
    ids=['partial', 'empty', 'no key', 'null', 'nan', 'list'],
)
def test_a_file_without_the_value_leaves_the_row_empty_and_says_why(tmp_path: Path, metrics: str, status: str) -> None:
    settings = settings_of(tmp_path, '--rows', 'ap')
    plan = make_plan(settings)
    finish(plan.stages[-1], metrics)
    (entry,) = collect(plan, settings)
    assert entry.value is None and entry.difference is None and entry.status.startswith(f'{status}: ')
    assert METRICS_FILE in entry.status and f'| {status} | 51.70 | - |' in describe([entry], settings)


def test_a_file_of_an_evaluation_that_did_not_finish_is_not_read(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, '--rows', 'ap')
    plan = make_plan(settings)
    finish(plan.stages[-1], {'coco/bbox_mAP': 0.517})
    (plan.stages[-1].folder / FINISHED_FILE).unlink()
    assert collect(plan, settings)[0].status == 'not run'
    finish(plan.stages[-1], {'coco/bbox_mAP': 0.517})
    (plan.stages[-1].folder / METRICS_FILE).unlink()
    assert collect(plan, settings)[0].value is None


def test_values_stand_beside_the_published_ones_with_difference_and_protocol(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, '--rows', ALL_ROWS)
    plan = make_plan(settings)
    for (_, task), stage in plan.evaluations.items():
        finish(
            stage,
            {
                GENERATION: dict(
                    metrics=dict(frechet_inception_distance=9.4, inception_score_mean=95.0),
                    protocol=dict(mismatches=['8 images']),
                ),
                FINE_TUNING: {'accuracy/top1': 83.7},
                LINEAR: {'accuracy/top1': 60.0},
                DETECTION: {'coco/bbox_mAP': 0.52},
                SEGMENTATION: {'mIoU': 48.1},
            }[task],
        )
    entries = {entry.row: entry for entry in collect(plan, settings)}
    assert {name: (entry.value, entry.published, entry.difference) for name, entry in entries.items()} == {
        'fid': (9.4, 8.9, 0.5),
        'is': (95.0, 95.3, -0.3),
        'top1': (83.7, 83.9, -0.2),
        'linear': (60.0, None, None),
        'ap': (52.0, 51.7, 0.3),
        'miou': (48.1, 48.1, 0.0),
    }
    assert '8 images' in entries['fid'].protocol and 'ViTDet' in entries['ap'].protocol
    table = write_results(list(entries.values()), plan, settings)
    assert '| COCO AP box | addp-vit-base-16 | 52.00 | 51.70 | +0.30 |' in table
    assert (tmp_path / 'base/results.md').read_text() == table


def test_checkpoints_of_several_methods_are_compared_and_only_addp_has_published_values(tmp_path: Path) -> None:
    words = [
        '--init',
        'ours=a.pth',
        '--format',
        'addp',
        '--init',
        'b/mae.pth',
        '--format',
        'mae',
        '--init',
        'random',
        '--rows',
        'is,linear',
    ]
    settings = settings_of(tmp_path, *words)
    plan = make_plan(settings)
    text = {(stage.name, Path(stage.command[0]).stem): ' '.join(stage.shell_command('python')) for stage in plan.stages}
    assert (
        'tokenizer_norm=False' in text['base/mae/linear-train', 'train']
        and '--format mae' in text['base/mae/classifier', 'convert_checkpoint']
    )
    assert 'tokenizer_norm' not in text['base/ours/linear-train', 'train']
    assert 'model.backbone.init_cfg=None' in text['base/random/linear-train', 'train']
    for stage in plan.evaluations.values():
        finish(stage, {'accuracy/top1': 50.0, 'metrics': {'inception_score_mean': 90.0}})
    entries = collect(plan, settings)
    assert [entry.init for entry in entries if entry.published is not None] == ['ours']
    assert [entry.status for entry in entries if entry.row == 'is'][1:] == [
        'not run: this checkpoint cannot generate'
    ] * 2
    assert '| mae | not run | 50.00 |' in describe(entries, settings)


@pytest.mark.parametrize('model', ['base', 'tiny'])
def test_vits_of_timm_are_trained_by_name_or_from_a_file_on_the_rows_of_dense_prediction(
    model: str, tools: dict[str, ModuleType], tmp_path: Path
) -> None:
    file = tmp_path / 'eva.pth'
    inits = {'vit_small_patch14_dinov2': '', 'eva02_tiny_patch14_224': f'={file}'}
    words = [word for name, path in inits.items() for word in ('--init', f'timm/{name}{path}')]
    settings = settings_of(tmp_path, *words, '--init', 'random', '--model', model, '--rows', 'top1,ap,miou')
    plan = make_plan(settings)
    stages = {stage.name: stage for stage in plan.stages}
    assert not any('convert' in stage.command[0] for stage in plan.stages)
    for name, (task, leaf) in itertools.product(inits, (('ap', 'maskrcnn'), ('miou', 'upernet'))):
        train, test = stages[f'{model}/{name}/{task}-train'], stages[f'{model}/{name}/{task}-test']
        if model == 'tiny':
            data = ' '.join(stages[f'data/{task}-timm'].shell_command('python'))
            assert f'timm_tiny_{leaf}.py' in data and list(train.needs) == [stages[f'data/{task}-timm']]
            continue
        trained, tested = (
            load_config(str(ROOT / arguments.config), arguments.cfg_options)
            for arguments in (accept(tools, stage.shell_command('python')) for stage in (train, test))
        )
        assert Path(trained.filename).name == f'timm_{leaf}.py'
        assert trained.model.backbone.model == tested.model.backbone.model == name
        assert tested.model.backbone.init_cfg is None and not tested.model.backbone.get('pretrained')
        if inits[name]:
            assert trained.model.backbone.init_cfg.checkpoint == str(file)
        else:
            assert trained.model.backbone.pretrained and trained.model.backbone.init_cfg is None
    statuses = {(entry.init, entry.row): entry.status for entry in collect(plan, settings)}
    assert 'no classifier' in statuses['vit_small_patch14_dinov2', 'top1'] and f'{model}/random/top1-test' in stages


def test_another_file_under_the_same_name_is_another_input(tmp_path: Path) -> None:
    words = ['--init', f'x={tmp_path}/x.pth', '--format', 'mae', '--rows', 'ap']
    folders = []
    for content in (b'one', b'two', b'one'):
        (tmp_path / 'x.pth').write_bytes(content)
        folders.append([stage.folder for stage in make_plan(settings_of(tmp_path / 'work', *words)).stages])
    assert folders[0] == folders[2] and not set(folders[0]) & set(folders[1])


def test_a_moved_work_dir_keeps_its_results(tmp_path: Path) -> None:
    names = [
        [stage.folder.name for stage in make_plan(settings_of(tmp_path / place, '--rows', 'fid,ap')).stages]
        for place in 'ab'
    ]
    assert names[0] == names[1]


def test_a_failed_stage_stops_those_that_need_it_and_no_others(tmp_path: Path) -> None:
    plan, lines = Plan(tmp_path), []
    bad = plan.add('bad', 'doctor', [], ['--no-such-option'])
    after = plan.add('after', 'doctor', [bad.folder], needs=[bad])
    good = plan.add('good', 'doctor', [], ['--help'])
    assert run_plan(plan, lines.append) == [bad]
    assert (bad.finished, after.finished, good.finished) == (False, False, True)
    text = '\n'.join(lines)
    assert 'unrecognized arguments: --no-such-option' in text and 'after: left out, as bad failed' in text
    assert json.loads((good.folder / FINISHED_FILE).read_text())['command'] == ['tools/doctor.py', '--help']


def test_everything_that_is_missing_is_listed_and_nothing_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'coco/val2017').mkdir(parents=True)
    (tmp_path / 'coco/val2017/1.jpg').touch()
    roots = [f'--{name}={tmp_path / name}' for name in ('imagenet', 'coco', 'ade20k')]
    init = ['--init', f'{tmp_path}/absent.pth', '--format', 'addp', f'--inception-weights={tmp_path}/none.pth']
    assert REPRODUCE.main([*roots, *init, '--work-dir', str(tmp_path / 'work')]) == 1
    text = capsys.readouterr().err
    for path in (
        'imagenet/train',
        'imagenet/val',
        'coco/train2017',
        'coco/annotations/instances_val2017.json',
        'ade20k/images/validation',
        'ade20k/annotations/training',
        'absent.pth',
        'none.pth',
    ):
        assert f'{tmp_path}/{path}' in text, path
    assert f'{tmp_path}/coco/val2017 has 1 images, wanted 5000' in text
    assert '--gpus 8, but this machine has' in text and 'nothing was started' in text
    assert not (tmp_path / 'work').exists()


def test_data_of_other_sizes_go_when_allowed_and_the_table_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ('images', 'annotations'):
        for split in ('training', 'validation'):
            (tmp_path / 'ade' / kind / split).mkdir(parents=True)
    words = [f'--ade20k={tmp_path}/ade', '--init', 'random', '--rows', 'miou', '--work-dir', str(tmp_path / 'work')]
    assert REPRODUCE.main([*words, '--allow-protocol-mismatch', '--dry-run']) == 0
    assert 'images, wanted' not in capsys.readouterr().err
    assert REPRODUCE.main([*words, '--allow-protocol-mismatch', '--table']) == 0
    assert 'images/validation has 0 images, wanted 2000' in (tmp_path / 'work/base/results.md').read_text()


@pytest.mark.parametrize('num_gpus', [1, 2, 8, 16, 64])
def test_the_global_batch_is_kept_on_any_number_of_gpus_that_divides_it(num_gpus: int) -> None:
    for recipe in (RECIPES[model] for model in MODELS):
        for training in recipe.training.values():
            if training.global_batch % num_gpus:
                with pytest.raises(ValueError, match='do not divide'):
                    batch_options(training, num_gpus)
                continue
            options = dict(option.split('=') for option in batch_options(training, num_gpus))
            images = int(options.get('train_dataloader.batch_size', training.images_per_gpu))
            accumulation = int(options.get('optim_wrapper.accumulative_counts', 1))
            assert images * num_gpus * accumulation == training.global_batch and images <= training.images_per_gpu
            intervals = {name: int(options[name]) for name in training.intervals if name in options}
            assert intervals == (
                {name: accumulation * count for name, count in training.intervals.items()} if accumulation > 1 else {}
            )


@pytest.mark.parametrize('model', MODELS)
def test_recipes_agree_with_the_configs_and_the_configs_with_the_published_values(model: str) -> None:
    for task, training in RECIPES[model].training.items():
        cfg = Config.fromfile(ROOT / training.config)
        assert cfg.train_dataloader.batch_size == training.images_per_gpu
        for name, value in training.intervals.items():
            node: Any = cfg
            for part in name.split('.'):
                node = node[part]
            assert node == value, name
        if '--auto-scale-lr' in training.options:
            assert cfg.auto_scale_lr.base_batch_size == training.global_batch
        published = [PUBLISHED[model][row] for row in PAPER_ROWS if ROWS[row].task == task]
        text = (ROOT / training.config).read_text()
        assert all(f'published {value}' in text for value in published), training.config
    assert set(PUBLISHED[model]) == set(PAPER_ROWS)
    assert RECIPES[model].image_px == 256


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--rows', 'fid,best'], 'unknown best'),
        (['--rows', ''], 'none given'),
        (['--init', 'a.pth'], '1 checkpoints .* but 0 formats'),
        (['--init', 'random', '--format', 'mae'], '0 checkpoints .* but 1 formats'),
        (
            ['--init', 'a/x.pth', '--format', 'mae', '--init', 'b/x.pth', '--format', 'mae'],
            'two checkpoints are called x',
        ),
        (['--init', 'a.pth', '--format', 'mae', '--rows', 'fid'], 'need a checkpoint of ADDP'),
        (['--init', 'timm/resnet50'], 'no plain ViT'),
        (['--init', 'timm/vit_smal_patch14_dinov2'], 'did you mean vit_small_patch14_dinov2'),
        (['--init', 'timm/vit_tiny_patch16_224', '--rows', 'ap,top1'], 'has rows ap,miou, not top1'),
        (['--init', 'timm/vit_tiny_patch16_224', '--format', 'timm'], '0 checkpoints .* but 1 formats'),
        (['--model', 'tiny'], 'no released checkpoint'),
        (['--cfg-options', 'lr=3'], 'wanted ROW:KEY=VALUE'),
        (['--gpus', '3', '--rows', 'ap'], '3 GPUs do not divide'),
        (['--gpus', '0'], '--gpus must be at least 1'),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        make_plan(settings_of(tmp_path, *words))


def test_without_checkpoints_of_addp_the_rows_of_generation_are_left_out(tmp_path: Path) -> None:
    assert settings_of(tmp_path, '--init', 'random').rows == ('top1', 'ap', 'miou')
    assert settings_of(tmp_path, '--init', 'timm/vit_tiny_patch16_224').rows == ('ap', 'miou')
    assert settings_of(tmp_path).rows == PAPER_ROWS
    assert read_rows(None, read_inits([], [], 'base')) == PAPER_ROWS
    assert read_options(['ap:a=1', 'ap:b=2']) == {'ap': ('a=1', 'b=2')}
