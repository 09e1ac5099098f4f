"""Class shares of patches, and which images and patches a probe sees."""

from itertools import pairwise

import numpy as np
import pytest

from addp_backbone.files.mask_areas import VOID
from experiments.probes.patches import choose_images, choose_patches, class_shares, to_targets


def test_shares_are_those_of_a_loop_over_fine_pixels_also_where_patches_cut_pixels():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, VOID], (5, 7)).astype(np.uint8)
    grid, factor = (2, 3), 6  # each pixel as 6 x 6 fine ones: 30 x 42, which the grid divides
    fine = labels.repeat(factor, 0).repeat(factor, 1)
    height, width = fine.shape[0] // grid[0], fine.shape[1] // grid[1]
    shares = class_shares(labels, grid, 3)
    for row in range(grid[0]):
        for column in range(grid[1]):
            patch = fine[row * height : (row + 1) * height, column * width : (column + 1) * width]
            wanted = [(patch == index).mean() for index in range(3)]
            np.testing.assert_allclose(shares[row, column], wanted, atol=1e-6)


def test_a_patch_counts_if_more_than_half_of_it_is_labelled_and_its_target_sums_to_1():
    labels = np.full((4, 8), VOID, np.uint8)
    labels[:, :2] = 1  # half of the first patch
    labels[:3, 4:] = [[0, 1, 1, 1]] * 3  # three quarters of the second
    targets, usable = to_targets(class_shares(labels, (1, 2), 2))
    assert usable.tolist() == [[False, True]]
    np.testing.assert_allclose(targets[0, 1], [0.25, 0.75])


def test_a_smaller_label_fraction_lies_within_a_larger_one_of_its_seed():
    chosen = [set(choose_images(97, fraction, seed=3).tolist()) for fraction in (0.01, 0.05, 0.1, 0.25, 1)]
    assert [len(images) for images in chosen] == [1, 5, 10, 25, 97]
    assert all(small < large for small, large in pairwise(chosen))
    assert chosen[2] != set(choose_images(97, 0.1, seed=4).tolist())


def test_a_fraction_that_gives_a_whole_number_of_images_is_not_rounded_up():
    assert len(choose_images(10, 0.7, 0)) == 7  # 0.7 * 10 is 7.000000000000001


def test_a_fraction_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r'must lie in \(0, 1\], got 1.5'):
        choose_images(10, 1.5, 0)


def test_patches_are_drawn_without_replacement_and_all_are_taken_if_they_are_few():
    drawn = choose_patches(50, 20, 0)
    assert len(set(drawn.tolist())) == 20 and drawn.max() < 50
    assert choose_patches(10, 20, 0).tolist() == list(range(10))
