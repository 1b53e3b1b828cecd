"""Any layout of any small model under any routing trains what one rank trains.

pytest tests/agreement/test_any_layout.py --draws 5000
"""

from math import gcd
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from weft.config.branch import divisors
from weft.errors import ConfigError, LayoutError
from weft.testing.findings import Length
from weft.testing.matrix.model import recipe
from weft.testing.matrix.prove import prove_recipe, reference
from weft.testing.routing import GENERATORS

MOST_RANKS = 16


@st.composite
def models(draw: st.DrawFn) -> dict[str, object]:
    heads, experts = draw(st.sampled_from((2, 4, 8))), draw(st.sampled_from((4, 8, 16)))
    return {
        "model.heads": heads,
        "model.kv_heads": draw(st.sampled_from(divisors(heads))),
        "model.head_dim": draw(st.sampled_from((2, 4))),
        "model.hidden": draw(st.sampled_from((8, 20, 24))),
        "model.ffn_hidden": draw(st.sampled_from((8, 12))),
        "model.layers": draw(st.integers(2, 6)),
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
    sp, dp = draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from((1, 2, 3, 4)))
    assume(1 < sp * dp <= MOST_RANKS)
    ffn = draw(st.sampled_from(("ep", "ep", "tp")))
    experts = int(str(model["model.experts"]))
    ep = draw(st.sampled_from(divisors(gcd(experts, dp * sp)))) if ffn == "ep" else 1
    own = draw(st.integers(1, 3))
    attention = draw(st.sampled_from(("sp", "tp", "cp")))
    dispatch = draw(st.sampled_from(("all_to_all", "all_gather", "deduplicated")))
    node = draw(st.sampled_from((0, *divisors(dp * sp))))
    return {
        **model,
        "train.global_batch": own * dp * int(str(model["train.micro_batch"])),
        "parallel.dp": dp,
        "parallel.sp": sp,
        "parallel.attention": attention if sp > 1 else "sp",
        "parallel.ffn": ffn if sp > 1 else "ep",
        "parallel.ep": ep,
        "parallel.dispatch": dispatch if ep > 1 else "all_to_all",
        "parallel.node": node if dp * sp > 1 else 0,
        "parallel.zero": draw(st.integers(1, 2)) if dp * sp > 1 else 1,
        "overlap.remat": draw(st.sampled_from(("none", "none", "full", "selective"))),
    }


def test_any_layout_of_any_model_agrees(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    @settings(
        max_examples=request.config.getoption("--draws"),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(overrides=layouts(), routing=st.sampled_from(sorted(GENERATORS)))
    def agrees(overrides: dict[str, object], routing: str) -> None:
        layout = [f"{key}={value}" for key, value in overrides.items()]
        alone = [line for line in layout if not line.startswith("parallel.")]
        try:
            config = recipe(tmp_path, "moe", *layout)
        except (ConfigError, LayoutError):
            event("a layout that cannot exist")
            assume(False)
            return
        length = Length(float64=2, float32=1, routings=(routing,))
        proof = reference(recipe(tmp_path, "moe", *alone), length)
        assert prove_recipe(proof, config).faults == ()

    agrees()
