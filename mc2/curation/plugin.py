"""Parts that the user names by class_path: an image encoder, a filter. They reach the workers as factories, and each worker builds its own, once."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def pickled(where: str, factory: Callable[[], object]) -> bytes:
    """The factory as it travels to the workers. Errors: ValueError for one that cannot travel, such as a lambda."""
    try:
        return pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{where}: {factory!r} cannot be sent to worker processes ({error}); give a class or functools.partial of one"
        ) from error


@lru_cache(maxsize=16)
def built_once(factory: bytes) -> Any:
    """What a pickled factory makes: once per process, whatever it loads (weights, say) stays in memory for the next shards."""
    return pickle.loads(factory)()
