"""Class maps of large images: the same as mmseg's, in memory for a band of rows."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch.nn import functional as F

from addp_backbone.networks import tiled_segmentor
from addp_backbone.networks.tiled_segmentor import TiledEncoderDecoder, class_map_in_bands


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(40, 60), (7, 5), (13, 200), (1, 1)])
@pytest.mark.parametrize('rows', [1, 3, 1000])
def test_bands_give_the_classes_of_the_whole(size: tuple[int, int], rows: int, align_corners: bool) -> None:
    logits = torch.randn(6, 13, 11, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], size, mode='bilinear', align_corners=align_corners)[0]
    found = class_map_in_bands(logits, size, align_corners, band_bytes=rows * 6 * size[1] * 4)
    best, second = whole.topk(2, dim=0).values
    clear = best - second > 1e-5
    assert found.dtype == torch.int16 and torch.equal(found[clear].long(), whole.argmax(0)[clear])
    assert clear.float().mean() > 0.99


class Bare(TiledEncoderDecoder):
    """The segmentor without a network."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.align_corners, self.test_cfg, self.out_channels = False, ConfigDict(mode='whole'), 6


def sample(**meta: object) -> SegDataSample:
    return SegDataSample(metainfo=dict(ori_shape=(30, 50), padding_size=[0, 3, 0, 2], **meta))


def test_a_large_image_gets_mmsegs_class_map_without_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 6, 14, 17, generator=torch.Generator().manual_seed(0))
    expected = EncoderDecoder.postprocess_result(Bare(), logits, [sample(), sample()])
    same = Bare().postprocess_result(logits, [sample(), sample()])
    assert torch.equal(same[1].seg_logits.data, expected[1].seg_logits.data)
    monkeypatch.setattr(tiled_segmentor, 'MAX_LOGITS_BYTES', 1000)
    found = Bare().postprocess_result(logits, [sample(), sample()])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.pred_sem_seg.data.long(), other.pred_sem_seg.data) and 'seg_logits' not in one


def test_logits_that_do_not_fit_are_refused_with_the_figure_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiled_segmentor, '_free_bytes', lambda device: 1e4)
    with pytest.raises(MemoryError, match=r'6 classes for 3000 x 2000 pixels take 0\.3 GB in 2 copies'):
        Bare().inference(torch.empty(1, 3, 2000, 3000, device='meta'), [])
    with pytest.raises(MemoryError, match=r'6 classes for 50 x 30 pixels'):
        Bare().postprocess_result(torch.zeros(1, 6, 14, 17), [sample(flip=False)])
