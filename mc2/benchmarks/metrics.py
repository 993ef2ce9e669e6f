"""Zero-shot accuracy, retrieval recall and the rarer measures of the benchmarks, as pure functions of embeddings.

Accuracy and recall are questions about one number per query, the rank of its best positive among all candidates, so both come from `positive_ranks` and
share its rule for ties: of equal candidates the first wins. torchmetrics is the second opinion in the tests and not the engine: its top-k leaves the order of ties open, and
its retrieval metrics want one flat row per (query, candidate) and loop over the queries in Python.

Shapes: N images, T texts, C classes, Q queries, K candidates, P pairs (query, candidate) that belong together, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

Weights = NDArray[np.float64]  # (N,) how often each sample counts

SCORES_AT_ONCE = 2**23  # numbers of one block of the similarity matrix: 32 MiB in fp32, whatever Q and K are
ROWS_AT_ONCE = 1024  # images of one block where the other side is small


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
        ranks.append(num_candidates - behind_QK.sum(dim=1, dtype=torch.int32).long())  # on a CPU five times as fast as in 64 bits
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.int64, device=query_QD.device)


def classification_ranks(image_ND: Tensor, class_CD: Tensor, label_N: Tensor) -> Tensor:
    """Rank (N,) of each image's own class in the classifier's order; 0 is right at top-1."""
    return positive_ranks(image_ND, class_CD, torch.stack([torch.arange(len(label_N), device=label_N.device), label_N], dim=1))


def share_within(ranks: Tensor, k: int) -> float:
    """Share of queries whose best positive is among the first k: top-k accuracy, or R@k as CLIP papers count it (one hit is enough)."""
    return float((ranks < k).double().mean())


def cosines(image_ND: Tensor, class_CD: Tensor) -> Tensor:
    """Cosine (N, C) of every image with every class."""
    return normalize(image_ND, dim=1) @ normalize(class_CD, dim=1).T


def top_classes(image_ND: Tensor, class_CD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest classes of each image, nearest first: cosines (N, k) and class indices (N, k); ties as in `positive_ranks`."""
    class_CD, k = normalize(class_CD, dim=1), min(k, len(class_CD))
    block = max(1, SCORES_AT_ONCE // max(1, len(class_CD)))
    parts = [_first(normalize(image_BD, dim=1) @ class_CD.T, k) for image_BD in torch.split(image_ND, block)]
    return torch.cat([scores for scores, _ in parts]), torch.cat([order for _, order in parts])


def _first(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What a stable descending sort has first, (B, k) scores and indices, without sorting the rest: 30 times as fast on a CPU."""
    order_Bk = scores_BC.topk(k, dim=1).indices.sort(dim=1).values
    best_Bk, place_Bk = scores_BC.gather(1, order_Bk).sort(dim=1, descending=True, stable=True)
    order_Bk = order_Bk.gather(1, place_Bk)
    reached_B = (scores_BC >= best_Bk[:, -1:]).sum(dim=1, dtype=torch.int32)
    tied_B = reached_B != k  # topk takes any of those that are equal to the last one; 0 for NaN
    best_TC, order_TC = scores_BC[tied_B].sort(dim=1, descending=True, stable=True)
    best_Bk[tied_B], order_Bk[tied_B] = best_TC[:, :k], order_TC[:, :k]
    return best_Bk, order_Bk


def option_cosines(image_ND: Tensor, text_TD: Tensor, index_NO: Tensor) -> Tensor:
    """Cosine (N, O) of every image with its own O texts, given by their rows."""
    text_TD = normalize(text_TD, dim=1)
    return torch.cat(
        [
            torch.einsum("nd,nod->no", normalize(image_BD, dim=1), text_TD[index_BO])
            for image_BD, index_BO in zip(torch.split(image_ND, ROWS_AT_ONCE), torch.split(index_NO, ROWS_AT_ONCE), strict=True)
        ]
    )


def roc_auc(score_N: NDArray[np.floating[Any]], positive_N: NDArray[np.bool_], weight_N: Weights | None = None) -> float:
    """Area under the ROC curve: the chance that a positive is above a negative, ties counted half. NaN without a positive or without a negative."""
    weight_N = np.ones(len(score_N)) if weight_N is None else weight_N
    place_N = np.unique(score_N, return_inverse=True)[1]
    positive_U, negative_U = (np.bincount(place_N, weight_N * part) for part in (positive_N, ~positive_N))  # U different scores, rising
    below_U = np.cumsum(negative_U) - negative_U / 2
    num_pairs = positive_U.sum() * negative_U.sum()
    return float(positive_U @ below_U / num_pairs) if num_pairs else math.nan


def f1_macro(guess_N: NDArray[np.int64], label_N: NDArray[np.int64], weight_N: Weights | None = None) -> float:
    """Mean over the classes that occur as a label of the harmonic mean of precision and recall; a class that is never guessed right has 0. NaN for no sample."""
    weight_N = np.ones(len(label_N)) if weight_N is None else weight_N
    num_classes = 1 + int(max(guess_N.max(), label_N.max()))
    right_C = np.bincount(label_N, weight_N * (guess_N == label_N), num_classes)
    guessed_C, labelled_C = (np.bincount(part, weight_N, num_classes) for part in (guess_N, label_N))
    occurs_C = labelled_C > 0
    return float(np.mean(2 * right_C[occurs_C] / (guessed_C + labelled_C)[occurs_C])) if occurs_C.any() else math.nan


def worst_group(outcome_N: NDArray[np.floating[Any]], group_N: NDArray[np.int64], weight_N: Weights | None = None) -> float:
    """The lowest of the means within groups, which are numbered from 0; NaN for no sample."""
    total_G, size_G = np.bincount(group_N, outcome_N if weight_N is None else weight_N * outcome_N), np.bincount(group_N, weight_N)
    return float((total_G[size_G > 0] / size_G[size_G > 0]).min()) if size_G.any() else math.nan


def alignment(image_ND: Tensor, text_ND: Tensor, exponent: float = 2.0) -> Tensor:
    """Distance (N,) between the unit embeddings of each pair, to the power of `exponent` (Wang and Isola, arXiv 2005.10242, equation 2); lower is better."""
    distance_N: Tensor = (normalize(image_ND, dim=1) - normalize(text_ND, dim=1)).norm(dim=1)
    return distance_N**exponent


def uniformity(embedding_ND: Tensor, scale: float = 2.0) -> float:
    """Logarithm of the mean over all pairs i < j of exp(-scale * |x_i - x_j|^2) (Wang and Isola, equation 3); lower is better. NaN for less than two."""
    return float(uniformities(embedding_ND, embedding_ND.new_ones(len(embedding_ND), 1, dtype=torch.float64), scale)[0])


def uniformities(embedding_ND: Tensor, weight_NR: Tensor, scale: float = 2.0) -> Tensor:
    """Uniformity (R,) of samples that count so many times each; a sample makes no pair with its own copies. Computed in the type of the weights."""
    unit_ND = normalize(embedding_ND, dim=1).double()
    total_R = torch.zeros(weight_NR.shape[1], dtype=torch.float64, device=unit_ND.device)
    for start in range(0, len(unit_ND), ROWS_AT_ONCE):
        rows_BN = torch.exp(-scale * (2 - 2 * unit_ND[start : start + ROWS_AT_ONCE] @ unit_ND.T).clamp(min=0)).to(weight_NR.dtype)
        rows_BN.diagonal(start).zero_()
        total_R += (weight_NR[start : start + ROWS_AT_ONCE] * (rows_BN @ weight_NR)).double().sum(dim=0)
    weight_NR = weight_NR.double()
    num_pairs_R = weight_NR.sum(dim=0) ** 2 - (weight_NR**2).sum(dim=0)
    return torch.log(total_R / num_pairs_R)  # NaN without a pair: 0 / 0


def ridge_weights(x_ND: Tensor, label_N: Tensor, num_classes: int, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, deviation, weights (D + 1, C)) of a linear classifier by penalised least squares, as big_vision's few-shot evaluators have it.

    Features are standardised, the bias is a feature of 100 (so hardly penalised), targets are +1 for the class and -1 for the others. In float64.
    """
    x_ND = x_ND.double()
    mean_D, deviation_D = x_ND.mean(dim=0), x_ND.std(dim=0, correction=0) + 1e-5
    feature = ridge_features(x_ND, mean_D, deviation_D)
    target_NC = 2.0 * torch.nn.functional.one_hot(label_N, num_classes).double() - 1
    gram = feature.T @ feature + penalty * torch.eye(feature.shape[1], dtype=feature.dtype, device=feature.device)
    return mean_D, deviation_D, torch.linalg.solve(gram, feature.T @ target_NC)


def ridge_features(x_ND: Tensor, mean_D: Tensor, deviation_D: Tensor) -> Tensor:
    """Standardised features with the bias (N, D + 1)."""
    scaled = (x_ND.double() - mean_D) / deviation_D
    return torch.cat([scaled, scaled.new_full((len(scaled), 1), 100.0)], dim=1)
