"""Long: a thousand hostile COCO files are refused with a reason or trained on; no crash, no hang, bounded memory."""

from __future__ import annotations

import copy
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_runs import ForkedRun
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mmdet import datasets  # noqa: F401  (its memory does not count)
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from running import ROOT

from addp_backbone.datasets.coco import DetectionSplit, check_detection
from addp_backbone.datasets.coco_file import CocoError, load_coco
from addp_backbone.datasets.findings import Findings

NUM_FILES = 1000
MAX_GROWTH_MIB, MAX_SECONDS = 320, 60.0  # of one file; the largest are 12 MB of JSON, about 170 MiB once parsed
WIDTH, HEIGHT = 40, 32
CONFIG = Config.fromfile(ROOT / 'det_configs/addp_tiny_maskrcnn_128px.py')
SQUARE = [4, 5, 24, 5, 24, 21, 4, 21]
RUNS = [133, 16, *[16, 16] * 19, HEIGHT * WIDTH - 133 - 16 - 19 * 32]
GOOD = dict(
    images=[dict(id=i, file_name=f'{i}.png', width=WIDTH, height=HEIGHT) for i in (1, 2)],
    annotations=[
        dict(id=1, image_id=1, category_id=1, bbox=[4, 5, 20, 16], area=320, iscrowd=0, segmentation=[SQUARE]),
        dict(
            id=2,
            image_id=2,
            category_id=2,
            bbox=[4, 5, 20, 16],
            area=320,
            iscrowd=1,
            segmentation=dict(size=[HEIGHT, WIDTH], counts=RUNS),
        ),
    ],
    categories=[dict(id=i, name=f'c{i}') for i in (1, 2)],
)
SCALARS = [
    *(
        0,
        1,
        2,
        -1,
        1e308,
        -1e308,
        float('nan'),
        float('inf'),
        float('-inf'),
        1e-320,
        10**30,
        -(2**63),
        2**31,
        2**32,
        0.5,
    ),
    *(
        True,
        False,
        None,
        '',
        '1',
        'x',
        '\0',
        '\ud800',
        '{{ fileDirname }}',
        '{{$HOME:x}}',
        '__import__("os")',
        'é' * 300,
    ),
    *('../1.png', '/etc/passwd', 'a\\..\\1.png', '1.png\0', 'C:\\1.png', 'file:///1.png', 'http://x/1.png', '.', '~'),
    *('P4o?', 'PPYo1', '0' * 1000, '~~~~', 'oooooooooooooooooo'),
]
BIG = [
    '[' * 100_000 + ']' * 100_000,
    '{"a":' * 50_000 + '1' + '}' * 50_000,
    '[' * 100_000,
    '"' + 'a' * 10_000_000 + '"',
]
# 10^6 points, a code of 10^6 runs, one that covers an image of 10^12 pixels
HUGE = [[[float(i % WIDTH) for i in range(2_000_000)]], dict(size=[HEIGHT, WIDTH], counts=[1] * 1_000_000)]
HUGE += [dict(size=[10**6, 10**6], counts=[10**12])]
VALUES = st.one_of(
    st.sampled_from(SCALARS),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.sampled_from(SCALARS), st.floats(-5, 50)), max_size=9),
    st.lists(st.lists(st.one_of(st.sampled_from(SCALARS), st.floats(-5, 50)), max_size=9), max_size=3),
    st.dictionaries(st.sampled_from(['size', 'counts', 'id', 'x']), st.sampled_from(SCALARS), max_size=3),
)


MILD = st.one_of(st.integers(1, 2), st.floats(1, 20), st.just(SQUARE), st.just([SQUARE]), st.just([4, 5, 20, 16]))


