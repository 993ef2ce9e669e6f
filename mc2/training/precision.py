"""Whether bf16 is worth it on a processor."""

from __future__ import annotations

import torch


def cpu_computes_bf16() -> bool:
    """Whether matrix products in bf16 are compiled for this processor (x86: AVX-512 or newer). Where they are not they take some thirty times as long as in fp32."""
    compiles = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(compiles and torch.ops.mkldnn._is_mkldnn_bf16_supported())
