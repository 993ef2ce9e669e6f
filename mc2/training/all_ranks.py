"""Numbers of all ranks for the log, in exchanges that are queued behind a step and read when the next one is done: no step waits for them.

Shapes: R ranks, C columns, B pairs of this rank in a step, K languages of this rank, at most MOST_LANGUAGES.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from mc2.model.ranks import HostCopy, num_ranks

UNKNOWN = "unknown"  # the language of a caption whose shard names none
MOST_LANGUAGES = 512  # of one of several ranks in one writing; the rarest ones above are left out
NAME_BYTES = 16


def rows_of_all_ranks(own: Tensor) -> Tensor:
    """Rows of a rank, equally many on each, -> those of all, in the order of ranks. A collective."""
    if num_ranks() == 1:
        return own
    gathered = own.new_empty(num_ranks() * len(own), *own.shape[1:])
    dist.all_gather_into_tensor(gathered, own.contiguous())
    return gathered


def columns_of_all_ranks(on_host: Sequence[float], on_device: Tensor) -> HostCopy:
    """A row of numbers of each rank, (R, C): those that the host knows, then those that are on the device. A collective."""
    known = torch.tensor(on_host, dtype=torch.float32).to(on_device.device, non_blocking=True)
    return HostCopy(rows_of_all_ranks(torch.cat([known, on_device.float()])[None]))


class LanguageCounts(NamedTuple):
    """Of one language: captions used and rejected since the last writing, pairs of one step and the sum of their losses."""

    captions: float
    rejected: float
    pairs: float
    loss: float


def languages_of_all_ranks(captions: Counter[str], rejected: Counter[str], languages: Sequence[str], loss_B: Tensor) -> HostCopy:
    """For `read_languages`: what this rank counted by language, and the languages and losses of the pairs of a step. A collective."""
    device = loss_B.device
    most = MOST_LANGUAGES if num_ranks() > 1 else None
    place = {name: row for row, (name, _) in enumerate((captions + rejected).most_common(most))}
    pairs = Counter(languages)
    names = np.array([name.encode()[:NAME_BYTES] for name in place], dtype=f"S{NAME_BYTES}").view(np.uint8).reshape(-1, NAME_BYTES)
    counts = torch.tensor([[captions[name], rejected[name], pairs[name]] for name in place], dtype=torch.float32).view(-1, 3)
    row_B = torch.tensor([place.get(name, len(place)) for name in languages]).to(device, non_blocking=True)
    loss_K = torch.zeros(len(place) + 1, device=device).index_add_(0, row_B, loss_B.float())[:-1]
    table = torch.cat([counts.to(device, non_blocking=True), loss_K[:, None]], dim=1).view(torch.uint8)
    table = torch.cat([torch.from_numpy(names).to(device, non_blocking=True), table], dim=1)
    if most is not None:  # ranks see different languages, and exchange equally much
        table = torch.cat([table, table.new_zeros(most - len(table), table.shape[1])])
    return HostCopy(rows_of_all_ranks(table))


def read_languages(copy: HostCopy) -> dict[str, LanguageCounts]:
    """The sums over ranks by language."""
    table: NDArray[np.uint8] = copy.values().numpy()
    name_R = np.ascontiguousarray(table[:, :NAME_BYTES]).view(f"S{NAME_BYTES}")[:, 0]
    counts = np.ascontiguousarray(table[:, NAME_BYTES:]).view(np.float32)[name_R != b""]
    names, place = np.unique(name_R[name_R != b""], return_inverse=True)
    sums = np.zeros((len(names), counts.shape[1]))
    np.add.at(sums, place, counts)
    return {name.decode(errors="replace"): LanguageCounts(*row) for name, row in zip(names, sums.tolist(), strict=True)}
