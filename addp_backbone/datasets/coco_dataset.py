"""The data set of detection runs: a COCO file whose classes are found by name and whose records are validated."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from addp_backbone.datasets.coco_file import CocoFile, Record, load_coco
from addp_backbone.datasets.palette import class_palette

# fmt: off
COCO_CLASSES = (
    'person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat', 'traffic light',
    'fire hydrant', 'stop sign', 'parking meter', 'bench', 'bird', 'cat', 'dog', 'horse', 'sheep', 'cow', 'elephant',
    'bear', 'zebra', 'giraffe', 'backpack', 'umbrella', 'handbag', 'tie', 'suitcase', 'frisbee', 'skis', 'snowboard',
    'sports ball', 'kite', 'baseball bat', 'baseball glove', 'skateboard', 'surfboard', 'tennis racket', 'bottle',
    'wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl', 'banana', 'apple', 'sandwich', 'orange', 'broccoli',
    'carrot', 'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch', 'potted plant', 'bed', 'dining table', 'toilet',
    'tv', 'laptop', 'mouse', 'remote', 'keyboard', 'cell phone', 'microwave', 'oven', 'toaster', 'sink',
    'refrigerator', 'book', 'clock', 'vase', 'scissors', 'teddy bear', 'hair drier', 'toothbrush',
)
# fmt: on


@DATASETS.register_module()
class CocoInstances(BaseDataset):
    """Boxes and masks of a COCO file, as mmdet's ``CocoDataset`` gives them, with three differences.

    Labels follow the order of ``metainfo['classes']`` and are matched by name, where mmdet takes the file's order.
    Classes that the file does not have, or objects of classes that the config does not have, are an error. Records are
    validated (:func:`addp_backbone.datasets.coco_file.load_coco`), so that what loads can be trained on.

    The arguments are those of :class:`mmengine.dataset.BaseDataset`; ``data_prefix`` has the key ``img``, and
    ``filter_cfg`` may have ``filter_empty_gt`` (leave out images without any object of the classes) and ``min_size``
    (leave out images with a shorter side, in pixels).

    Raises:
        CocoError: On loading, if the file has errors or other classes.
    """

    METAINFO = {'classes': COCO_CLASSES, 'palette': class_palette(len(COCO_CLASSES))}

    def load_data_list(self) -> list[dict[str, Any]]:
        """Reads the file; one dict an image, in the file's order."""
        coco = load_coco(self.ann_file, with_annotations=not self.test_mode)
        classes = self._metainfo['classes']
        self._metainfo['classes'] = (classes,) if isinstance(classes, str) else classes
        self.cat_ids = coco.class_ids(self._metainfo['classes'])
        labels = {category: label for label, category in enumerate(self.cat_ids)}
        objects: dict[Any, list[Record]] = defaultdict(list)
        for record in coco.annotations:
            objects[record['image_id']].append(record)
        data = [self._image(record, objects[record['id']], labels) for record in coco.images]
        self._report_left_out(coco, sum(len(item['instances']) for item in data))
        self._with_objects = {record['image_id'] for record in coco.annotations if record['category_id'] in labels}
        return data

    def filter_data(self) -> list[dict[str, Any]]:
        """Leaves out images by ``filter_cfg``; none in test mode."""
        if self.test_mode or not self.filter_cfg:
            return self.data_list
        keep_empty, min_size = not self.filter_cfg.get('filter_empty_gt', False), self.filter_cfg.get('min_size', 0)
        return [
            item
            for item in self.data_list
            if min(item['width'], item['height']) >= min_size and (keep_empty or item['img_id'] in self._with_objects)
        ]

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of an image's objects, for mmdet's class-balanced sampling."""
        return [instance['bbox_label'] for instance in self.get_data_info(idx)['instances']]

    def _image(self, image: Record, objects: list[Record], labels: dict[Any, int]) -> dict[str, Any]:
        width, height = image['width'], image['height']
        instances = []
        for record in objects:
            x, y, box_width, box_height = record['bbox']
            visible_w = min(x + box_width, width) - max(x, 0)
            visible_h = min(y + box_height, height) - max(y, 0)
            if visible_w <= 0 or visible_h <= 0:
                continue
            if record['area'] <= 0 or box_width < 1 or box_height < 1 or record['category_id'] not in labels:
                continue
            instance = dict(
                bbox=[x, y, x + box_width, y + box_height],
                bbox_label=labels[record['category_id']],
                ignore_flag=record['iscrowd'],
            )
            if 'segmentation' in record:
                instance['mask'] = record['segmentation']
            instances.append(instance)
        return dict(
            img_path=str(Path(self.data_prefix.get('img', ''), image['file_name'])),
            img_id=image['id'],
            seg_map_path=None,
            height=height,
            width=width,
            instances=instances,
        )

    def _report_left_out(self, coco: CocoFile, num_used: int) -> None:
        left_out = len(coco.annotations) - num_used
        if left_out:
            message = (
                f'{self.ann_file}: {left_out} of {len(coco.annotations)} objects are not trained on (boxes under one '
                'pixel or outside the image)'
            )
            print_log(message, logger='current')
