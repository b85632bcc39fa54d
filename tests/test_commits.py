"""Baselines of edited runs: what they are for later edits, and what they take."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import Baseline, SparseModule, sparsify
from tests.small import corner, small_inputs, small_unet

OPTIONS = {"backend": "eager", "dense_share": 0.0, "dense_above": 1.0, "dilate": 1}


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"norm": "baseline"}, {"policy": "exact"}])
@torch.no_grad()
def test_the_same_edit_again_gives_the_same(options: dict[str, str]) -> None:
    sparse, (x, *others), mask = (
        sparsify(small_unet(), **OPTIONS, **options),
        small_inputs(),
        corner(),
    )
    output, baseline = sparse.record(x, *others)
    edited = torch.where(mask, x + 1, x)
    first, committed = sparse.update(baseline, edited, *others, mask=mask, commit=True)
    close(first, sparse.update(baseline, edited, *others, mask=mask))
    for sites in (mask, mask.flip(0), torch.ones_like(mask)):
        if sites is mask or "policy" in options:  # others see the new statistics
            close(sparse.update(committed, edited, *others, mask=sites), first)
    close(sparse.update(baseline, x, *others, mask=mask), output)


@torch.no_grad()
def test_a_hundred_commits_do_not_drift() -> None:
    """Each undoes the one before; what no mask touched is carried bit for bit."""
    sparse, (x, *others), mask = sparsify(small_unet(), **OPTIONS), small_inputs(), corner()
    _, baseline = sparse.record(x, *others)
    edited = torch.where(mask, x + 1, x)
    outputs, sizes = [], []
    for number in range(102):
        image = x if number % 2 else edited
        output, baseline = sparse.update(baseline, image, *others, mask=mask, commit=True)
        outputs.append(output)
        sizes.append(baseline.nbytes)
    close(outputs[-2], outputs[2])
    close(outputs[-1], outputs[3])
    assert len(set(sizes)) == 1


class Film(nn.Module):
    """A block of guided diffusion: a norm that a timestep scales and shifts."""

    def __init__(self, film: bool) -> None:
        super().__init__()
        self.enter, self.leave = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList([nn.GroupNorm(2, 8), nn.GroupNorm(2, 16)])
        self.time, self.film = nn.Linear(4, 16 if film else 8), film
        self.last = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.enter(x)
        h, own = self.leave(x), self.time(time)[:, :, None, None]
        if self.film:
            scale, shift = own.chunk(2, 1)
            h = self.norms[0](h) * (1 + scale) + shift
        else:
            h = self.norms[0](h + own)
        h = self.enter(F.silu(h)) + x
        return self.last(F.silu(self.norms[1](torch.cat([h, x], 1))))


def memory(model: nn.Module, *inputs: Tensor) -> tuple[SparseModule, Baseline, dict[str, int]]:
    sparse = sparsify(model.eval(), **OPTIONS)
    _, baseline = sparse.record(*inputs)
    return sparse, baseline, dict(sparse._engine.program_of(baseline).runtime.kept_bytes)


@pytest.mark.parametrize("film", [False, True])
@torch.no_grad()
def test_what_commits_keep_takes_no_memory_before(film: bool) -> None:
    """Five maps: input, output, both parts of the second norm, what the first norm reads."""
    torch.manual_seed(0)
    x, time, mask = torch.randn(1, 8, 16, 16), torch.randn(1, 4), corner()
    sparse, baseline, kept = memory(Film(film), x, time)
    one = x.nbytes
    assert sum(size >= one for size in kept.values()) == 5
    assert baseline.nbytes < 5.1 * one
    edited = torch.where(mask, x + 1, x)
    first, committed = sparse.update(baseline, edited, time, mask=mask, commit=True)
    close(sparse.update(committed, edited, time, mask=mask), first)
    far, other = corner().flip(0, 1), 2 * time
    _, both = sparse.update(committed, edited, other, mask=far, commit=True)
    again = sparse.update(both, edited, other, mask=far)
    once, _ = sparse.update(both, edited, other, mask=far, commit=True)
    close(again, once)


@pytest.mark.parametrize("commit", [False, True])
@torch.no_grad()
def test_one_compilation_serves_commits(commit: bool) -> None:
    """The copies are other tensors in one memory, not one tensor twice."""
    sparse, inputs = sparsify(small_unet(), **OPTIONS), small_inputs()
    _, baseline = sparse.record(*inputs)
    if commit:
        _, baseline = sparse.update(baseline, *inputs, mask=corner(), commit=True)
    assert len(set(map(id, baseline.values.values()))) == len(baseline.values)
    copies = sparse.graphs(*inputs).copies
    assert copies
    for name, first in copies.items():
        own, other = baseline.values[name], baseline.values[first]
        assert (own.shape, own.stride()) == (other.shape, other.stride())
        assert (own.data_ptr() == other.data_ptr()) == (not commit)
