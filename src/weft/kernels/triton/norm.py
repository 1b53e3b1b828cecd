"""RMSNorm, alone and behind a residual sum, one program a row; its weight's gradient in two steps.

    y = x rstd w        rstd = (mean(x^2) + eps)^(-1/2)
    dx = rstd (g - x c)      g = dy w,  c = rstd^2 mean(g x)
    dw = sum over rows of dy x rstd

The sum over rows is first made in `_PARTS` parts, each over its own rows; then the parts are added.
Neither depends on which program runs first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.grid import cdiv, next_power_of_2
from weft.kernels.launch import launched

_PARTS = 128  # of the rows, each with its own partial sum
_TILE = 8, 512  # rows and columns of a step of such a sum: 32 elements a thread
_STAGES = tl.constexpr(3)  # steps of such a sum that are on their way at a time
_MOST_PARTS, _ADDED = 512, 4096  # rows, and numbers, of a step where partial sums are added


def rms_norm(x: Tensor, w: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the normalised rows and their reciprocal root mean square."""
    x = x.contiguous()
    y, rstd = torch.empty_like(x), _rstd(x)
    if x.shape[0]:
        _norm[x.shape[0],](
            x, x, w, x, y, rstd, x.shape[1], eps,
            ADD=False, COLUMNS=next_power_of_2(x.shape[1]), num_warps=_warps(x),
        )  # fmt: skip
    return y, rstd


def add_rms_norm(x: Tensor, r: Tensor, w: Tensor, *, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the residual sum, its normalised rows and their reciprocal root mean square."""
    x, r = x.contiguous(), r.contiguous()
    s, y, rstd = torch.empty_like(x), torch.empty_like(x), _rstd(x)
    if x.shape[0]:
        _norm[x.shape[0],](
            x, r, w, s, y, rstd, x.shape[1], eps,
            ADD=True, COLUMNS=next_power_of_2(x.shape[1]), num_warps=_warps(x),
        )  # fmt: skip
    return s, y, rstd


def rms_norm_dgrad(dy: Tensor, x: Tensor, w: Tensor, rstd: Tensor, *, eps: float) -> Tensor:
    """Returns the gradient of the input of `rms_norm`."""
    return _dgrad(dy, x, w, rstd, None)


def add_rms_norm_dgrad(
    ds: Tensor, dy: Tensor, s: Tensor, w: Tensor, rstd: Tensor, *, eps: float
) -> Tensor:
    """Returns the gradient of either operand of the residual sum: they are one value."""
    return _dgrad(dy, s, w, rstd, ds)


def rms_norm_wgrad(acc: Tensor, dy: Tensor, x: Tensor, rstd: Tensor, *, eps: float) -> Tensor:
    """Adds the gradient of the norm's weight into `acc`."""
    return _wgrad(acc, dy, x, rstd)


def add_rms_norm_wgrad(
    acc: Tensor, ds: Tensor, dy: Tensor, s: Tensor, rstd: Tensor, *, eps: float
) -> Tensor:
    """Adds the gradient of the norm's weight into `acc`; `ds` does not reach it."""
    return _wgrad(acc, dy, s, rstd)


def add_partial_sums(acc: Tensor, partial: Tensor) -> Tensor:
    """Adds the rows of `partial` into `acc`, in order.

    Shapes:
        partial [P, C], acc [C]
    """
    count, width = partial.shape
    rows = min(next_power_of_2(count), _MOST_PARTS)
    columns = _ADDED // rows
    _add_rows[cdiv(width, columns),](
        partial, acc, count, width, ROWS=rows, COLUMNS=columns, num_warps=4
    )
    return acc


def _dgrad(dy: Tensor, x: Tensor, w: Tensor, rstd: Tensor, ds: Tensor | None) -> Tensor:
    dy, x = dy.contiguous(), x.contiguous()
    ds = ds if ds is None else ds.contiguous()
    dx = torch.empty_like(x)
    if x.shape[0]:
        _norm_dgrad[x.shape[0],](
            dy, x, w, rstd, ds, dx, x.shape[1],
            ADD=ds is not None, COLUMNS=next_power_of_2(x.shape[1]), num_warps=_warps(x),
        )  # fmt: skip
    return dx


def _wgrad(acc: Tensor, dy: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    dy, x = dy.contiguous(), x.contiguous()
    rows, width = x.shape
    if rows == 0:
        return acc
    programs = min(_PARTS, rows)
    partial = rstd.new_empty(programs, width)
    _norm_wgrad[programs, cdiv(width, _TILE[1])](
        dy, x, rstd, partial, rows, width, cdiv(rows, programs),
        ROWS=_TILE[0], COLUMNS=_TILE[1], num_warps=4,
    )  # fmt: skip
    return add_partial_sums(acc, partial)


def _rstd(x: Tensor) -> Tensor:
    return torch.empty(x.shape[0], dtype=torch.float32, device=x.device)


def _warps(x: Tensor) -> int:
    return 4 if x.shape[1] <= 2048 else 8


@launched
@triton.jit
def _norm(x, r, w, s, y, rstd, width, eps, ADD: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, COLUMNS)
    inside = c < width
    value = tl.load(x + row * width + c, mask=inside, other=0.0)
    if ADD:
        other = tl.load(r + row * width + c, mask=inside, other=0.0)
        value = (value.to(tl.float32) + other.to(tl.float32)).to(value.dtype)
        tl.store(s + row * width + c, value, mask=inside)
    wide = value.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    scale = tl.load(w + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + c, wide * inverse * scale, mask=inside)
    tl.store(rstd + row, inverse)


@launched
@triton.jit
def _norm_dgrad(dy, x, w, rstd, ds, dx, width, ADD: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, COLUMNS)
    inside = c < width
    g = tl.load(dy + row * width + c, mask=inside, other=0.0).to(tl.float32)
    g *= tl.load(w + c, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + row * width + c, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.load(rstd + row)
    share = tl.sum(g * value, axis=0) * (inverse * inverse / width)
    out = inverse * (g - value * share)
    if ADD:
        out += tl.load(ds + row * width + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + row * width + c, out, mask=inside)


@launched
@triton.jit
def _norm_wgrad(
    dy, x, rstd, partial, rows, width, share, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    program = tl.program_id(0)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = program * share
    last = tl.minimum(first + share, rows)
    for start in tl.range(first, last, ROWS, num_stages=_STAGES):
        r = start + tl.arange(0, ROWS)
        inside = (r < last)[:, None] & (c < width)[None, :]
        at = r.to(tl.int64)[:, None] * width + c[None, :]
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        total += g * value * tl.load(rstd + r, mask=r < last, other=0.0)[:, None]
    out = partial + program.to(tl.int64) * width + c
    tl.store(out, tl.sum(total, axis=0), mask=c < width)


@launched
@triton.jit
def _add_rows(partial, acc, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, count, ROWS):
        r = start + tl.arange(0, ROWS)
        inside = (r < count)[:, None] & (c < width)[None, :]
        at = r.to(tl.int64)[:, None] * width + c[None, :]
        total += tl.load(partial + at, mask=inside, other=0.0)
    before = tl.load(acc + c, mask=c < width)
    tl.store(acc + c, before + tl.sum(total, axis=0), mask=c < width)
