"""Masks of COCO files are judged before pycocotools sees them, and measured as it measures them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_codec

from addp_backbone.datasets.segments import (
    run_lengths,
    segmentation_area,
    segmentation_bounds,
    segmentation_problem,
)
from addp_backbone.files.run_length import encode_mask

SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]


@pytest.mark.parametrize(
    ('segmentation', 'problem'),
    [
        ([], 'no polygon has three corners'),
        ([[1, 1, 2, 2]], 'no polygon has three corners'),
        ([[1, 1, 2, 2, 3]], '5 numbers'),
        ([[1, 1, 2, float('nan'), 3, 3]], 'far outside'),
        ([[float('nan')] * 6], 'far outside'),
        ([[1, 1, 2, float('inf'), 3, 3]], 'far outside'),
        ([[1, 1, 2, 1e308, 3, 3]], 'far outside'),
        ([[1, 1, 2, -1e308, 3, 3]], 'far outside'),
        ([[1, 1, 2, 10**400, 3, 3]], 'far outside'),
        ([[1, 1, '2', 2, 3, 3]], 'holds str'),
        ([[1, 1, None, 2, 3, 3]], 'holds NoneType'),
        ([[1, 1, True, 2, 3, 3]], 'holds bool'),
        ([{'x': 1}], 'hold a dict'),
        ([1, 2, 3, 4, 5, 6], 'hold a int'),
        ('mask', 'a str'),
        ({'size': [64, 96]}, 'wanted counts'),
        ({'size': [96, 64], 'counts': [96 * 64]}, r'size \[96, 64\]'),
        ({'size': 'a', 'counts': []}, 'of size a'),
        ({'size': [64, 96], 'counts': [5, 5]}, 'covers 10 pixels'),
        ({'size': [64, 96], 'counts': [6144, 1]}, 'covers 6145 pixels'),
        ({'size': [64, 96], 'counts': [-1, 6145]}, 'malformed'),
        ({'size': [64, 96], 'counts': [6144.0]}, 'malformed'),
        ({'size': [64, 96], 'counts': ['6144']}, 'malformed'),
        ({'size': [64, 96], 'counts': ''}, 'covers 0 pixels'),
        ({'size': [64, 96], 'counts': 'PPPP'}, 'malformed'),
        ({'size': [64, 96], 'counts': 'garbage \x7f'}, 'malformed'),
        ({'size': [64, 96], 'counts': 'ünicode'}, 'malformed'),
        ({'size': [64, 96], 'counts': {}}, 'wanted counts'),
    ],
)
def test_a_bad_mask_is_named(segmentation: object, problem: str) -> None:
    import re

    assert re.search(problem, segmentation_problem(segmentation, 96, 64) or 'no problem')


def test_valid_masks_have_no_problem_and_short_polygons_beside_one_are_left_out() -> None:
    assert segmentation_problem([SQUARE], 96, 64) is None
    assert segmentation_problem([[1, 2], SQUARE, []], 96, 64) is None
    assert segmentation_bounds([[1, 2], SQUARE]) == (10, 10, 20, 20)
    assert segmentation_area([SQUARE, SQUARE]) == 200
    assert segmentation_problem({'size': [64, 96], 'counts': [6144]}, 96, 64) is None


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1)))
@settings(max_examples=150, deadline=None)
def test_codes_of_random_masks_are_read_as_pycocotools_reads_them(mask: np.ndarray) -> None:
    height, width = mask.shape
    code = encode_mask(mask)
    assert segmentation_problem(code, width, height) is None
    lengths = run_lengths(code['counts'])
    assert lengths is not None
    plain = {'size': [height, width], 'counts': lengths.tolist()}
    assert segmentation_problem(plain, width, height) is None
    assert np.array_equal(mask_codec.decode(mask_codec.frPyObjects(plain, height, width)), mask)
    assert segmentation_area(code) == mask.sum()
    bounds = segmentation_bounds(code)
    rows, columns = np.nonzero(mask)
    if not len(rows):
        assert bounds is None
    else:
        left, top, right, bottom = bounds
        assert (left, right) == (columns.min(), columns.max() + 1)
        assert top <= rows.min() and bottom >= rows.max() + 1  # a run that wraps around is taken as full height


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
@settings(max_examples=300, deadline=None)
def test_what_is_accepted_pycocotools_decodes_to_the_same_number_of_pixels(counts: str) -> None:
    code = {'size': [8, 9], 'counts': counts}
    if segmentation_problem(code, 9, 8) is None:
        assert mask_codec.decode(code).sum() == segmentation_area(code)


def test_a_polygon_of_a_million_points_is_judged_in_a_moment() -> None:
    angles = np.linspace(0, 6.28, 10**6)
    polygon = np.stack([50 + 40 * np.cos(angles), 30 + 20 * np.sin(angles)], 1).ravel().tolist()
    start = time.process_time()
    assert segmentation_problem([polygon], 96, 64) is None
    assert time.process_time() - start < 2
