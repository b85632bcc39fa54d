"""Sessions: a real diffusers scheduler drives the network, first recorded, then edited."""

from __future__ import annotations

import warnings

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler
from torch import Tensor, nn

from sparsify import Baseline, Plan, Session, SessionError, SparseModule, SparsifyWarning, sparsify
from sparsify.signature import Call, bind
from tests.small import corner, small_inputs, small_unet

STEPS, GUIDANCE = 8, 3.0


def sample(
    unet: nn.Module, start: Tensor, steps: int = STEPS, skip: int = 0, prompt: Tensor | None = None
) -> Tensor:
    """Classifier-free guidance: each step is one call on a batch of two."""
    scheduler = DDIMScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(steps)
    prompt = small_inputs()[2].to(start) if prompt is None else prompt
    context = torch.cat([torch.zeros_like(prompt), prompt])
    latents = start
    with torch.no_grad():
        for timestep in scheduler.timesteps[skip:]:
            pair = unet(torch.cat([latents, latents]), timestep.float(), context)
            empty, conditioned = pair.chunk(2)
            noise = empty + GUIDANCE * (conditioned - empty)
            latents = scheduler.step(noise, timestep, latents).prev_sample
    return latents


def module(policy: str = "fixed") -> SparseModule:
    return sparsify(small_unet(), backend="eager", policy=policy, dilate=1)


def test_exact_session_equals_the_dense_sampler() -> None:
    start = small_inputs()[0]
    sparse = module("exact")
    with sparse.recording() as session:
        recorded = sample(sparse, start)
    torch.testing.assert_close(recorded, sample(small_unet(), start))
    assert len(session.calls) == STEPS
    edited = torch.where(corner(), start + 1, start)
    with session.editing(corner()):
        update = sample(sparse, edited)
    torch.testing.assert_close(update, sample(small_unet(), edited), rtol=1e-3, atol=1e-4)


class Local(nn.Module):
    """Convolutions alone: an edit reaches two sites further at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.prompt = nn.Linear(16, 8)

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        own = self.prompt(context.mean(1)) * (timestep / 100)
        y: Tensor = self.leave(nn.functional.silu(self.enter(sample) + own[:, :, None, None]))
        return y


EXACT = torch.finfo(torch.float64).eps ** 0.5
"""Of the largest value. Rounding in float64 stays below it in 30 steps; what is left out does not:
2e-2 of float32 latents after 3 steps, when masks did not follow."""


@pytest.mark.parametrize("steps", [2, 3, 6, 30])
@pytest.mark.parametrize("network", [small_unet, Local])
def test_exact_sessions_follow_the_edit(network: type[nn.Module], steps: int) -> None:
    torch.manual_seed(0)
    model, start = network().double().eval(), small_inputs()[0].double()
    sparse = sparsify(model, backend="eager", policy="exact")
    with sparse.recording() as session:
        sample(sparse, start, steps)
    edited = torch.where(corner(), start + 1, start)
    # Wherever the mask is, what differs is followed: an edit in another place, too.
    for mask in (corner(), corner().flip(0), torch.zeros_like(corner())):
        with session.editing(mask):
            got = sample(sparse, edited, steps)
        want = sample(model, edited, steps)
        assert (got - want).abs().max() <= EXACT * want.abs().max()


def test_exact_sessions_compute_what_the_edit_reached() -> None:
    torch.manual_seed(0)
    start, reached = small_inputs(1, 32)[0], []
    sparse = sparsify(Local().eval(), backend="eager", policy="exact", dense_above=1.0)
    with sparse.recording() as session:
        sample(sparse, start, 4)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[15, 15] = True
    with session.editing(mask) as editing:
        update = editing.host.update

        def counted(baseline: Baseline, call: Call, plan: Plan, commit: bool) -> object:
            reached.append(int(plan.mask.view(-1, 32, 32).any(0).sum()))
            return update(baseline, call, plan, commit)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(editing.host, "update", counted)
            sample(sparse, torch.where(mask, start + 1, start), 4)
    for step, sites in enumerate(reached):  # at the far end a change may be rounded away
        assert 0.9 * (4 * step + 1) ** 2 <= sites <= (4 * step + 1) ** 2
    assert len(reached) == 4


def test_exact_sessions_take_the_mask_for_a_new_prompt() -> None:
    start, (*_, prompt) = small_inputs()[0], small_inputs()
    sparse = module("exact")
    with sparse.recording() as session:
        sample(sparse, start, 3)
    with session.editing(torch.ones_like(corner())):
        got = sample(sparse, start, 3, prompt=prompt + 1)
    want = sample(small_unet(), start, 3, prompt=prompt + 1)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


class TwoGrids(nn.Module):
    """Latents, and a map of two fifths of their size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.low = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(1, 2, 1)

    def forward(self, sample: Tensor, hint: Tensor) -> Tensor:
        low: Tensor = self.low(hint)
        return self.conv(sample) + nn.functional.interpolate(low, size=sample.shape[-2:])


