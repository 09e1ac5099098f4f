"""How much of everything the miniature of the paper's table has."""

from __future__ import annotations

from dataclasses import dataclass, replace

_MIN = 8  # images or iterations, however small the scale


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the defaults take about 20 minutes on two cores.

    Attributes:
        side_px: Side of the images; pre-training and classification see them smaller.
        plain: Images for pre-training.
        train_scenes: Images to train detection and segmentation with.
        val_scenes: Images to evaluate them with.
        train_per_class: Images a class to train classification with.
        val_per_class: Images a class to evaluate it with.
        tokenizer: Iterations of the tokenizer.
        token_predictor: Iterations of the token predictor.
        addp: Iterations of ADDP.
        samples: Generated images.
        classification_epochs: Passes of fine-tuning and of the linear probe.
        detection: Iterations of Mask R-CNN; few, as pre-trained weights matter most then (docs/miniature.md has longer
            ones).
        segmentation: Iterations of UperNet; the same.
    """

    side_px: int = 128
    plain: int = 1500
    train_scenes: int = 60
    val_scenes: int = 60
    train_per_class: int = 20
    val_per_class: int = 40
    tokenizer: int = 350
    token_predictor: int = 500
    addp: int = 800
    samples: int = 36
    classification_epochs: int = 30
    detection: int = 150
    segmentation: int = 100

    def scaled(self, factor: float) -> Sizes:
        """Everything but the side times ``factor``, at least 8 (3 epochs)."""
        numbers = {name: _times(count, factor) for name, count in vars(self).items() if name != 'side_px'}
        numbers['classification_epochs'] = max(3, round(self.classification_epochs * factor))
        return Sizes(side_px=self.side_px, **numbers)

    def pretrained(self, factor: float) -> Sizes:
        """ADDP trained ``factor`` times as long, everything else as it is.

        The token predictor gains little: its loss fell by 0.04 from 900 to 1600 iterations.
        """
        return replace(self, addp=_times(self.addp, factor))

    def transferred(self, factor: float) -> Sizes:
        """Mask R-CNN and UperNet trained ``factor`` times as long, everything else as it is."""
        return replace(self, detection=_times(self.detection, factor), segmentation=_times(self.segmentation, factor))


def _times(count: int, factor: float) -> int:
    return max(_MIN, round(count * factor))
