"""The whole recipe, and the rules that need two of its branches.

Rules of the layout, each with the reason it cannot be bent:

    heads % sp                        a rank of a sequence-parallel group has heads / sp query heads
    kv_heads % sp  or  sp % kv_heads  it has kv_heads / sp of them, or shares one with others
    (micro_batch * sequence) % sp     the tokens of a micro-batch are cut evenly over the group
    sequence % (2 sp)                 of context parallelism: two chunks of each sequence a rank
    ffn_hidden % sp                   of a tensor-parallel ffn: a rank holds a slice of every expert
    dense_ffn_hidden % sp             likewise, and of every feed-forward
    ep = 1                            likewise: every expert is on every rank, none is left to ep
    experts % ep                      a rank of an expert-parallel group holds experts / ep of them
    (dp * sp) % ep                    expert-parallel groups are blocks of consecutive ranks
    pp * chunks <= layers             every part of the model on a stage has a layer
    micro_batches of a rank % pp      chunks go round in groups of pp micro-batches
    (dp * sp) % node                  nodes are blocks of consecutive ranks
    node % ep  or  ep % node          replicas of an expert are spread alike over all nodes
    node % sp  or  sp % node          likewise those of a slice, where weights are cut over sp
    no idle key                       what nobody would read is refused as well (`config.idle`)

The first two are of sequence and tensor parallelism, which cut heads.
"""

from collections.abc import Iterator
from math import gcd
from typing import Any, ClassVar, Self, cast

from pydantic import Field, model_validator

from weft.config.branch import INDEX_LIMIT, Branch, divisors, nearest, refusal
from weft.config.compression import CROSSINGS, CompressionConfig
from weft.config.data import DataConfig
from weft.config.idle import Idle, idle_keys
from weft.config.kernels import KernelsConfig
from weft.config.model import ModelConfig
from weft.config.optim import OptimConfig
from weft.config.overlap import OverlapConfig
from weft.config.parallel import ParallelConfig
from weft.config.train import RUN_DIR, TrainConfig
from weft.errors import ConfigError, LayoutError

ENCODED = ("all_to_all", "all_gather", "auto")  # ways of dispatch whose crossings have eight bits


class RunConfig(Branch):
    """A complete recipe. What is built is legal: nothing later has to check it again.

    Raises:
        ConfigError: a key or a value is wrong, or two branches cannot stand together.
        LayoutError: the layout cannot exist for this model.
    """

    section: ClassVar[str] = ""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        examples=["quickstart"],
        description="a name of letters, digits, dots, dashes and underscores (it names a folder)",
    )
    model: ModelConfig
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    overlap: OverlapConfig = Field(default_factory=OverlapConfig)
    kernels: KernelsConfig = Field(default_factory=KernelsConfig)
    compression: CompressionConfig = Field(default_factory=CompressionConfig)
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig

    @model_validator(mode="before")
    @classmethod
    def _name_run_dir(cls, data: Any) -> Any:
        """Puts the run's name where `train.run_dir` says `<name>`; wrong types stay."""
        match data:
            case {"name": str(name), "train": train}:
                return {**cast("dict[str, Any]", data), "train": _with_run_dir(train, name)}
            case _:
                return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_sequence_axis(self)
        _check_expert_axis(self)
        _check_nodes(self)
        _check_compression(self)
        _check_capacity(self)
        _check_zero(self)
        _check_row_bound(self)
        _check_split(self)
        _check_batch(self)
        _check_pipeline(self)
        _check_warmup(self)
        _check_decay(self)
        _check_idle(self)
        return self


def _with_run_dir(train: object, name: str) -> object:
    if isinstance(train, TrainConfig):
        return train.model_copy(update={"run_dir": train.run_dir.replace("<name>", name)})
    if not isinstance(train, dict):
        return train
    table = cast("dict[str, object]", train)
    run_dir = table.get("run_dir", RUN_DIR)
    if not isinstance(run_dir, str):
        return table
    return {**table, "run_dir": run_dir.replace("<name>", name)}


def _check_sequence_axis(run: RunConfig) -> None:
    sp = run.parallel.sp
    rule = _sequence_rule(run, sp)
    if rule:
        pool = run.data.sequence if run.parallel.attention == "cp" else run.model.heads
        legal = [d for d in divisors(pool) if not _sequence_rule(run, d)]
        blocks = [d for d in legal if run.parallel.dp * d % run.parallel.ep == 0]
        raise LayoutError(refusal("parallel.sp", sp, rule, nearest(sp, blocks or legal)))


