"""Writes the short leaf config that fits one of our recipes to a data set. ``tools/new_dataset.py`` is the command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine import Config

from addp_backbone.datasets.coco import DetectionData, DetectionSplit
from addp_backbone.datasets.masks import VOID_ZERO, SegmentationData, SegmentationSplit
from addp_backbone.datasets.palette import class_palette
from addp_backbone.files.atomic import replace_file

LINE_LENGTH = 120
LOAD_ERRORS = (OSError, KeyError, TypeError, AttributeError, SyntaxError, ValueError, ImportError)  # of Config.fromfile

HEADER = '''"""{name}: {what}, {num_images} training images. Written by tools/new_dataset.py.

Command: ``python tools/train.py {path}``.
"""

_base_ = {base!r}

data_root = {root!r}
{metainfo}
num_classes = {num_classes}

model = dict({model})
'''
DETECTION_DATA = """
train_dataloader = dict(
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file={train_ann!r},
        data_prefix=dict(img={train_img!r})))
val_dataloader = dict(
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file={val_ann!r},
        data_prefix=dict(img={val_img!r})))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={val_ann_path!r})
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
    img_suffix={img_suffix!r},
    seg_map_suffix={mask_suffix!r},
    reduce_zero_label={reduce_zero_label})  # {convention}
train_dataloader = dict(
    dataset=dict(
        **masks_and_images,
        data_prefix=dict(
            img_path={train_img!r},
            seg_map_path={train_masks!r})))
val_dataloader = dict(
    dataset=dict(
        **masks_and_images,
        data_prefix=dict(
            img_path={val_img!r},
            seg_map_path={val_masks!r})))
test_dataloader = val_dataloader
"""


def detection_leaf(out: Path, base: Path, splits: list[DetectionSplit], data: DetectionData) -> str:
    """Composes the leaf config of a detection data set.

    Args:
        out: Where it will be.
        base: Config to inherit from. For data without masks its Faster R-CNN sibling is taken, or, where there is none,
            the leaf itself takes the masks out.
        splits: The training split first; the last is for validation.
        data: From :func:`addp_backbone.datasets.coco.check_detection`.

    Returns:
        The text of the config.

    Raises:
        ValueError: If the base cannot be loaded or is no detection config.
    """
    sibling = base.with_name(base.name.replace('maskrcnn', 'fasterrcnn'))
    if not data.has_masks and sibling.exists():
        base = sibling
    config = load_base(base, 'roi_head', 'a detector with a RoI head, as det_configs/addp_base_maskrcnn.py')
    with_masks = config.model.roi_head.get('mask_head') is not None
    if data.has_masks and not with_masks:
        raise ValueError(
            f'base config {base} has no mask head, but the data has masks: choose a Mask R-CNN base, or give --box-only'
        )
    heads = [_set_num_classes(config.model.roi_head.bbox_head, 'bbox_head', 'roi_head.')]
    model = []
    if data.has_masks:
        heads.append(_set_num_classes(config.model.roi_head.mask_head, 'mask_head', 'roi_head.'))
    elif with_masks:
        heads += ['mask_roi_extractor=None', 'mask_head=None']
        model += ["type='FasterRCNN'"] if config.model.type == 'MaskRCNN' else []
    model.append(_call('roi_head=dict', heads, indent=4))
    train, val = splits[0], splits[-1]
    root = _common_root([path for split in splits for path in (split.ann_file, split.image_dir)])
    text = DETECTION_DATA.format(
        train_ann=_below(root, train.ann_file),
        train_img=_below(root, train.image_dir),
        val_ann=_below(root, val.ann_file),
        val_img=_below(root, val.image_dir),
        val_ann_path=str(val.ann_file.resolve()),
    )
    if with_masks and not data.has_masks:
        text += WITHOUT_MASKS
    what = f'{len(data.classes)} classes, detection' + ('' if data.has_masks else ' without masks')
    return _header(out, base, what, data.num_train_images, root, list(data.classes), None, model) + text


def segmentation_leaf(
    out: Path,
    base: Path,
    splits: list[SegmentationSplit],
    classes: list[str],
    palette: list[list[int]] | None,
    data: SegmentationData,
) -> str:
    """Composes the leaf config of a segmentation data set.

    Args:
        out: Where it will be.
        base: Config to inherit from.
        splits: The training split first; the last is for validation.
        classes: Class names.
        palette: A colour a class; None chooses them.
        data: From :func:`addp_backbone.datasets.masks.check_segmentation`.

    Returns:
        The text of the config.

    Raises:
        ValueError: If the base cannot be loaded or is no segmentation config.
    """
    config = load_base(base, 'decode_head', 'a segmentor, as seg_configs/addp_base_upernet.py')
    steps = [step for loader in (config.train_dataloader, config.val_dataloader) for step in loader.dataset.pipeline]
    if any(step.get('reduce_zero_label') is not None for step in steps):
        raise ValueError(
            f'base config {base} sets reduce_zero_label in its pipelines; the data set sets it, as it knows its masks'
        )
    model = [
        _set_num_classes(config.model[name], name, '')
        for name in ('decode_head', 'auxiliary_head')
        if config.model.get(name)
    ]
    train, val = splits[0], splits[-1]
    root = _common_root([path for split in splits for path in (split.image_dir, split.mask_dir)])
    void_is_zero = data.void == VOID_ZERO
    text = SEGMENTATION_DATA.format(
        reduce_zero_label=void_is_zero,
        img_suffix=data.img_suffix,
        mask_suffix=data.mask_suffix,
        convention='masks: 0 = void, classes from 1' if void_is_zero else 'masks: 255 = void, classes from 0',
        train_img=_below(root, train.image_dir),
        train_masks=_below(root, train.mask_dir),
        val_img=_below(root, val.image_dir),
        val_masks=_below(root, val.mask_dir),
    )
    return (
        _header(
            out, base, f'{len(classes)} classes, segmentation', data.num_train_images, root, classes, palette, model
        )
        + text
    )


def write_leaf(out: Path, text: str) -> Config:
    """Writes a leaf config, after having seen that it loads.

    Args:
        out: Where to.
        text: What.

    Returns:
        The config as loaded.

    Raises:
        ValueError: If mmengine cannot load it; nothing is written then.
    """
    trial = out.with_name(f'{out.stem}_trial_{os.getpid()}.py')
    try:
        replace_file(trial, text)
        config = Config.fromfile(trial)
    except LOAD_ERRORS as error:
        raise ValueError(f'the leaf config does not load with this base: {type(error).__name__}: {error}') from error
    finally:
        trial.unlink(missing_ok=True)
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


def schedule_hint(config: Mapping[str, Any], num_train_images: int) -> str:
    """Says how often one process would pass over the data set by the config's schedule."""
    max_iters, batch = config['train_cfg'].get('max_iters'), config['train_dataloader']['batch_size']
    if not max_iters:
        return f'schedule: {config["train_cfg"].get("max_epochs")} epochs'
    return (
        f'schedule: {max_iters} iterations x {batch} images a process = '
        f'{max_iters * batch / num_train_images:.0f} passes over {num_train_images} images; '
        'for another length --cfg-options train_cfg.max_iters=N'
    )


