"""The edges of a rank's chunks: what it receives, awaits, sends and lets go, as templates.

    receive.<direction>   posts a receive; the value leaves the segment in flight
    arrive                joins it: an instance of its own, so that layers need not know their place
    send.<direction>      posts a send; what it reads lives in the handle
    sent                  joins it

Forward and backward each have a link, and the link from the last stage to the first one of its own:
what waits on one of them holds up no other.
"""

from collections.abc import Iterable, Sequence

from weft.compose.instance import Instance, instance_of
from weft.compose.plan import Plan
from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.schedule.pipeline import Pass
from weft.schedule.transfer import Message, Move, Verb

_DIRECTIONS = {Pass.FORWARD: "forward", Pass.BACKWARD: "backward"}
_PAYLOADS = {Pass.FORWARD: "activations", Pass.BACKWARD: "activation gradients"}


def edge_programs(plan: Plan, moves: Iterable[Move]) -> dict[str, Program]:
    """The programs of a rank's moves by name."""
    return {name(move): _program(plan, move) for move in moves}


def edge_instance(layers: Sequence[range], program: Program, move: Move) -> Instance:
    """One move as an instance of its program; `layers` are those of each virtual stage."""
    key = _key(layers[move.message.stage], move.message)
    match move.verb:
        case Verb.RECEIVE:
            return instance_of(program, {}, {"x": f"{key} in flight"}, "")
        case Verb.ARRIVE:
            return instance_of(program, {"x": f"{key} in flight"}, {"x": key}, "")
        case Verb.SEND:
            return instance_of(program, {"x": key}, {"sent": f"{key} leaving"}, "")
        case Verb.SENT:
            return instance_of(program, {"sent": f"{key} leaving"}, {}, "")


def name(move: Move) -> str:
    """The name of a move's program."""
    match move.verb:
        case Verb.RECEIVE | Verb.SEND:
            return f"{move.verb}.{_DIRECTIONS[move.message.kind]}"
        case Verb.ARRIVE | Verb.SENT:
            return str(move.verb)


def _program(plan: Plan, move: Move) -> Program:
    o = Recorder(name(move))
    own, kind, peer = plan.layout.pp_rank(plan.rank), move.message.kind, move.peer
    label = _PAYLOADS[kind]
    match move.verb:
        case Verb.RECEIVE:
            like, lane = o.input("s.boundary", "T D"), _link(plan, peer, kind)
            (x,) = o.call("receive", like, axis="pp", label=label, lane=lane, peer=peer)
            return o.finish(x, opens=(x,))
        case Verb.ARRIVE:
            x = o.input("x", "T D")
            return o.finish(x, joins=(x,))
        case Verb.SEND:
            x, lane = o.input("x", "T D"), _link(plan, own, kind)
            (sent,) = o.call("send", x, axis="pp", label=label, lane=lane, peer=peer)
            return o.finish(sent, opens=(sent,))
        case Verb.SENT:
            return o.finish(joins=(o.input("sent", "T D"),))


def _link(plan: Plan, sender: int, kind: Pass) -> str:
    """The link that a stage sends on: forward to the next, backward to the one before."""
    end = plan.layout.pp - 1 if kind is Pass.FORWARD else 0
    return f"{_DIRECTIONS[kind]}{'_wrap' if sender == end else ''}"


def _key(layers: range, message: Message) -> str:
    """The key of a message: what the first layer of its stage reads, or the gradient of what the
    last one makes.
    """
    if message.kind is Pass.FORWARD:
        return f"m{message.micro_batch}.x.{layers.start}"
    return f"m{message.micro_batch}.d.x.{layers.stop}"
