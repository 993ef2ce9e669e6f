"""Alignment and uniformity against sums over pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mc2.benchmarks import tasks
from tests.benchmarks import layouts
from tests.benchmarks.slow_scores import scored
from tests.benchmarks.toys import square


def test_held_out_pairs_give_alignment_and_uniformity(tmp_path: Path) -> None:
    samples = [(f"p{index}", {"jpg": square(index), "txt": f"caption {index % 5}".encode()}) for index in range(8)]
    layouts.write_tar(tmp_path / "0.tar", [*samples, ("blank", {"jpg": square(0), "txt": b" "})])
    task = tasks.HeldOutPairs(str(tmp_path), num_pairs=6)
    assert len(task.image_set.keys) == 6
    found, image, vector = scored(task, "mul")
    text = np.stack([vector(f"caption {int(key[1:]) % 5}") for key in task.image_set.keys])
    assert found["held-out", "alignment"].value == pytest.approx(
        np.mean([np.sum((x - y) ** 2) for x, y in zip(image, text, strict=True)]), rel=1e-5
    )
    for metric, vectors in (("uniformity_image", image), ("uniformity_text", text)):
        terms = [np.exp(-2 * np.sum((vectors[i] - vectors[j]) ** 2)) for i in range(6) for j in range(i)]
        assert found["held-out", metric].value == pytest.approx(np.log(np.mean(terms)), rel=1e-4)
