"""Names and shapes of the detectors that detectron2's ViTDet project releases, by formula from its configs."""

from __future__ import annotations

from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """What a released file's shapes follow from; the defaults are what all files on COCO share."""

    width: int
    depth: int
    num_heads: int
    num_global: int = 4
    window: int = 14
    grid: int = 64
    pretrain_grid: int = 14
    channels: int = 256
    fc: int = 1024
    num_classes: int = 80


RELEASED = {'base': Sizes(768, 12, 12), 'large': Sizes(1024, 24, 16), 'huge': Sizes(1280, 32, 16)}


def shapes(sizes: Sizes, kind: str) -> dict[str, Shape]:
    """Every tensor of a file.

    Args:
        sizes: Of backbone and heads.
        kind: 'maskrcnn' or 'cascade'.
    """
    return _trunk(sizes) | _pyramid(sizes) | _rpn(sizes) | _boxes(sizes, kind) | _masks(sizes)


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f'{name}.weight': (rows, columns), f'{name}.bias': (rows,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f'{name}.weight': (width,), f'{name}.bias': (width,)}


def _conv(name: str, outputs: int, inputs: int, side: int) -> dict[str, Shape]:
    """A convolution without bias, followed by its norm."""
    return {f'{name}.weight': (outputs, inputs, side, side)} | _norm(f'{name}.norm', outputs)


def _trunk(s: Sizes) -> dict[str, Shape]:
    net = {
        'pos_embed': (1, s.pretrain_grid**2 + 1, s.width),
        'patch_embed.proj.weight': (s.width, 3, 16, 16),
        'patch_embed.proj.bias': (s.width,),
    }
    for i in range(s.depth):
        is_global = (i + 1) % (s.depth // s.num_global) == 0
        table = (2 * (s.grid if is_global else s.window) - 1, s.width // s.num_heads)
        block = f'blocks.{i}'
        net |= _norm(f'{block}.norm1', s.width) | _norm(f'{block}.norm2', s.width)
        net |= {f'{block}.attn.rel_pos_h': table, f'{block}.attn.rel_pos_w': table}
        net |= _linear(f'{block}.attn.qkv', 3 * s.width, s.width) | _linear(f'{block}.attn.proj', s.width, s.width)
        net |= _linear(f'{block}.mlp.fc1', 4 * s.width, s.width) | _linear(f'{block}.mlp.fc2', s.width, 4 * s.width)
    return {f'backbone.net.{name}': shape for name, shape in net.items()}


def _pyramid(s: Sizes) -> dict[str, Shape]:
    half, quarter = s.width // 2, s.width // 4
    up = {'0.weight': (s.width, half, 2, 2), '0.bias': (half,)}
    levels = {
        2: up | _norm('1', half) | {'3.weight': (half, quarter, 2, 2), '3.bias': (quarter,)},
        3: up,
        4: {},
        5: {},
    }
    first_conv = {2: (4, quarter), 3: (1, half), 4: (0, s.width), 5: (1, s.width)}
    found = {}
    for level, tensors in levels.items():
        index, inputs = first_conv[level]
        tensors = tensors | _conv(str(index), s.channels, inputs, 1) | _conv(str(index + 1), s.channels, s.channels, 3)
        found |= {f'backbone.simfp_{level}.{name}': shape for name, shape in tensors.items()}
    return found


def _rpn(s: Sizes) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for layer, outputs, side in (
        ('conv.conv0', s.channels, 3),
        ('conv.conv1', s.channels, 3),
        ('objectness_logits', 3, 1),
        ('anchor_deltas', 12, 1),
    ):
        name = f'proposal_generator.rpn_head.{layer}'
        found |= {f'{name}.weight': (outputs, s.channels, side, side), f'{name}.bias': (outputs,)}
    return found


def _boxes(s: Sizes, kind: str) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for stage in ('.0', '.1', '.2') if kind == 'cascade' else ('',):
        head, predictor = f'roi_heads.box_head{stage}', f'roi_heads.box_predictor{stage}'
        for k in range(1, 5):
            found |= _conv(f'{head}.conv{k}', s.channels, s.channels, 3)
        found |= _linear(f'{head}.fc1', s.fc, 49 * s.channels)
        found |= _linear(f'{predictor}.cls_score', s.num_classes + 1, s.fc)
        found |= _linear(f'{predictor}.bbox_pred', 4 * (1 if kind == 'cascade' else s.num_classes), s.fc)
    return found


def _masks(s: Sizes) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for k in range(1, 5):
        found |= _conv(f'roi_heads.mask_head.mask_fcn{k}', s.channels, s.channels, 3)
    for layer, outputs, side in (('deconv', s.channels, 2), ('predictor', s.num_classes, 1)):
        name = f'roi_heads.mask_head.{layer}'
        found |= {f'{name}.weight': (outputs, s.channels, side, side), f'{name}.bias': (outputs,)}
    return found
