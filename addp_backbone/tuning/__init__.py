"""Partial and low-rank fine-tuning: which parameters of a plain ViT are trained."""
