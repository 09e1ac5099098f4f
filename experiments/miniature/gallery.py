"""The documentation's gallery: what the models of a finished miniature see in scenes that they were not trained on."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from addp_backbone.files.atomic import replace_file
from addp_backbone.files.images import read_image
from addp_backbone.predict.predictor import Predictor
from addp_backbone.predict.tiles import Tiles
from pretrain.data.figures import contact_sheet

FOLDER = 'images/gallery'  # below the documentation
SCORE_THR = 0.25
MAX_BYTES = 300_000  # of all images
_PANEL_PX = 300
_COLUMNS, _ROWS = 3, 2
_MOSAIC = (3, 4)  # rows and columns of scenes that make a large image
_QUALITY = 82  # of the JPEGs

PAGE = """# Gallery

What tiny models see after minutes of training on a CPU, in generated scenes that they were not trained on: what the
output looks like, not what the method reaches. `make gallery` makes this page: it runs [the miniature](miniature.md)
(`make quickstart`), unless that has finished, and then `tools/gallery.py`.

## Mask R-CNN

{num_train} training scenes, {det_iters} iterations from the miniature's ADDP weights: AP {box_ap} of boxes and
{mask_ap} of masks on the validation scenes. Shown are detections over {score_thr}.

![Scenes with boxes, masks, classes and scores]({folder}/detection.jpg)

## UperNet

The same scenes, {seg_iters} iterations: mIoU {miou}. The legend says which share of the image each class covers.

![Scenes coloured by the class of each pixel, with a legend]({folder}/segmentation.jpg)

## A large image, whole and in tiles

{num_tiled} scenes in one image of {width} x {height} px. On the left the detector looks at the whole, resized to the
{size} px that it was trained at: {found_whole} objects. On the right it looks at tiles of {size} px as well
([tiles](prediction.md#large-images-in-tiles)): {found_tiled}.

![The same image with the detections of either]({folder}/tiles.jpg)

Generated images, their steps and inpainting: [the miniature](miniature.md).
"""


class GalleryError(ValueError):
    """The miniature that the gallery shows has not finished."""


def make_gallery(work: Path, docs: Path, device: str | None = None) -> list[Path]:
    """Writes ``gallery.md`` and its images.

    Args:
        work: Work dir of a finished miniature (``tools/quickstart.py``).
        docs: The documentation's folder.
        device: Where to compute; None takes the first GPU if there is one.

    Returns:
        What was written.

    Raises:
        GalleryError: If a part of the miniature is missing.
        ValueError: If the images are larger than :data:`MAX_BYTES` together.
    """
    scenes = sorted((work / 'shapes' / 'images' / 'val').glob('*.png'))
    num_mosaic = _MOSAIC[0] * _MOSAIC[1]
    if len(scenes) < num_mosaic:
        raise GalleryError(
            f'{work} has {len(scenes)} validation scenes, wanted {num_mosaic}: run make quickstart first'
        )
    results = _results(work)
    detector, segmentor = (_predictor(work, task, device) for task in ('det', 'seg'))
    shown = [np.asarray(read_image(path)) for path in scenes[: _COLUMNS * _ROWS]]
    images = {
        'detection.jpg': _sheet([_panel(detector(pixels).draw(pixels)) for pixels in shown], _COLUMNS),
        'segmentation.jpg': _sheet([_panel(segmentor(pixels).draw(pixels)) for pixels in shown], _COLUMNS),
    }
    size = shown[0].shape[0]
    mosaic = np.concatenate(
        [
            np.concatenate([np.asarray(read_image(path)) for path in scenes[first : first + _MOSAIC[1]]], axis=1)
            for first in range(0, num_mosaic, _MOSAIC[1])
        ]
    )
    whole = detector(mosaic)
    detector.tiles = Tiles(size, 0.25)
    tiled = detector(mosaic)
    drawn = [one.draw(mosaic) for one in (whole, tiled)]
    images['tiles.jpg'] = _sheet([_panel(pixels, round(1.5 * _PANEL_PX)) for pixels in drawn], 2)
    if sum(map(len, images.values())) > MAX_BYTES:
        raise ValueError(
            f'the gallery has {sum(map(len, images.values()))} bytes of images, wanted {MAX_BYTES} at most'
        )
    text = PAGE.format(
        folder=FOLDER,
        num_train=len(list((work / 'shapes' / 'images' / 'train').glob('*.png'))),
        det_iters=_iterations(detector),
        seg_iters=_iterations(segmentor),
        score_thr=SCORE_THR,
        **results,
        num_tiled=num_mosaic,
        width=mosaic.shape[1],
        height=mosaic.shape[0],
        size=size,
        found_whole=len(whole.to_json()['objects']),
        found_tiled=len(tiled.to_json()['objects']),
    )
    contents: dict[str, bytes | str] = {f'{FOLDER}/{name}': content for name, content in images.items()}
    for name, content in (contents | {'gallery.md': text}).items():
        replace_file(docs / name, content)
    return [docs / name for name in (*contents, 'gallery.md')]


def _predictor(work: Path, task: str, device: str | None) -> Predictor:
    config, run = work / 'configs' / f'shapes_{task}.py', work / 'runs' / f'{task}_addp_0'
    if not config.is_file() or not run.is_dir():
        raise GalleryError(f'{work} has no trained {task} model ({config.name}, {run.name}): run make quickstart first')
    return Predictor(config, run, SCORE_THR, device)


def _results(work: Path) -> dict[str, str]:
    """What the evaluations of the miniature measured, as the page says it."""
    try:
        found = {
            task: json.loads((work / 'results' / f'{task}_addp_0.json').read_text(encoding='utf-8'))
            for task in ('det', 'seg')
        }
        return dict(
            box_ap=f'{100 * found["det"]["coco/bbox_mAP"]:.1f}',
            mask_ap=f'{100 * found["det"]["coco/segm_mAP"]:.1f}',
            miou=f'{found["seg"]["mIoU"]:.1f}',
        )
    except (OSError, ValueError, KeyError) as error:
        raise GalleryError(f'{work} has no results of both tasks ({error}): run make quickstart first') from error


def _iterations(predictor: Predictor) -> str:
    """How long a checkpoint was trained, from its name."""
    return predictor.checkpoint.stem.rpartition('_')[2]


def _panel(pixels: NDArray[np.uint8], width_px: int = _PANEL_PX) -> Image.Image:
    image = Image.fromarray(pixels)
    return image.resize((width_px, round(image.height * width_px / image.width)), Image.Resampling.LANCZOS)


def _sheet(panels: Sequence[Image.Image], columns: int) -> bytes:
    """A contact sheet as a JPEG; panels of other heights are centred in the tallest."""
    height = max(panel.height for panel in panels)
    padded = []
    for panel in panels:
        canvas = Image.new('RGB', (panel.width, height), 'white')
        canvas.paste(panel, (0, (height - panel.height) // 2))
        padded.append(canvas)
    content = io.BytesIO()
    contact_sheet(padded, columns).save(content, 'JPEG', quality=_QUALITY, optimize=True)
    return content.getvalue()
