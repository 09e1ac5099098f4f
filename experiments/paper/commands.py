"""From settings to a plan: which commands fill which rows."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from mmengine.config import Config

from addp_backbone.files.atomic import sha256_of
from addp_backbone.runtime.option_parsing import config_option
from experiments.paper.recipes import batch_options
from experiments.paper.rows import DETECTION, FINE_TUNING, GENERATION, LINEAR, SEGMENTATION
from experiments.paper.settings import RANDOM, TIMM_VIT, Initialization, Settings, can_have
from experiments.stages import OWN_FOLDER, REPOSITORY, Cost, Plan, RequestError, Stage
from pretrain.evaluation.fidelity import INCEPTION
from pretrain.evaluation.image_sets import SIZE_PX

SPLITS = ('train', 'val')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
BACKBONE_FILE = 'weights.pth'
METRICS_FILE = 'metrics.json'  # of an evaluation
_GENERATED_AT_ONCE = 64  # images a process
_REFERENCE_COST = Cost(disk_gb=6)
_FOLDERS = {FINE_TUNING: 'top1', LINEAR: 'linear', DETECTION: 'ap', SEGMENTATION: 'miou'}  # as the rows are called


def make_plan(settings: Settings) -> Plan:
    """Lists the stages of all rows and initialisations.

    Conversions come first, so that a wrong checkpoint is found in minutes.

    Raises:
        RequestError: If the number of GPUs does not divide a global batch.
    """
    plan = Plan(settings.work_dir)
    trainings = [task for task in settings.tasks if task != GENERATION]
    starts = {
        (init.name, task): _convert(plan, settings, init, task)
        for task in trainings
        for init in settings.inits
        if init.format not in (RANDOM, TIMM_VIT)
    }
    for task in settings.tasks:
        for init in settings.inits:
            if not can_have(init, task):
                continue
            if task == GENERATION:
                evaluation = _generate(plan, settings, init)
            else:
                evaluation = _train_and_test(plan, settings, init, task, starts.get((init.name, task)))
            plan.evaluations[init.name, task] = evaluation
    return plan


def _convert(plan: Plan, settings: Settings, init: Initialization, task: str) -> Stage:
    if task in (
        FINE_TUNING,
        LINEAR,
    ):  # a classifier resizes patches and positions itself when it loads, to the size in its config
        name, more = 'classifier', ['--for', 'classifier', '--img-size', 0, '--patch-size', 0]
    else:
        backbone = Config.fromfile(REPOSITORY / settings.recipe.training[task].config).model.backbone
        if backbone.type == 'ADDPSegViT':  # resizes positions itself when it loads
            name, more = 'segmentor', ['--for', 'segmentor', '--img-size', 0, '--patch-size', backbone.patch_size]
        else:
            name, more = 'backbone', ['--img-size', backbone.pretrain_img_size, '--patch-size', backbone.patch_size]
    return plan.add(
        f'{settings.model}/{init.name}/{name}',
        'convert_checkpoint',
        [init.path, f'{OWN_FOLDER}/{BACKBONE_FILE}'],
        ['--format', init.format, *more],
        uses_gpu=False,
        identity=_checksum(init.path),
        cost=Cost(disk_gb=1.3 if settings.model == 'large' else 0.4),
    )


def _train_and_test(plan: Plan, settings: Settings, init: Initialization, task: str, start: Stage | None) -> Stage:
    training, processes = settings.recipe.training[task], settings.num_gpus
    name = f'{settings.model}/{init.name}/{_FOLDERS[task]}'
    config: object = training.timm_config if init.format == TIMM_VIT else training.config
    data: list[Stage] = []
    if settings.recipe.shapes and task in (DETECTION, SEGMENTATION):
        leaf = _shapes_config(plan, settings, task, training.timm_config if init.format == TIMM_VIT else '')
        config = leaf.file('data.py')
        data.append(leaf)
    try:
        batch = batch_options(training, processes)
    except ValueError as error:
        raise RequestError(str(error)) from error
    common = [*_data_options(settings, task), *_structure_options(init, task), *settings.task_options(task)]
    train = plan.add(
        f'{name}-train',
        'train',
        [config],
        [
            '--work-dir',
            OWN_FOLDER,
            '--resume',
            *training.options,
            '--cfg-options',
            *_weights_options(init, start),
            *batch,
            *common,
        ],
        needs=[start, *data] if start else data,
        num_processes=processes,
        identity=_checksum(init.path) if init.format == TIMM_VIT else '',
        cost=training.cost,
    )
    return plan.add(
        f'{name}-test',
        'test',
        [config, train.folder],
        [
            '--work-dir',
            OWN_FOLDER,
            '--out',
            f'{OWN_FOLDER}/{METRICS_FILE}',
            '--cfg-options',
            'model.backbone.init_cfg=None',  # what is tested comes from training alone
            *common,
        ],
        needs=[train, *data],
        num_processes=processes,
    )


def _weights_options(init: Initialization, start: Stage | None) -> list[str]:
    """What training starts from: a converted file, a file that TimmViT reads, timm's own, or nothing."""
    if init.format == TIMM_VIT and init.path is None:
        return ['model.backbone.init_cfg=None', 'model.backbone.pretrained=True']
    if init.format == RANDOM:
        return ['model.backbone.init_cfg=None']
    file = init.path if start is None else start.file(BACKBONE_FILE)
    return ['model.backbone.init_cfg.type=Pretrained', config_option('model.backbone.init_cfg.checkpoint', file)]


