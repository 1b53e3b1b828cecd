"""What a device reaches at best: the rates that floors are computed from.

    product      a large square matrix product
    attention    causal attention of one long sequence, forward and backward, by the fastest body
    copy         bytes read and written by a large copy

Measured once on a machine, on random data, and kept in a file beside others of its kind.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from weft.bench import record
from weft.bench.spread import spread
from weft.ops.attention import segments
from weft.ops.registry import alternatives
from weft.runtime.backends import choose

FOLDER = Path("~/.cache/weft")
REPEATS, WARM_UP = 10, 3
HEADS, KV_HEADS, CHANNELS = 32, 8, 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Rates of one device in one dtype: FLOP/s of products and attention, bytes a second."""

    device: str
    dtype: str
    torch: str
    product: float
    attention: float
    attention_dgrad: float
    copy: float

    def text(self) -> str:
        """The four rates, one a line."""
        return "\n".join(
            (
                f"{self.device}, {self.dtype}, torch {self.torch}",
                f"product             {self.product / 1e12:,.3g} TFLOP/s",
                f"attention           {self.attention / 1e12:,.3g} TFLOP/s",
                f"attention backward  {self.attention_dgrad / 1e12:,.3g} TFLOP/s",
                f"copy                {self.copy / 1e9:,.0f} GB/s read and written",
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much work a measurement does: the side of a product, positions, elements."""

    side: int
    positions: int
    copied: int


LARGE = Sizes(side=8192, positions=8192, copied=2**30)
SMALL = Sizes(side=1024, positions=512, copied=2**26)  # a second on two cores


def stored(device: torch.device, dtype: torch.dtype, folder: Path = FOLDER) -> Ceilings:
    """The ceilings of a device: those of its file, or measured now and put there."""
    file = _file(device, dtype, folder)
    if file.exists():
        found = Ceilings(**json.loads(file.read_text(encoding="utf-8")))
        if found.torch == torch.__version__:
            return found
    return measure(device, dtype, folder=folder)


def measure(
    device: torch.device, dtype: torch.dtype, *, folder: Path = FOLDER, sizes: Sizes | None = None
) -> Ceilings:
    """Measures the ceilings of a device and stores them."""
    sizes = sizes or (LARGE if device.type == "cuda" else SMALL)
    forward, backward = _attention(device, dtype, sizes.positions)
    found = Ceilings(
        device=record.name(device),
        dtype=_word(dtype),
        torch=torch.__version__,
        product=_product(device, dtype, sizes.side),
        attention=forward,
        attention_dgrad=backward,
        copy=_copy(device, dtype, sizes.copied),
    )
    file = _file(device, dtype, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")  # several ranks may measure at once
    fresh.write_text(json.dumps(asdict(found), indent=2), encoding="utf-8")
    fresh.replace(file)
    return found


def _file(device: torch.device, dtype: torch.dtype, folder: Path) -> Path:
    return folder.expanduser() / f"ceilings-{record.name(device)}-{_word(dtype)}.json"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _product(device: torch.device, dtype: torch.dtype, side: int) -> float:
    a, b = (_random(device, dtype, side, side) for _ in range(2))
    return 2 * side**3 / seconds(lambda: torch.mm(a, b), device)


def _copy(device: torch.device, dtype: torch.dtype, elements: int) -> float:
    source = _random(device, dtype, elements)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def _attention(device: torch.device, dtype: torch.dtype, positions: int) -> tuple[float, float]:
    documents = segments((positions,), str(device))
    q, da = (_random(device, dtype, positions, HEADS, CHANNELS) for _ in range(2))
    k, v = (_random(device, dtype, positions, KV_HEADS, CHANNELS) for _ in range(2))
    flops = 2 * positions**2 * HEADS * CHANNELS
    best = (0.0, 0.0)
    for forward, backward in _attentions(device, dtype):
        a, lse = forward(q, k, v, documents)
        ahead = seconds(lambda f=forward: f(q, k, v, documents), device)
        back = seconds(lambda b=backward, o=(a, lse): b(da, q, k, v, *o, documents), device)
        best = max(best[0], flops / ahead), max(best[1], 5 * flops / 2 / back)
    return best


def _attentions(
    device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., object]]]:
    table = choose(device, dtype)
    yield table["attention"].body, table["attention.dgrad"].body  # pyright: ignore[reportReturnType]
    if device.type == "cuda" and dtype is torch.bfloat16:
        for bodies in alternatives()["attention"].values():
            yield bodies["attention"], bodies["attention.dgrad"]


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median time of a call on a device, after a warm-up."""
    times = []
    for _ in range(REPEATS + WARM_UP):
        _settle(device)
        begun = time.perf_counter()
        run()
        _settle(device)
        times.append(time.perf_counter() - begun)
    return spread(times[WARM_UP:]).median


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype)
