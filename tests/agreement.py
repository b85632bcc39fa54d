"""Do the updates of a network without any preparation agree with dense runs and the oracle?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from sparsify.codegen.tables import grid_mask
from sparsify.passes.capture import Captured, capture
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from sparsify import Baseline, SparseModule, sparsify
from sparsify.oracle import oracle, relative
from sparsify.report import Report
from sparsify.signature import bind

Grid = tuple[int, int]
Errors = dict[str, float]
"""The largest for each output, by name; relative to the largest magnitude of the output."""
ALLOWED = 1e-5
"""The largest error in float32; all but the deepest of these networks stay below 1e-6."""


def nearby(old: Tensor, generator: torch.Generator) -> Tensor:
    return old + torch.randn(old.shape, generator=generator).to(old.dtype) / 2


@dataclass
class Example:
    """A network and its inputs. ``edits`` names those that change inside a mask, ``draw`` makes
    their new values."""

    model: nn.Module
    inputs: dict[str, Any]
    edits: tuple[str, ...] = ("x",)
    grids: dict[str, Grid | None] = field(default_factory=dict)
    draw: Callable[[Tensor, torch.Generator], Tensor] = nearby

    def __post_init__(self) -> None:
        self.model.eval()

    def cast(self, dtype: torch.dtype) -> Example:
        def to(value: Any) -> Any:
            is_float = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if is_float else value

        inputs = {name: to(value) for name, value in self.inputs.items()}
        return replace(self, model=self.model.to(dtype), inputs=inputs)

    def edited(
        self, mask: Tensor, before: dict[str, Any] | None = None, seed: int = 1
    ) -> dict[str, Any]:
        """``before`` (else the recorded inputs) with other values inside ``mask``."""
        inputs, generator = dict(before or self.inputs), torch.Generator().manual_seed(seed)
        for name in self.edits:
            old, grid = inputs[name], self.grids.get(name)
            inside = grid_mask(mask, grid or tuple(old.shape[-2:]))
            inside = inside.flatten()[:, None] if old.dim() == 3 else inside
            inputs[name] = torch.where(inside, self.draw(old, generator), old)
        return inputs

    def sparse(self, policy: str) -> tuple[SparseModule, Any, Baseline]:
        """The rewritten network after its recorded run."""
        options = {"dilate": 0, "dense_share": 0.0, "grids": self.grids, "backend": "eager"}
        sparse = sparsify(self.model, policy=policy, **options)
        return sparse, *sparse.record(**self.inputs)


def masks(grid: Grid) -> Iterator[Tensor]:
    """Empty, one site, a square in a corner, scattered sites, all."""
    height, width = grid
    yield torch.zeros(grid, dtype=torch.bool)
    yield _rectangle(grid, height // 2, width // 3, 1)
    yield _rectangle(grid, 0, 0, max(2, height // 3))
    yield torch.rand(grid, generator=torch.Generator().manual_seed(0)) < 0.1
    yield torch.ones(grid, dtype=torch.bool)


def _rectangle(grid: Grid, top: int, left: int, size: int) -> Tensor:
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[top : top + size, left : left + size] = True
    return mask


class Worst:
    """Collects the largest error of every output."""

    def __init__(self) -> None:
        self.errors: Errors = {}

    def add(self, got: Any, want: Any) -> None:
        if not isinstance(want, dict):
            got, want = {"": got}, {"": want}
        for name in want:
            for ours, theirs in zip(tree_leaves(got[name]), tree_leaves(want[name]), strict=True):
                self._add(name, ours, theirs)

    def _add(self, name: str, got: Any, want: Any) -> None:
        if not isinstance(want, Tensor):
            assert got == want, name
            return
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        error = relative(got, want) if want.is_floating_point() else float((got != want).any())
        self.errors[name] = float(torch.tensor([self.errors.get(name, 0.0), error]).max())


def above(errors: Errors, allowed: float) -> Errors:
    """The errors that are too large, or not numbers."""
    return {name: error for name, error in errors.items() if not error <= allowed}


@torch.no_grad()
def exact_errors(example: Example, *chosen: Tensor) -> Errors:
    """Policy "exact" against dense runs: of the recorded inputs, of an edit in each mask, and of
    a second edit after another was committed."""
    worst = Worst()
    sparse, output, baseline = example.sparse("exact")
    worst.add(output, example.model(**example.inputs))
    several = chosen or tuple(masks(baseline.grid))
    for mask in several:
        inputs = example.edited(mask)
        worst.add(sparse.update(baseline, mask=mask, **inputs), example.model(**inputs))
    first, second = several[len(several) // 2], several[-1 - len(several) // 4]
    inputs = example.edited(first)
    _, later = sparse.update(baseline, mask=first, commit=True, **inputs)
    inputs = example.edited(second, inputs, seed=2)
    worst.add(sparse.update(later, mask=second, **inputs), example.model(**inputs))
    return worst.errors


@torch.no_grad()
def fixed_errors(example: Example, *chosen: Tensor, **new: Tensor) -> tuple[Errors, Report]:
    """Policy "fixed" against the oracle for an edit in each mask, and without an edit against the
    recorded run. ``new`` are other values of inputs that no mask belongs to."""
    worst = Worst()
    sparse, output, baseline = example.sparse("fixed")
    old = bind(example.model, (), example.inputs).leaves
    for mask in chosen or masks(baseline.grid):
        plan = sparse.plan(mask)
        worst.add(sparse.update(baseline, mask=plan, **example.inputs), output)
        inputs = {**example.edited(mask), **new}
        got = sparse.update(baseline, mask=plan, **inputs)
        wanted = oracle(
            sparse._engine.program_of(baseline), plan, old, bind(example.model, (), inputs).leaves
        )
        worst.add(got, tree_unflatten(wanted, tree_flatten(output)[1]))
    return worst.errors, sparse.report()


@contextmanager
def captured_once(model: nn.Module, *args: Any, **kwargs: Any) -> Iterator[None]:
    """Inside, ``model`` is captured no more, which takes most of the time: for one signature."""
    captured = capture(model, args, kwargs)

    def copied(*_: Any, **__: Any) -> Captured:
        return replace(captured, module=deepcopy(captured.module))

    with patch("sparsify.numbers.capture", copied):
        yield


def assert_right(example: Example) -> Report:
    """Both policies, from one capture; the report of "fixed"."""
    call = bind(example.model, (), example.inputs)
    with captured_once(example.model, *call.args, **call.kwargs):
        assert not above(exact_errors(example), ALLOWED)
        errors, report = fixed_errors(example)
        assert not above(errors, ALLOWED)
    return report
