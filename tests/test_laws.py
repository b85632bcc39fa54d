"""The laws of updates, on random networks, edits and masks.

Tolerances are measured, not chosen: :func:`tolerance` runs the dense model in float64 with every
operator's result off by a known small amount and sees how far its outputs move.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sparsify.passes.analyze import AnalyzeLayout
from sparsify.passes.canonicalize import Canonicalize
from sparsify.passes.capture import capture
from sparsify.passes.layout import Layout
from sparsify.passes.masks import PropagateMasks
from sparsify.passes.oracle import Baseline, Oracle
from torch import Tensor
from torch._dynamo.utils import counters
from torch.fx import Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsify import SparseModule, sparsify
from tests import networks
from tests.networks import MASKS, MaskRecipe, Recipe, recipes

Policy = Literal["fixed", "exact"]
Norm = Literal["updated", "baseline"]
Inputs = tuple[Tensor, Tensor, Tensor]
POLICIES = st.sampled_from(["fixed", "exact"])
# Each example captures a model once or more; the two laws that imply most others get the most.
FEWER = settings(max_examples=settings.default.max_examples // 3)
SEVERAL_MASKS = st.lists(MASKS, min_size=1, max_size=4)

# -- tolerances ---------------------------------------------------------------------------------

_STEP = 1e-7

# Each operator is a sum of at most 25 taps * 12 channels = 300 products of size <= scale, whose
# rounding errors add up like a random walk: sqrt(300) = 17 units of eps * scale.
_SLACK = 17.0


class _Rounding(TorchFunctionMode):
    """Moves every floating-point result by up to ``_STEP`` times its largest value."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or not result.is_floating_point() or not result.numel():
            return result
        noise = torch.rand(result.shape, generator=self._generator, dtype=result.dtype) * 2 - 1
        return result + noise * (_STEP * result.abs().max())


@torch.no_grad()
def tolerance(recipe: Recipe, *runs: Inputs) -> float:
    """How far rounding may move an output of the network on any of these inputs.

    eps(dtype) * slack * (change of the output per relative error made at every operator). The
    second factor holds the depth, the scale of the values, and what the network amplifies.
    """
    model = replace(recipe, dtype=torch.float64).build()
    worst = 0.0
    for run in runs:
        inputs = tuple(value.double() for value in run)
        want = tree_leaves(model(*inputs))
        with _Rounding():
            noisy = tree_leaves(model(*inputs))
        worst = max(worst, *(_distance(a, b) for a, b in zip(noisy, want, strict=True)))
    scale = max(float(leaf.abs().max()) for leaf in want)
    return float(torch.finfo(recipe.dtype).eps) * _SLACK * (worst / _STEP + scale)


def _distance(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).abs().max())


def assert_close(got: Any, want: Any, allowed: float) -> None:
    """All leaves, in shape and dtype, and in value to ``allowed``."""
    for ours, theirs in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        error = _distance(ours, theirs)
        assert error <= allowed, f"off by {error:.3g}, allowed {allowed:.3g}"


def assert_same(got: Any, want: Any) -> None:
    """All leaves, bit for bit."""
    for ours, theirs in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert torch.equal(ours, theirs)


# -- reference ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    """The settings of policy "fixed"."""

    norm: Norm = "updated"
    dilate: int = 1
    dense_share: float = 0.0


FIXED = st.builds(
    Fixed,
    norm=st.sampled_from(["updated", "baseline"]),
    dilate=st.integers(0, 2),
    dense_share=st.sampled_from([0.0, 0.0, 0.3]),
)


