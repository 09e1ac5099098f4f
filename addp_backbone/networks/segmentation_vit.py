"""``ADDPSegViT``: a plain ViT as the backbone of UperNet, as MAE's segmentation models have it.

It equals mmsegmentation's ``MAE`` backbone: the cls token takes part in attention, every head has a table of relative
position biases, residual branches are scaled by learned vectors, and position embeddings have the grid of the training
crops. An image's path: patch embedding, cls token first -> + positions -> blocks -> maps at ``out_indices`` without the
cls token. There is no final norm.

Shapes: B images, (H, W) grid, N = 1 + H * W tokens (cls first), C width, h heads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from addp_backbone.checkpoint.convert import CheckpointError, convert_state_dict, read_checkpoint, unwrap_state_dict
from addp_backbone.checkpoint.matching import match_tensors
from addp_backbone.checkpoint.storage import load_pretrained
from addp_backbone.layers.attention import attend
from addp_backbone.layers.block import Attention, Block, PatchEmbed
from addp_backbone.networks.arch import Arch, get_arch, resolve_block_indices
from addp_backbone.networks.vit import INIT_STD, layer_depth
from addp_backbone.tuning.lora import LORA_ENDINGS
from addp_backbone.tuning.partial import PartlyTrainedViT

NUM_CLS_OFFSETS = 3  # the last rows of a bias table: cls to patch, patch to cls, cls to cls
NOT_IN_FILE = ('gamma_1', 'gamma_2', 'attn.relative_position_bias_table')  # neutral at the start: ones, and zeros (MAE)
NOT_IN_MODEL = ('tokenizer_norm.', 'norm.')  # of a pre-training checkpoint; the published fine-tuning drops them too


class BiasedAttention(Attention):
    """Self-attention of cls and patch tokens with a learned bias for every head and offset (BEiT, section 2.2; MAE).

    Args:
        width: Channels of a token.
        num_heads: Number of heads; must divide ``width``.
        grid: Rows and columns of patches that the (zero-initialised) table is made for.
    """

    def __init__(self, width: int, num_heads: int, grid: tuple[int, int]) -> None:
        super().__init__(width, num_heads)
        num_offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1) + NUM_CLS_OFFSETS
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_offsets, num_heads))

    def forward(self, x: Tensor, bias_index: Tensor) -> Tensor:  # type: ignore[override]
        """Attends.

        Args:
            x: (B, N, C).
            bias_index: (N, N) int64, the row of the table for every query and key, see :func:`make_bias_index`.

        Returns:
            (B, N, C).
        """
        heads = self.num_heads, x.shape[-1] // self.num_heads
        q, k, v = self.qkv(x).unflatten(-1, (3, *heads)).unbind(2)  # each (B, N, h, D)
        bias = F.embedding(bias_index, self.relative_position_bias_table).permute(2, 0, 1)  # (h, N, N)
        return self.proj(attend(q, k, v, bias=bias).flatten(2))


class BiasedBlock(Block):
    """A pre-norm block with relative position biases and LayerScale (initialised at 1, as MAE's segmentation has it).

    Args:
        width: Channels of a token.
        num_heads: Number of attention heads.
        grid: See :class:`BiasedAttention`.
        drop_path: Probability of skipping a residual branch, drawn for each sample (stochastic depth).
    """

    def __init__(self, width: int, num_heads: int, grid: tuple[int, int], drop_path: float = 0.0) -> None:
        super().__init__(width, num_heads, drop_path=drop_path)
        self.attn = BiasedAttention(width, num_heads, grid)
        self.gamma_1 = nn.Parameter(torch.ones(width))
        self.gamma_2 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, bias_index: Tensor) -> Tensor:  # type: ignore[override]
        """Maps tokens (B, N, C) to (B, N, C); ``bias_index`` as in :meth:`BiasedAttention.forward`."""
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x), bias_index))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))


@MODELS.register_module()
class ADDPSegViT(PartlyTrainedViT):
    """Plain ViT with cls token, relative position biases and LayerScale: MAE's backbone for UperNet.

    Args:
        arch: 'tiny', 'base', 'large' or ``dict(width=, depth=, num_heads=)``.
        img_size: Side, or (height, width), of the inputs in pixels: the crops of training and of sliding inference.
            Position embeddings and bias tables have this grid, so that inputs of another size are refused.
        patch_size: Side of a patch, in pixels.
        drop_path_rate: Stochastic depth rate of the last block; grows linearly from 0 at the first.
        out_indices: Blocks whose output is returned, ascending; negative ones count from the end. 'upernet' = the four
            that UperNet taps (:attr:`Arch.upernet_indices`).
        with_cp: Whether to use activation checkpointing: less memory, about a third more time, equal gradients.
        frozen: True = nothing is trained; a number k = what stands in front of the blocks and the first k blocks are
            not. What is frozen stays in eval mode and keeps no activations.
        norms_only: Of the blocks that are not frozen, only norms are trained.
        lora: ``dict(rank=, alpha=, mlp=)``: of the blocks that are not frozen, only low-rank differences of their
            matrices are trained (:class:`addp_backbone.tuning.lora.LoRA`). Biases of positions and LayerScale, which no
            pre-training has, are trained with ``norms_only`` and ``lora``, too.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)``. FILE is a checkpoint of ADDP, MAE, MAGE or timm, or the
            output of ``tools/convert_checkpoint.py --for segmentor``; nothing in it is executed. Its position
            embeddings are resized to the grid once (bicubic). With ``prefix`` (``'backbone'``) FILE is a checkpoint of
            a trained segmentor, whose backbone is loaded as it is.

    Attributes:
        out_channels: Channels of each output map, one entry per out index.

    Raises:
        ValueError: If an option does not fit the architecture.
    """

    NEW_PARAMETERS = NOT_IN_FILE
    bias_index: Tensor

    def __init__(
        self,
        arch: str | Mapping[str, int] | Arch = 'base',
        img_size: int | Sequence[int] = 512,
        patch_size: int = 16,
        drop_path_rate: float = 0.0,
        out_indices: str | Sequence[int] = 'upernet',
        with_cp: bool = False,
        frozen: bool | int = False,
        norms_only: bool = False,
        lora: Mapping[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = get_arch(arch)
        depth, width = self.arch.depth, self.arch.width
        height, width_px = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if height % patch_size or width_px % patch_size:
            raise ValueError(f'img_size must be a multiple of patch_size={patch_size}, got {img_size}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must lie in [0, 1), got {drop_path_rate}')
        if isinstance(out_indices, str):
            if out_indices != 'upernet':
                raise ValueError(f"out_indices must be 'upernet' or a sequence of block indices, got {out_indices!r}")
            out_indices = self.arch.upernet_indices
        self.out_indices = resolve_block_indices(out_indices, depth, 'out_indices')
        self.out_channels = (width,) * len(self.out_indices)
        self.patch_size = patch_size
        self.with_cp = with_cp
        self.grid = height // patch_size, width_px // patch_size
        self.patch_embed = PatchEmbed(patch_size, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], width))
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(BiasedBlock(width, self.arch.num_heads, self.grid, rate) for rate in rates)
        self.register_buffer('bias_index', make_bias_index(self.grid), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        for embedding in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(embedding, std=INIT_STD)
        self.set_tuning(frozen, norms_only, lora, depth)

    def stem_parts(self) -> list[nn.Module | nn.Parameter]:
        """Patch embedding, class token and positions."""
        return [self.patch_embed, self.cls_token, self.pos_embed]

    def blocks_in_use(self) -> Sequence[nn.Module]:
        """The blocks up to the last output map."""
        return list(self.blocks)[: self.out_indices[-1] + 1]

    def init_weights(self) -> None:
        """Loads the file of ``init_cfg``; without one the random weights of the constructor stay.

        Raises:
            CheckpointError: If the file is missing or unreadable, has tensors of unknown purpose, or lacks a tensor of
                the trunk or its shape. A file without cls token (converted for detection) is accepted with a warning.
        """
        if self.init_cfg is None or self.init_cfg.get('type') != 'Pretrained':
            super().init_weights()
            return
        if self.init_cfg.get('prefix'):
            load_pretrained(self, self.init_cfg, [name for name in self.state_dict() if name.endswith(LORA_ENDINGS)])
        else:
            self._load_pretraining(self.init_cfg['checkpoint'])
        self._is_init = True

    def _load_pretraining(self, path: str) -> None:
        source = unwrap_state_dict(read_checkpoint(path))
        has_cls = any(name.rpartition('.')[2] == 'cls_token' for name in source)
        report = convert_state_dict(source, img_size=None, patch_size=self.patch_size, keep_cls=has_cls)
        tensors = {name: value for name, value in report.state_dict.items() if not name.startswith(NOT_IN_MODEL)}
        if not has_cls:
            print_log(
                f'{path} has no cls token, as files that are converted for detection: it starts from random values. To '
                'start from the pre-trained one, give the pre-training checkpoint itself, or convert it with '
                '--for segmentor',
                logger='current',
                level=logging.WARNING,
            )
            tensors['pos_embed'] = F.pad(tensors['pos_embed'], (0, 0, 1, 0))
        if 'pos_embed' in tensors and not report.missing:
            tensors['pos_embed'] = resample_abs_pos_embed(tensors['pos_embed'], list(self.grid), antialias=False)
        own = self.state_dict()
        kept = (*NOT_IN_FILE, *LORA_ENDINGS)
        optional = [name for name in own if name.endswith(kept) or (name == 'cls_token' and not has_cls)]
        mismatch = match_tensors(tensors, own, optional)
        if mismatch:
            raise CheckpointError(
                f'{path} (format {report.format}) does not fit this ViT: {mismatch}. Set model.backbone.arch to the '
                "file's size"
            )
        self.load_state_dict(tensors, strict=False)
        print_log(
            f'{type(self).__name__}: {len(tensors)} tensors from {path} (format {report.format}), '
            f'{len(own) - len(tensors)} keep their initial values; {"; ".join(report.notes)}',
            logger='current',
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps.

        Args:
            images: (B, 3, height, width) float, normalised, of the size ``img_size``.

        Returns:
            A (B, C, H, W) map per out index.

        Raises:
            ValueError: If the images have another size.
        """
        with torch.set_grad_enabled(self.has_gradients(-1)):
            x = self.patch_embed(images)  # (B, H, W, C)
        if x.shape[1:3] != self.grid:
            wanted = [side * self.patch_size for side in self.grid]
            raise ValueError(
                f'images of {images.shape[2]} x {images.shape[3]} px, but this backbone is made for {wanted[0]} x '
                f'{wanted[1]}: set model.backbone.img_size to the size of the crops in training and testing'
            )
        B, H, W, C = x.shape
        with torch.set_grad_enabled(self.has_gradients(-1)):
            x = torch.cat((self.cls_token.expand(B, -1, -1), x.flatten(1, 2)), dim=1) + self.pos_embed  # (B, N, C)
        maps = []
        for i, block in enumerate(self.blocks[: self.out_indices[-1] + 1]):
            with torch.set_grad_enabled(self.has_gradients(i)):
                if self.with_cp and torch.is_grad_enabled():
                    x = checkpoint(block, x, self.bias_index, use_reentrant=False)
                else:
                    x = block(x, self.bias_index)
            if i in self.out_indices:
                maps.append(x[:, 1:].transpose(1, 2).reshape(B, C, H, W))
        return tuple(maps)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Tells how deep a parameter lies; see :meth:`addp_backbone.networks.vit.ADDPViT.get_layer_depth`."""
        return layer_depth(param_name, prefix, len(self.blocks))


def make_bias_index(grid: tuple[int, int]) -> Tensor:
    """The row of a bias table for every pair of tokens.

    Rows are numbered by (row offset, column offset) of query and key, then come cls to patch, patch to cls and cls to
    cls (BEiT's order, which mmsegmentation and timm share).

    Args:
        grid: (H, W) patches.

    Returns:
        (N, N) int64 with N = 1 + H * W: queries in rows, keys in columns.
    """
    H, W = grid
    rows = torch.arange(H).repeat_interleave(W)  # of each patch
    columns = torch.arange(W).repeat(H)
    row_offsets = rows[:, None] - rows[None, :] + H - 1  # (H * W, H * W), from 0
    column_offsets = columns[:, None] - columns[None, :] + W - 1
    num_offsets = (2 * H - 1) * (2 * W - 1)
    index = torch.empty(1 + H * W, 1 + H * W, dtype=torch.int64)
    index[1:, 1:] = row_offsets * (2 * W - 1) + column_offsets
    index[0, 1:], index[1:, 0], index[0, 0] = num_offsets, num_offsets + 1, num_offsets + 2
    return index
