"""Edits with onnxruntime and numpy alone: no torch, no sparsify.

    python examples/onnx_only.py FOLDER

``FOLDER`` is what ``sparse.export(folder, ..., format="onnx")`` wrote. Random inputs are recorded,
changed inside a mask, and updated.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Values = dict[str, "np.ndarray[Any, Any]"]


class Folder:
    """The graphs of an exported folder: values go in and come out by name."""

    def __init__(self, path: Path) -> None:
        self.signature = json.loads((path / "signature.json").read_text())
        self._graphs = self.signature["graphs"]
        providers = ["CPUExecutionProvider"]
        self._sessions = {
            name: ort.InferenceSession(path / graph["file"], providers=providers)
            for name, graph in self._graphs.items()
        }

    def run(self, graph: str, values: Values) -> Values:
        """The results of one graph; of ``values`` it takes what it wants."""
        about = self._graphs[graph]
        given = {name: values[name] for name in about["inputs"]}
        results = self._sessions[graph].run(about["outputs"], given)
        return dict(zip(about["outputs"], results, strict=True))

    def random_inputs(self, seed: int) -> Values:
        """Inputs of the exported shapes and dtypes."""
        generator, inputs = np.random.default_rng(seed), {}
        for entry in self.signature["inputs"]:
            if entry["name"] is not None:
                about = self.signature["values"][entry["name"]]
                drawn = np.asarray(generator.standard_normal(about["shape"]))
                inputs[entry["name"]] = drawn.astype(about["dtype"])
        return inputs


def main() -> None:
    folder = Folder(Path(sys.argv[1]))
    inputs = folder.random_inputs(seed=0)
    start = time.perf_counter()
    recorded = folder.run("record", inputs)  # the model's output, and the baseline
    record_seconds = time.perf_counter() - start

    height, width = folder.signature["sidecar"]["grid"]
    mask = np.zeros((height, width), dtype=bool)
    mask[: height // 4, : width // 4] = True
    tables = folder.run("plan", {"mask": mask})  # once an edit, for any number of updates

    edited, other = dict(inputs), folder.random_inputs(seed=1)
    for entry in folder.signature["inputs"]:
        # Inputs without a grid (timestep, prompt) stay. For others run "conditions" again.
        if entry["grid"] == [height, width] and inputs[entry["name"]].ndim == 4:
            name = entry["name"]
            edited[name] = np.where(mask, other[name], inputs[name])
    start = time.perf_counter()
    updated = folder.run("update", {**recorded, **tables, **edited})
    update_seconds = time.perf_counter() - start

    change = np.abs(updated["output.0"] - recorded["output.0"])
    print(f"record {record_seconds:.3f} s, update of {mask.mean():.0%} {update_seconds:.3f} s")
    print(f"largest change of the output {change.max():.3g}")


if __name__ == "__main__":
    main()
