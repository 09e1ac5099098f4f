"""What Mask R-CNN on COCO needs beyond mmdet: large scale jitter, instance masks, evaluation."""
