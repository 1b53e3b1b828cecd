"""Every refusal of a layout ends in one that can be run."""

from pathlib import Path

from weft.compose.plan import Plan
from weft.config.run import RunConfig
from weft.errors import LayoutError
from weft.testing.matrix import refusal
from weft.testing.matrix.refusal import Tally, joined, judge, refuse_all, unheard


def test_random_layouts_are_legal_or_lead_to_one_that_is(tmp_path: Path) -> None:
    tally = joined([refuse_all(tmp_path, range(0, 40, 2)), refuse_all(tmp_path, range(1, 40, 2))])
    assert tally.faults == []
    assert tally.legal + tally.refused == tally.recipes == 40
    assert tally.refused > tally.legal > 0


def test_a_refusal_that_proposes_what_is_refused_again_is_found(tmp_path, monkeypatch) -> None:
    def stubborn(*_: object) -> None:
        raise LayoutError("parallel.sp = 3: no; nearest legal value: parallel.sp = 3")

    monkeypatch.setattr(refusal, "recipe", stubborn)
    assert judge(tmp_path, ["parallel.sp=3"], Tally()).startswith("refused after 8 proposals")


def test_a_refusal_without_a_proposal_is_found(tmp_path, monkeypatch) -> None:
    def mute(*_: object) -> None:
        raise LayoutError("parallel.sp = 3: no")

    monkeypatch.setattr(refusal, "recipe", mute)
    fault = judge(tmp_path, ["parallel.sp=3"], Tally())
    assert fault == "refused without a proposal: parallel.sp = 3: no"


def test_a_key_that_is_not_taken_is_found(tmp_path: Path, monkeypatch) -> None:
    honest = refusal.recipe
    monkeypatch.setattr(refusal, "recipe", lambda folder, model, *_: honest(folder, model))
    assert judge(tmp_path, ["parallel.dp=2"], Tally()) == "parallel.dp is 1, asked for was 2"


def test_a_traceback_is_found(tmp_path: Path, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("integer modulo by zero")

    monkeypatch.setattr(refusal, "recipe", broken)
    assert judge(tmp_path, [], Tally()) == "ZeroDivisionError: integer modulo by zero"


def test_a_key_that_nobody_reads_is_found(tmp_path: Path, monkeypatch) -> None:
    asked = ["parallel.dp=2", "parallel.zero=2"]
    config = refusal.recipe(tmp_path, refusal.MODEL, *asked)
    assert unheard(tmp_path, config, asked) == ""
    honest = refusal.make_plan

    def deaf(config: RunConfig, rank: int) -> Plan:
        parallel = config.parallel.model_copy(update={"zero": 1})
        return honest(config.model_copy(update={"parallel": parallel}), rank)

    monkeypatch.setattr(refusal, "make_plan", deaf)
    assert unheard(tmp_path, config, asked) == "parallel.zero = 2 is read by nobody"
