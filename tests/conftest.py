"""What tests of several parts share: one finished quickstart on a few drawings."""

from __future__ import annotations

import signal

import pytest

from mc2.quickstart import drawings, pool, tasks
from mc2.quickstart.run import Quickstart

STEPS = 52  # the warm-up of the experiment has 50

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background job begins without it, and tests of Ctrl-C would wait for ever


@pytest.fixture(scope="session")
def few_drawings() -> list[drawings.Drawing]:
    """70 drawings of all kinds, some of them held out."""
    held_out = drawings.split(450, 0.25).held_out_drawings
    everything = drawings.load_drawings()
    return [drawing for drawing in everything if drawing.key in held_out][:6] + [d for d in everything if d.key not in held_out][::60]


@pytest.fixture(scope="session")
def quickstart_run(few_drawings: list[drawings.Drawing], tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """A finished run of the real stages and the real experiment."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (pool, tasks):
            patch.setattr(module, "load_drawings", lambda: few_drawings)
        quickstart = Quickstart(
            tmp_path_factory.mktemp("quickstart") / "run", vocab_size=1500, steps=STEPS, queries=["ein Fuchs", "<b>猫</b>"]
        )
        quickstart.run()
    return quickstart
