"""Two ways to an expert: send each row where it goes, or show all tokens to all ranks.

    all_to_all   a row travels once for each of its k experts, and home again: grows with k
    all_gather   every token travels to every rank, sums travel home: does not grow with k

Four ranks train one step each way on the same tokens. The loss is the same; the bytes are not, and
which way is cheaper turns at about k = n: 2 k / n against 2.

    python examples/03_dispatch_two_ways.py
"""

from dataclasses import replace

from weft.comm.transport import Transport
from weft.comm.transports.counting import CountingTransport
from weft.compose.plan import Plan
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Dispatch, Layout
from weft.testing import agreement, models

RANKS, EXPERTS = 4, 16
MOVES = ("rows", "tokens", "outputs")  # the hidden states among the payloads of the ep axis


def model(top_k: int) -> models.Model:
    """A small Mixtral of many experts."""
    return models.mixtral_like().with_shape(experts=EXPERTS, top_k=top_k)


def step(top_k: int, layout: Layout) -> tuple[float, list[int]]:
    """The loss of one step, and the bytes of hidden states that each rank received."""
    at = model(top_k)
    wires: list[CountingTransport] = []

    def plan(layout: Layout, rank: int) -> Plan:
        return models.plan(at, layout, rank)

    def watched(transport: Transport) -> CountingTransport:
        wires.append(CountingTransport(transport))
        return wires[-1]

    ranks = agreement.stack(plan, layout, bodies=reference_bodies(), wire=watched)
    work = agreement.Work(batches=lambda number: models.batches(at, number), steps=1)
    loss = float(agreement.train_step(ranks, work, 1)[0])
    return loss, [moved(wire) for wire in wires]


def moved(wire: CountingTransport) -> int:
    """The bytes of hidden states that reached a rank over the expert-parallel group."""
    return sum(
        b for (axis, _, label), b in wire.counts().items() if axis == "ep" and label in MOVES
    )


if __name__ == "__main__":
    print(f"{RANKS} ranks, {EXPERTS} experts, one step in float64\n")
    print("      loss                                bytes of hidden states a rank, mean (worst)")
    print("k     all_to_all       all_gather         all_to_all            all_gather")
    for top_k in (1, 2, 3, 4, 6, 8):
        layout = Layout(sp=RANKS, ep=RANKS)
        rows, sent = step(top_k, layout)
        tokens, gathered = step(top_k, replace(layout, dispatch=Dispatch.ALL_GATHER))
        cheaper = "all_to_all" if sum(sent) < sum(gathered) else "all_gather"
        print(
            f"{top_k:<4}  {rows:.12f}   {tokens:.12f}     "
            f"{sum(sent) // RANKS:>9,} ({max(sent):>9,}) {sum(gathered) // RANKS:>9,} "
            f"({max(gathered):>9,})  {cheaper}"
        )
    print("\nall_gather has no worst rank: its bytes do not depend on the routing.")
