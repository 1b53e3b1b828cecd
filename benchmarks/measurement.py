"""What is measured on GPUs, in order of worth: the list that `campaign.py` goes through.

A command is words with places in them: {python} this interpreter, {file} the measurement's own file
of JSON lines, {folder} where all of them lie, {machine} the known one nearest to this. Behind it go
its settings, and on a CPU TINY ones and words of its own, which win: the same program over the same
layouts, in seconds.
"""

from dataclasses import dataclass

TINY = (
    "train.device=cpu", "train.precision=float32",
    "kernels.transport=nccl", "kernels.attention=repeatable",
    "model.hidden=64", "model.heads=4", "model.kv_heads=2", "model.head_dim=16",
    "model.ffn_hidden=32", "model.experts=8", "model.top_k=2", "model.vocab=512",
    "data.sequence=64",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """A command, the GPUs it takes, the seconds it may take, and the question it answers.

    `flag` goes before each setting: none where they are words by themselves.
    """

    name: str
    question: str
    gpus: int
    limit: int
    words: tuple[str, ...]
    settings: tuple[str, ...] = ()
    flag: tuple[str, ...] = ()
    tiny: tuple[str, ...] = TINY
    small: tuple[str, ...] = ()

    def command(self, device: str) -> tuple[str, ...]:
        """The whole command on a device, its places still open."""
        cpu = device == "cpu"
        settings = (*self.settings, *(self.tiny if cpu else ()))
        flagged = (word for setting in settings for word in (*self.flag, setting))
        return (*self.words, *(self.small if cpu else ()), *flagged)


def script(name: str, *words: str) -> tuple[str, ...]:
    """A benchmark of this folder."""
    return "{python}", f"benchmarks/bench_{name}.py", *words


def weft(*words: str) -> tuple[str, ...]:
    """`weft bench`."""
    return "{python}", "-m", "weft", "bench", *words


def tests(marker: str, *places: str) -> tuple[str, ...]:
    """The tests of a marker."""
    quiet = ("-q", "-p", "no:cacheprovider", "-p", "no:benchmark")
    return "{python}", "-m", "pytest", *quiet, "-m", marker, *places


RECIPES = {"Q": "recipes/h200-qwen3-6layer.toml", "M": "recipes/h200-mixtral-2layer.toml"}
CUDNN = "kernels.attention=cudnn"
SYMMETRIC = "kernels.transport=symmetric"
SELECTIVE = "overlap.remat=selective"
GATHER = "parallel.dispatch=all_gather"
LOGITS = 'overlap.remat=["logits"]'
# Room for random tokens of routers that have not learned: those of Qwen3 find none at 1.25.
BOUNDS = {"Q": "parallel.row_bound=1.5", "M": "parallel.row_bound=1.25"}
ALONE = ("parallel.sp=1", "parallel.ep=1", "train.global_batch=4", "train.micro_batch=4")
PAIR = ("parallel.sp=1", "parallel.dp=2", "parallel.ep=2", GATHER, "train.global_batch=16")


# ---- two GPUs ------------------------------------------------------------------------------------


def follow(name: str, limit: int, steps: int, *settings: str) -> Measurement:
    return Measurement(
        name=name,
        question="does a model learn in each layout as it does on one GPU?",
        gpus=2,
        limit=limit,
        words=script("follow", "--out", "{file}", "--steps", str(steps)),
        settings=settings,
        small=("--steps", "4"),
    )


def speed(name: str, shape: str, *settings: str) -> Measurement:
    return Measurement(
        name=name,
        question=f"what does each layout cost with the layers of {shape}?",
        gpus=2,
        limit=150,
        words=script("layouts", "--out", "{file}", "--shape", shape),
        settings=settings,
    )


def schedule(name: str, shape: str, *settings: str) -> Measurement:
    return Measurement(
        name=name,
        question="what is each overlap worth, and what does each order leave exposed?",
        gpus=2,
        limit=120,
        words=script("schedule", "{file}", "--model", shape, "--machine", "{machine}"),
        settings=settings,
        small=("--rounds", "1"),
    )


def split(shape: str) -> Measurement:
    return Measurement(
        name=f"pairs in chunks {shape}",
        question="does it pay to cut a product and its collective into chunks?",
        gpus=2,
        limit=90,
        words=script("split", RECIPES[shape], "--json", "{file}"),
        settings=(GATHER, "model.layers=2"),
        small=("--rounds", "1"),
    )


# ---- either --------------------------------------------------------------------------------------


def step(name: str, shape: str, gpus: int, *settings: str) -> Measurement:
    return Measurement(
        name=f"step {shape} {name}",
        question="how fast is a training step, and where does it go?",
        gpus=gpus,
        limit=60 + 30 * gpus,
        words=weft("step", RECIPES[shape], "--json", "{file}", "--steps", str(20 // gpus)),
        settings=settings,
        flag=("--set",),
        small=("--steps", "2"),
    )


def block(what: str, shape: str, name: str, *settings: str) -> Measurement:
    return Measurement(
        name=f"{what} {shape} {name}",
        question="how far is half a layer alone from its floor?",
        gpus=1,
        limit=60,
        words=weft(what, RECIPES[shape], "--json", "{file}"),
        settings=("parallel.sp=1", "parallel.ep=1", "model.layers=1", *settings),
        flag=("--set",),
        small=("--repeats", "2"),
    )


def calibrate(gpus: int) -> Measurement:
    return Measurement(
        name="calibrate",
        question="what are the planner's rates of this machine?",
        gpus=gpus,
        limit=240,
        words=weft(
            "calibrate", f"{{folder}}/machine-{gpus}.toml", "--nproc", str(gpus),
            "--machine", "{machine}",
        ),
        tiny=(),
        small=("--device", "cpu", "--machine", "none"),
    )  # fmt: skip


def predict(gpus: int) -> Measurement:
    return Measurement(
        name="predict",
        question="does the planner foretell time and memory of a step on this machine?",
        gpus=gpus,
        limit=300,
        words=script("predict", "measure", "{file}", "--nproc", str(gpus)),
    )


def foretold(gpus: int) -> Measurement:
    return Measurement(
        name="predicted beside measured",
        question="how far is the planner off, at the rates just measured?",
        gpus=gpus,
        limit=60,
        words=script(
            "predict", "report", "{folder}/predict.jsonl",
            "--machine", f"{{folder}}/machine-{gpus}.toml",
        ),
        tiny=(),
    )  # fmt: skip


def gpu_tests(name: str, marker: str, gpus: int, *places: str) -> Measurement:
    return Measurement(
        name=name,
        question="do the bodies and wires of this device do what they are defined to do?",
        gpus=gpus,
        limit=240,
        words=tests(marker, *places),
        tiny=(),
    )


TWO: tuple[Measurement, ...] = (
    follow("follow nccl", 240, 200),
    speed("layouts Q nccl", "Q"),
    speed("layouts M nccl", "M"),
    gpu_tests("tests of two GPUs", "gpus2", 2, "tests/comm"),
    follow("first steps symmetric", 120, 3, SYMMETRIC),
    follow("follow symmetric", 240, 200, SYMMETRIC),
    speed("layouts Q symmetric", "Q", SYMMETRIC),
    speed("layouts M symmetric", "M", SYMMETRIC),
    schedule("schedules Q nccl", "Q"),
    schedule("schedules M nccl", "M"),
    schedule("schedules Q symmetric", "Q", SYMMETRIC),
    schedule("schedules M symmetric", "M", SYMMETRIC),
    *(
        step(" ".join((f"{layers} layers", *words)), shape, 2, *PAIR, *settings)
        for shape, layers in (("Q", 8), ("M", 4))
        for words, settings in (
            ((), (f"model.layers={layers}",)),
            (("bounded",), (f"model.layers={layers}", BOUNDS[shape])),
            (("cudnn", "bounded"), (f"model.layers={layers}", BOUNDS[shape], CUDNN)),
            (
                ("cudnn", "bounded", "symmetric", "selective"),
                (f"model.layers={layers}", BOUNDS[shape], CUDNN, SYMMETRIC, SELECTIVE),
            ),
        )
    ),
    Measurement(
        name="wires",
        question="how fast are collectives by size over each wire?",
        gpus=2,
        limit=90,
        words=weft("comm", "--ranks", "2", "--json", "{file}"),
        tiny=(),
        small=("--device", "cpu", "--repeats", "2"),
    ),
    calibrate(2),
    predict(2),
    foretold(2),
    split("Q"),
    split("M"),
)
ONE: tuple[Measurement, ...] = (
    gpu_tests("kernels of one GPU", "not gpus2", 1, "tests/kernels"),
    gpu_tests("tests of one GPU", "gpu", 1, "tests/ops", "tests/runtime"),
    Measurement(
        name="follow bodies",
        question="does a model learn with the fast bodies as it does with the reference?",
        gpus=1,
        limit=180,
        words=script("bodies", "--out", "{file}"),
        small=("--steps", "4"),
    ),
    *(
        step(f"{layers} layers {fuse}", shape, 1, *ALONE, f"kernels.fuse={fuse}")
        for shape, layers in (("Q", 6), ("M", 2))
        for fuse in ("none", "auto")
    ),
    *(
        block("moe-layer", shape, fuse, f"kernels.fuse={fuse}")
        for shape in RECIPES
        for fuse in ("none", "auto")
    ),
    *(block("moe-layer", s, "light", "kernels.fuse=auto", LOGITS) for s in RECIPES),
    step("6 layers cudnn", "Q", 1, *ALONE, CUDNN),
    step("2 layers cudnn", "M", 1, *ALONE, CUDNN),
    *(block("attention", shape, "repeatable") for shape in RECIPES),
    *(block("attention", shape, "cudnn", CUDNN) for shape in RECIPES),
    calibrate(1),
    predict(1),
    foretold(1),
)
MEASUREMENTS: tuple[Measurement, ...] = (*TWO, *ONE)
