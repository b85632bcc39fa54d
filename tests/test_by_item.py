"""Products of packed rows with a factor for each item, and sums by item."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sparsify.codegen import by_item, tables
from sparsify.codegen.operators import export
from torch import Tensor

GRID, ITEMS = (3, 4), 3
MASKS = st.lists(st.booleans(), min_size=36, max_size=36).map(
    lambda marks: torch.tensor(marks).view(ITEMS, *GRID)
)
SPACES = st.sampled_from([(GRID, 1, 0, 0), (GRID, 2, 0, 0), (GRID, 1, 2, 1)])
Space = tuple[tuple[int, int], int, int, int]


def rows_of(mask: Tensor, space: Space) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Whose the packed rows are, and their lanes."""
    sites = tables.active_sites(mask)
    size = space[2] + space[1] * 12 + space[3]
    items = tables.items_at(tables.space_sites(sites, *space, ITEMS), size, ITEMS)
    return items, tables.lanes(sites, space, ITEMS)


def both(function: object, *operands: object) -> list[Tensor]:
    """As it runs here, and in exports."""
    assert callable(function)
    with export():
        spread = function(*operands)
    return [function(*operands), spread]


@pytest.mark.parametrize("masked", [None, "rows", "keys"])
@given(MASKS, SPACES)
def test_queries_see_the_keys_of_their_item(masked: str | None, mask: Tensor, space: Space) -> None:
    items, lanes = rows_of(mask, space)
    count = len(items)
    query, key = torch.randn(1, 2, count, 4).double(), torch.randn(ITEMS, 1, 2, 7, 4).double()
    value = torch.randn(1, 1, 2, 7, 5).double().expand(ITEMS, -1, -1, -1, -1)[:1]
    sizes = {None: None, "rows": (count, 7), "keys": (1, 1, 1, 7)}[masked]
    allowed = None if sizes is None else torch.randn(sizes).double()
    operands = query, key, value, allowed, *lanes, None, False
    for got in both(by_item.attention, *operands):
        assert got.shape == (1, 2, count, 5)
        for row, item in enumerate(items.tolist()):
            own = allowed[row : row + 1] if masked == "rows" else allowed
            parts = query[:, :, row : row + 1], key[item], value[0]
            want = F.scaled_dot_product_attention(*parts, own)
            torch.testing.assert_close(got[:, :, row : row + 1], want)


@given(MASKS, SPACES)
def test_products_and_sums_by_item(mask: Tensor, space: Space) -> None:
    items, lanes = rows_of(mask, space)
    count = len(items)
    first, second = torch.randn(2, count, 4).double(), torch.randn(ITEMS, 2, 4, 5).double()
    want = torch.stack([(first[:, s : s + 1] @ second[i])[:, 0] for s, i in enumerate(items)], 1)
    for got in both(by_item.matmul, first, second, *lanes, False):
        torch.testing.assert_close(got, want)
    for got in both(by_item.matmul, second.mT, first.mT, *lanes, True):
        torch.testing.assert_close(got, want.mT)
    sums = torch.stack([first[:, items == item].sum(1) for item in range(ITEMS)])
    for got in both(by_item.sum_by_item, first.mT, items, ITEMS):
        torch.testing.assert_close(got, sums.flatten(0, 1))


@given(MASKS, SPACES)
def test_declared_shapes_are_those_of_the_results(mask: Tensor, space: Space) -> None:
    items, lanes = rows_of(mask, space)
    query, key = torch.randn(1, 2, len(items), 4), torch.randn(ITEMS, 1, 2, 7, 4)
    check = ("test_schema", "test_faketensor")
    library = torch.ops.sparsify
    operands = (query, key, key, None, *lanes, 0.5, False)
    torch.library.opcheck(library.attention_by_item, operands, test_utils=check)
    operands = (query, key.mT.contiguous(), *lanes, False)
    torch.library.opcheck(library.matmul_by_item, operands, test_utils=check)
    operands = (query[0, 0], items, ITEMS)
    torch.library.opcheck(library.sum_by_item, operands, test_utils=check)
