"""A report holds the step's own time and what its bodies took."""

import json

import pytest

from weft.bench import step
from weft.compose.recipe import shape
from weft.model.count import token_flops


def test_a_report_is_consistent(recipe, place, ceilings) -> None:
    found = step.measure(recipe(), place, steps=3, ceilings=ceilings, documents=2)
    assert found.step_ms.repeats == 3
    assert found.tokens_per_s == pytest.approx(64 / found.step_ms.median * 1e3)
    assert found.tflops == pytest.approx(found.tokens_per_s * found.flops_a_token / 1e12)
    assert found.exposed_ms == 0  # one rank waits for nobody
    assert found.peak_bytes > 2**20
    assert (found.issue_ms, found.synchronisations, found.peak_flops) == (None, None, None)
    assert "2 document(s)" in found.title


def test_a_report_reads_and_travels(recipe, place, ceilings) -> None:
    config = recipe()
    found = step.measure(config, place, steps=1, ceilings=ceilings)
    text = step.render(found)
    assert "expert_up.wgrad" in text
    assert text.endswith(step.summary(found))
    assert "issue" not in step.summary(found)
    line = json.loads(json.dumps(step.record(found)))
    assert line["step_ms"]["repeats"] == 1
    assert {"attention", "between bodies"} <= {row["body"] for row in line["bodies"]}
    assert line["floor_ms"] == found.profile.floor_ms > 0
    assert 0 <= line["idle"] < 1
    assert line["flops_a_token"] == token_flops(shape(config.model), sequence=config.data.sequence)
