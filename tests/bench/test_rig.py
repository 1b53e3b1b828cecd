"""A rig runs the steps of a session on random tokens, the same step every time."""

from dataclasses import replace
from itertools import count, pairwise

import numpy as np
import pytest
import torch

from weft.bench.profile import hold
from weft.bench.rig import Rig, assemble, random_tokens, rigged
from weft.compose.plan import LOADS, LOSS, NORM2, OVERFLOW
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.graph.opset import Tolerance
from weft.ops.optimizer import Rates
from weft.runtime import backends
from weft.runtime.batch import stage as stage_batch
from weft.runtime.lanes import Flight
from weft.runtime.state import precision
from weft.testing.ranks import run_ranks
from weft.testing.tolerance import relative_bound, require_close
from weft.trainer.session import Place, open_transport


def test_a_rig_runs_a_step_of_training(recipe, place) -> None:
    with rigged(recipe(), place) as rig:
        made = rig.stage.bound.run(rig.environment())
        assert rig.tokens == 4 * 16
        # before it has learned anything, a model is as good as a guess
        assert float(made["stats"][0]) == pytest.approx(np.log(61), rel=0.05)
        assert float(made["verdict"][1]) == 0


def test_binding_once_more_runs_the_same_step_on_the_same_state(recipe, place) -> None:
    with rigged(recipe(), place) as rig:
        first = rig.stage.bound.run(rig.environment())["stats"].clone()
    with rigged(recipe(), place) as rig:
        seen = []

        def wrap(bodies):
            return {name: spied(name, body) for name, body in bodies.items()}

        def spied(name, body):
            return lambda *inputs, **attributes: (seen.append(name), body(*inputs, **attributes))[1]

        again = rig.bound(wrap, lambda lanes: lanes).run(rig.environment())["stats"]
        assert torch.equal(first, again)
        assert {"attention", "expert_up.wgrad", "gather_params"} <= set(seen)


def test_random_tokens_fill_their_sequences_with_documents(recipe) -> None:
    batch = random_tokens(plan(recipe(), 0), seed=(0, 0), documents=3)
    assert len(batch.tokens) == len(batch.targets) == len(batch.positions) == 32
    assert len(batch.ends) == 6
    assert {16, 32} <= set(batch.ends)
    assert [int(batch.positions[end - 1]) + 1 for end in batch.ends] == np.diff(
        [0, *batch.ends]
    ).tolist()
    assert batch.tokens.max() < 61


def test_one_document_is_the_whole_sequence(recipe) -> None:
    assert random_tokens(plan(recipe(), 0), seed=(0, 0)).ends == (16, 32)


def test_tokens_depend_on_the_seed_alone(recipe) -> None:
    made = plan(recipe(), 0)
    one, same = (random_tokens(made, seed=(1, 0)).tokens for _ in range(2))
    other = random_tokens(replace(made), seed=(1, 1)).tokens
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


FAST = 3e-2  # a learning rate that makes experts uneven in a few steps


def learning(rig):
    """What a step reads that changes weights."""
    rates = Rates(lr=FAST, weight_decay=0.0, step=1)
    return rig.stage.environment(rig.batches, divisor=float(rig.tokens), rates=rates)


def test_another_step_runs_over_the_same_state(recipe, place) -> None:
    with rigged(recipe(), place) as rig:
        serial = rig.with_step(training_step(replace(rig.plan, order="serial")))
        assert (serial.plan.order, rig.plan.order) == ("serial", "overlapped")
        assert serial.stage.state is rig.stage.state
        before = float(rig.stage.bound.run(learning(rig))["stats"][LOSS])
        assert (
            float(serial.stage.bound.run(serial.environment())["stats"][LOSS]) < before
        )  # learned


@pytest.mark.parametrize(
    "balance",
    [(), ("model.router_bias=true", "model.bias_rate=0.1"), ("model.global_coef=0.5",)],
    ids=["losses", "bias", "past"],
)
def test_every_step_does_the_same_work(recipe, place, balance) -> None:
    with rigged(recipe(*balance), place) as rig:
        first, *others = (rig.stage.bound.run(rig.environment())["stats"].clone() for _ in range(4))
        assert all(torch.equal(first, other) for other in others)
        rig.stage.bound.run(learning(rig))  # the control
        assert not torch.equal(first, rig.stage.bound.run(rig.environment())["stats"])


