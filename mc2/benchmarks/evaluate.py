"""Tasks and a model -> results: each image set and each text encoded once, every language scored, on all ranks.

Shapes: N images, T texts, C rows that a task keeps of them, D embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mc2 import storage
from mc2.benchmarks.bootstrap import FloatArray
from mc2.benchmarks.encode import Encoder, Preprocessing, encode_images, encode_texts, gather, raise_together, this_rank
from mc2.benchmarks.gallery import worst_confusions
from mc2.benchmarks.language_groups import members
from mc2.benchmarks.means import Drawn, labelled, mean_replicates, task_results
from mc2.benchmarks.result_files import Kept
from mc2.benchmarks.results import MAIN, MEAN, Result
from mc2.benchmarks.tasks import PREDICTIONS_SCHEMA, ImageSet, Task
from mc2.benchmarks.text_cache import TextCache

TEXTS_AT_ONCE = 2**16  # different texts whose embeddings are held together: 128 MiB at D = 512, however many languages there are
NAMES_OF_CONFUSIONS = 5  # answers that are looked at for the right one
TOKENS_PER_IMAGE = 16  # a forward of texts has this many tokens for each image of an image batch


@dataclass(frozen=True)
class Evaluation:
    """What one task said: rows of the table, what each sample said, the bootstrap's replicates of what enters its collection (None: it is in none); if asked
    for, the best answers for each image, and those of the worst confusions: both tables are of PREDICTIONS_SCHEMA.
    """

    results: list[Result]
    kept: list[Kept]
    main: FloatArray | None
    predictions: pa.Table
    confusions: pa.Table


@dataclass(frozen=True)
class Scored:
    """One language of one task."""

    samples: str
    drawn: list[Drawn]
    predictions: pa.Table
    confusions: pa.Table


@dataclass
class Engine:
    """A model with everything that tasks are scored with. Every method is called on all ranks, and gives the same on each.

    batch_size: images of one forward on one rank. num_workers: processes that decode images. num_names: answers to keep for each image. num_confusions: images
    of each language whose wrong answers are kept. cache: where class embeddings are kept on the disk.
    """

    encoder: Encoder
    data: Preprocessing
    device: torch.device
    batch_size: int = 256
    num_workers: int = 0
    num_names: int = 0
    num_confusions: int = 0
    cache: TextCache | None = None
    _images: dict[str, Tensor] = field(default_factory=dict, init=False)

    def evaluate(self, tasks: Sequence[Task], languages: Sequence[Sequence[str]]) -> Iterator[Evaluation]:
        """Score the tasks one after the other, each in its `languages`. Embeddings of images are kept as long as a task to come shares them.

        Errors: ValueError for an image that does not decode.
        """
        identities = [task.image_set.identity for task in tasks]
        for index, (task, chosen) in enumerate(zip(tasks, languages, strict=True)):
            yield self.evaluate_task(task, chosen)
            if identities[index] not in identities[index + 1 :]:
                del self._images[identities[index]]

    def evaluate_task(self, task: Task, chosen: Sequence[str]) -> Evaluation:
        """One task. A part of its languages is named in the protocol."""
        image_ND = self.images(task.image_set, task.name)
        scored: dict[str, Scored] = {}
        failure = ""
        for language, text_CD in self.kept_texts(task, chosen):
            try:
                with torch.autocast(self.device.type, enabled=False):  # the towers may run in bf16, cosines of near neighbours may not
                    scored[language] = self.score(task, language, image_ND, text_CD)
            except ValueError as error:
                failure = failure or str(error)  # the other ranks still need this one for the texts to come
        raise_together(failure)
        scored = gather(scored)
        suffix = f"-{len(chosen)}-of-{len(task.languages)}-languages" if len(chosen) < len(task.languages) else ""
        drawn = {language: [renamed(each, suffix) for each in scored[language].drawn] for language in chosen}
        groups = members(chosen, task.groups)
        labels = {code: [label for label, codes in {MEAN: chosen, **labelled(groups)}.items() if code in codes] for code in chosen}
        kept = [Kept(task.name, code, scored[code].samples, labels[code], each.score) for code in chosen for each in drawn[code]]
        predictions = pa.concat_tables([scored[language].predictions for language in chosen])
        confusions = pa.concat_tables([scored[language].confusions for language in chosen])
        main = mean_replicates([each for code in chosen for each in drawn[code] if each.score.metric == MAIN])
        return Evaluation(task_results(task.name, drawn, groups), kept, main, predictions, confusions)

    def images(self, images: ImageSet, name: str) -> Tensor:
        """(N, D), encoded when it is first asked for."""
        if images.identity not in self._images:
            try:
                self._images[images.identity] = encode_images(
                    self.encoder, self.data.preprocess, images, self.batch_size, self.device, self.num_workers
                )
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return self._images[images.identity]

    def kept_texts(self, task: Task, chosen: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """(language, what the task keeps of its texts) for this rank's part of the languages: first those on the disk, then those that are to be encoded."""
        rank, world = this_rank()
        own = list(chosen[rank::world])
        paths = {language: self.cache.path(task, language) for language in own} if self.cache else {}
        found = []
        for language, path in paths.items():
            stored_CD = TextCache.read(path, self.device)
            if stored_CD is not None:
                found.append(language)
                yield language, stored_CD
        known = gather(dict.fromkeys(found, True))
        for block in language_blocks(task, [language for language in chosen if language not in known], TEXTS_AT_ONCE):
            index = {text: row for row, text in enumerate(dict.fromkeys(text for language in block for text in task.texts(language)))}
            text_TD = encode_texts(self.encoder, self.data.tokenizer, list(index), self.batch_size * TOKENS_PER_IMAGE, self.device)
            for language in block:
                if language in own:
                    rows_T = torch.tensor([index[text] for text in task.texts(language)], device=text_TD.device)
                    with torch.autocast(self.device.type, enabled=False):
                        text_CD = task.condense(language, text_TD[rows_T])
                    if language in paths:
                        TextCache.write(paths[language], text_CD)
                    yield language, text_CD

    def score(self, task: Task, language: str, image_ND: Tensor, text_CD: Tensor) -> Scored:
        """All scores of one language, with their replicates; on this rank alone."""
        scores = task.score(language, image_ND, text_CD)
        num_names = max(self.num_names, NAMES_OF_CONFUSIONS if self.num_confusions else 0)
        answers = task.predictions(language, image_ND, text_CD, num_names) if num_names else PREDICTIONS_SCHEMA.empty_table()
        predictions = answers.filter(pc.field("rank") < self.num_names)
        confusions = worst_confusions(answers, self.num_confusions)
        return Scored(samples_of(task, language), [Drawn.of(score) for score in scores], predictions, confusions)


