"""Makes backbone weights out of a pre-training checkpoint, or with ``--whole`` a detector out of a detectron2 one.

    python tools/convert_checkpoint.py exp/release/addp-vit-base-16.pth exp/release/addp-vit-base-16.backbone.pth
    python tools/convert_checkpoint.py model_final_61ccd1.pkl exp/release/vitdet-base-maskrcnn.pth --whole

The result serves ``init_cfg=dict(type='Pretrained', checkpoint=DST)`` of ``ADDPViT``, with ``--for segmentor`` that of
``ADDPSegViT`` and with ``--for classifier`` that of ``ClassifierViT`` (which also take SRC itself). Nothing in SRC is
executed. Exit code 0 only if every tensor of the trunk was found; otherwise 1, and nothing is written.

With ``--whole`` SRC is Mask R-CNN or Cascade Mask R-CNN of detectron2's ViTDet project on COCO (its README lists the
files of ViT-B, L and H), and DST a checkpoint of ``det_configs/vitdet_{base,large,huge}_{maskrcnn,cascade}.py``, which
tools/test.py evaluates and tools/predict.py uses. Training starts from it by ``--cfg-options load_from=DST
model.backbone.init_cfg=None``, also with another number of classes: the layers that this changes start anew, and the
log names them.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from command_line import make_parser, run_command

from torch import Tensor

from addp_backbone.checkpoint.convert import (
    FORMATS,
    CheckpointError,
    ConversionReport,
    convert_state_dict,
    read_checkpoint,
    write_atomically,
)
from addp_backbone.checkpoint.detector import convert_detector

DEFAULT_IMG_SIZE = 256
ENDINGS = ('.pth', '.pt', '.safetensors')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('src', type=Path, help='pre-training checkpoint (.pth, .pt, .safetensors, detectron2 .pkl)')
    parser.add_argument('dst', type=Path, help='backbone weights to write, .pth or .safetensors')
    parser.add_argument(
        '--format', choices=('auto', *FORMATS), default='auto', help='what SRC is; told from its names by default'
    )
    parser.add_argument(
        '--img-size',
        type=int,
        metavar='PX',
        help="the backbone's pretrain_img_size: position embeddings are resized to its grid (default "
        f'{DEFAULT_IMG_SIZE}, with --whole 0; 0 keeps the grid of SRC)',
    )
    parser.add_argument(
        '--patch-size', type=int, default=16, metavar='PX', help="the backbone's patch size (0 keeps that of SRC)"
    )
    parser.add_argument(
        '--for',
        dest='target',
        choices=('backbone', 'segmentor', 'classifier'),
        default='backbone',
        help='segmentor (ADDPSegViT) and classifier keep cls_token, its position and the final norm',
    )
    parser.add_argument(
        '--prefix',
        metavar='NAME',
        help="which of several networks in SRC: what stands in front of its tensors' names, e.g. teacher.backbone",
    )
    parser.add_argument(
        '--ema', action='store_true', help='of several networks in SRC the one with averaged weights (EMA, teacher)'
    )
    parser.add_argument(
        '--whole',
        action='store_true',
        help="a detector of detectron2's ViTDet with pyramid and heads, as one checkpoint",
    )
    return parser.parse_args(argv)


def print_report(report: ConversionReport) -> None:
    """Prints what became of every tensor, dropped ones grouped by reason."""
    print(f'format    {report.format}')
    print(
        f'mapped    {len(report.state_dict)} tensors of the backbone'
        + (f', {len(report.neck_state_dict)} of the pyramid' if report.neck_state_dict else '')
    )
    print_changes(report.notes, report.dropped)
    for name in report.missing:
        print(f'MISSING   {name}')


def print_changes(notes: list[str], dropped: dict[str, str]) -> None:
    """Prints notes, and dropped tensors grouped by reason."""
    for note in notes:
        print(f'note      {note}')
    by_reason = defaultdict(list)
    for name, reason in dropped.items():
        by_reason[reason].append(name)
    for reason, names in by_reason.items():
        print(f'dropped   {len(names)} ({reason}): {", ".join(names[:6])}{" ..." if len(names) > 6 else ""}')


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Writes what was converted.

    Raises:
        CheckpointError: If it cannot be written, or a tensor has no values.
    """
    if empty := [name for name, tensor in weights.items() if tensor.is_meta]:
        raise CheckpointError(f'{empty[0]} has a shape but no values (device meta); nothing was written')
    write_atomically(weights, path)


def convert_whole(args: argparse.Namespace) -> None:
    """Converts a whole detector.

    Raises:
        CheckpointError: If an option does not go with ``--whole``, or the file cannot be used.
    """
    if args.target != 'backbone' or args.format not in ('auto', 'detectron2') or args.prefix or args.ema:
        raise CheckpointError('--whole converts detectors of detectron2: leave out --for, --format, --prefix and --ema')
    report = convert_detector(read_checkpoint(args.src), args.img_size or None)
    print(f'format    detectron2, {report.kind}')
    print(f'mapped    {len(report.state_dict)} tensors of the detector')
    print_changes(report.notes, report.dropped)
    write_weights(report.state_dict, args.dst)
    print(
        f'config    {report.config or "none of this size: inherit from det_configs/vitdet_base_" + report.kind + ".py"}'
    )


def run(args: argparse.Namespace) -> None:
    """Converts."""
    if args.dst.suffix not in ENDINGS:
        raise CheckpointError(f'DST must end in {", ".join(ENDINGS)}, got {args.dst}')
    if args.dst.resolve() == args.src.resolve():
        raise CheckpointError(f'SRC and DST are the same file, {args.src}')
    if args.ema and args.prefix is not None:
        raise CheckpointError('--ema and --prefix both choose a network: give one of them')
    if args.whole:
        convert_whole(args)
        print(f'written   {args.dst}')
        return
    report = convert_state_dict(
        read_checkpoint(args.src),
        args.format,
        (DEFAULT_IMG_SIZE if args.img_size is None else args.img_size) or None,
        args.patch_size or None,
        keep_cls=args.target != 'backbone',
        prefix=args.prefix,
        averaged=args.ema,
    )
    print_report(report)
    if report.missing:
        raise CheckpointError(
            f'{len(report.missing)} tensors of the trunk are missing in {args.src}; nothing was written'
        )
    if report.neck_state_dict:
        neck = args.dst.with_name(f'{args.dst.stem}.neck{args.dst.suffix}')
        write_weights(report.neck_state_dict, neck)
        print(f'written   {neck} (SimpleFeaturePyramid)')
    write_weights(report.state_dict, args.dst)
    print(f'written   {args.dst}')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
