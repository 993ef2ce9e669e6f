"""Images and texts -> unit embeddings, shared out over all ranks.

Every rank makes the same number of forwards (under FSDP2 each is collective): a rank that has run out of work encodes something again and
throws it away. Every rank ends with all embeddings: each puts its rows into zeros and an all-reduce adds the ranks, so uneven shares need
no padding and no value changes (x + 0 = x).

Shapes: B images or texts of one forward, N images, T texts, L tokens, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from mc2.benchmarks.tasks import Task


@runtime_checkable
class Encoder(Protocol):
    """What a benchmark asks of a model; every forward may be collective."""

    def encode_image(self, image: Tensor, /) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, D)."""

    def encode_text(self, tokens: Tensor, /) -> Tensor:
        """Integer tokens (B, L) -> (B, D)."""


class TextTokenizer(Protocol):
    """Texts -> integer tokens (B, L), padded at the end with `pad_id` (which may be `eos_id`); each text as it would be alone."""

    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    def __call__(self, texts: Sequence[str], /) -> Tensor: ...


class ImageTransform(Protocol):
    """An encoded image file -> uint8 (3, H, W), the same every time."""

    def evaluate(self, image: bytes, /) -> Tensor: ...


@runtime_checkable
class Preprocessing(Protocol):
    """What a benchmark asks of a data module: how texts and images are prepared for the model."""

    @property
    def tokenizer(self) -> TextTokenizer: ...
    @property
    def preprocess(self) -> ImageTransform: ...


@runtime_checkable
class ManyStudents(Protocol):
    """A module that trains several models at once."""

    def student(self, name: str, /) -> tuple[Encoder, Preprocessing]:
        """One of them, with how texts and images are prepared for it. Errors: ValueError for a name that is none."""


def this_rank() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def encode_images(encoder: Encoder, preprocess: ImageTransform, task: Task, batch_size: int, device: torch.device) -> Tensor:
    """Unit fp32 embeddings (N, D) of a task's images, on every rank. Errors: ValueError that names an image that does not decode."""
    rank, world = this_rank()
    num_images = len(task.image_set.keys)
    batches = image_batches(task, preprocess, num_images * rank // world, num_images * (rank + 1) // world, batch_size)
    num_forwards = math.ceil(math.ceil(num_images / world) / batch_size)  # of the largest share
    return encode_share(encoder.encode_image, islice(batches, num_forwards), num_images, device)


def image_batches(task: Task, preprocess: ImageTransform, start: int, stop: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, images) of the share `start` to `stop`, read as they are needed; after it, without end, no row and the task's first image."""
    images = decoded_images(task, preprocess, start, stop)
    for first in range(start, stop, batch_size):
        rows = torch.arange(first, min(first + batch_size, stop))
        yield rows, torch.stack(list(islice(images, len(rows))))
    spare = torch.stack(list(decoded_images(task, preprocess, 0, 1)))
    while True:
        yield torch.arange(0), spare


def decoded_images(task: Task, preprocess: ImageTransform, start: int, stop: int) -> Iterator[Tensor]:
    """The images of a task as uint8 (3, H, W)."""
    for key, image in zip(task.image_set.keys[start:stop], task.image_set.read(start, stop), strict=True):
        try:
            yield preprocess.evaluate(image)
        except (ValueError, OSError) as error:
            raise ValueError(f"{task.name}: image {key!r} cannot be decoded ({error}); repair it or leave it out of the task") from error


def encode_texts(encoder: Encoder, tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int, device: torch.device) -> Tensor:
    """Unit fp32 embeddings (T, D), on every rank. Texts of like length share a forward of at most `max_tokens` tokens with padding."""
    rank, world = this_rank()
    tokens_TL = tokenizer(texts)
    num_ends = int(tokenizer.pad_id == tokenizer.eos_id)  # the first pad is the end then, and belongs to the text
    length_T = ((tokens_TL != tokenizer.pad_id).sum(dim=1) + num_ends).clamp(min=1)
    batches = length_batches(length_T, max_tokens)
    num_forwards = math.ceil(len(batches) / world)
    own = [(rows, tokens_TL[rows, : int(length_T[rows].max())]) for rows in batches[rank::world]]
    spare = (torch.arange(0), tokens_TL[:1, : int(length_T[0])])
    return encode_share(encoder.encode_text, islice(chain(own, repeat(spare)), num_forwards), len(texts), device)


def length_batches(length_T: Tensor, max_tokens: int) -> list[Tensor]:
    """Row indices cut into batches of at most `max_tokens` (one row at least), longest first: what does not fit fails at once."""
    order_T = length_T.argsort(descending=True, stable=True)
    batches, start = [], 0
    while start < len(order_T):
        size = max(1, max_tokens // int(length_T[order_T[start]]))
        batches.append(order_T[start : start + size])
        start += size
    return batches


def encode_share(
    forward: Callable[[Tensor], Tensor], share: Iterable[tuple[Tensor, Tensor]], num_rows: int, device: torch.device
) -> Tensor:
    """Embeddings of all ranks (num_rows, D) from this rank's (rows, batch); every row belongs to one rank. Every rank needs one."""
    whole = torch.empty(0)
    for count, (rows, batch) in enumerate(share):
        embedding_BD = normalize(forward(batch.to(device)).float(), dim=1)
        if count == 0:
            whole = embedding_BD.new_zeros(num_rows, embedding_BD.shape[1])
        whole[rows.to(device)] = embedding_BD[: len(rows)]
    if this_rank()[1] > 1:
        dist.all_reduce(whole)
    return whole
