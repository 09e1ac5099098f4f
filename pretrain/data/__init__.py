"""Images for pre-training and classification, and the pictures that people look at."""
