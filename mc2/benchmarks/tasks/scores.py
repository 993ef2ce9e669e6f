"""Embeddings -> scores with their outcomes: the part that every task of a kind shares.

Shapes: N images, C classes, K captions, Q queries, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc2.benchmarks import metrics
from mc2.benchmarks.bootstrap import replicates_of
from mc2.benchmarks.results import Score

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

RECALL_AT = (1, 5, 10)

# How one data set is summed up: top-1, top-5, their mean, the mean over classes of top-1 within each, the macro F1, the area under the ROC curve of two
# classes, and top-1 or top-5 of the worst group of images.
Metric = Literal["top1", "top5", "mean_of_top1_and_top5", "mean_per_class", "f1_macro", "roc_auc", "worst_group_top1", "worst_group_top5"]


def mean_score(
    protocol: str,
    metric: str,
    outcomes: NDArray[np.float32] | NDArray[np.bool_],
    num_candidates: int,
    clusters: IntArray | None = None,
    strata: IntArray | None = None,
) -> Score:
    """The mean of the outcomes or, with strata, the mean over strata of the means in them."""
    outcome = outcomes.astype(np.float32)
    value = stratum_means(outcome, strata).mean() if strata is not None else outcome.mean(dtype=np.float64)
    return Score(protocol, metric, float(value), len(outcome), num_candidates, outcome, strata, clusters)


def statistic_score(
    protocol: str, metric: str, statistic: Callable[[NDArray[np.float64]], float], clusters: IntArray, num_candidates: int
) -> Score:
    """A number that is no mean of samples, as a function of how often each of them counts."""
    value = statistic(np.ones(len(clusters)))
    return Score(protocol, metric, value, len(clusters), num_candidates, replicates=replicates_of(statistic, clusters))


def stratum_means(outcomes: FloatArray, strata: IntArray) -> NDArray[np.float64]:
    """The mean in each stratum that occurs."""
    _, row = np.unique(strata, return_inverse=True)
    means: NDArray[np.float64] = np.bincount(row, weights=outcomes) / np.bincount(row)
    return means


def recall_scores(protocol: str, direction: str, ranks: Tensor, num_candidates: int, clusters: IntArray | None = None) -> list[Score]:
    """R@1, R@5 and R@10 from the rank of the best positive of each query."""
    rank = ranks.cpu().numpy()
    return [mean_score(protocol, f"{direction}_r{k}", rank < k, num_candidates, clusters) for k in RECALL_AT]


def retrieval_scores(protocol: str, image_ND: Tensor, text_KD: Tensor, owner_K: IntArray) -> list[Score]:
    """Text to image for every caption, and image to text for every image that has a caption; `owner_K` is the image of each caption.

    Candidates are all N images and all K captions. One positive among the first k is enough. Ties: the candidate that comes first in the data set wins, so
    of two equal captions the second is never nearer than the first.
    """
    own = torch.from_numpy(owner_K).to(image_ND.device)
    caption = torch.arange(len(owner_K), device=image_ND.device)
    to_image = metrics.positive_ranks(text_KD, image_ND, torch.stack([caption, own], dim=1))
    queries = np.unique(owner_K)
    to_text = metrics.positive_ranks(image_ND, text_KD, torch.stack([own, caption], dim=1))[torch.from_numpy(queries).to(image_ND.device)]
    return recall_scores(protocol, "t2i", to_image, len(image_ND), owner_K) + recall_scores(protocol, "i2t", to_text, len(text_KD), queries)


def classification_scores(
    protocol: str,
    image_ND: Tensor,
    class_CD: Tensor,
    pairs: IntArray,
    images: IntArray,
    wanted: Sequence[Metric],
    groups: Mapping[str, Sequence[str]],
) -> list[Score]:
    """The wanted metrics, then top-1 and top-5 (as far as they are wanted) of every group of images, as `top1[region=Africa]`.

    `pairs` are rows of (image, right class); one right class among the first k is enough. `images` are the numbers of the N images in their image set, and
    `groups` says for each kind of group the group of every image of the set ("": in none).
    """
    device = image_ND.device
    rank = metrics.positive_ranks(image_ND, class_CD, torch.from_numpy(pairs).to(device)).cpu().numpy()
    outcome: dict[str, FloatArray] = {"top1": (rank < 1).astype(np.float32), "top5": (rank < 5).astype(np.float32)}
    outcome["mean_of_top1_and_top5"] = np.mean([outcome["top1"], outcome["top5"]], axis=0, dtype=np.float32)
    num_classes, label = len(class_CD), pairs[:, 1]
    kinds = {kind: np.asarray(group, dtype=object)[images] for kind, group in groups.items()}
    scores = []
    for metric in wanted:
        if metric in outcome:
            scores.append(mean_score(protocol, metric, outcome[metric], num_classes, images))
        elif metric == "mean_per_class":
            scores.append(mean_score(protocol, metric, outcome["top1"], num_classes, images, strata=label))
        elif metric == "f1_macro":
            guess = metrics.top_classes(image_ND, class_CD, 1)[1][:, 0].cpu().numpy()
            scores.append(statistic_score(protocol, metric, partial(metrics.f1_macro, guess, label), images, num_classes))
        elif metric == "roc_auc":
            cosine_NC = metrics.cosines(image_ND, class_CD).cpu().numpy()
            auc = partial(metrics.roc_auc, cosine_NC[:, 1] - cosine_NC[:, 0], label == 1)
            scores.append(statistic_score(protocol, metric, auc, images, num_classes))
        else:
            top = metric.removeprefix("worst_group_")
            for kind, group in kinds.items():
                part = group != ""
                number = np.unique(group[part].astype(str), return_inverse=True)[1]
                worst = partial(metrics.worst_group, outcome[top][part], number)
                scores.append(statistic_score(protocol, f"{metric}[{kind}]", worst, images[part], num_classes))
    for kind, group in kinds.items():
        for name in sorted(set(group) - {""}):
            part = group == name
            scores += [
                mean_score(protocol, f"{metric}[{kind}={name}]", outcome[metric][part], num_classes, images[part])
                for metric in ("top1", "top5")
                if metric in wanted
            ]
    return scores
