"""Masks that are found: the recipe of FISEdit, and sessions whose prompt changes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparsify.codegen.tables import dilate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparsify import ConfigError, Schedule, SessionError, SparsifyWarning, sparsify
from sparsify.found_masks import above_otsu, difference_map, found_mask, opened
from tests.small import corner, small_inputs, small_unet
from tests.test_session import STEPS, sample

AFTER = 3


def total(differences: list[Tensor]) -> np.ndarray:
    """What FISEdit's pipeline adds up, of one item: float [C, H, W] each -> uint8 [H, W]."""
    added = np.zeros(differences[0].shape[1:], np.float32)
    for own in differences:
        change = own.abs().sum(0).numpy()
        added += (change - change.min()) / (change.max() - change.min())
    return np.asarray(cv2.normalize(added, added.copy(), 0, 255, cv2.NORM_MINMAX, cv2.CV_8U))


def marked(levels: np.ndarray) -> np.ndarray:
    """What it makes of that: bool [H, W]."""
    _, above = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    square = np.ones((2, 2), np.uint8)
    return np.asarray(cv2.dilate(cv2.erode(above, square), square) == 255)


SIDES = st.integers(2, 24)


@given(st.integers(0, 2**31), st.integers(1, 3), SIDES, SIDES, st.floats(0, 4))
def test_found_masks_are_fisedits(seed: int, steps: int, high: int, wide: int, more: float) -> None:
    """But for its shift: OpenCV's squares reach up and to the left, both times."""
    generator = torch.Generator().manual_seed(seed)
    differences = [torch.randn(2, 3, high, wide, generator=generator) for _ in range(steps)]
    for own in differences:
        own[:, :, high // 3 : high // 2 + 1, wide // 4 : wide // 2 + 1] *= 1 + more
    levels = (difference_map(differences) * 255).round()
    found = found_mask(levels / 255)
    for item in range(2):
        theirs = total([own[item] for own in differences])
        assert (levels[item] - torch.from_numpy(theirs)).abs().max() <= 1  # as halves are rounded
        ours = marked(levels[item].byte().numpy())
        assert torch.equal(found[item, :-1, :-1], torch.from_numpy(ours)[1:, 1:])


def test_a_picture_that_did_not_change_has_no_mask() -> None:
    assert not found_mask(difference_map([torch.zeros(1, 3, 8, 8)]), margin=2).any()
    assert not above_otsu(torch.full((1, 8, 8), 0.5)).any()


def test_an_opening_drops_what_is_thin_and_moves_nothing() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:5, 3:6] = True
    thin = mask.clone()
    thin[0, 6, 1:] = True
    thin[0, 1, 1] = True
    assert torch.equal(opened(thin), mask)
    wide = dilate(mask, 1)
    assert wide[0, 1:6, 2:7].all()
    assert int(wide.sum()) == 25