@pytest.mark.parametrize("items", [False, True])
@torch.no_grad()
def test_exact_sessions_follow_inputs_on_other_grids(items: bool) -> None:
    torch.manual_seed(0)
    model, sample, hint = TwoGrids().eval(), torch.randn(2, 2, 10, 15), torch.randn(2, 1, 4, 6)
    grids = {"sample": (10, 15), "hint": (4, 6)}
    sparse = sparsify(model, backend="eager", policy="exact", grids=grids)
    with sparse.recording() as session:
        sparse(sample, hint)
    masks = torch.zeros(2, 10, 15, dtype=torch.bool)
    masks[1, 0, 0] = True
    hint = hint.clone()
    hint[0, 0, 3, 5] += 1
    sample = torch.where(masks[:, None], sample + 1, sample)
    with session.editing(masks if items else masks.any(0)):
        got = sparse(sample, hint)
    torch.testing.assert_close(got, model(sample, hint))


@pytest.mark.parametrize("policy", ["fixed", "exact"])
def test_a_sampler_that_starts_late(policy: str) -> None:
    """``strength=0.5`` runs the last three of six steps."""
    start, sparse, states = small_inputs()[0], module(policy), []
    with sparse.recording() as session:
        sample(sparse, start, 6)
        states = [baseline.inputs[0][:1] for baseline in session.calls]
    edited = torch.where(corner(), states[3] + 1, states[3])
    with session.editing(corner()) as editing, warnings.catch_warnings():
        warnings.simplefilter("error", SparsifyWarning)
        got = sample(sparse, edited, 6, skip=3)
        assert editing.position == 6
    want = sample(small_unet(), edited, 6, skip=3)
    if policy == "exact":
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    whole = torch.ones_like(corner())
    with session.editing(whole):
        torch.testing.assert_close(sample(sparse, edited, 6, skip=3), want, rtol=1e-3, atol=1e-4)