class Reference:
    """The oracle on a graph of its own, with masks made without the compiler's tables."""

    def __init__(self, recipe: Recipe, fixed: Fixed) -> None:
        self.fixed = fixed
        self.module = capture(recipe.build(), recipe.inputs(), {}).module
        layouts = (Layout.image(recipe.inputs()[0].shape), None, None)
        for step in (Canonicalize(), AnalyzeLayout(layouts)):
            self.module = step(self.module)
        nodes = [node for node in self.module.graph.nodes if node.op != "output"]
        policy = PropagateMasks(recipe.grid, dilate=fixed.dilate, dense_share=fixed.dense_share)
        self._dense_grids = policy.dense_grids(nodes)
        self._nodes = nodes

    def masks(self, mask: Tensor) -> dict[Node, Tensor]:
        """The active mask of every node that is not computed whole."""
        wide = _dilate(mask, self.fixed.dilate).double()[None]
        masks: dict[Node, Tensor] = {}
        for node in self._nodes:
            layout = node.meta["layout"]
            if not isinstance(layout, Layout) or not layout.packable:
                continue
            if layout.grid in self._dense_grids:
                continue
            is_pad = node.target is torch.ops.aten.pad.default and layout.is_image
            before = masks.get(node.args[0]) if is_pad else None
            if before is not None:
                masks[node] = F.pad(before.double()[None], node.args[1], *node.args[2:3])[0] > 0
            else:
                masks[node] = F.adaptive_max_pool2d(wide, layout.grid)[0] > 0
        return masks

    def update(self, before: Inputs, after: Inputs, mask: Tensor) -> Any:
        """The contract, spelt out."""
        baseline = Baseline(self.module)
        baseline.run(*before)
        oracle = Oracle(self.module, baseline.env, self.masks(mask), self.fixed.norm)
        return oracle.run(*after)

    def active_outputs(self, mask: Tensor) -> list[Tensor | None]:
        """Per output the sites that an update may change, broadcast to its shape; None: all."""
        masks = self.masks(mask)
        outputs = tree_leaves(self.module.graph.output_node().args[0])
        return [_on_axes(node, masks[node]) if node in masks else None for node in outputs]


def _dilate(mask: Tensor, pixels: int) -> Tensor:
    wide = torch.zeros_like(mask)
    for y, x in mask.nonzero().tolist():
        top, left = max(0, y - pixels), max(0, x - pixels)
        wide[top : y + pixels + 1, left : x + pixels + 1] = True
    return wide


def _on_axes(node: Node, mask: Tensor) -> Tensor:
    layout: Layout = node.meta["layout"]
    space, at = layout.space, layout.site_dim
    beside = [torch.ones(size, dtype=torch.bool) for size in (space.before, space.after)]
    line = torch.cat([beside[0], mask.flatten().repeat(space.outer), beside[1]])
    after = len(layout.dims) - at - (1 if layout.merged else 2)
    return (
        line.reshape(-1, *[1] * after)
        .expand(*layout.shape[:at], -1, *layout.shape[len(layout.dims) - after :])
        .reshape(layout.shape)
    )


# -- what the tests share -----------------------------------------------------------------------


def wrapped(recipe: Recipe, **config: Any) -> SparseModule:
    return sparsify(recipe.build(), **{"backend": "eager", "dense_share": 0.0, **config})


def edit(recipe: Recipe, mask: Tensor | None = None, seed: int = 1) -> Inputs:
    """The recorded inputs with a new image inside ``mask`` (None: everywhere)."""
    image, condition, context = recipe.inputs()
    new = recipe.inputs(seed)[0]
    return (new if mask is None else torch.where(mask, new, image)), condition, context


@torch.no_grad()
def dense(recipe: Recipe, inputs: Inputs) -> Any:
    return recipe.build()(*inputs)


def cloned(tree: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, tree)


# -- the laws -----------------------------------------------------------------------------------


# Columns before rows and back: what lies between is on a grid, but cannot be packed.
TRANSPOSED_TWICE = Recipe(
    (networks.Unruled("transpose"), networks.Unruled("transpose"), networks.Pointwise("silu")),
    *((5, 9), 2, 1, torch.float64, "image", 115),
)


@example(TRANSPOSED_TWICE, [MaskRecipe("blobs", 15)], Fixed(), False)
@given(recipes() | recipes(networks.DIFFUSION), SEVERAL_MASKS, FIXED, st.booleans())
def test_update_equals_the_oracle(
    recipe: Recipe, masks: list[MaskRecipe], fixed: Fixed, new_conditions: bool
) -> None:
    """Also outside the mask the new image differs: there the recorded one counts."""
    before = recipe.inputs()
    after = recipe.inputs(1) if new_conditions else edit(recipe)
    sparse, reference = wrapped(recipe, **vars(fixed)), Reference(recipe, fixed)
    _, baseline = sparse.record(*before)
    allowed = tolerance(recipe, before, after)
    for active in (mask.build(recipe.grid) for mask in masks):
        if new_conditions and not active.any():
            continue  # no site is active, but what is computed whole sees the new conditions
        got = sparse.update(baseline, *after, mask=active)
        assert_close(got, reference.update(before, after, active), allowed)


