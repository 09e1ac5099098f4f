"""What a training iteration asks of a GPU, counted on a CPU; and the CPU's own work for it.

    python -m tools.benchmark.step_counts           # the tiny ADDP, classifier and Mask R-CNN, as Markdown
    python -m tools.benchmark.step_counts --json

An iteration is everything from the collated batch to the updated weights and the log: preprocessing, forward, backward,
optimizer, hooks that read losses. Counts are means of ten iterations (:mod:`tools.benchmark.device_ops`), with what
``tools/train.py`` switches on for CUDA. They depend on the code and the numbers of layers, not on widths or image
sizes. Times are process times of one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from addp_backbone.detection.instance_masks import Cutout, InstanceMasks
from addp_backbone.runtime.cuda_options import use_cuda_options
from addp_backbone.runtime.deferred import INTERVAL_ITERS, DeferredInfoHook
from addp_backbone.runtime.launch import load_config
from addp_backbone.runtime.saving import StopOnBadLoss
from addp_backbone.runtime.seeding import SampleIndex, SeedAugmentation
from pretrain.classification.classifier import ImageClassifier
from pretrain.data.batches import stack_images
from pretrain.data.labelled import ClassificationPreprocessor
from pretrain.data.transforms import ImageSample
from pretrain.training.models import ADDPPretraining
from tools.benchmark.device_ops import DeviceOps
from tools.command_line import make_parser, run_command

NUM_ITERS = INTERVAL_ITERS
NUM_CLASSES = 10
NUM_OBJECTS = 5  # of an image
SIDE_PX = 128  # of a detector's image
CLIP = dict(max_norm=3.0)
NUM_SAMPLES = 200  # whose seeding is timed


@dataclass(frozen=True)
class Counts:
    """A row.

    Attributes:
        name: What is trained, and the batch size.
        ops: Operations on the device in an iteration.
        copies: Copies to the device in an iteration.
        waits: Times that the CPU waits for the device in an iteration.
        preprocess_ms: CPU time of a batch's way from the loader to the model, in ms.
        reasons: The waits by operation.
    """

    name: str
    ops: float
    copies: float
    waits: float
    preprocess_ms: float
    reasons: dict[str, float] = field(default_factory=dict)


def count(name: str, model: BaseModel, make_batch: Callable[[], dict[str, Any]]) -> Counts:
    """Trains for :data:`NUM_ITERS` iterations, after one that makes the optimizer's state, and counts."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapper = OptimWrapper(torch.optim.AdamW(trained, lr=1e-4, fused=True), clip_grad=dict(CLIP))
    info = DeferredInfoHook(NUM_ITERS)
    hooks: list[Hook] = [info, StopOnBadLoss(NUM_ITERS)]
    runner = SimpleNamespace(optim_wrapper=wrapper, message_hub=MessageHub(name), hooks=[], iter=0, work_dir='.')
    info.keep_norms(wrapper)
    ops = DeviceOps([*model.parameters(), *model.buffers()])
    _iterate(model, wrapper, make_batch(), hooks, runner, 1)
    info.read(runner)
    hooks[1] = StopOnBadLoss(NUM_ITERS)
    with ops:
        _iterate(model, wrapper, make_batch(), hooks, runner, NUM_ITERS)
    batch = make_batch()
    started = time.process_time()
    for _ in range(NUM_ITERS):
        model.data_preprocessor(dict(batch), True)
    preprocess_ms = (time.process_time() - started) / NUM_ITERS * 1e3
    reasons = {reason: number / NUM_ITERS for reason, number in Counter(ops.waits).most_common()}
    num_ops, num_copies, num_waits = (n / NUM_ITERS for n in (ops.num_ops, ops.num_copies, ops.num_waits))
    return Counts(name, num_ops, num_copies, num_waits, preprocess_ms, reasons)


def _iterate(
    model: BaseModel, wrapper: OptimWrapper, batch: dict[str, Any], hooks: list[Hook], runner: Any, number: int
) -> None:
    for index in range(number):
        outputs = model.train_step(dict(batch), wrapper)
        for hook in hooks:
            hook.after_train_iter(runner, index, batch, outputs)
        runner.iter += 1