def renamed(drawn: Drawn, suffix: str) -> Drawn:
    """With a longer name of the protocol."""
    return replace(drawn, score=replace(drawn.score, protocol=drawn.score.protocol + suffix)) if suffix else drawn


def samples_of(task: Task, language: str) -> str:
    """A fingerprint of what is scored in a language: the names of the images and the texts; two evaluations with the same may be compared."""
    parts = "\0".join([*task.image_set.keys, "", *task.texts(language)])
    return storage.fingerprint(hashlib.sha256(parts.encode(errors="surrogatepass")).hexdigest())


def common_languages(task: Task, languages: Sequence[str]) -> list[str]:
    """Those of the languages that the task has, in the task's order. Errors: ValueError if there is none."""
    common = [language for language in task.languages if language in languages]
    if not common:
        raise ValueError(f"{task.name}: has none of the languages {', '.join(languages)}; need some of {', '.join(task.languages)}")
    return common


def language_blocks(task: Task, languages: Sequence[str], num_texts: int) -> Iterator[list[str]]:
    """Languages in order, cut into blocks of at most `num_texts` texts (a language is never cut)."""
    block: list[str] = []
    size = 0
    for language in languages:
        num_own = len(task.texts(language))
        if block and size + num_own > num_texts:
            yield block
            block, size = [], 0
        block.append(language)
        size += num_own
    if block:
        yield block
