"""JPEGs left as files for the GPU, with the CPU in its place: torchvision decodes there by the same call."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mc2.data import gpu_decode, shard_data
from mc2.data.batch import PairBatch
from mc2.data.datamodule import ShardDataModule
from mc2.data.gpu_decode import GpuDecoder, can_decode, joined, left_to_gpu
from mc2.data.loader import CPU, Loader
from mc2.data.preprocess import ImagePreprocess
from mc2.data.views import ViewConfig, Views
from tests.data.shards import jpeg, record, write_tar

SMALL = ImagePreprocess(image_size=16, scale=(0.5, 1.0))


def encoded(width: int, height: int, form: str = "JPEG", mode: str = "RGB") -> bytes:
    colours = np.random.default_rng(width).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, form)
    return file.getvalue()


def without_segment(data: bytes, marker: int) -> bytes:
    """A JPEG without its segments of one kind: header and end stay as they are."""
    found, at = data[:2], 2
    while data[at + 1] != 0xDA:  # the scan
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found, at = found + (b"" if data[at + 1] == marker else data[at:end]), end
    return found + data[at:]


BROKEN = without_segment(jpeg(3, 40, 30), 0xDB)  # no quantization tables


def completed(files: list[bytes], preprocess: ImagePreprocess = SMALL) -> tuple[torch.Tensor, Counter[str]]:
    """The images of a batch of files alone, each cropped by its number as the seed."""
    left = {row: left_to_gpu(data, preprocess, seed=row) for row, data in enumerate(files)}
    crops = {row: file for row, file in left.items() if file}
    assert len(crops) == len(files)
    black = torch.zeros(len(files), 3, preprocess.image_size, preprocess.image_size, dtype=torch.uint8)
    batch = PairBatch(black, torch.zeros(len(files), 2, dtype=torch.int32), [""] * len(files), [str(row) for row in crops])
    drops: Counter[str] = Counter()
    return GpuDecoder(preprocess, CPU).completed(batch, joined(crops), Views(), drops).image, drops


def test_pixels_are_those_of_the_workers() -> None:
    files = [encoded(40, 30), encoded(31, 64, mode="L"), encoded(600, 400), jpeg(7, 16, 16)]
    found, drops = completed(files)
    assert not drops
    for row, data in enumerate(files):
        expected = SMALL.train(data, row)
        difference = (found[row].int() - expected.int()).abs()
        if row == 2:  # a worker decodes it at an eighth of its size, where the edges of the crop fall on other pixels
            assert difference.float().mean() < 3
        else:
            assert difference.max() <= 1


def test_what_is_left_to_the_gpu() -> None:
    plain = encoded(40, 30)
    for data in (plain, plain + bytes(100)):
        assert left_to_gpu(data, SMALL, 5) == (data, 1200, SMALL.drawn_crop(40, 30, 5))
    for other in (encoded(40, 30, "PNG"), encoded(40, 30, mode="CMYK"), plain[:-60], plain[:10], b"", encoded(2500, 2000)):
        assert left_to_gpu(other, SMALL, 5) is None
    assert left_to_gpu(plain, replace(SMALL, max_pixels=1199), 5) is None  # it is huge_image, whoever decodes


def test_not_all_pictures_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [encoded(40, 30)] * 5
    expected, _ = completed(files)
    whole, calls = gpu_decode.decode_jpegs, list[int]()

    def counted(files: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        calls.append(len(files))
        return whole(files, device)

    monkeypatch.setattr(gpu_decode, "decode_jpegs", counted)
    monkeypatch.setattr(gpu_decode, "PIXELS_AT_ONCE", 2 * 1200)
    assert torch.equal(completed(files)[0], expected)
    monkeypatch.setattr(gpu_decode, "PIXELS_AT_ONCE", 1200)
    assert torch.equal(completed(files)[0], expected)
    assert calls == [2, 2, 1, 1, 1, 1, 1, 1]


def test_what_the_gpu_refuses_is_decoded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [encoded(40, 30), encoded(600, 400)]
    expected, _ = completed(files)

    def refuse(*_: object) -> None:
        raise RuntimeError("nvJPEG: not supported")

    monkeypatch.setattr(gpu_decode, "decode_jpegs", refuse)
    found, drops = completed(files)
    assert not drops
    assert (found.int() - expected.int()).abs().max() <= 1


def test_what_nobody_can_decode_is_counted_and_its_row_is_grey() -> None:
    good = encoded(40, 30)
    found, drops = completed([good, BROKEN, good])
    assert drops == {"broken_image": 1}
    assert [channel.unique().tolist() for channel in found[1]] == [[round(255 * mean)] for mean in SMALL.mean]
    for row in (0, 2):
        assert (found[row].int() - SMALL.train(good, row).int()).abs().max() <= 1
    with pytest.raises(
        ValueError, match=r"^data\.gpu_decode: found no image of a batch that can be decoded \(0, 1 \.\.\.\); look at the shards$"
    ):
        completed([BROKEN, BROKEN])


# --- the whole way ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain tars with JPEGs of many sizes, other formats and broken files among them."""
    folder = tmp_path_factory.mktemp("shards")
    odd = {3: encoded(40, 30, "PNG"), 9: encoded(40, 30, mode="CMYK"), 14: b"no image", 21: encoded(40, 30)[:-80], 30: b"GIF89a"}
    for shard in range(4):
        pairs = range(10 * shard, 10 * shard + 10)
        members = [record(f"{n:03d}", f"number {n}".encode(), odd.get(n, jpeg(n, 20 + n, 60 - n))) for n in pairs]
        write_tar(folder / f"{shard}.tar", [file for pair in members for file in pair])
    return folder


