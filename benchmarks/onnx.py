"""The exported update against the exported dense model: ``python -m benchmarks.onnx NAME ...``.

Both are ONNX models of one network and run in onnxruntime on this machine, interleaved in one
process; medians are printed and written to ``docs/benchmarks/NAME-onnx.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import sparsify
from benchmarks.machine import environment
from benchmarks.networks import Network, full
from examples.onnx_only import Folder
from sparsify.masks import centred_square
from sparsify.timing import interleaved, medians, timed

SHARES = (0.012, 0.05, 0.15, 0.3)
console = Console()


class _Tensors(nn.Module):
    """A model that returns a tuple of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.model(*args, **kwargs)))


def export(network: Network, folder: Path) -> None:
    """Writes ``dense.onnx`` and the folder ``sparse``."""
    torch.manual_seed(0)
    model = network.build().eval()
    args, kwargs = network.inputs()
    options: dict[str, Any] = {"dynamo": True, "opset_version": 23, "verbose": False}
    spent, _ = timed(
        lambda: torch.onnx.export(
            _Tensors(model).eval(), args, folder / "dense.onnx", kwargs=kwargs, **options
        )
    )
    console.log(f"{network.name}: dense model exported in {spent / 1e3:.0f} s")
    sparse = sparsify.sparsify(model, dilate=network.dilate, backend="eager")
    spent, _ = timed(lambda: sparse.export(folder / "sparse", *args, format="onnx", **kwargs))
    console.log(f"record, plan and update exported in {spent / 1e3:.0f} s")


def measure(network: Network, folder: Path, rounds: int) -> dict[str, Any]:
    """Everything that the table and the JSON show of one exported network."""
    ours = Folder(folder / "sparse")
    session = ort.InferenceSession(folder / "dense.onnx", providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    leaves = [leaf for leaf in tree_leaves(network.inputs()) if isinstance(leaf, Tensor)]
    names = [entry["name"] for entry in ours.signature["inputs"]]
    inputs = {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)}
    feed = dict(zip((i.name for i in session.get_inputs()), inputs.values(), strict=True))
    recorded = ours.run("record", inputs)
    variants: dict[str, Callable[[], Any]] = {"dense": lambda: session.run(None, feed)}
    rows = []
    for share in SHARES:
        mask = centred_square(tuple(ours.signature["sidecar"]["grid"]), share)
        edited = torch.where(mask, torch.randn_like(leaves[0]), leaves[0]).numpy()
        plan_ms, tables = timed(lambda mask=mask: ours.run("plan", {"mask": mask.numpy()}))
        rows.append({"edited_share": share, "plan_ms": plan_ms})
        given = {**recorded, **tables, **inputs, names[0]: edited}
        variants[f"update {share}"] = lambda given=given: ours.run("update", given)
    times = interleaved(variants, rounds)
    median = medians(times)
    for row in rows:
        name = f"update {row['edited_share']}"
        row["update_ms"] = median[name]
        row["spread_ms"] = max(times[name]) - min(times[name])
        row["speedup"] = median["dense"] / median[name]
    return {
        "network": network.name,
        "onnxruntime": ort.__version__,
        "dilate": network.dilate,
        "dense_ms": median["dense"],
        "dense_spread_ms": max(times["dense"]) - min(times["dense"]),
        "edits": rows,
    }


def table(result: dict[str, Any]) -> Table:
    view = Table(title=f"{result['network']} in onnxruntime: dense {result['dense_ms']:.0f} ms")
    for column in ("edited", "update ms", "spread", "vs dense", "plan"):
        view.add_column(column, justify="right")
    for row in result["edits"]:
        view.add_row(
            f"{row['edited_share']:.1%}",
            f"{row['update_ms']:.0f}",
            f"{row['spread_ms']:.0f}",
            f"{row['speedup']:.2f}x",
            f"{row['plan_ms']:.0f} ms",
        )
    return view


def main() -> None:
    networks = full()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(networks))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            export(networks[name], Path(folder))
            result = {**environment(), **measure(networks[name], Path(folder), options.rounds)}
        (options.out / f"{name}-onnx.json").write_text(json.dumps(result, indent=1) + "\n")
        console.print(table(result))


if __name__ == "__main__":
    main()
