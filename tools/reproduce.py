r"""Fills the paper's table: lists, checks and runs what is needed, and puts our values beside the published ones.

    python tools/reproduce.py --model base --gpus 8 \
        --imagenet data/imagenet --coco data/coco --ade20k data/ade/ADEChallengeData2016
    python tools/reproduce.py --model large --rows ap,miou --gpus 64 --slurm > submit.sh && bash submit.sh
    python tools/reproduce.py --rows top1,ap,miou \
        --init addp=exp/release/addp-vit-base-16.pth --format addp --init mae.pth --format mae
    python tools/reproduce.py --rows top1,ap,miou --model tiny --shapes data/shapes \
        --init work_dirs/addp_tiny --format addp --init random

Several machines: --slurm. Started again, it goes on where it stopped: a finished stage is not repeated, a changed
command (also another number of GPUs) is another stage. WORK_DIR/MODEL/results.json and results.md hold only what
finished evaluations wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import FAILED, OK, make_parser, print_error, run_command

from experiments.engine import dry_run, run_stages
from experiments.paper.checks import DataIssue, find_data_issues, find_problems
from experiments.paper.commands import make_plan
from experiments.paper.settings import Settings, add_arguments, read_settings
from experiments.paper.table import collect, write_results
from experiments.slurm import submit_script
from experiments.stages import Plan, RequestError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    add_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--dry-run', action='store_true', help='print every command and run none')
    what.add_argument('--table', action='store_true', help='collect and print the table, run nothing')
    what.add_argument('--slurm', action='store_true', help='print a script that submits the stages')
    parser.add_argument(
        '--sbatch-options', default='', metavar='"..."', help='for every job, e.g. "--partition=gpu --time=72:00:00"'
    )
    parser.add_argument('--gpus-per-node', type=int, default=8, metavar='N', help='under Slurm (default: %(default)s)')
    args = parser.parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    return args


def run(args: argparse.Namespace) -> int:
    """Checks, then prints commands, a script or the table, or runs what is not finished; returns 1 on a failure."""
    settings = read_settings(args)
    plan = make_plan(settings)
    script = make_script(args, plan) if args.slurm else ''
    to_run = plan.unfinished and not args.table
    issues = find_data_issues(settings) if settings.allow_mismatch or to_run else []
    if to_run and report_problems(args, settings, plan, issues):
        return FAILED
    if args.dry_run or args.slurm:
        print('\n'.join(dry_run(plan.stages, plan.work_dir)) if args.dry_run else script.removesuffix('\n'))
        return OK
    failed = [] if args.table else run_stages(plan.stages, plan.work_dir, keep_going=True)
    print('\n' + write_results(collect(plan, settings, issues), plan, settings))
    return FAILED if failed else OK


def make_script(args: argparse.Namespace, plan: Plan) -> str:
    """The script that submits the stages; its last job is this command with ``--table``."""
    words = [word for word in args.words if word != '--slurm']
    command = [sys.executable, str(Path(__file__).resolve()), *words, '--table']
    return submit_script(plan, sys.executable, command, args.sbatch_options, args.gpus_per_node)


def report_problems(args: argparse.Namespace, settings: Settings, plan: Plan, issues: Sequence[DataIssue]) -> bool:
    """Prints what is missing and what the run costs; returns whether it must not start."""
    problems = find_problems(settings, plan, issues, here=not args.slurm)
    for problem in problems:
        print_error(problem)
    unfinished = plan.unfinished
    hours = sum(stage.cost.gpu_hours for stage in unfinished)
    print(
        f'{len(unfinished)} of {len(plan.stages)} stages to run; about {hours:g} GPU hours (estimate)', file=sys.stderr
    )
    if problems and not args.dry_run:
        print_error(f'{len(problems)} problems, nothing was started (--dry-run shows the commands)')
        return True
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv), (RequestError, OSError))


if __name__ == '__main__':
    sys.exit(main())
