"""How much of ADDP's prediction comes from its encoder; if the decoder ignores the encoder, its weights are useless.

The decoder sees the visible tokens beside the encoder's output, and both say the same about the image. So the loss
alone does not show whether the encoder, the only part that is transferred, has learned anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.networks.addp import ADDP
from pretrain.networks.frozen import evaluating
from pretrain.networks.losses import masked_soft_cross_entropy

MIN_LEARNABLE = 0.05  # nats; with less between the mean target and the target's entropy, shares of it mean nothing


@dataclass(frozen=True)
class EncoderUse:
    """Cross entropies with the soft target over masked tokens, in nats, without label smoothing, over the codes alone.

    Attributes:
        least: The target's own entropy; no prediction is better.
        addp: ADDP as it is.
        without_tokens: With the tokens hidden from the decoder.
        other_image: With the encoder's output of another image.
        most: With the mean target as every prediction, which needs no network.
    """

    least: float
    addp: float
    without_tokens: float
    other_image: float
    most: float

    @property
    def learnable(self) -> float:
        """What can be learned about the target, in nats: near 0 if the token predictor always predicts the same."""
        return self.most - self.least

    @property
    def learned(self) -> float | None:
        """The share of :attr:`learnable` that ADDP has learned, at most 1. None, as all shares, below MIN_LEARNABLE."""
        return self._share(self.most - self.addp)

    @property
    def learned_by_encoder(self) -> float | None:
        """The share that remains when the tokens are hidden: what the encoder knows; near or below 0 if nothing."""
        return self._share(self.most - self.without_tokens)

    @property
    def lost_without_encoder(self) -> float | None:
        """The share that is lost with another image's encoder output; near 0 if the decoder ignores the encoder."""
        return self._share(self.other_image - self.addp)

    def _share(self, difference: float) -> float | None:
        """A difference in nats as a share of what can be learned; None if that is next to nothing."""
        return difference / self.learnable if self.learnable >= MIN_LEARNABLE else None


@torch.no_grad()
def measure_encoder_use(addp: ADDP, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> EncoderUse:
    """Measures one ADDP, in eval mode.

    Args:
        addp: ADDP with trained weights in all three networks.
        batches: Images (B, 3, H, W) in [0, 1], m_t and m_{t+1} (B, L) bool, as :meth:`ADDP.diffuse` takes them; B at
            least 2 (the other image is the next one of the batch), and at least one token masked.

    Raises:
        ValueError: If there is no batch, one has a single image, or nothing is masked.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    targets = torch.zeros(addp.num_codes, dtype=torch.float64)
    num_tokens = 0
    with evaluating(addp):
        for images, mask, noisier_mask in batches:
            if len(images) < 2 or not mask.any():
                raise ValueError(
                    f'wanted batches of at least 2 images with masked tokens, got {len(images)} images and '
                    f'{int(mask.sum())} masked tokens'
                )
            sample = addp.diffuse(images, mask, noisier_mask)
            encoded = addp.encode_pixels(sample.noisy_images)
            hidden = torch.full_like(sample.tokens, addp.vocabulary.mask_id)
            cases = ((encoded, sample.tokens), (encoded, hidden), (encoded.roll(1, dims=0), sample.tokens))
            losses = [
                masked_soft_cross_entropy(
                    addp.score_vocabulary(*case, mask)[..., : addp.num_codes], sample.target, mask, label_smoothing=0.0
                )
                for case in cases
            ]
            target = sample.target[mask].double()
            count = len(target)
            sums += (
                torch.tensor(
                    [float(torch.special.entr(target).sum(-1).mean()), *map(float, losses)], dtype=torch.float64
                )
                * count
            )
            targets += target.sum(0).cpu()
            num_tokens += count
    if not num_tokens:
        raise ValueError('wanted at least one batch of images, got none')
    least, own, without_tokens, other_image = (sums / num_tokens).tolist()
    return EncoderUse(least, own, without_tokens, other_image, float(torch.special.entr(targets / num_tokens).sum()))
