"""Targets that count for nothing: the loss is the mean over the others, whatever the layout.

Adversarial cuts: a rank whose tokens ask for nothing, a micro-batch that asks for nothing, all of
them. The oracle is torch's own cross-entropy over the logits of the tokens that are asked.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weft.compose.plan import Plan
from weft.data.batches import IGNORED, MicroBatch
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.runtime.batch import stage
from weft.runtime.eager import Oracle
from weft.testing import models
from weft.testing.agreement import LOSS_FLOAT64, Work, require_agreement, run_layout, stack
from weft.testing.tolerance import GRADIENT_FLOAT64, require_close

BODIES = reference_bodies()
TOKENS = models.MICRO_BATCH * models.SEQUENCE
RARE = models.mixtral_like().shape.vocab - 1  # a token of masked documents alone


def unbalanced() -> models.Model:
    """Without the losses of the router, which see every token."""
    model = models.mixtral_like()
    return replace(model, arithmetic=replace(model.arithmetic, aux_coef=0.0, z_coef=0.0))


def plan_of(layout: Layout, rank: int, micro_batches: int = models.MICRO_BATCHES) -> Plan:
    sequences = models.MICRO_BATCHES * models.MICRO_BATCH
    plan = models.plan(unbalanced(), layout, rank)
    return replace(plan, micro_batches=micro_batches, micro_batch=sequences // micro_batches)


PATTERNS = {
    "a micro-batch": lambda m, _: m == 2,
    "the second half of the ranks": lambda m, _: m >= 2,
    "the second rank of a sequence": lambda _, place: place >= TOKENS // 2,
    "all but one token": lambda m, place: (m, place) != (1, 7),
    "everything": lambda _m, _p: True,
}


def batches(step: int, pattern: str) -> Sequence[MicroBatch]:
    """The usual batches with some targets taken away; a rare token stands only where none is."""
    found = []
    for m, batch in enumerate(models.batches(unbalanced(), step)):
        off = np.array([PATTERNS[pattern](m, place) for place in range(TOKENS)])
        targets = np.where(off, IGNORED, batch.targets)
        found.append(replace(batch, targets=targets, tokens=batch.tokens % RARE))
    return found


def regrouped(step: int, pattern: str, micro_batches: int) -> Sequence[MicroBatch]:
    """The same samples in more or fewer micro-batches."""
    whole = batches(step, pattern)
    tokens, targets, positions = (
        np.concatenate([getattr(b, name) for b in whole])
        for name in ("tokens", "targets", "positions")
    )
    starts = (*np.flatnonzero(positions == 0).tolist(), len(tokens))
    size = len(tokens) // micro_batches
    return [
        MicroBatch(
            tokens=tokens[low : low + size],
            targets=targets[low : low + size],
            positions=positions[low : low + size],
            ends=tuple(e - low for e in starts if low < e <= low + size),
        )
        for low in range(0, len(tokens), size)
    ]


def mean_of_the_asked(pattern: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Torch's cross-entropy over all asked tokens of a step together, and its gradients."""
    made = stack(plan_of, Layout(), bodies=BODIES).stages[0]
    statics = made.state.statics
    weights = {p.name: statics[f"param:{p.name}"].clone() for p in made.step.parameters}
    for weight in weights.values():
        weight.requires_grad_()
    biases = {k.removeprefix("state:"): v for k, v in statics.items() if k.startswith("state:")}
    oracle = Oracle(plan=made.plan, bodies=BODIES, weights={**weights, **biases})
    staged = [stage(b, made.plan.share, device=torch.device("cpu")) for b in batches(1, pattern)]
    logits = torch.cat([oracle.logits(batch) for batch in staged])
    targets = torch.cat([batch.targets for batch in staged])
    asked = targets >= 0
    loss = F.cross_entropy(logits[asked], targets[asked]) if asked.any() else 0 * logits.sum()
    loss.backward()
    return loss.detach(), {name: w.grad for name, w in weights.items()}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_loss_and_gradients_are_those_of_the_mean_over_what_is_asked(pattern):
    loss, expected = mean_of_the_asked(pattern)
    work = Work(batches=partial(batches, pattern=pattern), steps=1)
    trace = run_layout(plan_of, Layout(), work, bodies=BODIES)
    require_close(trace.sums["step 1 loss"], loss, GRADIENT_FLOAT64, "loss")
    embed = trace.gradients["embed"]
    require_close(embed, expected["embed"].view_as(embed), GRADIENT_FLOAT64, "embed")
    head = trace.gradients["head"]
    require_close(head, expected["head"].view_as(head), GRADIENT_FLOAT64, "head")
    if pattern == "everything":
        assert not any(gradient.any() for gradient in trace.gradients.values())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "layout", [Layout(dp=4), Layout(sp=2), Layout(sp=2, dp=2, ep=4)], ids=Layout.name
)
def test_no_layout_changes_what_a_masked_step_trains(pattern, layout):
    work = Work(batches=partial(batches, pattern=pattern), steps=2)
    expected = run_layout(plan_of, Layout(), work, bodies=BODIES)
    require_agreement(run_layout(plan_of, layout, work, bodies=BODIES), expected)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("micro_batches", [1, 8])
def test_no_accumulation_changes_what_a_masked_step_trains(pattern, micro_batches):
    work = Work(batches=partial(batches, pattern=pattern), steps=2)
    parts = Work(batches=partial(regrouped, pattern=pattern, micro_batches=micro_batches), steps=2)
    expected = run_layout(plan_of, Layout(), work, bodies=BODIES)
    plans = partial(plan_of, micro_batches=micro_batches)
    found = run_layout(plans, Layout(), parts, bodies=BODIES)
    for name, loss in enumerate(expected.losses):
        assert abs(found.losses[name] - loss) <= LOSS_FLOAT64 * max(loss, 1)
    for name, gradient in expected.gradients.items():
        scale = max(float(gradient.norm()), 1e-30)
        assert float((found.gradients[name] - gradient).norm()) <= 1e-9 * scale, name


def test_a_token_that_only_prompts_hold_has_no_gradient():
    """In documents of their own, behind which nothing is asked."""
    [first, *rest] = batches(1, "a micro-batch")
    half = models.SEQUENCE
    tokens, targets = first.tokens.copy(), first.targets.copy()
    tokens[:half], targets[:half] = RARE, IGNORED
    ends = (half, *(e for e in first.ends if e > half))
    positions = np.concatenate([np.arange(half), first.positions[half:]])
    prompt = MicroBatch(tokens=tokens, targets=targets, positions=positions, ends=ends)
    work = Work(batches=lambda _: [prompt, *rest], steps=1)
    found = run_layout(plan_of, Layout(), work, bodies=BODIES).gradients["embed"]
    rows = found.view(RARE + 1, -1)
    assert not rows[RARE].any()
    assert rows[:RARE].any()


def test_one_target_too_many_is_seen():
    """The control: a single prompt token asked after all is another gradient."""
    expected = mean_of_the_asked("a micro-batch")[1]["embed"]

    def leaky(step: int) -> Sequence[MicroBatch]:
        first, second, third, *rest = batches(step, "a micro-batch")
        targets = third.targets.copy()
        targets[3] = 5
        return [first, second, replace(third, targets=targets), *rest]

    found = run_layout(plan_of, Layout(), Work(batches=leaky, steps=1), bodies=BODIES)
    embed = found.gradients["embed"]
    assert float((embed - expected.view_as(embed)).norm()) > 1e-3 * float(embed.norm())
