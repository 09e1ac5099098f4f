"""Lists the plain ViTs of timm that the backbone TimmViT takes, or checks one of them.

    python tools/list_backbones.py                        # all
    python tools/list_backbones.py dinov3 registers       # those whose name, family or features hold every word
    python tools/list_backbones.py --check vit_small_patch14_dinov2
    python tools/list_backbones.py --check-all --markdown docs/timm_models.md

GFLOP and memory are formulas (global attention, one image, float32, for training), not measurements. --check builds a
model's first two blocks with random weights and compares their maps with timm's; --check-all does so for all, which
takes five minutes of one core and 2.3 GiB. Cut off, it goes on from FILE.partial.json when started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from command_line import make_parser, run_command

from addp_backbone.files.atomic import replace_file
from addp_backbone.networks.timm_vit.catalogue import supported_models
from addp_backbone.networks.timm_vit.facts import TOLERANCE, Facts, check, collect, describe_versions

_TITLES = (
    'name',
    'width',
    'depth',
    'heads',
    'patch',
    'image',
    'prefix',
    'params',
    'GFLOP 512 / 1024',
    'GiB 512 / 1024',
    'features',
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        'words', nargs='*', metavar='WORD', help='only models whose name, family or features hold every word'
    )
    parser.add_argument('--check', metavar='NAME', help='build this model, run it and compare it with timm')
    parser.add_argument('--check-all', action='store_true', help='do that for every model listed')
    parser.add_argument('--markdown', type=Path, metavar='FILE', help='write the table as Markdown')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Lists or checks; returns 1 if a model differs from timm's."""
    if args.check:
        return report_check(args.check)
    facts = [fact for fact in map(collect, supported_models()) if matches(fact, args.words)]
    if not facts:
        raise ValueError(f'no supported model holds all of {args.words}')
    partial = args.markdown and args.markdown.with_name(f'{args.markdown.name}.partial.json')
    results = check_all([fact.name for fact in facts], partial) if args.check_all else {}
    rows = [row(fact, results.get(fact.name)) for fact in facts]
    titles = [*_TITLES, *(['equal to timm'] if results else [])]
    if args.markdown:
        replace_file(args.markdown, markdown(titles, rows))
        partial.unlink(missing_ok=True)
    else:
        print(table(titles, rows))
        print(f'\n{len(rows)} models of {describe_versions()}')
    return int(any(result.startswith('NO') for result in results.values()))


def matches(fact: Facts, words: Iterable[str]) -> bool:
    """Whether a model's name, family or features hold every word."""
    text = ' '.join((fact.name, fact.family, *fact.features)).lower()
    return all(word.lower() in text for word in words)


def row(fact: Facts, result: str | None) -> list[str]:
    """A model's cells."""
    params = f'{fact.num_params / 1e6:.0f} M' if fact.num_params >= 1e7 else f'{fact.num_params / 1e6:.1f} M'
    cells = [
        fact.name,
        fact.width,
        fact.depth,
        fact.num_heads,
        fact.patch_size,
        fact.img_size,
        fact.num_prefix,
        params,
        f'{fact.giga_flops(512):.0f} / {fact.giga_flops(1024):.0f}',
        f'{fact.training_gib(512):.1f} / {fact.training_gib(1024):.1f}',
        ', '.join(fact.features) or '-',
    ]
    return [*map(str, cells), *([result] if result else [])]


def check_all(names: Sequence[str], partial: Path | None) -> dict[str, str]:
    """What :func:`outcome` says of each model.

    Args:
        names: Models.
        partial: File of the results so far, written after each model, with those of a run that was cut off; results of
            other versions of timm do not count. None = none is kept.
    """
    known = {'versions': describe_versions(), 'results': {}}
    if partial is not None and partial.exists():
        found = json.loads(partial.read_text(encoding='utf-8'))
        known = found if found['versions'] == known['versions'] else known
    results: dict[str, str] = known['results']  # type: ignore[assignment]
    for name in names:
        if name not in results:
            results[name] = outcome(name)
            if partial is not None:
                replace_file(partial, json.dumps(known, indent=1))
    return {name: results[name] for name in names}


def outcome(name: str) -> str:
    """What --check-all says of a model."""
    try:
        error = check(name)
    except Exception as problem:  # whatever timm raises is the answer
        return f'NO: {type(problem).__name__}: {problem}'
    return f'yes, {error:.0e}' if error <= TOLERANCE else f'NO: differs by {error:.0e}'


def report_check(name: str) -> int:
    """Prints whether a model runs and equals timm's, and what a config needs for it."""
    fact = collect(name)
    error = check(name)
    print(table(list(_TITLES), [row(fact, None)]))
    print(f'\nfirst two blocks against timm, two image sizes: largest relative difference {error:.1e}')
    print(f"""
config:   model.backbone.model={name}
weights:  model.backbone.pretrained=True model.backbone.init_cfg=None, or model.backbone.init_cfg.checkpoint=FILE
stride:   {
        '16, as the patches'
        if fact.patch_size == 16
        else f'patches of {fact.patch_size}: stride=16 resizes images to {fact.patch_size}/16'
    }
images:   {
        'model.backbone.img_size=that of the training images, which its tables are made for'
        if fact.family in ('beit', 'vision_transformer_relpos', 'vision_transformer_sam')
        else 'any size'
    }""")
    return int(error > TOLERANCE)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(line[i]) for line in [titles, *rows]) for i in range(len(titles))]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [titles, *rows]
    )


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A page with the table."""
    lines = [
        f'# The plain ViTs of {describe_versions()}',
        '',
        f'{len(rows)} models that `TimmViT` takes. '
        'Made by `python tools/list_backbones.py --check-all --markdown FILE`:',
        "each model's first two blocks, with random weights, were compared with timm's own maps at two image sizes, "
        'one of',
        'them not square; the last column has the largest difference relative to the largest value. GFLOP and GiB are',
        'formulas for one image with global attention (GiB: float32 activations for the backward pass), '
        'not measurements.',
        '',
        '| ' + ' | '.join(titles) + ' |',
        '|' + '---|' * len(titles),
    ]
    return '\n'.join([*lines, *('| ' + ' | '.join(line) + ' |' for line in rows)]) + '\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
