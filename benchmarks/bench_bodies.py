"""Does a model learn with the fast bodies of operators as it does with the reference?

    python benchmarks/bench_bodies.py [--steps 200] [--out FILE] [key=value ...]

A small model learns real text on one device: with the bodies that operators are defined by, with
the fast ones, fused, and with each faster attention. The yardstick is how far the reference with
its micro-batch halved is from the reference: bodies follow if their loss is nowhere farther from it
than TWICE that. The control, fast bodies that read one step ahead, must not.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from bench_follow import (
    LEAST,
    RECIPE,
    TWICE,
    Work,
    apart,
    not_told_apart,
    tell,
    told,
    train,
)

from weft.bench.rig import assemble
from weft.bench.world import Wires, fresh, start
from weft.config.load import build
from weft.trainer.feed import open_feed
from weft.trainer.session import Place

REFERENCE, HALVED = "reference", "reference, halved"
CONTROL = "control: a step ahead"
BODIES: Mapping[str, tuple[str, ...]] = {
    REFERENCE: ("kernels.bodies=reference",),
    HALVED: ("kernels.bodies=reference", "train.micro_batch={half}"),
    "fast": (),
    "fast, fused": ("kernels.fuse=auto",),
    "fast, cuDNN's attention": ("kernels.attention=cudnn",),
    "fast, flash attention": ("kernels.attention=flash",),
    CONTROL: (),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=RECIPE["train"]["steps"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    config = build(RECIPE, tuple(options.settings))
    steps = (f"train.steps={options.steps}", f"optim.warmup_steps={min(10, options.steps)}")
    half = str(config.train.micro_batch // 2)
    layouts = {
        name: tuple(word.replace("{half}", half) for word in sets) for name, sets in BODIES.items()
    }
    work = Work(layouts=layouts, settings=(*options.settings, *steps), out=options.out)
    start(process, work, world=1, device=config.train.device)


def process(place: Place, work: Work) -> None:
    """Every set of bodies in turn, each beside the reference."""
    wires, runs = Wires(place), dict[str, list[float]]()
    for name, sets in work.layouts.items():
        # a trial on a CPU asks for its own attention behind these
        config = build(RECIPE, (*sets, *work.settings))
        rig = assemble(config, place, wires.of(config))
        losses = train(rig, open_feed(config), told(place, name), ahead=int(name == CONTROL))
        runs[name] = losses
        del rig
        fresh(place.device)
        found = apart(losses, runs[REFERENCE])
        if name not in (REFERENCE, HALVED):
            halved = apart(runs[HALVED], runs[REFERENCE])
            found["yardsticks"] = found["times_halved"] = found["largest"] / max(
                halved["largest"], LEAST
            )
        tell(place, work, name, losses, found)
        if name == CONTROL and found["yardsticks"] <= TWICE:
            raise not_told_apart(name)
    wires.close()


if __name__ == "__main__":
    main()
