"""``ADDPViT``: a plain ViT as the backbone of detectors and segmentors (ViTDet's changes to it included).

An image's path: patch embedding -> + absolute positions -> (tokenizer_norm) -> blocks -> maps at ``out_indices``. There
is neither a cls token nor a final norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairscale.nn.checkpoint import checkpoint_wrapper
from mmengine.logging import print_log
from mmengine.registry import FUNCTIONS, MODELS
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from addp_backbone.checkpoint.storage import load_pretrained
from addp_backbone.layers.block import NORM_EPS, Block, PatchEmbed
from addp_backbone.networks.arch import Arch, get_arch, resolve_block_indices
from addp_backbone.tuning.lora import LORA_ENDINGS
from addp_backbone.tuning.partial import PartlyTrainedViT

INIT_STD = 0.02
OPTIONAL_IN_FILE = ('rel_pos_h', 'rel_pos_w')  # zero-initialised when the file has none (ViTDet)


@MODELS.register_module()
class ADDPViT(PartlyTrainedViT):
    """Plain ViT with window and global attention.

    Recipe: ViTDet (arXiv 2203.16527) for detection, MAE's UperNet for segmentation; what the ADDP paper used is
    unpublished.

    Args:
        arch: 'tiny', 'base', 'large', 'huge' or ``dict(width=, depth=, num_heads=)``.
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
            as in the published fine-tuning, whose encoder has no such layer.
        with_cp: Activation checkpointing: each block keeps only its input and is computed again in the backward pass,
            which takes about a third more time. True: torch's ``checkpoint``; loss and gradients are equal to the bit
            in every precision. 'offload': fairscale's ``checkpoint_wrapper``, which also moves the blocks' inputs to
            the CPU until they are needed, for the case that even those do not fit on the GPU. It computes again
            in float32, or in float16 under CUDA's float16 autocast, so that bfloat16 autocast is refused.
        frozen: True = nothing is trained; a number k = patch embedding, positions and the first k blocks are not. What
            is frozen stays in eval mode and keeps no activations.
        norms_only: Of the blocks that are not frozen, only norms are trained.
        lora: ``dict(rank=, alpha=, mlp=)``: of the blocks that are not frozen, only low-rank differences of their
            matrices are trained (:class:`addp_backbone.tuning.lora.LoRA`). Relative positions, which no pre-training
            has, are trained with ``norms_only`` and ``lora``, too.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` with a file from ``tools/convert_checkpoint.py``; it must
            hold every tensor of the trunk.

    Attributes:
        out_channels: Channels of each output map, one entry per out index.

    Raises:
        ValueError: If an option does not fit the architecture.
    """

    NEW_PARAMETERS = OPTIONAL_IN_FILE

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
        with_cp: bool | str = False,
        frozen: bool | int = False,
        norms_only: bool = False,
        lora: Mapping[str, Any] | None = None,
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
        if with_cp not in (False, True, 'offload'):
            raise ValueError(f"with_cp must be False, True or 'offload', got {with_cp!r}")
        if isinstance(global_attn_indices, str):
            _check_name(global_attn_indices, 'auto', 'global_attn_indices')
            global_attn_indices = self.arch.global_attn_indices
        if isinstance(out_indices, str):
            _check_name(out_indices, 'upernet', 'out_indices')
            out_indices = self.arch.upernet_indices
        self.global_attn_indices = resolve_block_indices(global_attn_indices, depth, 'global_attn_indices', True)
        self.out_indices = resolve_block_indices(out_indices, depth, 'out_indices')
        self.out_channels = (width,) * len(self.out_indices)
        self.patch_size = patch_size
        self.with_cp = with_cp
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
            blocks.append(checkpoint_wrapper(block, offload_to_cpu=True) if with_cp == 'offload' else block)
        self.blocks = nn.ModuleList(blocks)
        self._init_from_scratch()
        self._register_load_state_dict_pre_hook(self._drop_tokenizer_norm)
        self.set_tuning(frozen, norms_only, lora, depth)

    def _init_from_scratch(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def stem_parts(self) -> list[nn.Module | nn.Parameter]:
        """Patch embedding, positions and the norm in front of the blocks."""
        parts = (self.patch_embed, self.pos_embed, self.tokenizer_norm)
        return [part for part in parts if part is not None]

    def blocks_in_use(self) -> Sequence[nn.Module]:
        """The blocks up to the last output map."""
        return list(self.blocks)[: self.out_indices[-1] + 1]

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
        optional = [name for name in self.state_dict() if name.endswith((*OPTIONAL_IN_FILE, *LORA_ENDINGS))]
        ignored = () if self.tokenizer_norm is not None else ('tokenizer_norm.',)
        load_pretrained(self, self.init_cfg, optional, ignored)
        self._is_init = True

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps.

        Args:
            images: (B, 3, H, W) float, normalised; H and W multiples of the patch size, not necessarily equal.

        Returns:
            A (B, width, H / patch_size, W / patch_size) map per out index.

        Raises:
            ValueError: If H or W is not a multiple of the patch size, or ``with_cp='offload'`` meets bfloat16 autocast.
        """
        with torch.set_grad_enabled(self.has_gradients(-1)):
            x = self.patch_embed(images)  # (B, H, W, C)
            B, H, W, C = x.shape
            pos_embed = resample_abs_pos_embed(
                self.pos_embed, [H, W], self.pretrain_grid, num_prefix_tokens=0, antialias=False
            )
            x = x.reshape(B, H * W, C) + pos_embed  # (B, N, C)
            if self.tokenizer_norm is not None:
                x = self.tokenizer_norm(x)
        maps = []
        for i, block in enumerate(self.blocks):
            with torch.set_grad_enabled(self.has_gradients(i)):
                x = self.run_block(block, x, (H, W))
            if i in self.out_indices:
                maps.append(x.transpose(1, 2).reshape(B, C, H, W))
            if i == self.out_indices[-1]:
                break
        return tuple(maps)

    def run_block(self, block: nn.Module, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Runs one block, with activation checkpointing if ``with_cp`` says so.

        Args:
            block: One of ``self.blocks``.
            x: Tokens (B, N, C).
            grid: (H, W) of the tokens; None where blocks have neither windows nor relative positions.

        Returns:
            (B, N, C).

        Raises:
            ValueError: If ``with_cp='offload'`` meets an autocast precision that it cannot compute in again.
        """
        if not self.with_cp or not torch.is_grad_enabled():
            return block(x, grid)
        if self.with_cp == 'offload':
            _check_offload_precision(x.device.type)
            return block(x, grid)
        return checkpoint(block, x, grid, use_reentrant=False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Tells how deep a parameter lies, for layer-wise learning-rate decay.

        Args:
            param_name: The parameter's name in the whole model.
            prefix: This backbone's prefix in it, ``'backbone.'`` for instance.

        Returns:
            (layer, number of layers): layer 0 for patch and position embedding and ``tokenizer_norm``, i + 1 for block
            i, depth + 1 for everything else; the number of layers is depth + 2.
        """
        return layer_depth(param_name, prefix, len(self.blocks))

    def _drop_tokenizer_norm(self, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
        """Skips the ``tokenizer_norm`` of a converted ADDP file where this backbone has none, and says so."""
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


def layer_depth(param_name: str, prefix: str, num_blocks: int) -> tuple[int, int]:
    """The layer of a plain ViT's parameter and the number of layers, see :meth:`ADDPViT.get_layer_depth`."""
    num_layers = num_blocks + 2
    name = param_name.removeprefix(prefix)
    if not param_name.startswith(prefix):
        return num_layers - 1, num_layers
    if name.startswith(('patch_embed.', 'cls_token', 'pos_embed', 'tokenizer_norm.')):
        return 0, num_layers
    if name.startswith('blocks.'):
        return int(name.split('.')[1]) + 1, num_layers
    return num_layers - 1, num_layers


@FUNCTIONS.register_module()
def shard_vit_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """The ``auto_wrap_policy`` of ``det_configs/_base_/fsdp.py``: each transformer block becomes a shard of its own.

    Heads must not be shards: mmdet and mmseg call their ``loss`` and ``predict``, but FSDP gathers weights in
    ``forward`` only.

    Args:
        module: The module that FSDP asks about.
        recurse: True if FSDP asks whether to visit the module's children, False if whether to wrap the module itself.
        nonwrapped_numel: Number of parameters that are in no shard yet; part of FSDP's protocol, unused.

    Returns:
        Whether to visit the children (always), or whether to wrap (blocks only).
    """
    return recurse or isinstance(module, Block)


def _check_offload_precision(device_type: str) -> None:
    """Fairscale's wrapper knows only CUDA's autocast, and that only in float16: other gradients would be wrong."""
    if not torch.is_autocast_enabled(device_type):
        return
    dtype = torch.get_autocast_dtype(device_type)
    if device_type != 'cuda' or dtype != torch.float16:
        raise ValueError(
            f"with_cp='offload' cannot compute again under autocast in {str(dtype)[6:]} on {device_type}, only in "
            'float32 or under float16 autocast on CUDA: use with_cp=True, which is exact in every precision'
        )


def _check_name(value: str, allowed: str, option: str) -> None:
    if value != allowed:
        raise ValueError(f'{option} must be {allowed!r} or a sequence of block indices, got {value!r}')
