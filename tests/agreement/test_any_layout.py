"""Any layout of any small model under any routing trains what one rank trains.

    pytest tests/agreement/test_any_layout.py --draws 5000 --draws-seed 1 --draws-out drawn.jsonl

Compared in float64 only: of a model drawn at random nobody knows what float32 makes of it. (A QK
norm of two channels divides by what may have cancelled.)
"""

import json
from math import gcd
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from weft.config.branch import divisors
from weft.errors import ConfigError, LayoutError
from weft.testing.findings import Length
from weft.testing.matrix.model import recipe
from weft.testing.matrix.prove import Verdict, prove_recipe, reference
from weft.testing.routing import GENERATORS

MOST_RANKS = 16
A_PART = 25  # draws of one test: few enough to spread over processes, with a seed of their own
PARTS = 10_000  # more than any seed has


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    draws = metafunc.config.getoption("--draws")
    if "part" in metafunc.fixturenames:
        metafunc.parametrize("part", range(-(-draws // A_PART)))


@st.composite
def models(draw: st.DrawFn) -> dict[str, object]:
    heads, experts = draw(st.sampled_from((2, 4, 8))), draw(st.sampled_from((4, 8, 16)))
    return {
        "model.heads": heads,
        "model.kv_heads": draw(st.sampled_from(divisors(heads))),
        "model.head_dim": draw(st.sampled_from((2, 4))),
        "model.hidden": draw(st.sampled_from((8, 20, 24))),
        "model.ffn_hidden": draw(st.sampled_from((8, 12))),
        "model.layers": draw(st.integers(2, 4)),
        "model.experts": experts,
        "model.top_k": draw(st.integers(1, 4)),
        "model.shared_experts": draw(st.integers(0, 2)),
        "model.qk_norm": draw(st.sampled_from(("true", "false"))),
        "model.tied": draw(st.sampled_from(("true", "false"))),
        "model.score": draw(st.sampled_from(("softmax", "sigmoid"))),
        "model.renormalise": draw(st.sampled_from(("true", "false"))),
        "model.capacity": draw(st.sampled_from((0.0, 0.0, 1.0, 1.5))),
        "data.sequence": draw(st.sampled_from((8, 16))),
        "train.micro_batch": draw(st.integers(1, 3)),
    }


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, object]:
    """A layout for a model, so that most can exist."""
    model = draw(models())
    pp, dp = draw(st.sampled_from((1, 1, 1, 2))), draw(st.sampled_from((1, 2, 3, 4)))
    sp = draw(st.sampled_from((1, 2, 4)))
    assume(1 < pp * sp * dp <= MOST_RANKS)
    ffn = draw(st.sampled_from(("ep", "ep", "tp"))) if sp > 1 else "ep"
    experts = int(str(model["model.experts"]))
    ep = draw(st.sampled_from(divisors(gcd(experts, dp * sp)))) if ffn == "ep" else 1
    dispatch = draw(st.sampled_from(("all_to_all", "all_gather", "deduplicated")))
    own = draw(st.integers(1, 2))
    return {
        **model,
        "train.global_batch": own * dp * int(str(model["train.micro_batch"])),
        "parallel.pp": pp,
        "parallel.dp": dp,
        "parallel.sp": sp,
        "parallel.attention": draw(st.sampled_from(("sp", "tp", "cp"))) if sp > 1 else "sp",
        "parallel.ffn": ffn,
        "parallel.ep": ep,
        "parallel.dispatch": dispatch if ep > 1 else "all_to_all",
        "parallel.row_bound": draw(bounds()) if ep > 1 and dispatch == "all_gather" else 0.0,
        **draw(pipelines(pp)),
        **draw(replicas(dp * sp)),
        "overlap.remat": draw(st.sampled_from(("none", "none", "full", "selective"))),
        "overlap.across": draw(st.sampled_from(("false", "true"))) if ep > 1 else "false",
        "overlap.merge": draw(st.sampled_from(("false", "true"))) if own > pp == 1 else "false",
        "overlap.order": draw(st.sampled_from(("overlapped", "overlapped", "paper"))),
    }


def bounds() -> st.SearchStrategy[float]:
    """Room for rows: as many as come, or so many even shares."""
    return st.sampled_from((0.0, 0.0, 1.0, 1.5))


@st.composite
def pipelines(draw: st.DrawFn, stages: int) -> dict[str, object]:
    """How a pipeline is run, where there is one."""
    if stages == 1:
        return {}
    order = draw(st.sampled_from(("1f1b", "interleaved", "zero_bubble")))
    chunks = {"1f1b": (1,), "interleaved": (2,), "zero_bubble": (1, 2)}[order]
    return {"parallel.pipeline": order, "parallel.chunks": draw(st.sampled_from(chunks))}


@st.composite
def replicas(draw: st.DrawFn, ranks: int) -> dict[str, object]:
    """How the replicas of a parameter share its gradients, where there are any."""
    if ranks == 1:
        return {}
    return {
        "parallel.node": draw(st.sampled_from((0, *divisors(ranks)[1:-1]))),
        "parallel.zero": draw(st.integers(1, 2)),
        "parallel.bucket_elements": draw(st.sampled_from((1000, 40_000_000))),
    }


def test_any_layout_of_any_model_agrees(
    request: pytest.FixtureRequest, tmp_path: Path, part: int
) -> None:
    option = request.config.getoption

    @seed(option("--draws-seed") * PARTS + part)
    @settings(
        max_examples=min(A_PART, option("--draws") - part * A_PART),
        deadline=None,
        database=None,
        phases=(Phase.generate,),  # to shrink takes minutes; the assertion tells the whole recipe
        suppress_health_check=list(HealthCheck),
    )
    @given(overrides=layouts(), routing=st.sampled_from(sorted(GENERATORS)))
    def agrees(overrides: dict[str, object], routing: str) -> None:
        layout = [f"{key}={value}" for key, value in overrides.items()]
        alone = [line for line in layout if not line.startswith(("parallel.", "overlap."))]
        try:
            config = recipe(tmp_path, "moe", *layout)
        except (ConfigError, LayoutError):
            assume(False)
            return
        length = Length(float64=2, float32=0, routings=(routing,))
        found = prove_recipe(reference(recipe(tmp_path, "moe", *alone), length), config)
        if option("--draws-out"):
            write_down(option("--draws-out"), layout, routing, found)
        assert not found.faults, f"{' '.join(layout)}, {routing}: {found.faults}"

    agrees()


def write_down(path: Path, layout: list[str], routing: str, found: Verdict) -> None:
    record = {
        "layout": layout,
        "routing": routing,
        "ranks": found.ranks,
        "checks": {check.name: check.figure for check in found.checks},
        "faults": {check.name: check.fault for check in found.faults},
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
