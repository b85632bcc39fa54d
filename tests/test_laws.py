"""The laws of updates, on random networks, edits and masks."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsify import MaskError, SparseModule, sparsify
from tests import networks
from tests.attention_steps import Attention
from tests.channel_steps import Linear, Modulate, Norm, Pointwise, SqueezeExcite
from tests.gpu_free.as_on_cuda import as_on_cuda
from tests.networks import MASKS, Arguments, Join, MaskRecipe, Recipe, Unruled, recipes
from tests.picture_steps import CONVS, Conv, ConvTranspose, Pool, Resize, Shuffle
from tests.reference import FIXED, Fixed, Reference
from tests.rounding import assert_close, assert_same, tolerance

Policy = Literal["fixed", "exact"]
POLICIES = st.sampled_from(["fixed", "exact"])
# Each example captures a model once or more; the two laws that imply most others get the most.
FEWER = settings(max_examples=settings.default.max_examples // 3)
FEWEST = settings(max_examples=settings.default.max_examples // 6)
SEVERAL_MASKS = st.lists(MASKS, min_size=1, max_size=4)


# -- what the tests share -----------------------------------------------------------------------


def wrapped(recipe: Recipe, **config: Any) -> SparseModule:
    return sparsify(recipe.build(), **{"backend": "eager", "dense_share": 0.0, **config})


def edit(recipe: Recipe, mask: Tensor | None = None, seed: int = 1) -> Arguments:
    """The recorded inputs with a new image inside ``mask`` (None: everywhere)."""
    image, condition, context = recipe.inputs()
    new = recipe.inputs(seed)[0]
    return (new if mask is None else torch.where(mask, new, image)), condition, context


@torch.no_grad()
def dense(recipe: Recipe, inputs: Arguments) -> Any:
    return recipe.build()(*inputs)


def cloned(tree: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, tree)


# -- the laws -----------------------------------------------------------------------------------


# Columns before rows and back: what lies between is on a grid, but cannot be packed.
TRANSPOSED_TWICE = Recipe(
    (Unruled("transpose"), Unruled("transpose"), Pointwise("silu")),
    *((5, 9), 2, 1, torch.float64, "image", 115),
)


AUTOCAST = st.sampled_from([None, None, torch.bfloat16, torch.float16])


@example(TRANSPOSED_TWICE, [MaskRecipe("blobs", 15)], Fixed(), False, False, None)
@given(
    recipes() | recipes(networks.DIFFUSION),
    SEVERAL_MASKS,
    FIXED,
    st.booleans(),
    st.booleans(),
    AUTOCAST,
)
def test_update_equals_the_oracle(
    recipe: Recipe,
    masks: list[MaskRecipe],
    fixed: Fixed,
    new_conditions: bool,
    cuda: bool,
    autocast: torch.dtype | None,
) -> None:
    """Also outside the mask the new image differs: there the recorded one counts. What the caller
    casts by itself does not."""
    before = recipe.inputs()
    after = recipe.inputs(1) if new_conditions else edit(recipe)
    sparse = wrapped(recipe, dense_above=1.0, **vars(fixed))
    with as_on_cuda() if cuda else nullcontext():
        _, baseline = sparse.record(*before)
        reference = Reference(sparse, recipe, fixed)
    allowed = tolerance(recipe, before, after)
    for active in (mask.build(recipe.grid) for mask in masks):
        if new_conditions and not active.any():
            continue  # no site is active, but what is computed whole sees the new conditions
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
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


@st.composite
def with_a_product(draw: st.DrawFn) -> Recipe:
    """A network with a convolution somewhere, which every edit reaches."""
    recipe, conv = draw(recipes(max_steps=5)), draw(CONVS)
    at = draw(st.integers(0, len(recipe.steps)))
    return replace(recipe, steps=(*recipe.steps[:at], conv, *recipe.steps[at:]))


@FEWEST
@given(with_a_product(), MASKS.filter(lambda mask: mask.kind != "empty"), FIXED, st.booleans())
def test_large_edits_run_the_dense_model(
    recipe: Recipe, mask: MaskRecipe, fixed: Fixed, commit: bool
) -> None:
    """Between inputs and outputs that are the recorded ones outside the mask."""
    active = mask.build(recipe.grid)
    assume(active.any())
    sparse = wrapped(recipe, dense_above=0.0, **vars(fixed))
    reference = Reference(sparse, recipe, fixed)
    before, after = recipe.inputs(), edit(recipe)
    output, baseline = sparse.record(*before)
    plan = sparse.plan(active)
    assert plan.tables[baseline.key].is_dense
    got = sparse.update(baseline, *after, mask=plan, commit=commit)
    if commit:
        got, baseline = got
    image = torch.where(reference.widened(active), after[0], before[0])
    wanted = dense(recipe, (image, *before[1:]))
    allowed = tolerance(recipe, before, after)
    sites = reference.active_outputs(active)
    leaves = (tree_leaves(tree) for tree in (got, wanted, output))
    for new, whole, old, inside in zip(*leaves, sites, strict=True):
        assert_close(new, whole if inside is None else torch.where(inside, whole, old), allowed)
    if commit:
        again = sparse.update(baseline, image, *before[1:], mask=plan)
        assert_close(again, got, allowed)


@FEWEST
@given(recipes(), MASKS, POLICIES, FIXED)
def test_restricted_baselines_serve_their_mask(
    recipe: Recipe, mask: MaskRecipe, policy: Policy, fixed: Fixed
) -> None:
    active = mask.build(recipe.grid)
    sparse = wrapped(recipe, policy=policy, **vars(fixed))
    _, baseline = sparse.record(*recipe.inputs())
    small = sparse.restrict(baseline, active)
    assert small.nbytes <= baseline.nbytes
    assert_same(
        sparse.update(small, *edit(recipe), mask=active),
        sparse.update(baseline, *edit(recipe), mask=active),
    )
    with pytest.raises(MaskError, match="restricted to another mask"):
        sparse.update(small, *edit(recipe), mask=~active)


@FEWEST
@given(recipes(), MASKS, FIXED, st.sampled_from([torch.float16, torch.bfloat16]))
def test_narrow_baselines_differ_by_their_rounding_alone(
    recipe: Recipe, mask: MaskRecipe, fixed: Fixed, dtype: torch.dtype
) -> None:
    """A commit keeps the narrow form."""
    active, results = mask.build(recipe.grid), []
    narrow = wrapped(recipe, baseline_dtype=dtype, **vars(fixed))
    wide = wrapped(recipe, **vars(fixed))
    _, rounded = narrow.record(*recipe.inputs())
    _, baseline = wide.record(*recipe.inputs())
    names = [own.graphs(*recipe.inputs()).kept for own in (narrow, wide)]
    dtypes = {node: rounded.values[name].dtype for name, node in names[0].items()}
    # A value that is an output too may be kept in both forms.
    assume(len({(n, rounded.values[name].dtype) for name, n in names[0].items()}) == len(dtypes))
    values = dict(baseline.values)
    for name, node in names[1].items():
        values[name] = values[name].to(dtypes[node]).to(values[name].dtype)
    baseline = replace(baseline, values=values)
    for sparse, recorded in ((narrow, rounded), (wide, baseline)):
        got, new = sparse.update(recorded, *edit(recipe), mask=active, commit=True)
        results.append(got)
        for name, value in recorded.values.items():
            assert new.values[name].dtype == value.dtype
    assert_close(*results, tolerance(recipe, recipe.inputs(), edit(recipe)))


@FEWER
@given(recipes(), MASKS, POLICIES, FIXED)
def test_edits_do_not_disturb_each_other(
    recipe: Recipe, mask: MaskRecipe, policy: Policy, fixed: Fixed
) -> None:
    """One plan serves several edits; the baseline stays as it is, bit for bit."""
    sparse = wrapped(recipe, policy=policy, **vars(fixed))
    _, baseline = sparse.record(*recipe.inputs())
    kept = cloned((dict(baseline.values), baseline.outputs))
    plan = sparse.plan(mask.build(recipe.grid))
    first = sparse.update(baseline, *edit(recipe), mask=plan)
    copy = cloned(first)
    sparse.update(baseline, *edit(recipe, seed=2), mask=plan, commit=True)
    assert_same(sparse.update(baseline, *edit(recipe), mask=plan), copy)
    assert_same(first, copy)
    assert_same((dict(baseline.values), baseline.outputs), kept)


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


@given(
    recipes() | recipes(networks.DIFFUSION),
    st.lists(st.tuples(MASKS, st.booleans()), min_size=2, max_size=4),
    FIXED,
    st.booleans(),
)
def test_updates_after_commits_equal_the_oracle(
    recipe: Recipe, edits: list[tuple[MaskRecipe, bool]], fixed: Fixed, cuda: bool
) -> None:
    """From the oracle's own values; some edits come with other conditions, which stay."""
    inputs = recipe.inputs()
    sparse = wrapped(recipe, dense_above=1.0, **vars(fixed))
    with as_on_cuda() if cuda else nullcontext():
        _, baseline = sparse.record(*inputs)
        reference = Reference(sparse, recipe, fixed)
    values, runs = reference.record(inputs), [inputs]
    for number, (mask, new_conditions) in enumerate(edits, 1):
        active, new = mask.build(recipe.grid), recipe.inputs(number)
        if not active.any():
            continue  # what is computed whole would see the new conditions
        runs.append(new if new_conditions else (new[0], *runs[-1][1:]))
        got, baseline = sparse.update(baseline, *runs[-1], mask=active, commit=True)
        want, values = reference.commit(values, runs[-1], active)
        assert_close(got, want, (len(runs) - 1) * tolerance(recipe, *runs))


