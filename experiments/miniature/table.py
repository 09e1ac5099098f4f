"""The paper's table in miniature: which commands make it, and how it is read from what they leave behind.

One tiny ADDP is pre-trained on generated shapes. Then every row is trained twice, from its weights and from random
ones, with the same schedule and data, once for each seed. ``tools/quickstart.py`` is the command.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from experiments.stages import Stage
from pretrain.evaluation.feature_extractors import RANDOM_CONVOLUTIONS
from pretrain.evaluation.fidelity import name_of

INITS = ('addp', 'random')
_SHAPES = ('--typical', '0.9', '--clutter', '6', '--shape-size', '0.2', '0.5')  # learnt in minutes, yet not at once
_MIN = 8  # images or iterations, however small the scale
_SHOWN = 8  # images that the pictures show
_SHOWN_SCORE = 0.2  # detectors after minutes of training are not sure of anything


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the defaults take about 20 minutes on two cores.

    Attributes:
        side_px: Side of the images; pre-training and classification see them smaller.
        plain: Images for pre-training.
        train_scenes: Images to train detection and segmentation with.
        val_scenes: Images to evaluate them with.
        train_per_class: Images a class to train classification with.
        val_per_class: Images a class to evaluate it with.
        tokenizer: Iterations of the tokenizer.
        token_predictor: Iterations of the token predictor.
        addp: Iterations of ADDP.
        samples: Generated images.
        classification_epochs: Passes of fine-tuning and of the linear probe.
        detection: Iterations of Mask R-CNN; few, for that is where weights matter (docs/miniature.md has longer ones).
        segmentation: Iterations of UperNet; the same.
    """

    side_px: int = 128
    plain: int = 1500
    train_scenes: int = 60
    val_scenes: int = 60
    train_per_class: int = 20
    val_per_class: int = 40
    tokenizer: int = 350
    token_predictor: int = 500
    addp: int = 800
    samples: int = 36
    classification_epochs: int = 30
    detection: int = 150
    segmentation: int = 100

    def scaled(self, factor: float) -> Sizes:
        """Everything but the side times ``factor``, at least 8 (3 epochs)."""
        numbers = {name: _times(count, factor) for name, count in vars(self).items() if name != 'side_px'}
        numbers['classification_epochs'] = max(3, round(self.classification_epochs * factor))
        return Sizes(side_px=self.side_px, **numbers)

    def pretrained(self, factor: float) -> Sizes:
        """ADDP trained ``factor`` times as long, everything else as it is (the token predictor's loss fell by 0.04 from 900 to 1600)."""
        return replace(self, addp=_times(self.addp, factor))

    def transferred(self, factor: float) -> Sizes:
        """Mask R-CNN and UperNet trained ``factor`` times as long, everything else as it is."""
        return replace(self, detection=_times(self.detection, factor), segmentation=_times(self.segmentation, factor))


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        task: Name of the stages it comes from, and of their result files.
        title: What the table calls it.
        key: Name of the number in the result file.
        factor: Makes it the unit of the table.
    """

    task: str
    title: str
    key: str
    factor: float = 1.0


GENERATION_ROWS = (
    Row(
        'generation',
        'Generation: Fréchet distance of random convolutions (lower is better)',
        'frechet_inception_distance',
    ),
    Row('generation', 'Generation: class score of random convolutions', 'inception_score_mean'),
)
TRANSFER_ROWS = (
    Row('finetune', 'Classification, fine-tuned: top-1 (%)', 'accuracy/top1'),
    Row('linear', 'Classification, linear probe: top-1 (%)', 'accuracy/top1'),
    Row('det', 'Mask R-CNN: AP box', 'coco/bbox_mAP', 100.0),
    Row('det', 'Mask R-CNN: AP50 box', 'coco/bbox_mAP_50', 100.0),
    Row('det', 'Mask R-CNN: AP mask', 'coco/segm_mAP', 100.0),
    Row('seg', 'UperNet: mIoU', 'mIoU'),
)


class Miniature:
    """Stages and results of one table.

    Args:
        work: Folder for everything that is made; absolute.
        sizes: How much of everything.
        seeds: Seeds of the transfer trainings.
        amp: Whether to train in bfloat16 autocast.
    """

    def __init__(self, work: Path, sizes: Sizes, seeds: Sequence[int], amp: bool = False) -> None:
        self.work = work
        self.sizes = sizes
        self.seeds = tuple(seeds)
        self.precision = ('--amp',) if amp else ()
        self.data = work / 'shapes'
        self.backbone = work / 'backbone.pth'

    def stages(self) -> list[Stage]:
        """All stages in order; each uses only files of those before it, and names them.

        Those from random weights stand first: they can run beside pre-training.
        """
        stages = [self._make_data(), *self._pretrain(), *self._make_configs()]
        for init in reversed(INITS):
            for seed in self.seeds:
                for task in ('det', 'seg', 'finetune', 'linear'):
                    stages += self._transfer(task, init, seed)
        return [*stages, *self._generate(), *self._show()]

    def result_file(self, task: str, init: str, seed: int) -> Path:
        """Where the evaluation of a transfer training leaves its numbers."""
        return self.work / 'results' / f'{task}_{init}_{seed}.json'

    def run_dir(self, task: str, init: str, seed: int) -> Path:
        """Work dir of a transfer training."""
        return self.work / 'runs' / f'{task}_{init}_{seed}'

    def _make_data(self) -> Stage:
        s = self.sizes
        return Stage(
            'shapes',
            35,
            (
                'tools/make_shapes.py',
                str(self.data),
                '--size',
                str(s.side_px),
                *_SHAPES,
                '--train',
                str(s.train_scenes),
                '--val',
                str(s.val_scenes),
                '--plain',
                str(s.plain),
                '--train-per-class',
                str(s.train_per_class),
                '--val-per-class',
                str(s.val_per_class),
            ),
        )

    def _pretrain(self) -> list[Stage]:
        s, work = self.sizes, self.work
        tokenizer = f'model.init_cfg.tokenizer={work / "tokenizer"}'
        predictor = f'model.init_cfg.token_predictor={work / "token_predictor"}'
        return [
            self._pretrain_one(
                'tokenizer',
                'shapes',
                s.tokenizer,
                0.22 * s.tokenizer,
                'model.objective.quantize_from_iters=' + str(s.tokenizer // 6),
                'default_hooks.revive_codes.stop_after_iters=' + str(s.tokenizer * 3 // 4),
            ),
            self._pretrain_one('token_predictor', 'tokenizer', s.token_predictor, 0.36 * s.token_predictor, tokenizer),
            self._pretrain_one('addp', 'token_predictor', s.addp, 0.68 * s.addp, tokenizer, predictor),
            Stage(
                'convert',
                8,
                (
                    'tools/convert_checkpoint.py',
                    str(work / f'addp/iter_{s.addp}.pth'),
                    str(self.backbone),
                    '--patch-size',
                    '8',
                    '--img-size',
                    '128',
                ),
                (self.backbone,),
                ('addp',),
            ),
        ]

    def _pretrain_one(self, network: str, needs: str, iters: int, seconds: float, *options: str) -> Stage:
        checkpoint = self.work / network / f'iter_{iters}.pth'
        return Stage(
            network,
            seconds,
            (
                'tools/train.py',
                f'pretrain/configs/{network}_tiny.py',
                '--work-dir',
                str(self.work / network),
                '--resume',
                *self.precision,
                '--cfg-options',
                f'train_cfg.max_iters={iters}',
                f'train_dataloader.dataset.data_root={self.data / "plain"}',
                f'default_hooks.checkpoint.interval={-(-iters // 4)}',
                *options,
            ),
            (checkpoint,),
            (needs,),
        )

    def _generate(self) -> list[Stage]:
        samples, reference, result = (
            self.work / 'samples',
            self.work / 'reference',
            self.work / 'results' / 'generation.json',
        )
        return [
            Stage(
                'generate',
                20,
                (
                    'tools/generate.py',
                    'pretrain/configs/addp_tiny.py',
                    str(self.work / 'addp'),
                    '--num-images',
                    str(self.sizes.samples),
                    '--out',
                    str(samples),
                    '--steps-figure',
                    '--top-p',
                    '0.3',
                    '--temperature',
                    '2',
                    '--tokenizer',
                    str(self.work / 'tokenizer'),
                ),
                (samples / 'grid.png',),
                ('addp',),
            ),
            Stage(
                'reference',
                10,
                ('tools/prepare_imagenet_val.py', str(self.data / 'plain'), str(reference), '--size', '32'),
                needs=('shapes',),
            ),
            Stage(
                'fid_is',
                15,
                (
                    'tools/evaluate_generation.py',
                    str(samples),
                    str(reference),
                    '--feature-extractor',
                    RANDOM_CONVOLUTIONS,
                    '--metrics',
                    'fid',
                    'isc',
                    '--allow-protocol-mismatch',
                    '--out',
                    str(result),
                ),
                (result,),
                ('generate', 'reference'),
            ),
        ]

    def _make_configs(self) -> list[Stage]:
        configs, images = self.work / 'configs', self.data / 'images'
        both = [f'--{split}-images={images / split}' for split in ('train', 'val')]
        det, seg = configs / 'shapes_det.py', configs / 'shapes_seg.py'
        return [
            Stage(
                'det_config',
                8,
                (
                    'tools/new_dataset.py',
                    'det',
                    '--out',
                    str(det),
                    '--force',
                    '--base',
                    'det_configs/addp_tiny_maskrcnn_128px.py',
                    *both,
                    *(f'--{split}-json={self.data}/instances_{split}.json' for split in ('train', 'val')),
                ),
                (det,),
                ('shapes',),
            ),
            Stage(
                'seg_config',
                8,
                (
                    'tools/new_dataset.py',
                    'seg',
                    '--out',
                    str(seg),
                    '--force',
                    '--base',
                    'seg_configs/addp_tiny_upernet_128px.py',
                    f'--classes={self.data}/classes.json',
                    *both,
                    *(f'--{split}-masks={self.data}/annotations/{split}' for split in ('train', 'val')),
                ),
                (seg,),
                ('shapes',),
            ),
        ]

    def _transfer(self, task: str, init: str, seed: int) -> list[Stage]:
        """Training and evaluation."""
        config, seconds, options = (
            self._classify(task, init) if task in ('finetune', 'linear') else self._predict_densely(task, init)
        )
        run, result = self.run_dir(task, init, seed), self.result_file(task, init, seed)
        name = self._name(task, init, seed)
        data, weights = (f'{task}_config', 'convert') if task in ('det', 'seg') else ('shapes', 'addp')
        needs = (data, weights) if init == 'addp' else (data,)
        return [
            Stage(
                name,
                seconds,
                (
                    'tools/train.py',
                    str(config),
                    '--work-dir',
                    str(run),
                    '--resume',
                    *self.precision,
                    '--cfg-options',
                    f'randomness.seed={seed}',
                    *options,
                ),
                (run / 'last_checkpoint',),
                needs,
            ),
            Stage(
                f'{name}_test',
                12,
                (
                    'tools/test.py',
                    str(config),
                    str(run),
                    '--work-dir',
                    str(run / 'test'),
                    '--out',
                    str(result),
                    '--cfg-options',
                    *(o for o in options if 'data_root' in o),
                    'model.backbone.init_cfg=None',
                ),
                (result,),
                (name,),
            ),
        ]

    def _name(self, task: str, init: str, seed: int) -> str:
        return f'{task}_{init}_seed{seed}'

    def _classify(self, task: str, init: str) -> tuple[Path, float, list[str]]:
        weights = (
            ['model.backbone.init_cfg=None']
            if init == 'random'
            else [
                'model.backbone.init_cfg.type=Pretrained',
                f'model.backbone.init_cfg.checkpoint={self.work}/addp/iter_{self.sizes.addp}.pth',
            ]
        )
        data = [f'{part}_dataloader.dataset.data_root={self.data / "classes"}' for part in ('train', 'val', 'test')]
        options = [f'train_cfg.max_epochs={self.sizes.classification_epochs}', *data, *weights]
        seconds = (2.2 if task == 'finetune' else 1.1) * self.sizes.classification_epochs
        return Path(f'pretrain/configs/{task}_tiny.py'), seconds, options

    def _predict_densely(self, task: str, init: str) -> tuple[Path, float, list[str]]:
        iters = self.sizes.detection if task == 'det' else self.sizes.segmentation
        warm_up = min(50, iters // 4)
        options = [
            f'train_cfg.max_iters={iters}',
            f'train_cfg.val_interval={iters + 1}',
            f'default_hooks.checkpoint.interval={-(-iters // 4)}',
            f'param_scheduler.0.end={warm_up}',
            f'param_scheduler.1.begin={warm_up}',
        ]
        if init == 'addp':
            options += [
                'model.backbone.init_cfg.type=Pretrained',
                f'model.backbone.init_cfg.checkpoint={self.backbone}',
            ]
        return self.work / 'configs' / f'shapes_{task}.py', (0.57 if task == 'det' else 0.5) * iters, options

    def _show(self) -> list[Stage]:
        """Overlays of both dense tasks and the curves of pre-training."""
        shown = sorted(f'{self.data}/images/val/{i:06}.png' for i in range(min(_SHOWN, self.sizes.val_scenes)))
        stages = []
        for task, iters, options in (
            ('det', self.sizes.detection, ('--score-thr', str(_SHOWN_SCORE))),
            ('seg', self.sizes.segmentation, ()),
        ):
            for init in INITS:
                out = self.work / f'{task}_{init}_predictions'
                checkpoint = self.run_dir(task, init, self.seeds[0]) / f'iter_{iters}.pth'
                stages.append(
                    Stage(
                        f'{task}_{init}_predict',
                        5,
                        (
                            'tools/predict.py',
                            f'{self.work}/configs/shapes_{task}.py',
                            str(checkpoint),
                            *shown,
                            '--out',
                            str(out),
                            *options,
                        ),
                        (out / 'predictions.json',),
                        (self._name(task, init, self.seeds[0]),),
                    )
                )
        curves = self.work / 'curves.png'
        runs = [str(self.work / name) for name in ('tokenizer', 'token_predictor', 'addp')]
        return [
            *stages,
            Stage('curves', 5, ('tools/plot_curves.py', *runs, '--out', str(curves)), (curves,), ('addp',)),
        ]

    def results(self) -> dict[str, dict[str, list[float]]]:
        """Reads every result file: row title -> initialisation -> one number for each seed.

        Raises:
            OSError, KeyError: If an evaluation has not finished.
        """
        table: dict[str, dict[str, list[float]]] = {}
        generation = json.loads((self.work / 'results' / 'generation.json').read_text(encoding='utf-8'))['metrics']
        for row in GENERATION_ROWS:
            table[row.title] = {'addp': [generation[name_of(row.key, RANDOM_CONVOLUTIONS)] * row.factor]}
        for row in TRANSFER_ROWS:
            table[row.title] = {
                init: [self._read(row, init, seed) * row.factor for seed in self.seeds] for init in INITS
            }
        return table

    def _read(self, row: Row, init: str, seed: int) -> float:
        metrics = json.loads(self.result_file(row.task, init, seed).read_text(encoding='utf-8'))
        return metrics[row.key] if metrics else 0.0  # no metrics: the detector predicted nothing at all


def _times(count: int, factor: float) -> int:
    return max(_MIN, round(count * factor))


def as_markdown(results: dict[str, dict[str, list[float]]]) -> str:
    """The table as Markdown; mean and standard deviation where there are several seeds."""
    lines = ['| measured on generated shapes | ADDP weights | random weights |', '|---|---|---|']
    lines += [
        f'| {title} | {as_text(numbers.get("addp"))} | {as_text(numbers.get("random"))} |'
        for title, numbers in results.items()
    ]
    return '\n'.join(lines) + '\n'


def as_text(values: Sequence[float] | None) -> str:
    """Mean, and standard deviation if there are several; small numbers with three decimals."""
    if not values:
        return ''
    decimals = 1 if abs(mean(values)) >= 5 else 3
    return f'{mean(values):.{decimals}f}' + (f' ± {stdev(values):.{decimals}f}' if len(values) > 1 else '')
