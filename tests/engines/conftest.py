"""One Ray for all tests of the engines, started by an engine: it takes seconds, and minutes beside other work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mc2.engines.ray import RayEngine
from tests.engines.functions import square


@pytest.fixture(scope="session")
def ray_engine() -> Iterator[RayEngine]:
    """An engine that started a Ray of two CPUs; others of this process join it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # 15 otherwise
        engine = RayEngine(workers=2, progress=False)
        engine.map("start", square, ["1"])
        yield engine
        engine.close()


@pytest.fixture(scope="session")
def ray_address(ray_engine: RayEngine) -> str:
    """Where that Ray is reached from other processes."""
    import ray

    assert ray_engine.map("run", square, ["2"]) == [4]
    address: str = ray.get_runtime_context().gcs_address
    return address
