"""ADDP pre-training: tokenizer, token predictor, diffusion between token and pixel space, and the trained network."""

from pretrain.addp import ADDP, DiffusionSample
from pretrain.token_predictor import TokenPredictor
from pretrain.tokenizer import VQGANTokenizer

__all__ = ['ADDP', 'DiffusionSample', 'TokenPredictor', 'VQGANTokenizer']
