"""Accuracy and recall against loops over sorted lists, torchmetrics, clip-benchmark and open_clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.retrieval import retrieval_hit_rate

from mc2.benchmarks import metrics


def random_embeddings(count: int, dim: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def slow_ranks(query: Tensor, candidate: Tensor, pairs: Tensor) -> list[int]:
    """One stable sort per query, then walk down the list until a positive comes."""
    ranks = []
    for index, vector in enumerate(query.double().numpy()):
        cosine = [float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)) for other in candidate.double().numpy()]
        order = sorted(range(len(cosine)), key=lambda k: -round(cosine[k], 12))
        positives = {int(k) for q, k in pairs.tolist() if q == index}
        ranks.append(next((rank for rank, k in enumerate(order) if k in positives), len(order)))
    return ranks


def random_pairs(num_queries: int, num_candidates: int, most: int, seed: int) -> Tensor:
    """One to `most` positives for each query, in a random order."""
    rng = np.random.default_rng(seed)
    rows = [(q, k) for q in range(num_queries) for k in rng.choice(num_candidates, size=rng.integers(1, most + 1), replace=False)]
    return torch.tensor(rows)[torch.from_numpy(rng.permutation(len(rows)))]


@pytest.mark.parametrize("scores_at_once", [1, 100, 2**23])
def test_ranks_equal_a_sorted_list_in_blocks_of_any_size(scores_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SCORES_AT_ONCE", scores_at_once)
    query, candidate, pairs = random_embeddings(37), random_embeddings(23, seed=1), random_pairs(37, 23, most=4, seed=2)
    assert metrics.positive_ranks(query, candidate, pairs).tolist() == slow_ranks(query, candidate, pairs)


def test_of_equal_candidates_the_first_wins() -> None:
    candidate = torch.eye(4)[[0, 1, 1, 2, 1]]  # unit vectors of zeros and ones: cosines are exact
    query = torch.eye(4)[[1, 1, 1, 3]]
    pairs = torch.tensor([[0, 1], [1, 2], [2, 4], [2, 2], [3, 4]])
    assert metrics.positive_ranks(query, candidate, pairs).tolist() == [0, 1, 1, 4] == slow_ranks(query, candidate, pairs)


def test_a_collapsed_model_scores_what_chance_scores() -> None:
    label = torch.arange(50)
    ranks = metrics.classification_ranks(torch.ones(50, 8), torch.ones(50, 8), label)
    assert metrics.share_within(ranks, 1) == 1 / 50
    assert metrics.share_within(ranks, 5) == 5 / 50


def test_nan_never_wins_and_no_positive_is_last() -> None:
    query, candidate = random_embeddings(3), random_embeddings(5, seed=1)
    query[1] = torch.nan
    pairs = torch.tensor([[0, 2], [1, 2]])
    ranks = metrics.positive_ranks(query, candidate, pairs)
    assert ranks.tolist()[1:] == [5, 5]
    candidate[2] = torch.nan  # a broken positive is behind all others
    assert metrics.positive_ranks(query, candidate, pairs).tolist() == [5, 5, 5]


def slow_classifier(text: NDArray[Any], class_of_text: list[int], num_classes: int) -> NDArray[Any]:
    rows = []
    for label in range(num_classes):
        unit = [vector / np.linalg.norm(vector) for vector, own in zip(text, class_of_text, strict=True) if own == label]
        mean = np.mean(unit, axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


def test_classifier_is_the_normalised_mean_of_normalised_texts() -> None:
    text, labels = random_embeddings(20) * torch.arange(1, 21)[:, None], [i * 7 % 5 for i in range(20)]
    found = metrics.class_embeddings(text, torch.tensor(labels), num_classes=5)
    np.testing.assert_allclose(found.numpy(), slow_classifier(text.double().numpy(), labels, 5), rtol=1e-6, atol=1e-6)


class LookupModel:
    """A text tower that knows its texts by heart: token ids are rows of a table. What open_clip and clip-benchmark ask of a model."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        rows = self.table[tokens]
        return torch.nn.functional.normalize(rows, dim=-1) if normalize else rows

    def encode_image(self, image: Tensor) -> Tensor:
        return image


NAMES = [f"name {i}" for i in range(12)]
TEMPLATES = ["a photo of {}", "a drawing of {}", "{}"]  # as open_clip has them


