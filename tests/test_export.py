"""Exported folders: every format's update is the contract's, and damage is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparsify
from sparsify import BaselineError, ExportError, FolderError, MaskError, SignatureError
from sparsify.folder import _digest
from sparsify.loader import Loaded
from tests.networks import MASKS, MaskRecipe, Recipe, recipes
from tests.picture_steps import ConvTranspose, Pool
from tests.reference import FIXED, Fixed, Reference
from tests.rounding import assert_close, tolerance
from tests.small import small_inputs, small_unet
from tests.token_steps import Joint

SIZE = 12


class Tiny(nn.Module):
    """A convolution, a norm with a timestep, a strided branch with attention; a dict of two."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.norm, self.time = nn.GroupNorm(2, 8), nn.Linear(1, 8)
        self.leave.weight.data *= 2
        self.again = self.leave  # tied

    def forward(self, image: Tensor, step: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        h = self.enter(image) + self.time(step.reshape(-1, 1))[:, :, None, None]
        h = F.silu(self.norm(h))
        return {"sample": self.leave(h) * scale, "again": self.again(h)}


INPUTS = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), torch.ones(1)


def tiny(seed: int = 0, **config: Any) -> sparsify.SparseModule:
    torch.manual_seed(seed)
    widths = {"dilate": 1, "dense_share": 0.0, "dense_above": 1.0}
    options = {"backend": "eager", "any_step": True, **widths, **config}
    return sparsify.sparsify(Tiny().eval(), **options)


