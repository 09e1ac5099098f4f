"""Writes the short leaf config that fits one of our recipes to a data set. ``tools/new_dataset.py`` is the command."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine import Config

from addp_backbone.datasets.coco import DetectionData, DetectionSplit
from addp_backbone.datasets.mask_values import VOID_ZERO
from addp_backbone.datasets.masks import SegmentationData, SegmentationSplit
from addp_backbone.datasets.palette import class_palette
from addp_backbone.datasets.protocols import Protocol, find_protocol
from addp_backbone.datasets.schedule import LeafOptions, fit_to_images, schedule_text
from addp_backbone.files.atomic import replace_file
from addp_backbone.files.config_text import docstring_text, python_call, python_literal

LINE_LENGTH = 120
LOAD_ERRORS = (OSError, KeyError, TypeError, AttributeError, SyntaxError, ValueError, ImportError)  # of Config.fromfile

HEADER = '''"""{name}: {what}, {num_images} training images. Written by tools/new_dataset.py.

Command: ``python tools/train.py {path}``.
"""

_base_ = {base}

data_root = {root}
{metainfo}
num_classes = {num_classes}

model = dict({model})
'''
DETECTION_DATA = """
train_dataloader = dict(
    dataset=dict(metainfo=metainfo, data_root=data_root, ann_file={train_ann}, data_prefix=dict(img={train_img})),
)
val_dataloader = dict(
    dataset=dict(metainfo=metainfo, data_root=data_root, ann_file={val_ann}, data_prefix=dict(img={val_img})),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={val_ann_path})
