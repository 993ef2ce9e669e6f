"""What curation asks of an encoded image before it is decoded."""

from __future__ import annotations

from PIL import Image

PACKED_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # in training shards: Pillow's name -> extension


def image_format(image: Image.Image) -> str:
    """Pillow's name of an opened image's format. A JPEG with more pictures behind the first, as telephones write it, is a JPEG (Pillow: MPO)."""
    return "JPEG" if image.format == "MPO" else str(image.format)


def check_max_pixels(found: int) -> None:
    """Errors: ValueError for a limit below 1 or above Pillow's own, beyond which it decodes nothing."""
    if not 0 < found <= (Image.MAX_IMAGE_PIXELS or found):
        raise ValueError(f"max_pixels: found {found}, need between 1 and {Image.MAX_IMAGE_PIXELS}, Pillow's limit")
