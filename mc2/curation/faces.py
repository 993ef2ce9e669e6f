"""A filter that makes faces unrecognisable, with the detector that OpenCV 4 ships: an example of the hook, which works without a download.

The detector (Haar features, Viola and Jones 2001) finds most frontal faces and few others, and now and then one where there is none. For a release of images
plug in a better one in the same way.
"""

from __future__ import annotations

import importlib
import io
import warnings
from typing import Any, TypeAlias, final

import numpy as np
from PIL import Image, ImageOps

from mc2.curation.filters import KEEP, PairFilter, Verdict
from mc2.curation.images import image_format
from mc2.records import Pair

Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom in pixels

_CELLS = 5  # a blurred face has as many colours along each edge
_SEARCH_EDGE = 1024  # larger images are searched in a copy of this size


@final
class BlurFaces(PairFilter):
    """Blurs every face it finds, the stronger the larger: 5 x 5 colours remain of it. An image without faces keeps its bytes.

    A changed image is encoded again in its own format, upright and without EXIF data, whose thumbnail would still show the face.

    Args:
        margin: Share of a face's edge that is blurred around it on each side.
        min_share: Faces smaller than this share of the image's shorter edge are not looked for.
        quality: Of the JPEG or WebP that is written.
    """

    def __init__(self, margin: float = 0.2, min_share: float = 0.05, quality: int = 95) -> None:
        for name, value, most in (("margin", margin, 1.0), ("min_share", min_share, 1.0), ("quality", quality, 100)):
            if not 0 <= value <= most:
                raise ValueError(f"blur faces: found {name} {value}, need 0 to {most:g}")
        self.margin, self.min_share, self.quality = margin, min_share, quality
        self.detector, self.version = _load_detector()

    @property
    def identity(self) -> str:
        return f"mc2 blur faces 1 (margin {self.margin}, min_share {self.min_share}, quality {self.quality}, OpenCV {self.version})"

    def __call__(self, pair: Pair) -> Verdict:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF data
            image = Image.open(io.BytesIO(pair.image or b""))
            kind, icc_profile = image_format(image), image.info.get("icc_profile")
            upright = ImageOps.exif_transpose(image)
            picture = upright.convert("RGBA" if kind != "JPEG" and upright.has_transparency_data else "RGB")
        faces = self.faces(picture)
        if not faces:
            return KEEP
        for face in faces:
            blur(picture, face)
        file = io.BytesIO()
        picture.save(file, kind, quality=self.quality, icc_profile=icc_profile)
        return Verdict(image=file.getvalue())

    def faces(self, image: Image.Image) -> list[Box]:
        """Boxes around the faces, margin included, inside the image."""
        shrink = max(1.0, max(image.size) / _SEARCH_EDGE)
        small = image.convert("L").resize((max(1, round(image.width / shrink)), max(1, round(image.height / shrink))), Image.Resampling.BOX)
        least = max(20, round(self.min_share * min(small.size)))
        found = self.detector.detectMultiScale(np.asarray(small), scaleFactor=1.1, minNeighbors=6, minSize=(least, least))
        return sorted(self._box(face, shrink, image.size) for face in np.asarray(found).reshape(-1, 4).tolist())

    def _box(self, face: list[int], shrink: float, size: tuple[int, int]) -> Box:
        left, top, width, height = (value * shrink for value in face)
        x, y = self.margin * width, self.margin * height
        return (
            max(0, round(left - x)),
            max(0, round(top - y)),
            min(size[0], round(left + width + x)),
            min(size[1], round(top + height + y)),
        )


def blur(image: Image.Image, box: Box) -> None:
    """Replace a box of the image by 5 x 5 colours that run into each other."""
    part = image.crop(box)
    image.paste(part.resize((_CELLS, _CELLS), Image.Resampling.BOX).resize(part.size, Image.Resampling.BICUBIC), box)


def _load_detector() -> tuple[Any, str]:
    """The detector, and the version of OpenCV. Errors: ValueError without OpenCV 4."""
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        raise ValueError("blur faces: the package opencv-python-headless is missing; install it with `pip install 'mc2[faces]'`") from error
    if not hasattr(cv2, "CascadeClassifier"):
        raise ValueError(
            f"blur faces: found OpenCV {cv2.__version__}, which ships no face detector, need version 4; install it with `pip install 'mc2[faces]'`"
        )
    cv2.setNumThreads(1)  # workers are processes; and candidates come in one order
    return cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml"), str(cv2.__version__)
