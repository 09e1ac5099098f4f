"""Prediction on images with a trained model; ``tools/predict.py`` is the command."""

from addp_backbone.predict.predictor import predict_images

__all__ = ['predict_images']
