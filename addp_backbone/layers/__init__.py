"""Layers that the backbone, the ADDP encoder and decoder and the token predictor share."""
