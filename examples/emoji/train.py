"""Trains the emoji model: ``python -m examples.emoji.train``, an hour or two on two cores.

Pictures of samples and a checkpoint are written on the way; started again, it goes on from there.
The weights end up in ``examples/emoji/weights``, as float16 in the folders of a diffusers pipeline.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from . import net
from .data import emoji
from .sample import sample

BATCH, RATE, WARM_UP, DECAY = 32, 1e-3, 100, 0.3
NO_PROMPT = 0.1
"""The share of pictures whose prompt is left out, for guidance."""
_OFTEN = 250
_HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()
"""Where it is emulated, float32 is faster."""
SHOWN = (
    "flat smiling face with sunglasses",
    "glossy smiling face with sunglasses",
    "flat cat face",
    "glossy red apple",
    "flat rocket",
    "glossy blue heart",
    "flat tree",
    "glossy octopus",
)


class Trained(nn.Module):
    """What is trained together."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        words = self.text_encoder(tokens).last_hidden_state
        velocity: Tensor = self.unet(latents, timesteps, words).sample
        return velocity


def main(
    steps: Annotated[int, typer.Option(help="Of training.")] = 2500,
    out: Annotated[Path, typer.Option(help="For samples and the checkpoint.")] = Path(
        "build/emoji"
    ),
    more: Annotated[bool, typer.Option(help="Start from the weights that there are.")] = False,
) -> None:
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    pictures, prompts = emoji()
    tokenizer = net.tokenizer(prompts)
    model = Trained(net.unet(), net.text_encoder(tokenizer)).to(memory_format=torch.channels_last)
    if more:
        trained = net.load()
        model.unet.load_state_dict(trained.unet.state_dict())
        model.text_encoder.load_state_dict(trained.text_encoder.state_dict())
    mean = deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.99), fused=True)
    done, checkpoint = 0, out / "checkpoint.pt"
    if checkpoint.exists():
        done = _restore(checkpoint, model, mean, optimizer)
    shown, words = torch.from_numpy(pictures), net.tokens(tokenizer, prompts)
    nothing = net.tokens(tokenizer, [""])[0]
    noise_levels = net.scheduler()
    columns = (TextColumn("loss {task.fields[loss]:.4f}"), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task, loss_mean = progress.add_task("", total=steps, completed=done, loss=1.0), 1.0
        for step in range(done, steps):
            optimizer.param_groups[0]["lr"] = RATE * _share(step, steps)
            torch.manual_seed(step)  # so a run that was interrupted is the same
            chosen = torch.randint(len(shown), (BATCH,))
            loss = _loss(model, noise_levels, shown[chosen], words[chosen], nothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            _average(mean, model, min(0.998, (1 + step) / (10 + step)))
            loss_mean += 0.02 * (loss.item() - loss_mean)
            progress.update(task, advance=1, loss=loss_mean)
            if (step + 1) % _OFTEN == 0 or step + 1 == steps:
                _save(checkpoint, step + 1, model, mean, optimizer)
                _show(mean, tokenizer, out / f"samples-{step + 1:05}.png")
                progress.console.print(f"{step + 1} steps, loss {loss_mean:.4f}")
    net.save(net.WEIGHTS, net.Model(mean.unet, mean.text_encoder, tokenizer))


def _loss(model: Trained, levels: Any, pixels: Tensor, tokens: Tensor, nothing: Tensor) -> Tensor:
    latents = net.to_latents(pixels)
    noise = torch.randn_like(latents)
    # Half of them evenly; half in the middle, where shapes appear.
    times = torch.cat([torch.rand(BATCH // 2), torch.randn(BATCH // 2).sigmoid()])
    times = (1000 * times).long()
    tokens = torch.where(torch.rand(BATCH, 1) < NO_PROMPT, nothing, tokens)
    noisy = levels.add_noise(latents, noise, times)
    wanted = levels.get_velocity(latents, noise, times)
    noisy, wanted = (x.contiguous(memory_format=torch.channels_last) for x in (noisy, wanted))
    with torch.autocast("cpu", torch.bfloat16, enabled=_HAS_BFLOAT16):
        velocity = model(noisy, times, tokens)
    return nn.functional.mse_loss(velocity.float(), wanted)


def _share(step: int, steps: int) -> float:
    """Of the learning rate: rises, stays, and falls over the last part."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY * steps))


@torch.no_grad()
def _average(mean: nn.Module, model: nn.Module, keep: float) -> None:
    for old, new in zip(mean.parameters(), model.parameters(), strict=True):
        old.lerp_(new, 1 - keep)


def _save(path: Path, step: int, model: nn.Module, mean: nn.Module, optimizer: Any) -> None:
    state = {"step": step, "model": model.state_dict(), "mean": mean.state_dict()}
    torch.save({**state, "optimizer": optimizer.state_dict()}, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def _restore(path: Path, model: nn.Module, mean: nn.Module, optimizer: Any) -> int:
    state = torch.load(path)
    model.load_state_dict(state["model"])
    mean.load_state_dict(state["mean"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _show(mean: Trained, tokenizer: Any, path: Path) -> None:
    model = net.Model(mean.unet, mean.text_encoder, tokenizer)
    pixels = sample(model, SHOWN, steps=25)
    Image.fromarray(torch.cat(list(pixels), 1).numpy()).save(path)


if __name__ == "__main__":
    typer.run(main)
