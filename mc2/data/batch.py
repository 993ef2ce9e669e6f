"""What the data side hands to the model. Shapes: B pairs on this rank, H and W pixels, L tokens of the longest caption in the batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class View(NamedTuple):
    """The same pairs for another model: uint8 (B, 3, h, w) in its size, int32 (B, l) of its tokenizer."""

    image: Tensor
    tokens: Tensor


class PairBatch(NamedTuple):
    """B images, each with one caption.

    image: uint8 (B, 3, H, W), not normalised (the model does that on the device).
    tokens: int32 (B, L), bos ... eos pad ..., L = longest caption of the batch with bos and eos.
    languages: canonical code of each caption, "" where the shards have none.
    keys: the pair each row came from.
    views: what a teacher or a further student reads, by its name; absent where it is `image` and `tokens`.
    """

    image: Tensor
    tokens: Tensor
    languages: list[str]
    keys: list[str]
    views: dict[str, View] = {}  # noqa: RUF012  (nobody writes into it)

    def view(self, name: str) -> View:
        """What the model of this name reads."""
        return self.views.get(name, View(self.image, self.tokens))
