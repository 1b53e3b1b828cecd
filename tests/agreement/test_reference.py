"""Every forward body against its operator's formula, written out by element, in float64.

The formulas share nothing with the bodies: Python loops and scalars where the bodies have gathers
and products.
"""

import math
import struct

import pytest
import torch

from weft.graph.opset import OPS, Lane, Tolerance
from weft.ops.registry import cpu_bodies, reference_bodies
from weft.ops.rows import Splits
from weft.testing.case import cases
from weft.testing.tolerance import relative_bound, require_close

TABLES = {"reference": reference_bodies(), "cpu": {**reference_bodies(), **cpu_bodies()}}


def real(values):
    return torch.tensor(values, dtype=torch.float64)


def summed(x, y):
    pairs = zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
    return real([a + b for a, b in pairs]).view(x.shape)


def embed(tokens, w):
    return torch.stack([w[t] for t in tokens.tolist()])


def rope_table(positions, *, theta, head_dim, dtype):
    def table(function):
        return real(
            [
                [
                    function(p / theta ** (2 * (c % (head_dim // 2)) / head_dim))
                    for c in range(head_dim)
                ]
                for p in positions.tolist()
            ]
        )

    return table(math.cos), table(math.sin)


def rms_norm(x, w, *, eps):
    rstd = real([1 / math.sqrt(sum(v * v for v in row) / len(row) + eps) for row in x.tolist()])
    return torch.einsum("td,d,t->td", x, w, rstd), rstd


def add_rms_norm(x, r, w, *, eps):
    return (x + r, *rms_norm(x + r, w, eps=eps))


def layer_norm(x, w, b, *, eps):
    mean = [sum(row) / len(row) for row in x.tolist()]
    variance = [
        sum((v - m) ** 2 for v in row) / len(row) for row, m in zip(x.tolist(), mean, strict=True)
    ]
    rstd = real([1 / math.sqrt(v + eps) for v in variance])
    return (x - real(mean)[:, None]) * rstd[:, None] * w + b, real(mean), rstd


def add_layer_norm(x, r, w, b, *, eps):
    return (x + r, *layer_norm(x + r, w, b, eps=eps))


def project(x, w):
    return torch.einsum("td,nd->tn", x, w)


def yarn_rope_table(
    positions, *, theta, head_dim, dtype, factor, original, beta_fast, beta_slow, truncate
):
    def edge(beta):
        return head_dim * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(theta))

    low, high = edge(beta_fast), edge(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    scale = 0.1 * math.log(factor) + 1

    def angle(p, c):
        i = c % (head_dim // 2)
        turn = theta ** (2 * i / head_dim)
        kept = 1 - min(max((i - low) / (high - low), 0), 1)
        return p * (kept / turn + (1 - kept) / (factor * turn))

    def table(function):
        rows = [
            [scale * function(angle(p, c)) for c in range(head_dim)] for p in positions.tolist()
        ]
        return real(rows)

    return table(math.cos), table(math.sin)


def turned(x, cos, sin):
    out = x.clone()
    half = cos.shape[-1] // 2
    for c in range(half):
        a, b = x[..., c], x[..., c + half]
        out[..., c] = a * cos[:, None, c] - b * sin[:, None, c]
        out[..., c + half] = b * cos[:, None, c] + a * sin[:, None, c]
    return out


def three(qkv, heads, kv_heads):
    channels = qkv.shape[-1] // (heads + 2 * kv_heads)
    each = [qkv[:, i * channels : (i + 1) * channels] for i in range(heads + 2 * kv_heads)]
    parts = each[:heads], each[heads : heads + kv_heads], each[heads + kv_heads :]
    return [torch.stack(part, 1) for part in parts]


def rotate(qkv, cos, sin, *, heads, kv_heads):
    q, k, v = three(qkv, heads, kv_heads)
    return turned(q, cos, sin), turned(k, cos, sin), v


def norm_rotate(qkv, q_norm, k_norm, cos, sin, *, heads, kv_heads, eps):
    q, k, v = three(qkv, heads, kv_heads)
    rstd = torch.cat([(x.pow(2).mean(-1) + eps).pow(-0.5) for x in (q, k)], 1)
    q = q * rstd[:, :heads, None] * q_norm
    k = k * rstd[:, heads:, None] * k_norm
    return turned(q, cos, sin), turned(k, cos, sin), v, rstd


def wide_norm_rotate(qkv, q_norm, k_norm, cos, sin, *, heads, kv_heads, eps):
    q, k, v = three(qkv, heads, kv_heads)
    rstd = torch.stack([(x.pow(2).mean((1, 2)) + eps).pow(-0.5) for x in (q, k)], 1)
    q = q * rstd[:, 0, None, None] * q_norm.view(heads, -1)
    k = k * rstd[:, 1, None, None] * k_norm.view(kv_heads, -1)
    return turned(q, cos, sin), turned(k, cos, sin), v, rstd


def pack_heads(q, k, v, *, sp, heads, kv_heads):
    share, kv_share = heads // sp, max(kv_heads // sp, 1)
    blocks = []
    for rank in range(sp):
        first = rank * kv_heads // sp
        mine = [q[:, rank * share + j] for j in range(share)]
        mine += [x[:, first + j] for x in (k, v) for j in range(kv_share)]
        blocks.append(torch.cat(mine, 1))
    return torch.cat(blocks)


def split_heads(p, *, heads, kv_heads):
    return tuple(three(p, heads, kv_heads))


def join_heads(p, *, sp, heads):
    tokens = p.shape[0] // sp
    rows = [
        torch.cat([p[rank * tokens + t, j] for rank in range(sp) for j in range(heads)])
        for t in range(tokens)
    ]
    return torch.stack(rows)


def attention(q, k, v, segments):
    tokens, heads, channels = q.shape
    out, lse = torch.zeros_like(q), torch.zeros(heads, tokens, dtype=q.dtype)
    starts = (0, *segments.ends)
    for start, end in zip(starts, segments.ends, strict=False):
        for t in range(start, end):
            for j in range(heads):
                g = j * k.shape[1] // heads
                scores = k[start : t + 1, g] @ q[t, j] / math.sqrt(channels)
                total = scores.exp().sum()
                out[t, j] = (scores.exp() / total) @ v[start : t + 1, g]
                lse[j, t] = total.log()
    return out, lse


def attention_part(q, k, v, segments):
    held = [t for part in segments.held for t in part]
    whole = q.new_zeros(len(k), *q.shape[1:])
    whole[held] = q
    out, lse = attention(whole, k, v, segments)
    return out[held], lse[:, held]


def order_kv(p, *, sp, sequences):
    size = len(p) // (2 * sp * sequences)
    rows = []
    for b in range(sequences):
        for chunk in range(2 * sp):
            rank, late = (chunk, 0) if chunk < sp else (2 * sp - 1 - chunk, 1)
            first = ((rank * sequences + b) * 2 + late) * size
            rows += [p[first + i] for i in range(size)]
    whole = torch.stack(rows)
    return whole[:, : p.shape[1] // 2], whole[:, p.shape[1] // 2 :]


def qkv_project_shared(h, w, kv, *, head):
    return project(h, torch.cat((w, kv[0, head], kv[1, head])))


def sink_attention(q, k, v, sinks, segments, *, first, window):
    tokens, heads, channels = q.shape
    out, lse = torch.zeros_like(q), torch.zeros(heads, tokens, dtype=q.dtype)
    starts = (0, *segments.ends)
    for start, end in zip(starts, segments.ends, strict=False):
        for t in range(start, end):
            seen = slice(max(start, t - window + 1) if window else start, t + 1)
            for j in range(heads):
                g = j * k.shape[1] // heads
                scores = k[seen, g] @ q[t, j] / math.sqrt(channels)
                total = scores.exp().sum() + sinks[first + j].exp()
                out[t, j] = (scores.exp() / total) @ v[seen, g]
                lse[j, t] = total.log()
    return out, lse


def scores_of(logits, score):
    if score == "sigmoid":
        return 1 / (1 + (-logits).exp())
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def weights_of(logits, chosen, *, top_k, score, renormalise, scaling):
    rows = []
    for row, experts in zip(scores_of(logits, score), chosen.tolist(), strict=True):
        picked = [row[e].item() for e in experts]
        total = sum(picked) if renormalise else 1.0
        rows.append([scaling * value / total for value in picked])
    return real(rows)


def select_experts(logits, bias, **attrs):
    keys = (scores_of(logits, attrs["score"]) + bias).tolist()
    experts = range(logits.shape[-1])
    chosen = torch.tensor(
        [sorted(experts, key=lambda e: -row[e])[: attrs["top_k"]] for row in keys]
    )
    return weights_of(logits, chosen, **attrs), chosen


def select_grouped_experts(logits, bias, *, groups, top_groups, **attrs):
    size = logits.shape[-1] // groups
    chosen = []
    for row in (scores_of(logits, attrs["score"]) + bias).tolist():
        worth = [sum(sorted(row[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        best = sorted(range(groups), key=lambda g: -worth[g])[:top_groups]
        legal = [e for e in range(len(row)) if e // size in best]
        chosen.append(sorted(legal, key=lambda e: -row[e])[: attrs["top_k"]])
    chosen = torch.tensor(chosen)
    return weights_of(logits, chosen, **attrs), chosen


def replay_experts(logits, bias, forced, **attrs):
    return weights_of(logits, forced, **attrs), forced


def sparsemixer_weights(logits, chosen, jitter):
    rows = []
    for row, pair in zip(logits.tolist(), chosen.tolist(), strict=True):
        found, gone = [], set()
        for e in pair:
            left = [i for i in range(len(row)) if i not in gone]
            best = max(row[i] for i in left)
            near = [i for i in left if (best - row[i]) / max(abs(row[i]), best) <= 2 * jitter]
            total = sum(math.exp(row[i]) for i in near)
            found.append(math.exp(row[e]) / total if e in near else 0.0)
            gone.add(e)
        rows.append(found)
    return real(rows)


def select_sparsemixer(logits, bias, *, jitter):
    keys = (logits + bias).tolist()
    chosen = [sorted(range(len(row)), key=lambda e, row=row: -row[e])[:2] for row in keys]
    return sparsemixer_weights(logits, torch.tensor(chosen), jitter), torch.tensor(chosen)


def counted(chosen, experts):
    flat = chosen.flatten().tolist()
    return torch.tensor([flat.count(e) for e in experts])


def count_load(chosen, *, experts, first, stretch, rows):
    load = [[0] * experts for _ in range(rows)]
    for t, choices in enumerate(chosen.tolist()):
        for e in choices:
            load[(first + t) // stretch][e] += 1
    return torch.tensor(load)


def router_losses(logits, load, past, losses, *, top_k, score, z_coef, scale, first, sequence,
                  stretch, groups, aux_coef, device_coef, sequence_coef, global_coef):  # fmt: skip
    aux = z = 0.0
    rows, experts = load.shape
    tokens, size = rows * sequence, experts // groups
    whole = [sum(load[b, e].item() for b in range(rows)) for e in range(experts)]
    for t, row in enumerate(logits.tolist()):
        p = scores_of(real(row), score)
        p = (p / p.sum()).tolist()
        for e in range(experts):
            mates = range(e // size * size, e // size * size + size)
            f = experts / (top_k * tokens) * whole[e]
            g = experts / (top_k * tokens) * sum(whole[m] for m in mates) / size
            s = experts / (top_k * sequence) * load[(first + t) // stretch, e].item()
            a = past[e].item()
            terms = aux_coef * f + device_coef * g + sequence_coef * s + global_coef * a
            aux += p[e] * terms / tokens
        z += math.log(sum(math.exp(v) for v in row)) ** 2 / tokens
    return losses + real([scale * aux, scale * z_coef * z])


def patterns():
    """Every pattern of eight bits and its value."""
    for byte in range(256):
        exponent, mantissa = byte % 128 // 8, byte % 8
        size = mantissa * 2.0**-9 if not exponent else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        yield byte, math.nan if byte % 128 == 127 else math.copysign(size, 64 - byte // 128 * 128)


VALUES = dict(patterns())


def byte_of(value):
    return min(
        (
            b
            for b, v in VALUES.items()
            if not math.isnan(v) and math.copysign(1, v) == math.copysign(1, value)
        ),
        key=lambda b: (abs(VALUES[b] - value), b % 2),
    )


def scaled(values):
    """The bytes and the scale of values that share one."""
    scale = max(map(abs, values)) / 448 if values else 0.0
    scale = struct.unpack("<f", struct.pack("<f", scale))[0]
    return [byte_of(v / scale) for v in values], list(struct.pack("<f", scale))


def encode_rows(x, *, columns):
    rows = []
    for row in x.tolist():
        parts = [scaled(row[i : i + columns]) for i in range(0, len(row), columns)]
        rows.append([b for k in (0, 1) for p in parts for b in p[k]])
    width = x.shape[1] + 4 * -(-x.shape[1] // columns)
    return torch.tensor(rows, dtype=torch.uint8).view(len(rows), width)


def decode_rows(packet, *, columns, width, dtype):
    rows = []
    for row in packet.tolist():
        scales = [struct.unpack("<f", bytes(row[i : i + 4]))[0] for i in range(width, len(row), 4)]
        rows.append([VALUES[b] * scales[c // columns] for c, b in enumerate(row[:width])])
    return real(rows).view(len(rows), width)


def encode_channels(x, splits, *, reverse, group):
    return packed(x, splits.receive if reverse else splits.send, group)


def packed(x, blocks, group):
    out = []
    for block in x.split(list(blocks)):
        scales = []
        for part in block.split(group) if len(block) else ():
            columns = [scaled(column) for column in part.T.tolist()]
            out += [list(row) for row in zip(*(c[0] for c in columns), strict=True)]
            scales += [b for c in columns for b in c[1]]
        out += [scales[i : i + x.shape[1]] for i in range(0, len(scales), x.shape[1])]
    return torch.tensor(out, dtype=torch.uint8)


def decode_channels(packet, splits, *, reverse, group, dtype):
    return unpacked(packet, splits.send if reverse else splits.receive, group)


def unpacked(packet, blocks, group):
    rows, width, start = [], packet.shape[1], 0
    for block in blocks:
        flat = packet[start + block : start + block + 4 * -(-block // group)].flatten().tolist()
        for i in range(block):
            at = i // group * 4 * width
            scales = struct.unpack(f"<{width}f", bytes(flat[at : at + 4 * width]))
            row = packet[start + i].tolist()
            rows.append([VALUES[b] * s for b, s in zip(row, scales, strict=True)])
        start += block + 4 * -(-block // group)
    return real(rows).view(len(rows), width)


def decode_blocks(packet, *, ranks, rows, group, dtype):
    return unpacked(packet, [rows] * ranks, group)


def decode_row_sums(packet, *, ranks, **attrs):
    return decode_rows(packet, **attrs).unflatten(0, (ranks, -1)).sum(0)


def decode_block_sums(packet, *, ranks, rows, group, dtype):
    return unpacked(packet, [rows] * ranks, group).unflatten(0, (ranks, -1)).sum(0)


def score_choices(logits, chosen, *, score):
    rows = zip(logits, chosen.tolist(), strict=True)
    return torch.stack([scores_of(row, score)[experts] for row, experts in rows])


def keep_choices(scores, chosen, *, experts, groups, capacity, first, tokens):
    kept = chosen.clone().flatten().tolist()
    flat = scores.flatten().tolist()
    for group in range(groups):
        mine = [c for c, e in enumerate(kept) if e < experts and e // (experts // groups) == group]
        for c in sorted(mine, key=lambda c: (-flat[c], c))[capacity:]:
            kept[c] = experts
    own = torch.tensor(kept).view(chosen.shape)[first : first + tokens]
    return own, torch.tensor([own.flatten().tolist().count(experts)])


def balance_router(stats, verdict, biases, past, *, rate, first):
    if verdict[1]:
        return biases.clone(), past.clone()
    layers, experts = biases.shape
    moved, seen = biases.clone(), past.clone()
    for i in range(layers):
        load = stats[first + i * experts : first + (i + 1) * experts].tolist()
        mean = sum(load) / experts
        for e in range(experts):
            moved[i, e] += rate * ((load[e] < mean) - (load[e] > mean))
            seen[i, e] = load[e] / max(mean, 1)
    return moved, seen


def sorted_rows(chosen, first, local):
    flat = chosen.flatten().tolist()
    order = [c for e in range(first, first + local) for c in range(len(flat)) if flat[c] == e]
    slots = [order.index(c) if c in order else -1 for c in range(len(flat))]
    ends = [sum(1 for c in order if flat[c] <= e) for e in range(first, first + local)]
    order = torch.tensor(order, dtype=torch.int64)
    slots = torch.tensor(slots, dtype=torch.int64).view(chosen.shape)
    return order, slots, torch.tensor(ends, dtype=torch.int32)


def rows_within(chosen, *, rows, first, local):
    order, slots, ends = sorted_rows(chosen, first, local)
    held = min(len(order), rows)
    filled = order[:held].tolist() + [0] * (rows - held)
    slots = torch.where(slots < held, slots, -1)
    overflow = torch.tensor([len(order) - held])
    return torch.tensor(filled, dtype=torch.int64), slots, ends.clamp_max(held), overflow


def visits_of(chosen, rank, local):
    return [t for t, row in enumerate(chosen.tolist()) if rank in {e // local for e in row}]


def count_visits(chosen, *, ranks, local):
    flat = [e // local for e in chosen.flatten().tolist()]
    return torch.tensor(
        [n for d in range(ranks) for n in (len(visits_of(chosen, d, local)), flat.count(d))]
    )


def plan_visits(chosen, splits, *, ranks, local):
    visits = [(t, d) for d in range(ranks) for t in visits_of(chosen, d, local)]
    slots = [[visits.index((t, d)) if (t, d) in visits else -1 for d in range(ranks)]
             for t in range(len(chosen))]  # fmt: skip
    asked = [[e - d * local if e // local == d else -1 for e in chosen[t].tolist()]
             for t, d in visits]  # fmt: skip
    return (
        torch.tensor([t * ranks + d for t, d in visits], dtype=torch.int64),
        torch.tensor(slots, dtype=torch.int64).view(len(chosen), ranks),
        torch.tensor(asked, dtype=torch.int64).view(len(visits), chosen.shape[1]),
    )


def visits_to_host(sent, received):
    send, arrived = sent.view(-1, 2).tolist(), received.tolist()
    splits = Splits(send=tuple(v for v, _ in send), receive=tuple(v for v, _ in arrived))
    return splits, sum(rows for _, rows in arrived)


def permute_gates(gates, order, slot_row, *, top_k):
    return stacked([gates[c // top_k] for c in order.tolist()], gates)


def plan_rows(chosen, *, experts):
    order, slots, ends = sorted_rows(chosen, 0, experts)
    return order, slots, counted(chosen, range(experts)), ends


def plan_received(counts, splits):
    arriving = [
        (expert, source)
        for source, row in enumerate(counts.tolist())
        for expert, number in enumerate(row)
        for _ in range(number)
    ]
    assert len(arriving) == sum(splits.receive)
    order = sorted(range(len(arriving)), key=lambda i: arriving[i])
    inverse = [order.index(i) for i in range(len(order))]
    ends = [sum(1 for expert, _ in arriving if expert <= e) for e in range(counts.shape[1])]
    return (
        torch.tensor(order, dtype=torch.int64),
        torch.tensor(inverse, dtype=torch.int64),
        torch.tensor(ends, dtype=torch.int32),
    )


def stacked(rows, like):
    return torch.stack(rows) if rows else like.new_zeros(0, *like.shape[1:])


def permute(h, order, slot_row, *, top_k):
    return stacked([h[c // top_k] for c in order.tolist()], h)


def permute_weights(weights, order, slot_row, *, top_k):
    return real([weights[c // top_k, c % top_k].item() for c in order.tolist()])


def reorder(rows, order, inverse):
    return stacked([rows[i] for i in order.tolist()], rows)


def gather_sum(rows, slot_row, order, *, top_k):
    zero = torch.zeros(rows.shape[1], dtype=rows.dtype)
    return stacked([sum([rows[i] for i in s if i >= 0], zero) for s in slot_row.tolist()], rows)


def expert_up(rows, w, ends):
    def expert(row):
        return next(e for e, end in enumerate(ends.tolist()) if row < end)

    found = [w[expert(i)] @ row for i, row in enumerate(rows)]
    return torch.stack(found) if found else rows.new_zeros(0, w.shape[1])


def of_rows(b, ends, rows):
    expert = [next(e for e, end in enumerate(ends.tolist()) if row < end) for row in range(rows)]
    return stacked([b[e] for e in expert], b)


def clamped_swiglu(u, row_weights, *, alpha, limit):
    half = u.shape[-1] // 2
    rows = []
    for row, weight in zip(u.tolist(), row_weights.tolist(), strict=True):
        g = [min(v, limit) for v in row[:half]]
        t = [min(max(v, -limit), limit) for v in row[half:]]
        rows.append(
            [(b + 1) * a / (1 + math.exp(-alpha * a)) * weight for a, b in zip(g, t, strict=True)]
        )
    return real(rows) if rows else u.new_zeros(0, half)


def dense_swiglu(u):
    half = u.shape[-1] // 2
    return u[:, :half] / (1 + (-u[:, :half]).exp()) * u[:, half:]


def shared_gate(f, h, w):
    gate = [1 / (1 + math.exp(-float(w[0] @ row))) for row in h]
    return torch.stack([s * row for s, row in zip(gate, f, strict=True)]), real(gate)


def cross_entropy(h, w, targets, divisor, loss, *, chunk):
    logits = project(h, w)
    terms = [
        row.exp().sum().log() - row[t]
        for row, t in zip(logits, targets.tolist(), strict=True)
        if t >= 0
    ]
    return loss + sum(terms, torch.zeros(1, dtype=h.dtype)) / divisor


def splits_to_host(sent, received):
    share = len(sent) // received.shape[0]
    send = [sum(sent[i : i + share].tolist()) for i in range(0, len(sent), share)]
    return Splits(send=tuple(send), receive=tuple(sum(row) for row in received.tolist()))


def decide(stats, *, clip_norm):
    loss, norm2, loss_bound, norm2_bound = (stats[i].item() for i in (0, 3, 5, 6))
    factor = min(1.0, clip_norm / (math.sqrt(norm2) + 1e-6)) if not math.isnan(norm2) else math.nan
    finite = math.isfinite(loss) and math.isfinite(norm2)
    above = loss * loss_bound > 1 or norm2 * norm2_bound > 1
    return real([factor, float(not finite or above or stats[-1].item() > 0)])


def adamw(shard, verdict, rates, master, mean, square, own, decay, *, beta1, beta2, eps):
    lr, weight_decay, step = rates
    found = []
    rows = zip(*(x.tolist() for x in (shard, master, mean, square)), strict=True)
    for i, (gradient, p, m, v) in enumerate(rows):
        g = gradient * verdict[0].item()
        first = (beta1 * m + (1 - beta1) * g) / (1 - beta1**step)
        second = (beta2 * v + (1 - beta2) * g * g) / (1 - beta2**step)
        root = math.sqrt(second) if not math.isnan(g) else math.nan
        decayed = p * (1 - lr * weight_decay) if i < decay else p
        found.append(decayed - lr * first / (root + eps))
    return master if verdict[1] else real(found)


def round_params(master, own):
    return master


def rounded(values):
    """To the nearest number of eight digits, ties to the even one."""
    found = []
    for v in values:
        digits, exponent = math.frexp(v)
        found.append(math.ldexp(round(digits * 256), exponent - 8))
    return found


def decode_grad(received, grad, *, ranks):
    blocks = torch.tensor(received.tolist()).view(ranks, -1).tolist()
    return real([sum(terms) for terms in zip(*blocks, strict=True)])


def block_of(values, block, size):
    return values.tolist()[block * size : (block + 1) * size]


def add_block(arrived, sent, *, block):
    own = block_of(sent, block, len(arrived))
    return real(rounded([a + b for a, b in zip(arrived.tolist(), own, strict=True)]))


def stretch(size, chunk, chunks):
    return range(chunk * size // chunks, (chunk + 1) * size // chunks)


def slice_chunk(x, *, dim, chunk, chunks):
    here = list(stretch(x.shape[dim], chunk, chunks))
    return x[here] if dim == 0 else x[:, here]


def join_chunks(*parts, dim):
    rows = torch.stack([row for part in parts for row in part.transpose(0, dim)])
    return rows.transpose(0, dim)


def take_blocks(x, *, blocks, chunk, chunks):
    size = len(x) // blocks
    return torch.stack(
        [x[b * size + t] for b in range(blocks) for t in stretch(size, chunk, chunks)]
    )


def join_blocks(*parts, blocks):
    size = len(parts[0]) // blocks
    return torch.stack([p[b * size + t] for b in range(blocks) for p in parts for t in range(size)])


def merge_rows(places, *parts):
    rows = [row for part in parts for row in part]
    return torch.stack([rows[i] for i in invert(places)]) if rows else parts[0]


def invert(places):
    return sorted(range(len(places)), key=places.tolist().__getitem__)


def place_gathered(order, *, tokens, chunks, top_k):
    chunk = [c // top_k % tokens // (tokens // chunks) for c in order.tolist()]
    places = [row for wanted in range(chunks) for row, c in enumerate(chunk) if c == wanted]
    return torch.tensor(places, dtype=torch.int64)


def place_received(_, *received):
    ranks, experts = received[0].shape
    runs = [
        (expert, rank, chunk)
        for chunk in range(len(received))
        for expert in range(experts)
        for rank in range(ranks)
    ]
    rows = [
        (run, i) for run in runs for i in range(int(received[run[2]][run[1], run[0]]))
    ]  # as the chunks have them
    return torch.tensor([sorted(rows).index(row) for row in rows])


def all_splits_to_host(*pairs):
    return tuple(splits_to_host(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True))


WRITTEN_OUT = {
    "slice_chunk": slice_chunk,
    "join_chunks": join_chunks,
    "take_blocks": take_blocks,
    "join_blocks": join_blocks,
    "merge_rows": merge_rows,
    "place_gathered": place_gathered,
    "place_received": place_received,
    "all_rows_to_host": lambda *counts: tuple(sum(each.tolist()) for each in counts),
    "all_splits_to_host": all_splits_to_host,
    "embed": embed,
    "rope_table": rope_table,
    "yarn_rope_table": yarn_rope_table,
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "layer_norm": layer_norm,
    "add_layer_norm": add_layer_norm,
    "qkv_project": project,
    "rotate": rotate,
    "norm_rotate": norm_rotate,
    "wide_norm_rotate": wide_norm_rotate,
    "pack_heads": pack_heads,
    "split_heads": split_heads,
    "attention": attention,
    "sink_attention": sink_attention,
    "join_heads": join_heads,
    "project": project,
    "add": summed,
    "add_bias": lambda x, b: torch.stack([row + b for row in x]),
    "router_logits": project,
    "biased_router_logits": lambda h, w, b: project(h, w) + b,
    "select_experts": select_experts,
    "select_grouped_experts": select_grouped_experts,
    "replay_experts": replay_experts,
    "select_sparsemixer": select_sparsemixer,
    "replay_sparsemixer": lambda logits, _, forced, *, jitter: (
        sparsemixer_weights(logits, forced, jitter),
        forced,
    ),
    "count_load": count_load,
    "router_losses": router_losses,
    "add_load": lambda load, tally: summed(real(load.sum(0).tolist()), tally),
    "score_choices": score_choices,
    "keep_choices": keep_choices,
    "add_dropped": summed,
    "balance_router": balance_router,
    "plan_rows": plan_rows,
    "plan_received": plan_received,
    "count_local": lambda chosen, *, first, local: counted(chosen, range(first, first + local)),
    "plan_local": lambda chosen, _, *, first, local: sorted_rows(chosen, first, local),
    "plan_within": rows_within,
    "permute": permute,
    "permute_weights": permute_weights,
    "reorder": reorder,
    "reorder_weights": reorder,
    "gather_sum": gather_sum,
    "expert_up": expert_up,
    "swiglu": lambda u, row_weights, _: dense_swiglu(u) * row_weights[:, None],
    "expert_down": expert_up,
    "add_expert_bias": lambda x, b, ends: x + of_rows(b, ends, len(x)),
    "clamped_swiglu": clamped_swiglu,
    "clamped_glu": lambda u, **rule: clamped_swiglu(u, u.new_ones(len(u)), **rule),
    "add_weighted_bias": lambda x, r, b, ends: x + r[:, None] * of_rows(b, ends, len(x)),
    "weighted_down": lambda s, w, ends, weights: expert_up(s, w, ends) * weights[:, None],
    "encode_rows": encode_rows,
    "decode_rows": decode_rows,
    "decode_row_sums": decode_row_sums,
    "encode_channels": encode_channels,
    "decode_channels": decode_channels,
    "encode_blocks": lambda x, *, ranks, group: packed(x, [len(x) // ranks] * ranks, group),
    "decode_blocks": decode_blocks,
    "decode_block_sums": decode_block_sums,
    "dense_swiglu": dense_swiglu,
    "shared_gate": shared_gate,
    "cross_entropy": cross_entropy,
    "biased_cross_entropy": lambda h, w, b, *rest, **attrs: cross_entropy(
        torch.cat((h, torch.ones_like(h[:, :1])), 1), torch.cat((w, b[:, None]), 1), *rest, **attrs
    ),
    "splits_to_host": splits_to_host,
    "rows_to_host": lambda counts: sum(counts.tolist()),
    "encode_grad": lambda grad: real(rounded(grad.tolist())),
    "decode_grad": decode_grad,
    "take_block": lambda sent, *, block, ranks: real(block_of(sent, block, len(sent) // ranks)),
    "add_block": add_block,
    "widen_grad": lambda partial: real(partial.tolist()),
    "attention_part": attention_part,
    "join_kv": lambda k, v: torch.stack([torch.stack([*a, *b]) for a, b in zip(k, v, strict=True)]),
    "order_kv": order_kv,
    "qkv_project_shared": qkv_project_shared,
    "count_visits": count_visits,
    "plan_visits": plan_visits,
    "permute_gates": permute_gates,
    "visits_to_host": visits_to_host,
    "add_shard": summed,
    "clear_grad": lambda grad, _: real([0.0] * len(grad)),
    "square_sum": lambda shard, norm2: norm2 + sum(v * v for v in shard.tolist()),
    "decide": decide,
    "adamw": adamw,
    "round_params": round_params,
}  # fmt: skip
CASES = [(name, label) for name in WRITTEN_OUT for label in cases(name, torch.float64)]


def test_every_operator_is_written_out():
    assert set(WRITTEN_OUT) == {op.name for op in OPS.values() if op.lane is not Lane.COMM}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("name", "label"), CASES)
def test_forward_bodies_compute_their_formula(name, label, table):
    op, case = OPS[name], cases(name, torch.float64)[label]
    wanted = WRITTEN_OUT[name](*case.inputs, **case.attrs)  # before the body updates its state
    found = TABLES[table][name](*case.inputs, **case.attrs)
    if op.outputs[0].kind == "host":
        assert found == wanted
        return
    found = found if isinstance(found, tuple) else (found,)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    # what is exact between two bodies is a few roundings away from a formula in another order
    least = relative_bound(Tolerance.ELEMENTWISE, torch.float64)
    bound = max(least, relative_bound(op.tolerance, torch.float64, case.length))
    if name == "rope_table":  # an angle of 4095 radians is itself rounded to 4096 eps
        bound = 4096 * torch.finfo(torch.float64).eps
    for actual, expected, port in zip(found, wanted, op.outputs, strict=True):
        if port.kind in ("i32", "i64", "u8"):
            assert torch.equal(actual, expected), port.name
            continue
        assert torch.equal(actual.isnan(), expected.isnan()), port.name
        require_close(actual.nan_to_num(0), expected.nan_to_num(0), bound, f"{name} {port.name}")
