"""Every launch refuses by name what its kernel would read as something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparsify.codegen import kernel_map, tables
from sparsify.codegen.errors import OperandError
from sparsify.codegen.gather_matmul import cpp
from sparsify.codegen.geometry import Window
from torch import Tensor

from tests import test_gather_conv as conv
from tests import test_overlay_attention as attention
from tests.test_group_statistics import arguments as of_statistics

needs_compiler = pytest.mark.skipif(
    not cpp.runs(torch.device("cpu"), torch.float32), reason="there is no C++ compiler"
)

DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "dtype": lambda x: x.to(torch.int32 if x.dtype == torch.int64 else torch.float64),
    "rank": lambda x: x.unsqueeze(0),
    "size": lambda x: torch.cat([x, x.narrow(-1, 0, 1)], -1),
    "device": lambda x: x.to("meta"),
}


def refuses(launch: Callable[..., Any], operands: dict[str, Any], name: str, damage: str) -> None:
    """``launch`` names a damaged operand, or one that the damage made the others disagree with."""
    damaged = operands | {name: DAMAGES[damage](operands[name])}
    with pytest.raises(OperandError, match=r"^[a-z_]+( reads |: )"):
        launch(*damaged.values())


def of_gather_matmul() -> dict[str, Any]:
    weight = cpp.panels(torch.randn(4 * 5, 32))
    index = torch.randint(7, (3, 4))
    return {"rows": torch.randn(2, 7, 5), "map": index, "weight": weight, "bias": torch.randn(32)}


@needs_compiler
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["rows", "map", "weight", "bias"])
def test_gather_matmul(name: str, damage: str) -> None:
    refuses(cpp.launch, of_gather_matmul(), name, damage)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_another_dtype_than_the_panels(dtype: torch.dtype) -> None:
    operands = of_gather_matmul()
    operands["rows"] = operands["rows"].to(dtype)
    with pytest.raises(OperandError, match="reads rows as float32"):
        torch.ops.sparsify.gather_matmul(*operands.values(), "panels")
    with pytest.raises(OperandError, match="reads rows as float32"):
        rows, weight = operands["rows"].repeat(1, 1, 4), operands["weight"]
        torch.ops.sparsify.linear(rows, weight, operands["bias"], "panels")


@needs_compiler
def test_strides_do_not_matter() -> None:
    operands = of_gather_matmul()
    wanted = cpp.launch(*operands.values())
    strided = {name: torch.stack([x, x], -1)[..., 0] for name, x in operands.items()}
    assert torch.equal(cpp.launch(*strided.values()), wanted)


@needs_compiler
@pytest.mark.parametrize("beyond", [-1, 7, 1 << 40])
def test_a_map_that_points_outside_of_the_rows(beyond: int) -> None:
    operands = of_gather_matmul()
    operands["map"][1, 2] = beyond
    with pytest.raises(OperandError, match="outside of the 7 rows"):
        cpp.launch(*operands.values())


WINDOW = Window((4, 5), (4, 5), (3, 3), padding=(1, 1))


@needs_compiler
@pytest.mark.parametrize("beyond", [-1, 20, 1 << 40])
def test_sites_outside_of_their_grid(beyond: int) -> None:
    inside, odd = torch.tensor([3, 4]), torch.tensor([3, beyond])
    for sites in ((odd, inside), (inside, odd), (None, odd)):
        with pytest.raises(OperandError, match="outside of the grids"):
            tables.kernel_map(WINDOW, *sites)
    reads, halo, position = kernel_map.read_sites(WINDOW, inside, inside)
    reads[0, 0] = 21 if beyond == 20 else beyond  # 20 stands for padding
    with pytest.raises(OperandError, match="is no site"):
        kernel_map.number_sites(reads, halo, position)


@needs_compiler
@pytest.mark.parametrize("damage", ["dtype", "rank", "device"])
def test_kernel_map(damage: str) -> None:
    operands = {"geometry": WINDOW, "in": torch.tensor([3]), "out": torch.tensor([4])}
    refuses(kernel_map.read_sites, operands, "in", damage)
    refuses(kernel_map.read_sites, operands, "out", damage)


def launches() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Those in Triton, which check before they start: here there is nothing to start them on."""
    from sparsify.codegen.gather_conv import triton as gather_conv
    from sparsify.codegen.group_statistics import triton as group_statistics
    from sparsify.codegen.overlay_attention import triton as overlay_attention

    names = "x halo halo_sites kernel_map weight bias shift activation slope scale residual"
    *given, _ = conv.arguments(conv.Case())
    of_conv = dict(zip(names.split(), given, strict=True))
    *given, _ = conv.arguments(conv.Case(channels=8, width=16))
    of_lists = dict(zip(names.split(), given, strict=True))
    of_lists |= {"weight": torch.zeros(1, 36, 16), "lists": torch.zeros(1, 36, dtype=torch.int32)}
    names = "query base_key base_value key value bias scale"
    of_attention = dict(zip(names.split(), attention.arguments(attention.Case()), strict=True))
    names = "x old in_place mean rstd size eps sites"
    given = of_statistics(2, 3, 4, 30, 0.4, True, 0)
    return {
        "gather_conv": (gather_conv.launch, of_conv),
        "gather_conv with lists": (gather_conv.launch, of_lists),
        "overlay_attention": (overlay_attention.launch, of_attention),
        "group_statistics": (group_statistics.launch, dict(zip(names.split(), given, strict=True))),
    }


KERNELS = ["gather_conv", "gather_conv with lists", "overlay_attention", "group_statistics"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_triton_launches(kernel: str, damage: str) -> None:
    launch, operands = launches()[kernel]
    for name, value in operands.items():
        # Any number of sites is read in place.
        free = damage == "size" and name == "halo_sites"
        if isinstance(value, Tensor) and not free:
            refuses(launch, operands, name, damage)