@FEWEST
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
    sites = Reference(sparse, recipe, fixed).active_outputs(active)
    for new, old, may_change in zip(tree_leaves(got), tree_leaves(output), sites, strict=True):
        if may_change is not None:
            assert torch.equal(new[~may_change], old[~may_change])


# -- compiled -----------------------------------------------------------------------------------


def _conv(out: int, kernel: int = 3, stride: int = 1, groups: int = 1, mode: str = "zeros") -> Conv:
    pairs = (kernel, kernel), (stride, stride), (1, 1)
    return Conv(out, *pairs, groups, kernel // 2, mode, (0, 0, 0, 0), True)


COMPILED = {
    "unet": (
        _conv(8),
        Norm("group", 2),
        Pointwise("silu"),
        _conv(8, stride=2),
        Modulate("condition", False),
        Attention("sdpa", "self", 2),
        Resize("nearest", False, 2.0, False),
        Join(5, False),
        _conv(4),
    ),
    "transformer": (
        Linear(8, True, False),
        Norm("rms", 1),
        Modulate("map", False),
        Attention("matmul", "self", 2),
        Attention("baddbmm", "cross", 1),
        Linear(8, False, True),
        Shuffle(True, 2),
    ),
    "resampling": (
        _conv(6, kernel=5, groups=0, mode="reflect"),
        Pool("max", (3, 3), (2, 2), (1, 1), 1, True),
        ConvTranspose(4, (4, 4), (2, 2), 1, 0, (1, 1), 2),
        Resize("bilinear", False, 1.5, False),
        Unruled("roll"),
        Pool("average", (2, 2), (2, 2), (0, 0), 1, True),
        SqueezeExcite(),
    ),
}


@pytest.mark.parametrize(("name", "cuda"), [*((name, False) for name in COMPILED), ("unet", True)])
def test_one_compilation_serves_every_mask(name: str, cuda: bool) -> None:
    """Compiled and eager agree, also under other conditions."""
    recipe = Recipe(COMPILED[name], (8, 10), 1, 3, torch.float32, "several", seed=0)
    before, after = recipe.inputs(), recipe.inputs(1)
    allowed = tolerance(recipe, before, after)
    torch._dynamo.reset()
    options = {"dilate": 0, "dense_above": 1.0}
    compiled, eager = (wrapped(recipe, **options, backend=b) for b in ("inductor", "eager"))
    with as_on_cuda() if cuda else nullcontext():
        output, baseline = compiled.record(*before)
    want, reference = eager.record(*before)
    assert_close(output, want, allowed)
    counters.clear()
    some = torch.rand(recipe.grid, generator=torch.Generator().manual_seed(0)) < 0.3
    for mask in (some, _one_site(recipe.grid), torch.ones_like(some)):
        got = compiled.update(baseline, *after, mask=mask)
        assert_close(got, eager.update(reference, *after, mask=mask), allowed)
    assert counters["stats"]["unique_graphs"] == 1


def _one_site(grid: tuple[int, int]) -> Tensor:
    return MaskRecipe("one site", 3).build(grid)


@torch.no_grad()
def test_compiled_large_edits_follow_the_weights() -> None:
    """They are constants of the compiled dense model."""
    recipe = Recipe(
        (_conv(8), Pointwise("silu"), _conv(4)), (8, 10), 1, 3, torch.float32, "image", 0
    )
    before, after = recipe.inputs(), edit(recipe)
    allowed = tolerance(recipe, before, after)
    model, everything = recipe.build(), torch.ones(recipe.grid, dtype=torch.bool)
    sparse = sparsify(model, dense_above=0.0)
    for _ in range(2):
        _, baseline = sparse.record(*before)
        got = sparse.update(baseline, *after, mask=everything)
        assert sparse.report().is_dense
        assert_close(got, model(*after), allowed)
        for weight in model.parameters():
            weight.neg_()
