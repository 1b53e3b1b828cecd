"""What is kept is the best trade, checked against every choice there is."""

from itertools import combinations

import pytest

from weft.errors import ProgramError
from weft.graph.backward import Differentiated, differentiate
from weft.graph.program import Program, Task
from weft.graph.record import Recorder
from weft.schedule.keep import Choice, Question, ask, cheapest, is_heavy, lightest
from weft.schedule.remat import recipes, rematerialise

BYTES = {"y": 5, "rstd": 1, "qkv": 9, "q": 6, "k": 2, "v": 2, "p": 10, "y_2": 5, "s": 5}


def attention_like() -> Differentiated:
    """Norm, projection, heads, all-to-all, norm of a sum: shared chains, a shortcut."""
    o = Recorder("a.forward")
    x = o.input("x", "T D")
    cos, sin = o.input("cos", "T C", "acc"), o.input("sin", "T C", "acc")
    y, _ = o.call("rms_norm", x, o.input("w.norm", "D"), eps=1e-5)
    (qkv,) = o.call("qkv_project", y, o.input("w.qkv", "Q D"))
    q_norm, k_norm = o.input("w.q_norm", "C"), o.input("w.k_norm", "C")
    q, k, v, _ = o.call("norm_rotate", qkv, q_norm, k_norm, cos, sin, heads=2, kv_heads=1, eps=1e-5)
    (p,) = o.call("pack_heads", q, k, v, sp=1, heads=2, kv_heads=1)
    (a,) = o.call("project", p, o.input("w.out", "D A"))
    s, h, _ = o.call("add_rms_norm", x, a, o.input("w.norm2", "D"), eps=1e-5)
    (u,) = o.call("project", h, o.input("w.up", "D A"))
    return differentiate(o.finish(o.call("add", s, u)[0]))


DERIVED = attention_like()
VALUES = tuple(recipes(DERIVED.forward))


def size(name: str) -> int:
    return BYTES.get(name, 3)


def work(task: Task) -> int:
    return {"project": 40, "qkv_project": 50, "pack_heads": 13, "norm_rotate": 7}.get(task.body, 4)


def question(*, heavy: bool = True) -> Question:
    return ask(DERIVED, size=size, work=work, allowed=lambda task: heavy or not is_heavy(task))


def measured(forward: Program, again: frozenset[str]) -> Choice | None:
    """What a choice really keeps and runs, from the rewritten program; none if a value is idle."""
    found = rematerialise(DERIVED, again)
    ran = [task for task in found.backward.tasks if task.name.startswith("again.")]
    made = {name for task in ran for name in task.outputs}
    if not again <= made:
        return None
    kept = frozenset(found.forward.kept)
    makers = {recipes(forward)[name].name: recipes(forward)[name] for name in again}
    total = sum(work(task) for task in {(t.name, t.body): t for t in makers.values()}.values())
    return Choice(kept=kept, again=again, kept_bytes=sum(map(size, kept)), work=total)


@pytest.fixture(scope="module")
def every() -> list[Choice]:
    """All choices whose shortcuts stand alone (a shortcut beside its whole task costs less)."""
    subsets = (frozenset(c) for n in range(len(VALUES) + 1) for c in combinations(VALUES, n))
    found = (measured(DERIVED.forward, again) for again in subsets if "s" not in again)
    return [choice for choice in found if choice is not None]


def test_the_lightest_keeps_the_fewest_bytes_for_the_least_work(every):
    least = lightest(question())
    rivals = [c for c in every if "s" not in c.again]
    assert (least.kept_bytes, least.work) <= min((c.kept_bytes, c.work) for c in rivals)


def test_the_lightest_without_products_keeps_what_products_make():
    least = lightest(question(heavy=False))
    assert not any(is_heavy(recipes(DERIVED.forward)[name]) for name in least.again)
    assert {"qkv", "s"} <= least.kept


@pytest.mark.parametrize("budget", range(7, 60, 3))
def test_no_choice_that_fits_is_cheaper(budget, every):
    fitting = [c.work for c in every if c.kept_bytes <= budget]
    if not fitting:
        pytest.skip("nothing fits")
    found = cheapest(question(), budget=budget)
    assert found.kept_bytes <= budget
    assert found.work <= min(fitting)


def test_with_room_for_everything_nothing_is_made_again():
    found = cheapest(question(), budget=10**6)
    assert (found.again, found.work) == (frozenset(), 0)
    assert found.kept == {*DERIVED.forward.kept}


def test_a_choice_is_what_the_rewritten_program_keeps():
    for budget in range(20, 60, 5):
        found = cheapest(question(), budget=budget)
        rewritten = rematerialise(DERIVED, found.again)
        assert found.kept == {*rewritten.forward.kept}


def test_too_little_memory_names_the_least_there_is():
    least = lightest(question()).kept_bytes
    with pytest.raises(ProgramError, match=f"room for {least - 1} bytes a layer, at least {least}"):
        cheapest(question(), budget=least - 1)
