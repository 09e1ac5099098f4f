"""A model of each further family of timm trains and resumes; the suite has one of family eva."""

from __future__ import annotations

import pytest
from timm_training import check_that_a_resume_changes_no_loss


@pytest.mark.parametrize('model', ['test_vit', 'test_vit_relpos'])
def test_losses_in_bfloat16_after_a_resume_equal_the_unbroken_run(model, tiny_ade, tmp_path):
    check_that_a_resume_changes_no_loss(model, tiny_ade, tmp_path)
