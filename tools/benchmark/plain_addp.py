"""The peer of the ADDP rows: the published training step and generation, written down in plain PyTorch.

Straight after the description of the method: float32 throughout, images and maps in NCHW layout, attention as
softmax(q k^T) v with all weights in memory, the predictor's two passes one after the other. It takes the state
dict of ours (frozen networks included), so that both compute the same numbers. Used by addp.py; nothing to run here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.benchmark.plain_tokenizer import NORM_EPS, PlainTokenizer, Sizes

HEAD_NORM_EPS = 1e-5


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_drop, self.proj_drop = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (C // self.num_heads) ** -0.5).softmax(-1)
        return self.proj_drop(self.proj((self.attn_drop(weights) @ v).transpose(1, 2).reshape(B, N, C)))


class _Mlp(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.drop1, self.drop2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, NORM_EPS), nn.LayerNorm(width, NORM_EPS)
        self.attn, self.mlp = _Attention(width, num_heads, dropout), _Mlp(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Head(nn.Module):
    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.fc, self.ln = nn.Linear(width, width), nn.LayerNorm(width, HEAD_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(1, 1, vocabulary))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.ln(F.gelu(self.fc(x))) @ table.detach().t() + self.bias


class _Predictor(nn.Module):
    token_emb: Any

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, C = sizes, sizes.width
        self.token_emb = nn.Module()
        self.token_emb.word_embeddings = nn.Embedding(sizes.vocabulary, C)
        self.token_emb.position_embeddings = nn.Embedding(1 + sizes.side**2, C)
        self.token_emb.LayerNorm = nn.LayerNorm(C, NORM_EPS)
        self.blocks = nn.Sequential(*(_Block(C, sizes.num_heads, 0.0) for _ in range(sizes.depth)))
        self.decoder_blocks = nn.Sequential(
            *(_Block(C, sizes.decoder_num_heads, 0.0) for _ in range(sizes.decoder_depth))
        )
        self.norm, self.decoder_norm = nn.LayerNorm(C, NORM_EPS), nn.LayerNorm(C, NORM_EPS)
        self.decoder_embed = nn.Linear(C, C)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, 1 + sizes.side**2, C))
        self.mlm_layer = _Head(C, sizes.vocabulary)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Probabilities (B, L, K)."""
        ids = torch.where(mask, self.sizes.num_codes + 1000, ids)
        ids = torch.cat((torch.full_like(ids[:, :1], self.sizes.num_codes + 76), ids), dim=1)
        emb = self.token_emb
        x = emb.LayerNorm(emb.word_embeddings(ids) + emb.position_embeddings(torch.arange(ids.shape[1])))
        x = self.decoder_embed(self.norm(self.blocks(x)))
        hidden = torch.cat((torch.zeros_like(mask[:, :1]), mask), dim=1)[..., None]
        x = torch.where(hidden, x[:, :1], x) + self.decoder_pos_embed_learned
        x = self.decoder_norm(self.decoder_blocks(x))
        return self.mlm_layer(x, emb.word_embeddings.weight)[:, 1:, : self.sizes.num_codes].softmax(-1)


