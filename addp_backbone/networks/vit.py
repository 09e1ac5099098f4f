"""``ADDPViT``: a plain ViT as the backbone of detectors and segmentors (ViTDet's changes to it included).

Road of an image: patch embedding -> + absolute positions -> (tokenizer_norm) -> blocks -> maps at ``out_indices``.
There is neither a cls token nor a final norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairscale.nn.checkpoint import checkpoint_wrapper
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from addp_backbone.checkpoint.storage import load_pretrained
from addp_backbone.layers.block import NORM_EPS, Block, PatchEmbed
from addp_backbone.layers.grid import resize_pos_embed
from addp_backbone.networks.arch import Arch, get_arch, resolve_block_indices

INIT_STD = 0.02
OPTIONAL_IN_FILE = ('rel_pos_h', 'rel_pos_w')  # zero-initialised when the file has none (ViTDet)


@MODELS.register_module()
class ADDPViT(BaseModule):
    """Plain ViT with window and global attention.

    Recipe: ViTDet (arXiv 2203.16527) for detection, MAE's UperNet for segmentation; what the ADDP paper used is
    unpublished.

    Args:
        arch: 'tiny', 'base', 'large' or ``dict(width=, depth=, num_heads=)``.
        img_size: Side of the images, in pixels, that the relative-position tables of global blocks are made for. Inputs
            of any other size work: the tables are interpolated.
        patch_size: Side of a patch, in pixels.
        pretrain_img_size: Side of the pre-training images, in pixels: gives the grid of ``pos_embed``, which is
            interpolated to the input's grid in each forward.
        window_size: Side of the attention windows, in patches; 0 = global attention in every block.
        global_attn_indices: Blocks with global attention where windows are used; 'auto' = evenly spaced
            (:attr:`Arch.global_attn_indices`).
        rel_pos: Whether attention has decomposed relative positions.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.
        out_indices: Blocks whose output is returned, ascending; negative ones count from the end. 'upernet' = the four
            that UperNet taps (:attr:`Arch.upernet_indices`).
        tokenizer_norm: Whether the LayerNorm that ADDP pre-training has in front of its blocks is kept. Off by default,
            as in the published fine-tuning (reference section 3).
        with_cp: Activation checkpointing of every block: less memory, about a third more time, the same loss and
            gradients.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` with a file from ``tools/convert_checkpoint.py``. Every
            tensor of the trunk has to come from it.

    Attributes:
        out_channels: Channels of each output map, one entry per out index.

    Raises:
        ValueError: If an option does not fit the architecture.
    """

    def __init__(
        self,
        arch: str | Mapping[str, int] | Arch = 'base',
        img_size: int = 1024,
        patch_size: int = 16,
        pretrain_img_size: int = 256,
        window_size: int = 14,
        global_attn_indices: str | Sequence[int] = 'auto',
        rel_pos: bool = True,
        drop_path_rate: float = 0.0,
        out_indices: str | Sequence[int] = (-1,),
        tokenizer_norm: bool = False,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = get_arch(arch)
        depth, width = self.arch.depth, self.arch.width
        if img_size % patch_size or pretrain_img_size % patch_size:
            raise ValueError(
                f'img_size and pretrain_img_size must be multiples of patch_size={patch_size}, '
                f'got {img_size} and {pretrain_img_size}'
            )
        if window_size < 0 or not 0 <= drop_path_rate < 1:
            raise ValueError(
                f'window_size must be >= 0 and drop_path_rate in [0, 1), got {window_size} and {drop_path_rate}'
            )
        if isinstance(global_attn_indices, str):
            _check_name(global_attn_indices, 'auto', 'global_attn_indices')
            global_attn_indices = self.arch.global_attn_indices
        if isinstance(out_indices, str):
            _check_name(out_indices, 'upernet', 'out_indices')
            out_indices = self.arch.upernet_indices
        self.global_attn_indices = resolve_block_indices(global_attn_indices, depth, 'global_attn_indices')
        self.out_indices = resolve_block_indices(out_indices, depth, 'out_indices')
        self.out_channels = (width,) * len(self.out_indices)
        self.patch_size = patch_size
        self.pretrain_grid = (pretrain_img_size // patch_size,) * 2

        self.patch_embed = PatchEmbed(patch_size, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.pretrain_grid[0] * self.pretrain_grid[1], width))
        self.tokenizer_norm = nn.LayerNorm(width, eps=NORM_EPS) if tokenizer_norm else None
        blocks = []
        for i in range(depth):
            window = 0 if i in self.global_attn_indices else window_size
            block = Block(
                width,
                self.arch.num_heads,
                drop_path=drop_path_rate * i / max(1, depth - 1),
                window_size=window,
                rel_pos_size=(window or img_size // patch_size) if rel_pos else None,
            )
            blocks.append(checkpoint_wrapper(block) if with_cp else block)
        self.blocks = nn.ModuleList(blocks)
        self._init_from_scratch()
        self._register_load_state_dict_pre_hook(self._drop_tokenizer_norm)

    def _init_from_scratch(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def init_weights(self) -> None:
        """Loads ``init_cfg``'s file; without one the constructor's random weights stay.

        Raises:
            CheckpointError: If the file is missing or unreadable, or not every trunk tensor came from it; the message
                has both lists of names.
        """
        if self.init_cfg is None:
            return
        if self.init_cfg.get('type') != 'Pretrained':
            super().init_weights()
            return
        optional = [name for name in self.state_dict() if name.endswith(OPTIONAL_IN_FILE)]
        load_pretrained(self, self.init_cfg, optional)
        self._is_init = True

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps.

        Args:
            images: (B, 3, H, W) float, normalised; H and W multiples of the patch size, not necessarily equal.

        Returns:
            A (B, width, H / patch_size, W / patch_size) map per out index.

        Raises:
            ValueError: If H or W is no multiple of the patch size.
        """
        x = self.patch_embed(images)  # (B, H, W, C)
        B, H, W, C = x.shape
        pos_embed = resize_pos_embed(self.pos_embed, self.pretrain_grid, (H, W))
        x = x.reshape(B, H * W, C) + pos_embed  # (B, N, C)
        if self.tokenizer_norm is not None:
            x = self.tokenizer_norm(x)
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x, (H, W))
            if i in self.out_indices:
                maps.append(x.transpose(1, 2).reshape(B, C, H, W))
            if i == self.out_indices[-1]:
                break
        return tuple(maps)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Tells how deep a parameter lies, for layer-wise learning-rate decay.

        Args:
            param_name: The parameter's name in the whole model.
            prefix: This backbone's prefix in it, ``'backbone.'`` for instance.

        Returns:
            (layer, number of layers): patch and position embedding (and ``tokenizer_norm``) have layer 0, block i has i
            + 1, everything else the last one, depth + 1; the number of layers is depth + 2.
        """
        num_layers = len(self.blocks) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        if name.startswith(('patch_embed.', 'pos_embed', 'tokenizer_norm.')):
            return 0, num_layers
        if name.startswith('blocks.'):
            return int(name.split('.')[1]) + 1, num_layers
        return num_layers - 1, num_layers

    def _drop_tokenizer_norm(self, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
        """A converted ADDP file has ``tokenizer_norm``; a backbone built without it says so and goes on."""
        if self.tokenizer_norm is not None:
            return
        names = [name for name in state_dict if name.startswith(prefix + 'tokenizer_norm.')]
        for name in names:
            del state_dict[name]
        if names:
            print_log(
                'the file has tokenizer_norm, which this backbone leaves out (tokenizer_norm=False, as the published '
                'fine-tuning does)',
                logger='current',
            )


def _check_name(value: str, allowed: str, option: str) -> None:
    if value != allowed:
        raise ValueError(f'{option} must be {allowed!r} or a sequence of block indices, got {value!r}')