class Painter(nn.Module):
    """A denoiser whose prompt reaches one corner of the picture alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("where", corner().double())

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        prompt = context.mean((1, 2))[:, None, None, None] * self.where
        y: Tensor = 0.1 * self.mix(sample) + prompt * (timestep / 100)
        return y


@pytest.fixture(name="painter")
def _painter() -> Painter:
    torch.manual_seed(0)
    return Painter().double().eval()


def prompts() -> tuple[Tensor, Tensor, Tensor]:
    """A start, the recorded prompt and another one."""
    start, _, context = (x.double() for x in small_inputs())
    return start[:1], context[:1], context[:1] + 3.0


def test_a_new_prompt_is_followed_where_it_changes_the_picture(painter: Painter) -> None:
    sparse = sparsify(painter, backend="eager", dilate=1)
    start, old, new = prompts()
    with sparse.recording() as session:
        before = sample(sparse, start, prompt=old)
    with session.editing(after=AFTER) as editing:
        with pytest.raises(SessionError, match="not found yet"):
            _ = editing.mask
        after = sample(sparse, start, prompt=new)
    mask = editing.mask
    assert mask.shape == (2, 16, 16)  # both halves of guidance have one
    assert torch.equal(mask[0], mask[1])
    assert torch.equal(mask[0], dilate(corner()[None], 1)[0])
    want = sample(painter, start, prompt=new)
    assert (want - before).abs()[..., corner()].mean() > 0.3
    torch.testing.assert_close(after[..., corner()], want[..., corner()], rtol=1e-2, atol=1e-2)


def test_an_unchanged_prompt_runs_nothing() -> None:
    sparse = sparsify(small_unet(), backend="eager")
    start = small_inputs()[0]
    with sparse.recording() as session:
        before = sample(sparse, start)
    with session.editing(after=AFTER) as editing, FlopCounterMode(display=False) as work:
        after = sample(sparse, start)
    assert torch.equal(before, after)
    assert not editing.mask.any()
    assert work.get_total_flops() == 0


def test_masks_of_ones_own_are_added(painter: Painter) -> None:
    sparse = sparsify(painter, backend="eager", dilate=1)
    start, old, new = prompts()
    with sparse.recording() as session:
        sample(sparse, start, prompt=old)
    own = torch.zeros(16, 16, dtype=torch.bool)
    own[12:, 12:] = True
    with session.editing(own, after=AFTER, margin=0) as editing:
        with pytest.raises(SessionError, match="not found yet"):
            _ = editing.mask
        sample(sparse, start, prompt=new)
    assert torch.equal(editing.mask[0], own | corner())


def test_forecasts_are_the_recorded_outputs_outside(painter: Painter) -> None:
    """Though steps that find the mask, and later ones are forecast from, differ everywhere."""
    sparse = sparsify(painter, backend="eager", dilate=1)
    start, old, new = prompts()
    outputs = list[Tensor]()

    def noted(*inputs: Tensor) -> Tensor:
        outputs.append(y := sparse(*inputs))
        return y

    with sparse.recording() as session:
        sample(noted, start, prompt=old)  # type: ignore[arg-type]
    recorded, outputs[:] = list(outputs), []
    schedule = Schedule.at([0, 1, 2, 5], STEPS, order=1)
    with session.editing(after=AFTER, schedule=schedule) as editing:
        sample(noted, start, prompt=new)  # type: ignore[arg-type]
    for was, now in list(zip(recorded, outputs, strict=True))[AFTER:]:
        outside = ~dilate(editing.mask, 1)[:, None].expand_as(was)  # as far as updates reach
        assert torch.equal(was[outside], now[outside])
        assert not torch.equal(was, now)


def test_a_session_is_entered_late() -> None:
    sparse = sparsify(small_unet(), backend="eager", warn_dropped=False)
    start = small_inputs()[0]
    with sparse.recording() as session:
        sample(sparse, start)
    late = session[STEPS // 2 :]
    assert len(late.calls) == STEPS - STEPS // 2
    with late.editing(corner()):
        sample(sparse, start, skip=STEPS // 2)


def test_what_is_refused(painter: Painter) -> None:
    start = prompts()[0]
    sparse = sparsify(painter, backend="eager")
    with sparse.recording() as session:
        sample(sparse, start, prompt=prompts()[1])
    with (
        pytest.raises(ConfigError, match="after=0, margin=1: at least 1"),
        session.editing(after=0),
    ):
        pass
    schedule = Schedule.every(2, STEPS, reuse="attention")
    with pytest.raises(ConfigError, match="over 'attention' at active ones"):  # noqa: SIM117
        with session.editing(after=AFTER, schedule=schedule):
            pass
    exact = sparsify(painter, backend="eager", policy="exact")
    with exact.recording() as session:
        sample(exact, start, prompt=prompts()[1])
    with pytest.raises(ConfigError, match="take policy 'fixed'"), session.editing(after=AFTER):
        pass


def test_a_large_mask_is_told(painter: Painter) -> None:
    sparse = sparsify(painter, backend="eager", dense_above=0.01)
    start, old, new = prompts()
    with sparse.recording() as session:
        sample(sparse, start, prompt=old)
    told = pytest.warns(SparsifyWarning, match="of the sites, so that the run goes on densely")
    with told, session.editing(after=AFTER):
        sample(sparse, start, prompt=new)
