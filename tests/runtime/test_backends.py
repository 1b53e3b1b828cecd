import sys
from dataclasses import replace

import pytest
import torch

from weft.comm.transports.symmetric import REFERENCE
from weft.compose.plan import sizes
from weft.config.kernels import KernelsConfig
from weft.errors import ConfigError
from weft.graph.fused import FUSED
from weft.graph.opset import Lane, body_names, lookup
from weft.ops.registry import cpu_bodies, cuda_bodies, reference_bodies
from weft.parallel.layout import Layout
from weft.runtime import backends
from weft.testing import models

CPU = torch.device("cpu")
LOCAL = {name for name in body_names() if lookup(name.partition(".")[0]).lane is not Lane.COMM}


def test_the_table_has_a_body_for_every_operator_but_the_collectives():
    assert set(backends.choose(CPU, torch.float32)) == LOCAL | set(FUSED)


def test_a_fused_operator_is_its_sequence_where_nothing_is_faster():
    table = backends.choose(CPU, torch.float32)
    assert {table[name].source for name in FUSED} == {"ops.fused.in_sequence"}
    assert {table[name].reason for name in FUSED} == {"the sequence that defines it"}


@pytest.mark.parametrize(("fuse", "wanted"), [("auto", ()), ("all", ("up_swiglu",)), ("none", ())])
def test_a_plan_gets_what_this_machine_runs_faster(fuse, wanted):
    """Of a CPU that is nothing; what a recipe asks for itself stays as it is."""
    kernels = KernelsConfig(fuse=fuse)
    plan = replace(models.plan(models.mixtral_like(), Layout()), fused=wanted)
    table = backends.choose(CPU, torch.float32, kernels)
    assert backends.with_fused(plan, table, kernels).fused == wanted


def test_a_fused_body_is_taken_for_experts_for_which_it_is_faster():
    plan = models.plan(models.mixtral_like(), Layout())
    table = backends.choose(CPU, torch.float32)
    for widest, wanted in ((sizes(plan).F, ("up_swiglu",)), (sizes(plan).F - 1, ())):
        faster = backends.Choice(body=print, reason="measured", widest=widest)
        offered = {**table, "up_swiglu": faster}
        found = backends.with_fused(plan, offered, KernelsConfig(fuse="auto"))
        assert found.fused == wanted


@pytest.mark.parametrize(
    ("remat", "taken"),
    [("none", False), (("logits",), False), ("selective", True), ("full", True)],
)
def test_what_is_made_again_anyway_is_rather_made_inside(remat, taken):
    plan = replace(models.plan(models.mixtral_like(), Layout()), remat=remat)
    offer = backends.Choice(body=print, reason="measured", widest_again=sizes(plan).F)
    table = {**backends.choose(CPU, torch.float32), "swiglu_down.dgrad": offer}
    found = backends.with_fused(plan, table, KernelsConfig(fuse="auto"))
    assert ("swiglu_down.dgrad" in found.fused) == taken


def test_a_fused_body_says_for_which_experts_it_is_taken_where_its_activations_are_made_again():
    pytest.importorskip("triton", reason="Triton is built for Linux alone")
    fused = backends._fused(torch.device("cuda"), torch.bfloat16)
    again = {name for name, one in fused.items() if "made again" in one.reason}
    assert again == {name for name, one in fused.items() if one.widest_again > one.widest} != set()


def test_a_faster_body_replaces_the_reference_and_says_why():
    table = backends.choose(CPU, torch.float32)
    for name, body in cpu_bodies().items():
        assert table[name].body is body
        assert table[name].reason != "reference"
    kept = LOCAL - set(cpu_bodies())
    assert all(table[name].body is reference_bodies()[name] for name in kept)


def test_every_faster_body_has_a_reason():
    for bodies in (cpu_bodies(), cuda_bodies()):
        for body in bodies.values():
            assert backends._REASONS[body.__qualname__]


def test_a_gpu_computes_in_float32_with_the_reference():
    table = backends.choose(torch.device("cuda"), torch.float32)
    assert {table[name].reason for name in LOCAL} == {"reference"}


def test_a_source_names_room_file_and_function():
    assert backends.choose(CPU, torch.float32)["add"].source == "ops.linear.add"


def test_asking_for_cuda_without_a_device_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises(ConfigError, match=r"finds 0 CUDA devices; start fewer ranks"):
        backends.pick_device("cuda", 0)


def test_ranks_of_one_machine_share_its_cores(monkeypatch):
    found = []
    monkeypatch.setattr(backends, "cores", lambda: 8)
    monkeypatch.setattr(backends.torch, "set_num_threads", found.append)
    for neighbours in (1, 2, 3, 16):
        backends.prepare(CPU, threads=None, neighbours=neighbours)
    backends.prepare(CPU, threads=5, neighbours=2)
    assert found == [8, 4, 2, 1, 5]


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of the GNU C library")
def test_the_allocator_takes_both_settings():
    assert backends.keep_freed_memory()


def test_a_cpu_has_no_peak():
    assert backends.peak_flops(CPU) is None
    assert backends.accelerator(CPU) == "cpu"


def test_gradients_between_peers_are_added_by_the_reference_on_a_cpu():
    assert backends.gradient_sums(CPU) is REFERENCE


def test_collectives_between_peers_are_kernels_on_a_gpu_alone():
    pytest.importorskip("triton", reason="Triton is built for Linux alone")
    assert backends.peer_kernels(CPU) is None
    bodies = backends.peer_kernels(torch.device("cuda", 0))
    assert bodies.exchange.__module__ == bodies.add.__module__ == "weft.kernels.triton.collectives"


def test_gradients_between_peers_are_added_in_one_pass_on_a_gpu():
    pytest.importorskip("triton", reason="Triton is built for Linux alone")
    sums = backends.gradient_sums(torch.device("cuda", 0))
    assert sums.add.__module__ == "weft.kernels.triton.gradient"
    assert sums.encode is REFERENCE.encode
