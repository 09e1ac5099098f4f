"""Images for pre-training and classification, and the figures that people look at."""
