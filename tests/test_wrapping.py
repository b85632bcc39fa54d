"""A sparse module stands in for its model: in class, attributes, pipelines, copies and pickles."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from sparsify import BaselineError, CaptureError, ModelError, SignatureError, SparseModule, sparsify
from sparsify.engine import MOST_PROGRAMS
from tests.small import SmallUNet, corner, small_inputs, small_unet


def module(**config: Any) -> SparseModule:
    return sparsify(small_unet(), backend="eager", **config)


def edited() -> tuple[Tensor, Tensor, Tensor]:
    image, *rest = small_inputs()
    return torch.where(corner(), image + 1, image), *rest


def test_it_is_of_the_models_class_and_shares_all_that_it_holds() -> None:
    model = small_unet()
    sparse = sparsify(model, backend="eager")
    assert isinstance(sparse, SmallUNet) and isinstance(sparse, SparseModule)
    assert type(sparse).__name__ == "SmallUNet" and type(sparse).__module__ == "tests.small"
    assert list(sparse.state_dict()) == list(model.state_dict())
    assert sparse.sparsify_config.backend == "eager"
    sparse.scale = 2.0
    assert model.scale == 2.0
    sparse.enter = nn.Conv2d(3, 16, 1)
    assert model.enter is sparse.enter
    assert sparse.double() is sparse and next(model.parameters()).dtype is torch.float64
    assert sparse.train().training and model.training


def test_hooks_run_once_whoever_has_them() -> None:
    for registrar in (lambda model, sparse: model, lambda model, sparse: sparse):
        model = small_unet()
        sparse = sparsify(model, backend="eager")
        registrar(model, sparse).register_forward_hook(lambda *args: args[-1] + 1)
        want = model(*small_inputs())
        torch.testing.assert_close(sparse(*small_inputs()), want, rtol=0, atol=0)
        torch.testing.assert_close(sparse.record(*small_inputs())[0], want)


class Record(nn.Module):
    """Its methods have the names of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def update(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.update(x)


def test_the_models_own_methods_of_our_names_are_its_own() -> None:
    model, x = Record().eval(), torch.randn(1, 1, 8, 8)
    sparse = sparsify(model, backend="eager")
    assert torch.equal(sparse(x), model(x))
    torch.testing.assert_close(sparse.record(x)[0], model(x))


def unet() -> UNet2DModel:
    torch.manual_seed(0)
    channels = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(sample_size=16, attention_head_dim=4, **channels, **blocks).eval()


def test_pipelines_save_and_load_it(tmp_path: Path) -> None:
    pipe = DDIMPipeline(unet(), DDIMScheduler())
    want = pipe.unet.state_dict()
    pipe.unet = sparsify(pipe.unet, backend="eager")
    pipe.save_pretrained(tmp_path)
    loaded = DDIMPipeline.from_pretrained(tmp_path)
    assert type(loaded.unet) is UNet2DModel
    for name, value in loaded.unet.state_dict().items():
        assert torch.equal(value, want[name])
    pipe.to(torch.float64)
    assert pipe.unet.dtype is torch.float64 and pipe.unet.config.sample_size == 16


def test_pipelines_register_it_anew(tmp_path: Path) -> None:
    DDIMPipeline(sparsify(unet(), backend="eager"), DDIMScheduler()).save_pretrained(tmp_path)
    assert type(DDIMPipeline.from_pretrained(tmp_path).unet) is UNet2DModel


def test_another_method_than_forward() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()
    sparse = sparsify(vae, method="decode", backend="eager", policy="exact")
    latents = torch.randn(1, 4, 16, 16)
    new = torch.where(corner(), latents + 1, latents)
    with torch.no_grad():
        assert torch.equal(sparse.decode(latents).sample, vae.decode(latents).sample)
        image = vae.decode(latents).sample
        assert torch.equal(
            sparse.encode(image).latent_dist.mean, vae.encode(image).latent_dist.mean
        )
        with sparse.recording() as session:
            sparse.decode(latents)
        assert len(session.calls) == 1
        with session.editing(corner()):
            got = sparse.decode(new).sample
        torch.testing.assert_close(got, vae.decode(new).sample, rtol=1e-4, atol=1e-5)
        output, _ = sparse.record(latents)
        torch.testing.assert_close(output.sample, image)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("runwayml/a-model", "load the model first"),
        (3, "no torch.nn.Module"),
        (lambda x: x, "no torch.nn.Module"),
        (DDIMPipeline(unet(), DDIMScheduler()), r"pipe.unet = sparsify\(pipe.unet\)"),
        (torch.jit.trace(nn.Conv2d(1, 1, 3), torch.ones(1, 1, 4, 4)), "torch.jit"),
        (torch.compile(nn.Conv2d(1, 1, 3)), "compiled already"),
        (sparsify(nn.Conv2d(1, 1, 3)), "sparsified already"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, text: str) -> None:
    with pytest.raises((ModelError, CaptureError), match=text):
        sparsify(model)


def test_a_method_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="no such method"):
        sparsify(small_unet(), method="decode")


