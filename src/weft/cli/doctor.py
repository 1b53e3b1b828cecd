"""`weft doctor`: this machine as weft sees it, to read or to paste into an issue."""

import os
import platform
import sys
from dataclasses import replace
from types import ModuleType
from typing import Annotated, get_args

import typer

from weft.config.train import TrainConfig
from weft.errors import ConfigError
from weft.version import __version__

PRECISIONS = get_args(TrainConfig.model_fields["precision"].annotation)


def doctor(
    precision: Annotated[str, typer.Option(help="the dtype to choose bodies for")] = "",
) -> None:
    """Print versions, devices, and which body runs each operator here, with the reason."""
    import torch  # seconds to import: only when somebody asks

    from weft.runtime.backends import choose, peak_flops, pick_device
    from weft.runtime.state import precision as dtypes

    if precision and precision not in PRECISIONS:
        raise ConfigError(
            f"--precision {precision}: must be one of {', '.join(PRECISIONS)}; try float32"
        )
    device = pick_device("auto", 0)
    name = precision or ("bfloat16" if device.type == "cuda" else "float32")
    print(f"weft {__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}")
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads"
    )
    print("\n".join(_devices(torch)) or "no CUDA device: ranks run on CPU cores over gloo")
    if device.type == "cuda":
        print(_wires())
    peak = peak_flops(device)
    if peak:
        print(f"peak {peak / 1e12:,.0f} TFLOP/s in bfloat16")
    print(f"\nbodies for {name} on {device.type}")
    for operator, choice in choose(device, dtypes(name).act).items():
        repeatable = "repeatable" if choice.repeatable else "NOT repeatable"
        print(f"  {operator:<24} {choice.source:<42} {repeatable:<11} {choice.reason}")


def _devices(torch: ModuleType) -> list[str]:
    return [
        f"cuda:{i} {torch.cuda.get_device_name(i)}, "
        f"{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
        for i in range(torch.cuda.device_count())
    ]


def _wires() -> str:
    """What carries collectives between the devices of this machine, and why nothing else does."""
    import torch

    from weft.comm.crossover import describe, measured
    from weft.comm.reach import obstacle_here
    from weft.runtime.backends import peer_kernels

    why = obstacle_here()
    if why:
        return f"collectives over NCCL; none over peer memory: {why}"
    rule = measured()
    if peer_kernels(torch.device("cuda")) is None:
        rule = replace(rule, kernels={})
    return f"collectives over NCCL; over peer memory: {describe(rule)}"
