"""What do the frozen features of a checkpoint hold, at which block, and with how few labels? Answers in minutes.

    python tools/probe.py backbone.pth timm/vit_small_patch14_dinov2 random/vit_small_patch16_224 --out probes/streets
        --train-images images/train --train-masks masks/train --val-images images/val --val-masks masks/val
        --classes classes.txt --protocols logistic knn --blocks all --fraction 0.1 1 --seeds 0 1 2

BACKBONE: a file from tools/convert_checkpoint.py; timm/NAME (timm's published weights); timm/NAME=FILE; random/NAME
(NAME of timm, or tiny, base, large or huge for ADDPViT); random/FILE (of a converted file's size). Protocols: logistic
(regression on patches, solved to its optimum), linear (DINOv2's BatchNorm and 1x1 convolution), knn (retrieval, nothing
is trained); docs/probes.md has them in full. --detection my_cars.py also trains the detector of that config on each
frozen backbone. Written into --out: results.json (scores in per cent), report.html, rows/, trainings/ and trained.csv.
A cut run goes on; features are kept in --cache and shared by all runs that need the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import FAILED, OK, ROOT, make_parser, print_error, run_command

from addp_backbone.datasets.masks import SegmentationSplit
from addp_backbone.files.atomic import replace_file
from addp_backbone.runtime.environment import num_cores
from experiments.probes.command import add_feature_arguments, cache_settings, report, show_progress
from experiments.probes.data import DEFAULT_SIZE, MAX_OWN_SIDE_PX
from experiments.probes.page import make_page
from experiments.probes.plan import ProbePlan, prepare, read_size
from experiments.probes.results import REPORT_FILE, RESULTS_FILE, write_results
from experiments.probes.settings import PRECISIONS, PROTOCOLS, ProbeSettings
from experiments.probes.summary import best_blocks, mean_lines, summarise
from experiments.trained.frozen_detection import frozen_detection
from experiments.trained.protocols import Training
from experiments.trained.running import run_trainings, training_lines
from experiments.trained.section import trained_lines, trained_section, write_trained
from experiments.trained.stages import plan_probed_trainings
from experiments.trained.summary import Trained

DEFAULTS = ProbeSettings()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('backbones', nargs='+', metavar='BACKBONE', help='what to probe, see above')
    for split in ('train', 'val'):
        parser.add_argument(f'--{split}-images', type=Path, required=True, metavar='D', help='folder of images')
        parser.add_argument(f'--{split}-masks', type=Path, required=True, metavar='D', help='folder of their masks')
        parser.add_argument(
            f'--{split}-stride', type=int, default=1, metavar='N', help='use every Nth image (default: %(default)s)'
        )
    parser.add_argument('--classes', type=Path, required=True, metavar='F', help='class names: a text file, or JSON')
    parser.add_argument('--void', choices=('auto', 'zero', '255'), default='auto', help='as in tools/new_dataset.py')
    parser.add_argument('--mask-suffix', default='.png', help='how mask names end (default: %(default)s)')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of the results')
    add_protocol_arguments(parser)
    parser.add_argument(
        '--patch',
        nargs=2,
        type=float,
        default=(0.5, 0.5),
        metavar=('X', 'Y'),
        help='the patch of the similarity maps, as shares of width and height (default: the middle)',
    )
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32', help='of the backbones')
    add_detection_arguments(parser)
    add_feature_arguments(parser, ROOT / 'work_dirs/probe_features')
    args = parser.parse_args(argv)
    if args.detection is None and args.detection_iters is not None:
        parser.error('--detection-iters goes with --detection CONFIG')
    return args


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what :class:`ProbeSettings` takes."""
    parser.add_argument(
        '--protocols', nargs='+', choices=PROTOCOLS, default=DEFAULTS.protocols, help='default: logistic'
    )
    parser.add_argument(
        '--blocks',
        nargs='+',
        default=(),
        metavar='N',
        help='from 1; 3+6+9 puts tokens together; all (default: half, three quarters and all of the depth)',
    )
    parser.add_argument(
        '--fraction', nargs='+', type=float, default=DEFAULTS.fractions, metavar='P', help='of the training images'
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=DEFAULTS.seeds, metavar='S', help='of the labels that are drawn'
    )
    parser.add_argument(
        '--size',
        type=size_argument,
        metavar='WxH',
        help='width and height that images are resized to (bicubic), e.g. 392x308; rounded to whole patches (default: '
        f'as they are, if all have one size of at most {MAX_OWN_SIDE_PX} px, else {DEFAULT_SIZE[0]}x{DEFAULT_SIZE[1]})',
    )
    parser.add_argument(
        '--patches', type=int, default=DEFAULTS.num_patches, metavar='N', help='of logistic (%(default)s)'
    )
    parser.add_argument('--l2', type=float, default=DEFAULTS.l2, help='penalty of logistic (%(default)s)')
    parser.add_argument(
        '--memory', type=int, default=DEFAULTS.memory_size, metavar='N', help='patches of knn (%(default)s)'
    )
    parser.add_argument(
        '--linear-iters',
        type=int,
        default=DEFAULTS.linear_iters,
        metavar='N',
        help='iterations of linear (%(default)s)',
    )


def add_detection_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what frozen detection takes."""
    parser.add_argument(
        '--detection',
        metavar='CONFIG',
        help='also train the detector of this config on each frozen backbone, for every seed; tools/new_dataset.py det '
        'writes one for your data, its --base chooses heads and image size',
    )
    parser.add_argument(
        '--detection-iters', type=int, metavar='N', help='iterations of that training (default: those of the config)'
    )


def size_argument(text: str) -> tuple[int, int]:
    """Reads ``392x308`` as (width, height)."""
    try:
        return read_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """Checks everything, probes, writes the results; returns the exit code."""
    settings = ProbeSettings(
        tuple(args.protocols),
        tuple(args.blocks),
        tuple(args.fraction),
        tuple(args.seeds),
        args.size,
        args.patches,
        args.l2,
        args.memory,
        args.linear_iters,
        args.precision,
        args.device,
    )
    plan = ProbePlan(
        tuple(args.backbones),
        SegmentationSplit('train', args.train_images, args.train_masks),
        SegmentationSplit('val', args.val_images, args.val_masks),
        args.classes,
        settings,
        (args.train_stride, args.val_stride),
        args.void,
        args.mask_suffix,
        tuple(args.patch),
    )
    prober, pictures = prepare(plan, cache_settings(args), args.out, report, num_cores(), show_progress)
    trainings: tuple[Training, ...] = ()
    if args.detection is not None:
        amp = settings.precision == 'bf16'
        trainings = frozen_detection(
            args.detection, prober.sources, settings.seeds, args.out, args.detection_iters, amp
        )
    jobs = plan_probed_trainings(trainings, prober, args.out)
    for line in training_lines(jobs):
        report(line)
    finished = prober.run(pictures)
    failed = run_trainings(jobs, args.out, report)
    trained = Trained.of(jobs, (), None)
    write_results(args.out, finished.rows, finished.about, trained.record())
    write_trained(args.out, trained.summaries)
    page = make_page(
        finished.rows,
        finished.about,
        pictures.photographs(),
        finished.galleries,
        trainings=trained_section(trained),
    )
    replace_file(args.out / REPORT_FILE, page)
    for line in [*mean_lines(best_blocks(summarise(finished.rows))), *trained_lines(trained)]:
        report(line)
    report(f'written: {args.out / RESULTS_FILE}, {args.out / REPORT_FILE}')
    for stage in failed:
        print_error(f'{stage.name} failed; its log: {stage.log_file(args.out)}')
    return FAILED if failed else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