def square(side: int) -> Tensor:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[:side, :side] = True
    return mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "pt2"
    tiny().export(path, *INPUTS, format="pt2")
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """One to spoil."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


# -- the contract -------------------------------------------------------------------------------


def agrees_with_the_oracle(
    path: Path, format: Any, recipe: Recipe, fixed: Fixed, masks: list[MaskRecipe]
) -> None:
    """For edits, and for other conditions, which ``conditions`` has to follow."""
    options = {"backend": "eager", "dense_share": 0.0, "dense_above": 1.0, **vars(fixed)}
    before = recipe.inputs()
    sparse = sparsify.sparsify(recipe.build(), **options)
    reference = Reference(sparse, recipe, fixed)
    sparse.export(path, *before, format=format)
    loaded = sparsify.load(path)
    _, baseline = loaded.record(*before)
    allowed = tolerance(recipe, before, recipe.inputs(1))
    for mask in (*masks, MaskRecipe("empty", 0), MaskRecipe("full", 0)):
        active = mask.build(recipe.grid)
        for after in (recipe.inputs(1), (recipe.inputs(1)[0], *before[1:])):
            if after[1] is not before[1] and not active.any():
                continue  # what is computed whole sees the new conditions, but no site is active
            got = loaded.update(baseline, *after, mask=active)
            assert_close(got, reference.update(before, after, active), allowed)


FEW_MASKS = st.lists(MASKS, min_size=1, max_size=2)


@settings(max_examples=settings.default.max_examples // 15)
@given(recipe=recipes(max_steps=4), fixed=FIXED, masks=FEW_MASKS)
def test_pt2_equals_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, fixed: Fixed, masks: list[MaskRecipe]
) -> None:
    path = tmp_path_factory.mktemp("pt2") / "folder"
    agrees_with_the_oracle(path, "pt2", recipe, fixed, masks)


@settings(max_examples=settings.default.max_examples // 20)
@given(
    recipe=recipes(max_steps=3).filter(lambda recipe: recipe.dtype == torch.float32),
    fixed=FIXED,
    masks=FEW_MASKS,
)
def test_onnx_equals_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, fixed: Fixed, masks: list[MaskRecipe]
) -> None:
    path = tmp_path_factory.mktemp("onnx") / "folder"
    agrees_with_the_oracle(path, "onnx", recipe, fixed, masks)


@pytest.mark.parametrize("text_first", [False, True])
def test_onnx_has_complex_rotary_embeddings(tmp_path: Path, text_first: bool) -> None:
    """Of which an update gathers rows."""
    step = Joint(text_first=text_first, single=False, rotary="complex")
    recipe = Recipe((step,), (3, 3), 1, 1, torch.float32, "channels last", 942)
    fixed = Fixed(norm="updated", dilate=1, dense_share=0.0)
    agrees_with_the_oracle(tmp_path / "folder", "onnx", recipe, fixed, [MaskRecipe("random", 81)])


@pytest.mark.parametrize("padding", [0, 1])
def test_onnx_has_output_padding_of_more_than_a_stride(tmp_path: Path, padding: int) -> None:
    """Which a dilation allows, and onnxruntime refuses."""
    step = ConvTranspose(8, (2, 2), (1, 2), padding, 1, (2, 2), 1)
    recipe = Recipe((step,), (5, 9), 1, 3, torch.float32, "tokens", 2)
    fixed = Fixed(norm="baseline", dilate=0, dense_share=0.0)
    agrees_with_the_oracle(tmp_path / "folder", "onnx", recipe, fixed, [MaskRecipe("blobs", 0)])


def test_onnx_has_adaptive_maxima_of_unequal_windows(tmp_path: Path) -> None:
    recipe = Recipe(
        (Pool("adaptive max", (1, 1), (1, 1), (1, 1), 2, False),),
        (13, 6),
        2,
        4,
        torch.float32,
        "image",
        258,
    )
    fixed = Fixed(norm="updated", dilate=2, dense_share=0.3)
    agrees_with_the_oracle(tmp_path / "folder", "onnx", recipe, fixed, [MaskRecipe("random", 2)])


TWO = torch.cat([INPUTS[0], INPUTS[0].flip(1)]), INPUTS[1]
ATTENTION = pytest.param(small_unet, small_inputs(2, SIZE), marks=pytest.mark.deep)


@pytest.mark.parametrize(("build", "inputs"), [(Tiny, TWO), ATTENTION])
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_a_folder_does_what_the_module_does(
    build: Any, inputs: Any, format: Any, tmp_path: Path
) -> None:
    """Commits, further edits of these, large edits, masks for each item, restricted baselines,
    reports."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    sparse = sparsify.sparsify(build().eval(), backend="eager", dilate=1)
    sparse.export(tmp_path / "net", *inputs, format=format)
    loaded, close = sparsify.load(tmp_path / "net"), {"rtol": 1e-4, "atol": 1e-5}
    masks = torch.stack([square(4), square(4).flip(0)])
    first = torch.where(masks[:, None], inputs[0] + 1, inputs[0]), *inputs[1:]
    second = torch.where(masks[:, None].flip(0), first[0] - 1, first[0]), *inputs[1:]
    found = []
    for network in (sparse, loaded):
        output, baseline = network.record(*inputs)
        edited, new = network.update(baseline, *first, mask=masks, commit=True)
        again = network.update(new, *second, mask=masks.flip(0))
        report = network.report()
        small = network.restrict(baseline, masks)
        large = network.update(baseline, inputs[0] + 1, *inputs[1:], mask=torch.ones(SIZE, SIZE))
        assert network.report().is_dense and small.nbytes < baseline.nbytes
        few = network.update(small, *first, mask=masks)
        found.append((output, edited, again, large, few, report.macs_update, report.kept))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, **close)


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_follows_the_model_in_process(format: Any, folder: Path, tmp_path: Path) -> None:
    """Named outputs, keyword arguments, plans that are shared, all that is not the picture."""
    sparse = tiny()
    if format == "onnx":
        folder = tmp_path / "onnx"
        sparse.export(folder, *INPUTS, format="onnx")
    loaded, (image, step) = sparsify.load(folder), INPUTS
    want, baseline = sparse.record(image, step)
    got, own = loaded.record(image=image, step=step)
    assert_close(got, want, 1e-5)
    edited = image + 1
    for side in (0, 1, 5, SIZE):
        plan = loaded.plan(square(side))
        for time in (step, step + 1)[: 1 + (side > 0)]:
            new = torch.where(square(side), edited, image)
            want = sparse.update(baseline, new, time, mask=square(side))
            assert_close(loaded.update(own, new, time, mask=plan), want, 1e-5)
    assert own.nbytes > 0