@given(recipes() | recipes(networks.LOCAL), SEVERAL_MASKS)
def test_exact_update_equals_dense(recipe: Recipe, masks: list[MaskRecipe]) -> None:
    """Half of the networks are local: nothing switches their masks off."""
    before = recipe.inputs()
    sparse = wrapped(recipe, policy="exact")
    output, baseline = sparse.record(*before)
    assert_close(output, dense(recipe, before), tolerance(recipe, before))
    for active in (mask.build(recipe.grid) for mask in masks):
        edited = edit(recipe, active)
        got = sparse.update(baseline, *edit(recipe), mask=active)
        assert_close(got, dense(recipe, edited), tolerance(recipe, before, edited))


@FEWER
@given(recipes(), MASKS, POLICIES, FIXED)
def test_unchanged_input_gives_the_baseline(
    recipe: Recipe, mask: MaskRecipe, policy: Policy, fixed: Fixed
) -> None:
    inputs = recipe.inputs()
    sparse = wrapped(recipe, policy=policy, **vars(fixed))
    output, baseline = sparse.record(*inputs)
    again = sparse.update(baseline, *inputs, mask=mask.build(recipe.grid))
    assert_close(again, output, tolerance(recipe, inputs))


@FEWER
@given(recipes(), POLICIES, FIXED, st.booleans())
def test_empty_mask_gives_the_baseline_bit_for_bit(
    recipe: Recipe, policy: Policy, fixed: Fixed, commit: bool
) -> None:
    sparse = wrapped(recipe, policy=policy, **vars(fixed))
    output, baseline = sparse.record(*recipe.inputs())
    nothing = torch.zeros(recipe.grid, dtype=torch.bool)
    if commit:
        again, baseline = sparse.update(baseline, *edit(recipe), mask=nothing, commit=True)
        assert_same(again, output)
    assert_same(sparse.update(baseline, *edit(recipe), mask=nothing), output)


@FEWER
@given(recipes(), POLICIES)
def test_full_mask_with_new_conditions_equals_dense(recipe: Recipe, policy: Policy) -> None:
    before, after = recipe.inputs(), recipe.inputs(1)
    sparse = wrapped(recipe, policy=policy)
    _, baseline = sparse.record(*before)
    everything = torch.ones(recipe.grid, dtype=torch.bool)
    got = sparse.update(baseline, *after, mask=everything)
    assert_close(got, dense(recipe, after), tolerance(recipe, before, after))


@FEWER
@given(recipes(), MASKS, POLICIES, FIXED)
def test_edits_do_not_disturb_each_other(
    recipe: Recipe, mask: MaskRecipe, policy: Policy, fixed: Fixed
) -> None:
    """One plan serves several edits; the baseline stays as it is, bit for bit."""
    sparse = wrapped(recipe, policy=policy, **vars(fixed))
    _, baseline = sparse.record(*recipe.inputs())
    kept = cloned((baseline.values, baseline.outputs))
    plan = sparse.plan(mask.build(recipe.grid))
    first = sparse.update(baseline, *edit(recipe), mask=plan)
    copy = cloned(first)
    sparse.update(baseline, *edit(recipe, seed=2), mask=plan, commit=True)
    assert_same(sparse.update(baseline, *edit(recipe), mask=plan), copy)
    assert_same(first, copy)
    assert_same((baseline.values, baseline.outputs), kept)


@FEWER
@given(recipes(), MASKS, MASKS)
def test_committed_edits_equal_one_edit(
    recipe: Recipe, first: MaskRecipe, second: MaskRecipe
) -> None:
    masks, before = [first.build(recipe.grid), second.build(recipe.grid)], recipe.inputs()
    sparse = wrapped(recipe, policy="exact")
    _, baseline = sparse.record(*before)
    once = edit(recipe, masks[0])
    output, committed = sparse.update(baseline, *once, mask=masks[0], commit=True)
    image = torch.where(masks[1], recipe.inputs(2)[0], once[0])
    twice = (image, *before[1:])
    got, _ = sparse.update(committed, *twice, mask=masks[1], commit=True)
    allowed = tolerance(recipe, before, once, twice)
    assert_close(output, dense(recipe, once), allowed)
    assert_close(got, dense(recipe, twice), 2 * allowed)  # two roundings in sequence
    union = sparse.update(baseline, *twice, mask=masks[0] | masks[1])
    assert_close(got, union, 3 * allowed)


