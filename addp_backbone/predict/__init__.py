"""Prediction on images with a trained model; ``tools/predict.py`` is the command."""

from addp_backbone.predict.predictor import Predictor
from addp_backbone.predict.run import predict_images

__all__ = ['Predictor', 'predict_images']
