"""Parts are found from the graph, and cut where little crosses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet3DConditionModel,
)
from sparsify.passes.macs import macs_of
from sparsify.passes.parts import PARTS, Part
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsify import ConfigError, sparsify
from sparsify.engine import Engine
from sparsify.program import Program
from sparsify.signature import Call
from tests.small import small_inputs, small_unet
from tests.test_reuse import unet

Case = tuple[Engine, Call]


def wrapped(model: nn.Module, *args: Any, **kwargs: Any) -> Case:
    engine = sparsify(model.eval(), backend="eager")._engine
    return engine, engine.bind(args, kwargs)


def alive(model: nn.Module) -> nn.Module:
    """With weights that no gate closes."""
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.15
    return model


@cache  # of one capture, whatever the part
def dit() -> Case:
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3,
        sample_size=16, num_embeds_ada_norm=10,
    )  # fmt: skip
    steps = {"timestep": torch.tensor([5, 5]), "class_labels": torch.tensor([1, 2])}
    return wrapped(alive(model), torch.randn(2, 4, 16, 16), **steps)


@cache
def sd3() -> Case:
    model = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=12,
        pooled_projection_dim=10, out_channels=4,
    )  # fmt: skip
    others = {
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor([5, 5]),
    }
    return wrapped(alive(model), torch.randn(2, 4, 16, 16), **others)


@cache
def flux() -> Case:
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    places = torch.arange(64)
    ids = torch.stack([torch.zeros(64), (places // 8).float(), (places % 8).float()], 1)
    others = {
        "encoder_hidden_states": torch.randn(1, 6, 12),
        "pooled_projections": torch.randn(1, 10),
        "timestep": torch.tensor([0.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(6, 3),
    }
    grids = {"hidden_states": (8, 8)}
    engine = sparsify(alive(model).eval(), backend="eager", grids=grids)._engine
    return engine, engine.bind((torch.randn(1, 64, 4),), others)


@cache
def flat() -> Case:
    return wrapped(unet(), torch.randn(2, 4, 16, 16), torch.tensor([5, 5]), torch.randn(2, 3, 8))


def video() -> Case:
    model = UNet3DConditionModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), cross_attention_dim=8,
        attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    inputs = torch.randn(1, 4, 2, 16, 16), torch.tensor([5]), torch.randn(1, 3, 8)
    return wrapped(alive(model), *inputs)


def program(case: Case, part: Part) -> Program:
    engine, call = case
    made = engine.program(call, part)
    output, values = made.step(call, None)
    again = made.step(call, values)[0]
    for want, got in zip(tree_leaves(output), tree_leaves(again), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    others = [x + torch.randn_like(x) for x in values]
    moved = made.step(call, others)[0]
    pairs = zip(tree_leaves(output), tree_leaves(moved), strict=True)
    assert any((a - b).abs().max() > 1e-3 for a, b in pairs)  # what is taken over is read
    return made


def shapes(own: Program) -> list[tuple[int, ...]]:
    graph = own.graphs["key"].graph
    results: Any = graph.output_node().args[0]
    names = own.graphs["key"].outputs
    values = (node.meta["val"] for node in results)
    return [tuple(x.shape) for x, name in zip(values, names, strict=True) if "reused" in name]


def left(own: Program) -> float:
    """MACs of a reuse step over those of the model."""
    reuse, dense = (macs_of(own.graphs[n].graph) for n in ("reuse", "dense"))
    return reuse / dense


@pytest.mark.parametrize(
    ("case", "part", "kept", "share"),
    [
        # All blocks of a transformer add one sum to the tokens; text beside them is not kept.
        (dit, "blocks", [(2, 64, 16)], (0.0, 0.1)),
        (sd3, "blocks", [(2, 64, 16)], (0.0, 0.1)),
        (flux, "blocks", [(1, 64, 32)], (0.0, 0.1)),
        # A run of them as well, where the user names it.
        (dit, ("transformer_blocks.1", "transformer_blocks.1.*"), [(2, 64, 16)], (0.6, 0.7)),
        # The first blocks: a decoder is left.
        (dit, "encoder", [(2, 64, 16)], (0.3, 0.4)),
        (flux, "encoder", [(1, 70, 32)], (0.2, 0.4)),
        # With the projection behind it.
        (dit, "attention", [(2, 64, 16)] * 3, (0.4, 0.5)),
        # A UNet over frames is one over pictures.
        (video, "deep", [(2, 16, 16, 16)], (0.1, 0.8)),
        # The outermost skip connection meets one value.
        (flat, "deep.0", [(2, 8, 16, 16)], (0.0, 0.1)),
        (flat, "cross_attention", [(2, 64, 16), (2, 64, 16), (2, 16, 16)], (0.9, 1.0)),
    ],
)
@torch.no_grad()
def test_what_is_kept(
    case: Callable[[], Case], part: Part, kept: list[tuple[int, ...]], share: tuple[float, float]
) -> None:
    own = program(case(), part)
    found = shapes(own)
    assert found[: len(kept)] == kept
    assert share[0] <= left(own) <= share[1]


class Wide(nn.Module):
    """A deep value that is only resized and activated on the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        deep = nn.functional.interpolate(self.down(x).relu(), scale_factor=2.0)
        y: Tensor = self.up(deep.sin()) + x
        return y


@torch.no_grad()
def test_what_is_cheap_to_compute_is_not_kept() -> None:
    """The value on the small grid, not the one that it is resized to."""
    x = torch.randn(1, 3, 8, 8)
    own = program(wrapped(Wide(), x), lambda node: node.name in ("conv2d", "relu"))
    assert shapes(own) == [(1, 4, 4, 4)]
    engine, call = wrapped(Wide(), x)
    deep = engine.program(call, ("down",))
    assert shapes(deep) == [(1, 4, 4, 4)]


@torch.no_grad()
def test_a_controlnet_has_parts_of_its_own() -> None:
    net = alive(
        ControlNetModel(
            block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
            attention_head_dim=4, conditioning_embedding_out_channels=(4, 4, 8, 8),
        )
    )  # fmt: skip
    picture = torch.randn(1, 3, 128, 128)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 3, 8), picture
    own = program(wrapped(net, *inputs), "attention")
    assert shapes(own)


@torch.no_grad()
def test_a_part_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="has 0 skip connections"):
        program(dit(), "deep.0")
    with pytest.raises(ConfigError, match="no such part that an edit reaches"):
        program(dit(), ("no_such_module",))


class NoGrid(nn.Module):
    """No value is on a grid, as no rule knows of any operator."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(2)


@pytest.mark.parametrize("part", [*PARTS, "deep.0"])
@torch.no_grad()
def test_a_model_without_a_grid_has_no_parts(part: str) -> None:
    with pytest.raises(ConfigError, match=f"reuse='{part}'"):
        program(wrapped(NoGrid(), torch.randn(1, 3, 8, 8)), part)


@torch.no_grad()
def test_programs_of_all_parts_are_made_of_one_capture() -> None:
    """In whatever order; a model that changed is captured again."""
    (engine, call), (other, _) = (wrapped(small_unet(), *small_inputs()) for _ in range(2))
    plain, deep = (engine.program(call, part) for part in (None, "deep"))
    assert deep.canonical is plain.canonical
    assert other.program(call, "deep").key == deep.key
    engine.model.leave.stride = 2
    assert engine.program(call, "blocks").canonical is not plain.canonical
