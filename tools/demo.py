"""Serves a page in the browser that tries trained models on your images. Nothing is loaded from the network.

Run:  python tools/demo.py work_dirs/my_cars work_dirs/quickstart
      python tools/demo.py --model pretrain/addp_base_1600e addp-vit-b.pth

Folders are work dirs or hold some. Detectors, segmentors and classifiers: drop an image for predictions, features as
colours, and the patches similar to the one that is clicked on. ADDP: generation step by step, and inpainting with a
brush. The page is for this machine alone unless --host says otherwise, and then has no password. Needs Gradio:
pip install '.[demo]'. In Python: experiments.demo.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from functools import partial

from command_line import OK, make_parser, run_command

from addp_backbone.predict.predictor import Predictor
from experiments.demo.generator import ImageGenerator
from experiments.demo.models import GENERATES, PREDICTS, Loaded, find_models
from experiments.demo.serve import FIRST_PORT, LOCAL_HOST, check_gradio, serve


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('work_dirs', nargs='*', metavar='WORK_DIR', help='work dir, or folder with work dirs in it')
    parser.add_argument(
        '--model',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CKPT'),
        help='a config with its checkpoint or a released file; may be repeated',
    )
    parser.add_argument(
        '--tokenizer', help="ADDP's tokenizer, file or work dir (default: the checkpoint's or config's)"
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ... (default: the first GPU, or the CPU)')
    parser.add_argument('--host', default=LOCAL_HOST, help='interface; 0.0.0.0 for all (default: %(default)s)')
    parser.add_argument('--port', type=int, help=f'default: the first free one from {FIRST_PORT}')
    args = parser.parse_args(argv)
    if not args.work_dirs and not args.model:
        parser.error('give at least one WORK_DIR or --model CONFIG CKPT')
    if args.port is not None and not 1 <= args.port <= 65535:
        parser.error(f'--port must be 1 to 65535, got {args.port}')
    return args


def run(args: argparse.Namespace) -> int:
    """Serves until it is interrupted."""
    check_gradio()
    models = find_models(args.work_dirs, args.model, args.tokenizer)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are deleted then, too
    for model in models:
        print(f'{model.name}: {model.config}')
    predictors = Loaded(models, PREDICTS, partial(Predictor, device=args.device))
    generators = Loaded(models, GENERATES, partial(ImageGenerator.load, device=args.device, tokenizer=args.tokenizer))
    with serve(predictors, generators, args.host, args.port) as address:
        if not address.local:
            print(f'note: whoever reaches {address.url} can use the page: it has no password', file=sys.stderr)
        print(f'{address.url} (Ctrl-C ends it)', flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print()
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