def nodes(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value within a file."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in inner for found in nodes(child, (*path, key)))]


PATHS = [path for path in nodes(GOOD) if path]


def change(content: Any, path: tuple, value: Any, how: str) -> None:
    """Replaces, removes or doubles a value; a path that an earlier change removed is passed over."""
    try:
        for key in path[:-1]:
            content = content[key]
        if how == 'remove':
            del content[path[-1]]
        elif how == 'double' and isinstance(content, list):
            content.append(copy.deepcopy(content[path[-1]]))
        else:
            content[path[-1]] = value
    except (LookupError, TypeError):
        return


@st.composite
def texts(draw: st.DrawFn) -> str:
    """The text of a file, one to three of whose values are anything; one in ten huge, deep or cut."""
    kind = draw(st.integers(0, 19))
    content = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        how = draw(st.sampled_from(['replace', 'replace', 'replace', 'remove', 'double']))
        change(content, draw(st.sampled_from(PATHS)), draw(st.one_of(VALUES, MILD)), how)
    if kind == 0:
        change(content, ('annotations', 0, 'segmentation'), draw(st.sampled_from(HUGE)), 'replace')
    text = json.dumps(content)
    if kind == 1:
        return text.replace('"file_name"', f'"deep": {draw(st.sampled_from(BIG))}, "file_name"', 1)
    if kind == 2:
        return text[: draw(st.integers(0, len(text)))]
    return text


def train_on(path: Path, folder: Path, classes: list[str], has_masks: bool) -> None:
    """Loads every sample of an accepted file, for training and for evaluation."""
    pipeline = [dict(step) for step in CONFIG.train_pipeline]
    for step in pipeline:
        if 'with_mask' in step:
            step['with_mask'] = has_masks
    options = dict(ann_file=str(path), data_prefix=dict(img=str(folder)), metainfo=dict(classes=tuple(classes)))
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(dict(type='CocoInstances', pipeline=pipeline, **options))
    for index in range(len(dataset)):
        assert np.isfinite(dataset[index]['data_samples'].gt_instances.bboxes.tensor).all()
    DATASETS.build(dict(type='CocoInstances', test_mode=True, **options))


def memory_mib(kind: str) -> float:
    """Memory of this process: VmRSS now, VmHWM at most. Hypothesis keeps some 570 MiB of a thousand such files."""
    found = re.search(rf'{kind}:\s+(\d+) kB', Path('/proc/self/status').read_text(encoding='ascii'))
    assert found
    return int(found[1]) / 1024


def try_all(folder: Path, num_files: int) -> int:
    """Tries the files in this process; prints what came of them."""
    path, outcomes, slowest, growth = folder / 'a.json', Counter(), 0.0, 0.0
    for name in ('1.png', '2.png'):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 80, np.uint8)).save(folder / name)

    @given(text=texts())
    @settings(
        max_examples=num_files, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def attempt(text: str) -> None:
        nonlocal slowest, growth
        path.write_bytes(text.encode('utf-8', 'surrogatepass'))
        before, began = memory_mib('VmRSS'), time.monotonic()
        Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here
        findings = Findings()
        data = check_detection([DetectionSplit('train', path, folder)], findings)
        if findings.num_errors:
            outcomes['refused by the check'] += 1
            try:
                load_coco(str(path))
            except CocoError:
                outcomes['refused by training'] += 1
        else:
            train_on(path, folder, list(data.files['train'].categories.values()), data.has_masks)
            outcomes['accepted and trained on'] += 1
        slowest, growth = max(slowest, time.monotonic() - began), max(growth, memory_mib('VmHWM') - before)

    attempt()
    print(f'{dict(outcomes)}; slowest {slowest:.1f} s; a file took at most {growth:.0f} MiB')
    assert slowest < MAX_SECONDS and growth < MAX_GROWTH_MIB
    assert min(outcomes[kind] for kind in ('refused by the check', 'accepted and trained on')) > num_files // 50
    return 0


@pytest.mark.skipif(sys.platform != 'linux', reason='forks')
def test_a_thousand_hostile_files_crash_nothing_hang_nothing_and_take_little_memory(tmp_path: Path) -> None:
    run = ForkedRun(tmp_path / 'out.log', lambda: try_all(tmp_path, NUM_FILES))
    assert run.wait(1500) == 0, run.output[-6000:]
    print(run.output.splitlines()[-1])