# -- the folder ---------------------------------------------------------------------------------


def test_the_signature_says_what_graphs_take(folder: Path) -> None:
    about = json.loads((folder / "signature.json").read_text())
    assert about["format"] == "pt2" and about["version"] == 4
    assert about["config"]["policy"] == "fixed" and about["sidecar"]["grid"] == [SIZE, SIZE]
    grids = {entry["name"]: entry["grid"] for entry in about["inputs"]}
    assert grids == {"image": [SIZE, SIZE], "step": None}
    assert about["values"]["image"] == {"shape": [1, 3, SIZE, SIZE], "dtype": "float32"}
    sites = [v for name, v in about["values"].items() if name.startswith("table.")]
    assert sites and all(v["dtype"] == "int64" for v in sites)
    assert any(v["shape"][0] is None for v in sites)
    known = {*about["values"], *about["graphs"]["constants"]["outputs"]}
    for graph in about["graphs"].values():
        assert {*graph["inputs"], *graph["outputs"]} <= known
    assert set(about["files"]) == {p.name for p in folder.iterdir()} - {"signature.json"}


def test_weights_lie_once_on_disk(folder: Path) -> None:
    """Tied ones too, and none inside the programs."""
    weights = sum(p.numel() * 4 for p in Tiny().parameters())
    size = (folder / "weights.safetensors").stat().st_size
    assert weights <= size < weights + 2000
    about = json.loads((folder / "signature.json").read_text())
    used = [name for graph in about["graphs"].values() for name in graph["weights"]]
    assert len(used) > len(set(used))


def test_stock_torch_runs_the_programs(folder: Path, tmp_path: Path) -> None:
    """In a process without sparsify, as the page on exports shows it; empty masks included."""
    sparse, (image, step) = tiny(), INPUTS
    _, baseline = sparse.record(image, step)
    calls, wanted = {"image": image, "step": step}, []
    for number, mask in enumerate(map(square, (0, 1, 5, SIZE))):
        edited = torch.where(mask, image + 1, image)
        calls |= {f"mask {number}": mask, f"image {number}": edited}
        wanted.append(sparse.update(baseline, edited, step, mask=mask)["sample"])
    save_file(calls, tmp_path / "calls")
    _python(STOCK, folder, tmp_path / "calls", tmp_path / "results")
    results = load_file(tmp_path / "results")
    for number, want in enumerate(wanted):
        assert_close(results[str(number)], want, 1e-5)


STOCK = """
import json, sys, torch
from safetensors.torch import load_file, save_file

folder, calls, results = sys.argv[1:]
graphs = json.load(open(f"{folder}/signature.json"))["graphs"]
weights, calls = load_file(f"{folder}/weights.safetensors"), load_file(calls)
programs = {
    name: torch.export.load(f"{folder}/{graph['file']}").module() for name, graph in graphs.items()
}

def run(name, values):
    graph = graphs[name]
    given = [values[n] for n in graph["inputs"]] + [weights[n] for n in graph["weights"]]
    return dict(zip(graph["outputs"], programs[name](tuple(given))))

weights.update(run("constants", {}))
recorded, outputs = run("record", calls), {}
for number in range(4):
    edited = {**calls, **recorded, "image": calls[f"image {number}"]}
    tables = run("plan", {"mask": calls[f"mask {number}"]})
    outputs[str(number)] = run("update", {**edited, **tables})["output.0"].detach()
save_file(outputs, results)
assert "sparsify" not in sys.modules
"""


