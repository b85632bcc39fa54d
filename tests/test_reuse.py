"""Parts of a model that steps reuse: where they are cut, and what is left to compute."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sparsify.codegen import ops
from sparsify.passes.macs import macs
from sparsify.passes.reuse import Part
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves

from sparsify import ConfigError, Schedule, sparsify
from tests.networks import Recipe, recipes
from tests.rounding import assert_close, tolerance
from tests.small import small_inputs, small_unet

PARTS: tuple[Part, ...] = ("encoder", "deep")


class Substituted(Interpreter):
    """A run of a graph in which some nodes have values of another run."""

    def __init__(self, module: Any, values: dict[str, Tensor]) -> None:
        super().__init__(module)
        self._given = values

    def run_node(self, n: Node) -> Any:
        return self._given[n.name] if n.name in self._given else super().run_node(n)


@settings(max_examples=settings.default.max_examples // 6)
@given(recipes(), st.sampled_from(PARTS), st.integers(0, 2))
@torch.no_grad()
def test_a_reuse_step_is_the_model_around_given_values(
    recipe: Recipe, part: Part, order: int
) -> None:
    """Drawn networks; with the values of the same inputs it is the model itself."""
    model, first, second = recipe.build(), recipe.inputs(), recipe.inputs(1)
    sparse = sparsify(model, backend="eager")
    engine = sparse._engine
    try:
        program = engine.program(engine.bind(first, {}), part)
    except ConfigError:
        assume(False)
    output, values = program.key_step(engine.bind(first, {}))
    allowed = tolerance(recipe, first, second)
    assert_close(output, model(*first), allowed)
    assert_close(program.reuse_step(engine.bind(first, {}), values), output, allowed)
    key = program.graphs["key"]
    results = cast(tuple[Node, ...], key.graph.output_node().args[0])
    made = [n for n, kind in zip(results, key.outputs, strict=True) if kind.startswith("reused.")]
    names = [(n.all_input_nodes[0] if n.target is ops.contiguous else n).name for n in made]
    known = dict(zip(names, values, strict=True))
    dense = program.graphs["dense"]
    given = [second[int(name.removeprefix("input."))] for name in dense.inputs]
    wanted = Substituted(dense.module, known).run(*given)
    got = tree_leaves(program.reuse_step(engine.bind(second, {}), values))
    for new, want in zip([x for x in got if isinstance(x, Tensor)], wanted, strict=True):
        assert_close(new, want, allowed)


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
    return sum(macs(node) for node in program.graphs[graph].graph.nodes)


@torch.no_grad()
def test_a_diffusers_unet_is_cut_where_its_papers_cut_it() -> None:
    """The encoder's values are all skips and the middle; the deep part is one value, that which
    enters the outermost level on the way up."""
    sparse = sparsify(unet(), backend="eager")
    inputs = (torch.randn(2, 4, 16, 16), torch.tensor([5, 5]), torch.randn(2, 3, 8))
    program = sparse._engine.program(sparse._engine.bind(inputs, {}), "encoder")
    _, values = program.key_step(sparse._engine.bind(inputs, {}))
    assert len(values) == 9 + 1  # conv_in, two of each level, two downsamplers; the middle
    latent = program.graphs["reuse"].graph.find_nodes(op="placeholder")[0]
    assert latent.name == "sample" and not latent.users  # the decoder reads none
    program = sparse._engine.program(sparse._engine.bind(inputs, {}), "deep")
    _, values = program.key_step(sparse._engine.bind(inputs, {}))
    assert [tuple(value.shape) for value in values] == [(2, 16, 16, 16)]
    whole = work(sparse, "dense", *inputs, part="deep")
    assert work(sparse, "reuse", *inputs, part="deep") < 0.5 * whole
    assert work(sparse, "reuse", *inputs, part="encoder") < 0.75 * whole


@pytest.mark.parametrize("part", PARTS)
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
        Schedule.every(2, 4, reuse="whole")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reuse the output"), sparse.recording(schedule):
        pass


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
