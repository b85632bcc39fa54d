"""Parts of a model that steps reuse: where they are cut, and what is left to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sparsify.passes.macs import macs_of
from sparsify.passes.parts import Part
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from sparsify import ConfigError, Schedule, sparsify
from sparsify.forecast import weighed
from sparsify.oracle import scheduled
from sparsify.plan import Plan
from tests import networks
from tests.gan_steps import Gate
from tests.networks import MASKS, MaskRecipe, Recipe, Unruled, recipes
from tests.picture_steps import Move
from tests.rounding import assert_close, tolerance
from tests.small import small_inputs, small_unet

PARTS: tuple[Part, ...] = (
    *("encoder", "deep", "deep.0", "deep.1", "blocks", "attention"),
    lambda node: "conv" in str(node.target),
)


WHOLE = Recipe(
    steps=(Move("roll", (0, 0), last=False), Gate("glu"), Unruled("cumsum")),
    grid=(8, 8),
    batch=1,
    channels=3,
    dtype=torch.float64,
    head="image",
    seed=0,
)


def forecast(known: list[Any], weights: Sequence[float]) -> list[Any]:
    return [weighed(own, weights) for own in zip(*known, strict=True)]


@settings(max_examples=settings.default.max_examples // 2)
@given(
    recipes() | recipes(networks.DIFFUSION),
    st.sampled_from(PARTS),
    MASKS,
    st.floats(0, 1),
    st.booleans(),
)
@example(WHOLE, "encoder", MaskRecipe("empty", 0), 0.0, False)  # no output is on a grid
@torch.no_grad()
def test_runs_by_a_schedule_equal_the_interpreters(
    recipe: Recipe, part: Part, mask: MaskRecipe, weight: float, is_whole: bool
) -> None:
    """Drawn networks, parts, weights and masks, three steps: sampled, recorded, edited, and edited
    once more from what was committed, to the same inputs. Where the edited run has more forecasts
    than the recorded one, ``is_whole``, that makes no difference."""
    sparse = sparsify(recipe.build(), backend="eager", dense_above=1.0)
    engine = sparse._engine
    olds = [engine.bind(recipe.inputs(seed), {}) for seed in (0, 2, 4)]
    news = [engine.bind((recipe.inputs(1)[0], *old.leaves[1:]), {}) for old in olds]
    try:
        program = engine.program(olds[0], part)
    except ConfigError:
        assume(False)
    weights = (weight, 1 - weight)
    last = ((2, 1.0),) if is_whole else ((0, weight), (1, 1 - weight))
    schedule = Schedule((((0, 1.0),), ((1, 1.0),), last), part)
    edited_by = replace(schedule, rows=(*schedule.rows[:2], ((0, weight), (1, 1 - weight))))
    plan = Plan(mask.build(recipe.grid))
    leaves = [call.leaves for call in olds], [call.leaves for call in news]
    wanted = scheduled(program, plan, schedule, edited_by, *leaves)
    # Once for what is taken over, and once for what is made of it.
    allowed = 2 * max(
        tolerance(recipe, (*a.leaves,), (*b.leaves,)) for a, b in zip(olds, news, strict=True)
    )
    kept, changed, changed_again = list[Any](), list[Any](), list[Any]()
    for step in range(3):
        taken = forecast(kept, weights) if step == 2 and not is_whole else None
        output, values = program.step(olds[step], taken)
        same, baseline, _ = program.record_step(olds[step], taken)
        assert_close(same, output, allowed)
        moved = forecast(changed, weights) if step == 2 else None
        edited, new_values, new = program.update_step(baseline, news[step], plan, moved, True)
        assert_close(edited, tree_unflatten(wanted[step], program.output_spec), allowed)
        moved = forecast(changed_again, weights) if step == 2 else None
        assert new is not None
        again, again_values, _ = program.update_step(new, news[step], plan, moved, False)
        assert_close(again, edited, 2 * allowed)
        kept.append(values)
        changed.append(new_values)
        changed_again.append(again_values)


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def work(sparse: Any, graph: str, *inputs: Any, part: Part) -> int:
    program = sparse._engine.program(sparse._engine.bind(inputs, {}), part)
    return macs_of(program.graphs[graph].graph)


@torch.no_grad()
def test_a_diffusers_unet_is_cut_where_its_papers_cut_it() -> None:
    """The encoder's values are all skips and the middle; the deep part is one value, that which
    enters the outermost level on the way up."""
    sparse = sparsify(unet(), backend="eager")
    inputs = (torch.randn(2, 4, 16, 16), torch.tensor([5, 5]), torch.randn(2, 3, 8))
    program = sparse._engine.program(sparse._engine.bind(inputs, {}), "encoder")
    _, values = program.step(sparse._engine.bind(inputs, {}), None)
    assert len(values) == 9 + 1  # conv_in, two of each level, two downsamplers; the middle
    latent = program.graphs["reuse"].graph.find_nodes(op="placeholder")[0]
    assert latent.name == "sample" and not latent.users  # the decoder reads none
    program = sparse._engine.program(sparse._engine.bind(inputs, {}), "deep")
    _, values = program.step(sparse._engine.bind(inputs, {}), None)
    assert [tuple(value.shape) for value in values] == [(2, 16, 16, 16)]
    whole = work(sparse, "dense", *inputs, part="deep")
    assert work(sparse, "reuse", *inputs, part="deep") < 0.5 * whole
    assert work(sparse, "reuse", *inputs, part="encoder") < 0.75 * whole


@pytest.mark.parametrize("part", ["encoder", "deep", "blocks"])
@torch.no_grad()
def test_runs_by_a_schedule(part: Part) -> None:
    """Key steps are the model; in between the rest of it reads the step's own timestep."""
    model, (x, _, context) = small_unet(), small_inputs()
    sparse, seen = sparsify(model, backend="eager"), []
    with sparse.sampling(Schedule.every(3, 9, order=1, reuse=part)) as sampling:
        for t in range(9, 0, -1):
            seen.append(sparse(x, torch.tensor([t / 9]), context))
    assert (sampling.called, sampling.forecast) == (3, 6)
    for step, t in enumerate(range(9, 0, -1)):
        want = model(x, torch.tensor([t / 9]), context)
        if step % 3 == 0:
            torch.testing.assert_close(seen[step], want, rtol=1e-4, atol=1e-5)
        else:
            assert 0 < (seen[step] - want).norm() < 0.5 * want.norm()
    assert len({float(output.sum()) for output in seen}) == 9


@torch.no_grad()
def test_models_of_one_resolution_have_no_part() -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            y: Tensor = self.conv(x) * timestep
            return y

    sparse, x = sparsify(Timed().eval(), backend="eager"), torch.randn(1, 3, 8, 8)
    schedule = Schedule.every(2, 4, reuse="deep")
    with sparse.sampling(schedule), pytest.raises(ConfigError, match="one resolution only"):
        sparse(x, torch.tensor(1.0))
    with pytest.raises(ConfigError, match="reuse='whole': one of output, encoder, deep"):
        Schedule.every(2, 4, reuse="whole")


@torch.no_grad()
def test_compiled() -> None:
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).eval()
    x, outputs = torch.randn(1, 3, 16, 16), []
    for backend in ("eager", "inductor"):
        sparse = sparsify(model, backend=backend)
        with sparse.sampling(Schedule.at([0], 2, reuse="deep")):
            outputs.append([sparse(x, torch.tensor(t)).sample for t in (20, 10)])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