class Numbered(nn.Module):
    """Its timestep is a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, timestep: float) -> Tensor:
        y: Tensor = self.conv(x) * timestep
        return y


@torch.no_grad()
def test_timesteps_that_are_numbers() -> None:
    model = Numbered().eval()
    sparse = sparsify(model, backend="eager", policy="exact")
    x = small_inputs()[0]
    with sparse.recording() as session:
        for timestep in (5.0, 3.0, 2.0):
            sparse(x, timestep)
    edited = torch.where(corner(), x + 1, x)
    with session.editing(corner()):
        for timestep in (3.0, 2.0):
            torch.testing.assert_close(sparse(edited, timestep), model(edited, timestep))
    with pytest.raises(SessionError, match="timestep is"), session.editing(corner()):
        sparse(edited, 4.0)


@pytest.mark.parametrize(
    ("recorded", "called", "want"),
    [
        ("654321", "654321", "123456"),
        ("654321", "321", "456"),
        ("654321", "642", "135"),
        ("665544", "5544", "3456"),  # guidance as two calls
        ("665544", "665544", "123456"),
        ("6554433", "4433", "4567"),  # Heun, from a step's first call
        ("6554433", "54433", "24567"),  # and from its second: of a run the first serves
        ("6554433", "6554433", "1234567"),
        ("6655443", "443", "567"),  # and a last single one
        ("654545", "65454", "12345"),
    ],
)
@torch.no_grad()
def test_calls_are_matched_by_timestep(recorded: str, called: str, want: str) -> None:
    session, twins = local_session(recorded), []
    x, _, prompt = small_inputs()
    with warnings.catch_warnings(), session.editing(corner()) as editing:
        warnings.simplefilter("ignore", SparsifyWarning)  # of leaving early
        for timestep in called:
            editing.call(bind(Local(), (x, torch.tensor(float(timestep)), prompt), {}), Local())
            twins.append(str(editing.position))
    assert "".join(twins) == want


@pytest.mark.parametrize(
    ("recorded", "called", "text"),
    [
        ("654", "6545", "call 4 of 3: only 3"),
        ("654", "656", "call 3 of 3: timestep is 6.0 but 4.0 was recorded, and no later"),
        ("654", "7", "call 1 of 3: timestep is 7.0 but 6.0 was recorded"),
        ("6545", "5", "call 1 of 4 has the scalar inputs of calls 2, 4"),
    ],
)
@torch.no_grad()
def test_calls_that_match_none(recorded: str, called: str, text: str) -> None:
    session = local_session(recorded)
    x, _, prompt = small_inputs()
    with pytest.raises(SessionError, match=text), session.editing(corner()) as editing:
        for timestep in called:
            editing.call(bind(Local(), (x, torch.tensor(float(timestep)), prompt), {}), Local())


def local_session(timesteps: str) -> Session:
    """One recorded call for each digit."""
    x, _, prompt = small_inputs()
    sparse = sparsify(Local().eval(), backend="eager")
    with sparse.recording() as session:
        for timestep in timesteps:
            sparse(x, torch.tensor(float(timestep)), prompt)
    return session


def test_heun() -> None:
    """Two calls a step, and a last single one, of a real scheduler; late and in full."""

    def run(unet: nn.Module, latents: Tensor, skip: int = 0) -> Tensor:
        scheduler = HeunDiscreteScheduler(num_train_timesteps=100)
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(skip)
        for timestep in scheduler.timesteps[skip:]:
            scaled = scheduler.scale_model_input(latents, timestep)
            noise = unet(scaled, timestep.float(), prompt)
            latents = scheduler.step(noise, timestep, latents).prev_sample
        return latents

    x, _, prompt = small_inputs()
    sparse, edited = module("exact"), torch.where(corner(), x + 1, x)
    with torch.no_grad():
        with sparse.recording() as session:
            run(sparse, x)
        assert len(session.calls) == 7
        for skip in (0, 1, 3):
            with session.editing(corner()) as editing:
                got = run(sparse, edited, skip)
            assert editing.position == 7
            torch.testing.assert_close(got, run(small_unet(), edited, skip), rtol=1e-3, atol=1e-4)


def test_another_run_is_told() -> None:
    start, sparse = small_inputs()[0], module()
    with sparse.recording() as session:
        sample(sparse, start, 3)
    with (
        pytest.warns(SparsifyWarning, match=r"call 1 of 3: sample differs .* at 88\.3% of"),
        session.editing(corner()),
    ):
        sample(sparse, torch.randn_like(start), 3)


def test_the_first_call_of_another_run_is_named() -> None:
    """Drawn noise that is not the recorded one: only the second call differs."""
    start, *rest = small_inputs()
    sparse, other = module(), torch.randn_like(start)

    def run(*latents: Tensor) -> None:
        for x in latents:
            sparse(x, *rest)

    with sparse.recording() as session:
        run(start, start)
    with (
        pytest.warns(SparsifyWarning, match=r"call 2 of 2: sample differs"),
        session.editing(corner()),
    ):
        run(start, other)


def test_fixed_session_leaves_the_rest_as_recorded() -> None:
    start = small_inputs()[0]
    sparse = module()
    with sparse.recording() as session:
        recorded = sample(sparse, start)
    with session.editing(corner()):
        update = sample(sparse, torch.where(corner(), start + 1, start))
    reached = sparse.report().masks[16, 16].any(0)
    assert torch.equal(update[..., ~reached], recorded[..., ~reached])
    assert not torch.equal(update[..., corner()], recorded[..., corner()])


def test_outside_a_session_the_model_is_dense() -> None:
    sparse, inputs = module(), small_inputs()
    assert torch.equal(sparse(*inputs), small_unet()(*inputs))
    assert sparse.enter is sparse._engine.whole.enter


def test_wrong_number_of_calls() -> None:
    start = small_inputs()[0]
    sparse = module()
    with sparse.recording() as session:
        sample(sparse, start, 3)
    with pytest.raises(SessionError, match=r"call 1 of 3: timestep is"), session.editing(corner()):
        sample(sparse, start, 4)
    inputs = (torch.cat([start, start]), *session.calls[0].inputs[1:])
    with (
        pytest.warns(
            SparsifyWarning, match="3 calls were recorded but the run was left after call 1"
        ),
        session.editing(corner()),
    ):
        sparse(*inputs)
    with (
        pytest.raises(SessionError, match="3 calls were recorded but none made"),
        session.editing(corner()),
    ):
        small_unet()(*inputs)
    with pytest.raises(SessionError, match="call 4 of 3"), session.editing(corner()):
        for call in (*session.calls, session.calls[0]):
            sparse(torch.cat([start, start]), *call.inputs[1:])


def test_wrong_shape_names_the_call() -> None:
    sparse, inputs = module(), small_inputs()
    with sparse.recording() as session:
        sparse(*inputs)
        sparse(*inputs)
    with pytest.raises(SessionError, match=r"call 2 of 2: .*sample"), session.editing(corner()):
        sparse(*inputs)
        sparse(*small_inputs(2))


def test_nothing_recorded() -> None:
    sparse = module()
    with sparse.recording() as session:
        pass
    with pytest.raises(SessionError, match="nothing was recorded"), session.editing(corner()):
        pass


def test_an_error_inside_leaves_the_module_dense() -> None:
    sparse, inputs = module(), small_inputs()
    with pytest.raises(KeyError), sparse.recording():
        raise KeyError
    assert torch.equal(sparse(*inputs), small_unet()(*inputs))


def test_twenty_edits_are_one_edit_of_all() -> None:
    """Each from the one before; nothing drifts, and the first session is as it was."""
    model, start = small_unet().double().eval(), small_inputs()[0].double()
    sparse = sparsify(model, backend="eager", policy="exact")
    with sparse.recording() as session:
        before = sample(sparse, start, 4)
    own, edited = session, start
    for number in range(20):
        mask = corner().roll((number % 5, 2 * number), (0, 1))
        edited = torch.where(mask, edited + 0.3, edited)
        with own.editing(mask, keep=True) as editing:
            after = sample(sparse, edited, 4)
        own = editing.session
    want = sample(model, edited, 4)
    assert (after - want).abs().max() <= EXACT * want.abs().max()
    with session.editing(corner()):
        again = sample(sparse, start, 4)
    assert torch.equal(again, before)


def test_a_late_edit_keeps_what_comes_before() -> None:
    sparse, start = module(), small_inputs()[0]
    with sparse.recording() as session:
        sample(sparse, start)
    with session.editing(corner(), keep=True) as editing:
        sample(sparse, start + 0.1 * corner(), skip=3)
    kept = editing.session.calls
    assert len(kept) == STEPS
    assert kept[:3] == session.calls[:3]
