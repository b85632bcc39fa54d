"""The command line: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from sparsify.codegen.background.packages import Packages
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from sparsify import ModelError, sparsify
from sparsify.cli.app import COMMANDS, app
from sparsify.cli.from_diffusers import FromDiffusers
from sparsify.cli.options import source
from sparsify.masks import centred_square
from sparsify.words import size_of

UNET: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "layers_per_block": 1,
}
CONDITIONED: dict[str, Any] = {
    **UNET,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
TRANSFORMER: dict[str, Any] = {
    "sample_size": 16,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "num_layers": 1,
}
BLOCKS: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
}
CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("UNet2DModel", {**UNET, "num_class_embeds": 3}),
    ("UNet2DConditionModel", {**CONDITIONED, "cross_attention_dim": [24, 24]}),
    (
        "UNet2DConditionModel",
        {
            **CONDITIONED,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 10,
        },
    ),
    ("DiTTransformer2DModel", {**TRANSFORMER, "num_embeds_ada_norm": 5}),
    ("PixArtTransformer2DModel", {**TRANSFORMER, "cross_attention_dim": 32}),
    (
        "PixArtTransformer2DModel",
        {
            **TRANSFORMER,
            "num_attention_heads": 3,
            "cross_attention_dim": 48,
            "caption_channels": 24,
            "use_additional_conditions": True,
        },
    ),
    (
        "SanaTransformer2DModel",
        {
            **TRANSFORMER,
            "out_channels": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
        },
    ),
    (
        "SD3Transformer2DModel",
        {
            **TRANSFORMER,
            "out_channels": 4,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 16,
        },
    ),
    (
        "FluxTransformer2DModel",
        {
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "pooled_projection_dim": 16,
            "axes_dims_rope": [4, 6, 6],
            "guidance_embeds": True,
        },
    ),
    ("AutoencoderKL", BLOCKS),
    ("AutoencoderKL.decode", BLOCKS),
    ("VQModel.decode", BLOCKS),
    (
        "AutoencoderTiny.decode",
        {
            "encoder_block_out_channels": [8, 8],
            "decoder_block_out_channels": [8, 8],
            "num_encoder_blocks": [1, 1],
            "num_decoder_blocks": [1, 1],
        },
    ),
    (
        "AutoencoderDC.decode",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": [8, 16],
            "decoder_block_out_channels": [8, 16],
            "encoder_layers_per_block": [1, 1],
            "decoder_layers_per_block": [1, 1],
            "encoder_qkv_multiscales": [[], []],
            "decoder_qkv_multiscales": [[], []],
        },
    ),
]

HERE = """
import torch
from torch import nn
from benchmarks.networks import small

def rrdb():
    network = small()["real-esrgan-x4"]
    return network.build(), *network.inputs()

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, tokens):
        return torch.relu(self.mix(tokens)) + tokens

def tokens():
    return Tokens(), (torch.randn(1, 96, 8),)

def nothing():
    return Tokens()

