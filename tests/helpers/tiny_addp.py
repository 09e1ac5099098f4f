"""The smallest ADDP with every part in it, for tests: 32 px images, 4 x 4 tokens, 64 codes."""

from __future__ import annotations

from typing import Any

import torch

from pretrain import ADDP, TokenPredictor, VQGANTokenizer

IMG_SIZE = 32
NUM_TOKENS = 16
NUM_CODES = 64
ARCH = dict(width=32, depth=1, num_heads=2)
TOKENIZER = dict(
    base_channels=32, channel_multipliers=(1, 1, 1, 1), num_res_blocks=1, latent_channels=16, num_codes=NUM_CODES
)


def tiny_tokenizer(**options: Any) -> VQGANTokenizer:
    """A tokenizer with random weights, whose codebook covers its latents (a fresh one is all but a single point)."""
    torch.manual_seed(0)
    tokenizer = VQGANTokenizer(**{**TOKENIZER, **options})
    torch.nn.init.normal_(tokenizer.codebook, std=0.3)
    return tokenizer


def tiny_predictor(**options: Any) -> TokenPredictor:
    """A token predictor with random weights, large enough that every part matters."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        arch=ARCH, decoder_depth=1, decoder_num_heads=4, num_tokens=NUM_TOKENS, num_codes=NUM_CODES
    )
    predictor = TokenPredictor(**{**settings, **options})
    _disturb(predictor)
    return predictor


def tiny_addp(**options: Any) -> ADDP:
    """An ADDP with random weights, in eval mode."""
    torch.manual_seed(0)
    model = ADDP(
        **{
            **dict(
                arch=ARCH,
                decoder_depth=1,
                decoder_num_heads=4,
                img_size=IMG_SIZE,
                patch_size=8,
                tokenizer=TOKENIZER,
                token_predictor=dict(arch=ARCH, decoder_depth=1, decoder_num_heads=4),
            ),
            **options,
        }
    )
    _disturb(model)
    torch.nn.init.normal_(model.tokenizer.codebook, std=0.3)
    return model.eval()


def tiny_batch(batch_size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, m_t (9 masked) and m_{t+1} (12 masked)."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch_size, 3, IMG_SIZE, IMG_SIZE, generator=generator)
    ranks = torch.rand(batch_size, NUM_TOKENS, generator=generator).argsort(1).argsort(1)
    return images, ranks < 9, ranks < 12


def _disturb(module: torch.nn.Module) -> None:
    """Moves biases, norms and embeddings away from zero and one, where mistakes hide."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter.float()).to(parameter.dtype), alpha=0.1)
