"""Which commands make the paper's table in miniature.

One tiny ADDP is pre-trained on generated shapes. Then every row is trained twice, from its weights and from random
ones, with the same schedule and data, once for each seed. ``tools/quickstart.py`` is the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from addp_backbone.networks.arch import PRESETS
from addp_backbone.runtime.option_parsing import config_option
from experiments.miniature.sizes import Sizes
from experiments.stages import Stage
from pretrain.evaluation.feature_extractors import RANDOM_CONVOLUTIONS

INITS = ('addp', 'random')
_SHAPES = ('--typical', '0.9', '--clutter', '6', '--shape-size', '0.2', '0.5')  # learnt in minutes, yet not at once
_SHOWN = 8  # images that the overlays show
_SHOWN_SCORE = 0.2  # detectors after minutes of training are not sure of anything


class Miniature:
    """Stages of one table.

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
        self._stages: dict[str, Stage] = {}

    def stages(self) -> list[Stage]:
        """All stages in order; each uses only files of those before it, and names them.

        Those from random weights stand first: they can run beside pre-training.
        """
        self._stages = {}
        self._make_data()
        self._pretrain()
        self._make_configs()
        for init in reversed(INITS):
            for seed in self.seeds:
                for task in ('det', 'seg', 'finetune', 'linear'):
                    self._transfer(task, init, seed)
        for seed in self.seeds:
            self._probe(seed)
        self._generate()
        self._show()
        return list(self._stages.values())

    def _add(
        self,
        name: str,
        seconds: float,
        tool: str,
        *words: object,
        outputs: tuple[Path, ...] = (),
        needs: tuple[str, ...] = (),
    ) -> None:
        """Adds a stage that runs ``tools/<tool>.py`` with ``words``, and needs earlier stages, given by their names."""
        command = (f'tools/{tool}.py', *map(str, words))
        self._stages[name] = Stage(name, seconds, command, outputs, tuple(self._stages[need] for need in needs))

    def result_file(self, task: str, init: str, seed: int) -> Path:
        """Where the evaluation of a transfer training leaves its numbers."""
        return self.work / 'results' / f'{task}_{init}_{seed}.json'

    def probe_file(self, seed: int) -> Path:
        """Where the probe of both initialisations leaves its numbers."""
        return self.work / f'probe_{seed}' / 'results.json'

    def probed_backbone(self, init: str) -> str:
        """How the probe calls the backbone of an initialisation."""
        return str(self.backbone) if init == 'addp' else f'random/{self.backbone}'

    def run_dir(self, task: str, init: str, seed: int) -> Path:
        """Work dir of a transfer training."""
        return self.work / 'runs' / f'{task}_{init}_{seed}'

    def _make_data(self) -> None:
        s = self.sizes
        self._add(
            'shapes',
            35,
            'make_shapes',
            self.data,
            *('--size', s.side_px),
            *_SHAPES,
            *('--train', s.train_scenes),
            *('--val', s.val_scenes),
            *('--plain', s.plain),
            *('--train-per-class', s.train_per_class),
            *('--val-per-class', s.val_per_class),
        )

    def _pretrain(self) -> None:
        s, work = self.sizes, self.work
        tokenizer = config_option('model.init_cfg.tokenizer', work / 'tokenizer')
        predictor = config_option('model.init_cfg.token_predictor', work / 'token_predictor')
        self._pretrain_one(
            'tokenizer',
            'shapes',
            s.tokenizer,
            0.22 * s.tokenizer,
            'model.objective.quantize_from_iters=' + str(s.tokenizer // 6),
            'default_hooks.revive_codes.stop_after_iters=' + str(s.tokenizer * 3 // 4),
        )
        self._pretrain_one('token_predictor', 'tokenizer', s.token_predictor, 0.36 * s.token_predictor, tokenizer)
        self._pretrain_one('addp', 'token_predictor', s.addp, 0.68 * s.addp, tokenizer, predictor)
        self._add(
            'convert',
            8,
            'convert_checkpoint',
            work / f'addp/iter_{s.addp}.pth',
            self.backbone,
            *('--patch-size', 8),
            *('--img-size', 128),
            outputs=(self.backbone,),
            needs=('addp',),
        )

    def _pretrain_one(self, network: str, need: str, iters: int, seconds: float, *options: str) -> None:
        self._add(
            network,
            seconds,
            'train',
            f'pretrain/configs/{network}_tiny.py',
            *('--work-dir', self.work / network),
            '--resume',
            *self.precision,
            '--cfg-options',
            f'train_cfg.max_iters={iters}',
            config_option('train_dataloader.dataset.data_root', self.data / 'plain'),
            f'default_hooks.checkpoint.interval={-(-iters // 4)}',
            *options,
            outputs=(self.work / network / f'iter_{iters}.pth',),
            needs=(need,),
        )

    def _make_configs(self) -> None:
        for task, base, options in (
            ('det', 'det_configs/addp_tiny_maskrcnn_128px.py', ()),
            ('seg', 'seg_configs/addp_tiny_upernet_128px.py', (f'--classes={self.data}/classes.json',)),
        ):
            config, splits = self.work / 'configs' / f'shapes_{task}.py', ('train', 'val')
            self._add(
                f'{task}_config',
                8,
                'new_dataset',
                task,
                *('--out', config),
                '--force',
                *('--base', base),
                *options,
                *(f'--{split}-images={self.data}/images/{split}' for split in splits),
                *(
                    f'--{split}-json={self.data}/instances_{split}.json'
                    if task == 'det'
                    else f'--{split}-masks={self.data}/annotations/{split}'
                    for split in splits
                ),
                outputs=(config,),
                needs=('shapes',),
            )

    def _transfer(self, task: str, init: str, seed: int) -> None:
        """Training and evaluation."""
        config, seconds, options = (
            self._classify(task, init) if task in ('finetune', 'linear') else self._predict_densely(task, init)
        )
        run, result = self.run_dir(task, init, seed), self.result_file(task, init, seed)
        name = self._name(task, init, seed)
        data, weights = (f'{task}_config', 'convert') if task in ('det', 'seg') else ('shapes', 'addp')
        self._add(
            name,
            seconds,
            'train',
            config,
            *('--work-dir', run),
            '--resume',
            *self.precision,
            '--cfg-options',
            f'randomness.seed={seed}',
            *options,
            outputs=(run / 'last_checkpoint',),
            needs=(data, weights) if init == 'addp' else (data,),
        )
        self._add(
            f'{name}_test',
            12,
            'test',
            config,
            run,
            *('--work-dir', run / 'test'),
            *('--out', result),
            '--cfg-options',
            *(option for option in options if 'data_root' in option),
            'model.backbone.init_cfg=None',
            outputs=(result,),
            needs=(name,),
        )

    def _probe(self, seed: int) -> None:
        """Frozen features of the last block, from both kinds of weights."""
        splits = [
            f'--{split}-{what}={self.data}/{folder}/{split}'
            for split in ('train', 'val')
            for what, folder in (('images', 'images'), ('masks', 'annotations'))
        ]
        result = self.probe_file(seed)
        self._add(
            f'probe_seed{seed}',
            15,
            'probe',
            *(self.probed_backbone(init) for init in INITS),
            *splits,
            f'--classes={self.data}/classes.json',
            *('--out', result.parent),
            *('--cache', self.work / 'probe_features'),
            *('--blocks', PRESETS['tiny'].depth),
            *('--seeds', seed),
            outputs=(result,),
            needs=('shapes', 'convert'),
        )

    def _name(self, task: str, init: str, seed: int) -> str:
        return f'{task}_{init}_seed{seed}'

    def _classify(self, task: str, init: str) -> tuple[Path, float, list[str]]:
        weights = (
            ['model.backbone.init_cfg=None']
            if init == 'random'
            else [
                'model.backbone.init_cfg.type=Pretrained',
                config_option('model.backbone.init_cfg.checkpoint', self.work / f'addp/iter_{self.sizes.addp}.pth'),
            ]
        )
        data = [
            config_option(f'{part}_dataloader.dataset.data_root', self.data / 'classes')
            for part in ('train', 'val', 'test')
        ]
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
                config_option('model.backbone.init_cfg.checkpoint', self.backbone),
            ]
        return self.work / 'configs' / f'shapes_{task}.py', (0.57 if task == 'det' else 0.5) * iters, options

    def _generate(self) -> None:
        samples, reference, result = (
            self.work / 'samples',
            self.work / 'reference',
            self.work / 'results' / 'generation.json',
        )
        self._add(
            'generate',
            20,
            'generate',
            'pretrain/configs/addp_tiny.py',
            self.work / 'addp',
            *('--num-images', self.sizes.samples),
            *('--out', samples),
            '--steps-figure',
            *('--top-p', '0.3'),
            *('--temperature', '2'),
            *('--tokenizer', self.work / 'tokenizer'),
            outputs=(samples / 'grid.png',),
            needs=('addp',),
        )
        self._add(
            'reference',
            10,
            'prepare_imagenet_val',
            self.data / 'plain',
            reference,
            *('--size', 32),
            needs=('shapes',),
        )
        self._add(
            'fid_is',
            15,
            'evaluate_generation',
            samples,
            reference,
            *('--feature-extractor', RANDOM_CONVOLUTIONS),
            *('--metrics', 'fid', 'isc'),
            '--allow-protocol-mismatch',
            *('--out', result),
            outputs=(result,),
            needs=('generate', 'reference'),
        )

    def _show(self) -> None:
        """Overlays of both dense tasks and the curves of pre-training."""
        shown = sorted(f'{self.data}/images/val/{i:06}.png' for i in range(min(_SHOWN, self.sizes.val_scenes)))
        for task, iters, options in (
            ('det', self.sizes.detection, ('--score-thr', _SHOWN_SCORE)),
            ('seg', self.sizes.segmentation, ()),
        ):
            for init in INITS:
                out = self.work / f'{task}_{init}_predictions'
                self._add(
                    f'{task}_{init}_predict',
                    5,
                    'predict',
                    f'{self.work}/configs/shapes_{task}.py',
                    self.run_dir(task, init, self.seeds[0]) / f'iter_{iters}.pth',
                    *shown,
                    *('--out', out),
                    *options,
                    outputs=(out / 'predictions.json',),
                    needs=(self._name(task, init, self.seeds[0]),),
                )
        curves = self.work / 'curves.png'
        runs = [self.work / name for name in ('tokenizer', 'token_predictor', 'addp')]
        self._add('curves', 5, 'plot_curves', *runs, '--out', curves, outputs=(curves,), needs=('addp',))
