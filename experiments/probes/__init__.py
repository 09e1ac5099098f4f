"""What frozen features are worth: dense probes of ViTs on segmentation data, and the page that shows them."""