# ---- two ranks, and a host that does not wait ----------------------------------------------------

TWO = ("parallel.dp=2", "parallel.ep=2", "parallel.dispatch=all_gather", "data.sequence=64")
# rows as many and as wide as those of a real step, so that the device has work for long
LARGE = (
    *TWO, "train.precision=bfloat16", "train.device=cuda", "data.sequence=4096",
    "model.hidden=2048", "model.layers=4", "model.heads=16", "model.kv_heads=8",
    "model.head_dim=128", "model.ffn_hidden=3584", "model.experts=8", "model.vocab=8192",
)  # fmt: skip
# room: for all that can come to half the experts, for what comes at first, for an even share
EVERYTHING, FITTING, LITTLE = 2.0, 1.1, 1.0
STEPS = 20
HOLDS = 10  # a second, longer than the host takes to issue the steps
WIRES = [
    pytest.param(("cpu", TWO), id="gloo"),
    *(
        pytest.param(
            ("cuda", (*LARGE, f"kernels.transport={wire}")), marks=pytest.mark.gpus2, id=wire
        )
        for wire in ("nccl", "symmetric")
    ),
]


@pytest.fixture
def wire(request):
    """Where ranks run and on what; they are forked, so CUDA must not be in use yet."""
    kind, overrides = request.param
    if kind == "cuda" and torch.cuda.is_initialized():
        pytest.skip("CUDA is in use in this process: run this file by itself")
    return kind, overrides


def as_they_are(made):
    return made


