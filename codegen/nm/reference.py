"""Which weights N:M sparsity keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import OperandError
from ..operators import exporting


def nm_mask(weight: Tensor, n: int, m: int, v: int = 1) -> Tensor:
    """bool like weight [O, I, *taps]: the n largest of each m consecutive inputs, tap by tap.

    The choice is shared by v consecutive outputs: the largest by the sum of squares over these. Of
    equals the later one is kept, as by SparseDM's ``argsort`` (Wang et al., arXiv 2404.10445). The
    last group may be short: what it lacks is never kept.
    """
    if not 0 < n <= m or v < 1 or weight.dim() < 2:
        shape = tuple(weight.shape)
        raise OperandError(
            f"nm_mask needs a weight [O, I, *taps], 0 < n <= m and 0 < v, not a "
            f"weight {shape}, n={n}, m={m}, v={v}"
        )
    return _kept(weight.detach(), m, v, m - n)


def _kept(weight: Tensor, m: int, v: int, dropped: int | Tensor) -> Tensor:
    """See :func:`nm_mask`; so many of m are ``dropped``."""
    outputs, inputs = weight.shape[:2]
    scores = _scores(weight.flatten(2) if weight.dim() > 2 else weight[..., None], v)
    scores = torch.nn.functional.pad(scores, (0, 0, 0, -inputs % m), value=-1.0)
    # Groups stand along the last axes, so that each comparison below is one long loop.
    groups = scores.unflatten(1, (-1, m)).movedim(2, 0).contiguous()
    kept = (_ranks(groups) >= dropped).movedim(0, 2).flatten(1, 2)[:, :inputs]
    return kept.repeat_interleave(v, 0)[:outputs].reshape(weight.shape)


def _scores(weight: Tensor, v: int) -> Tensor:
    """[O, I, T] -> [O/v, I, T], none negative. NaN counts as the largest."""
    if v == 1:
        return torch.nan_to_num(weight.abs(), torch.inf, torch.inf)
    padded = torch.nn.functional.pad(weight, (0, 0, 0, 0, 0, -weight.shape[0] % v))
    wide = padded.to(torch.promote_types(weight.dtype, torch.float32))
    squares: Tensor = wide.unflatten(0, (-1, v)).square().sum(1)
    return squares.nan_to_num(torch.inf, torch.inf)


def _ranks(groups: Tensor) -> Tensor:
    """The place of each entry of [m, ...] in ascending order along axis 0; equals keep theirs."""
    # Small integers are several times faster, but ONNX adds up none.
    dtype = torch.int32 if exporting() else torch.int8 if len(groups) < 128 else torch.int16
    ranks = torch.zeros_like(groups, dtype=dtype)
    for first in range(len(groups) - 1):
        below = (groups[first] <= groups[first + 1 :]).to(dtype)
        ranks[first + 1 :] += below
        ranks[first] += len(below) - below.sum(0, dtype=dtype)
    return ranks


def nm_masked(weight: Tensor, n: int, m: int, v: int, decay: float) -> Tensor:
    """weight with zeros where :func:`nm_mask` is false."""
    return weight.clone().masked_fill_(~nm_mask(weight, n, m, v), 0.0)


def masked_by_number(weight: Tensor, n: Tensor, m: int, v: int) -> Tensor:
    """The same for an ``n``, int32 [], that only a run knows."""
    return weight.masked_fill(~_kept(weight, m, v, m - n), 0.0)
