"""Generation and editing with a trained ADDP."""

from pretrain.generation.trajectory import generate, mix_latents, next_mask

__all__ = ['generate', 'mix_latents', 'next_mask']
