"""Draws parts of an image anew: inpainting, outpainting, variations. Writes before, mask and results side by side.

    python tools/edit.py CONFIG CKPT IMAGE --mask mask.png --out edited                 white is drawn anew
    python tools/edit.py CONFIG CKPT IMAGE --box 60 40 180 160 --out edited             left top right bottom, in pixels
    python tools/edit.py CONFIG CKPT IMAGE --box 60 40 180 160 --invert --out edited    everything but the box
    python tools/edit.py CONFIG CKPT IMAGE --outpaint 32 --out edited                   32 px around the shrunk image
    python tools/edit.py CONFIG CKPT IMAGE --ratio 0.6 --out edited                     variations: 60 % of the tokens

CONFIG and CKPT as for tools/generate.py. The tokens that are not masked never change. Results are written eight at a
time; a run that was cut goes on when started again, and computes anew what other arguments made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import make_parser, run_command

import torch
from PIL import Image
from torch import Tensor

from addp_backbone.files.image_limits import ImageSizeError, open_image
from addp_backbone.files.images import DECODING_ERRORS, read_image, reading_error
from pretrain.generation.edit_run import EditTask, write_edits
from pretrain.generation.editing import fit, mask_of_boxes, shrink, tokens_of_mask
from pretrain.generation.options import add_model_arguments, read_model, read_sampling
from pretrain.generation.run import fingerprint
from pretrain.networks.addp import ADDP
from pretrain.weights.generator import precision

DAMAGED: tuple[type[Exception], ...] = (ImageSizeError, *({*DECODING_ERRORS} - {OSError, ValueError}))
UNREADABLE: tuple[type[Exception], ...] = (OSError, *DAMAGED)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    add_model_arguments(parser)
    parser.add_argument('image', type=Path, help='any size; resized by its shorter side and cropped to the centre')
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument('--mask', type=Path, metavar='M.png', help="of the image's size; white is drawn anew")
    where.add_argument(
        '--box',
        type=float,
        nargs=4,
        action='append',
        metavar=('LEFT', 'TOP', 'RIGHT', 'BOTTOM'),
        help='drawn anew, in pixels of the image; may be repeated',
    )
    where.add_argument('--outpaint', type=int, metavar='PX', help='shrink the image and draw a border this wide')
    where.add_argument(
        '--ratio', type=float, metavar='R', help='draw this share of the tokens anew, each result its own'
    )
    parser.add_argument('--invert', action='store_true', help='with --mask and --box: draw everything else anew')
    parser.add_argument(
        '--paste', action='store_true', help="put the image's own pixels back where nothing was drawn anew"
    )
    parser.add_argument('--num-results', type=int, default=4, metavar='N', help='default: %(default)s')
    args = parser.parse_args(argv)
    if args.num_results < 1:
        parser.error('--num-results must be at least 1')
    return args


def read_task(args: argparse.Namespace, model: ADDP) -> tuple[Image.Image, Tensor | float]:
    """The image at the model's size, and its mask or the ratio."""
    image = read_file(args.image)
    if args.outpaint is not None:
        return shrink(image, args.outpaint, model)
    fitted = fit(image, model.img_size)
    if args.ratio is not None:
        return fitted, args.ratio
    if args.mask is None:
        return fitted, tokens_of_mask(mask_of_boxes(args.box, image.size), image.size, model, args.invert)
    try:
        with open_image(args.mask) as mask:
            return fitted, tokens_of_mask(mask, image.size, model, args.invert)
    except DAMAGED as error:
        raise ValueError(f'{args.mask} {reading_error(error)}') from error


def read_file(path: Path) -> Image.Image:
    """Reads the image.

    Raises:
        OSError: If it is missing or no image.
        ValueError: If it is damaged, or beyond the limits on sizes.
    """
    try:
        return read_image(path)
    except UNREADABLE as error:
        if str(path) in str(error):
            raise
        raise ValueError(f'{path} {reading_error(error)}') from error


def run(args: argparse.Namespace) -> None:
    """Edits, and writes the results."""
    model = read_model(args)
    image, mask = read_task(args, model)
    task = EditTask(
        image, mask, args.num_results, args.seed, read_sampling(args), args.paste, args.precision, fingerprint(model)
    )
    model.to('cuda' if torch.cuda.is_available() else 'cpu')
    with precision(model, args.precision):
        outcome = write_edits(model, task, args.out)
    done = outcome.done
    if outcome.num_kept:
        print(f'{outcome.num_kept} results of the same arguments were there already')
    if outcome.num_replaced:
        print(f'note: {outcome.num_replaced} results of other arguments were replaced', file=sys.stderr)
    if not done.mask.any():
        print(
            f'note: at the {model.img_size} px of the model the mask covers no pixel, so the results are '
            'reconstructions',
            file=sys.stderr,
        )
    print(f'{args.out}: {args.num_results} results, {int(done.mask[0].sum())} of {model.num_tokens} tokens drawn anew')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
