"""Random COCO files: right ones in the dialects of exporters, and ones that have anything in place of some values."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

WIDTH, HEIGHT = 96, 64
NAMES = ('red', 'blue', 'grün')


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def make_coco(num_images: int = 3) -> dict[str, Any]:
    """Two objects of different classes an image."""
    content: dict[str, Any] = dict(
        images=[dict(id=i + 1, file_name=f'{i}.jpg', width=WIDTH, height=HEIGHT) for i in range(num_images)],
        annotations=[],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(NAMES)],
    )
    for i in range(num_images):
        for k in range(2):
            x, y, side = 4.0 + 40 * k, 5.0 + i, 20.0 + 3 * i
            content['annotations'].append(
                dict(
                    id=2 * i + k + 1,
                    image_id=i + 1,
                    category_id=(i + k) % 3 + 1,
                    bbox=[x, y, side, side],
                    area=side * side,
                    iscrowd=0,
                    segmentation=square(x, y, side),
                )
            )
    return content


@st.composite
def dialects(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A COCO file with other ids, orders and ways to write them, and a model's order of its classes."""
    content = make_coco(draw(st.integers(1, 4)))
    if draw(st.booleans()):
        content['annotations'] = draw(st.permutations(content['annotations']))
        content['images'] = draw(st.permutations(content['images']))
    content['categories'] = draw(st.permutations(content['categories']))

    def renamed(records: list[dict], key: str, users: str | None) -> None:
        style = draw(st.sampled_from(['same', 'zero', 'sparse', 'text', 'uuid', 'mixed', 'reversed']))
        make = {
            'same': lambda i: i,
            'zero': lambda i: i - 1,
            'sparse': lambda i: i * 1000 + 7,
            'text': lambda i: f'{i:04}',
            'uuid': lambda i: f'{i}-fe{i}',
            'mixed': lambda i: i if i % 2 else f'n{i}',
            'reversed': lambda i: 500 - i,
        }[style]
        for record in content['annotations'] if users else []:
            record[users] = make(record[users])
        for record in records:
            record[key] = make(record[key])

    renamed(content['images'], 'id', 'image_id')
    renamed(content['categories'], 'id', 'category_id')
    renamed(content['annotations'], 'id', None)
    area = draw(st.sampled_from(['true', 'none', 'zero', 'text', 'absent']))
    for record in content['annotations']:
        if area == 'absent':
            del record['area']
        elif area != 'true':
            record['area'] = {'none': None, 'zero': 0, 'text': 'large'}[area]
        if draw(st.booleans()):
            del record['iscrowd']
    return content, tuple(draw(st.permutations(NAMES)))


BROKEN_WIDTH, BROKEN_HEIGHT = 40, 32
BOX = [4, 5, 20, 16]
SQUARE = [[4, 5, 24, 5, 24, 21, 4, 21]]
CODE = dict(
    size=[BROKEN_HEIGHT, BROKEN_WIDTH],
    counts=[133, 16, *[16, 16] * 19, BROKEN_HEIGHT * BROKEN_WIDTH - 133 - 16 - 19 * 32],
)
NUMBERS = st.one_of(
    st.integers(-5, 50),
    st.floats(-5, 50),
    st.sampled_from([0, -1, 1e308, -1e308, float('nan'), float('inf'), 10**30, '7', None, True, [], {}]),
)
VALUES: dict[str, Any] = {
    'id': st.one_of(st.integers(0, 5), st.sampled_from(['0001', 'x', 1.0, None, [1], 10**30])),
    'image_id': st.sampled_from([1, 2, '1', 1.0, 9, None, {}]),
    'category_id': st.sampled_from([1, 2, '2', 7, None, [], True]),
    'bbox': st.one_of(st.lists(NUMBERS, min_size=3, max_size=5), st.just(BOX), NUMBERS),
    'area': NUMBERS,
    'iscrowd': st.sampled_from([0, 1, True, None, '1', 2, 'no']),
    'segmentation': st.one_of(
        st.just(SQUARE),
        st.just(CODE),
        st.lists(st.lists(NUMBERS, max_size=9), max_size=2),
        st.fixed_dictionaries(
            dict(size=st.just([BROKEN_HEIGHT, BROKEN_WIDTH]), counts=st.one_of(st.lists(NUMBERS), st.text()))
        ),
        NUMBERS,
    ),
}


@st.composite
def broken_files(draw: st.DrawFn) -> dict[str, Any]:
    """A file of two images, some of whose values are anything."""
    good = dict(bbox=BOX, area=320, iscrowd=0, segmentation=SQUARE)
    annotations = []
    for number in range(draw(st.integers(1, 4))):
        record = dict(copy.deepcopy(good), id=number + 1, image_id=number % 2 + 1, category_id=number % 2 + 1)
        if draw(st.integers(0, 2)):
            key = draw(st.sampled_from(sorted(VALUES)))
            record[key] = draw(VALUES[key])
        if not draw(st.integers(0, 5)):
            del record[draw(st.sampled_from(sorted(record)))]
        annotations.append(record)
    images = [dict(id=i, file_name=f'{i}.png', width=BROKEN_WIDTH, height=BROKEN_HEIGHT) for i in (1, 2)]
    return dict(images=images, annotations=annotations, categories=[dict(id=i, name=f'c{i}') for i in (1, 2)])
