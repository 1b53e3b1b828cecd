"""What nobody would read is refused with a value that says the same, and nothing else is."""

from typing import Any

import pytest
from tests.config.test_run import tree

from weft.config.idle import idle_keys
from weft.config.run import RunConfig
from weft.errors import LayoutError

TWO = {"sp": 2, "ep": 2}


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        ({"parallel": {"attention": "cp"}}, r'parallel.attention = "cp": .*parallel.sp = 1.*"sp"$'),
        ({"parallel": {"dp": 2, "ffn": "tp"}}, r'parallel.ffn = "tp": .*parallel.sp = 1; .*"ep"$'),
        ({"parallel": {"dp": 2, "pipeline": "zero_bubble"}}, r"parallel.pp = 1; .*\"1f1b\"$"),
        ({"parallel": {"pp": 2, "pipeline": "interleaved"}}, r"is 1f1b with .*\"1f1b\"$"),
        ({"parallel": {"pp": 2, "zero": 2}}, r"parallel.zero = 2: .*parallel.zero = 1$"),
        ({"parallel": {"bucket_elements": 9}}, r"bucket_elements = 9: has no meaning.*= 40000000$"),
        (
            {"parallel": {"sp": 2, "dispatch": "all_gather"}},
            r"has no meaning with parallel.ep = 1, .*parallel.dispatch = \"all_to_all\"$",
        ),
        (
            {"parallel": {**TWO, "row_bound": 1.5}},
            r"parallel.row_bound = 1.5: needs .*all_gather.*parallel.row_bound = 0.0$",
        ),
        ({"parallel": {"sp": 2, "node": 2}}, r"parallel.node = 2: changes nothing: .*node = 0$"),
        ({"parallel": {"sp": 2, "node": 1}}, r"parallel.node = 1: changes nothing: .*node = 0$"),
        (
            {"parallel": {"pp": 2}, "compression": {"gradients": "bf16"}},
            r"has no wire .* there are no replicas; .*compression.gradients = \"fp32\"$",
        ),
        (
            {"parallel": {"sp": 2}, "compression": {"combine": "fp8"}},
            r'compression.combine = "fp8": has no wire with parallel.ep = 1.*"none"$',
        ),
        (
            {"parallel": TWO, "compression": {"scales": "block"}},
            r'compression.scales = "block": .*is in eight bits; .*scales = "token"$',
        ),
        ({"parallel": {"sp": 2}, "overlap": {"across": True}}, r"needs parallel.ep .*= false$"),
        (
            {"parallel": {**TWO, "pp": 2}, "overlap": {"across": True}},
            r"needs two layers of model.layers \(2\) behind one another.*across = false$",
        ),
        ({"parallel": {"pp": 2}, "overlap": {"merge": True}}, r"needs parallel.pp = 1.*= false$"),
        ({"parallel": {"dp": 2}, "overlap": {"merge": True}}, r"two micro-batches.*= false$"),
    ],
)
def test_what_nobody_reads_is_refused(branches: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        RunConfig.model_validate(tree(**branches))


@pytest.mark.parametrize(
    "branches",
    [
        {"parallel": {"dispatch": "auto"}},
        {"parallel": {"dp": 2, "bucket_elements": 1000}},
        {"parallel": {**TWO, "dispatch": "all_gather", "row_bound": 1.25}},
        {"parallel": {**TWO, "dp": 2, "node": 2, "zero": 2, "dispatch": "deduplicated"}},
        {"parallel": TWO, "compression": {"dispatch": "fp8", "scales": "block"}},
        {"parallel": TWO, "overlap": {"across": True, "merge": True}},
        {"parallel": {"sp": 2, "ffn": "tp", "attention": "tp"}, "overlap": {"across": True}},
        {"parallel": {"pp": 2, "pipeline": "zero_bubble"}},
        {"overlap": {"order": "paper"}},
    ],
)
def test_what_means_something_is_taken(branches: dict[str, Any]) -> None:
    run = RunConfig.model_validate(tree(**branches))
    found = idle_keys(run.parallel, run.compression, run.overlap, layers=4, micro_batches=2)
    assert list(found) == []