def test_classifier_equals_that_of_open_clip_and_clip_benchmark() -> None:
    open_clip = pytest.importorskip("open_clip")
    clip_benchmark = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    texts = [template.format(name) for name in NAMES for template in TEMPLATES]
    model = LookupModel(random_embeddings(len(texts)))
    tokenizer: Callable[[list[str]], Tensor] = lambda batch: torch.tensor([texts.index(text) for text in batch])
    ours = metrics.class_embeddings(model.table, torch.arange(len(NAMES)).repeat_interleave(len(TEMPLATES)), len(NAMES))
    torch.testing.assert_close(ours, open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, TEMPLATES).T)
    prompts = [template.replace("{}", "{c}") for template in TEMPLATES]
    torch.testing.assert_close(ours, clip_benchmark.zero_shot_classifier(model, tokenizer, NAMES, prompts, "cpu", amp=False).T)
    image, label = random_embeddings(400, seed=3), torch.arange(400) % len(NAMES)
    logits, target = clip_benchmark.run_classification(
        model, ours.T, [(image[i : i + 64], label[i : i + 64]) for i in range(0, 400, 64)], "cpu", amp=False
    )
    right = logits.argsort(dim=1, descending=True) == target[:, None]
    ranks = metrics.classification_ranks(image, ours, label)
    assert [metrics.share_within(ranks, k) for k in (1, 5)] == pytest.approx(
        [float(right[:, :k].any(dim=1).double().mean()) for k in (1, 5)]
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_accuracy_equals_torchmetrics(k: int) -> None:
    image, classes, label = random_embeddings(300), random_embeddings(11, seed=1), torch.arange(300) % 11
    cosine = normalize(image, dim=1) @ normalize(classes, dim=1).T
    theirs = multiclass_accuracy(cosine, label, num_classes=11, average="micro", top_k=k)
    assert metrics.share_within(metrics.classification_ranks(image, classes, label), k) == pytest.approx(float(theirs))


def test_recall_with_several_positives_equals_torchmetrics_and_clip_benchmark() -> None:
    clip_benchmark = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    image, texts_of = random_embeddings(30), [1 + i % 3 for i in range(30)]
    text = random_embeddings(sum(texts_of), seed=1) + 2 * image.repeat_interleave(torch.tensor(texts_of), dim=0)
    own_image = torch.arange(30).repeat_interleave(torch.tensor(texts_of))
    pairs = torch.stack([own_image, torch.arange(len(text))], dim=1)
    to_text, to_image = metrics.positive_ranks(image, text, pairs), metrics.positive_ranks(text, image, pairs.flip(1))
    lines = [[f"{i}/{j}" for j in range(count)] for i, count in enumerate(texts_of)]
    flat = [line for part in lines for line in part]
    loader = [(image[i : i + 7], lines[i : i + 7]) for i in range(0, 30, 7)]
    tokenizer: Callable[[list[str]], Tensor] = lambda batch: torch.tensor([flat.index(line) for line in batch])
    theirs = clip_benchmark.evaluate(LookupModel(text), loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    cosine = normalize(image, dim=1) @ normalize(text, dim=1).T
    for k in (1, 5, 10):
        assert metrics.share_within(to_text, k) == pytest.approx(theirs[f"text_retrieval_recall@{k}"])
        assert metrics.share_within(to_image, k) == pytest.approx(theirs[f"image_retrieval_recall@{k}"])
        hits = [float(retrieval_hit_rate(scores + 2, own_image == i, top_k=k)) for i, scores in enumerate(cosine)]
        assert metrics.share_within(to_text, k) == pytest.approx(np.mean(hits))


def test_top_classes_are_the_first_of_a_sorted_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SCORES_AT_ONCE", 30)
    image, classes = random_embeddings(17), random_embeddings(9, seed=1)
    score, order = metrics.top_classes(image, classes, k=3)
    cosine = (normalize(image, dim=1) @ normalize(classes, dim=1).T).numpy()
    np.testing.assert_array_equal(order.numpy(), np.argsort(-cosine, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(score.numpy(), -np.sort(-cosine, axis=1)[:, :3], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 4, 200])
def test_top_classes_of_many_equal_scores_are_those_of_a_stable_sort(k: int) -> None:
    image, classes = torch.eye(8)[torch.arange(50) % 8], torch.eye(8)[torch.from_numpy(np.random.default_rng(0).integers(0, 8, 70))]
    image[::7] += torch.eye(8)[3]  # two scores above 0, both often
    image[5] = torch.nan
    score, order = metrics.top_classes(image, classes, k)
    need = torch.sort(normalize(image, dim=1) @ classes.T, dim=1, descending=True, stable=True)
    assert torch.equal(order, need.indices[:, :k])
    torch.testing.assert_close(score, need.values[:, :k], equal_nan=True)


def test_roc_auc_and_macro_f1_equal_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 6, 90) / 3, rng.integers(0, 4, 90)  # many ties
    assert metrics.roc_auc(score, label == 1) == pytest.approx(sklearn.roc_auc_score(label == 1, score))
    assert np.isnan(metrics.roc_auc(score, np.ones(90, dtype=bool)))
    guess = rng.integers(0, 6, 90)  # some guesses are no label at all
    need = sklearn.f1_score(label, guess, average="macro", labels=np.unique(label), zero_division=0.0)
    assert metrics.f1_macro(guess, label) == pytest.approx(need)


def test_ridge_equals_scikit_learn_on_standardised_features() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, test, label = random_embeddings(40), random_embeddings(30, seed=1), torch.arange(40) % 3
    mean, deviation, weights = metrics.ridge_weights(train, label, 3, penalty=7.0)
    plain = train.double().numpy()

    def scale(x: Tensor) -> NDArray[np.float64]:
        standard = (x.double().numpy() - plain.mean(0)) / (plain.std(0) + 1e-5)
        return np.concatenate([standard, np.full((len(x), 1), 100.0)], axis=1)

    theirs = linear_model.Ridge(alpha=7.0, fit_intercept=False).fit(scale(train), np.where(np.eye(3)[label.numpy()] > 0, 1.0, -1.0))
    np.testing.assert_allclose(
        (metrics.ridge_features(test, mean, deviation) @ weights).numpy(), theirs.predict(scale(test)), rtol=1e-6, atol=1e-8
    )


def test_uniformity_and_alignment_equal_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", 7)
    x, y = random_embeddings(30), random_embeddings(30, seed=1)
    distance = torch.pdist(normalize(x, dim=1).double())
    assert metrics.uniformity(x) == pytest.approx(float(torch.exp(-2 * distance**2).mean().log()))
    assert np.isnan(metrics.uniformity(x[:1]))
    torch.testing.assert_close(metrics.alignment(x, y), 2 - 2 * torch.cosine_similarity(x, y))


def test_cosines_of_options_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", 4)
    image, text, index = random_embeddings(10), random_embeddings(9, seed=1), torch.arange(30).view(10, 3) % 9
    need = [[float(torch.cosine_similarity(image[n], text[k], dim=0)) for k in row] for n, row in enumerate(index)]
    np.testing.assert_allclose(metrics.option_cosines(image, text, index).numpy(), need, rtol=1e-5, atol=1e-6)
