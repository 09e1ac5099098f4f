"""What the predictions of all tasks share: the classes, and what every prediction can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from mmengine import Config
from mmengine.registry import DATASETS
from torch import nn

from addp_backbone.datasets.palette import class_palette
from addp_backbone.predict.overlays import RGBImage


@dataclass(frozen=True)
class ClassInfo:
    """The classes a model knows.

    Attributes:
        names: Class names, in the order of the model's outputs.
        palette: An RGB colour for each.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]


class Prediction(Protocol):
    """What the predictions of all tasks have in common."""

    @property
    def width(self) -> int:
        """The image's width in pixels."""

    @property
    def height(self) -> int:
        """The image's height in pixels."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the overlay, as plain Python values."""

    def draw(self, image: RGBImage) -> RGBImage:
        """An overlay on the (height, width, 3) RGB image."""

    def extra_files(self) -> dict[str, bytes]:
        """Folder name -> content of a PNG, for what JSON is too clumsy for."""

    def to_supervision(self) -> Any:
        """The prediction as Roboflow's library supervision has it."""


def import_supervision() -> ModuleType:
    """Returns the module ``supervision``.

    Raises:
        ModuleNotFoundError: If it is not installed; the message says how to install it.
    """
    try:
        import supervision
    except ModuleNotFoundError as error:
        if error.name != 'supervision':
            raise
        raise ModuleNotFoundError(
            "to_supervision needs the package supervision: pip install supervision (or '.[supervision]')",
            name='supervision',
        ) from error
    return supervision


def count_classes(model: nn.Module) -> int | None:
    """Number of classes of a model's head; None if it has none that is known."""
    for name in ('roi_head.bbox_head', 'decode_head', 'bbox_head', 'head'):
        head: Any = model
        for part in name.split('.'):
            head = getattr(head, part, None)
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        if getattr(head, 'num_classes', None):
            return int(head.num_classes)
    return int(model.num_classes) if isinstance(getattr(model, 'num_classes', None), int) else None  # type: ignore[arg-type]


def find_classes(meta: Mapping[str, Any], cfg: Config, num_classes: int | None) -> ClassInfo:
    """Finds class names and colours: in the checkpoint, in the config, or at the data set's class.

    Args:
        meta: The checkpoint's ``meta``.
        cfg: The config.
        num_classes: How many the model has; a source with another number is passed over.

    Returns:
        Names and colours; where no source fits, 'class 0' and so on in colours of ours.
    """
    dataset = cfg.test_dataloader.dataset
    kind = dataset.type
    if isinstance(kind, str):  # get() alone looks in mmengine's registry, which does not have the libraries' data sets
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            kind = registry.get(kind)
    for source in (meta.get('dataset_meta'), dataset.get('metainfo'), getattr(kind, 'METAINFO', None)):
        names = (source or {}).get('classes')
        if names and (num_classes is None or len(names) == num_classes):
            palette = (source or {}).get('palette') or ()
            fits = len(palette) == len(names) and not isinstance(palette, str)
            return ClassInfo(
                tuple(names),
                tuple(tuple(int(c) for c in color) for color in (palette if fits else class_palette(len(names)))),
            )
    count = num_classes or 0
    return ClassInfo(tuple(f'class {i}' for i in range(count)), tuple(class_palette(count)))