def broken():
    raise RuntimeError("the user's own")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a module of the user's, and a configuration."""
    (tmp_path / "made_here.py").write_text(HERE)
    (tmp_path / "unet.json").write_text(json.dumps({"_class_name": "UNet2DModel", **UNET}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delitem(sys.modules, "made_here", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def called(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]


def rows(text: str) -> dict[str, list[str]]:
    """The tables' rows by their first cell."""
    found = [cells(line) for line in text.splitlines() if "│" in line or "┃" in line]
    return {first: rest for first, *rest in found}


def test_inspect_shows_what_the_report_says(folder: Path) -> None:
    result = called("inspect", "diffusers:UNet2DModel:unet.json", "--share", "0.1", "--dilate", "2")
    assert result.exit_code == 0, result.output
    torch.manual_seed(0)
    sparse = sparsify(UNet2DModel(**UNET).eval(), dilate=2)
    _, baseline = sparse.record(torch.randn(1, 3, 32, 32), torch.tensor(10))
    sparse.plan(centred_square((32, 32), 0.1))
    report = sparse.report()
    table = rows(result.stdout)
    assert table["all"][-1] == size_of(report.kept) and report.kept > 0
    assert f"baseline: {size_of(baseline.nbytes)}" in result.stdout
    assert table["all"][0] == str(len(report.nodes))
    packed = str(sum(n.grid == (32, 32) and n.state == "packed" for n in report))
    assert table["32x32"] == ["1024", "196", "19.1%", packed, "0"]  # a square of 10 + 2 + 2
    assert f"MACs left: {report.macs_update / report.macs_dense:.1%}" in result.stdout


def test_inspect_takes_the_policy_and_the_dense_share(folder: Path) -> None:
    fixed = rows(called("inspect", "diffusers:UNet2DModel:unet.json").stdout)
    exact = rows(called("inspect", "diffusers:UNet2DModel:unet.json", "--policy", "exact").stdout)
    dense = ("--dense-share", "0.9")
    partly = rows(called("inspect", "diffusers:UNet2DModel:unet.json", *dense).stdout)
    assert [table["16x16"][3] != "0" for table in (fixed, exact, partly)] == [True, False, False]
    assert [table["16x16"][2] != "100.0%" for table in (fixed, exact, partly)] == [
        True,
        False,
        False,
    ]
    assert partly["32x32"][4] == "0"  # the fine grid stays packed


def test_inspect_of_tokens_needs_their_grid(folder: Path) -> None:
    without = called("inspect", "python:made_here:tokens")
    assert without.exit_code == 1 and "grids={name: (H, W)}" in without.stderr
    result = called("inspect", "python:made_here:tokens", "--grid", "tokens=8x12", "--dilate", "0")
    assert result.exit_code == 0, result.output
    assert rows(result.stdout)["8x12"][0] == "96"


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_bench_compares_what_the_backend_compiles(folder: Path, backend: str) -> None:
    grid = ("--grid", "tokens=8x12")
    result = called("bench", "python:made_here:tokens", "--backend", backend, *grid)
    assert result.exit_code == 0, result.output
    table = rows(result.stdout)
    compiled = {"dense, compiled"} if backend == "inductor" else set()
    assert set(table) == {"", "dense", "update"} | compiled
    for name in set(table) - {"", "update"}:
        dense, update = float(table[name][0]), float(table["update"][0])
        shown, off = float(table[name][2].removesuffix("x as fast")), 0.0051  # of two digits
        most = (dense + off) / max(update - off, 1e-9) + off
        assert (dense - off) / (update + off) - off <= shown <= most
    assert "MACs left" in result.stdout


@pytest.mark.parametrize(("name", "config"), CONFIGURATIONS)
def test_a_class_of_diffusers_gets_inputs(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    model = source(f"diffusers:{name}:{path}")
    flux = name == "FluxTransformer2DModel"
    example = model.build({"hidden_states": (4, 6)} if flux else {})
    assert not example.model.training
    sparse = sparsify(example.model, backend="eager", grids=example.grids)
    output, baseline = sparse.record(*example.args, **example.kwargs)
    assert baseline.grid == ((4, 6) if flux else tuple(example.args[0].shape[-2:]))
    assert all(torch.isfinite(leaf).all() for leaf in tree_leaves(output))


def test_a_folder_with_weights_is_loaded_with_them(tmp_path: Path) -> None:
    torch.manual_seed(5)
    saved = UNet2DModel(**UNET)
    saved.save_pretrained(tmp_path)
    loaded = source(f"diffusers:UNet2DModel:{tmp_path}").build({}).model
    assert torch.equal(loaded.conv_in.weight, saved.conv_in.weight)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    fresh = source(f"diffusers:UNet2DModel:{tmp_path}").build({}).model
    assert fresh.conv_in.weight.shape == saved.conv_in.weight.shape
    assert not torch.equal(fresh.conv_in.weight, saved.conv_in.weight)


def test_a_class_alone_has_its_defaults() -> None:
    example = source("diffusers:AutoencoderKL").build({})
    assert example.args[0].shape == (1, 3, 32, 32)


def test_a_decoder_carries_no_encoder(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(BLOCKS))
    decoder = FromDiffusers("AutoencoderKL", "decode", path).build({}).model
    whole = FromDiffusers("AutoencoderKL", "", path).build({}).model
    sizes = [sum(p.numel() for p in m.parameters()) for m in (whole, decoder, whole.encoder)]
    assert sizes[0] - sizes[1] == sizes[2] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["diffusers:VAE"], "not for 'VAE': write a function"),
        (["diffusers:UNet2DModel:gone"], "gone is not there: name a config.json"),
        (["diffusers:UNet2DModel:made_here.py"], "not a configuration in JSON"),
        (["diffusers:UNet2DConditionModel:unet.json"], "name diffusers:UNet2DModel:unet.json"),
        (["diffusers:UNet2DModel:odd.json"], "odd.json makes no UNet2DModel: "),
        (["diffusers:UNet2DModel.decode:unet.json"], "only autoencoders have .decode"),
        (["diffusers:UNet2DModel:timed.json"], "inputs of its own: write a function"),
        (["python:gone:rrdb"], "no module 'gone'"),
        (["python:made_here:gone"], "made_here has no function gone"),
        (["python:made_here:nothing"], "return (model, args)"),
        (["python:made_here:tokens", "--grid", "tokens=8x13"], "96 tokens but the grid"),
        (["python:made_here:rrdb", "--grid", "words=8x12"], "grids names 'words'"),
        (["python:made_here:rrdb", "--dense-share", "1"], "a share of MACs in [0, 1)"),
    ],
)
def test_an_error_of_ours_is_one_line(folder: Path, arguments: list[str], said: str) -> None:
    timed = {**UNET, "class_embed_type": "timestep"}
    (folder / "timed.json").write_text(json.dumps(timed))
    (folder / "odd.json").write_text(json.dumps({**UNET, "down_block_types": ["None", "None"]}))
    result = called("inspect", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect"],
        ["inspect", "UNet2DModel"],
        ["inspect", "python:made_here"],
        ["inspect", "python:.made_here:rrdb"],
        ["inspect", "diffusers:"],
        ["inspect", "python:made_here:rrdb", "--grid", "tokens=8"],
        ["inspect", "python:made_here:rrdb", "--share", "2"],
        ["inspect", "python:made_here:rrdb", "--policy", "none"],
        ["export", "python:made_here:rrdb", "out", "--format", "jit"],
        ["run", "gone", "--before", "a.png", "--after", "b.png", "-o", "c.png"],
        ["run", ".", "--before", "unet.json", "--after", "unet.json", "-o", "out.what"],
        ["run", ".", "--before", "unet.json", "--after", "unet.json", "-o", "only_read.psd"],
        [
            "run",
            ".",
            "--before",
            "unet.json",
            "--after",
            "unet.json",
            "-o",
            "c.png",
            "--input",
            "t",
        ],
        ["wrong"],
    ],
)
def test_wrong_usage_is_told_before_anything_runs(folder: Path, arguments: list[str]) -> None:
    result = called(*arguments)
    assert result.exit_code == 2 and "Usage: " in result.stderr


