"""Runs checks, each in a process of its own with its own time limit, within a budget; table and JSON file.

The parent imports torch to look for a card and nothing more, so that whatever a check does to its process (a crash of
a kernel, a card that hangs) the others go on.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from addp_backbone.files.atomic import replace_file
from tools.gpu.checks import CHECKS, ORDER, Check
from tools.gpu.light_imports import missing_packages
from tools.gpu.report import Report, SkippedError, read_report

FAILURES = ('FAIL', 'crashed', 'too slow')
LIMIT_FACTOR = 4  # a check may take this much longer than expected
LEAST_LIMIT_S = dict(cuda=60, cpu=180)  # a CPU may be busy with other work
SHARE_NEEDED = 0.5  # of the expected time has to be left for a check to begin
Row = dict[str, Any]


def run_checks(
    numbers: Sequence[int], device: str, budget_s: float, out: Path, command: Sequence[str], script: Path
) -> list[Row]:
    """Runs checks in the order of their worth.

    Args:
        numbers: Of the checks.
        device: 'cuda' or 'cpu'.
        budget_s: Seconds for all together.
        out: JSON file, rewritten after every check.
        command: The words that were typed, for the file.
        script: What runs a single check if started with ``--inside NUMBER --report FILE``.

    Returns:
        A row for each check, by number: number, check, state, reason, seconds, and its report's entries.
    """
    end = time.monotonic() + budget_s
    rows: list[Row] = []
    header = dict(
        device=device,
        command=shlex.join(command),
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        budget_s=budget_s,
    )
    _write(out, header, rows)  # a file that cannot be written is known before anything is measured
    for number in [n for n in ORDER if n in numbers]:
        rows.append(run_check(CHECKS[number], device, end - time.monotonic(), script))
        _write(out, header, rows)
    return sorted(rows, key=lambda row: row['number'])


def _write(out: Path, header: dict[str, Any], rows: Sequence[Row]) -> None:
    machine = next((row['machine'] for row in rows if row.get('machine')), None)
    content = dict(header, machine=machine, checks=sorted(rows, key=lambda row: row['number']))
    replace_file(out, json.dumps(content, indent=2) + '\n')


def run_check(check: Check, device: str, seconds_left: float, script: Path) -> Row:
    """Runs one check in a process of its own; see :func:`run_checks`."""
    expected = check.seconds if device == 'cuda' else check.cpu_seconds
    row: Row = dict(number=check.number, check=check.name, state='', reason='', seconds=0.0, **Report().as_dict())
    if device == 'cpu' and check.cuda_only:
        return dict(row, state='skipped', reason=check.cuda_only)
    missing = missing_packages(check.packages)
    if missing:
        return dict(row, state='skipped', reason=f'{missing[0]} is not installed (make gpu-wheels)')
    if seconds_left < SHARE_NEEDED * expected:
        return dict(
            row, state='not run', reason=f'budget: about {expected:.0f} s needed, {max(0, seconds_left):.0f} left'
        )
    own_limit = max(LEAST_LIMIT_S[device], LIMIT_FACTOR * expected)
    with tempfile.TemporaryDirectory(prefix='gpu_check_') as folder:
        report = Path(folder) / 'report.json'
        options = ['--device', device, '--inside', str(check.number), '--report', str(report)]
        start = time.monotonic()
        limit = min(own_limit, seconds_left)
        code, error = _run([sys.executable, str(script), *options], limit, Path(folder), hide_cards=device == 'cpu')
        row.update(read_report(report), seconds=round(time.monotonic() - start, 1))
    row['machine'] = row['values'].pop('machine', None)
    if code is None:
        cut = seconds_left < own_limit
        reason = f'ended after {row["seconds"]:.0f} s' + (', when the budget was spent' if cut else ', its limit')
        return dict(row, state='not run' if cut and not row['failures'] else 'too slow', reason=reason)
    if code != 0:
        return dict(row, state='crashed', reason=error or f'exit code {code}')
    if row['failures']:
        return dict(row, state='FAIL', reason='; '.join(row['failures']))
    skipped = row['values'].pop('skipped', '')
    return dict(row, state='skipped' if skipped else 'pass', reason=skipped)


def _run(command: list[str], limit_s: float, folder: Path, hide_cards: bool) -> tuple[int | None, str]:
    """Exit code (None: over the limit; all its processes are killed then) and the last line of errors."""
    environment = {**os.environ, 'TMPDIR': str(folder)}
    if hide_cards:
        environment['CUDA_VISIBLE_DEVICES'] = ''
    with (folder / 'output').open('w+b') as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # Ctrl-C ends it, too: in a session of its own it is not told
            with contextlib.suppress(ProcessLookupError):  # what a check started ends with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        lines = output.read().decode(errors='replace').strip().splitlines()
    return code, lines[-1].strip()[:300] if lines and code else ''


def run_inside(check: Check, device_type: str, report_path: Path | None) -> None:
    """Runs a check in this process, which ends with the one that started it."""
    from addp_backbone.runtime.processes import die_with_parent

    die_with_parent()
    import torch

    from tools.gpu.environment import describe

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(device_type, 0) if device_type == 'cuda' else torch.device('cpu')
    report = Report(report_path)
    report.note('machine', describe(device))
    module, _, name = check.function.partition(':')
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            function: Callable[[torch.device, Report], None] = getattr(
                importlib.import_module(f'tools.gpu.{module}'), name
            )
            function(device, report)
    except SkippedError as skipped:
        report.note('skipped', str(skipped))
    except Exception as error:  # one line for the table; the traceback is in the file
        report.note('traceback', traceback.format_exc())
        report.require(False, f'{type(error).__name__}: {" ".join(str(error).split())[:300]}')
    report.note('finished', True)


def table(rows: Sequence[Row]) -> str:
    """The rows as text: number, what, result, figure or reason, seconds."""
    lines = []
    for row in rows:
        found = row['reason'] if row['state'] != 'pass' else row['figure']
        lines.append(f'{row["number"]:>3}  {row["check"]:<34} {row["state"]:<8} {row["seconds"]:>6.1f} s  {found}')
    counts = {state: sum(row['state'] == state for row in rows) for state in dict.fromkeys(r['state'] for r in rows)}
    return '\n'.join([*lines, ', '.join(f'{count} {state}' for state, count in counts.items())])
