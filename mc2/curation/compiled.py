"""Functions compiled by numba, kept on the disk between runs where there is a place to keep them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """The function compiled at its first call; it runs without the interpreter's lock. The code is cached beside the file or in the user's cache folder; in
    a place where neither can be written each process compiles anew, with the same results."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(nogil=True)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """The function as a part of each compiled function that calls it. A call proper counts the references of every array it passes, with atomic operations that
    cost more than the few instructions of a small function."""
    return numba.njit(nogil=True, inline="always")(function)


def compiled_without_nan(function: Callable[..., Any]) -> Any:
    """The function compiled for numbers that are never nan, so that comparisons may come in any order, with the same result."""
    return numba.njit(nogil=True, fastmath={"nnan", "nsz"})(function)