def _python(code: str, *arguments: Any) -> str:
    """What ``code`` prints in a process of its own, which must not find this repository."""
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- what goes wrong ----------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("spoil", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["weights.safetensors", "update.pt2", "signature.json"])
def test_damaged_files_are_refused(copy: Path, name: str, spoil: Callable[[Path], None]) -> None:
    spoil(copy / name)
    with pytest.raises(FolderError, match=name):
        sparsify.load(copy)


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A signature that somebody edited."""
    path = folder / "signature.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


def test_another_version_is_refused(copy: Path) -> None:
    _rewrite(copy, lambda about: about.update(version=99))
    with pytest.raises(FolderError, match="version 99"):
        sparsify.load(copy)


def test_an_edited_signature_is_refused(copy: Path) -> None:
    _rewrite(copy, lambda about: about["values"]["image"].update(shape=[1, 3, 8, 8]))
    with pytest.raises(FolderError, match="changed after the export"):
        sparsify.load(copy)


def test_a_pickle_is_never_loaded(folder: Path, tmp_path: Path) -> None:
    """Even where somebody made all hashes right."""
    from sparsify.codegen.export import pt2

    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "update.pt2")
    with pytest.raises(FolderError, match="parts that an export has not"):
        pt2.read(tmp_path / "update.pt2")


@pytest.mark.parametrize("path_name", ["custom_obj_0", "opaque_obj_0", "../tensor_0"])
def test_other_constants_are_never_loaded(folder: Path, tmp_path: Path, path_name: str) -> None:
    """Torch unpickles some by their names alone."""
    from sparsify.codegen.export import pt2

    crafted = tmp_path / "plan.pt2"
    with zipfile.ZipFile(folder / "plan.pt2") as old, zipfile.ZipFile(crafted, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("model_constants_config.json"):
                entry = {"path_name": path_name, "is_param": False, "use_pickle": False}
                content = json.dumps({"config": {"x": entry}}).encode()
            new.writestr(name, content)
    with pytest.raises(FolderError, match="parts that an export has not"):
        pt2.read(crafted)


def test_files_without_a_hash_are_refused(copy: Path) -> None:
    about = json.loads((copy / "signature.json").read_text())
    about["graphs"]["update"]["file"] = "../update.pt2"
    del about["sha256"]
    about["sha256"] = _digest(about)
    (copy / "signature.json").write_text(json.dumps(about))
    with pytest.raises(FolderError, match="no hash"):
        sparsify.load(copy)


def test_other_files_are_not_overwritten(copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="other files"):
        tiny().export(copy, *INPUTS)
    assert (copy / "notes.txt").read_text() == "mine"


def test_inputs_may_be_overwritten_after_recording(tmp_path: Path) -> None:
    """A picture of one channel is kept as a view of it."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)).eval()
    sparse = sparsify.sparsify(model, backend="eager", policy="exact", dense_above=1.0)
    image = torch.randn(1, 1, SIZE, SIZE)
    sparse.export(tmp_path / "folder", image)
    loaded, given = sparsify.load(tmp_path / "folder"), image.clone()
    _, baseline = loaded.record(given)
    given.zero_()
    edited = torch.where(square(3), image + 1, image)
    assert_close(loaded.update(baseline, edited, mask=square(3)), model(edited), 1e-5)


def test_settings_are_written(tmp_path: Path) -> None:
    tiny(baseline_dtype=torch.bfloat16).export(tmp_path / "folder", *INPUTS)
    loaded = sparsify.load(tmp_path / "folder")
    assert loaded.signature.config["baseline_dtype"] == "bfloat16"
    _, baseline = loaded.record(*INPUTS)
    assert loaded.update(baseline, *INPUTS, mask=square(4))["sample"].dtype == torch.float32


class Joined(nn.Module):
    """What the second convolution keeps, in rows, is a part of a concatenation too."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.rows = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.near, self.leave = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = self.enter(image)
        h = self.rows(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + h
        return self.leave(F.silu(torch.cat([self.near(F.silu(h)) + 1, h], 1)))


@pytest.mark.deep
def test_aoti_hands_on_whole_rows(tmp_path: Path) -> None:
    """Inductor would write them into the concatenation and return a slice of it."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, SIZE, SIZE)
    sparse = sparsify.sparsify(Joined().eval(), backend="eager", dense_above=1.0)
    sparse.export(tmp_path / "aoti", image, format="aoti")
    loaded = sparsify.load(tmp_path / "aoti")
    _, baseline = sparse.record(image)
    _, own = loaded.record(image)
    assert all(value.is_contiguous() for value in own.values.values())
    for side in (1, 5, SIZE):
        mask = square(side)
        edited = torch.where(mask, image + 1, image)
        want = sparse.update(baseline, edited, mask=mask)
        assert_close(loaded.update(own, edited, mask=mask), want, 1e-5)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"signature\.json"):
        sparsify.load(tmp_path)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return sparsify.load(folder)


