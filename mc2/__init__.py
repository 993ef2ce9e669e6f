"""mc2: the Meta CLIP 2 recipe as a PyTorch Lightning experiment kit. `import mc2` is light; torch is imported at the first use of `load`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mc2.interchange.model_directory import Clip, load

__version__ = "0.1.0"
__all__ = ["Clip", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name in ("Clip", "load"):
        from mc2.interchange import model_directory

        return getattr(model_directory, name)
    raise AttributeError(f"module 'mc2' has no attribute {name!r}")
