"""Where there is no C++ compiler."""

from __future__ import annotations

import pytest
import torch
from sparsify.codegen import kernel_map, products, tables
from sparsify.codegen.gather_matmul import cpp
from sparsify.codegen.geometry import Window
from sparsify.codegen.operators import native


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning, the library's products and tensor operations for kernel maps."""
    from torch._inductor.codecache import CppCodeCache

    def fails(*_: object, **__: object) -> None:
        raise FileNotFoundError("no c++ here")

    window = Window((5, 7), (5, 7), (3, 3), padding=(1, 1))
    want = tables.kernel_map(window, torch.tensor([3, 8]), None)
    caches = (native.library, cpp._library, kernel_map._library)
    for cached in caches:
        cached.cache_clear()
    monkeypatch.setattr(CppCodeCache, "load", fails)
    try:
        with pytest.warns(UserWarning, match="gather_matmul .*: no c\\+\\+ here"):
            weight = products.conv_weight(torch.randn(16, 4, 3, 3), 1, False, True)
        assert weight.shape == (1, 36, 16)
        with pytest.warns(UserWarning, match="kernel_map .*: no c\\+\\+ here"):
            got = tables.kernel_map(window, torch.tensor([3, 8]), None)
        assert all(map(torch.equal, got, want))
    finally:
        for cached in caches:
            cached.cache_clear()
