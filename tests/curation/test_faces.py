"""Faces are blurred: on the portrait that matplotlib ships, and nothing else is touched."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from mc2.curation.faces import BlurFaces, blur
from mc2.curation.filters import KEEP, Verdict
from mc2.records import Pair
from tests.curation.pools import image_file, picture

PORTRAIT = Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"
EYES = (190, 190, 330, 240)  # by eye


def opencv_version() -> str:
    try:
        return str(importlib.import_module("cv2").__version__)
    except ImportError:
        return "none"


needs_opencv_4 = pytest.mark.skipif(
    not opencv_version().startswith("4."), reason=f"OpenCV 4 ships a face detector, here is {opencv_version()}"
)


def portrait(kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.open(PORTRAIT).convert(mode).save(file, kind, **options)
    return file.getvalue()


def opened(verdict: Verdict) -> Image.Image:
    assert verdict.image is not None
    return Image.open(io.BytesIO(verdict.image))


def detail(image: Image.Image, box: tuple[int, int, int, int] = EYES) -> float:
    """Mean step from pixel to pixel."""
    return float(np.abs(np.diff(np.asarray(image.convert("L").crop(box), np.float64), axis=1)).mean())


@needs_opencv_4
@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB")])
def test_a_face_is_blurred_and_the_rest_stays(kind: str, mode: str) -> None:
    data = portrait(kind, mode)
    before, after = Image.open(io.BytesIO(data)), opened(BlurFaces()(Pair("a", ("a portrait",), data)))
    assert (after.format, after.size) == (kind, before.size)
    assert detail(after) < 0.15 * detail(before)
    assert detail(after, (0, 0, 100, 600)) == pytest.approx(detail(before, (0, 0, 100, 600)), rel=0.05)
    assert BlurFaces().faces(after.convert("RGB")) == []


@needs_opencv_4
def test_the_second_picture_of_a_telephone_is_lost() -> None:
    """It shows the face once more."""
    data = portrait("MPO", save_all=True, append_images=[Image.open(PORTRAIT)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    blurred = opened(BlurFaces()(Pair("a", ("a portrait",), data)))
    assert blurred.format == "JPEG"
    assert detail(blurred) < 0.2 * detail(Image.open(PORTRAIT))


@needs_opencv_4
def test_the_blur_grows_with_the_face_and_the_bytes_repeat() -> None:
    [(left, top, right, bottom)] = BlurFaces().faces(Image.open(PORTRAIT))
    large = Image.open(PORTRAIT).resize((1536, 1800))
    [box] = BlurFaces().faces(large)
    assert box == pytest.approx((3 * left, 3 * top, 3 * right, 3 * bottom), abs=60)
    pair = Pair("a", ("a portrait",), portrait())
    assert BlurFaces()(pair) == BlurFaces()(pair)


@needs_opencv_4
def test_the_thumbnail_in_the_exif_data_is_lost_and_a_turned_image_is_turned_back() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    Image.open(PORTRAIT).rotate(90, expand=True).save(file, "JPEG", exif=exif)
    after = opened(BlurFaces()(Pair("a", ("a portrait",), file.getvalue())))
    assert (after.size, dict(after.getexif())) == ((512, 600), {})
    assert detail(after) < 0.15 * detail(Image.open(PORTRAIT))


@needs_opencv_4
def test_images_without_faces_keep_their_bytes() -> None:
    judge = BlurFaces()
    for image in [*(image_file(seed, (256, 256)) for seed in range(3)), image_file(size=(1, 1), kind="PNG")]:
        assert judge(Pair("a", ("noise",), image)) is KEEP


def test_what_is_left_of_a_box_are_five_by_five_colours() -> None:
    image = picture(0).copy()
    image.paste(Image.effect_noise((200, 200), 200), (100, 100))
    outside = np.asarray(image)[:100]
    blur(image, (100, 100, 300, 300))
    assert np.array_equal(np.asarray(image)[:100], outside)
    assert detail(image, (100, 100, 300, 300)) < 1


@needs_opencv_4
@pytest.mark.parametrize("settings", [{"margin": -0.1}, {"min_share": 2.0}, {"quality": 101}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"blur faces: found {next(iter(settings))}"):
        BlurFaces(**settings)  # type: ignore[arg-type]


def test_without_a_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__version__="5.0.0"))
    with pytest.raises(
        ValueError,
        match=r"found OpenCV 5\.0\.0, which ships no face detector, need version 4; install it with `pip install 'mc2\[faces\]'`",
    ):
        BlurFaces()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"opencv-python-headless is missing; install it with `pip install 'mc2\[faces\]'`"):
        BlurFaces()
