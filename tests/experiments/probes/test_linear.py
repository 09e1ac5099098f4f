"""DINOv2's linear protocol: schedule, points of the labels, and BatchNorm folded into the map."""

import numpy as np
import pytest
import torch
from torch import nn

from addp_backbone.files.mask_areas import VOID
from experiments.probes.linear import _folded, fit_linear, label_points, learning_rate_factor


def test_the_learning_rate_is_that_of_mmcv_with_linear_warm_up_and_linear_decay():
    factors = [learning_rate_factor(iteration, 40000) for iteration in (0, 750, 1500, 20000, 39999)]
    assert factors == pytest.approx([1e-6, 0.98125 * (1 - 0.5 * (1 - 1e-6)), 0.9625, 0.5, 1 / 40000])


def test_points_are_the_centres_of_cells():
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert label_points(labels, (1, 2)).tolist() == labels[1::2, :].tolist()


def test_the_map_is_convolution_after_batch_norm_in_evaluation():
    torch.manual_seed(0)
    norm, conv = nn.BatchNorm1d(5), nn.Linear(5, 3)
    norm(torch.randn(40, 5) * 3 + 1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    tokens = torch.randn(7, 5)
    torch.testing.assert_close(_folded(norm, conv.weight, conv.bias)(tokens), conv(norm.eval()(tokens)))


def test_it_learns_classes_that_a_line_divides_whatever_the_scale_and_repeats_itself():
    tokens = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 1, 1, 3)) * 50 + 100).float()
    labels = [np.full((4, 4), one[0, 0, 0] > 100, np.uint8) for one in tokens]
    labels[0][:] = VOID  # an image without labels does no harm
    fits = [fit_linear(lambda index: tokens[index], labels, 2, seed=1, iters=150) for _ in range(2)]
    right = (fits[0](tokens).argmax(-1) == 1) == (tokens[..., 0] > 100)
    assert right.float().mean() > 0.8  # the threshold is still on its way
    assert torch.equal(fits[0].weight, fits[1].weight)