def rig_of_two(rank, config, kind):
    """One of two ranks that are joined already."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    backends.prepare(device, threads=1, neighbours=2)
    place = Place(rank=rank, world=2, device=device, meeting=None, neighbours=2)
    return assemble(config, place, open_transport(config, place))


def one_at_a_time(bodies):
    """The bodies; the host waits for the device behind each."""

    def patient(body):
        def run(*inputs, **attributes):
            made = body(*inputs, **attributes)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            return made

        return run

    return {name: patient(body) for name, body in bodies.items()}


def by_turns(rig, bound, steps=STEPS):
    """The statistics of steps over two batches in turn, all issued before the first is read.

    Steps that were all alike would find what they read too early: what the step before left there.
    """
    other = stage_batch(
        random_tokens(rig.plan, seed=(7, 0)), rig.plan.share, device=rig.place.device
    )
    rigs = (rig, replace(rig, batches=(other,)))
    found = []
    for number in range(steps):
        rig.stage.state.forgive()
        found.append(bound.run(rigs[number % 2].environment())["stats"].clone())
    return torch.stack(found)


def far_ahead(rig, wrap=as_they_are, wrap_lanes=as_they_are):
    """The same, the device held until the host has issued them."""
    bound = rig.bound(wrap, wrap_lanes)
    by_turns(rig, bound, 2)  # kernels are compiled, memory is there
    rig.transport.barrier()
    for _ in range(HOLDS):
        hold(rig.place.device)
    return by_turns(rig, bound).cpu()


def run_wire(rank, config, kind):
    rig = rig_of_two(rank, config, kind)
    tight = rig.with_step(training_step(replace(rig.plan, row_bound=LITTLE)))
    found = {}
    for name, one in (("wide", rig), ("tight", tight)):
        found[name] = far_ahead(one)
        patient = one.bound(one_at_a_time, as_they_are)
        found[f"{name}, one at a time"] = by_turns(one, patient, 2).cpu()
    found["exact"] = by_turns(rig, rig.stage.exact, 2).cpu()
    rig.transport.close()
    return found


def repeats(found, expected):
    """Whether steps in turn are, bit for bit, the two expected ones in turn."""
    return torch.equal(found, expected.repeat(len(found) // 2, 1))


@pytest.mark.parametrize("wire", WIRES, indirect=True)
def test_steps_with_a_bound_are_the_same_however_far_the_host_is_ahead(recipe, wire) -> None:
    kind, overrides = wire
    config = recipe(*overrides, f"parallel.row_bound={EVERYTHING}")
    for found in run_ranks(2, run_wire, config, kind, timeout=300):
        exact = found["exact"]
        assert not torch.equal(exact[0], exact[1])  # the batches differ
        assert repeats(found["wide"], found["wide, one at a time"])
        assert repeats(found["tight"], found["tight, one at a time"])
        assert (found["tight"][:, OVERFLOW] > 0).all()
        assert (found["wide"][:, OVERFLOW] == 0).all()
        # in bits, where products do not depend on how many rows there is room for
        bound = relative_bound(Tolerance.MATMUL, precision(config.train.precision).act)
        for place in (LOSS, NORM2, slice(LOADS, None)):
            require_close(found["wide"][:2, place], exact[:, place], bound, str(place))


def run_disturbed(rank, config, kind):
    """Steps of which the fifth finds the choices of the first layer in another order."""
    calls = count()

    def disturb(bodies):
        def plan(chosen, **attributes):
            wrong = rank == 0 and next(calls) == 4 * config.model.layers
            return bodies["plan_within"](chosen.flip(0) if wrong else chosen, **attributes)

        return {**bodies, "plan_within": plan}

    rig = rig_of_two(rank, config, kind)
    found = by_turns(rig, rig.bound(disturb, as_they_are), 6), by_turns(rig, rig.stage.bound, 6)
    rig.transport.close()
    return list(found)


def test_choices_that_are_others_once_would_be_seen(recipe) -> None:
    config = recipe(*TWO, f"parallel.row_bound={EVERYTHING}")
    for disturbed, whole in run_ranks(2, run_disturbed, config, "cpu"):
        assert repeats(whole, whole[:2])
        assert not repeats(disturbed, whole[:2])
        assert torch.equal(disturbed[:4], whole[:4])


class Careless:
    """Lanes on which nobody waits for what was posted."""

    def __init__(self, inner):
        self.inner = inner

    def posting(self, body, channel):
        post = self.inner.posting(body, channel)

        def run(*inputs):
            handle = post(*inputs)
            return handle.inner if isinstance(handle, Flight) else handle

        return run


def run_careless(rank, config, kind):
    rig = rig_of_two(rank, config, kind)
    expected = by_turns(rig, rig.bound(one_at_a_time, as_they_are), 2).cpu()
    found = far_ahead(rig, wrap_lanes=Careless)
    rig.transport.close()
    return [found, expected]


@pytest.mark.parametrize("wire", WIRES[1:], indirect=True)
def test_a_wait_left_out_would_be_seen(recipe, wire) -> None:
    kind, overrides = wire
    config = recipe(*overrides, f"parallel.row_bound={EVERYTHING}")
    ranks = run_ranks(2, run_careless, config, kind, timeout=300)
    assert not all(repeats(found, expected) for found, expected in ranks)


def run_counted(rank, config, read):
    """What each of some steps had no room for, one behind the other as they are measured."""
    rig = rig_of_two(rank, config, "cpu")
    stats, found = rig.stage.state.stats, [0]
    for _ in range(10):
        rig.stage.bound.run(read(rig))
        found.append(int(stats[OVERFLOW]))
    rig.transport.close()
    return [after - before for before, after in pairwise(found)]


def counted(recipe, bound, read):
    config = recipe(*TWO, f"parallel.row_bound={bound}", f"optim.lr={FAST}")
    return run_ranks(2, run_counted, config, read)


def test_a_rig_has_no_room_for_the_same_rows_in_every_step(recipe) -> None:
    tight = counted(recipe, LITTLE, Rig.environment)
    assert any(map(any, tight))
    assert all(len(set(counts)) == 1 for counts in tight)
    assert not any(map(any, counted(recipe, FITTING, Rig.environment)))


def test_a_rig_that_learned_would_fit_until_its_experts_are_uneven(recipe) -> None:
    """From then on every step is refused and counts the same: the sum is no multiple of all."""
    counts = next(filter(any, counted(recipe, FITTING, learning)))
    first = next(step for step, over in enumerate(counts) if over)
    assert first > 0
    assert set(counts[first:]) == {counts[first]}
    assert sum(counts) % len(counts)
