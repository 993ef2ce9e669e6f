"""What the data side hands to the model. Shapes: B pairs on this rank, H and W pixels, L tokens of the longest caption in the batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PairBatch(NamedTuple):
    """B images, each with one caption.

    image: uint8 (B, 3, H, W), not normalised (the model does that on the device).
    tokens: int32 (B, L), bos ... eos pad ..., L = longest caption of the batch with bos and eos.
    languages: canonical code of each caption, "" where the shards have none.
    keys: the pair each row came from.
    """

    image: Tensor
    tokens: Tensor
    languages: list[str]
    keys: list[str]
