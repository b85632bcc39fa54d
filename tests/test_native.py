"""Where there is no C++ compiler."""

from __future__ import annotations

import pytest
import torch
from sparsify.codegen import kernel_map, tables
from sparsify.codegen.gather_matmul import cpp
from sparsify.codegen.geometry import Window
from sparsify.codegen.operators import native
from sparsify.codegen.prepack import fits


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning, plain weights and tensor operations for kernel maps."""
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
            assert not fits("panels", torch.device("cpu"), torch.float32, width=16, groups=1)
        with pytest.warns(UserWarning, match="kernel_map .*: no c\\+\\+ here"):
            got = tables.kernel_map(window, torch.tensor([3, 8]), None)
        assert all(map(torch.equal, got, want))
    finally:
        for cached in caches:
            cached.cache_clear()