@FEWER
@given(recipes(), MASKS, POLICIES, st.booleans())
def test_what_the_caller_overwrites_later_does_not_count(
    recipe: Recipe, mask: MaskRecipe, policy: Policy, commit: bool
) -> None:
    active, edited = mask.build(recipe.grid), edit(recipe)
    results = []
    for overwrite in (False, True):
        sparse = wrapped(recipe, policy=policy)
        inputs, after, sites = cloned((recipe.inputs(), edited, active))
        output, baseline = sparse.record(*inputs)
        _spoil(overwrite, output, inputs)
        if commit:
            output, baseline = sparse.update(baseline, *after, mask=sites, commit=True)
            _spoil(overwrite, output, after)
        plan = sparse.plan(sites)
        _spoil(overwrite, sites)
        results.append(sparse.update(baseline, *edit(recipe, seed=2), mask=plan))
    assert_same(*results)


def _spoil(really: bool, *trees: Any) -> None:
    for leaf in tree_leaves(trees) if really else ():
        leaf.zero_()


@FEWER
@given(recipes(), MASKS, FIXED)
def test_not_a_number_stays_in_the_mask(recipe: Recipe, mask: MaskRecipe, fixed: Fixed) -> None:
    active = mask.build(recipe.grid)
    sparse = wrapped(recipe, **vars(fixed))
    output, baseline = sparse.record(*recipe.inputs())
    image, *conditions = edit(recipe)
    image = image.masked_fill(active, torch.nan)
    got = sparse.update(baseline, image, *conditions, mask=active)
    sites = Reference(recipe, fixed).active_outputs(active)
    for new, old, may_change in zip(tree_leaves(got), tree_leaves(output), sites, strict=True):
        if may_change is not None:
            assert torch.equal(new[~may_change], old[~may_change])


# -- compiled -----------------------------------------------------------------------------------


def _conv(
    out: int, kernel: int = 3, stride: int = 1, groups: int = 1, mode: str = "zeros"
) -> networks.Conv:
    pairs = (kernel, kernel), (stride, stride), (1, 1)
    return networks.Conv(out, *pairs, groups, kernel // 2, mode, (0, 0, 0, 0), True)


COMPILED = {
    "unet": (
        _conv(8),
        networks.Norm("group", 2),
        networks.Pointwise("silu"),
        _conv(8, stride=2),
        networks.Modulate("condition", False),
        networks.Attention("sdpa", "self", 2),
        networks.Resize("nearest", False, 2.0, False),
        networks.Join(5, False),
        _conv(4),
    ),
    "transformer": (
        networks.Linear(8, True, False),
        networks.Modulate("map", False),
        networks.Attention("matmul", "self", 2),
        networks.Attention("baddbmm", "cross", 1),
        networks.Linear(8, False, True),
        networks.Shuffle(True, 2),
    ),
    "resampling": (
        _conv(6, kernel=5, groups=0, mode="reflect"),
        networks.Pool("max", (3, 3), (2, 2), (1, 1), 1, True),
        networks.ConvTranspose(4, (4, 4), (2, 2), 1, 0, (1, 1), 2),
        networks.Resize("bilinear", False, 1.5, False),
        networks.Unruled("roll"),
        networks.Pool("average", (2, 2), (2, 2), (0, 0), 1, True),
        networks.SqueezeExcite(),
    ),
}


@pytest.mark.parametrize("name", COMPILED)
def test_one_compilation_serves_every_mask(name: str) -> None:
    """Compiled and eager agree; the conditions differ, so the empty mask is run as well."""
    recipe = Recipe(COMPILED[name], (8, 10), 1, 3, torch.float32, "several", seed=0)
    before, after = recipe.inputs(), recipe.inputs(1)
    allowed = tolerance(recipe, before, after)
    torch._dynamo.reset()
    compiled, eager = (wrapped(recipe, dilate=0, backend=b) for b in ("inductor", "eager"))
    (output, baseline), (want, reference) = (s.record(*before) for s in (compiled, eager))
    assert_close(output, want, allowed)
    counters.clear()
    some = torch.rand(recipe.grid, generator=torch.Generator().manual_seed(0)) < 0.3
    for mask in (some, _one_site(recipe.grid), torch.zeros_like(some), torch.ones_like(some)):
        got = compiled.update(baseline, *after, mask=mask)
        assert_close(got, eager.update(reference, *after, mask=mask), allowed)
    assert counters["stats"]["unique_graphs"] == 1


def _one_site(grid: tuple[int, int]) -> Tensor:
    return MaskRecipe("one site", 3).build(grid)
