"""Geometries and tables against torch's own operators, on random maps and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from sparsify.codegen import ops, products, tables
from sparsify.codegen.gather_matmul.reference import reference
from sparsify.codegen.geometry import (
    OUTSIDE,
    Geometry,
    Nearest,
    Pad,
    Resize,
    Same,
    TransposedWindow,
    Window,
    all_sites,
    grow,
    read,
)
from sparsify.codegen.prepack import prepack_conv
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.networks import MASKS, MaskRecipe
from tests.picture_steps import PAD_MODES

Pair = tuple[int, int]
KernelMap = Callable[[Geometry, Tensor | None, Tensor | None, bool], tuple[Tensor, Tensor]]
GRIDS = st.tuples(st.integers(2, 9), st.integers(2, 9))
SMALL = st.tuples(st.integers(0, 2), st.integers(0, 2))
POSITIVE = st.tuples(st.integers(1, 3), st.integers(1, 3))
DTYPES = st.sampled_from([torch.float64, torch.float32])
SEEDS = st.integers(0, 99)

# Sums of at most 16 taps * 4 channels of values below 5, in two orders: 64 * 25 * eps * 2.
TOLERANCE = 3200 * torch.finfo(torch.float64).eps


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass
class Gathered:
    """An image whose active values differ from the baseline's, ready to be gathered from.

    ``edited`` is the image that an operator should see.
    """

    edited: Tensor
    packed: Tensor
    halo: Tensor
    kernel_map: Tensor
    out_sites: Tensor | None

    @staticmethod
    def make(
        geometry: Geometry, channels: int, masks: tuple[MaskRecipe, MaskRecipe], seed: int
    ) -> Gathered:
        height, width = geometry.in_grid
        base, new = (noise(2, channels, height, width, seed=2 * seed + i) for i in (0, 1))
        active = masks[0].build(geometry.in_grid)
        in_sites = tables.active_sites(active)
        active = torch.zeros_like(active).flatten().index_fill(0, in_sites, True).view_as(active)
        out_mask = masks[1].build(geometry.out_grid)
        out_sites = None if out_mask.all() else tables.active_sites(out_mask)
        kernel_map, halo_sites = tables.kernel_map(geometry, in_sites, out_sites)
        return Gathered(
            edited=torch.where(active, new, base),
            packed=new.flatten(2)[:, :, in_sites],
            halo=base.flatten(2)[:, :, halo_sites],
            kernel_map=kernel_map,
            out_sites=out_sites,
        )

    def assert_equals(self, got: Tensor, want: Tensor, tolerance: float = TOLERANCE) -> None:
        """``got`` [N, C, S_out] is the full ``want`` at the active output sites."""
        flat = want.flatten(2)
        expected = flat if self.out_sites is None else flat[:, :, self.out_sites]
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


TWO_MASKS = st.tuples(MASKS, MASKS)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Kernel, stride, padding and dilation that fit the grid."""
    grid, kernel, stride = draw(GRIDS), draw(POSITIVE), draw(POSITIVE)
    padding, dilation = draw(SMALL), draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
    out = tuple(
        (grid[i] + 2 * padding[i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1
        for i in (0, 1)
    )
    assume(min(out) >= 1)
    return Window(grid, (out[0], out[1]), kernel, stride, padding, dilation)


@given(windows(), st.sampled_from([1, 2, 4]), st.booleans(), TWO_MASKS, SEEDS)
def test_convolution(
    window: Window, groups: int, bias: bool, masks: tuple[MaskRecipe, MaskRecipe], seed: int
) -> None:
    case = Gathered.make(window, 4, masks, seed)
    weight = noise(8, 4 // groups, *window.kernel, seed=seed)
    shift = noise(8, seed=seed) if bias else None
    matrix = prepack_conv(weight, groups, format="plain")
    got = products.gather_conv(
        case.packed, case.halo, case.kernel_map, matrix, shift, format="plain"
    )
    want = F.conv2d(
        case.edited, weight, shift, window.stride, window.padding, window.dilation, groups
    )
    case.assert_equals(got, want)


@given(windows(), st.sampled_from([1, 2, 4]), TWO_MASKS, SEEDS)
def test_the_cpu_product_equals_its_reference(
    window: Window, groups: int, masks: tuple[MaskRecipe, MaskRecipe], seed: int
) -> None:
    case = Gathered.make(window, 4, masks, seed)
    weight = noise(4, 4 // groups, *window.kernel, seed=seed)
    matrix = prepack_conv(weight, groups, format="plain")
    rows = torch.cat([case.packed, case.halo, torch.zeros(2, 4, 1).double()], 2).transpose(1, 2)
    got = torch.ops.sparsify.gather_matmul(rows, case.kernel_map, matrix, None, "plain")
    want = reference(rows, case.kernel_map, matrix, None)
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)


@given(
    windows(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3, 40]),
    TWO_MASKS,
    SEEDS,
)
def test_weights_in_panels(
    window: Window,
    transposed: bool,
    bias: bool,
    channels: int,
    masks: tuple[MaskRecipe, MaskRecipe],
    seed: int,
) -> None:
    """The order of the CPU kernel gives the product of the plain weights."""
    case = Gathered.make(window, channels, masks, seed)
    shape = (channels, 16) if transposed else (16, channels)
    weight = noise(*shape, *window.kernel, seed=seed).float()
    shift = noise(16, seed=seed).float() if bias else None
    x, halo = case.packed.float(), case.halo.float()
    want, got = (
        products.gather_conv(
            x,
            halo,
            case.kernel_map,
            prepack_conv(weight, 1, transposed, format=format),
            shift,
            format=format,
        )
        for format in ("plain", "panels")
    )
    # Two sums of at most 9 taps * 40 channels of values below 5, in two orders.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(got, want, rtol=0, atol=2 * 9 * channels * 25 * eps)


@st.composite
def transposed_windows(draw: st.DrawFn) -> tuple[TransposedWindow, Pair]:
    """A geometry, and the output padding that gives its output grid."""
    grid, kernel, stride = draw(GRIDS), draw(POSITIVE), draw(POSITIVE)
    padding, dilation = draw(SMALL), draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
    extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    out = tuple(
        (grid[i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + extra[i] + 1
        for i in (0, 1)
    )
    assume(min(out) >= 1)
    geometry = TransposedWindow(grid, (out[0], out[1]), kernel, stride, padding, dilation)
    return geometry, (extra[0], extra[1])


@given(transposed_windows(), st.sampled_from([1, 2, 4]), TWO_MASKS, SEEDS)
def test_transposed_convolution(
    drawn: tuple[TransposedWindow, Pair],
    groups: int,
    masks: tuple[MaskRecipe, MaskRecipe],
    seed: int,
) -> None:
    geometry, extra = drawn
    case = Gathered.make(geometry, 4, masks, seed)
    weight = noise(4, 8 // groups, *geometry.kernel, seed=seed)
    matrix = prepack_conv(weight, groups, True, format="plain")
    got = products.gather_conv(
        case.packed, case.halo, case.kernel_map, matrix, None, format="plain"
    )
    want = F.conv_transpose2d(
        case.edited,
        weight,
        None,
        geometry.stride,
        geometry.padding,
        extra,
        groups,
        geometry.dilation,
    )
    case.assert_equals(got, want)


@given(windows(), st.booleans(), TWO_MASKS, SEEDS)
def test_pools(
    window: Window, count_pad: bool, masks: tuple[MaskRecipe, MaskRecipe], seed: int
) -> None:
    assume(all(p <= k // 2 for p, k in zip(window.padding, window.kernel, strict=True)))
    case = Gathered.make(window, 3, masks, seed)
    kernel, stride, padding, dilation = window[2:]
    got = ops.gather_max(case.packed, case.halo, case.kernel_map)
    case.assert_equals(got, F.max_pool2d(case.edited, kernel, stride, padding, dilation))
    if dilation == (1, 1):
        counted = tables.pool_divisor(window, case.out_sites)
        divisor = kernel[0] * kernel[1] if count_pad else counted
        got = ops.gather_mean(case.packed, case.halo, case.kernel_map, divisor)
        want = F.avg_pool2d(case.edited, kernel, stride, padding, count_include_pad=count_pad)
        case.assert_equals(got, want)


@st.composite
def resizes(draw: st.DrawFn) -> tuple[Pair, Pair, dict[str, Any]]:
    """Input grid, output grid, and what to tell F.interpolate.

    Not the odd factors that torch replaces by 1 or 2 on some devices, and that the rule refuses.
    """
    grid = draw(GRIDS)
    if draw(st.booleans()):
        factor = draw(st.sampled_from([0.3, 0.5, 0.7, 1.0, 1.3, 1.5, 2.0, 3.0]))
        out = int(grid[0] * factor), int(grid[1] * factor)
        assume(min(out) >= 1)
        assume(all(b not in (a, 2 * a) or b == a * factor for a, b in zip(grid, out, strict=True)))
        return grid, out, {"scale_factor": factor}
    out = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    return grid, out, {"size": out}


def _scale(grid: Pair, out: Pair, how: dict[str, Any], corners: bool) -> tuple[float, float]:
    def one(size: int, target: int) -> float:
        if corners:
            return (size - 1) / (target - 1) if target > 1 else 0.0
        return 1 / how["scale_factor"] if "scale_factor" in how else size / target

    return one(grid[0], out[0]), one(grid[1], out[1])


@given(resizes(), TWO_MASKS, SEEDS, DTYPES)
def test_nearest(
    resize: tuple[Pair, Pair, dict[str, Any]],
    masks: tuple[MaskRecipe, MaskRecipe],
    seed: int,
    dtype: torch.dtype,
) -> None:
    grid, out, how = resize
    geometry = Nearest(grid, out, _scale(grid, out, how, False))
    case = Gathered.make(geometry, 3, masks, seed)
    got = ops.gather_one(case.packed, case.halo, case.kernel_map)
    want = F.interpolate(case.edited.to(dtype), mode="nearest", **how)
    case.assert_equals(got.to(dtype), want, 0)


KINDS = ("bilinear", "bicubic", "bilinear, antialiased", "bicubic, antialiased")


@given(resizes(), st.sampled_from(KINDS), st.booleans(), TWO_MASKS, SEEDS)
def test_resizes_by_sums(
    resize: tuple[Pair, Pair, dict[str, Any]],
    kind: str,
    corners: bool,
    masks: tuple[MaskRecipe, MaskRecipe],
    seed: int,
) -> None:
    grid, out, how = resize
    mode, _, antialias = kind.partition(", ")
    # Torch's antialiased rows are all the first one where there is one column; none is packed.
    assume(not antialias or out[1] > 1)
    corners = corners and not antialias
    geometry = Resize(grid, out, _scale(grid, out, how, corners), kind, corners)
    case = Gathered.make(geometry, 3, masks, seed)
    weights = tables.blend_weights(geometry, case.out_sites)
    got = ops.gather_blend(case.packed, case.halo, case.kernel_map, weights)
    options = {"mode": mode, "align_corners": corners, "antialias": bool(antialias)}
    case.assert_equals(got, F.interpolate(case.edited, **options, **how))


@given(GRIDS, st.tuples(st.integers(1, 12), st.integers(1, 12)), TWO_MASKS, SEEDS)
def test_adaptive_pools(
    grid: Pair, out: Pair, masks: tuple[MaskRecipe, MaskRecipe], seed: int
) -> None:
    geometry = Resize(grid, out, (1.0, 1.0), "average")
    case = Gathered.make(geometry, 3, masks, seed)
    taps = case.packed, case.halo, case.kernel_map
    got = ops.gather_blend(*taps, tables.blend_weights(geometry, case.out_sites))
    case.assert_equals(got, F.adaptive_avg_pool2d(case.edited, out))
    case.assert_equals(ops.gather_max(*taps), F.adaptive_max_pool2d(case.edited, out), 0)


@given(
    GRIDS,
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    SMALL,
    st.booleans(),
    TWO_MASKS,
    SEEDS,
)
def test_max_unpooling(
    grid: Pair,
    kernel: Pair,
    more: Pair,
    padded: bool,
    masks: tuple[MaskRecipe, MaskRecipe],
    seed: int,
) -> None:
    stride = kernel[0] + more[0], kernel[1] + more[1]
    padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
    out = [(grid[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1)]
    window = Window(grid, (out[0], out[1]), kernel, stride, padding)
    case = Gathered.make(window, 3, masks, seed)
    taps = case.packed, case.halo, case.kernel_map
    got = ops.gather_argmax(*taps, tables.tap_sites(window, case.out_sites))
    want, indices = F.max_pool2d(case.edited, kernel, stride, padding, return_indices=True)
    case.assert_equals(got, indices, 0)
    back = TransposedWindow(window.out_grid, window.in_grid, kernel, stride, padding, (1, 1))
    case = Gathered.make(back, 3, (MaskRecipe("full", 0), masks[0]), seed)
    sites = tables.own_sites(back, case.out_sites)
    pooled = [(x.flatten(2), None, case.kernel_map) for x in (want, indices)]
    unpooled = F.max_unpool2d(want, indices, kernel, stride, padding, list(window.in_grid))
    case.assert_equals(ops.gather_unpool(*pooled, sites), unpooled, 0)


@st.composite
def paddings(draw: st.DrawFn) -> tuple[Pad, list[int]]:
    """A geometry, and (left, right, top, bottom); zero and replicate padding may crop too."""
    grid, mode = draw(GRIDS), draw(st.sampled_from(PAD_MODES))
    low = -1 if mode != "circular" else 0
    most = {"reflect": -1, "circular": 0}.get(mode, 3)
    pads = [draw(st.integers(low, min(3, grid[axis] + most))) for axis in (1, 1, 0, 0)]
    out = grid[0] + pads[2] + pads[3], grid[1] + pads[0] + pads[1]
    assume(min(out) >= 1)
    return Pad(grid, out, (pads[2], pads[0]), mode), pads


@given(paddings(), TWO_MASKS, SEEDS)
def test_pad(drawn: tuple[Pad, list[int]], masks: tuple[MaskRecipe, MaskRecipe], seed: int) -> None:
    geometry, pads = drawn
    case = Gathered.make(geometry, 3, masks, seed)
    value = 0.5 if geometry.mode == "constant" else None
    got = ops.gather_one(case.packed, case.halo, case.kernel_map, value or 0.0)
    case.assert_equals(got, F.pad(case.edited, pads, geometry.mode, value), 0)


@given(GRIDS, st.tuples(*[st.integers(-9, 9)] * 2), TWO_MASKS, SEEDS)
def test_roll_and_flip(
    grid: Pair, by: Pair, masks: tuple[MaskRecipe, MaskRecipe], seed: int
) -> None:
    case = Gathered.make(Pad(grid, grid, by, "circular"), 3, masks, seed)
    got = ops.gather_one(case.packed, case.halo, case.kernel_map)
    case.assert_equals(got, case.edited.roll(by, (2, 3)), 0)
    turned = Pad(grid, grid, (1 - grid[0], 0), step=(-1, 1))
    case = Gathered.make(turned, 3, masks, seed)
    got = ops.gather_one(case.packed, case.halo, case.kernel_map)
    case.assert_equals(got, case.edited.flip(2), 0)


@given(GRIDS, st.integers(2, 3), TWO_MASKS, SEEDS)
def test_pixel_shuffles(
    grid: Pair, factor: int, masks: tuple[MaskRecipe, MaskRecipe], seed: int
) -> None:
    large, square = (grid[0] * factor, grid[1] * factor), factor**2
    up = Nearest(grid, large, (1 / factor, 1 / factor))
    case = Gathered.make(up, 2 * square, masks, seed)
    phase = tables.shuffle_phase(up, case.out_sites, (factor, factor))
    got = ops.gather_shuffle(case.packed, case.halo, case.kernel_map, phase, factor**2)
    case.assert_equals(got, F.pixel_shuffle(case.edited, factor), 0)
    down = Window(large, grid, (factor, factor), (factor, factor))
    case = Gathered.make(down, 2, masks, seed)
    got = ops.gather_unshuffle(case.packed, case.halo, case.kernel_map)
    case.assert_equals(got, F.pixel_unshuffle(case.edited, factor), 0)


@given(GRIDS, TWO_MASKS, SEEDS)
def test_realign_moves_values_between_masks(
    grid: Pair, masks: tuple[MaskRecipe, MaskRecipe], seed: int
) -> None:
    case = Gathered.make(Same(grid), 3, masks, seed)
    case.assert_equals(ops.realign(case.packed, case.halo, case.kernel_map, 2), case.edited, 0)


GEOMETRIES: st.SearchStrategy[Geometry] = st.one_of(
    windows(),
    transposed_windows().map(lambda drawn: drawn[0]),
    paddings().map(lambda drawn: drawn[0]),
    resizes().map(lambda r: Nearest(r[0], r[1], _scale(*r, False))),
    st.builds(
        lambda r, kind: Resize(r[0], r[1], _scale(*r, False), kind),
        resizes(),
        st.sampled_from((*KINDS, "average")),
    ),
    st.builds(Pad, GRIDS, GRIDS, SMALL, st.just("constant"), st.sampled_from([(-1, 1), (2, -1)])),
    GRIDS.map(Same),
)


@given(GEOMETRIES, MASKS)
def test_grow_equals_brute_force(geometry: Geometry, recipe: MaskRecipe) -> None:
    mask = recipe.build(geometry.in_grid)
    """What reads nothing at all may be active where its neighbours are."""
    reads = [
        [site for site in taps if site != OUTSIDE]
        for taps in read(geometry, all_sites(geometry.out_grid)).tolist()
    ]
    active, got = mask.flatten().tolist(), grow(mask, geometry).flatten().tolist()
    want = [any(active[site] for site in taps) for taps in reads]
    assert [g for g, taps in zip(got, reads, strict=True) if taps] == [
        w for w, taps in zip(want, reads, strict=True) if taps
    ]
    assert any(active) or not any(got)


@pytest.mark.parametrize("kernel_map", [tables.kernel_map, tables.kernel_map_reference])
@given(GEOMETRIES, TWO_MASKS, st.booleans())
def test_kernel_map_refers_to_what_it_says(
    kernel_map: KernelMap, geometry: Geometry, masks: tuple[MaskRecipe, MaskRecipe], padded: bool
) -> None:
    """Every entry, looked up in [active | halo | padding], is the site that the geometry reads."""
    in_sites = tables.active_sites(masks[0].build(geometry.in_grid), padded)
    out_sites = tables.active_sites(masks[1].build(geometry.out_grid), padded)
    entries, halo = kernel_map(geometry, in_sites, out_sites, padded)
    stands_for = torch.cat([in_sites, halo, torch.tensor([OUTSIDE])])
    assert entries.min() >= 0 and torch.equal(stands_for[entries], read(geometry, out_sites))
    kept, active = halo.unique(), set(in_sites.tolist())
    assert len(halo) == (tables.capacity(len(kept)) if padded else len(kept))
    assert torch.equal(kept, halo[: len(kept)])  # ascending, then the last one again
    needed = set(read(geometry, out_sites).flatten().tolist()) - active - {OUTSIDE}
    assert set(kept.tolist()) == (needed or {0})  # nothing is kept in vain


@pytest.mark.parametrize("kernel_map", [tables.kernel_map, tables.kernel_map_reference])
@given(GEOMETRIES, MASKS, st.booleans(), st.booleans())
def test_kernel_map_of_all_inputs(
    kernel_map: KernelMap, geometry: Geometry, recipe: MaskRecipe, every: bool, padded: bool
) -> None:
    out_sites = None if every else tables.active_sites(recipe.build(geometry.out_grid))
    entries, placeholder = kernel_map(geometry, None, out_sites, padded)
    assert placeholder.tolist() == [0]
    count = geometry.in_grid[0] * geometry.in_grid[1]
    stands_for = torch.cat([torch.arange(count), placeholder, torch.tensor([OUTSIDE])])
    sites = all_sites(geometry.out_grid) if out_sites is None else out_sites
    assert entries.min() >= 0 and torch.equal(stands_for[entries], read(geometry, sites))


@pytest.mark.parametrize("kernel_map", [tables.kernel_map, tables.kernel_map_reference])
@given(GEOMETRIES, st.lists(MASKS, min_size=4, max_size=4), st.booleans())
def test_no_tap_reads_another_item(
    kernel_map: KernelMap, geometry: Geometry, masks: list[MaskRecipe], every: bool
) -> None:
    """Entries of two items are those of each alone, moved behind what comes before."""
    before, after = (
        torch.stack([mask.build(grid) for mask in pair])
        for pair, grid in ((masks[:2], geometry.in_grid), (masks[2:], geometry.out_grid))
    )
    assume(before.flatten(1).any(1).all() and after.flatten(1).any(1).all())
    sites, taken = [], []
    both = tables.active_sites(before), None if every else tables.active_sites(after)
    entries, halo = kernel_map(geometry, *both, False, 2)
    rows = torch.cat([both[0], halo, torch.tensor([-1])])
    for item in range(2):
        own = tables.active_sites(before[item])
        some = None if every else tables.active_sites(after[item])
        alone, beside = kernel_map(geometry, own, some, False)
        read = torch.cat([own, beside, torch.tensor([-1])])[alone]
        taken.append(torch.where(read < 0, -1, read + item * before[0].numel()))
        sites.append(tables.grow(before[item], geometry))
    assert torch.equal(rows[entries], torch.cat(taken))
    assert torch.equal(tables.grow(before, geometry), torch.stack(sites))


def test_equal_tuples_are_not_one_geometry() -> None:
    fields: Any = ((4, 4), (4, 4), (3, 3), (1, 1), (0, 0), (1, 1))
    assert Window(*fields) == TransposedWindow(*fields)
    for geometry in (Window(*fields), TransposedWindow(*fields)):
        reads = read(geometry, all_sites((4, 4)))
        want = torch.where(reads == OUTSIDE, 17, reads)
        assert torch.equal(tables.kernel_map(geometry, None, None)[0], want)


@given(GRIDS, MASKS, st.integers(0, 9), st.tuples(st.booleans(), st.booleans()))
def test_dilate_equals_brute_force(
    grid: Pair, recipe: MaskRecipe, pixels: int, wraps: tuple[bool, bool]
) -> None:
    mask = recipe.build(grid)
    want = torch.zeros_like(mask)
    for (y, x), (row, column) in product(mask.nonzero().tolist(), all_pairs(grid)):
        ways = zip((y - row, x - column), grid, wraps, strict=True)
        want[row, column] |= all(
            min(abs(way), size - abs(way) if wrap else size) <= pixels for way, size, wrap in ways
        )
    assert torch.equal(tables.dilate(mask, pixels, wraps), want)


@given(GRIDS, GRIDS, MASKS)
def test_grid_mask_loses_no_site(grid: Pair, other: Pair, recipe: MaskRecipe) -> None:
    """Site (y, x) covers rows from y * scale up to (y + 1) * scale, and columns likewise."""
    mask = recipe.build(grid)
    want = torch.zeros(other, dtype=torch.bool)
    for y, x in all_pairs(other):
        top, bottom = y * grid[0] // other[0], -(-(y + 1) * grid[0] // other[0])
        left, right = x * grid[1] // other[1], -(-(x + 1) * grid[1] // other[1])
        want[y, x] = mask[top:bottom, left:right].any()
    got = tables.grid_mask(mask, other)
    assert torch.equal(got, want)
    assert bool(got.any()) == bool(mask.any())


def all_pairs(grid: Pair) -> list[Pair]:
    return [(y, x) for y in range(grid[0]) for x in range(grid[1])]


@given(GRIDS, MASKS)
def test_active_sites_are_never_none(grid: Pair, recipe: MaskRecipe) -> None:
    mask = recipe.build(grid)
    want = [y * grid[1] + x for y, x in mask.nonzero().tolist()] or [0]
    assert tables.active_sites(mask).tolist() == want


@given(GRIDS, st.tuples(MASKS, MASKS, MASKS))
def test_union(grid: Pair, masks: tuple[MaskRecipe, MaskRecipe, MaskRecipe]) -> None:
    first, second, third = (mask.build(grid) for mask in masks)
    assert torch.equal(tables.union(first, second, third), first | second | third)


@given(resizes(), MASKS)
def test_source_sites_of_nearest(
    resize: tuple[Pair, Pair, dict[str, Any]], recipe: MaskRecipe
) -> None:
    grid, out, how = resize
    numbers = all_sites(grid).view(1, 1, *grid).double()
    want = F.interpolate(numbers, mode="nearest", **how).flatten().long()
    sites = tables.active_sites(recipe.build(out))
    geometry = Nearest(grid, out, _scale(grid, out, how, False))
    assert torch.equal(tables.source_sites(geometry, sites), want[sites])


def test_fake_sites_are_not_read() -> None:
    window = Window((5, 7), (5, 7), (3, 3), padding=(1, 1))
    with FakeTensorMode():
        assert tables.kernel_map(window, None, None)[0].shape == (35, 9)
    assert type(tables.kernel_map(window, None, None)[0]) is Tensor
