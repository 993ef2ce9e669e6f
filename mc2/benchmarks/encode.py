"""Images and texts -> unit embeddings, shared out over all ranks.

Every rank makes the same number of forwards (under FSDP2 each is collective): a rank that has run out of work encodes something again and
throws it away. Every rank ends with all embeddings: each puts its rows into zeros and an all-reduce adds the ranks, so uneven shares need
no padding and no value changes (x + 0 = x).

Shapes: B images or texts of one forward, N images, T texts, L tokens, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, repeat
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize, pad
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mc2.benchmarks.tasks import ImageSet

T = TypeVar("T")


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


def gather(part: dict[str, T]) -> dict[str, T]:
    """The union of all ranks' dictionaries, on every rank; of a key that several have the last."""
    _, world = this_rank()
    parts: list[dict[str, T]] = [{} for _ in range(world)]
    if world > 1:
        dist.all_gather_object(parts, part)
    else:
        parts = [part]
    return {key: value for part in parts for key, value in part.items()}


def raise_together(failure: str) -> None:
    """Collective. Errors: ValueError on all ranks, with the failure of the first rank that has one ("" is none): a rank that raised alone would leave the
    others waiting for it.
    """
    if first := next(iter(gather({failure: None} if failure else {})), ""):
        raise ValueError(first)


@contextmanager
def together() -> Iterator[None]:
    """A ValueError inside, on any rank, is one of all ranks. Collective at the end."""
    failure = ""
    try:
        yield
    except ValueError as error:
        failure = str(error)
    raise_together(failure)


# --- images -------------------------------------------------------------------------------------------------------------


class ImageBatch(NamedTuple):
    """Rows of the image set and their images, uint8 (B, 3, H, W). `failure`: why an image cannot be decoded; the batch is empty then, and the last."""

    rows: Tensor
    image: Tensor
    failure: str = ""


class ImageShare(IterableDataset[ImageBatch]):
    """The images `start` to `stop` in batches, read as they are needed; each worker process takes a run of batches."""

    def __init__(self, images: ImageSet, preprocess: ImageTransform, start: int, stop: int, batch_size: int) -> None:
        self.images, self.preprocess, self.start, self.stop, self.batch_size = images, preprocess, start, stop, batch_size

    def __len__(self) -> int:
        """Batches of all workers."""
        return math.ceil((self.stop - self.start) / self.batch_size)

    def __iter__(self) -> Iterator[ImageBatch]:
        worker = get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker else (0, 1)
        start, stop = (min(self.stop, self.start + self.batch_size * (len(self) * place // of)) for place in (number, number + 1))
        files = self.images.read(start, stop)
        for first in range(start, stop, self.batch_size):
            rows = torch.arange(first, min(first + self.batch_size, stop))
            try:
                yield ImageBatch(
                    rows, torch.stack([decoded(key, files, self.preprocess) for key in self.images.keys[first : first + len(rows)]])
                )
            except ValueError as error:
                yield ImageBatch(torch.arange(0), torch.empty(0), str(error))
                return


def decoded(key: str, files: Iterator[bytes], preprocess: ImageTransform) -> Tensor:
    """The next of the files, uint8 (3, H, W). Errors: ValueError that names the image, whatever its reading or decoding raises."""
    try:
        return preprocess.evaluate(next(files))
    except Exception as error:
        raise ValueError(
            f"image {key!r} cannot be decoded ({error or type(error).__name__}); repair it or leave it out of the task"
        ) from error


def encode_images(
    encoder: Encoder, preprocess: ImageTransform, images: ImageSet, batch_size: int, device: torch.device, num_workers: int = 0
) -> Tensor:
    """Unit fp32 embeddings (N, D) of an image set, on every rank. `num_workers` processes decode. Errors: on all ranks alike, ValueError that names an image."""
    rank, world = this_rank()
    num_images = len(images.keys)
    if not num_images:
        raise ValueError("benchmarks: found an image set without images; need at least one")
    with together():
        spare = decoded(images.keys[0], iter(images.read(0, 1)), preprocess)[None]  # for a rank that runs out of its own
    share = ImageShare(images, preprocess, num_images * rank // world, num_images * (rank + 1) // world, batch_size)
    loader = DataLoader(share, batch_size=None, num_workers=min(num_workers, len(share)), pin_memory=device.type == "cuda")
    failures: list[str] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            if batch.failure:
                failures.append(batch.failure)
                break
            yield batch.rows, batch.image
        yield from repeat((torch.arange(0), spare))

    num_forwards = math.ceil(math.ceil(num_images / world) / batch_size)  # of the largest share
    image_ND = encode_share(encoder.encode_image, islice(batches(), num_forwards), num_images, device)
    raise_together("".join(failures))
    return image_ND


# --- texts --------------------------------------------------------------------------------------------------------------


def encode_texts(encoder: Encoder, tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int, device: torch.device) -> Tensor:
    """Unit fp32 embeddings (T, D), on every rank. Texts of like length share a forward of at most `max_tokens` tokens with padding."""
    rank, world = this_rank()
    tokens_TL = tokenize(tokenizer, texts, device)
    num_ends = int(tokenizer.pad_id == tokenizer.eos_id)  # the first pad is the end then, and belongs to the text
    length_T = ((tokens_TL != tokenizer.pad_id).sum(dim=1) + num_ends).clamp(min=1, max=tokens_TL.shape[1])
    batches = length_batches(length_T, max_tokens)
    num_forwards = math.ceil(len(batches) / world)
    own = ((rows, tokens_TL[rows, : int(length_T[rows].max())]) for rows in batches[rank::world])
    spare = (torch.arange(0), tokens_TL[:1, : int(length_T[0])])
    return encode_share(encoder.encode_text, islice(chain(own, repeat(spare)), num_forwards), len(texts), device)


def tokenize(tokenizer: TextTokenizer, texts: Sequence[str], device: torch.device) -> Tensor:
    """Token ids (T, L) of all texts on the host; every rank makes its part of them."""
    rank, world = this_rank()
    if world == 1:
        return tokenizer(texts)
    with together():
        own = tokenizer(texts[rank::world]) if len(texts) > rank else torch.empty(0, 0, dtype=torch.int32)
    longest = torch.tensor(own.shape[1], device=device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    whole_TL = torch.zeros(len(texts), int(longest), dtype=torch.int32)
    if len(own):
        whole_TL[rank::world] = pad(own.to(torch.int32), (0, int(longest) - own.shape[1]), value=tokenizer.pad_id)
    whole_TL = whole_TL.to(device)
    dist.all_reduce(whole_TL)
    return whole_TL.cpu()


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
        embedding_BD = normalize(forward(batch.to(device, non_blocking=True)).float(), dim=1)
        if count == 0:
            whole = embedding_BD.new_zeros(num_rows, embedding_BD.shape[1])
        whole[rows.to(device)] = embedding_BD[: len(rows)]
    if this_rank()[1] > 1:
        dist.all_reduce(whole)
    return whole
