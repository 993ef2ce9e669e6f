"""Zero-shot accuracy and retrieval recall as pure functions of embeddings.

Both are questions about one number per query, the rank of its best positive among all candidates, so both come from `positive_ranks` and
share its rule for ties. torchmetrics is the second opinion in the tests and not the engine: its top-k leaves the order of ties open, and
its retrieval metrics want one flat row per (query, candidate) and loop over the queries in Python.

Shapes: N images, T texts, C classes, Q queries, K candidates, P pairs (query, candidate) that belong together, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

SCORES_AT_ONCE = 2**23  # numbers of one block of the similarity matrix: 32 MiB in fp32, whatever Q and K are


def class_embeddings(text_TD: Tensor, class_T: Tensor, num_classes: int) -> Tensor:
    """The zero-shot classifier (C, D), a unit row per class: mean of the class's unit text embeddings, normalised again (RECIPE 4).

    `class_T` is the class of each text: prompts and synonyms weigh the same. Every class needs a text.
    """
    sum_CD = text_TD.new_zeros(num_classes, text_TD.shape[1]).index_add_(0, class_T, normalize(text_TD, dim=1))
    return normalize(sum_CD, dim=1)  # the mean is parallel to the sum


def positive_ranks(query_QD: Tensor, candidate_KD: Tensor, pairs_P2: Tensor) -> Tensor:
    """Rank (Q,) of the best positive of each query by cosine, 0 for the nearest; K for a query without positives.

    `pairs_P2` holds (query, candidate) indices, any number per query. Ties: the candidate with the lower index comes first, as in a stable
    sort, so a collapsed model scores what chance scores. NaN never wins. Memory: a block of `SCORES_AT_ONCE` similarities.
    """
    query_QD, candidate_KD = normalize(query_QD, dim=1), normalize(candidate_KD, dim=1)
    num_candidates = len(candidate_KD)
    pairs_P2 = pairs_P2[pairs_P2[:, 0].argsort(stable=True)]
    index_K = torch.arange(num_candidates, device=query_QD.device)
    block = max(1, SCORES_AT_ONCE // max(1, num_candidates))
    ranks = []
    for start in range(0, len(query_QD), block):
        scores_QK = query_QD[start : start + block] @ candidate_KD.T
        first, last = torch.searchsorted(
            pairs_P2[:, 0].contiguous(), torch.tensor([start, start + len(scores_QK)], device=pairs_P2.device)
        ).tolist()
        query_P, candidate_P = (pairs_P2[first:last] - torch.tensor([start, 0], device=pairs_P2.device)).unbind(1)
        positive_QK = torch.full_like(scores_QK, -torch.inf)
        positive_QK[query_P, candidate_P] = scores_QK[query_P, candidate_P]
        best_Q, best_index_Q = positive_QK.max(dim=1, keepdim=True)  # the first of equal ones
        behind_QK = (scores_QK < best_Q) | (
            (scores_QK == best_Q) & (index_K >= best_index_Q)
        )  # the positive itself included; false for NaN
        ranks.append(num_candidates - behind_QK.sum(dim=1))
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.int64, device=query_QD.device)


def classification_ranks(image_ND: Tensor, class_CD: Tensor, label_N: Tensor) -> Tensor:
    """Rank (N,) of each image's own class in the classifier's order; 0 is right at top-1."""
    return positive_ranks(image_ND, class_CD, torch.stack([torch.arange(len(label_N), device=label_N.device), label_N], dim=1))


def share_within(ranks: Tensor, k: int) -> float:
    """Share of queries whose best positive is among the first k: top-k accuracy, or R@k as CLIP papers count it (one hit is enough)."""
    return float((ranks < k).double().mean())


def top_classes(image_ND: Tensor, class_CD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest classes of each image, nearest first: cosines (N, k) and class indices (N, k); ties as in `positive_ranks`."""
    class_CD = normalize(class_CD, dim=1)
    block = max(1, SCORES_AT_ONCE // max(1, len(class_CD)))
    parts: Sequence[tuple[Tensor, Tensor]] = [
        torch.sort(normalize(image_BD, dim=1) @ class_CD.T, dim=1, descending=True, stable=True)
        for image_BD in torch.split(image_ND, block)
    ]
    return torch.cat([scores[:, :k] for scores, _ in parts]), torch.cat([order[:, :k] for _, order in parts])
