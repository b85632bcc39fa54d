"""Models and conditions that change between calls: the next record and update see them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsify import BaselineError, SparseModule, sparsify
from tests.small import corner, small_inputs, small_unet


def edited(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    image, *others = inputs
    return (torch.where(corner(), image + 1, image), *others)


@torch.no_grad()
def assert_as_dense(sparse: SparseModule, model: nn.Module) -> None:
    """What is recorded now, and an update of it, under policy "exact"."""
    inputs = small_inputs()
    output, baseline = sparse.record(*inputs)
    torch.testing.assert_close(output, model(*inputs))
    got = sparse.update(baseline, *edited(inputs), mask=corner())
    torch.testing.assert_close(got, model(*edited(inputs)))


# -- weights ------------------------------------------------------------------------------------


def _by_numpy(weight: Tensor) -> None:
    weight.detach().numpy()[:] *= 2


def _in_inference_mode(weight: Tensor) -> None:
    with torch.inference_mode():
        weight.mul_(2)


def _by_pointer(weight: Tensor) -> None:
    weight.data = weight.data * 2


def _merged(weight: Tensor) -> None:
    """As peft does."""
    weight.data += weight.data


WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda weight: weight.mul_(2),
    ".data": lambda weight: weight.data.mul_(2),
    ".data of a part": lambda weight: weight.data[:1].mul_(2),
    ".data replaced": _by_pointer,
    ".data added to": _merged,
    "detached": lambda weight: weight.detach().mul_(2),
    "NumPy": _by_numpy,
    "inference": _in_inference_mode,
}
# A convolution that is prepacked, one that only the record reads whole, a linear layer, a norm, and
# what conditions are made with.
WEIGHTS = ("enter.weight", "high.conv1.bias", "qkv.weight", "low.norm1.weight", "context.weight")


@pytest.mark.parametrize("write", WRITES)
@torch.no_grad()
def test_written_weights_are_noticed(write: str) -> None:
    model = small_unet()
    sparse = sparsify(model, backend="eager", policy="exact", dense_above=1.0)
    assert_as_dense(sparse, model)
    for name in WEIGHTS:
        _, baseline = sparse.record(*small_inputs())
        WRITES[write](model.get_parameter(name))
        with pytest.raises(BaselineError, match="weights changed"):
            sparse.update(baseline, *small_inputs(), mask=corner())
        assert_as_dense(sparse, model)


# -- conditions ---------------------------------------------------------------------------------


def _numpy(condition: Tensor) -> None:
    condition.numpy()[:] = 7


CONDITION_WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda condition: condition.fill_(7),
    ".data": lambda condition: condition.data.fill_(7),
    ".data replaced": lambda condition: setattr(condition, "data", torch.full_like(condition, 7)),
    "NumPy": _numpy,
}


@pytest.mark.parametrize("write", CONDITION_WRITES)
@torch.no_grad()
def test_written_conditions_are_noticed(write: str) -> None:
    """Values decide, also those of an array that the caller advances."""
    model, (image, time, context) = small_unet(), small_inputs()
    sparse = sparsify(model, backend="eager", policy="exact", dense_above=1.0)
    _, baseline = sparse.record(image, time, context)
    sparse.update(baseline, image, time, context, mask=corner())
    CONDITION_WRITES[write](context)
    everything = torch.ones_like(corner())
    got = sparse.update(baseline, image, time, context, mask=everything)
    torch.testing.assert_close(got, model(image, time, torch.full_like(context, 7)))


class Noisy(nn.Module):
    """Noise of its own, scaled by a weight, and a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.embed = nn.Linear(2, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.enter(x) + torch.randn(1, 4, *x.shape[2:])
        return self.leave(y) + self.embed(condition)[:, :, None, None]


@pytest.mark.parametrize("policy", ["fixed", "exact"])
@torch.no_grad()
def test_noise_stays_whatever_conditions_do(policy: str) -> None:
    model, image = Noisy().eval(), small_inputs()[0]
    old, new = torch.ones(1, 2), torch.zeros(1, 2)
    sparse = sparsify(model, backend="eager", policy=policy)
    output, baseline = sparse.record(image, old)
    everything = torch.ones_like(corner())
    for mask in (corner(), everything):
        torch.testing.assert_close(sparse.update(baseline, image, old.clone(), mask=mask), output)
    shift = (model.embed(new) - model.embed(old))[:, :, None, None]
    got, later = sparse.update(baseline, image, new, mask=everything, commit=True)
    torch.testing.assert_close(got, output + shift)
    torch.testing.assert_close(sparse.update(later, image, old, mask=everything), output)
