"""Fills the paper's table: lists, checks and runs what is needed, and puts our values beside the published ones.

    python tools/reproduce.py --model base --gpus 8 --imagenet data/imagenet --coco data/coco --ade20k data/ade/ADEChallengeData2016
    python tools/reproduce.py --model large --rows ap,miou --gpus 64 --slurm > submit.sh && bash submit.sh
    python tools/reproduce.py --init addp=exp/release/addp-vit-base-16.pth --format addp --init mae.pth --format mae --rows top1,ap,miou
    python tools/reproduce.py --model tiny --shapes data/shapes --init work_dirs/addp_tiny --format addp --init random --rows top1,ap,miou

Several machines: --slurm. Started again, it goes on where it stopped: a finished stage is not repeated, a changed
command (also another number of GPUs) is another stage. WORK_DIR/MODEL/results.json and results.md hold only what
finished evaluations wrote.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.paper.checks import check_data, find_problems
from experiments.paper.commands import make_plan
from experiments.paper.local_run import describe_cost, run_plan
from experiments.paper.options import add_arguments, read_settings
from experiments.paper.plan import Plan
from experiments.paper.settings import RequestError
from experiments.paper.slurm import submit_script
from experiments.paper.table import collect, write_results


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--dry-run', action='store_true', help='print every command and run none')
    what.add_argument('--table', action='store_true', help='collect and print the table, run nothing')
    what.add_argument('--slurm', action='store_true', help='print a script that submits the stages')
    parser.add_argument(
        '--sbatch-options', default='', metavar='"..."', help='for every job, e.g. "--partition=gpu --time=72:00:00"'
    )
    parser.add_argument('--gpus-per-node', type=int, default=8, metavar='N', help='under Slurm (default: %(default)s)')
    return parser.parse_args(argv)


def show_commands(plan: Plan) -> None:
    """Prints every command."""
    for number, stage in enumerate(plan.stages, 1):
        print(
            f'\n# [{number}/{len(plan.stages)}] {stage.name}{", finished" if stage.finished else describe_cost(stage)}'
        )
        print(shlex.join(stage.command(sys.executable)))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parse_args(argv)
    try:
        settings = read_settings(args)
        plan = make_plan(settings)
        if args.slurm:
            words = [word for word in (sys.argv[1:] if argv is None else argv) if word != '--slurm']
            script = submit_script(
                plan,
                sys.executable,
                [sys.executable, str(Path(__file__).resolve()), *words, '--table'],
                args.sbatch_options,
                args.gpus_per_node,
            )
    except RequestError as error:
        print(f'reproduce: {error}', file=sys.stderr)
        return 1
    findings = check_data(settings) if settings.allow_mismatch or (plan.unfinished and not args.table) else []
    if plan.unfinished and not args.table:
        problems = find_problems(settings, plan, findings, here=not args.slurm)
        for problem in problems:
            print(f'reproduce: {problem}', file=sys.stderr)
        hours = sum(stage.cost.gpu_hours for stage in plan.unfinished)
        print(
            f'{len(plan.unfinished)} of {len(plan.stages)} stages to run; about {hours:g} GPU hours (estimate)',
            file=sys.stderr,
        )
        if problems and not args.dry_run:
            print(
                f'reproduce: {len(problems)} problems, nothing was started (--dry-run shows the commands)',
                file=sys.stderr,
            )
            return 1
    if args.dry_run or args.slurm:
        show_commands(plan) if args.dry_run else print(script, end='')
        return 0
    failed = [] if args.table else run_plan(plan, lambda line: print(line, flush=True))
    print('\n' + write_results(collect(plan, settings, findings), plan, settings))
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
