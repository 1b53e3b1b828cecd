"""What a dialect of Hugging Face checkpoints is: the names it has for what is weft's.

A dialect is a declaration. `tensors` says how a logical parameter is called on the disk ({i} is the
layer, {e} the expert), `keys` how a field of the model is called in `config.json`, `constants` what
the fields are that have no key there, and `demands` which keys must hold what weft computes. On the
disk every expert is a tensor of its own, whatever the classes of transformers hold in memory; where
all experts are one tensor, a `Packed` says where in it a parameter lies.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor

from weft.compose.recipe import shape
from weft.config.model import FamilyName, ModelConfig
from weft.model.families import Kind
from weft.model.params import Logical, logical, parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """A key that must be absent, null or one of the legal values; weft writes the first. Where
    absence means what is not legal, the key is needed.
    """

    key: str
    legal: tuple[object, ...] = ()
    rule: str
    is_written: bool = True
    is_needed: bool = False

    def is_met(self, value: object) -> bool:
        """Whether a value, None where there is none, is what the demand asks for."""
        return value in self.legal if value is not None else not self.is_needed


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A place in a tensor of all experts: of one of them, or of its transpose where the tensor
    holds that, every `step`-th row from `start` on.
    """

    disk: str
    start: int = 0
    step: int = 1
    transposed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How checkpoints of one `model_type` are written."""

    model_type: str
    architecture: str
    family: FamilyName
    tensors: Mapping[str, str | Packed]
    keys: Mapping[str, str]
    constants: Mapping[str, object]
    demands: tuple[Demand, ...]
    defaults: Mapping[str, object]  # field -> its value where the key is absent
    synonyms: Mapping[str, str]  # key -> the name that other versions give it
    dense_key: str | None = None  # what says which layers have no experts
    step_key: str | None = None  # every how many layers there are experts
    has_head_dim: bool = True
    window_switch: str | None = None  # what must be true for a sliding window to be in effect
    window_start: str | None = None  # the first layer that has a window
    has_windows: bool = False  # whether layers may have one
    has_yarn: bool = False  # whether rotary frequencies may be stretched
    rotary_share: float | None = None  # of the channels of a head, where it is a key
    theta: float | None = None  # the base of the frequencies where no key says it
    next_key: str | None = None  # how many layers follow that predict a second token
    renormalises_one: bool = True  # whether the weight of a single choice is normalised too


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A logical parameter, and the tensor on the disk that it is, or that it lies in."""

    disk: str
    part: Logical
    packed: Packed | None = None
    expert: int = 0

    def size(self, experts: int) -> tuple[int, ...]:
        """The shape of the tensor on the disk."""
        if self.packed is None:
            return self.part.shape
        rows, *columns = self.part.shape
        whole = (rows * self.packed.step, *columns)
        return (experts, *(reversed(whole) if self.packed.transposed else whole))

    def of(self, tensor: Tensor) -> Tensor:
        """The view of the parameter in what the file holds of its expert, or of it alone."""
        if self.packed is None:
            return tensor
        turned = tensor.T if self.packed.transposed else tensor
        return turned[self.packed.start :: self.packed.step]


_NUMBERS = re.compile(r"(?:layers\.(\d+)\.)?(?:experts\.(\d+)\.)?(.+)")


def disk_name(dialect: Dialect, name: str) -> str:
    """The name on the disk of a logical parameter.

    Example:
        >>> from weft.checkpoint.hf.dialects import MIXTRAL
        >>> disk_name(MIXTRAL, "layers.3.experts.7.up")
        'model.layers.3.block_sparse_moe.experts.7.w3.weight'
    """
    return place(dialect, logical(name, (1,))).disk


def place(dialect: Dialect, part: Logical) -> Entry:
    """Where a logical parameter lies on the disk."""
    match = _NUMBERS.fullmatch(part.name)
    assert match, f"{part.name=}"
    layer, expert, last = match.groups()
    prefix = ("layers.{i}." if layer else "") + ("experts.{e}." if expert else "")
    found = dialect.tensors[prefix + last]
    if isinstance(found, Packed):
        disk = found.disk.format(i=layer)
        return Entry(disk=disk, part=part, packed=found, expert=int(expert))
    return Entry(disk=found.format(i=layer, e=expert), part=part)


def entries(dialect: Dialect, model: ModelConfig) -> Iterator[Entry]:
    """Every parameter of a checkpoint of this model, in order of use; biases of routers last."""
    of = shape(model)
    for parameter in parameters(of):
        for part in parameter.parts:
            yield place(dialect, part)
    if model.router_bias:
        for layer in range(model.layers):
            if of.kind(layer) is not Kind.DENSE:
                bias = router_bias(layer, model.experts)
                yield place(dialect, bias)


def router_bias(layer: int, experts: int) -> Logical:
    """The bias of a layer's router: no parameter, but it travels with them."""
    return logical(f"layers.{layer}.router_bias", (experts,))


def numel(part: Logical) -> int:
    """The elements of a logical parameter."""
    return prod(part.shape)
