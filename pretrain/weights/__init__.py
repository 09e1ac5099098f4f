"""Weights: the released files and our own, loaded strictly, downloaded resumably."""

from pretrain.weights.published import load_published

__all__ = ['load_published']