def _set_num_classes(head: Any, name: str, parent: str) -> str:
    """The assignment that sets the number of classes of a head, or of a list of heads (cascades)."""
    if isinstance(head, (list, tuple)):
        return f'{name}=[dict(head, num_classes=num_classes) for head in _base_.model.{parent}{name}]'
    return f'{name}=dict(num_classes=num_classes)'


def _call(opening: str, arguments: list[str], indent: int) -> str:
    """``opening(`` and the arguments, a line each, ``indent`` spaces deeper than the call."""
    pad = ' ' * (indent + 4)
    return f'{opening}(\n' + ',\n'.join(pad + argument for argument in arguments) + ')'


def _header(
    out: Path,
    base: Path,
    what: str,
    num_images: int,
    root: Path,
    classes: list[str],
    palette: list[list[int]] | None,
    model: list[str],
) -> str:
    repository = Path(__file__).resolve().parents[2]
    out, base = out.resolve(), base.resolve()
    inside = (
        repository in out.parents and repository in base.parents
    )  # then paths are relative, and the leaf can be committed
    colors = [tuple(color) for color in palette] if palette else class_palette(len(classes))
    metainfo = [
        'metainfo = dict(',
        *_wrapped('classes', [repr(name) for name in classes]),
        *_wrapped('palette', [repr(color) for color in colors]),
        ')',
    ]
    return HEADER.format(
        name=out.stem,
        what=what,
        num_images=num_images,
        path=os.path.relpath(out, repository) if inside else out,
        base=Path(os.path.relpath(base, out.parent)).as_posix() if inside else base.as_posix(),
        root=str(root),
        metainfo='\n'.join(metainfo),
        num_classes=len(classes),
        model=''.join(f'\n    {item},' for item in model)[:-1],
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