def addp_step(batch_size: int = 8) -> Counts:
    """ADDP's pre-training."""
    cfg = load_config('pretrain/configs/addp_tiny.py')
    torch.manual_seed(0)
    model = ADDPPretraining(cfg.model.network.to_dict())
    side = model.addp.img_size
    pixels = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8)

    def make_batch() -> dict[str, Any]:
        return stack_images([dict(inputs=image, data_samples=ImageSample()) for image in pixels])

    return count(f'ADDP pre-training, batch {batch_size}', model, make_batch)


def classification_step(batch_size: int = 128) -> Counts:
    """Fine-tuning with mixup and cutmix, without random erasing."""
    torch.manual_seed(0)
    backbone = dict(type='ClassifierViT', arch='tiny', img_size=32, patch_size=16)
    preprocessor = ClassificationPreprocessor(mixup=0.8, cutmix=1.0)
    model = ImageClassifier(backbone, NUM_CLASSES, data_preprocessor=preprocessor)
    pixels = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8)

    def make_batch() -> dict[str, Any]:
        samples = []
        for index, image in enumerate(pixels):
            sample = ImageSample()
            sample.set_field(torch.tensor([index % NUM_CLASSES]), 'gt_label')
            samples.append(dict(inputs=image, data_samples=sample))
        return stack_images(samples)

    return count(f'fine-tuning, batch {batch_size}', model, make_batch)


def detection_step(batch_size: int = 2) -> Counts:
    """Mask R-CNN of ``det_configs/addp_tiny_maskrcnn.py``."""
    cfg: Config = load_config('det_configs/addp_tiny_maskrcnn.py')
    use_cuda_options(cfg, cuda=True)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = Runner.build_model(SimpleNamespace(), cfg.model)
    rng = np.random.default_rng(0)

    def make_batch() -> dict[str, Any]:
        samples = [_detection_sample(rng) for _ in range(batch_size)]
        images = [torch.randint(0, 256, (3, SIDE_PX, SIDE_PX), dtype=torch.uint8) for _ in samples]
        return dict(inputs=images, data_samples=samples)

    return count(f'Mask R-CNN, batch {batch_size}', model, make_batch)


def _detection_sample(rng: np.random.Generator) -> DetDataSample:
    corners = rng.integers(0, SIDE_PX // 2, (NUM_OBJECTS, 2))
    sides = rng.integers(8, SIDE_PX // 2, (NUM_OBJECTS, 2))
    objects = [
        Cutout(np.ones((height, width), np.uint8), int(x), int(y))
        for (x, y), (width, height) in zip(corners, sides, strict=True)
    ]
    boxes = torch.from_numpy(np.concatenate((corners, corners + sides), axis=1)).float()
    shape = (SIDE_PX, SIDE_PX)
    sample = DetDataSample(
        metainfo=dict(img_shape=shape, batch_input_shape=shape, pad_shape=shape, scale_factor=(1, 1))
    )
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.from_numpy(rng.integers(0, 80, NUM_OBJECTS)), masks=InstanceMasks(objects, *shape)
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return sample


def seeding_ms() -> float:
    """CPU time, in ms, of seeding a sample in a data worker."""
    seed = SeedAugmentation()
    started = time.process_time()
    for index in range(NUM_SAMPLES):
        seed(dict(sample_idx=SampleIndex(index, index)))
    return (time.process_time() - started) / NUM_SAMPLES * 1e3


def markdown(rows: list[Counts], seeding: float) -> str:
    """The rows as a table, the seeding's time below it."""
    lines = ['| iteration | operations | copies | waits | batch to model, ms |', '|---|---|---|---|---|']
    lines += [
        f'| {row.name} | {row.ops:g} | {row.copies:g} | {row.waits:g} | {row.preprocess_ms:.2f} |' for row in rows
    ]
    return '\n'.join([*lines, '', f'seeding a sample: {seeding:.4f} ms'])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('--json', action='store_true', help='a JSON object a row, with the waits by operation')
    parser.add_argument('--only', choices=sorted(ROWS), nargs='+', help='default: all')
    return parser.parse_args(argv)


ROWS: Mapping[str, Callable[[], Counts]] = dict(
    addp=addp_step, classification=classification_step, detection=detection_step
)


def run(args: argparse.Namespace) -> None:
    """Counts and prints."""
    rows = [make() for name, make in ROWS.items() if not args.only or name in args.only]
    seeding = seeding_ms()
    if args.json:
        for row in rows:
            print(json.dumps(asdict(row)))
        print(json.dumps(dict(name='seeding a sample', ms=seeding)))
    else:
        print(markdown(rows, seeding))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
