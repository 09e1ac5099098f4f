"""Compares checkpoints by their frozen features: means, spread over label draws, and which differences are not noise.

    python tools/compare.py plan.yaml --out compare/streets

The plan is YAML or JSON with the options of tools/probe.py as keys, and which block stands for each backbone:

    backbones: [backbone.pth, timm/vit_small_patch14_dinov2, random/vit_small_patch16_224]
    train_images: images/train
    train_masks: masks/train
    val_images: images/val
    val_masks: masks/val
    classes: classes.txt
    protocols: [logistic, knn]
    blocks: all
    seeds: [0, 1, 2]
    block: best                  # or last, or a number
    reference: random/vit_small_patch16_224    # optional: compare the others with this one alone
    detection: my_cars.py        # optional: the detector of this config on each frozen backbone (detection_iters: 600)
    trainings:                   # optional; docs/probes.md
      - {name: UperNet frozen, config: my_streets.py, options: [train_cfg.max_iters=400], seeds: [0, 1]}
      - {name: UperNet fine-tuned, runs: [{backbone: backbone.pth, seed: 0, folder: work_dirs/gpu_run/test}]}

Written into --out: results.json, results.csv, trained.csv, report.html; costs.json and costs.csv (parameters, GFLOP,
time and memory of the features); rows/ and trainings/. A run that is cut or killed goes on with the same command and
ends with the same table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import FAILED, OK, ROOT, make_parser, print_error, run_command

from addp_backbone.files.atomic import replace_file
from addp_backbone.runtime.environment import num_cores
from experiments.probes.command import add_feature_arguments, cache_settings, report, show_progress
from experiments.probes.comparison import BEST, check_rule, choose_blocks, compare, read_rule, write_comparison
from experiments.probes.page import make_page
from experiments.probes.plan import prepare, read_plan
from experiments.probes.results import REPORT_FILE
from experiments.probes.summary import mean_lines
from experiments.trained.frozen_detection import frozen_detection
from experiments.trained.protocols import read_protocols, refuse_doubles
from experiments.trained.rows import read_rows
from experiments.trained.running import run_trainings, training_lines
from experiments.trained.section import trained_lines, trained_section, write_trained
from experiments.trained.stages import plan_probed_trainings
from experiments.trained.summary import Trained


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('plan', type=Path, metavar='PLAN', help='what is compared, see above')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of the results')
    parser.add_argument('--dry-run', action='store_true', help='check everything, tell the time it takes, run none')
    add_feature_arguments(parser, ROOT / 'work_dirs/probe_features')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Runs what the plan lacks, compares, writes the table and the page; returns the exit code."""
    plan, extra = read_plan(
        args.plan, args.device, extra=('block', 'reference', 'trainings', 'detection', 'detection_iters')
    )
    rule, reference = read_rule(extra.get('block', BEST)), extra.get('reference')
    if reference is not None and reference not in plan.backbones:
        raise ValueError(f'the reference {reference!r} is none of the backbones {", ".join(plan.backbones)}')
    trainings, made = read_protocols(extra.get('trainings', []), plan.backbones, plan.settings.seeds)
    if 'detection_iters' in extra and 'detection' not in extra:
        raise ValueError('detection_iters goes with the key detection, a config')
    read_rows([], made)  # refuses what cannot be read before any long work
    prober, pictures = prepare(plan, cache_settings(args), args.out, report, num_cores(), show_progress)
    check_rule(rule, prober.blocks)
    if 'detection' in extra:
        config, iters, amp = str(extra['detection']), extra.get('detection_iters'), plan.settings.precision == 'bf16'
        trainings += frozen_detection(config, prober.sources, plan.settings.seeds, args.out, iters, amp)
        refuse_doubles(trainings, made)
    jobs = plan_probed_trainings(trainings, prober, args.out)
    for line in [*prober.planned_lines(), *training_lines(jobs)]:
        report(line)
    if args.dry_run:
        return OK
    finished = prober.run(pictures)
    failed = run_trainings(jobs, args.out, report)
    chosen = choose_blocks(finished.rows, rule)
    compared = compare(chosen, reference)
    about = {**finished.about, 'block': rule}
    trained = Trained.of(jobs, made, reference)
    write_comparison(args.out, finished.rows, compared, chosen, about, trained.record())
    write_trained(args.out, trained.summaries)
    costs, shown = prober.costs(), pictures.photographs()
    page = make_page(finished.rows, about, shown, finished.galleries, compared, costs, trained_section(trained))
    replace_file(args.out / REPORT_FILE, page)
    for line in [*mean_lines(chosen), *(pair.line() for pair in compared), *trained_lines(trained)]:
        report(line)
    report(f'written: {args.out}/results.json, results.csv, costs.csv, {REPORT_FILE}')
    for stage in failed:
        print_error(f'{stage.name} failed; its log: {stage.log_file(args.out)}')
    return FAILED if failed else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
