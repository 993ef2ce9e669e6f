"""What other models read of the same pairs: the caption in another tokenizer's ids, the same crop in another size. For teachers and further students.

Shapes: B pairs, h and w pixels, l tokens of the longest caption in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor
from torch.utils.data import default_collate

from mc2.data.batch import View
from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class ViewConfig:
    """image_size: of the model. tokenizer: folder with its tokenizer.model; None: the data module's. context_length: at most so many tokens."""

    image_size: int
    tokenizer: Path | None
    context_length: int


@dataclass(frozen=True)
class Views:
    """How the views of a batch are made. sizes: image sizes beside the batch's own. of: name -> image size and tokenizer of a view, None for the batch's own."""

    sizes: tuple[int, ...] = ()
    of: Mapping[str, tuple[int | None, Tokenizer | None]] = field(default_factory=dict)

    @classmethod
    def needed(cls, views: Mapping[str, ViewConfig], tokenizer: Tokenizer, preprocess: ImagePreprocess) -> Views:
        """The views that differ from what the data module makes anyway. Errors: ValueError for a tokenizer that is missing or broken."""
        of = {name: (other_size(view, preprocess), other_tokenizer(view, tokenizer)) for name, view in views.items()}
        sizes = sorted({size for size, _ in of.values() if size is not None})
        return cls(tuple(sizes), {name: view for name, view in of.items() if view != (None, None)})

    def decoder(self, preprocess: ImagePreprocess) -> ImagePreprocess:
        """Preprocessing that decodes at the scale of the largest view."""
        return replace(preprocess, image_size=max(preprocess.image_size, *self.sizes)) if self.sizes else preprocess

    def crops(self, preprocess: ImagePreprocess, picture: Tensor, seed: int) -> tuple[Tensor, ...]:
        """The crop that the seed draws, in each of `sizes`."""
        return tuple(replace(preprocess, image_size=size).train(picture, seed) for size in self.sizes)

    def centres(self, preprocess: ImagePreprocess, image: bytes) -> tuple[Tensor, ...]:
        """The evaluation transform in each of `sizes`."""
        return tuple(replace(preprocess, image_size=size).evaluate(image) for size in self.sizes)

    def batch(self, image_B3HW: Tensor, others: Sequence[Sequence[Tensor]], tokens_BL: Tensor, texts: Sequence[str]) -> dict[str, View]:
        """The views of a batch, from the images in `sizes` of each pair. What is equal is shared."""
        images: dict[int | None, Tensor] = {None: image_B3HW}
        for size, column in zip(self.sizes, zip(*others, strict=True), strict=True):
            images[size] = default_collate(list(column))
        return {
            name: View(images[size], tokens_BL if tokenizer is None else tokenizer(texts)) for name, (size, tokenizer) in self.of.items()
        }


def other_size(view: ViewConfig, preprocess: ImagePreprocess) -> int | None:
    """The view's image size, where it is not the data module's."""
    return None if view.image_size == preprocess.image_size else view.image_size


def other_tokenizer(view: ViewConfig, tokenizer: Tokenizer) -> Tokenizer | None:
    """The view's tokenizer, where it gives other rows: other pieces, or an earlier cut."""
    found = Tokenizer(tokenizer.path if view.tokenizer is None else view.tokenizer, view.context_length)
    same = found.form == tokenizer.form and found.pieces.serialized_model_proto() == tokenizer.pieces.serialized_model_proto()
    return None if same and found.context_length >= tokenizer.context_length else found
