"""Any plain ViT of timm as a backbone for mmdet and mmseg, computed by timm as it was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from addp_backbone.networks.arch import resolve_block_indices
from addp_backbone.networks.timm_vit.catalogue import build_model, published_arch
from addp_backbone.networks.timm_vit.trunks import Embedded, SamTrunk, make_trunk
from addp_backbone.networks.timm_vit.weights import load_file, load_published_weights, position_grid
from addp_backbone.networks.timm_vit.windows import Region, regions, whole_map
from addp_backbone.tuning.partial import PartlyTrainedViT

# What timm puts behind the blocks: maps are taken before it, and parameters that no loss reaches would stop DDP.
_BEHIND_THE_BLOCKS = ('norm', 'fc_norm', 'head', 'head_dist', 'head_drop', 'attn_pool', 'neck')


@MODELS.register_module()
class TimmViT(PartlyTrainedViT):
    """A plain ViT of timm: activation, norms, LayerScale, SwiGLU, positions, class and register tokens as published.

    Args:
        model: timm's name, e.g. ``'vit_small_patch14_dinov2'`` (``python tools/list_backbones.py`` lists all).
        img_size: Side of the images, in pixels, or (height, width), that tables of a fixed size are made for: the
            relative biases of ``beit`` and ``vision_transformer_relpos``, the position tables of SAM's encoder. Other
            sizes work: biases are resized (in evaluation only, see :class:`BiasTable`). Absolute positions keep the
            grid they were pre-trained with (that of ``init_cfg``'s file) and are resized to the input in each forward.
        window_size: Side of ViTDet's attention windows, in tokens, around whole blocks; 0 = as timm computes it. Prefix
            tokens are seen in every window and averaged over the windows afterwards. SAM's encoder has windows of its
            own: only 0 and its own size are possible.
        global_attn_indices: Blocks with global attention where windows are used; 'auto' = evenly spaced, as in
            :class:`ADDPViT`.
        drop_path_rate: Stochastic depth of the last published block; grows linearly from 0 at the first. 'vitdet' =
            by the depth as in ViTDet (:attr:`Arch.vitdet_drop_path_rate`).
        out_indices: Blocks whose output is returned, ascending; negative ones count from the end; 'upernet' = the four
            that UperNet taps. Blocks after the last of them are not built.
        frozen: True = nothing is trained; a number k = patch embedding, positions and the first k blocks are not. What
            is frozen stays in eval mode and keeps no activations.
        norms_only: Of the blocks that are not frozen, only norms are trained.
        lora: ``dict(rank=, alpha=, mlp=)``: of the blocks that are not frozen, only low-rank differences of their
            matrices are trained (:class:`addp_backbone.tuning.lora.LoRA`).
        with_cp: Activation checkpointing of every trained block: less memory, more time, the same loss and gradients.
        pretrained: Whether timm fetches the published weights (through the Hugging Face hub, or from its cache).
        stride: None = maps have the stride of the patches. A number = images are resized by patch size / stride
            (bilinear, antialiased) first, so that maps have this stride for heads and anchors: 16 for a patch of 14.
        norm_maps: Whether each map's tokens are normalised over their channels (LayerNorm without weights) on the way
            out. The residual stream of a frozen ViT grows with depth and has a few channels far above the rest; new
            layers learn faster behind the norm. The blocks themselves see no difference.
        pos_antialias: Whether absolute positions are resized to the input's grid with antialiasing. On as in timm, for
            all models; the own code of DINOv2 (without registers), DeiT and MAE has none.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)``: weights by timm's names or in any other layout that
            :mod:`addp_backbone.networks.timm_vit.weights` reads. Every tensor of the trunk has to come from it.

    Attributes:
        out_channels: Channels of each output map, one entry per out index.
        patch_size: Side of a patch, in pixels of the image that the ViT sees.
        stride: Of the maps, in pixels of the input.

    Raises:
        ValueError: If timm does not know the model, it is no plain ViT, or an option does not fit it.
    """

    vit: Any  # timm's model: its layers have names that nn.Module does not know
    patch_size: int

    def __init__(
        self,
        model: str,
        img_size: int | tuple[int, int] = 512,
        window_size: int = 0,
        global_attn_indices: str | Sequence[int] = 'auto',
        drop_path_rate: float | str = 0.0,
        out_indices: str | Sequence[int] = (-1,),
        frozen: bool | int = False,
        norms_only: bool = False,
        lora: Mapping[str, Any] | None = None,
        with_cp: bool = False,
        pretrained: bool = False,
        stride: int | None = None,
        norm_maps: bool = False,
        pos_antialias: bool = True,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if pretrained and init_cfg is not None:
            raise ValueError(f'weights come from one place: leave out pretrained=True or init_cfg={init_cfg}')
        self.model_name, self.pretrained, self.with_cp = model, pretrained, with_cp
        self.norm_maps = norm_maps
        self.arch = published_arch(model)
        if isinstance(drop_path_rate, str):
            _require(drop_path_rate == 'vitdet', f"drop_path_rate is {drop_path_rate!r}, wanted a number or 'vitdet'")
            drop_path_rate = self.arch.vitdet_drop_path_rate
        _require(
            isinstance(window_size, int) and window_size >= 0 and 0 <= drop_path_rate < 1,
            f'window_size must be >= 0, a whole number, and drop_path_rate in [0, 1), got {window_size!r} and '
            f'{drop_path_rate}',
        )
        _require(
            isinstance(with_cp, bool),
            f"with_cp must be True or False, got {with_cp!r} ('offload' is an option of ADDPViT alone)",
        )
        depth = self.arch.depth
        if isinstance(global_attn_indices, str):
            _require(
                global_attn_indices == 'auto',
                f"global_attn_indices is {global_attn_indices!r}, wanted 'auto' or indices",
            )
            global_attn_indices = self.arch.global_attn_indices
        if isinstance(out_indices, str):
            _require(out_indices == 'upernet', f"out_indices is {out_indices!r}, wanted 'upernet' or indices")
            out_indices = self.arch.upernet_indices
        self.global_attn_indices = resolve_block_indices(global_attn_indices, depth, 'global_attn_indices', True)
        self.out_indices = resolve_block_indices(out_indices, depth, 'out_indices')
        self.vit = build_model(
            model, img_size, drop_path_rate, self.out_indices[-1] + 1, position_grid(model, init_cfg)
        )
        self.trunk = make_trunk(self.vit, pos_antialias)
        self.out_channels = (self.arch.width,) * len(self.out_indices)
        self.window_size = self._check_windows(window_size)
        self.patch_size = self.vit.patch_embed.patch_size[0]
        _require(stride is None or stride > 0, f'stride must be positive or None, got {stride}')
        self.stride = stride or self.patch_size
        self._cut_off()
        self.set_tuning(frozen, norms_only, lora, depth)

    def _check_windows(self, window_size: int) -> int:
        """SAM's blocks cut their own windows, so none are cut around them."""
        if not isinstance(self.trunk, SamTrunk):
            return window_size
        own = max(block.window_size for block in self.vit.blocks)
        _require(
            window_size in (0, own),
            f"SAM's encoder has windows of {own} tokens of its own, which its position tables are made for: "
            f'set window_size=0 (got {window_size})',
        )
        return 0

    def _cut_off(self) -> None:
        """Removes what stands behind the last output map."""
        for name in _BEHIND_THE_BLOCKS:
            if hasattr(self.vit, name):
                setattr(self.vit, name, nn.Identity())

    def stem_parts(self) -> list[nn.Module | nn.Parameter]:
        """What timm's family has in front of the blocks."""
        parts = (getattr(self.vit, name, None) for name in self.trunk.STEM)
        return [part for part in parts if part is not None]

    def blocks_in_use(self) -> Sequence[nn.Module]:
        """The blocks up to the last output map: all that are built."""
        return list(self.vit.blocks)

    def init_weights(self) -> None:
        """Loads ``init_cfg``'s file or the published weights; without either the random weights stay.

        Raises:
            CheckpointError: If the file is missing or unreadable, or not every tensor of the trunk came from it; or the
                hub cannot be reached and its cache lacks the file.
        """
        if self.pretrained:
            load_published_weights(self)
        elif self.init_cfg is not None and self.init_cfg.get('type') == 'Pretrained':
            load_file(self, self.init_cfg['checkpoint'], self.init_cfg.get('prefix'))
        elif self.init_cfg is not None:
            super().init_weights()
            return
        else:
            print_log(f'TimmViT: {self.model_name} keeps random weights', logger='current')
        self._is_init = True

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps, each before any final norm (and normalised where ``norm_maps`` asks for it).

        Args:
            images: (B, 3, H, W) float, normalised as the model was pre-trained (:func:`catalogue.data_config`); H and W
                multiples of ``stride``, not necessarily equal.

        Returns:
            A (B, width, H / stride, W / stride) map per out index.

        Raises:
            ValueError: If H or W is no multiple of ``stride``.
        """
        images = self._resize(images)
        with torch.set_grad_enabled(self.has_gradients(-1)):
            embedded = self.trunk.embed(images)
        maps = []
        for index in range(len(self.vit.blocks)):
            with torch.set_grad_enabled(self.has_gradients(index)):
                embedded = self._run_block(index, embedded)
            if index in self.out_indices:
                patches = embedded.patches
                patches = F.layer_norm(patches, patches.shape[-1:]) if self.norm_maps else patches
                maps.append(patches.permute(0, 3, 1, 2).contiguous())
        return tuple(maps)

    def _resize(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f'image height and width must be multiples of {self.stride}, got {height} x {width}: set '
                f'pad_size_divisor={self.stride} in the data preprocessor (or size_divisor in mmseg)'
            )
        if self.stride == self.patch_size:
            return images
        size = (height // self.stride * self.patch_size, width // self.stride * self.patch_size)
        return F.interpolate(images, size, mode='bilinear', antialias=True)

    def _run_block(self, index: int, embedded: Embedded) -> Embedded:
        """One block on the whole map, or on each region of windows."""
        grid = (embedded.patches.shape[1], embedded.patches.shape[2])
        if isinstance(self.trunk, SamTrunk):
            return embedded._replace(patches=self._call(index, embedded.patches, embedded, whole_map(grid)))
        windowed = self.window_size and index not in self.global_attn_indices
        parts = [
            (region, self._run_region(index, embedded, region))
            for region in regions(grid, self.window_size if windowed else 0)
        ]
        if len(parts) == 1 and parts[0][0].num_windows == 1:
            prefix, patches = parts[0][1]
            return embedded._replace(prefix=prefix[:, 0], patches=patches.unflatten(2, grid)[:, 0])
        merged = torch.empty_like(embedded.patches, dtype=parts[0][1][1].dtype)
        for region, (_, patches) in parts:
            region.paste(patches, merged)
        prefix = torch.cat([prefix for _, (prefix, _) in parts], dim=1).mean(dim=1)
        return embedded._replace(prefix=prefix, patches=merged)

    def _run_region(self, index: int, embedded: Embedded, region: Region) -> tuple[Tensor, Tensor]:
        """Prefix tokens (B, num_windows, P, C) and patches (B, num_windows, n, C) of a region after a block."""
        patches = region.cut(embedded.patches)  # (B, num_windows, n, C)
        B, num_windows = patches.shape[:2]
        prefix = embedded.prefix[:, None].expand(-1, num_windows, -1, -1)
        tokens = torch.cat((prefix, patches), dim=2).flatten(0, 1)
        out = self._call(index, tokens, embedded, region).unflatten(0, (B, num_windows))
        num_prefix = prefix.shape[2]
        return out[:, :, :num_prefix], out[:, :, num_prefix:]

    def _call(self, index: int, tokens: Tensor, embedded: Embedded, region: Region) -> Tensor:
        options = self.trunk.block_options(index, embedded, region)

        def run(tokens: Tensor, options: dict[str, Any]) -> Tensor:
            self.trunk.prepare(index, region)
            return self.vit.blocks[index](tokens, **options)

        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(run, tokens, options, use_reentrant=False)
        return run(tokens, options)

    def no_weight_decay(self) -> frozenset[str]:
        """Names of parameters that never decay: those that timm names, norms of every kind and LayerScale."""
        scales = {name for name, param in self.vit.named_parameters() if param.ndim <= 1 and not name.endswith('bias')}
        return frozenset(f'vit.{name}' for name in scales | self.vit.no_weight_decay())

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Tells how deep a parameter lies, for layer-wise learning-rate decay.

        Args:
            param_name: The parameter's name in the whole model.
            prefix: This backbone's prefix in it, ``'backbone.'`` for instance.

        Returns:
            (layer, number of layers): what stands in front of the blocks has layer 0, block i has i + 1, everything
            else the last one; the number of layers is that of the built blocks + 2.
        """
        num_layers = len(self.vit.blocks) + 2
        parts = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix) or parts[0] != 'vit':
            return num_layers - 1, num_layers
        if parts[1] == 'blocks':
            return int(parts[2]) + 1, num_layers
        return (0 if parts[1] in self.trunk.STEM else num_layers - 1), num_layers


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
