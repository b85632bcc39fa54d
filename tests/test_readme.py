"""The code in ``README.md`` runs as it stands there, on a small network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from benchmarks.reuse_runs import Emoji
from examples.emoji import net
from examples.emoji.pipeline import pipeline
from tests.small import corner

README = Path(__file__).parent.parent / "README.md"


def unet(*_: object, **__: object) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def small_pipeline() -> Any:
    """Of the words of the prompts, with random weights."""
    emoji = Emoji.tiny()
    tokenizer = net.tokenizer(["a cat with a hat on a sofa"])
    words = net.text_encoder(tokenizer).eval()
    return pipeline(net.Model(emoji.unet, words, tokenizer))


@torch.no_grad()
def test_the_code_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", unet)
    latents, prompt = torch.randn(1, 4, 16, 16), torch.randn(1, 3, 8)

    def run_sampler(model: nn.Module, x: Tensor, words: Tensor = prompt) -> Tensor:
        for t in range(120, 0, -10):
            x = x - 0.1 * model(x, torch.tensor(t), words).sample
        return x

    names: dict[str, Any] = {"t": torch.tensor(10), "run_sampler": run_sampler}
    names |= {"latents": latents, "other_latents": latents + 1, "prompt": prompt}
    names |= {"other_prompt": prompt + 1, "other_mask": corner().roll(6, 0)}
    names["edited"] = edited = torch.where(corner(), latents + 1, latents)
    names |= {"pipe": small_pipeline(), "painted": Image.new("RGB", (64, 64), "white")}
    names["edited_again"] = torch.where(names["other_mask"], edited + 1, edited)
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        block = block.replace("sparsify(unet)", 'sparsify(unet, backend="eager")')
        block = block.replace("Editor(pipe)", 'Editor(pipe, backend="eager")')
        exec(compile(block, str(README), "exec"), names)
    assert torch.equal(names["mask"], corner())
    assert len(names["session"].calls) == 12
    assert len(names["schedule"].keys) == 9 and names["schedule"].psnr > 20
    assert names["small"].nbytes < names["baseline"].nbytes
    saved, call = names["baseline"], (edited, names["t"], prompt)
    again = names["sparse"].update(saved, *call, mask=names["mask"]).sample
    torch.testing.assert_close(again, names["out"].sample, rtol=1e-4, atol=1e-5)