def _sequence_rule(run: RunConfig, degree: int) -> str | None:
    """The first rule that a degree of `sp` breaks."""
    model, tokens = run.model, run.train.micro_batch * run.data.sequence
    for count, key, unit in _cut_by_sp(run):
        if count % degree:
            return f"must divide {key} ({count}{unit})"
    if degree > 1 and (rule := _uncut_by_heads(run, degree)):
        return rule
    cuts_heads = run.parallel.attention != "cp"
    if cuts_heads and model.kv_heads % degree and degree % model.kv_heads:
        return f"must divide model.kv_heads ({model.kv_heads}) or be a multiple of it"
    if tokens % degree:
        return f"must divide train.micro_batch * data.sequence ({tokens} tokens)"
    if not cuts_heads and degree > 1 and run.data.sequence % (2 * degree):
        return (
            f"must divide half of data.sequence ({run.data.sequence}): under context parallelism "
            "a rank holds two chunks of each sequence"
        )
    return None


def _uncut_by_heads(run: RunConfig, degree: int) -> str | None:
    """What of a family tensor-parallel attention has no slice of."""
    if run.parallel.attention != "tp":
        return None
    if run.model.family == "olmoe" and run.model.qk_norm:
        return (
            'must be 1 with parallel.attention = "tp": a norm over all heads has no slice '
            '(parallel.attention = "sp" has them all)'
        )
    if run.model.attention_bias and degree > run.model.kv_heads:
        return f"must be at most model.kv_heads ({run.model.kv_heads}) where attention has biases"
    return None


def _cut_by_sp(run: RunConfig) -> Iterator[tuple[int, str, str]]:
    """What a degree of `sp` must divide, where it is, and its unit."""
    if run.parallel.attention != "cp":
        yield run.model.heads, "model.heads", ""
    if run.parallel.ffn == "tp":
        yield run.model.ffn_hidden, "model.ffn_hidden", ""
        yield run.model.dense_ffn_hidden, "model.dense_ffn_hidden", ""


def _check_expert_axis(run: RunConfig) -> None:
    ep, experts, ranks = run.parallel.ep, run.model.experts, run.parallel.stage_ranks
    if run.parallel.ffn == "tp" and ep > 1:
        rule = 'must be 1 with parallel.ffn = "tp", which cuts every expert over parallel.sp'
        raise LayoutError(refusal("parallel.ep", ep, rule, 1))
    legal = divisors(gcd(experts, ranks))
    if ep in legal:
        return
    rule = (
        f"must divide parallel.dp * parallel.sp ({ranks} ranks)"
        if experts % ep == 0
        else f"must divide model.experts ({experts})"
    )
    raise LayoutError(refusal("parallel.ep", ep, rule, nearest(ep, legal)))


def _check_nodes(run: RunConfig) -> None:
    parallel, ranks = run.parallel, run.parallel.stage_ranks
    node, ep = parallel.node, parallel.ep
    slices = parallel.sp if "tp" in (parallel.attention, parallel.ffn) else 1
    whole = [n for n in divisors(ranks) if _spreads(n, ep) and _spreads(n, slices)]
    if node and node not in whole:
        sliced = f", likewise parallel.sp ({slices})" if slices > 1 else ""
        rule = (
            f"must divide parallel.dp * parallel.sp ({ranks} ranks), and it or parallel.ep ({ep}) "
            f"the other{sliced}"
        )
        # 1 and all ranks of a stage are no division of it
        legal = [n for n in whole if 1 < n < ranks] or [0]
        raise LayoutError(refusal("parallel.node", node, rule, nearest(node, legal)))


def _spreads(node: int, apart: int) -> bool:
    """Whether replicas that are so many ranks apart lie alike on all nodes."""
    return node % apart == 0 or apart % node == 0


def _check_row_bound(run: RunConfig) -> None:
    bound = run.parallel.row_bound
    if 0 < bound < 1:
        rule = "must be 0 or at least 1: below, every step needs more and is run twice"
        raise LayoutError(refusal("parallel.row_bound", bound, rule, 1.0))


def _check_zero(run: RunConfig) -> None:
    if run.parallel.zero > 1 and run.overlap.merge:
        rule = (
            "must be 1 with overlap.merge = true: a merged segment adds to gradients while those "
            "of another micro-batch are unsummed"
        )
        raise LayoutError(refusal("parallel.zero", run.parallel.zero, rule, 1))


