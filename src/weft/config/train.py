"""The `[train]` branch: how long, in what portions, how precisely, and what is kept of it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from weft.config.branch import Branch, Count, Positive, Size

RUN_DIR = "runs/<name>"

_SEED_LIMIT = 2**63 - 1  # a random generator and a TOML integer both hold a signed 64-bit number


class TrainConfig(Branch):
    """A run: its length, batches, precision, rhythm of evaluation and saving, and its folder.

    Batches are counted in sequences. `<name>` in `run_dir` stands for the name of the run.

    Raises:
        ConfigError: a value is outside its range.
    """

    section: ClassVar[str] = "train"

    steps: Size = Field(examples=[200], description="the number of optimizer steps")
    global_batch: Size = Field(examples=[8], description="the sequences of one step")
    micro_batch: Size = Field(examples=[1], description="the sequences of one micro-batch")
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        default="float32", description="the dtype of computation"
    )
    seed: Annotated[int, Field(ge=0, le=_SEED_LIMIT)] = Field(
        default=0, description="the seed of initialisation and data order"
    )
    eval_every: Size = Field(examples=[50], description="the steps between evaluations")
    checkpoint_every: Count = Field(
        examples=[50], description="the steps between checkpoints; 0 writes none, not even the last"
    )
    keep: Annotated[Size, Field(ge=2)] = Field(
        default=2,  # with one, a checkpoint that rots leaves nothing to fall back to
        description="the newest checkpoints that are kept",
    )
    keep_every: Size | None = Field(
        default=None,
        examples=[1000],
        description="checkpoints of steps that this divides are kept for good",
    )
    save: Literal["background", "blocking"] = Field(
        default="background", description="whether training goes on while a checkpoint is written"
    )
    timeout_seconds: Positive = Field(
        default=600.0,  # longer than any step; NCCL's own default too
        description="how long a rank may get no further before the run is ended",
    )
    on_non_finite: Literal["skip", "stop", "rollback"] = Field(
        default="skip",
        description="what follows a step that was refused because its loss is not finite",
    )
    restarts: Count = Field(
        default=0, description="how often a run that failed is started again by itself"
    )
    log_every: Size = Field(default=1, description="the steps between lines of the log")
    run_dir: Annotated[str, Field(min_length=1)] = Field(
        default=RUN_DIR, description="the folder of the run"
    )
    init_from: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        examples=["models/mixtral"],
        description="a folder with a Hugging Face checkpoint to start from, instead of the seed",
    )
    sample_bytes: Count = Field(
        default=400,  # a paragraph: five lines of 80 characters
        description="the bytes of text sampled at the end",
    )
    threads: Size | None = Field(
        default=None,
        examples=[1],
        description="the CPU threads of a rank; left out, the cores are shared",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="the kind of device to train on"
    )
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        default="none", description="where the metrics go besides metrics.jsonl"
    )
