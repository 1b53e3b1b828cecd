"""Inputs for every body: small, adversarial where they can be, the same on every machine.

`cases(name, dtype)` gives the calls of one operator of the vocabulary by label. Every agreement
check of bodies draws from here, whatever implementation it checks, so a new body is checked by
being registered. Row maps are built here in plain Python, so a wrong map in `ops.rows` cannot make
its own input.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from weft.ops.attention import segments
from weft.ops.fp8 import encode_blocks, encode_channels, encode_rows
from weft.ops.precision import accumulation_dtype
from weft.ops.rows import Splits

# Odd counts of tokens and unequal everything else: no two dims can be taken for each other. Widths
# are multiples of 8, the alignment of 16 bytes that grouped products want in bfloat16.
T, D, V, C, H, G, E, K, F = 15, 24, 40, 8, 4, 2, 5, 2, 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One call of a forward body: its operands, attributes, and the terms of its longest sum."""

    inputs: tuple
    attrs: Mapping[str, object] = field(default_factory=dict)
    length: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """Draws tensors of one dtype from a generator of its own."""

    generator: torch.Generator
    dtype: torch.dtype
    device: str

    def act(self, *shape: int) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return values.to(self.dtype).to(self.device)

    def acc(self, *shape: int) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return values.to(accumulation_dtype(self.dtype)).to(self.device)

    def ints(self, values: Sequence | Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=self.device)

    def below(self, bound: int, *shape: int) -> Tensor:
        return torch.randint(bound, shape, generator=self.generator).to(self.device)


def routings(maker: Maker) -> Mapping[str, Tensor]:
    """Returns choices [T, k] by the way in which they are hard."""
    spread = torch.rand(T, E, generator=maker.generator).argsort(-1)[:, :K]
    skewed = spread.masked_fill(torch.rand(T, K, generator=maker.generator) < 0.5, 1)
    return {
        "random": spread.to(maker.device),
        "skewed": skewed.to(maker.device),
        "empty_expert": maker.ints(torch.where(spread == 2, 4, spread)),
        "all_to_one": torch.full((T, 1), 3, device=maker.device),
        "no_tokens": maker.ints(torch.zeros(0, K)),
    }


def cases(name: str, dtype: torch.dtype, device: str = "cpu") -> Mapping[str, Case]:
    """Returns the calls of the operator of that name, by label."""
    seed = zlib.crc32(name.encode())
    maker = Maker(generator=torch.Generator().manual_seed(seed), dtype=dtype, device=device)
    rooms = (
        _dense, _attention, _router, _balance, _packets, _maps, _movement, _chunks, _experts, _step,
    )  # fmt: skip
    for table in (room() for room in rooms):
        if name in table:
            return table[name](maker)
    raise KeyError(f"no cases for operator {name!r}; add them to weft/testing/case.py")


Table = Mapping[str, Callable[[Maker], Mapping[str, Case]]]


def _dense() -> Table:
    eps = {"eps": 1e-5}
    return {
        "embed": lambda m: {
            "repeats": Case(inputs=(m.below(3, T), m.act(V, D)), length=T),
            "spread": Case(inputs=(m.below(V, T), m.act(V, D)), length=T),
        },
        "rms_norm": lambda m: {"rows": Case(inputs=(m.act(T, D), m.act(D)), attrs=eps, length=D)},
        "add_rms_norm": lambda m: {
            "rows": Case(inputs=(m.act(T, D), m.act(T, D), m.act(D)), attrs=eps, length=D)
        },
        "layer_norm": lambda m: {
            "rows": Case(inputs=(m.act(T, D), m.act(D), m.act(D)), attrs=eps, length=D)
        },
        "add_layer_norm": lambda m: {
            "rows": Case(inputs=(m.act(T, D), m.act(T, D), m.act(D), m.act(D)), attrs=eps, length=D)
        },
        "qkv_project": lambda m: {"rows": Case(inputs=(m.act(T, D), m.act(F, D)), length=D)},
        "qkv_project_shared": lambda m: {
            "second_head": Case(
                inputs=(m.act(T, D), m.act(F, D), m.act(2, G, C, D)), attrs={"head": 1}, length=D
            )
        },
        "project": lambda m: {"rows": Case(inputs=(m.act(T, F), m.act(D, F)), length=D)},
        "router_logits": lambda m: {"rows": Case(inputs=(m.act(T, D), m.act(E, D)), length=D)},
        "add": lambda m: {"rows": Case(inputs=(m.act(T, D), m.act(T, D)))},
        "add_bias": lambda m: {"rows": Case(inputs=(m.act(T, F), m.act(F)), length=T)},
        "shared_gate": lambda m: {
            "rows": Case(inputs=(m.act(T, D), m.act(T, D), m.act(1, D)), length=D)
        },
        "dense_swiglu": lambda m: {"rows": Case(inputs=(m.act(T, 2 * F),))},
        "cross_entropy": _cross_entropy,
        "biased_cross_entropy": lambda m: {
            label: replace(case, inputs=(*case.inputs[:2], m.act(V), *case.inputs[2:]))
            for label, case in _cross_entropy(m).items()
        },
    }


