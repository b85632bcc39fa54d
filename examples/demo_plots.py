"""The demo's pictures: one panel for the terrain, one for the photograph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from torch import Tensor

from examples.terrain import hillshade

if TYPE_CHECKING:
    from examples.measurement import Measurement

INK, MUTED, LINE, ACCENT = "#1b2430", "#6b7684", "#cfd6de", "#e8590c"
SITES = ListedColormap(["#edf0f4", ACCENT])
ACTIVE_WIDTH = 1.355  # of the cell of active sites, in pictures: a large tile, a gap, small tiles
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.5,
    "axes.titlepad": 5,
    "savefig.facecolor": "white",
}
_TILE = 1.15
"""Inches of a small picture."""
Masks = Mapping[tuple[int, ...], Tensor]
"""The active mask, bool ``[H, W]``, of each grid."""


@dataclass(frozen=True)
class Edit:
    """Pictures ``[1, C, H, W]`` before and after, the mask ``[H, W]`` of the edit, and what a dense
    run and an update make of the edited one. Heights are in -1..1, photographs in 0..1 and their
    results four times as large."""

    before: Tensor
    after: Tensor
    mask: Tensor
    dense: Tensor
    update: Tensor
    active: Masks


def terrain_panel(edits: Sequence[Edit], measurements: Sequence[Measurement], path: Path) -> None:
    """Save a row of pictures for each stroke."""
    with mpl.rc_context(STYLE):
        figure, grid = _sheet(rows=len(edits), pictures=5, side=2.05)
        _heading(
            figure,
            "Editing a generated terrain",
            "10.5 M consistency UNet, 128 x 128; the edit is refined at noise levels 1 and 0.3. "
            f"Dense computes every site, the update the active ones (policy "
            f"{measurements[0].policy!r}).",
        )
        for row, (edit, measurement) in enumerate(zip(edits, measurements, strict=True)):
            cells = [grid[row, column] for column in range(7)]
            _terrain_row(figure, cells, edit, measurement, titled=row == 0)
        figure.savefig(path, dpi=130)


def panel(rows: Mapping[str, Tensor], prompts: Sequence[str], path: Path) -> None:
    """Saves a PNG: a row of pictures [N, 3, H, W] for each run, a column for each prompt."""
    with mpl.rc_context(STYLE):
        size = (_TILE * len(prompts) + 0.9, _TILE * len(rows) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        cells = figure.subplots(len(rows), len(prompts), squeeze=False)
        for line, (name, pictures) in zip(cells, rows.items(), strict=True):
            line[0].set_ylabel(name, color=INK)
            for axis, picture in zip(line, pictures, strict=True):
                axis.imshow(picture.permute(1, 2, 0).numpy())
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
        for axis, prompt in zip(cells[0], prompts, strict=True):
            half = len(prompt) // 2  # in two lines, broken at the space nearest to the middle
            spaces = [place for place, letter in enumerate(prompt) if letter == " "]
            place = min(spaces, key=lambda place: abs(place - half))
            axis.set_title(f"{prompt[:place]}\n{prompt[place + 1 :]}", color=MUTED, fontsize=7)
        figure.savefig(path, dpi=130)


def _sheet(rows: int, pictures: int, side: float) -> tuple[Figure, GridSpec]:
    """Return an empty figure and its grid: a column of facts, then square pictures of ``side``
    inches, then a column of active sites."""
    gap, margin, header = 0.14, 0.26, 1.2
    widths = [1.62, *[side] * pictures, ACTIVE_WIDTH * side]
    width = sum(widths) + gap * (len(widths) - 1) + 2 * margin
    row_gap = 2.2 * gap
    height = header + rows * side + (rows - 1) * row_gap + margin
    figure = Figure(figsize=(width, height))
    grid = figure.add_gridspec(
        rows, len(widths), width_ratios=widths,
        wspace=gap * len(widths) / sum(widths), hspace=row_gap / side,
        left=margin / width, right=1 - margin / width,
        top=1 - header / height, bottom=margin / height,
    )  # fmt: skip
    return figure, grid


def _terrain_row(
    figure: Figure,
    cells: Sequence[SubplotSpec],
    edit: Edit,
    measurement: Measurement,
    titled: bool,
) -> None:
    _facts(figure.add_subplot(cells[0]), measurement)
    titles = ("original", "edit", "refined, dense", "refined, update")
    maps = (edit.before, edit.after, edit.dense, edit.update)
    axes = [figure.add_subplot(cell) for cell in cells[1:6]]
    for axis, title, height in zip(axes[:4], titles, maps, strict=True):
        _picture(axis, hillshade(height[0, 0]), title if titled else "")
    _outline(axes[1], edit.mask)
    title = "update - dense, amplified" if titled else ""
    _difference(axes[4], (edit.update - edit.dense)[0, 0], title)
    _active(figure, cells[6], edit.active, "active sites per grid" if titled else "")


def superres_panel(edit: Edit, measurement: Measurement, path: Path) -> None:
    """Save what went in above what came out, and where sites were active."""
    with mpl.rc_context(STYLE):
        figure, grid = _sheet(rows=2, pictures=2, side=3.9)
        _heading(
            figure,
            "Retouching a photograph before it is enlarged four times",
            f"{measurement.network}, x4; policy 'exact' follows each convolution's reach, so the "
            "update equals the dense run, and active sites spread with depth.",
        )
        _facts(figure.add_subplot(grid[0, 0]), measurement)
        axes = [figure.add_subplot(grid[row, column]) for row in (0, 1) for column in (1, 2)]
        side = "{1} x {0}".format(*edit.before.shape[-2:])
        large = "{1} x {0}".format(*edit.dense.shape[-2:])
        _picture(axes[0], _rgb(edit.before), f"original, {side}")
        _picture(axes[1], _rgb(edit.after), "retouched")
        _outline(axes[1], edit.mask)
        _picture(axes[2], _rgb(edit.dense), f"enlarged, dense, {large}")
        _picture(axes[3], _rgb(edit.update), "enlarged, update")
        _active(figure, grid[0, 3], edit.active, "active sites per grid, at their widest")
        difference = (edit.update - edit.dense)[0].mean(0)
        _difference(figure.add_subplot(grid[1, 3]), difference, "update - dense, amplified")
        figure.savefig(path, dpi=130)


def _heading(figure: Figure, title: str, subtitle: str) -> None:
    width, height = figure.get_size_inches()
    left = 0.26 / width
    figure.text(left, 1 - 0.38 / height, title, fontsize=17, weight="bold", va="center")
    figure.text(left, 1 - 0.7 / height, subtitle, fontsize=9.5, color=MUTED, va="center")


def _facts(axis: Axes, measurement: Measurement) -> None:
    """The numbers of one edit, as text in a cell of its own; distances in points from its top."""
    m = measurement
    axis.set_axis_off()
    share = f"{m.edit_fraction:.1%}" if m.edit_fraction < 0.1 else f"{m.edit_fraction:.0%}"
    _put(axis, (0, 0), share, fontsize=20, weight="bold", color=ACCENT)
    _put(axis, (0, -28), "of the pixels edited", color=MUTED)
    lines = (
        (f"{m.speedup_vs_dense:.1f}x", "faster than dense"),
        (f"{m.macs_dense / m.macs_update:.1f}x", "fewer MACs"),
        (f"{m.psnr_db:.0f} dB", "PSNR to dense"),
        (f"{m.psnr_inside_db:.0f} dB", "inside the edit"),
    )
    for index, (value, label) in enumerate(lines):
        y = -52 - 17 * index
        _put(axis, (0, y), value, weight="bold")
        _put(axis, (43, y), label, color=MUTED, fontsize=7.5)


def _put(axis: Axes, points: tuple[float, float], text: str, **style: Any) -> None:
    """Text at an offset in points from the upper left corner."""
    corner: Any = "axes fraction"
    axis.annotate(text, (0, 1), points, corner, "offset points", va="top", **style)


def _picture(axis: Axes, image: npt.NDArray[np.uint8], title: str) -> None:
    axis.imshow(image, interpolation="nearest")
    _frame(axis, title)


def _frame(axis: Axes, title: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title)


def _outline(axis: Axes, mask: Tensor) -> None:
    """The border of the edited pixels."""
    edited = mask.numpy().astype(float)
    axis.contour(edited, levels=[0.5], colors="white", linewidths=2.2)
    axis.contour(edited, levels=[0.5], colors=ACCENT, linewidths=1.1)


def _difference(axis: Axes, difference: Tensor, title: str) -> None:
    """A signed difference ``[H, W]``, amplified by a factor that it names; white is zero."""
    factor = _amplification(difference)
    amplified = difference.numpy() * factor
    axis.imshow(amplified, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set_anchor("W")
    _frame(axis, title)
    _label(axis, f"x {factor:,}", 7.5)


def _amplification(difference: Tensor) -> int:
    """The largest of 1, 2, 5, 10, ... that keeps nearly every difference within -1..1."""
    top = float(difference.abs().flatten().quantile(0.998))
    steps = [digit * 10**power for power in range(8) for digit in (1, 2, 5)]
    return max((step for step in steps if step * top <= 1), default=1)


def _label(axis: Axes, text: str, size: float) -> None:
    """A small caption in the lower left corner of a picture."""
    box = {"boxstyle": "square,pad=0.25", "facecolor": "white", "alpha": 0.85, "linewidth": 0}
    put: Any = axis.annotate
    put(text, (0, 0), (3, 3.5), "axes fraction", "offset points", fontsize=size, bbox=box)


def _active(figure: Figure, cell: SubplotSpec, masks: Masks, title: str) -> None:
    """The finest grid's mask, as large as a picture, and the others in a column beside it."""
    first, *others = sorted(masks, key=lambda grid: -grid[0] * grid[1])
    small, gap = ACTIVE_WIDTH - 1.065, 0.065
    inner = cell.subgridspec(1, 2, width_ratios=(1, small), wspace=2 * gap / (1 + small))
    column = inner[1].subgridspec(max(len(others), 3), 1, hspace=gap / small)
    axes = [figure.add_subplot(inner[0])]
    axes += [figure.add_subplot(column[index]) for index in range(len(others))]
    for axis, grid in zip(axes, (first, *others), strict=True):
        mask, is_first = masks[grid], axis is axes[0]
        axis.imshow(mask.cpu().numpy(), cmap=SITES, vmin=0, vmax=1, interpolation="nearest")
        _frame(axis, title if is_first else "")
        share = f"{float(mask.float().mean()):.0%}"
        _label(axis, f"{grid[0]} x {grid[1]}: {share}", 7.5 if is_first else 5)


def _rgb(image: Tensor) -> npt.NDArray[np.uint8]:
    """``[1, 3, H, W]`` in 0..1 -> ``[H, W, 3]``."""
    pixels = image[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    array: npt.NDArray[np.uint8] = pixels.numpy()
    return array