def _check_split(run: RunConfig) -> None:
    """Where a layout has no such pair, or too little of it to cut, compose.split says the same."""
    split, chunks = run.overlap.split, run.overlap.chunks
    for pair in split:
        rule = _uncut_pair(run, pair)
        if rule:
            legal = tuple(name for name in split if name != pair)
            raise LayoutError(refusal("overlap.split", split, f"{pair} {rule}", legal))
    counts = dict(_cut_by_chunks(run))
    for what, count in counts.items():
        if count % chunks:
            rule = f"must divide {what} ({count})"
            legal = divisors(gcd(*counts.values()))[1:]
            if legal:
                raise LayoutError(refusal("overlap.chunks", chunks, rule, nearest(chunks, legal)))
            raise LayoutError(refusal("overlap.split", split, f"overlap.chunks {rule}", ()))


def _uncut_pair(run: RunConfig, pair: str) -> str | None:
    """Why a pair cannot be cut in this layout."""
    parallel, compression = run.parallel, run.compression
    if pair.startswith(("qkv", "out")):
        if parallel.sp > 1 and parallel.attention != "sp":
            return f'needs parallel.attention = "sp", found "{parallel.attention}"'
        return None
    if parallel.sp > 1 and parallel.ffn == "tp":
        return 'needs parallel.ffn = "ep", found "tp"'
    if parallel.ep > 1 and pair == "dispatch" and parallel.dispatch == "deduplicated":
        return 'needs parallel.dispatch = "all_to_all" or "all_gather", found "deduplicated"'
    if pair == "dispatch" and parallel.row_bound:
        return f"needs parallel.row_bound = 0, found {parallel.row_bound}: chunks are counted"
    if getattr(compression, pair) != "none":
        return f'needs compression.{pair} = "none": what travels in eight bits travels whole'
    return None


_BY_COLUMNS = frozenset({"combine", "dispatch_grad"})


def _cut_by_chunks(run: RunConfig) -> Iterator[tuple[str, int]]:
    """What a number of chunks must divide, and where it is."""
    split = run.overlap.split
    if not {*split} <= _BY_COLUMNS:
        tokens = run.train.micro_batch * run.data.sequence // run.parallel.sp
        yield "train.micro_batch * data.sequence / parallel.sp", tokens
    if not _BY_COLUMNS.isdisjoint(split):
        narrow = run.train.precision == "bfloat16"  # grouped products want 16 bytes of alignment
        yield ("model.hidden / 8", run.model.hidden // 8) if narrow else (
            "model.hidden", run.model.hidden
        )  # fmt: skip


def _check_capacity(run: RunConfig) -> None:
    """Scores are gathered rank by rank, which is the order of the stream but for context
    parallelism.
    """
    capacity, parallel = run.model.capacity, run.parallel
    if capacity and parallel.attention == "cp" and parallel.sp > 1:
        rule = (
            'must be 0 with parallel.attention = "cp": of equal scores those of the lower token '
            "are kept, and no rank has its tokens in their order"
        )
        raise LayoutError(refusal("model.capacity", capacity, rule, 0.0))
    sliced = parallel.ffn == "tp" and parallel.sp > 1
    if capacity and (sliced or (parallel.dispatch == "deduplicated" and parallel.ep > 1)):
        rule = "must be 0 where whole tokens travel: choices are dropped in dispatch by rows only"
        raise LayoutError(refusal("model.capacity", capacity, rule, 0.0))


def _check_compression(run: RunConfig) -> None:
    """A float64 run is there to compare to 1e-10; a wire of 8 bits of mantissa ends that.

    What crosses in eight bits is written per way of dispatch (compose.wire).
    """
    gradients = run.compression.gradients
    if gradients != "fp32" and run.train.precision == "float64":
        rule = 'must not round what train.precision = "float64" is there to compare'
        raise ConfigError(refusal("compression.gradients", gradients, rule, "fp32"))
    for crossing in CROSSINGS:
        if getattr(run.compression, crossing) == "none":
            continue
        if run.train.precision == "float64":
            rule = 'must not round what train.precision = "float64" is there to compare'
            raise ConfigError(refusal(f"compression.{crossing}", "fp8", rule, "none"))
        if run.parallel.dispatch not in ENCODED:
            known = ", ".join(f'"{way}"' for way in ENCODED)
            rule = f'needs parallel.dispatch one of {known}, found "{run.parallel.dispatch}"'
            raise ConfigError(refusal(f"compression.{crossing}", "fp8", rule, "none"))
        if run.parallel.ffn != "ep":
            rule = f'needs parallel.ffn = "ep", found "{run.parallel.ffn}"'
            raise ConfigError(refusal(f"compression.{crossing}", "fp8", rule, "none"))