class PlainADDP(nn.Module):
    """The whole training model."""

    patch_embed: Any
    pos_embed: Tensor
    decoder_pos_embed_learned: Tensor
    decoder_pos_mask_embed: Tensor
    decoder_pos_token_embed: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, C = sizes, sizes.width
        self.tokenizer, self.token_predictor = PlainTokenizer(sizes).eval(), _Predictor(sizes).eval()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, C, sizes.patch_size, sizes.patch_size)
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, C)), nn.Parameter(torch.zeros(1, 1, C))
        for name in ('pos_embed', 'decoder_pos_embed_learned', 'decoder_pos_mask_embed', 'decoder_pos_token_embed'):
            setattr(self, name, nn.Parameter(torch.zeros(1, 1 + sizes.side**2, C)))
        self.tokenizer_norm, self.norm, self.decoder_norm = (nn.LayerNorm(C, NORM_EPS) for _ in range(3))
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.Sequential(*(_Block(C, sizes.num_heads, sizes.dropout) for _ in range(sizes.depth)))
        self.decoder_blocks = nn.Sequential(
            *(_Block(C, sizes.decoder_num_heads, sizes.dropout) for _ in range(sizes.decoder_depth))
        )
        self.decoder_embed, self.token_emb = nn.Linear(C, C), nn.Embedding(sizes.vocabulary, C)
        self.mlm_layer = _Head(C, sizes.vocabulary)

    def to_map(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, C, g, g)."""
        return x.transpose(1, 2).unflatten(2, (self.sizes.side, self.sizes.side))

    def logits(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L, vocabulary) of pixels, ids and mask."""
        mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        x = self.patch_embed.proj((images.clamp(0, 1) - mean) / std).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = torch.cat(((self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x), dim=1)
        x = self.decoder_embed(self.norm(self.blocks(self.dropout(self.tokenizer_norm(x)))))
        masked = torch.cat((torch.zeros_like(mask[:, :1]), mask), dim=1)[..., None]
        hidden = torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1)[..., None]
        x = torch.where(hidden, self.mask_token, x)
        x = x + torch.where(masked, self.decoder_pos_mask_embed, self.decoder_pos_embed_learned)
        known = (self.token_emb(ids) + self.decoder_pos_token_embed[:, 1:])[~mask].view(len(x), -1, x.shape[-1])
        x = self.decoder_norm(self.decoder_blocks(torch.cat((x, known), dim=1)))
        return self.mlm_layer(x, self.token_emb.weight)[:, 1 : 1 + mask.shape[1]]

    def training_loss(self, images: Tensor, mask: Tensor, noisier_mask: Tensor) -> Tensor:
        """The loss of a training step."""
        with torch.no_grad():
            ids, latents = self.tokenizer.encode(images)
            soft = self.to_map(self.token_predictor(ids, noisier_mask) @ self.tokenizer.quantize.embedding.weight)
            noisy = self.tokenizer.decoder(torch.where(self.to_map(mask[..., None]), soft, latents))
            target = self.token_predictor(ids, mask)
        target = F.pad(target, (0, self.sizes.vocabulary - self.sizes.num_codes))
        target = 0.9 * target + 0.1 / self.sizes.vocabulary
        losses = -(target * self.logits(noisy, ids, mask).log_softmax(-1)).sum(-1)  # (B, L)
        return (losses * mask).sum() / mask.sum()

    @torch.no_grad()
    def generate(self, steps: int, generators: Sequence[torch.Generator], temperature: float = 6.0) -> Tensor:
        """Images (B, 3, H, W) after ``steps`` cosine steps; draws the same numbers as ours, in the same order."""
        count, places = len(generators), self.sizes.side**2
        images = torch.zeros(count, 3, self.sizes.img_size, self.sizes.img_size)
        ids, mask = torch.zeros(count, places, dtype=torch.int64), torch.ones(count, places, dtype=torch.bool)
        for step in range(steps):
            logits = self.logits(images, ids, mask)[..., : self.sizes.num_codes]
            noise = torch.stack([torch.rand(logits.shape[1:], generator=generator) for generator in generators])
            sampled = (logits + _gumbel(noise)).argmax(-1)
            noise = torch.stack([torch.rand(places, generator=generator) for generator in generators])
            ids = torch.where(mask, sampled, ids)
            probs = logits.softmax(-1)
            confidence = probs.gather(-1, ids[..., None])[..., 0].log() + temperature * (
                1 - (step + 1) / steps
            ) * _gumbel(noise)
            confidence = torch.where(mask, confidence, math.inf)
            num_masked = max(1, math.ceil(places * math.cos(math.pi / 2 * (step + 1) / steps) - 1e-9))
            mask = torch.zeros_like(mask).scatter(1, confidence.argsort(1)[:, :num_masked], True)
            table = self.tokenizer.quantize.embedding.weight
            latents = torch.where(mask[..., None], probs @ table, table[ids])
            images = self.tokenizer.decoder(self.to_map(latents))
        return images.clamp(0, 1)


def _gumbel(uniform: Tensor) -> Tensor:
    return -(-uniform.clamp_min(torch.finfo(uniform.dtype).tiny).log()).log()
