"""The table as text, JSON and Markdown: each value from its finished evaluation's file, beside the published one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from addp_backbone.files.atomic import replace_file
from experiments.paper.checks import DataIssue
from experiments.paper.commands import METRICS_FILE
from experiments.paper.rows import GENERATION, PUBLISHED, PUBLISHED_SOURCE, ROWS
from experiments.paper.settings import Initialization, Settings
from experiments.rows import value_of
from experiments.stages import FINISHED_FILE, Plan, Stage
from pretrain.evaluation.fidelity import INCEPTION, name_of

NOT_RUN = 'not run'
NO_VALUE = 'no value'
RESULTS_JSON, RESULTS_MD = 'results.json', 'results.md'


@dataclass(frozen=True)
class Entry:
    """A value of the table, or why there is none.

    Attributes:
        row: Key of ``ROWS``.
        title: Of the row; names the extractor if it is not the published one.
        init: Name of the initialisation.
        format: Of its checkpoint.
        value: In the unit of the table; None if it was not measured.
        published: For this size of ADDP; None if not published, or the checkpoint is another method's.
        difference: ``value - published``; None if either is.
        protocol: How it was measured, and in what that departs from the published protocol.
        status: 'measured'; 'not run'; or with the reason behind a colon, 'no value' of a finished evaluation, or 'not
            run'.
        file: The evaluation's own file.
    """

    row: str
    title: str
    init: str
    format: str
    value: float | None
    published: float | None
    difference: float | None
    protocol: str
    status: str
    file: str


def collect(plan: Plan, settings: Settings, issues: Sequence[DataIssue] = ()) -> list[Entry]:
    """Reads every row off the file of its finished evaluation; a row without one is 'not run'.

    Args:
        plan: Its ``evaluations``.
        settings: Rows and initialisations.
        issues: With the data; the rows that they concern repeat them.
    """
    return [
        _entry(
            settings,
            row,
            init,
            plan.evaluations.get((init.name, ROWS[row].task)),
            [issue.text for issue in issues if ROWS[row].task in issue.tasks],
        )
        for row in settings.rows
        for init in settings.inits
    ]


def _entry(
    settings: Settings, name: str, init: Initialization, stage: Stage | None, departures: Sequence[str]
) -> Entry:
    row, recipe = ROWS[name], settings.recipe
    title, key = row.title if recipe.shapes else f'{row.data} {row.title}'.strip(), row.key
    if row.task == GENERATION and recipe.extractor != INCEPTION:  # whose figures have other names
        key = (*key[:-1], name_of(key[-1], recipe.extractor))
        title = key[-1]
    value, status, found = read_value(stage, key, row.factor)
    if stage is None and row.task != GENERATION:
        status = f'{NOT_RUN}: a ViT computed by timm has no classifier here'
    published = PUBLISHED.get(settings.model, {}).get(name) if init.format == 'addp' else None
    protocol = [recipe.protocol(row.task), *departures, *found]
    options = settings.task_options(row.task)
    if options:
        protocol.append('changed: ' + ' '.join(options))
    if settings.num_images is not None and row.task == GENERATION:
        protocol.append(f'changed: {settings.num_images} images')
    return Entry(
        name,
        title,
        init.name,
        init.format,
        value,
        published,
        None if value is None or published is None else round(value - published, 2),
        '; '.join(protocol),
        status,
        '' if stage is None else str(stage.file(METRICS_FILE)),
    )


def read_value(stage: Stage | None, key: tuple[str, ...], factor: float = 1.0) -> tuple[float | None, str, list[str]]:
    """Reads a value off an evaluation's file.

    Args:
        stage: The evaluation; None if there is none for this checkpoint.
        key: Where the value stands.
        factor: To the table's unit.

    Returns:
        The value or None, the status, and departures from the published protocol that the file itself tells.
    """
    if stage is None:
        return None, f'{NOT_RUN}: this checkpoint cannot generate', []
    if not stage.finished:
        return None, NOT_RUN, []
    mend = f'remove {stage.file(FINISHED_FILE)} to run it again'
    try:
        metrics: Any = json.loads((stage.file(METRICS_FILE)).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        return None, f'{NOT_RUN}: {stage.name} left no whole {METRICS_FILE} ({error}); {mend}', []
    try:
        value = value_of(metrics, key, factor)
    except ValueError as error:
        return None, f'{NO_VALUE}: {stage.file(METRICS_FILE)}: {error}; {mend}', []
    protocol = metrics.get('protocol')
    return round(value, 4), 'measured', list(protocol['mismatches']) if isinstance(protocol, dict) else []


def describe(entries: Sequence[Entry], settings: Settings) -> str:
    """The table as Markdown, with a comparison of the checkpoints if there are several, and what is not run."""
    lines = [
        f'| ViT-{settings.model.capitalize()} | weights | ours | published | difference | protocol |',
        '|---|---|---|---|---|---|',
    ]
    lines += [
        f'| {entry.title} | {entry.init} | {_cell(entry)} | {_number(entry.published)} '
        f'| {_number(entry.difference, "+.2f")} | {entry.protocol} |'
        for entry in entries
    ]
    if len(settings.inits) > 1:
        names = [init.name for init in settings.inits]
        lines += ['', f'| weights | {" | ".join(_titles(entries))} |', '|---' * (1 + len(settings.rows)) + '|']
        for name in names:
            lines.append(f'| {name} | {" | ".join(_cell(entry) for entry in entries if entry.init == name)} |')
    if any(entry.published is not None for entry in entries):
        lines += ['', f'Published: {PUBLISHED_SOURCE}.']
    reasons = [
        f'- {entry.title}, {entry.init}: {entry.status}'
        for entry in entries
        if entry.status not in ('measured', NOT_RUN)
    ]
    return '\n'.join([*lines, *(['', *reasons] if reasons else [])]) + '\n'


def write_results(entries: Sequence[Entry], plan: Plan, settings: Settings) -> str:
    """Writes ``results.json`` and ``results.md`` into the model's folder of the work dir; returns the table."""
    table = describe(entries, settings)
    folder = settings.work_dir / settings.model
    results = dict(
        model=settings.model,
        gpus=settings.num_gpus,
        published_source=PUBLISHED_SOURCE,
        weights={
            init.name: dict(format=init.format, path=str(init.path) if init.path else None) for init in settings.inits
        },
        rows=[asdict(entry) for entry in entries],
        stages=[dict(name=stage.name, folder=str(stage.folder), finished=stage.finished) for stage in plan.stages],
        time=datetime.now(timezone.utc).isoformat(timespec='seconds'),
    )
    replace_file(folder / RESULTS_JSON, json.dumps(results, indent=2, ensure_ascii=False) + '\n')
    replace_file(folder / RESULTS_MD, table)
    return table


def _titles(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.title for entry in entries))


def _cell(entry: Entry) -> str:
    return entry.status.partition(':')[0] if entry.value is None else _number(entry.value)


def _number(value: float | None, form: str = '.2f') -> str:
    return '-' if value is None else format(value, form)
