"""Annotations of other tools, read as COCO records: Pascal VOC, YOLO, labelme, Label Studio, CVAT."""

from addp_backbone.datasets.formats.detect import FORMATS, detect_format, read_annotations

__all__ = ['FORMATS', 'detect_format', 'read_annotations']
