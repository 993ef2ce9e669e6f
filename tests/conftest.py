"""What all tests share: Ctrl-C as in a fresh process, names that are the same in every worker, and one finished quickstart on a few drawings."""

from __future__ import annotations

import os
import signal

import pytest

from mc2.quickstart import drawings, pool, tasks
from mc2.quickstart.run import Quickstart

STEPS = 8
SMALLER = {"batch_size: 256": "batch_size: 32", "warmup_steps: 50": "warmup_steps: 4"}

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: a thread each, and in the processes that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def ctrl_c() -> None:
    """As in a fresh process: a shell's background job begins without the handler, and Lightning ignores Ctrl-C after an interrupted fit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A file's bytes are no name of a test: gzip writes the time into them, and pytest-xdist wants the same names in every worker."""
    return argname if isinstance(val, bytes) else None


class SmallerBatches(Quickstart):
    """The real stages and the real experiment, in seconds."""

    def experiment(self) -> str:
        text = super().experiment()
        for setting, smaller in SMALLER.items():
            assert setting in text
            text = text.replace(setting, smaller)
        return text


@pytest.fixture(scope="session")
def few_drawings() -> list[drawings.Drawing]:
    """70 drawings of all kinds, some of them held out."""
    held_out = drawings.split(450, 0.25).held_out_drawings
    everything = drawings.load_drawings()
    return [drawing for drawing in everything if drawing.key in held_out][:6] + [d for d in everything if d.key not in held_out][::60]


@pytest.fixture(scope="session")
def quickstart_run(few_drawings: list[drawings.Drawing], tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """A finished run."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (pool, tasks):
            patch.setattr(module, "load_drawings", lambda: few_drawings)
        quickstart = SmallerBatches(
            tmp_path_factory.mktemp("quickstart") / "run", vocab_size=1500, steps=STEPS, queries=["ein Fuchs", "<b>猫</b>"]
        )
        quickstart.run()
    return quickstart
