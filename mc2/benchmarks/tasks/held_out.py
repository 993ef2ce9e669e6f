"""Alignment and uniformity on held-out pairs.

Shapes: N pairs, T different captions, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mc2 import storage
from mc2.benchmarks import metrics
from mc2.benchmarks.bootstrap import all_copies
from mc2.benchmarks.results import Score
from mc2.benchmarks.tasks.image_sets import Member, TarImages, image_member, read_index
from mc2.benchmarks.tasks.reading import need
from mc2.benchmarks.tasks.scores import mean_score
from mc2.benchmarks.tasks.task import PREDICTIONS_SCHEMA, Task
from mc2.data.shard_reader import parse

SOURCE = "give a folder of tars with images and captions that no model was trained on (img2dataset's, or those of `mc2 curate pack`)"
ALL_LANGUAGES = "mul"  # BCP 47 for several languages


@final
class HeldOutPairs(Task):
    """Alignment of pairs of image and caption, uniformity of the images and of the captions (Wang and Isola, arXiv 2005.10242); less is better in all three.

    alignment         mean of |image - caption|^2
    uniformity_image  log of the mean over all pairs of images of exp(-2 |a - b|^2); uniformity_text the same of the captions

    Unit embeddings; the paper takes 5,000 pairs and names no exponents: 2 and 2 are the authors' defaults. All languages together ("mul").
    """

    def __init__(self, shards: str, num_pairs: int = 5000, seed: int = 0, name: str = "held_out_pairs") -> None:
        """
        Args:
            shards: a folder of tars: `<key>.jpg` with `<key>.txt`, or with `<key>.json` that has captions. The first caption of an image is taken.
            num_pairs: drawn from the usable ones by a keyed hash; all of them where there are fewer.
        """
        if num_pairs < 2:
            raise ValueError(f"{name}: found num_pairs {num_pairs}, need at least 2")
        pairs = read_pairs(need(Path(shards), SOURCE), num_pairs, seed)
        if len(pairs) < 2:
            raise ValueError(f"{shards}: found {len(pairs)} pairs of image and caption, need at least 2; {SOURCE}")
        super().__init__(name, TarImages({key: image for key, (image, _) in pairs.items()}), (ALL_LANGUAGES,), {})
        self.captions = [caption for _, caption in pairs.values()]

    def sample(self, num_images: int) -> HeldOutPairs:
        part, index = self.part(max(num_images, 2))
        part.captions = [self.captions[i] for i in index]
        return part

    def texts(self, language: str) -> Sequence[str]:  # noqa: ARG002
        return tuple(dict.fromkeys(self.captions))

    def score(self, language: str, image_ND: Tensor, text_CD: Tensor) -> list[Score]:
        row = {text: index for index, text in enumerate(self.texts(language))}
        text_ND = text_CD[torch.tensor([row[caption] for caption in self.captions], device=text_CD.device)]
        protocol = "held-out" + self.suffix
        distance = metrics.alignment(image_ND, text_ND).cpu().numpy().astype(np.float32)
        copies_NR = torch.from_numpy(all_copies(len(image_ND))).to(image_ND.device, torch.float32)
        scores = [mean_score(protocol, "alignment", distance, 1)]
        for metric, embedding_ND in (("uniformity_image", image_ND), ("uniformity_text", text_ND)):
            drawn = metrics.uniformities(embedding_ND, copies_NR).cpu().numpy()
            value, number = metrics.uniformity(embedding_ND), len(embedding_ND)
            scores.append(Score(protocol, metric, value, number, number, replicates=drawn))
        return scores

    def predictions(self, language: str, image_ND: Tensor, text_CD: Tensor, num_names: int) -> pa.Table:  # noqa: ARG002
        """None: nothing is guessed."""
        return PREDICTIONS_SCHEMA.empty_table()


def read_pairs(folder: Path, num_pairs: int, seed: int) -> dict[str, tuple[Member, str]]:
    """key -> (image, first caption) of the first samples, in the order drawn by the seed, that have both."""
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise ValueError(f"{folder}: found no .tar file; {SOURCE}")
    samples, pairs = read_index(tars), {}
    for key in storage.keyed_order(seed, "held_out", 0, samples):
        texts: dict[str, Any] = {extension: samples[key][extension].read() for extension in ("txt", "json") if extension in samples[key]}
        record = parse(key, {"jpg": b"not decoded here", **texts})
        if record.captions:
            pairs[key] = (image_member(key, samples[key]), record.captions[0].text)
        if len(pairs) == num_pairs:
            break
    return pairs
