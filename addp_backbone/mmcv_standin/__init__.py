"""A torchvision-backed stand-in for the compiled mmcv ops that Mask R-CNN needs."""
