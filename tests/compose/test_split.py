"""Plans whose pairs cannot be cut are refused with what can be done instead."""

from dataclasses import replace

import pytest

from weft.compose import split
from weft.compose.plan import Crossings, Plan
from weft.compose.step import training_step
from weft.errors import LayoutError
from weft.parallel.layout import Attention, Dispatch, FeedForward, Layout
from weft.testing import models

HERE = Layout(sp=2, ep=2)


def plan(layout: Layout = HERE, **changes: object) -> Plan:
    return replace(models.plan(models.mixtral_like(), layout), **changes)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (HERE, {"split": ("qvk",)}, "found 'qvk', expected one of qkv, out, dispatch, combine, "),
        (Layout(sp=2, attention=Attention.TP), {"split": ("out",)}, "tp has no out .* = sp"),
        (Layout(sp=2, attention=Attention.CP), {"split": ("qkv",)}, "cp has no qkv .* = sp"),
        (Layout(sp=2, ffn=FeedForward.TP), {"split": ("combine",)}, "ffn = tp has no combine"),
        (
            Layout(sp=2, ep=2, dispatch=Dispatch.DEDUPLICATED),
            {"split": ("dispatch",)},
            "once a rank are not cut; try dispatch = all_to_all",
        ),
        (
            HERE,
            {"split": ("dispatch_grad",), "crossings": Crossings(dispatch_grad="fp8")},
            "dispatch_grad in eight bits crosses whole; leave it out",
        ),
        (
            HERE,
            {"split": ("combine",), "crossings": Crossings(combine="fp8")},
            "combine in eight bits crosses whole; leave it out",
        ),
        (HERE, {"split": ("qkv",), "chunks": 3}, "chunks = 3 does not divide the 16 .* chunks = 2"),
        (HERE, {"split": ("combine",), "chunks": 8}, "the 28 columns .*; try chunks = 7"),
    ],
)
def test_what_cannot_be_cut_is_refused(layout, changes, message):
    with pytest.raises(LayoutError, match=message):
        training_step(plan(layout, **changes))


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        (Layout(), {"split": ("qkv", "dispatch")}),
        (Layout(ep=1, dispatch=Dispatch.DEDUPLICATED), {"split": ("dispatch",)}),
        (Layout(sp=2, ep=2, dispatch=Dispatch.DEDUPLICATED), {"split": ("combine",)}),
        (
            HERE,
            {"split": ("dispatch",), "crossings": Crossings(combine="fp8", dispatch_grad="fp8")},
        ),
        (HERE, {"split": ("combine",), "crossings": Crossings(dispatch="fp8")}),
    ],
)
def test_what_is_not_there_or_crosses_in_another_pair_is_no_obstacle(layout, changes):
    assert split.validate(plan(layout, **changes))


def test_a_pair_and_its_mirror_are_cut_by_themselves():
    whole = training_step(plan()).templates
    for pair, names in (("out", "moe.forward"), ("out_grad", "moe.backward")):
        cut = training_step(plan(split=(pair,))).templates
        for name in ("moe.forward", "moe.backward"):
            bodies = [[t.body for t in each[name].program.tasks] for each in (whole, cut)]
            more = bodies[1].count("all_to_all") - bodies[0].count("all_to_all")
            assert more == (name == names)