def _structure_options(init: Initialization, task: str) -> list[str]:
    """The name of a ViT of timm; of a linear probe, what keeps the encoder as it was pre-trained.

    ADDP and MAGE have a norm behind the embeddings, others have none.
    """
    if init.format == TIMM_VIT:
        return [f'model.backbone.model={init.timm_model}']
    return ['model.backbone.tokenizer_norm=False'] if task == LINEAR and init.format in ('mae', 'timm') else []


def _data_options(settings: Settings, task: str) -> list[str]:
    if task in (FINE_TUNING, LINEAR):
        root = settings.data['shapes'] / 'classes' if settings.recipe.shapes else settings.data['imagenet']
        return [config_option(f'{loader}.dataset.data_root', root) for loader in LOADERS]
    if settings.recipe.shapes:
        return []  # in the config that tools/new_dataset.py wrote
    if task == SEGMENTATION:
        return [config_option(f'{loader}.dataset.data_root', settings.data['ade20k']) for loader in LOADERS]
    root = settings.data['coco']
    annotations = f'{root}/annotations/instances_val2017.json'
    return [
        *(config_option(f'{loader}.dataset.data_root', f'{root}/') for loader in LOADERS),
        config_option('val_evaluator.ann_file', annotations),
        config_option('test_evaluator.ann_file', annotations),
    ]


def _shapes_config(plan: Plan, settings: Settings, task: str, timm_config: str) -> Stage:
    root, base = settings.data['shapes'], REPOSITORY / (timm_config or settings.recipe.training[task].config)
    options: list[object] = ['--out', f'{OWN_FOLDER}/data.py', '--force', '--base', base]
    for split in SPLITS:
        options += [f'--{split}-images', root / 'images' / split]
        options += (
            [f'--{split}-json', root / f'instances_{split}.json']
            if task == DETECTION
            else [f'--{split}-masks', root / 'annotations' / split]
        )
    if task == SEGMENTATION:
        options += ['--classes', root / 'classes.json']
    return plan.add(
        f'data/{_FOLDERS[task]}{"-timm" if timm_config else ""}',
        'new_dataset',
        ['det' if task == DETECTION else 'seg'],
        options,
        uses_gpu=False,
    )


def _generate(plan: Plan, settings: Settings, init: Initialization) -> Stage:
    recipe, name = settings.recipe, f'{settings.model}/{init.name}'
    assert init.path is not None
    tokenizer = ['--tokenizer', settings.tokenizer] if settings.tokenizer else []
    options = settings.task_options(GENERATION)
    images = plan.add(
        f'{name}/images',
        'generate',
        [recipe.generator, init.path],
        [
            '--num-images',
            settings.num_images or recipe.num_images,
            '--out',
            f'{OWN_FOLDER}/images',
            '--batch-size',
            _GENERATED_AT_ONCE,
            *tokenizer,
            *(['--cfg-options', *options] if options else []),
        ],
        num_processes=settings.num_gpus,
        cost=recipe.generation_cost,
        identity=_checksum(init.path),
    )
    source = settings.data['shapes'] / 'plain' if recipe.shapes else settings.data['imagenet'] / 'val'
    size = [] if recipe.image_px == SIZE_PX else ['--size', recipe.image_px]
    reference = plan.add(
        'data/reference',
        'prepare_imagenet_val',
        [source, f'{OWN_FOLDER}/images', *size],
        uses_gpu=False,
        cost=_REFERENCE_COST,
    )
    weights = ['--inception-weights', settings.inception_weights] if settings.inception_weights else []
    extractor = ['--feature-extractor', recipe.extractor] if recipe.extractor != INCEPTION else []
    mismatch = ['--allow-protocol-mismatch'] if settings.allow_mismatch or recipe.shapes else []
    return plan.add(
        f'{name}/fid',
        'evaluate_generation',
        [images.file('images'), reference.file('images')],
        ['--out', f'{OWN_FOLDER}/{METRICS_FILE}', '--metrics', 'fid', 'isc', *weights, *extractor, *mismatch],
        needs=[images, reference],
    )


def _checksum(path: Path | None) -> str:
    """Of a checkpoint: another file of the same name is another input."""
    if path is None or not path.is_file():
        return ''
    return _checksum_of_version(path, path.stat().st_size, path.stat().st_mtime_ns)


@lru_cache
def _checksum_of_version(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_of(path)
