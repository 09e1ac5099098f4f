"""How each of timm's families is called block by block: what goes in front of the blocks, and what a block is given.

timm computes every layer. A trunk says how an image becomes tokens, and which positions a block needs for the tokens of
a region (the whole map or windows): rotary embeddings are those of the tokens' own coordinates, relative biases those
of the tokens' offsets, as in the whole map.

Shapes: B images, P prefix tokens (class, distillation, registers), (H, W) grid, N = H * W, C width, h heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.layers import RelPosBias, RelPosMlp, resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.layers.pos_embed_rel import gen_relative_log_coords
from timm.layers.pos_embed_sincos import RotaryEmbeddingMixed
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM, resample_abs_pos_embed_nhwc
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.networks.timm_vit.windows import Region, relative_index


class Embedded(NamedTuple):
    """An image in front of the first block.

    Attributes:
        prefix: (B, P, C), P may be 0.
        patches: (B, H, W, C).
        rope: Rotary embeddings of the grid: (N, D), or with mixed frequencies (depth, h, N, D); None without.
    """

    prefix: Tensor
    patches: Tensor
    rope: Tensor | None = None


class PlainTrunk:
    """``vision_transformer`` and ``deit``: absolute positions, added once in front of the blocks.

    Args:
        vit: timm's model.
        pos_antialias: Whether positions are resized with antialiasing.
    """

    STEM: tuple[str, ...] = ('patch_embed', 'pos_embed', 'cls_token', 'reg_token', 'dist_token', 'norm_pre')

    def __init__(self, vit: Any, pos_antialias: bool = True) -> None:
        self.vit, self.pos_antialias = vit, pos_antialias

    def embed(self, images: Tensor) -> Embedded:
        """Patch embedding, positions, prefix tokens and the norm in front of the blocks, if there is one.

        Args:
            images: (B, 3, H_px, W_px), normalised.
        """
        x = self.vit.patch_embed(images)
        grid = x.shape[1:3]
        tokens = self.vit._pos_embed(x) if self.pos_antialias else self._add_positions(x)
        return self._split(self.vit.norm_pre(tokens), grid)

    def _add_positions(self, patches: Tensor) -> Tensor:
        """What timm's ``_pos_embed`` does, with positions resized without antialiasing."""
        vit = self.vit
        names = ('cls_token', 'dist_token', 'reg_token')
        prefix = [
            token.expand(patches.shape[0], -1, -1) for name in names if (token := getattr(vit, name, None)) is not None
        ]
        tokens = patches.flatten(1, 2)
        positions = resample_abs_pos_embed(
            vit.pos_embed,
            patches.shape[1:3],
            vit.patch_embed.grid_size,
            num_prefix_tokens=0 if vit.no_embed_class else vit.num_prefix_tokens,
            antialias=False,
        )
        if vit.no_embed_class:
            return vit.pos_drop(torch.cat((*prefix, tokens + positions), dim=1))
        return vit.pos_drop(torch.cat((*prefix, tokens), dim=1) + positions)

    def block_options(self, index: int, embedded: Embedded, region: Region) -> dict[str, Any]:
        """Keyword arguments of a block for B * num_windows sequences of P + height * width tokens."""
        return {}

    def prepare(self, index: int, region: Region) -> None:
        """Called right before a block runs on a region, also when activation checkpointing runs it again."""

    def fit_biases(self, grid: tuple[int, int]) -> None:
        """Makes tables of relative biases fit one grid, for good; without such tables nothing is done."""
        for table in (*getattr(self, 'tables', ()), getattr(self, 'shared', None)):
            if table is not None:
                table.fit(grid)

    def _split(self, tokens: Tensor, grid: torch.Size, rope: Tensor | None = None) -> Embedded:
        num_prefix = self.vit.num_prefix_tokens
        return Embedded(tokens[:, :num_prefix], tokens[:, num_prefix:].unflatten(1, tuple(grid)), rope)


class EvaTrunk(PlainTrunk):
    """``eva``: EVA, EVA-02, DINOv3, Perception Encoder, RoPE-ViT; rotary positions in every block."""

    STEM = (*PlainTrunk.STEM, 'rope')

    def embed(self, images: Tensor) -> Embedded:
        """As in :class:`PlainTrunk`, with the grid's rotary embeddings."""
        x = self.vit.patch_embed(images)
        grid = x.shape[1:3]
        tokens, rope = self.vit._pos_embed(x)
        return self._split(self.vit.norm_pre(tokens), grid, rope)

    def block_options(self, index: int, embedded: Embedded, region: Region) -> dict[str, Any]:
        """``rope``: (N, D) or (h, N, D) for the whole map, (B * num_windows, 1 or h, n, D) for windows."""
        if embedded.rope is None:
            return dict(rope=None)
        rope = embedded.rope[index] if isinstance(self.vit.rope, RotaryEmbeddingMixed) else embedded.rope
        if region.num_windows == 1 and (region.height, region.width) == region.grid:
            return dict(rope=rope)
        windows = region.cut(rope.unflatten(-2, region.grid))  # ([h,] num_windows, n, D)
        windows = windows[:, None] if rope.ndim == 2 else windows.transpose(0, 1)  # (num_windows, 1 or h, n, D)
        return dict(rope=windows.repeat(embedded.patches.shape[0], 1, 1, 1))