def loader(shards: Path, tokenizer: Path, **settings: Any) -> Loader:
    defaults: dict[str, Any] = {"batch_size": 6, "steps_per_epoch": 10, "shuffle_shards": 2, "shuffle_block": 3, "preprocess": SMALL}
    module = ShardDataModule(str(shards), str(tokenizer), **{**defaults, **settings})
    module.open()
    module.show({"teacher": ViewConfig(24, None, 77)})
    return module.loader(0, 1, CPU)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_workers(shards: Path, tokenizer_folder: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loader(shards, tokenizer_folder, num_workers=num_workers)
    expected = list(islice(plain, 10))
    monkeypatch.setattr(shard_data, "can_decode", lambda _: True)
    left: list[int] = []
    whole = GpuDecoder.completed

    def counted(decoder: GpuDecoder, batch: PairBatch, files: gpu_decode.Files, *rest: Any) -> PairBatch:
        left.append(len(files.rows))
        return whole(decoder, batch, files, *rest)

    monkeypatch.setattr(GpuDecoder, "completed", counted)
    ours = loader(shards, tokenizer_folder, num_workers=num_workers, gpu_decode=True)
    found = list(islice(ours, 3))
    state = ours.state_dict()
    resumed = loader(shards, tokenizer_folder, num_workers=num_workers, gpu_decode=True)
    resumed.load_state_dict(state)
    found += islice(resumed, 7)
    assert sum(left) > 40
    for batch, other in zip(found, expected, strict=True):
        assert (batch.keys, batch.languages) == (other.keys, other.languages)
        assert torch.equal(batch.tokens, other.tokens)
        assert (batch.image.shape, batch.view("teacher").image.shape) == ((6, 3, 16, 16), (6, 3, 24, 24))
        for name in ("", "teacher"):
            assert (batch.view(name).image.int() - other.view(name).image.int()).abs().float().mean() < 1.0
    assert ours.tally.drops + resumed.tally.drops == plain.tally.drops


def test_without_nvjpeg_the_workers_decode(shards: Path, tokenizer_folder: Path) -> None:
    assert not can_decode(CPU)
    with pytest.warns(UserWarning, match=r"^data\.gpu_decode: torchvision has no nvJPEG for cpu; the workers decode, as without it$"):
        fallen_back = loader(shards, tokenizer_folder, gpu_decode=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = loader(shards, tokenizer_folder)
    for batch, other in zip(islice(fallen_back, 3), islice(plain, 3), strict=True):
        assert torch.equal(batch.image, other.image)
