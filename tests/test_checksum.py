"""Checksums of tensors see what they promise to, in C++ and by tensor operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.codegen import checksum
from sparsify.codegen.checksum import Memory
from torch import Tensor

from sparsify.state import Fingerprint

PAGE = 16384


@pytest.fixture(params=["C++", "torch"], autouse=True, scope="module")
def compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """With a compiler and without one."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(checksum, "_library", lambda: None)
        yield


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5 * PAGE), st.data())
def test_every_byte_counts(size: int, data: st.DataObject) -> None:
    """Any one byte, wherever it stands."""
    tensor = torch.arange(size).to(torch.uint8)
    memory = Memory([torch.ones(3), tensor])
    before, index = memory.whole(), data.draw(st.integers(0, size - 1))
    assert memory.whole() == before
    tensor[index] += data.draw(st.integers(1, 255))
    assert memory.whole() != before


CHANGES: list[Callable[[Tensor], object]] = [
    lambda t: t.neg_(),
    lambda t: t[::2].neg_(),
    lambda t: t.mul_(2),
    lambda t: t.copy_(t.flip(0)),
    lambda t: t.copy_(t.roll(8)),
    lambda t: t[PAGE:].zero_(),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_changes_of_many_numbers_are_seen_in_a_sample(
    change: Callable[[Tensor], object], dtype: torch.dtype
) -> None:
    tensor = torch.randn(80 * PAGE).to(dtype)
    memory = Memory([tensor])
    before = memory.sampled(), memory.whole()
    change(tensor)
    after = memory.sampled(), memory.whole()
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_sums_of_many_threads_are_those_of_one() -> None:
    memory, threads = Memory([torch.randn(1 << 20), torch.randn(77)]), torch.get_num_threads()
    before = memory.whole()
    torch.set_num_threads(1)
    try:
        assert memory.whole() == before
    finally:
        torch.set_num_threads(threads)


def test_odd_tensors() -> None:
    """Strides, gaps, repetitions, nothing at all, and no memory to read."""
    base = torch.randn(40, 50)
    tensors = [base.t(), base[::3, ::2], base[1].expand(9, 50), base[:0], torch.tensor(2.0)]
    tensors += [torch.empty(4, device="meta"), base.to_sparse(), base[1:, 1:].half()]
    fingerprint = Fingerprint(tensors)
    before = fingerprint.content()
    assert before == Fingerprint(tensors).content() == fingerprint.content(whole=True)
    base.detach().numpy()[1, 2] += 1
    assert fingerprint.content() != before


def test_equal_contents_elsewhere_are_the_same() -> None:
    """So a baseline may outlive its process."""
    tensors = [torch.randn(30, 7), torch.arange(5)]
    copies = [tensor.clone() for tensor in tensors]
    assert Fingerprint(tensors).content() == Fingerprint(copies).content()
    assert Fingerprint(tensors).content() != Fingerprint(copies[::-1]).content()
