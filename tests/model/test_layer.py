"""The layer text, interpreted as nothing but the sequence of its operators."""

from types import SimpleNamespace

import pytest

from weft.model.families import LAYERS, Kind

ATTENTION = [
    "rms_norm", "qkv_project", "rotate", "seq_to_heads", "attention", "heads_to_seq",
    "project", "add_rms_norm",
]  # fmt: skip
ROUTED = ["route", "dispatch", "expert_up", "swiglu", "expert_down"]
DENSE = ["dense_up", "dense_swiglu", "dense_down"]
SHARED = ["shared_up", "shared_swiglu", "shared_down"]
RESULTS = {"rotate": 3, "seq_to_heads": 3, "add_rms_norm": 2, "add_layer_norm": 2}


class Listener:
    """An interpretation that writes down the name of each operator and who reads whose result."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.reads: dict[str, tuple] = {}

    def __getattr__(self, name: str):
        def call(*inputs):
            self.calls.append(name)
            self.reads.setdefault(name, inputs)
            results = tuple(f"{name}.{i}" for i in range(RESULTS.get(name, 1)))
            return results if len(results) > 1 else results[0]

        return call


class Weights(SimpleNamespace):
    def __getattr__(self, name: str) -> str:
        return f"w.{name}"


def listen(kind: Kind) -> Listener:
    o = Listener()
    LAYERS[kind](o, "x", Weights())
    return o


def test_a_moe_layer_is_the_papers_sequence():
    assert listen(Kind.MOE).calls == [*ATTENTION, *ROUTED, "combine", "add"]


def test_shared_experts_run_between_dispatch_and_combine():
    assert listen(Kind.SHARED_MOE).calls == [*ATTENTION, *ROUTED, *SHARED, "combine", "add", "add"]


def test_a_gated_shared_expert_is_weighed_by_what_the_router_sees():
    found = listen(Kind.GATED_MOE)
    gated = [*ATTENTION, *ROUTED, *SHARED, "shared_gate", "combine", "add", "add"]
    assert found.calls == gated
    assert found.reads["shared_gate"] == ("shared_down.0", "add_rms_norm.1", "w.shared_gate")


def test_a_windowed_layer_differs_in_its_attention_alone():
    through = [
        name.replace("window_attention", "attention") for name in listen(Kind.WINDOWED_MOE).calls
    ]
    assert through == listen(Kind.MOE).calls


def test_a_layer_between_layer_norms_differs_in_its_norms_alone():
    calls = [n.replace("layer_norm", "rms_norm") for n in listen(Kind.LAYER_NORM_MOE).calls]
    assert calls == listen(Kind.MOE).calls


def test_a_dense_layer_routes_nothing():
    assert listen(Kind.DENSE).calls == [*ATTENTION, *DENSE, "add"]


@pytest.mark.parametrize("kind", Kind)
def test_the_residual_stream_enters_after_attention(kind):
    reads = listen(kind).reads
    norm = "add_layer_norm" if kind is Kind.LAYER_NORM_MOE else "add_rms_norm"
    assert reads[norm][0] == "x"
    assert reads["add"][0] == f"{norm}.0"


def test_the_gate_weight_multiplies_before_fc2():
    reads = listen(Kind.MOE).reads
    assert reads["swiglu"] == ("expert_up.0", "dispatch.0")
    assert reads["expert_down"][0] == "swiglu.0"
    assert reads["combine"] == ("expert_down.0", "dispatch.0")


def test_shared_experts_see_what_the_router_sees():
    reads = listen(Kind.SHARED_MOE).reads
    assert reads["shared_up"][0] == reads["route"][0] == "add_rms_norm.1"
