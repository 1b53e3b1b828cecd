"""The order a recipe names, at the prices of a machine: when the tasks of each segment run.

    serial      one after the other
    overlapped  collectives as soon and waits as late as they can be (schedule.layer)
    paper       the paper's list for a layer, by hand; elsewhere as overlapped (schedule.paper)
    auto        found by search from the others (schedule.search)
    saved       read from a file, for the segments that it has (schedule.saved)

Each takes its program from `compose.templates` or `compose.weave`; their bits are the same.
"""

from collections.abc import Callable, Mapping
from functools import partial

from weft.compose.keep import dtype_widths
from weft.compose.plan import Plan, sizes
from weft.compose.price import Pricing, nominal_pricing, value_bytes
from weft.graph.program import Program
from weft.schedule.action import Ordered
from weft.schedule.layer import overlapped, serial
from weft.schedule.paper import paper
from weft.schedule.saved import restored, sections
from weft.schedule.search import TIMINGS, search

Order = Callable[[Program], Ordered]


def named_order(plan: Plan, pricing: Pricing | None = None) -> Order:
    """The order a recipe names, at the prices of a machine, or at nominal ones; a saved schedule
    goes before it.
    """
    named = _by_name(plan, pricing or nominal_pricing())
    return partial(_restored, saved=sections(plan.saved), otherwise=named) if plan.saved else named


def _restored(program: Program, *, saved: Mapping[str, str], otherwise: Order) -> Ordered:
    return restored(saved[program.name], program) if program.name in saved else otherwise(program)


def _by_name(plan: Plan, pricing: Pricing) -> Order:
    given = {"plan": plan, "pricing": pricing}
    match plan.order:
        case "serial":
            return serial
        case "overlapped":
            return partial(_overlapped, **given)
        case "paper":
            return partial(_by_hand, **given)
        case "auto":
            return partial(searched, **given)
        case _:
            raise AssertionError(f"{plan.order=}")


def searched(program: Program, *, plan: Plan, pricing: Pricing, timings: int = TIMINGS) -> Ordered:
    """The order found from the named ones; no longer than any of them, no dearer at its peak."""
    n, widths = sizes(plan), dtype_widths(plan)
    by_hand = paper(program)
    named = (serial(program), _overlapped(program, plan=plan, pricing=pricing))
    return search(
        program,
        lambda task: pricing(task, program, n),
        lambda name: value_bytes(name, program, n, widths),
        starting=(*named, *([by_hand] if by_hand else [])),
        timings=timings,
    )


def _overlapped(program: Program, *, plan: Plan, pricing: Pricing) -> Ordered:
    n = sizes(plan)
    return overlapped(program, lambda task: pricing(task, program, n))


def _by_hand(program: Program, *, plan: Plan, pricing: Pricing) -> Ordered:
    """The paper's order where it has one, else the overlapped one."""
    return paper(program) or _overlapped(program, plan=plan, pricing=pricing)
