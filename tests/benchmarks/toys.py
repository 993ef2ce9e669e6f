"""Small stand-ins for the tests: a task of coloured squares, a tokenizer of characters, linear towers in a LightningModule, and their data
module.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mc2.benchmarks.tasks import TaskFolder, write_task_folder
from mc2.data.preprocess import ImagePreprocess

SIZE, DIM, PAD = 8, 16, 1


def square(label: int, shade: int = 0) -> bytes:
    """A PNG of random pixels, drawn by class and shade."""
    pixels = np.random.default_rng([label, shade]).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def toy_names(num_classes: int) -> list[tuple[str, int, str]]:
    """Three languages: German with synonyms, Japanese without class 1, English with one name for classes 0 and 2."""
    names = [("de", c, f"das Ding {'x' * c}") for c in range(num_classes)] + [("de", 2, "Zweites"), ("de", 0, "Nulltes")]
    names += [("ja", c, f"物{c}") for c in range(num_classes) if c != 1]
    return names + [("en", c, "thing" if c in (0, 2) else f"thing {c} of all") for c in range(num_classes)]


def write_toy_task(folder: Path, num_images: int = 23, num_classes: int = 5) -> Path:
    """Images of all classes but the last, which stays a name without images."""
    images = [(f"image{i:03}", square(i % (num_classes - 1), i), i % (num_classes - 1)) for i in range(num_images)]
    groups, prompts = {"de": "seen", "en": "seen", "ja": "unseen"}, {"en": ["a photo of {}", "the {}"]}
    write_task_folder(folder, folder.name, images, toy_names(num_classes), groups, prompts)
    return folder


def toy_task(folder: Path, num_images: int = 23, num_classes: int = 5) -> TaskFolder:
    return TaskFolder(write_toy_task(folder, num_images, num_classes))


class CharacterTokenizer:
    """A text's code points modulo 97, then an end; padded with 1."""

    pad_id = PAD
    eos_id = 2

    def __call__(self, texts: Sequence[str], /) -> Tensor:
        rows = [[3 + ord(character) % 97 for character in text] + [2] for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


class ToyModule(LightningModule):
    """Linear towers with dropout between (so that the mode matters) and a frozen part that is always in eval mode. Counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.words, self.text = nn.Linear(3 * SIZE * SIZE, DIM), nn.Embedding(100, DIM), nn.Linear(DIM, DIM)
        self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()
        self.num_forwards = {"image": 0, "text": 0}
        self.num_texts = 0

    def encode_image(self, image: Tensor, /) -> Tensor:
        self.num_forwards["image"] += 1
        embedding: Tensor = self.dropout(self.vision(image.flatten(1) / 255.0 - 0.5))
        return embedding

    def encode_text(self, tokens: Tensor, /) -> Tensor:
        self.num_forwards["text"] += 1
        self.num_texts += len(tokens)
        mask = (tokens != PAD)[:, :, None]
        embedding: Tensor = self.dropout(self.text((self.words(tokens) * mask).sum(dim=1)))
        return embedding

    def training_step(self, batch: Tensor) -> Tensor:
        loss: Tensor = (self.encode_image(batch) - self.encode_text(torch.full((len(batch), 2), 5))).square().mean()
        return loss

    def validation_step(self, batch: Tensor) -> None:
        self.log("val/loss", self.training_step(batch), sync_dist=True)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ToyData(LightningDataModule):
    """Random images, and what a benchmark asks of a data module."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer, self.preprocess = CharacterTokenizer(), ImagePreprocess(image_size=SIZE)

    def train_dataloader(self) -> DataLoader[Tensor]:
        images = torch.randint(0, 256, (16, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return DataLoader(list(images), batch_size=4)  # type: ignore[arg-type]  # a list is a map from positions

    val_dataloader = test_dataloader = train_dataloader