def test_calls_that_do_not_match(loaded: Loaded) -> None:
    image, step = INPUTS
    _, baseline = loaded.record(image, step)
    with pytest.raises(SignatureError, match=r"image is float32 \[1, 3, 8, 8\]"):
        loaded.record(torch.zeros(1, 3, 8, 8), step)
    with pytest.raises(SignatureError, match="image is float64"):
        loaded.update(baseline, image.double(), step, mask=square(2))
    with pytest.raises(SignatureError, match="scale"):
        loaded.record(image, step, 2.0)
    with pytest.raises(SignatureError, match="missing a required argument"):
        loaded.record(image)
    with pytest.raises(MaskError, match="grid"):
        loaded.plan(torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(MaskError, match="there is no mask"):
        loaded.update(baseline, *INPUTS)


def test_loaded_folders_take_masks_as_people_have_them(loaded: Loaded) -> None:
    image, step = INPUTS
    _, baseline = loaded.record(image, step)
    mask = square(4)
    edited = torch.where(mask, image + 1, image)
    want = loaded.update(baseline, edited, step, mask=mask)["sample"]
    large = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
    for own in (mask.numpy(), mask[None, None].float(), large):
        assert torch.equal(loaded.update(baseline, edited, step, mask=own)["sample"], want)


def test_numbers_of_the_call_are_inputs(tmp_path: Path) -> None:
    sparse, (image, step) = tiny(), INPUTS
    sparse.export(tmp_path / "scaled", image, step, 2.0)
    loaded = sparsify.load(tmp_path / "scaled")
    for scale in (2.0, 3.0):
        output, _ = loaded.record(image, step, scale)
        assert_close(output, sparse.record(image, step, scale)[0], 1e-5)
    with pytest.raises(SignatureError, match=r"scale is int64 \[\] but float64"):
        loaded.record(image, step, 3)


def test_what_belongs_to_another_folder(folder: Path, loaded: Loaded, tmp_path: Path) -> None:
    """What one folder recorded serves another load of it, but no other model, nor other weights."""
    want = loaded.update(loaded.record(*INPUTS)[1], *INPUTS, mask=square(2))
    again = sparsify.load(folder)
    _, baseline = again.record(*INPUTS)
    got = loaded.update(baseline, *INPUTS, mask=again.plan(square(2)))
    assert torch.equal(got["sample"], want["sample"])
    for name, options in (("model", {"dilate": 2}), ("weights", {"seed": 1})):
        tiny(**options).export(tmp_path / name, *INPUTS)
        with pytest.raises(BaselineError, match=f"another {name}|other {name}"):
            sparsify.load(tmp_path / name).update(baseline, *INPUTS, mask=square(2))


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    class Complex(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).abs()

    path = tmp_path / "folder"
    sparse = sparsify.sparsify(Complex().eval(), backend="eager")
    with pytest.raises(ExportError, match=r"record.*linalg_eig.*pt2"):
        sparse.export(path, torch.randn(1, 1, 4, 4), format="onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_in_the_way(tmp_path: Path, folder: Path) -> None:
    sparse = tiny()
    with pytest.raises(ExportError, match="one of pt2, onnx, aoti"):
        sparse.export(tmp_path / "x", *INPUTS, format="tflite")  # type: ignore[arg-type]
    (tmp_path / "mine").write_text("")
    with pytest.raises(ExportError, match="no exported folder"):
        sparse.export(tmp_path, *INPUTS)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
