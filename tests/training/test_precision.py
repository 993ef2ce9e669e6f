"""A processor without bf16: what is said, and what the quickstart does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from mc2.quickstart.run import Quickstart
from mc2.training import doctor, precision


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_the_quickstart_trains_in_what_the_processor_computes(
    has_bf16: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: has_bf16)
    assert yaml.safe_load(Quickstart(tmp_path).experiment())["trainer"]["precision"] == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what GPUs there are")
def test_the_doctor_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    monkeypatch.setattr(doctor, "cpu_computes_bf16", lambda: False)
    (found,) = doctor.check_gpu()
    assert found.text == "none: training runs on the CPU, which has no bf16: give --trainer.precision 32-true"
