"""Prediction on images and videos with a trained model; ``tools/predict.py`` is the command."""

from addp_backbone.predict.predictor import Predictor
from addp_backbone.predict.run import predict_images
from addp_backbone.predict.tiles import Tiles

__all__ = ['Predictor', 'Tiles', 'predict_images']