def _cross_entropy(m: Maker) -> Mapping[str, Case]:
    targets = m.below(V, T)
    ignored = targets.clone()
    ignored[[0, 4, 5, 6, 7, T - 1]] = -100  # a whole chunk of four among them
    operands = m.act(T, D), m.act(V, D)
    nothing = torch.full_like(targets, -100)

    def case(wanted: Tensor, divisor: int, chunk: int) -> Case:
        inputs = (*operands, wanted, divisor, m.acc(1))
        return Case(inputs=inputs, attrs={"chunk": chunk}, length=V)

    return {
        "one_chunk": case(targets, T, 1000),
        "chunks": case(targets, 3 * T, 4),
        "ignored": case(ignored, T - 6, 4),
        "nothing_valid": case(nothing, 1, 4),
    }


def _attention() -> Table:
    names = {"heads": H, "kv_heads": G}
    return {
        "rope_table": lambda m: {
            "positions": Case(
                inputs=(m.ints([0, 1, 2, 0, 1, 4095]),),
                attrs={"theta": 1e4, "head_dim": C, "dtype": _real(m)},
            )
        },
        "yarn_rope_table": lambda m: {
            label: Case(
                inputs=(m.ints([0, 1, 2, 0, 1, 9]),),
                attrs={"theta": 1.5e5, "head_dim": 64, "dtype": _real(m), **stretch},
                length=64,
            )
            for label, stretch in _stretches().items()
        },
        "rotate": lambda m: {
            "heads": Case(inputs=(m.act(T, (H + 2 * G) * C), *_angles(m)), attrs=names),
            "half": Case(inputs=(m.act(T, (H + 2 * G) * C), *_angles(m, C // 2)), attrs=names),
        },
        "norm_rotate": lambda m: {
            label: Case(
                inputs=(m.act(T, (H + 2 * G) * C), m.act(C), m.act(C), *_angles(m, turning)),
                attrs={**names, "eps": 1e-6},
                length=C,
            )
            for label, turning in (("heads", C), ("half", C // 2))
        },
        "wide_norm_rotate": lambda m: {
            "heads": Case(
                inputs=(m.act(T, (H + 2 * G) * C), m.act(H * C), m.act(G * C), *_angles(m)),
                attrs={**names, "eps": 1e-6},
                length=H * C,
            )
        },
        "pack_heads": lambda m: {
            f"sp_{sp}": Case(
                inputs=(m.act(T, H, C), m.act(T, G, C), m.act(T, G, C)), attrs={**names, "sp": sp}
            )
            for sp in (1, 2, 4)  # G / 2, G and 2 G ranks: whole heads, one head, replicas
        },
        "split_heads": lambda m: {"share": Case(inputs=(m.act(T, (H + 2 * G) * C),), attrs=names)},
        "join_heads": lambda m: {
            "ranks": Case(inputs=(m.act(3 * T, H, C),), attrs={"sp": 3, "heads": H})
        },
        "join_kv": lambda m: {"heads": Case(inputs=(m.act(T, G, C), m.act(T, G, C)))},
        "order_kv": lambda m: {
            f"sp_{sp}": Case(
                inputs=(m.act(2 * 2 * sp * 3, 2 * G, C),), attrs={"sp": sp, "sequences": 2}
            )
            for sp in (1, 2, 3)
        },
        "attention_part": lambda m: {
            "whole": _part(m, (16,), (range(16),)),
            "one_document": _part(m, (16,), (range(4, 8), range(8, 12))),
            "edges": _part(m, (3, 4, 10, 16), (range(2), range(6, 12), range(15, 16))),
            "equal": _part(m, (8, 16, 24, 32), (range(8, 24),)),
        },
        "attention": lambda m: {
            "one": _documents(m, (16,), G),
            "equal": _documents(m, (16, 32, 48), G),
            "ragged": _documents(m, (1, 2, 10, 18, 26, 37), G),
            "every_head_its_own": _documents(m, (9, 12), H),
        },
        "sink_attention": lambda m: {
            f"{label}_window_{window}": _with_sinks(m, _documents(m, ends, G), window)
            for label, ends in (("one", (16,)), ("ragged", (1, 2, 10, 18, 26, 37)))
            for window in (0, 1, 5)
        },
    }


def _real(m: Maker) -> str:
    return str(accumulation_dtype(m.dtype)).removeprefix("torch.")


def _angles(m: Maker, turning: int = C) -> tuple[Tensor, Tensor]:
    angles = m.acc(T, turning // 2).repeat(1, 2)
    return angles.cos(), angles.sin()


def _stretches() -> Mapping[str, Mapping[str, object]]:
    published = {"factor": 32.0, "original": 4096, "beta_fast": 32.0, "beta_slow": 1.0}
    return {
        "whole": {**published, "truncate": True},
        "exact": {**published, "truncate": False},
        "unstretched": {**published, "factor": 1.0, "truncate": False},
        "no_ramp": {**published, "beta_slow": 32.0, "truncate": False},
    }


def _with_sinks(m: Maker, plain: Case, window: int) -> Case:
    *operands, documents = plain.inputs  # the heads of the second of two ranks
    inputs = (*operands, m.act(2 * H), documents)
    return Case(inputs=inputs, attrs={"first": H, "window": window}, length=plain.length)


def _documents(m: Maker, ends: tuple[int, ...], kv_heads: int) -> Case:
    tokens = ends[-1]
    qkv = m.act(tokens, H, C), m.act(tokens, kv_heads, C), m.act(tokens, kv_heads, C)
    return Case(inputs=(*qkv, segments(ends, m.device)), length=max(tokens, C))


def _part(m: Maker, ends: tuple[int, ...], held: tuple[range, ...]) -> Case:
    q = m.act(sum(map(len, held)), H, C)
    kv = m.act(ends[-1], G, C), m.act(ends[-1], G, C)
    return Case(inputs=(q, *kv, segments(ends, m.device, held=held)), length=max(ends[-1], C))


def _router() -> Table:
    return {
        "select_experts": lambda m: {
            label: Case(inputs=(logits, bias), attrs=attrs, length=E)
            for label, logits, bias, attrs in _selections(m)
        },
        "biased_router_logits": lambda m: {
            "rows": Case(inputs=(m.act(T, D), m.act(E, D), m.act(E)), length=D)
        },
        "select_grouped_experts": lambda m: {
            f"{score}_{groups}_{best}": Case(
                inputs=(2 * m.acc(T, 12), 0.1 * m.acc(12)),
                attrs={
                    "top_k": K,
                    "score": score,
                    "renormalise": True,
                    "scaling": 2.5,
                    "groups": groups,
                    "top_groups": best,
                },
                length=12,
            )
            for score in ("softmax", "sigmoid")
            for groups, best in ((1, 1), (3, 1), (4, 2), (6, 6))
        },
        "select_sparsemixer": lambda m: {
            f"jitter_{jitter}": Case(
                inputs=(m.acc(T, E), 0.01 * m.acc(E)), attrs={"jitter": jitter}, length=E
            )
            for jitter in (0.01, 0.4)  # few scores near the best, and many
        },
        "replay_sparsemixer": lambda m: {
            "near": Case(
                inputs=(5 + m.acc(T, E), m.acc(E), routings(m)["random"]),
                attrs={"jitter": 0.4},
                length=E,
            )
        },
        "replay_experts": lambda m: {
            label: Case(inputs=(logits, bias, routings(m)["random"]), attrs=attrs, length=E)
            for label, logits, bias, attrs in _selections(m)
        },
    }


def _balance() -> Table:
    return {
        "count_load": lambda m: _each_routing(m, {"experts": E, **SHARE}),
        "router_losses": lambda m: {
            label: Case(
                inputs=(2 * m.acc(T, E), m.below(9, ROWS, E), m.acc(E).abs(), m.acc(2)),
                attrs=attrs,
                length=T,
            )
            for label, attrs in _losses()
        },
        "add_load": lambda m: {"load": Case(inputs=(m.below(9, ROWS, E), m.acc(E).round()))},
        "score_choices": lambda m: {
            score: Case(inputs=(m.acc(T, E), routings(m)["random"]), attrs={"score": score})
            for score in ("softmax", "sigmoid")
        },
        "keep_choices": _limited,
        "add_dropped": lambda m: {"dropped": Case(inputs=(m.below(9, 1), m.acc(1).round()))},
        "balance_router": lambda m: {
            label: Case(
                inputs=(m.acc(21).abs().round(), m.acc(2) * 0 + refused, m.acc(3, E), m.acc(3, E)),
                attrs={"rate": 0.25, "first": 4},
            )
            for label, refused in (("taken", 0), ("refused", 1))
        },
    }


# Sequences of 10 tokens of which T are on this rank, from the sixth of the first: two edges inside.
ROWS = 3
SHARE = {"first": 6, "stretch": 10, "rows": ROWS}


def _losses() -> Iterator[tuple[str, Mapping[str, object]]]:
    place = {"top_k": K, "z_coef": 0.2, "scale": 0.25, "first": 6, "sequence": 10, "stretch": 10}
    coefs = ("aux_coef", "device_coef", "sequence_coef", "global_coef")
    every = dict.fromkeys(coefs, 0.3)
    for score in ("softmax", "sigmoid"):
        yield score, {**place, **every, "score": score, "groups": E}
        halves = {"first": 0, "stretch": 5}  # half of each of three sequences
        yield f"{score}_halves", {**place, **every, "score": score, "groups": E, **halves}
        for alone in coefs:
            only = {name: 0.3 * (name == alone) for name in coefs}
            yield f"{score}_{alone}", {**place, **only, "score": score, "groups": 1}


def _limited(m: Maker) -> Mapping[str, Case]:
    """Choices of four experts in two groups, so that a group may be full, empty or at its limit."""

    def case(
        chosen: Tensor, capacity: int, scores: Tensor, first: int = 4, tokens: int = 7
    ) -> Case:
        attrs = {"experts": 4, "groups": 2, "capacity": capacity, "first": first, "tokens": tokens}
        return Case(
            inputs=(
                scores,
                chosen,
            ),
            attrs=attrs,
        )

    spread = torch.rand(T, 4, generator=m.generator).argsort(-1)[:, :K].to(m.device)
    uneven = spread.masked_fill(spread == 3, 0)
    ties = torch.ones_like(m.acc(T, K))
    return {
        "room": case(spread, T * K, m.acc(T, K)),
        "full": case(uneven, 9, m.acc(T, K)),
        "ties": case(uneven, 5, ties),
        "one_group": case(spread % 2, 11, m.acc(T, K).round()),
        "whole": case(spread, 3, m.acc(T, K), 0, T),
    }


def _selections(m: Maker) -> list[tuple[str, Tensor, Tensor, Mapping[str, object]]]:
    found = []
    for score in ("softmax", "sigmoid"):
        for renormalise in (True, False):
            label = f"{score}{'_renormalised' if renormalise else ''}"
            attrs = {"top_k": K, "score": score, "renormalise": renormalise, "scaling": 2.5}
            found.append((label, 2 * m.acc(T, E), 0.1 * m.acc(E), attrs))
            found.append((f"{label}_ties", m.acc(T, 1).repeat(1, E), 0 * m.acc(E), attrs))
    return found


def _packets() -> Table:
    """Values that are whole numbers of steps of E4M3, so that any dtype gives the same bytes."""
    ragged = Splits(send=(5, 0, 7, 3), receive=(2, 6, 0, 1))
    rows, equal = {"columns": 16}, {"ranks": 3, "group": 4}
    return {
        "encode_rows": lambda m: {
            f"{n}_rows": Case(inputs=(_steps(m, n),), attrs=rows) for n in (T, 1, 0)
        },
        "decode_rows": lambda m: {
            f"{n}_rows": Case(
                inputs=(encode_rows(_steps(m, n), **rows),),
                attrs={**rows, "width": D, "dtype": _word(m)},
            )
            for n in (T, 1, 0)
        },
        "decode_row_sums": lambda m: {
            "ranks": Case(
                inputs=(encode_rows(_steps(m, T), **rows),),
                attrs={**rows, "width": D, "dtype": _word(m), "ranks": 3},
                length=3,
            )
        },
        "encode_channels": lambda m: {
            f"reverse_{back}": Case(
                inputs=(_steps(m, sum(ragged.receive if back else ragged.send)), ragged),
                attrs={"reverse": back, "group": 4},
            )
            for back in (False, True)
        },
        "decode_channels": lambda m: {
            f"reverse_{back}": Case(
                inputs=(
                    encode_channels(
                        _steps(m, sum(ragged.send if back else ragged.receive)),
                        ragged, reverse=not back, group=4,
                    ),
                    ragged,
                ),
                attrs={"reverse": back, "group": 4, "dtype": _word(m)},
            )
            for back in (False, True)
        },
        "encode_blocks": lambda m: {"ranks": Case(inputs=(_steps(m, T),), attrs=equal)},
        "decode_blocks": lambda m: {"ranks": Case(**_blocks(m, equal))},
        "decode_block_sums": lambda m: {"ranks": Case(**_blocks(m, equal), length=3)},
    }  # fmt: skip


def _blocks(m: Maker, equal: Mapping[str, int]) -> Mapping[str, Any]:
    packet = encode_blocks(_steps(m, T), ranks=equal["ranks"], group=equal["group"])
    return {"inputs": (packet,), "attrs": {**equal, "rows": T // 3, "dtype": _word(m)}}


def _steps(m: Maker, rows: int) -> Tensor:
    """Eighths of powers of two; 448 in every row and column makes each scale 1."""
    values = (m.below(8, rows, D) + 8.0) * 2.0 ** m.below(5, rows, D).sub(5)
    values = torch.where(m.below(2, rows, D) > 0, values, -values)
    peaks = (
        torch.arange(D, device=values.device) % 4
        == torch.arange(rows, device=values.device)[:, None] % 4
    )
    return values.masked_fill(peaks, 448.0).to(m.dtype)


def _word(m: Maker) -> str:
    return str(m.dtype).removeprefix("torch.")


def _maps() -> Table:
    local = {"first": 1, "local": 2}
    return {
        "plan_rows": lambda m: _each_routing(m, {"experts": E}),
        "count_local": lambda m: _each_routing(m, local),
        "plan_local": lambda m: {
            label: Case(inputs=(chosen, len(rows_of(chosen, 1, 2))), attrs=local)
            for label, chosen in routings(m).items()
        },
        "plan_within": lambda m: {
            f"{label}, room for {rows}": Case(inputs=(chosen,), attrs={**local, "rows": rows})
            for label, chosen in routings(m).items()
            for rows in {min(n, chosen.numel()) for n in (1, len(rows_of(chosen, 1, 2)), E * T)}
        },
        "plan_received": lambda m: {
            label: _received(counts)
            for label, counts in {
                "random": m.below(4, 3, 2),
                "one_source": m.ints([[0, 0], [3, 2], [0, 0]]),
                "one_expert": m.ints([[0, 2], [0, 1], [0, 4]]),
                "nothing": m.ints([[0, 0], [0, 0], [0, 0]]),
            }.items()
        },
        "count_visits": lambda m: _each_routing(m, {"ranks": E, "local": 1}),
        "plan_visits": lambda m: {
            label: Case(inputs=(chosen, _leaving(chosen, 3, 2)), attrs={"ranks": 3, "local": 2})
            for label, chosen in routings(m).items()
        },
        "visits_to_host": lambda m: {"ranks": Case(inputs=(m.below(9, 6), m.below(9, 3, 2)))},
        "splits_to_host": lambda m: {"ranks": Case(inputs=(m.below(9, 6), m.below(9, 3, 2)))},
        "rows_to_host": lambda m: {"experts": Case(inputs=(m.below(9, 4),))},
    }


def _leaving(chosen: Tensor, ranks: int, local: int) -> Splits:
    there = [sum(d in {e // local for e in row} for row in chosen.tolist()) for d in range(ranks)]
    return Splits(send=tuple(there), receive=(0,) * ranks)


def _each_routing(m: Maker, attrs: Mapping[str, object]) -> Mapping[str, Case]:
    return {label: Case(inputs=(c,), attrs=attrs) for label, c in routings(m).items()}


def _received(counts: Tensor) -> Case:
    return Case(inputs=(counts, Splits(send=(0, 0, 0), receive=tuple(counts.sum(1).tolist()))))


def rows_of(chosen: Tensor, first: int, local: int) -> list[int]:
    """Returns the choices of experts [first, first + local), by expert and then by choice."""
    flat = chosen.flatten().tolist()
    here = [c for c, expert in enumerate(flat) if first <= expert < first + local]
    return sorted(here, key=lambda c: flat[c])


def _movement() -> Table:
    def with_maps(make: Callable[[Maker, Tensor, Tensor, Tensor], tuple]) -> Callable:
        return lambda m: {
            label: Case(
                inputs=make(m, chosen, order, slots), attrs={"top_k": chosen.shape[1]}, length=K
            )
            for label, (chosen, order, slots) in _row_maps(m).items()
        }

    def reordered(make: Callable[[Maker], Tensor]) -> Callable:
        order = torch.tensor([4, 0, 3, 6, 1, 2, 5])
        return lambda m: {
            "rows": Case(inputs=(make(m), m.ints(order), m.ints(order.argsort()))),
            "nothing": Case(inputs=(make(m)[:0], m.ints([]), m.ints([]))),
        }

    return {
        "permute": with_maps(lambda m, c, o, s: (m.act(c.shape[0], D), o, s)),
        "permute_weights": with_maps(lambda m, c, o, s: (m.acc(*c.shape), o, s)),
        "permute_gates": lambda m: {
            label: Case(inputs=(m.acc(T, 3), order, slots), attrs={"top_k": slots.shape[1]})
            for label, (chosen, order, slots) in _row_maps(m).items()
            if len(chosen) == T
        },
        "gather_sum": with_maps(lambda m, _, o, s: (m.act(o.shape[0], D), s, o)),
        "reorder": reordered(lambda m: m.act(7, D)),
        "reorder_weights": reordered(lambda m: m.acc(7)),
    }


def _chunks() -> Table:
    part = {"chunk": 1, "chunks": 3}
    counts = ([[2, 0], [1, 3], [0, 0]], [[0, 0], [0, 0], [0, 0]], [[1, 2], [0, 1], [0, 4]])
    return {
        "slice_chunk": lambda m: {
            f"dim_{dim}": Case(inputs=(m.act(6, D),), attrs={"dim": dim, **part}) for dim in (0, 1)
        },
        "join_chunks": lambda m: {
            f"dim_{dim}": Case(inputs=(m.act(6, D), m.act(6, D)), attrs={"dim": dim})
            for dim in (0, 1)
        },
        "take_blocks": lambda m: {
            "ranks": Case(inputs=(m.act(2 * 6, H, C),), attrs={"blocks": 2, **part})
        },
        "join_blocks": lambda m: {
            "ranks": Case(inputs=(m.act(6, D), m.act(6, D), m.act(6, D)), attrs={"blocks": 2})
        },
        "merge_rows": lambda m: {
            "rows": Case(inputs=(m.ints([3, 0, 4, 2, 1]), m.act(2, D), m.act(0, D), m.act(3, D))),
            "nothing": Case(inputs=(m.ints([]), m.act(0, D), m.act(0, D))),
        },
        "place_gathered": lambda m: {
            label: Case(inputs=(order,), attrs={"tokens": T, "chunks": 3, "top_k": slots.shape[1]})
            for label, (_, order, slots) in _row_maps(m).items()
        },
        "place_received": lambda m: {
            "chunks": Case(
                inputs=(Splits(send=(0,), receive=(14,)), *(m.ints(each) for each in counts))
            )
        },
        "all_rows_to_host": lambda m: {"maps": Case(inputs=tuple(m.below(9, 4) for _ in range(3)))},
        "all_splits_to_host": lambda m: {
            "exchanges": Case(
                inputs=(m.below(9, 6), m.below(9, 3, 2), m.below(9, 6), m.below(9, 3, 2))
            )
        },
    }


def _row_maps(m: Maker) -> Mapping[str, tuple[Tensor, Tensor, Tensor]]:
    found = {}
    for label, chosen in routings(m).items():
        found[label] = (chosen, *_row_map(m, chosen, 0, E))
    spread = routings(m)["random"]
    found["local"] = (spread, *_row_map(m, spread, 1, 2))
    found["none_local"] = (spread, *_row_map(m, spread, E, 2))
    return found


def _row_map(m: Maker, chosen: Tensor, first: int, local: int) -> tuple[Tensor, Tensor]:
    order = rows_of(chosen, first, local)
    slots = torch.full((chosen.numel(),), -1)
    for row, choice in enumerate(order):
        slots[choice] = row
    return m.ints(order), m.ints(slots.view(chosen.shape))


def _experts() -> Table:
    loads = {
        "uneven": (3, 9, 1, 5),
        "empty_expert": (4, 0, 7, 0),
        "all_to_one": (0, 0, 11, 0),
        "no_rows": (0, 0, 0, 0),
    }

    def each_load(inner: int, outer: int) -> Callable[[Maker], Mapping[str, Case]]:
        return lambda m: {
            label: Case(
                inputs=(
                    m.act(sum(load), inner),
                    m.act(len(load), outer, inner),
                    m.ints(load).cumsum(0).to(torch.int32),
                ),
                length=inner,
            )
            for label, load in loads.items()
        }

    def biased(width: int, *, weighed: bool) -> Callable[[Maker], Mapping[str, Case]]:
        def made(m: Maker, load: tuple[int, ...]) -> Case:
            ends = m.ints(load).cumsum(0).to(torch.int32)
            weights = (m.acc(sum(load)),) if weighed else ()
            operands = m.act(sum(load), width), *weights, m.act(len(load), width), ends
            return Case(inputs=operands, length=max(sum(load), width))

        return lambda m: {label: made(m, load) for label, load in loads.items()}

    return {
        "add_expert_bias": biased(2 * F, weighed=False),
        "add_weighted_bias": biased(D, weighed=True),
        "clamped_swiglu": lambda m: {
            f"{rows}_rows": Case(
                inputs=(2 * m.act(rows, 2 * F), m.acc(rows)),
                attrs={"alpha": 1.702, "limit": 1.5},  # tight: many operands are clamped
                length=F,
            )
            for rows in (18, 0)
        },
        "clamped_glu": lambda m: {
            f"{rows}_rows": Case(
                inputs=(2 * m.act(rows, 2 * F),), attrs={"alpha": 1.702, "limit": 1.5}, length=F
            )
            for rows in (18, 0)
        },
        "expert_up": each_load(D, 2 * F),
        "expert_down": each_load(F, D),
        "weighted_down": lambda m: {
            label: replace(case, inputs=(*case.inputs, m.acc(len(case.inputs[0]))))
            for label, case in each_load(F, D)(m).items()
        },
        "swiglu": lambda m: {
            f"{rows}_rows": Case(
                inputs=(m.act(rows, 2 * F), m.acc(rows), m.ints((rows // 3, rows)).to(torch.int32)),
                length=F,
            )
            for rows in (18, 0)
        },
    }


def _step() -> Table:
    betas = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}

    def update(m: Maker, verdict: list[float], decay: int, step: int) -> Case:
        wide = accumulation_dtype(m.dtype)
        state = m.acc(21), m.acc(21), m.acc(21).square()
        signals = m.acc(21), torch.tensor(verdict, dtype=wide, device=m.device)
        own = state[0].to(m.dtype)
        return Case(inputs=(*signals, (3e-3, 0.1, step), *state, own, decay), attrs=betas)

    def stats(
        m: Maker,
        loss: float,
        norm2: float,
        bounds: tuple[float, float] = (0, 0),
        overflow: float = 0.0,
    ) -> Case:
        sums = [loss, 0.1, 0.2, norm2, 0.0, *bounds, 3.0, 4.0, overflow]
        values = torch.tensor(sums, dtype=accumulation_dtype(m.dtype), device=m.device)
        return Case(inputs=(values,), attrs={"clip_norm": 1.0})

    nan, inf = float("nan"), float("inf")
    return {
        **_gradients(),
        "square_sum": lambda m: {"shard": Case(inputs=(m.acc(1001), m.acc(1)), length=1001)},
        "decide": lambda m: {
            "clipped": stats(m, 2.0, 9.0),
            "short": stats(m, 2.0, 0.25),
            "zero": stats(m, 2.0, 0.0),
            "loss_not_a_number": stats(m, nan, 9.0),
            "norm_infinite": stats(m, 2.0, inf),
            "norm_not_a_number": stats(m, 2.0, nan),
            "within_bounds": stats(m, 2.0, 9.0, (0.25, 0.0625)),
            "loss_above_its_bound": stats(m, 2.0, 9.0, (1.0, 0.0625)),
            "norm_above_its_bound": stats(m, 2.0, 9.0, (0.25, 0.25)),
            "rows_without_room": stats(m, 2.0, 9.0, overflow=3.0),
        },
        "round_params": lambda m: {"shard": Case(inputs=(m.acc(21), m.act(21)))},
        "adamw": lambda m: {
            "first_step": update(m, [1.0, 0.0], 8, 1),
            "clipped": update(m, [0.25, 0.0], 8, 7),
            "all_decayed": update(m, [1.0, 0.0], 21, 3),
            "none_decayed": update(m, [1.0, 0.0], 0, 3),
            "refused": update(m, [nan, 1.0], 8, 3),
        },
    }


def _gradients() -> Table:
    """Gradients on a compressed wire: blocks of 8, and more than one stretch of the cast."""

    def narrow(m: Maker, *shape: int) -> Tensor:
        return m.acc(*shape).to(torch.bfloat16)

    def received(m: Maker, ranks: int, size: int) -> Case:
        inputs = narrow(m, ranks * size), m.acc(ranks * size)
        return Case(inputs=inputs, attrs={"ranks": ranks}, length=ranks)

    def block(m: Maker, *inputs: Tensor, **attrs: object) -> Mapping[str, Case]:
        return {"own": Case(inputs=(*inputs, narrow(m, 24)), attrs={"block": 1, **attrs})}

    return {
        "encode_grad": lambda m: {
            f"{size}_elements": Case(inputs=(m.acc(size),)) for size in (8, 4096, 9000)
        },
        "decode_grad": lambda m: {"two": received(m, 2, 16), "five": received(m, 5, 8)},
        "take_block": lambda m: block(m, ranks=3),
        "add_block": lambda m: block(m, narrow(m, 8)),
        "add_shard": lambda m: {"shard": Case(inputs=(m.acc(8), m.acc(8)))},
        "clear_grad": lambda m: {"bucket": Case(inputs=(m.acc(24), m.acc(8)))},
        "widen_grad": lambda m: {"shard": Case(inputs=(narrow(m, 8),))},
    }
