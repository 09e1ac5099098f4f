"""ADDP pre-training: tokenizer, token predictor, diffusion between token and pixel space, and the trained network."""

from pretrain.networks.addp import ADDP, DiffusionSample
from pretrain.networks.token_predictor import TokenPredictor
from pretrain.networks.tokenizer import VQGANTokenizer

__all__ = ['ADDP', 'DiffusionSample', 'TokenPredictor', 'VQGANTokenizer']