test_evaluator = val_evaluator
"""
WITHOUT_MASKS = """
train_dataloader['dataset']['pipeline'] = [
    dict(step, with_mask=False) if 'with_mask' in step else step
    for step in _base_.train_dataloader.dataset.pipeline
]
val_evaluator['metric'] = 'bbox'
"""
SEGMENTATION_DATA = """
masks_and_images = dict(
    type='BaseSegDataset',
    metainfo=metainfo,
    data_root=data_root,
    img_suffix={img_suffix},
    seg_map_suffix={mask_suffix},
    reduce_zero_label={reduce_zero_label},  # {convention}
)
train_dataloader = dict(
    dataset=dict(**masks_and_images, data_prefix=dict(img_path={train_img}, seg_map_path={train_masks})),
)
val_dataloader = dict(
    dataset=dict(**masks_and_images, data_prefix=dict(img_path={val_img}, seg_map_path={val_masks})),
)
test_dataloader = val_dataloader
"""


def detection_leaf(options: LeafOptions, splits: list[DetectionSplit], data: DetectionData) -> str:
    """Composes the leaf config of a detection data set.

    Args:
        options: Where it will be, and what it inherits from. For data without masks the base's Faster R-CNN sibling is
            taken, or, where there is none, the leaf itself takes the masks out.
        splits: The training split first; the last is for validation.
        data: From :func:`addp_backbone.datasets.coco.check_detection`.

    Returns:
        The text of the config.

    Raises:
        ValueError: If the base cannot be loaded or is no detection config, or the protocol does not go with it.
    """
    base = options.base
    sibling = base.with_name(base.name.replace('maskrcnn', 'fasterrcnn'))
    if not data.has_masks and sibling.exists():
        base = sibling
    config = load_base(base, 'roi_head', 'a detector with a RoI head, as det_configs/addp_base_maskrcnn.py')
    with_masks = config.model.roi_head.get('mask_head') is not None
    if data.has_masks and not with_masks:
        raise ValueError(
            f'base config {base} has no mask head, but the data has masks: choose a Mask R-CNN base, or give --box-only'
        )
    protocol = _protocol(options, config, data.num_train_images)
    heads = [_set_num_classes(config.model.roi_head.bbox_head, 'bbox_head', 'roi_head.')]
    model = _backbone_lines(protocol)
    if data.has_masks:
        heads.append(_set_num_classes(config.model.roi_head.mask_head, 'mask_head', 'roi_head.'))
    elif with_masks:
        heads += ['mask_roi_extractor=None', 'mask_head=None']
        model += ["type='FasterRCNN'"] if config.model.type == 'MaskRCNN' else []
    model.append(_call('roi_head=dict', heads, indent=4))
    train, val = splits[0], splits[-1]
    root = _common_root([path for split in splits for path in (split.ann_file, split.image_dir)])
    text = DETECTION_DATA.format(
        train_ann=python_literal(_below(root, train.ann_file)),
        train_img=python_literal(_below(root, train.image_dir)),
        val_ann=python_literal(_below(root, val.ann_file)),
        val_img=python_literal(_below(root, val.image_dir)),
        val_ann_path=python_literal(str(val.ann_file.resolve())),
    )
    if with_masks and not data.has_masks:
        text += WITHOUT_MASKS
    what = f'{len(data.classes)} classes, detection' + ('' if data.has_masks else ' without masks')
    schedule = fit_to_images(config, data.num_train_images)
    metric = 'coco/segm_mAP' if data.has_masks else 'coco/bbox_mAP'
    text += schedule_text(schedule, options, metric, protocol.paramwise if protocol else None)
    head = _Head(what, data.num_train_images, root, list(data.classes), None, model)
    return _header(replace(options, base=base), head) + text


def mended_splits(
    out: Path, splits: list[DetectionSplit], data: DetectionData
) -> tuple[list[DetectionSplit], dict[Path, str]]:
    """Annotation files beside the leaf, in place of those that are not COCO files as training reads them.

    Args:
        out: The leaf config.
        splits: What was checked.
        data: What was read.

    Returns:
        The splits with the files to train on, and the text of those that must be written.
    """
    written: dict[Path, str] = {}
    result = []
    for split in splits:
        if data.files[split.name].mended:
            path = out.with_name(f'{out.stem}_{split.name}.json')
            written[path] = data.files[split.name].to_json()
            split = replace(split, ann_file=path)
        result.append(split)
    return result, written


def segmentation_leaf(
    options: LeafOptions,
    splits: list[SegmentationSplit],
    classes: list[str],
    palette: list[list[int]] | None,
    data: SegmentationData,
) -> str:
    """Composes the leaf config of a segmentation data set.

    Args:
        options: Where it will be, and what it inherits from.
        splits: The training split first; the last is for validation.
        classes: Class names.
        palette: A colour a class; None chooses them.
        data: From :func:`addp_backbone.datasets.masks.check_segmentation`.

    Returns:
        The text of the config.

    Raises:
        ValueError: If the base cannot be loaded or is no segmentation config, or the protocol does not go with it.
    """
    base = options.base
    config = load_base(base, 'decode_head', 'a segmentor, as seg_configs/addp_base_upernet.py')
    steps = [step for loader in (config.train_dataloader, config.val_dataloader) for step in loader.dataset.pipeline]
    if any(step.get('reduce_zero_label') is not None for step in steps):
        raise ValueError(
            f'base config {base} sets reduce_zero_label in its pipelines; the data set sets it, as it knows its masks'
        )
    protocol = _protocol(options, config, data.num_train_images)
    model = _backbone_lines(protocol) + [
        _set_num_classes(config.model[name], name, '')
        for name in ('decode_head', 'auxiliary_head')
        if config.model.get(name)
    ]
    train, val = splits[0], splits[-1]
    root = _common_root([path for split in splits for path in (split.image_dir, split.mask_dir)])
    void_is_zero = data.void == VOID_ZERO
    text = SEGMENTATION_DATA.format(
        reduce_zero_label=void_is_zero,
        img_suffix=python_literal(data.img_suffix),
        mask_suffix=python_literal(data.mask_suffix),
        convention='masks: 0 = void, classes from 1' if void_is_zero else 'masks: 255 = void, classes from 0',
        train_img=python_literal(_below(root, train.image_dir)),
        train_masks=python_literal(_below(root, train.mask_dir)),
        val_img=python_literal(_below(root, val.image_dir)),
        val_masks=python_literal(_below(root, val.mask_dir)),
    )
    schedule = fit_to_images(config, data.num_train_images)
    text += schedule_text(schedule, options, 'mIoU', protocol.paramwise if protocol else None)
    head = _Head(f'{len(classes)} classes, segmentation', data.num_train_images, root, classes, palette, model)
    return _header(options, head) + text


def write_leaf(out: Path, text: str, classes: list[str]) -> Config:
    """Writes a leaf config, after having seen that it loads and gives back the class names.

    Args:
        out: Where to.
        text: What.
        classes: The class names that the config must have.

    Returns:
        The config as loaded.

    Raises:
        ValueError: If mmengine cannot load it, or reads other class names; nothing is written then.
    """
    trial = out.with_name(f'{out.stem}_trial_{os.getpid()}.py')
    try:
        replace_file(trial, text)
        config = Config.fromfile(trial)
    except LOAD_ERRORS as error:
        raise ValueError(f'the leaf config does not load with this base: {type(error).__name__}: {error}') from error
    finally:
        trial.unlink(missing_ok=True)
    if list(config.metainfo.classes) != classes:
        raise ValueError(f'the leaf config reads as {list(config.metainfo.classes)}, wanted the classes {classes}')
    replace_file(out, text)
    return config


def load_base(base: Path, needed: str, wanted: str) -> Config:
    """Loads a config to inherit from.

    Args:
        base: The config.
        needed: A key its model must have.
        wanted: What to say if it has not.

    Returns:
        The config.

    Raises:
        ValueError: If it cannot be loaded, has no such key, or wraps its data set in another.
    """
    try:
        config = Config.fromfile(base)
    except LOAD_ERRORS as error:
        raise ValueError(f'base config {base} cannot be loaded: {error}') from error
    if needed not in config.get('model', {}):
        raise ValueError(f'base config {base} has no model.{needed}: wanted {wanted}')
    if 'dataset' in config.train_dataloader.dataset:
        raise ValueError(
            f'base config {base} wraps its data set in {config.train_dataloader.dataset.type}; choose one that does not'
        )
    return config


def _protocol(options: LeafOptions, config: Config, num_images: int) -> Protocol | None:
    return None if options.protocol is None else find_protocol(options.protocol, config, num_images)


def _backbone_lines(protocol: Protocol | None) -> list[str]:
    """The assignment that chooses which part of the backbone is trained."""
    if protocol is None:
        return []
    return [f'backbone={python_call(protocol.backbone)}']


def _set_num_classes(head: Any, name: str, parent: str) -> str:
    """The assignment that sets the number of classes of a head, or of a list of heads (cascades)."""
    if isinstance(head, (list, tuple)):
        return f'{name}=[dict(head, num_classes=num_classes) for head in _base_.model.{parent}{name}]'
    return f'{name}=dict(num_classes=num_classes)'


def _call(opening: str, arguments: list[str], indent: int) -> str:
    """``opening(`` and the arguments, a line each, ``indent`` spaces deeper than the call."""
    pad = ' ' * (indent + 4)
    return f'{opening}(\n' + ',\n'.join(pad + argument for argument in arguments) + ')'


@dataclass(frozen=True)
class _Head:
    """What the first lines of a leaf say: description, training images, common folder, classes, colours, model."""

    what: str
    num_images: int
    root: Path
    classes: list[str]
    palette: list[list[int]] | None
    model: list[str]


def _header(options: LeafOptions, head: _Head) -> str:
    repository = Path(__file__).resolve().parents[2]
    out, base = options.out.resolve(), options.base.resolve()
    if '::' in str(base) or '::' in str(out):
        raise ValueError(f'a config must not lie in a path with "::", which mmengine reads as a package: {out}, {base}')
    # Within the repository paths are relative, so that the leaf can be committed.
    inside = repository in out.parents and repository in base.parents
    shown_path = os.path.relpath(out, repository) if inside else str(out)
    base_path = Path(os.path.relpath(base, out.parent)).as_posix() if inside else base.as_posix()
    colors = [tuple(color) for color in head.palette] if head.palette else class_palette(len(head.classes))
    metainfo = [
        'metainfo = dict(',
        *_wrapped('classes', [python_literal(name) for name in head.classes]),
        *_wrapped('palette', [python_literal(color) for color in colors]),
        ')',
    ]
    return HEADER.format(
        name=docstring_text(out.stem),
        what=head.what,
        num_images=head.num_images,
        path=docstring_text(shown_path),
        base=python_literal(base_path),
        root=python_literal(str(head.root)),
        metainfo='\n'.join(metainfo),
        num_classes=len(head.classes),
        model=''.join(f'\n    {item},' for item in head.model) + '\n',
    )


def _wrapped(name: str, items: list[str]) -> list[str]:
    """``name=[a, b, ...],`` over as many lines as it needs."""
    lines, current = [f'    {name}=['], ' ' * 7
    for item in items:
        if len(current) + len(item) + 2 > LINE_LENGTH:
            lines.append(current)
            current = ' ' * 7
        current += f' {item},'
    return [*lines, current, '    ],']


def _common_root(paths: list[Path]) -> Path:
    """The deepest folder that holds all files and folders."""
    return Path(os.path.commonpath([str(path.resolve() if path.is_dir() else path.resolve().parent) for path in paths]))


def _below(root: Path, path: Path) -> str:
    """The path from the root; '' for the root itself, which is what mmengine joins as expected."""
    relative = path.resolve().relative_to(root).as_posix()
    return '' if relative == '.' else relative
