"""The networks that are transferred: the ViT backbone and the simple feature pyramid."""
