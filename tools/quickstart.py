"""The transfer path in miniature on generated images: pre-training, conversion, Mask R-CNN, UperNet, pictures and a table.

    make quickstart                       (python tools/quickstart.py [--work-dir work_dirs/quickstart])

No download, no GPU. Cut off and started again, it goes on after the last finished stage, and training stages resume from their last
checkpoint. The results in ``results.md`` and ``results.json`` are read from the evaluations' own files.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from addp_backbone.files import replace_file

ROOT = Path(__file__).resolve().parents[1]

NUM_TRAIN, NUM_VAL, NUM_PLAIN = 240, 40, 400
SIZE = '256x192'
ITERS = dict(tokenizer=600, token_predictor=300, addp=400, det=500, seg=300)


@dataclass
class Stage:
    """One command of the path.

    Attributes:
        name: Short name: of its log file and of the mark that it is finished.
        seconds: About how long it takes on two cores, for the remaining time.
        command: Arguments for Python, from the repository root.
    """

    name: str
    seconds: int
    command: list[str]


def make_stages(work: Path, scale: float) -> list[Stage]:
    """Lists the stages in order; each uses only files of those before it. ``scale`` multiplies images and iterations."""
    data, leaf = work / 'shapes', work / 'configs'
    backbone = work / 'backbone.pth'
    iters = {name: max(4, round(count * scale)) for name, count in ITERS.items()}
    num_train, num_val, num_plain = (max(8, round(count * scale)) for count in (NUM_TRAIN, NUM_VAL, NUM_PLAIN))

    def train(config: str | Path, name: str, seconds: int, *options: str) -> Stage:
        return Stage(name, seconds, ['tools/train.py', str(config), '--work-dir', str(work / name), '--resume', '--cfg-options',
                                     *options])

    def pretrain(network: str, seconds: int, *options: str) -> Stage:
        return train(f'pretrain/configs/{network}_tiny.py', network, seconds, f'train_cfg.max_iters={iters[network]}',
                     f'train_dataloader.dataset.data_root={data / "plain"}', *options)

    def fine_tune(task: str, seconds: int) -> list[Stage]:
        max_iters = iters[task]
        warm_up = min(100, max_iters // 4)
        config, checkpoint = leaf / f'shapes_{task}.py', work / task / f'iter_{max_iters}.pth'
        return [
            train(config, task, seconds, f'train_cfg.max_iters={max_iters}', f'train_cfg.val_interval={max_iters}',
                  f'default_hooks.checkpoint.interval={-(-max_iters // 4)}', f'param_scheduler.0.end={warm_up}', f'param_scheduler.1.begin={warm_up}', 'model.backbone.init_cfg.type=Pretrained',
                  f'model.backbone.init_cfg.checkpoint={backbone}'),
            Stage(f'{task}_test', 30, ['tools/test.py', str(config), str(checkpoint), '--work-dir', str(work / f'{task}_test'),
                                       '--out', str(work / f'{task}.json')]),
            Stage(f'{task}_predict', 30, ['tools/predict.py', str(config), str(checkpoint), f'{data}/images/val/*[0-7].png',
                                          '--out', str(work / f'{task}_predictions')]),
        ]

    images, splits = data / 'images', ('train', 'val')
    return [
        Stage('shapes', 40, ['tools/make_shapes.py', str(data), '--train', str(num_train), '--val', str(num_val), '--plain',
                             str(num_plain), '--size', SIZE]),
        pretrain('tokenizer', 90),
        pretrain('token_predictor', 90, f'model.init_cfg.tokenizer={work / "tokenizer"}'),
        pretrain('addp', 150, f'model.init_cfg.tokenizer={work / "tokenizer"}',
                 f'model.init_cfg.token_predictor={work / "token_predictor"}'),
        Stage('convert', 10, ['tools/convert_checkpoint.py', str(work / f'addp/iter_{iters["addp"]}.pth'), str(backbone)]),
        Stage('det_data', 10, ['tools/new_dataset.py', 'det', '--out', str(leaf / 'shapes_det.py'), '--force',
                               '--base', 'det_configs/addp_tiny_maskrcnn.py',
                               *(f'--{split}-images={images / split}' for split in splits),
                               *(f'--{split}-json={data}/instances_{split}.json' for split in splits)]),
        *fine_tune('det', 200),
        Stage('seg_data', 10, ['tools/new_dataset.py', 'seg', '--out', str(leaf / 'shapes_seg.py'), '--force',
                               '--base', 'seg_configs/addp_tiny_upernet.py', f'--classes={data}/classes.json',
                               *(f'--{split}-images={images / split}' for split in splits),
                               *(f'--{split}-masks={data}/annotations/{split}' for split in splits)]),
        *fine_tune('seg', 150),
    ]


def run(stage: Stage, work: Path) -> None:
    """Runs a stage unless the same command has finished before; its output goes to a log, the log's end to the error."""
    mark = work / 'finished' / stage.name
    fingerprint = hashlib.sha256(json.dumps(stage.command).encode()).hexdigest()
    if mark.is_file() and mark.read_text(encoding='utf-8') == fingerprint:
        return
    log = work / 'logs' / f'{stage.name}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('a', encoding='utf-8') as file:
        result = subprocess.run([sys.executable, *stage.command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ, check=False)
    if result.returncode:
        tail = '\n'.join(log.read_text(encoding='utf-8', errors='replace').splitlines()[-15:])
        sys.exit(f'stage {stage.name} failed (exit code {result.returncode}); the end of {log}:\n{tail}')
    mark.parent.mkdir(parents=True, exist_ok=True)
    replace_file(mark, fingerprint)


def write_table(work: Path) -> str:
    """Collects the evaluations' own files into ``results.json`` and ``results.md``; returns the table."""
    results = {task: json.loads((work / f'{task}.json').read_text(encoding='utf-8')) for task in ('det', 'seg')}
    rows = [('Mask R-CNN', f'{metric}', results['det'][f'coco/{key}']) for metric, key in (
        ('AP box', 'bbox_mAP'), ('AP50 box', 'bbox_mAP_50'), ('AP mask', 'segm_mAP'))]
    rows = [(model, metric, 100 * value) for model, metric, value in rows]
    rows += [('UperNet', 'mIoU', results['seg']['mIoU']), ('UperNet', 'pixel accuracy', results['seg']['aAcc'])]
    lines = ['| model (tiny ADDP backbone, generated shapes) | metric | value |', '|---|---|---|']
    lines += [f'| {model} | {metric} | {value:.1f} |' for model, metric, value in rows]
    table = '\n'.join(lines) + '\n'
    replace_file(work / 'results.json', json.dumps(results, indent=2) + '\n')
    replace_file(work / 'results.md', table)
    return table


def main() -> None:
    """Runs all stages and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/quickstart', help='folder for everything it makes')
    parser.add_argument('--scale', type=float, default=1.0, help='multiplies images and iterations; 0.01 shows in minutes that it runs')
    args = parser.parse_args()
    work = args.work_dir.absolute()
    stages = make_stages(work, args.scale)
    started = time.monotonic()
    for i, stage in enumerate(stages):
        left = sum(s.seconds for s in stages[i:])
        print(f'[{i + 1:2}/{len(stages)}] {stage.name:16} about {left / 60:4.1f} min left', flush=True)
        begun = time.monotonic()
        run(stage, work)
        print(f'{"":24} {time.monotonic() - begun:.0f} s', flush=True)
    print(f'\n{write_table(work)}\nin {(time.monotonic() - started) / 60:.1f} min; tables, curves and pictures: {work}')


if __name__ == '__main__':
    main()
