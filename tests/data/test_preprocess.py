"""Evaluation against open_clip, the random crop against torchvision, and images that are none."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop, functional

from mc2.data.preprocess import BrokenImage, HugeImage, ImagePreprocess, random_crop
from mc2.storage import keyed_uniforms
from tests.data.shards import jpeg


def picture(mode: str, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("resize_mode", ["crop", "squash"])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (224, 224), (97, 433), (1, 1000), (1000, 1), (5, 3)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1"])
def test_evaluation_equals_open_clip(mode: str, width: int, height: int, resize_mode: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    image = picture(mode, width, height)
    ours = ImagePreprocess(mode="squash" if resize_mode == "squash" else "crop")
    theirs = open_clip.image_transform(224, is_train=False, resize_mode="squash" if resize_mode == "squash" else "shortest")(image)
    pixels = ours.evaluate(image)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 224, 224)
    normalised = (pixels / 255 - torch.tensor(ours.mean)[:, None, None]) / torch.tensor(ours.std)[:, None, None]
    torch.testing.assert_close(normalised, theirs, rtol=0, atol=1e-6)


def exif_rotated() -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to look at it
    picture("RGB", 120, 70).save(file, "JPEG", exif=exif)
    return file.getvalue()


def sixteen_bits() -> bytes:
    grey = np.random.default_rng(0).integers(0, 2**16, (70, 120), dtype=np.uint16)
    return encoded(Image.fromarray(grey), "PNG")


@pytest.mark.parametrize("resize_mode", ["crop", "squash"])
@pytest.mark.parametrize("make", [exif_rotated, sixteen_bits])
def test_evaluation_of_a_file_equals_open_clip(make: Callable[[], bytes], resize_mode: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    squash = resize_mode == "squash"
    theirs = open_clip.image_transform(64, is_train=False, resize_mode="squash" if squash else "shortest", mean=(0, 0, 0), std=(1, 1, 1))
    ours = ImagePreprocess(image_size=64, mode="squash" if squash else "crop").evaluate(make())
    torch.testing.assert_close(ours / 255, theirs(Image.open(io.BytesIO(make()))), rtol=0, atol=1e-6)


def test_a_strip_is_not_resized_as_a_whole() -> None:
    image = picture("RGB", 1, 1000)
    whole = ImagePreprocess(image_size=32).evaluate(image).int()
    part = ImagePreprocess(image_size=32, max_pixels=10_000).evaluate(image).int()  # the whole would have 1,024,000
    assert (whole - part).abs().max() <= 3


def test_training_is_a_crop_resized_bicubically() -> None:
    data = encoded(picture("RGB", 90, 70), "PNG")
    preprocess = ImagePreprocess(image_size=48)
    for seed in range(20):
        draws = iter(splitmix(seed))
        left, top, right, bottom = random_crop(90, 70, preprocess.scale, preprocess.ratio, draws)
        crop = Image.open(io.BytesIO(data)).crop((left, top, right, bottom)).resize((48, 48), Image.Resampling.BICUBIC)
        ours = preprocess.train(data, seed)
        assert ours.shape == (3, 48, 48)
        assert ours.is_contiguous()
        assert (ours.int() - functional.pil_to_tensor(crop).int()).abs().max() <= 1


def splitmix(seed: int) -> list[float]:
    """The draws of a crop: `keyed_uniforms` is the same generator, so its sequence is found again from its state."""
    z, draws = seed, []
    for _ in range(40):
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        x = np.array([z], dtype=np.uint64)
        with np.errstate(over="ignore"):
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
        draws.append(int(x[0] >> np.uint64(11)) / 2**53)
    return draws


def test_the_seed_alone_draws_the_crop() -> None:
    preprocess, data = ImagePreprocess(image_size=16), jpeg(1, 60, 50)
    assert torch.equal(preprocess.train(data, 5), preprocess.train(preprocess.decode(data), 5))
    assert not torch.equal(preprocess.train(data, 5), preprocess.train(data, 6))


@pytest.mark.parametrize(("width", "height"), [(400, 400), (400, 300), (1000, 100)])
def test_crops_are_distributed_as_in_torchvision(width: int, height: int) -> None:
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)], dtype=float)
    boxes = np.array(
        [
            random_crop(width, height, (0.5, 1.0), (3 / 4, 4 / 3), iter(keyed_uniforms(0, "t", 0, str(i), range(40)).tolist()))
            for i in range(2000)
        ],
        dtype=float,
    )
    ours = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1)  # top, left, height, width
    tolerance = 5 * np.maximum(theirs.std(0), ours.std(0)) * math.sqrt(2 / 2000) + 1e-9
    assert (np.abs(theirs.mean(0) - ours.mean(0)) <= tolerance).all()
    np.testing.assert_allclose(theirs.std(0), ours.std(0), rtol=0.1, atol=1e-9)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("image_size", "size", "shrink"), [(224, (512, 512), 2), (240, (512, 512), 1), (48, (251, 203), 2), (8, (251, 203), 8)]
)
def test_a_decoded_jpeg_has_the_pixels_of_pil(image_size: int, size: tuple[int, int], shrink: int, mode: str, subsampling: int) -> None:
    file = io.BytesIO()
    landscape(*size).convert(mode).save(file, "JPEG", quality=85, subsampling=subsampling)
    image = Image.open(file)
    image.draft(None, (size[0] // shrink, size[1] // shrink))
    pixels = ImagePreprocess(image_size=image_size).decode(file.getvalue())
    assert torch.equal(pixels, torch.from_numpy(np.array(image.convert("RGB"))))
    assert len(pixels) == -(-size[1] // shrink)


def landscape(width: int, height: int) -> Image.Image:
    """Smooth and rough parts, as a photograph has."""
    rng = np.random.default_rng(width)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC), float
        )
        for n in (4, 16, 64)
    ]
    return Image.fromarray(np.clip(0.6 * layers[0] + 0.3 * layers[1] + 0.1 * layers[2], 0, 255).astype(np.uint8))


def test_a_jpeg_decoded_at_half_its_size_is_nearly_what_the_whole_gives() -> None:
    preprocess, data = ImagePreprocess(), encoded(landscape(512, 512), "JPEG")
    for seed in range(5):
        left, top, right, bottom = random_crop(256, 256, preprocess.scale, preprocess.ratio, iter(splitmix(seed)))
        box = (2 * left, 2 * top, 2 * right, 2 * bottom)
        whole = Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.BICUBIC, box=box)
        difference = preprocess.train(data, seed).int() - functional.pil_to_tensor(whole).int()
        assert difference.abs().float().mean() < 1
        assert difference.abs().max() < 12


def test_no_crop_is_enlarged_because_the_jpeg_was_decoded_small() -> None:
    rng = np.random.default_rng(0)
    for _ in range(120):
        size, (width, height) = int(rng.integers(8, 65)), rng.integers(16, 700, 2).tolist()
        scale, ratio = sorted(rng.uniform(0.05, 1, 2).tolist()), sorted(np.exp(rng.uniform(-1.5, 1.5, 2)).tolist())
        preprocess = ImagePreprocess(image_size=size, scale=(scale[0], scale[1]), ratio=(ratio[0], ratio[1]))
        pixels = preprocess.decode(jpeg(1, width, height))
        assert max(width, height) / max(pixels.shape) <= 8
        for draw in range(20):
            box = random_crop(pixels.shape[1], pixels.shape[0], preprocess.scale, preprocess.ratio, iter(splitmix(draw)))
            assert pixels.shape[:2] == (height, width) or min(box[2] - box[0], box[3] - box[1]) >= size


@pytest.mark.parametrize("place", [180, 300, 620, 660])
def test_pil_decides_about_a_jpeg_with_a_defect(place: int) -> None:
    data = bytearray(jpeg(3, 64, 64))
    data[place : place + 4] = b"\xff\xd3\x00\x17"
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except OSError:
        with pytest.raises(BrokenImage, match="image: "):
            ImagePreprocess().decode(bytes(data))
    else:
        assert torch.equal(ImagePreprocess().decode(bytes(data)), torch.from_numpy(np.array(image)))


def test_a_jpeg_is_decoded_at_the_scale_that_is_needed() -> None:
    preprocess = ImagePreprocess(image_size=64)
    assert preprocess.decode(jpeg(0, 640, 480)).shape == (120, 160, 3)
    assert preprocess.decode(jpeg(0, 96, 96)).shape == (96, 96, 3)
    assert preprocess.train(jpeg(0, 640, 480), 0).shape == (3, 64, 64)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_modes_of_jpeg(mode: str) -> None:
    assert ImagePreprocess(image_size=32).train(encoded(picture(mode, 50, 50), "JPEG"), 0).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("PPM", "RGB"),
        ("AVIF", "RGB"),
        ("PNG", "P"),
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
        ("TIFF", "RGB"),
    ],
)
def test_other_formats_under_the_name_of_a_jpeg(kind: str, mode: str) -> None:
    data = encoded(picture("L", 50, 40).convert("I;16") if mode == "I;16" else picture(mode, 50, 40), kind)
    assert ImagePreprocess(image_size=32).train(data, 0).shape == (3, 32, 32)
    assert ImagePreprocess(image_size=32).evaluate(data).shape == (3, 32, 32)


@pytest.mark.parametrize("data", [b"", b"not an image", jpeg()[:200], jpeg()[:-300], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_broken_images(data: bytes) -> None:
    with pytest.raises(BrokenImage, match="image: "):
        ImagePreprocess().train(data, 0)
    with pytest.raises(BrokenImage, match="image: "):
        ImagePreprocess().evaluate(data)


def test_mutated_images_are_decoded_or_refused() -> None:
    preprocess, whole, rng = ImagePreprocess(image_size=16), jpeg(3, 64, 64), np.random.default_rng(0)
    for kind in (whole, encoded(picture("RGB", 32, 32), "PNG"), encoded(picture("P", 32, 32), "GIF")):
        for _ in range(100):
            data = bytearray(kind)
            for place in rng.integers(0, len(data), 3):
                data[place] = int(rng.integers(256))
            try:
                assert preprocess.train(bytes(data), 0).shape == (3, 16, 16)
            except (BrokenImage, HugeImage):
                continue


def test_a_huge_image_is_refused_from_its_header() -> None:
    data = encoded(Image.new("1", (30_000, 30_000)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(HugeImage, match="image: "):
            ImagePreprocess().train(data, 0)
    with pytest.raises(HugeImage, match="found 24 x 20 pixels, need at most 400"):
        ImagePreprocess(max_pixels=400).evaluate(jpeg())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size 0"),
        ({"mode": "stretch"}, "mode 'stretch'"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"std": (0, 1, 1)}, "std"),
        ({"max_pixels": 0}, "max_pixels 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagePreprocess(**settings)  # type: ignore[arg-type]
