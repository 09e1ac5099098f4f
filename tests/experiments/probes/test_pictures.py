"""Pictures and page: one basis for all images, similarity of a patch to itself, nothing loaded, names escaped."""

import re

import numpy as np
import pytest

from experiments.probes.chart import Point, line_chart
from experiments.probes.page import make_page
from experiments.probes.pictures import cosine_map, principal_colours, shown_blocks
from experiments.probes.results import Row
from experiments.probes.settings import ProbeSettings

ABOUT = dict(
    classes=['<b>a', 'b'], train_images=8, val_images=2, size={'<script>x': [8, 8]}, tokens='t', precision='fp32'
)


def rows(name='<script>x'):
    rng = np.random.default_rng(0)
    return [
        Row(name, protocol, block, fraction, seed, 8, 1.0, '', rng.integers(50, 90, (2, 3, 2)))
        for protocol in ('logistic', 'knn')
        for block in (1, 2, '1+2')
        for fraction in (0.5, 1.0)
        for seed in (0, 1)
    ]


def test_a_token_has_the_same_colour_in_every_image():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(3, 4, 6)), rng.normal(size=(3, 4, 6)) + 2]
    maps[1][2, 1] = maps[0][0, 3]
    colours = principal_colours(maps)
    assert (colours[0][0, 3] == colours[1][2, 1]).all()
    assert colours[0].shape == (3, 4, 3) and colours[0].dtype == np.uint8


def test_the_first_component_is_red_and_spans_the_range():
    tokens = np.zeros((1, 101, 5))
    tokens[0, :, 2] = np.arange(101)
    red = principal_colours([tokens])[0][0, :, 0]
    assert red[0] == 0 and red[-1] == 255 and abs(int(red[50]) - 128) <= 1


def test_a_patch_is_most_similar_to_itself():
    similarity = cosine_map(np.random.default_rng(0).normal(size=(3, 4, 6)), 1, 2)
    assert similarity[1, 2] == pytest.approx(1) and similarity.argmax() == 1 * 4 + 2


def test_few_blocks_are_shown_the_last_among_them():
    assert shown_blocks(range(1, 13)) == [4, 8, 12]
    assert shown_blocks((7,)) == [7]


def test_long_names_break_after_their_parts_alone():
    page = make_page(rows('timm/vit_a=b.pth'), {**ABOUT, 'settings': {}}, [], [])
    assert '<td class="name">timm/<wbr>vit_<wbr>a=<wbr>b.<wbr>pth</td>' in page


def test_the_page_loads_nothing_and_escapes_names():
    about = {**ABOUT, 'settings': {name: ProbeSettings().of_protocol(name) for name in ('logistic', 'knn', 'linear')}}
    page = make_page(rows(), about, [], [])
    assert '<script>' not in page and '<b>a' not in page and '&lt;script&gt;x' in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count('<svg') == 4  # by block and by labels, of two protocols
    assert '{' not in page.partition('</style>')[2]


def test_a_chart_of_one_point_and_of_equal_values_is_drawn():
    assert '<circle' in line_chart({'a': [Point(1, 5.0)]}, 'x', 'y')
    assert line_chart({'a': [Point(1, 5.0), Point(2, 5.0)]}, 'x', 'y', logarithmic=True).count('<circle') == 2
    assert line_chart({}, 'x', 'y') == ''
