"""Labels of turned photographs: were they made on the image as shown, or on the pixels as stored?

Images are read as a viewer shows them. Some labelling tools ignore the EXIF orientation, so that their boxes and masks
lie in the frame of the stored pixels. Where the orientation exchanges width and height of an oblong image, the size in
the labels tells; elsewhere nobody but a person can.
"""

from __future__ import annotations

from addp_backbone.files.images import ImageInfo

TURNED = (
    'orientation {}: labels must be those of the image as a viewer shows it, which its size does not tell here; look '
    'at an overlay, and remove the orientation from the file if they are those of the stored pixels'
)


def may_be_labelled_as_stored(info: ImageInfo) -> bool:
    """Whether labels of the right size may nevertheless be those of the stored pixels."""
    return info.orientation != 1 and (not info.transposed or info.width == info.height)


def turned_hint(info: ImageInfo) -> str:
    """What explains that labels have another size than the image; empty if its orientation does not exchange sides."""
    if not info.transposed:
        return ''
    return (
        f'; EXIF orientation {info.orientation} turns it, the stored pixels are {info.height} x {info.width}: label '
        'the image as shown, or remove the orientation from the file'
    )