class BeitTrunk(PlainTrunk):
    """``beit``: a table of relative biases in every block, made for one grid and resized for others."""

    STEM = (*PlainTrunk.STEM, 'rel_pos_bias')

    def __init__(self, vit: Any, pos_antialias: bool = True) -> None:
        super().__init__(vit, pos_antialias)
        vit.patch_embed.strict_img_size = False
        self.tables: list[BiasTable | None] = [_replace_beit_bias(block.attn) for block in vit.blocks]
        self.shared = BiasTable(vit.rel_pos_bias, prefix=1) if vit.rel_pos_bias is not None else None

    def embed(self, images: Tensor) -> Embedded:
        """Patch embedding, the class token, absolute positions where the model has them."""
        patch_embed = self.vit.patch_embed
        height, width = images.shape[-2:]
        grid = torch.Size((height // patch_embed.patch_size[0], width // patch_embed.patch_size[1]))
        tokens = torch.cat((self.vit.cls_token.expand(images.shape[0], -1, -1), patch_embed(images)), dim=1)
        if self.vit.pos_embed is not None:
            tokens = tokens + resample_abs_pos_embed(
                self.vit.pos_embed,
                tuple(grid),
                patch_embed.grid_size,
                num_prefix_tokens=1,
                antialias=self.pos_antialias,
            )
        return self._split(self.vit.pos_drop(tokens), grid)

    def block_options(self, index: int, embedded: Embedded, region: Region) -> dict[str, Any]:
        """``shared_rel_pos_bias`` (1, h, 1 + n, 1 + n) where one table serves all blocks."""
        return dict(shared_rel_pos_bias=self.shared(region) if self.shared else None)

    def prepare(self, index: int, region: Region) -> None:
        """Tells the block's own table which tokens it is for."""
        table = self.tables[index]
        if table is not None:
            table.region = region


class RelPosTrunk(PlainTrunk):
    """``vision_transformer_relpos``: relative biases from a table or an MLP on log offsets, no absolute positions."""

    STEM = (*PlainTrunk.STEM, 'shared_rel_pos')

    def __init__(self, vit: Any, pos_antialias: bool = True) -> None:
        super().__init__(vit, pos_antialias)
        vit.patch_embed.strict_img_size = False
        self.tables = [_replace_rel_pos(block.attn.rel_pos) for block in vit.blocks]
        self.shared = _bias_of(vit.shared_rel_pos) if vit.shared_rel_pos is not None else None

    def embed(self, images: Tensor) -> Embedded:
        """Patch embedding and the class token, if there is one."""
        patch_embed = self.vit.patch_embed
        height, width = images.shape[-2:]
        grid = torch.Size((height // patch_embed.patch_size[0], width // patch_embed.patch_size[1]))
        tokens = patch_embed(images)
        if self.vit.cls_token is not None:
            tokens = torch.cat((self.vit.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        return self._split(tokens, grid)

    def block_options(self, index: int, embedded: Embedded, region: Region) -> dict[str, Any]:
        """``shared_rel_pos`` (1, h, P + n, P + n) where one bias serves all blocks."""
        return dict(shared_rel_pos=self.shared(region) if self.shared else None)

    prepare = BeitTrunk.prepare


class SamTrunk(PlainTrunk):
    """``vision_transformer_sam``: maps instead of sequences, with windows and relative positions of its own."""

    STEM = ('patch_embed', 'pos_embed', 'norm_pre')

    def embed(self, images: Tensor) -> Embedded:
        """Patch embedding and absolute positions, resized to the grid."""
        x = self.vit.patch_embed(images)
        if self.vit.pos_embed is not None:
            x = x + resample_abs_pos_embed_nhwc(self.vit.pos_embed, x.shape[1:3])
        x = self.vit.norm_pre(self.vit.patch_drop(self.vit.pos_drop(x)))
        return Embedded(x.new_zeros(x.shape[0], 0, x.shape[-1]), x)


class BiasTable:
    """The relative bias of a region's tokens from a table that is made for one grid.

    Where the grid differs, the table is resized as timm does when a model's input size is set (with geometric spacing,
    as BEiT's own fine-tuning). That has no gradient, so training is refused at another grid than the table's.

    Args:
        module: Has ``relative_position_bias_table`` ((2H - 1) * (2W - 1) [+ 3], h) and ``window_size`` (H, W).
        prefix: 1 with a class token, whose three entries stand at the table's end; else 0.
    """

    def __init__(self, module: Any, prefix: int) -> None:
        self.module, self.prefix = module, prefix
        self.region: Region | None = None
        self._resized: tuple[tuple[Any, ...], Tensor] | None = None  # (what it was made from, table)

    def __call__(self, region: Region | None = None) -> Tensor:
        """(1, h, P + n, P + n) for the region, or for the one that was set."""
        region = region or self.region
        assert region is not None
        table = self._table(region.grid)
        bias = table[relative_index(region, table.device)]  # (n, n, h)
        if self.prefix:
            to_prefix, from_prefix, own = table[-3:]  # class token's row, class token's column, their crossing
            n = len(bias)
            first_row = torch.cat((own[None], to_prefix.expand(n, -1)))[None]  # (1, 1 + n, h)
            bias = torch.cat((first_row, torch.cat((from_prefix.expand(n, 1, -1), bias), dim=1)))
        return bias.permute(2, 0, 1)[None]

    def fit(self, grid: tuple[int, int]) -> None:
        """Makes the module's table one for another grid, for good."""
        with torch.no_grad():
            table = self._table(grid).clone()
        self.module.relative_position_bias_table = nn.Parameter(table, requires_grad=False)
        self.module.window_size = grid

    def _table(self, grid: tuple[int, int]) -> Tensor:
        table, made_for = self.module.relative_position_bias_table, tuple(self.module.window_size)
        if grid == made_for:
            return table
        if torch.is_grad_enabled() and table.requires_grad:
            raise ValueError(
                f'the relative biases are made for a grid of {made_for[0]} x {made_for[1]} tokens and the input has '
                f"{grid[0]} x {grid[1]}: resizing them has no gradient. Set the backbone's img_size to the size of the "
                'training images (height, width), or freeze the backbone'
            )
        source = (grid, table.data_ptr(), table._version, table.device)
        if self._resized is None or self._resized[0] != source:
            shape = ((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 * self.prefix, table.shape[1])
            with torch.no_grad():
                self._resized = source, resize_rel_pos_bias_table(table.detach(), grid, shape, made_for)
        return self._resized[1]


class LogOffsetBias(BiasTable):
    """The relative bias from an MLP on log offsets (Swin v2), for any grid.

    Args:
        module: timm's ``RelPosMlp``.
    """

    def fit(self, grid: tuple[int, int]) -> None:
        """Does nothing: there is no table."""

    def __init__(self, module: RelPosMlp) -> None:
        super().__init__(module, module.prefix_tokens)

    def __call__(self, region: Region | None = None) -> Tensor:
        """As in :class:`BiasTable`; 0 for prefix tokens."""
        region = region or self.region
        assert region is not None
        rel_pos = self.module
        coords = gen_relative_log_coords(
            region.grid,
            rel_pos.pretrained_window_size,
            mode=rel_pos.mode,
            device=rel_pos.rel_coords_log.device,
            dtype=rel_pos.rel_coords_log.dtype,
        )
        table = rel_pos.mlp(coords).flatten(0, 1)
        bias = rel_pos.bias_act(table[relative_index(region, table.device)].permute(2, 0, 1))
        if rel_pos.bias_gain is not None:
            bias = rel_pos.bias_gain * bias
        return F.pad(bias, (self.prefix, 0, self.prefix, 0))[None].contiguous()


def _replace_beit_bias(attn: Any) -> BiasTable | None:
    """Makes a BEiT attention take its bias for the region that is being computed."""
    if attn.relative_position_bias_table is None:
        return None
    table = BiasTable(attn, prefix=1)
    attn._get_rel_pos_bias = table
    return table


def _replace_rel_pos(rel_pos: Any) -> BiasTable | None:
    """The same for ``vision_transformer_relpos``."""
    if rel_pos is None:
        return None
    bias = _bias_of(rel_pos)
    rel_pos.get_bias = bias
    return bias


def _bias_of(rel_pos: Any) -> BiasTable:
    if isinstance(rel_pos, RelPosMlp):
        return LogOffsetBias(rel_pos)
    assert isinstance(rel_pos, RelPosBias), type(rel_pos)
    return BiasTable(rel_pos, rel_pos.prefix_tokens)


_TRUNKS: dict[type[nn.Module], type[PlainTrunk]] = {
    VisionTransformer: PlainTrunk,
    Eva: EvaTrunk,
    Beit: BeitTrunk,
    VisionTransformerRelPos: RelPosTrunk,
    VisionTransformerSAM: SamTrunk,
}


def make_trunk(vit: Any, pos_antialias: bool = True) -> PlainTrunk:
    """The trunk of one of timm's models.

    Args:
        vit: timm's model.
        pos_antialias: See :class:`PlainTrunk`.

    Raises:
        TypeError: If the model's class is none of the supported families'.
        ValueError: If positions are to be resized without antialiasing and the family has no way to.
    """
    for model_type, trunk in _TRUNKS.items():
        if isinstance(vit, model_type):
            if not pos_antialias and trunk not in (PlainTrunk, BeitTrunk):
                raise ValueError(
                    f'pos_antialias=False is for vision_transformer, deit and beit, not {type(vit).__name__}'
                )
            return trunk(vit, pos_antialias)
    raise TypeError(f'{type(vit).__name__} is none of {[kind.__name__ for kind in _TRUNKS]}')
