"""``docs/export.md`` is true, and its AOTInductor folder runs in C++ too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sparsify
from tests.rounding import assert_close

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "export.md"
Names = dict[str, Tensor]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Names:
    """What the page's code leaves; its folders lie in ``names["folder"]``."""
    folder = tmp_path_factory.mktemp("page")
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: Names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in code:
            exec(compile(block, str(PAGE), "exec"), names)
    return {**names, "folder": folder}


def test_the_folder_follows_every_mask(names: Names) -> None:
    """Compiled with one mask, run with others."""
    picture, loaded = names["picture"], sparsify.load(Path(names["folder"]) / "edit.aoti")
    _, recorded = names["sparse"].record(picture)
    _, baseline = loaded.record(picture)
    for side in (0, 1, 7, 32):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[:side, :side] = True
        edited = torch.where(mask, picture + 1, picture)
        want = names["sparse"].update(recorded, edited, mask=mask)
        assert_close(loaded.update(baseline, edited, mask=mask), want, 1e-5)


def test_the_cpp_example(names: Names, tmp_path: Path) -> None:
    picture, edited, mask = (names[name] for name in ("picture", "edited", "mask"))
    program = _compiled(ROOT / "examples" / "aoti_update.cpp", tmp_path / "update")
    save_file({"input": picture}, tmp_path / "recorded")
    save_file({"input": edited, "mask": mask}, tmp_path / "edited")
    files = [tmp_path / name for name in ("recorded", "edited", "result")]
    subprocess.run([program, Path(names["folder"]) / "edit.aoti", *files], check=True)
    got = torch.frombuffer(bytearray((tmp_path / "result").read_bytes()), dtype=torch.float32)
    assert_close(got.view(picture.shape), names["output"], 1e-5)


def _compiled(source: Path, program: Path) -> Path:
    home = Path(torch.__file__).parent
    includes = [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
    library = [f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["g++", "-std=c++20", "-O0", abi, *includes, str(source), "-o", str(program)]
    command += [*library, "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True)
    return program


def test_the_numpy_example(names: Names) -> None:
    """It runs in a process that has not even torch."""
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    example, folder = ROOT / "examples" / "onnx_only.py", Path(names["folder"]) / "edit.onnx"
    command = [sys.executable, "-I", "-c", code, str(example), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "largest change of the output" in done.stdout
