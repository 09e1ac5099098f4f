"""A short training of TimmViT, unbroken and resumed."""

from __future__ import annotations

from pathlib import Path

import torch
from running import logged_losses, run_tool
from small_configs import write_timm_leaf


def check_that_a_resume_changes_no_loss(model: str, data: Path, folder: Path) -> None:
    """Trains a TimmViT in bfloat16, unbroken and resumed; a frozen block stays."""
    leaf = write_timm_leaf(model, data, folder)
    run_tool('train', leaf, '--amp', '--work-dir', folder / 'whole')
    run_tool('train', leaf, '--amp', '--work-dir', folder / 'cut', options=('train_cfg.max_iters=2',))
    run_tool('train', leaf, '--amp', '--work-dir', folder / 'cut', '--resume')
    whole, cut = logged_losses(folder / 'whole'), logged_losses(folder / 'cut')
    assert whole.keys() == cut.keys() == {1, 2, 3, 4}
    assert [whole[i]['loss'] for i in (3, 4)] == [cut[i]['loss'] for i in (3, 4)]
    before, after = (torch.load(folder / 'whole' / f'iter_{i}.pth', weights_only=False)['state_dict'] for i in (2, 4))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert 'backbone.vit.blocks.1.mlp.fc1.weight' in moved or 'backbone.vit.blocks.1.mlp.fc1_g.weight' in moved
    assert not any(name.startswith(('backbone.vit.blocks.0.', 'backbone.vit.patch_embed')) for name in moved), 'frozen'
