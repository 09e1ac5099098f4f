"""Keeping the codes of a tokenizer in use while it trains: usage statistics, revival of dead codes, the first codes.

Shapes: B images, L tokens, C latent channels, K codes.
"""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce, broadcast
from torch import Tensor, nn

from pretrain.networks.tokenizer import VQGANTokenizer


class CodebookUsage(nn.Module):
    """Keeps a running average of how often each code is used, over all processes, and revives dead codes.

    The average starts from equal use, so that a good codebook that trains further is left alone at first.

    Args:
        num_codes: Number of codes K.
        decay: Decay of the running average per update, in [0, 1).
        dead_below: A code is dead when it is used less often than this share of the average use.
    """

    shares: Tensor

    def __init__(self, num_codes: int, decay: float = 0.95, dead_below: float = 0.1) -> None:
        super().__init__()
        self.decay = decay
        self.dead_below = dead_below
        self.register_buffer('shares', torch.full((num_codes,), 1 / num_codes))

    @property
    def dead(self) -> Tensor:
        """Which codes are dead, (K,) bool."""
        return self.shares < self.dead_below / len(self.shares)

    @torch.no_grad()
    def update(self, tokens: Tensor) -> dict[str, Tensor]:
        """Counts the tokens (B, L) of a batch and returns statistics of this batch for the log.

        Returns:
            ``codebook_used``, the share of codes that occur, and ``perplexity``, the exponential of the entropy of
            their frequencies: between 1 (one code) and K (all equally often).
        """
        ids = tokens.flatten()
        # Exact as long as no count passes 2^24; torch.bincount would make the CPU wait for the device.
        counts = torch.zeros_like(self.shares).scatter_add_(0, ids, torch.ones_like(ids, dtype=self.shares.dtype))
        all_reduce(counts)
        shares = counts / counts.sum()
        self.shares.mul_(self.decay).add_(shares, alpha=1 - self.decay)
        return {'codebook_used': (counts > 0).float().mean(), 'perplexity': torch.special.entr(shares).sum().exp()}

    @torch.no_grad()
    def revive(self, tokenizer: VQGANTokenizer, continuous: Tensor, generator: torch.Generator | None = None) -> int:
        """Moves dead codes to latents of this batch and resets their use to the average.

        Call this after the optimizer's step, because it writes to the codebook.

        Args:
            tokenizer: Its codebook is changed.
            continuous: (B, C, g, g), latents before quantisation.
            generator: Source of randomness, on the CPU; torch's global one if None. Rank 0's draw holds for all.

        Returns:
            Number of codes revived.
        """
        dead = self.dead
        fill_codes(tokenizer, continuous, dead, generator)
        self.shares[dead] = 1 / len(self.shares)
        return int(dead.sum())


@torch.no_grad()
def fill_codes(
    tokenizer: VQGANTokenizer, continuous: Tensor, which: Tensor, generator: torch.Generator | None = None
) -> None:
    """Overwrites codes with latents drawn from a batch; with all codes, this initialises a new codebook.

    Args:
        tokenizer: Its codebook is changed.
        continuous: (B, C, g, g), latents before quantisation; none is drawn twice unless there are too few.
        which: (K,) bool, the codes to overwrite; the same on all processes.
        generator: Source of randomness, on the CPU; torch's global one if None. Rank 0's draw holds for all.
    """
    number = int(which.sum())
    if number == 0:
        return
    latents = continuous.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (BL, C)
    order = torch.randperm(len(latents), generator=generator)
    chosen = order.repeat(-(-number // len(order)))[:number].to(latents.device)
    codes = latents[chosen].contiguous()
    broadcast(codes)
    tokenizer.codebook[which] = codes.to(tokenizer.codebook.dtype)