# -- copies -------------------------------------------------------------------------------------


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_modules_and_baselines_are_copied(copied: Any) -> None:
    sparse = module()
    _, baseline = sparse.record(*small_inputs())
    want = sparse.update(baseline, *edited(), mask=corner())
    again = copied(baseline)
    assert torch.equal(sparse.update(again, *edited(), mask=corner()), want)
    other = copied(sparse)
    assert isinstance(other, SmallUNet) and other.enter.weight is not sparse.enter.weight
    assert torch.equal(other.update(again, *edited(), mask=corner()), want)
    _, new = other.record(*small_inputs())
    assert torch.equal(other.update(new, *edited(), mask=corner()), want)
    both, own = copied((sparse, baseline))
    assert torch.equal(both.update(own, *edited(), mask=corner()), want)


def test_copied_baselines_of_another_model_are_refused() -> None:
    _, baseline = module().record(*small_inputs())
    with pytest.raises(BaselineError, match="another configuration"):
        module(dilate=2).update(copy.deepcopy(baseline), *edited(), mask=corner())
    other = sparsify(small_unet(seed=3), backend="eager")
    with pytest.raises(BaselineError, match="weights"):
        other.update(copy.deepcopy(baseline), *edited(), mask=corner())


# -- growth, steps, compilation from outside ------------------------------------------------------


def test_the_number_of_programs_is_bounded() -> None:
    model = nn.Conv2d(1, 1, 3, padding=1).eval()
    sparse = sparsify(model, backend="eager")
    sizes = range(8, 8 + MOST_PROGRAMS + 2)
    baselines = [sparse.record(torch.ones(1, 1, 8, size))[1] for size in sizes]
    assert len(sparse._engine._programs) == MOST_PROGRAMS
    mask = torch.ones(8, 8, dtype=torch.bool)
    sparse.update(baselines[0], torch.ones(1, 1, 8, 8), mask=mask)  # its baseline keeps it


def test_another_step_is_refused_unless_asked_for() -> None:
    sparse = module()
    _, baseline = sparse.record(*small_inputs())
    image, step, context = edited()
    for later in (step + 1, torch.tensor(step.item() - 7)):
        with pytest.raises(SignatureError, match=r"timestep is .* but 7.0 was recorded"):
            sparse.update(baseline, image, later, context, mask=corner())
    sparse.update(baseline, image, step.clone(), context, mask=corner())
    sparse = module(any_step=True)
    _, baseline = sparse.record(*small_inputs())
    sparse.update(baseline, image, step + 1, context, mask=corner())


@pytest.mark.parametrize("through", ["data", "numpy"])
def test_conditions_written_in_place_count(through: str) -> None:
    """Neither way counts as a version of the tensor."""
    sparse = module(policy="exact", any_step=True)
    everything = torch.ones_like(corner())
    image, step, context = small_inputs()
    _, baseline = sparse.record(image, step, context)
    sparse.update(baseline, image, step, context, mask=everything)
    if through == "data":
        step.data.fill_(3)
        context.data.mul_(2)
    else:
        step.numpy()[...] = 3
        context.numpy()[...] *= 2
    got = sparse.update(baseline, image, step, context, mask=everything)
    torch.testing.assert_close(got, small_unet()(image, step, context), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_from_outside_sessions_still_count(backend: str) -> None:
    sparse = module(policy="exact")
    compiled = torch.compile(sparse, backend=backend)
    assert torch.equal(compiled(*small_inputs()), small_unet()(*small_inputs()))
    with sparse.recording() as session:
        compiled(*small_inputs())
    everything = torch.ones_like(corner())
    with session.editing(everything):
        got = compiled(*edited())
    torch.testing.assert_close(got, small_unet()(*edited()), rtol=1e-4, atol=1e-5)
