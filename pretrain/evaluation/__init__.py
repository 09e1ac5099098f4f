"""Evaluation of generated images: FID and IS, and the sets of images they compare."""
