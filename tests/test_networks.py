"""Every network that must work: right, and packed, in its published configuration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.networks import Network, full, small
from sparsify import sparsify
from sparsify.masks import centred_square
from sparsify.oracle import oracle, relative
from sparsify.signature import bind
from tests.agreement import captured_once

NAMES = sorted(small())
SHARES = (0.01, 0.3)


def built(network: Network) -> tuple[torch.nn.Module, tuple, dict]:
    torch.manual_seed(0)
    model = network.build().eval()
    args, kwargs = network.inputs()
    return model, args, kwargs


def edited(args: tuple, mask: Tensor) -> tuple:
    """The first input, changed a little inside the mask: a large change would make a network of
    random weights chaotic, and rounding would then be all that a comparison shows."""
    return (torch.where(mask, args[0] + 0.1 * torch.randn_like(args[0]), args[0]), *args[1:])


def first(output: object) -> Tensor:
    return tree_leaves(output)[0]


# Stable Diffusion XL is built of the blocks of 1.5.
XL = pytest.param("stable-diffusion-xl", marks=pytest.mark.deep)


@pytest.mark.parametrize("name", [XL if name in XL.values else name for name in NAMES])
def test_updates_are_right(name: str) -> None:
    """Policy "fixed" against the oracle, "exact" against the dense run; one capture for all."""
    model, args, kwargs = built(small()[name])
    with captured_once(model, *args, **kwargs):
        for norm in ("updated", "baseline") if name == "terrain" else ("updated",):
            fixed_equals_oracle(model, args, kwargs, norm)
        exact_equals_dense(model, args, kwargs)


def fixed_equals_oracle(model: torch.nn.Module, args: tuple, kwargs: dict, norm: str) -> None:
    sparse = sparsify(model, backend="eager", dilate=1, norm=norm)
    output, baseline = sparse.record(*args, **kwargs)
    for share in SHARES:
        mask = centred_square(baseline.grid, share)
        plan = sparse.plan(mask)
        unchanged = sparse.update(baseline, *args, mask=plan, **kwargs)
        assert relative(first(unchanged), first(output)) <= 1e-5
        new = edited(args, mask)
        update = sparse.update(baseline, *new, mask=plan, **kwargs)
        leaves = [bind(model, inputs, kwargs).leaves for inputs in (args, new)]
        assert (
            relative(
                first(update), first(oracle(sparse._engine.program_of(baseline), plan, *leaves))
            )
            <= 1e-5
        )


def exact_equals_dense(model: torch.nn.Module, args: tuple, kwargs: dict) -> None:
    sparse = sparsify(model, backend="eager", policy="exact")
    _, baseline = sparse.record(*args, **kwargs)
    for share in SHARES:
        mask = centred_square(baseline.grid, share)
        new = edited(args, mask)
        with torch.no_grad():
            dense = first(model(*new, **kwargs))
        assert relative(first(sparse.update(baseline, *new, mask=mask, **kwargs)), dense) <= 1e-4


# Ten of them to a place: half a minute of capture.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in XL.values])
def test_published_configuration_is_packed(name: str) -> None:
    """Shapes alone decide, so the full size is captured without memory for its weights."""
    network = full()[name]
    with torch.device("meta"):
        model = network.build().eval()
        inputs = network.inputs()
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs)
    sparse = sparsify(model, dense_share=0.0, dilate=network.dilate)
    sparse.graphs(*args, **kwargs)
    report = sparse.report()
    assert report.share("packed") >= 0.98
    assert not report.fallbacks
