"""ADDP in the demo: images as they emerge step by step, and parts of an image drawn anew where a brush went."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from addp_backbone.runtime.launch import load_config
from experiments.demo.views import MAX_SHOWN_PX, fit_to_screen
from pretrain.data.figures import contact_sheet, to_pil
from pretrain.generation.editing import edit, edit_figure, fit
from pretrain.generation.sampling import Sampling, image_generator
from pretrain.generation.trajectory import trajectory
from pretrain.networks.addp import ADDP
from pretrain.weights.generator import load_generator, precision

EDITOR_PX = 512  # side of the square that the brush paints on
_OPAQUE = 128  # alpha from which a pixel counts as painted


class Progress(NamedTuple):
    """Images after a step.

    Attributes:
        sheet: All images.
        step: From 1.
        num_masked: Tokens of an image that are still open.
    """

    sheet: Image.Image
    step: int
    num_masked: int


class ImageGenerator:
    """ADDP as the page uses it.

    Args:
        model: ADDP on its device.
    """

    def __init__(self, model: ADDP) -> None:
        self.model = model

    @classmethod
    def load(
        cls, config: str | Path, checkpoint: str | Path, device: str | None = None, tokenizer: str | None = None
    ) -> ImageGenerator:
        """Loads ADDP.

        Args:
            config: Pre-training config of ADDP.
            checkpoint: As for :func:`pretrain.weights.generator.load_generator`.
            device: Where to compute; None takes the first GPU if there is one.
            tokenizer: File or work dir of the tokenizer; None for the one that checkpoint or config names.

        Raises:
            CheckpointError: If a file is missing, unreadable or does not fit.
        """
        model = load_generator(load_config(str(config)), checkpoint, tokenizer=tokenizer)
        return cls(model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu')))

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        return self.model.num_tokens

    def generate(self, num_images: int, seed: int, sampling: Sampling) -> Iterator[Progress]:
        """Generates images; after the last step they are those of ``tools/generate.py`` with equal seed and settings.

        Args:
            num_images: Number of images, at least 1.
            seed: Of all draws.
            sampling: How tokens are sampled.

        Yields:
            The state after each step.
        """
        generators = [image_generator(seed, index) for index in range(num_images)]
        steps = trajectory(self.model, num_images, sampling, generators)
        for step in range(1, sampling.steps + 1):
            with precision(self.model, 'fp32'):  # left between the steps, which another thread may use
                state = next(steps)
            sheet = contact_sheet(to_pil(state.images.clamp(0, 1)))
            yield Progress(fit_to_screen(sheet), step, 0 if step == sampling.steps else int(state.mask[0].sum()))

    def fit_for_brush(self, image: Image.Image) -> Image.Image:
        """The centre square of an image at the model's size, enlarged by a whole number to paint on."""
        side = self.model.img_size * max(1, EDITOR_PX // self.model.img_size)
        return fit(image, self.model.img_size).resize((side, side), Image.Resampling.NEAREST)

    def brushed_tokens(self, layers: list[Any]) -> Tensor:
        """The tokens that were painted on.

        Args:
            layers: RGBA images over what :meth:`fit_for_brush` showed; opaque pixels were painted.

        Returns:
            (L,) bool, True where a stroke on any layer touches the token's patch.
        """
        touched = torch.zeros(self.model.grid, dtype=torch.bool)
        for layer in layers:
            painted = np.asarray(layer.convert('RGBA').getchannel('A')) >= _OPAQUE
            touched |= F.adaptive_max_pool2d(torch.from_numpy(painted)[None].float(), self.model.grid)[0] > 0
        return touched.flatten()

    def inpaint(
        self, image: Image.Image, tokens: Tensor, num_results: int, seed: int, sampling: Sampling, paste: bool
    ) -> Image.Image:
        """Draws tokens of an image anew, as ``tools/edit.py --mask`` does.

        Args:
            image: RGB; its centre square at the model's size is used.
            tokens: (L,) bool, True = drawn anew.
            num_results: Number of results.
            seed: Of all draws.
            sampling: How tokens are sampled.
            paste: Whether the image's own pixels are put back where nothing was drawn anew.

        Returns:
            Image, mask and results side by side.

        Raises:
            ValueError: If no token is to be drawn anew.
        """
        if not tokens.any():
            raise ValueError('nothing is painted: brush over the part of the image that is to be drawn anew')
        with precision(self.model, 'fp32'):
            done = edit(self.model, fit(image, self.model.img_size), tokens, num_results, seed, sampling, paste)
        return fit_to_screen(edit_figure(done), MAX_SHOWN_PX)