def _check_batch(run: RunConfig) -> None:
    batch, portion = run.train.global_batch, run.train.micro_batch * run.parallel.dp
    if portion > INDEX_LIMIT:
        rule = f"must leave train.micro_batch * parallel.dp ({run.parallel.dp}) below 2^31"
        raise ConfigError(refusal("train.micro_batch", run.train.micro_batch, rule, 1))
    if batch % portion:
        rule = (
            f"must be a multiple of train.micro_batch * parallel.dp "
            f"({run.train.micro_batch} * {run.parallel.dp})"
        )
        low = batch - batch % portion
        legal = nearest(batch, [n for n in (low, low + portion) if 0 < n <= INDEX_LIMIT])
        raise ConfigError(refusal("train.global_batch", batch, rule, legal))


def _check_pipeline(run: RunConfig) -> None:
    parallel, layers = run.parallel, run.model.layers
    pp, chunks = parallel.pp, parallel.chunks
    if pp > layers:
        rule = f"must be at most model.layers ({layers}): every stage has a layer"
        raise LayoutError(refusal("parallel.pp", pp, rule, layers))
    if chunks > 1:
        _check_chunks(run)
    parts = pp * chunks
    if parallel.layers and (len(parallel.layers) != parts or sum(parallel.layers) != layers):
        rule = f"must hold model.layers ({layers}) in parallel.pp * parallel.chunks ({parts}) parts"
        even = [layers // parts + (part < layers % parts) for part in range(parts)]
        raise LayoutError(refusal("parallel.layers", parallel.layers, rule, tuple(even)))


def _check_chunks(run: RunConfig) -> None:
    parallel, layers = run.parallel, run.model.layers
    pp, chunks = parallel.pp, parallel.chunks
    own = run.train.global_batch // (run.train.micro_batch * parallel.dp)
    if pp == 1 or parallel.pipeline == "1f1b":
        rule = "needs parallel.pp above 1 and parallel.pipeline 'interleaved' or 'zero_bubble'"
        raise LayoutError(refusal("parallel.chunks", chunks, rule, 1))
    if pp * chunks > layers:
        rule = f"must leave a layer of model.layers ({layers}) for each of parallel.pp ({pp}) parts"
        raise LayoutError(refusal("parallel.chunks", chunks, rule, layers // pp))
    if own % pp:
        rule = f"needs micro-batches of a rank ({own}) that parallel.pp ({pp}) divides"
        raise LayoutError(refusal("parallel.chunks", chunks, rule, 1))


def idle_of(run: RunConfig) -> Iterator[Idle]:
    """Every key of a recipe that nobody reads."""
    return idle_keys(
        run.parallel,
        run.compression,
        run.overlap,
        layers=run.model.layers,
        micro_batches=run.train.global_batch // (run.train.micro_batch * run.parallel.dp),
    )


def _check_idle(run: RunConfig) -> None:
    found = next(idle_of(run), None)
    if found is not None:
        raise LayoutError(refusal(found.key, found.value, found.rule, found.legal))


def _check_warmup(run: RunConfig) -> None:
    warmup, steps = run.optim.warmup_steps, run.train.steps
    if warmup > steps:
        rule = f"must be at most train.steps ({steps})"
        raise ConfigError(refusal("optim.warmup_steps", warmup, rule, steps))


def _check_decay(run: RunConfig) -> None:
    decay, room = run.optim.decay_steps, run.train.steps - run.optim.warmup_steps
    wanted = run.optim.schedule == "warmup_stable_decay"
    if decay is None and wanted:
        raise ConfigError(
            'optim.decay_steps: missing; optim.schedule = "warmup_stable_decay" needs the number '
            f"of its last steps; for instance optim.decay_steps = {max(1, run.train.steps // 10)}"
        )
    if decay is not None and not wanted:
        rule = 'means nothing under optim.schedule = "cosine"'
        raise ConfigError(
            f"optim.decay_steps = {decay}: {rule}; nearest legal value: "
            'optim.schedule = "warmup_stable_decay"'
        )
    if decay is not None and decay > room:
        rule = f"must leave the warm-up its {run.optim.warmup_steps} of {run.train.steps} steps"
        raise ConfigError(refusal("optim.decay_steps", decay, rule, max(1, room)))