def test_the_users_own_errors_keep_their_traceback(folder: Path) -> None:
    result = called("inspect", "python:made_here:broken")
    assert isinstance(result.exception, RuntimeError) and str(result.exception) == "the user's own"


@pytest.mark.parametrize("command", ["", "inspect", "bench", "export", "run"])
def test_help_has_examples_that_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = called(*command.split(), "--help")
    assert result.exit_code == 0
    shown = [line.strip() for line in result.stdout.splitlines() if "sparsify " in line]
    examples = [line.split() for line in shown if line.startswith(f"sparsify {command} ")]
    assert examples or not command
    for _, _, *arguments in examples:
        named = [word for word in arguments if word.startswith(("diffusers:", "python:"))]
        assert command == "run" or source(named[0])


def test_a_program_of_its_own(folder: Path) -> None:
    command = [sys.executable, "-m", "sparsify", "inspect", "python:made_here:tokens"]
    root = str(Path(__file__).parents[1])
    result = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": root}, check=False
    )
    assert result.returncode == 1
    assert result.stdout == "" and result.stderr.startswith("error: no input is an image")


def test_models_are_named_by_two_forms() -> None:
    assert source("diffusers:VQModel.decode:a:b/c") == FromDiffusers(
        "VQModel", "decode", Path("a:b/c")
    )
    with pytest.raises(ModelError, match="not for 'nn'"):
        source("diffusers:nn").build({})


def test_help_and_version_import_no_torch() -> None:
    code = "import sys; from sparsify.cli.app import app; app(standalone_mode=False); "
    code += "print('torch' in sys.modules)"
    for argument, said in (("--help", "Exit codes"), ("--version", "sparsify 0.")):
        command = [sys.executable, "-c", code, argument]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said in out
        assert out.endswith("False\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_commands_what_they_say_themselves(name: str) -> None:
    module = import_module(f"sparsify.cli.{name}")
    assert module.command.__doc__.split("\n\n")[0].replace("\n    ", " ") == COMMANDS[name]


def test_the_cache_is_listed_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIFY_CACHE_DIR", str(tmp_path))
    with Packages(tmp_path).making("0123456789abcdef") as folder:
        (folder / "package.pt2").write_bytes(bytes(2048))
    listed = CliRunner().invoke(app, ["cache"]).output
    assert "0123456789ab" in listed
    assert "2.0 KiB of 4.0 GiB" in listed
    assert "removed 2.0 KiB" in CliRunner().invoke(app, ["cache", "--clear"]).output
    assert not list(tmp_path.glob("*.pt2"))
