"""A launch that Triton would compile otherwise is of another kind; one of a known kind hands the
launcher what Triton would.
"""

import ast
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is built for Linux alone")

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel, make_backend
from triton.runtime.jit import JITFunction, compute_cache_key, create_function_from_signature
from triton.tools.tensor_descriptor import TensorDescriptor

from weft.kernels import launch
from weft.kernels.launch import Launched, launched

BACKEND = make_backend(GPUTarget("cuda", 90, 32))


def _kernel(x, y, n, every, SIZE: tl.constexpr, FLAG: tl.constexpr):
    pass


def _offset(dtype, offset):
    """A tensor that begins so many bytes behind 16."""
    room = torch.zeros(64, dtype=torch.uint8)
    start = -room.data_ptr() % 16 + offset
    return room[start : start + 16].view(dtype)


def _block(dtype, *block):
    return TensorDescriptor.from_tensor(torch.zeros(64, 64, dtype=dtype), list(block))


POINTERS = [
    *(_offset(torch.bfloat16, offset) for offset in (0, 2, 8)),
    _offset(torch.float16, 0),
    _offset(torch.float32, 0),
    _offset(torch.float32, 4),
    None,
]
OTHERS = [
    *(_block(torch.bfloat16, *block) for block in ((16, 64), (64, 16), (64, 64))),
    _block(torch.float16, 64, 64),
]
NUMBERS = [
    *(0, 1, 2, 15, 16, 17, -1, -16, True, False, 1.0, 0.5),
    *(2**31 - 1, 2**31 - 16, 2**31, 2**31 + 1, -(2**31), -(2**31) - 1, -(2**31) - 16),
    *(2**63 - 16, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 16),
]
CONSTANTS = [
    {"SIZE": size, "FLAG": flag, **options}
    for size, flag in ((1, False), (1, True), (True, 1), (2, 0), (16, None), (16, tl.float32))
    for options in ({"num_warps": 4}, {"num_warps": 8}, {"num_warps": 8, "num_stages": 3}, {})
]


@pytest.fixture
def kernel():
    made = JITFunction(_kernel, do_not_specialize=["every"])
    made = Launched(made)
    made.__dict__["_backends"] = (BACKEND,) * 4  # what a machine with a GPU finds itself
    return made


def _launches():
    """Every value in every place, beside values that are all alike, and pairs of numbers."""
    usual = (POINTERS[0], POINTERS[0], 16, 16)
    for place in range(4):
        for value in (*POINTERS, *OTHERS, *NUMBERS):
            yield (*usual[:place], value, *usual[place + 1 :]), CONSTANTS[0]
    for n, every in itertools.product(NUMBERS, NUMBERS):
        yield (*usual[:2], n, every), CONSTANTS[0]
    for x, y in itertools.product((*POINTERS, *OTHERS), repeat=2):
        yield (x, y, *usual[2:]), CONSTANTS[0]
    for constants in CONSTANTS:
        yield usual, constants


def _merged(kernel):
    """Launches of one kind that Triton has two keys for, and how many kinds there are."""
    jit = kernel.kernel
    bind = create_function_from_signature(jit.signature, jit.params, BACKEND)
    known, merged = {}, []
    for arguments, constants in _launches():
        _, specialisation, options = bind(*arguments, **constants)
        key = compute_cache_key({}, specialisation, options)
        if known.setdefault(kernel.kind(0, arguments, constants), key) != key:
            merged.append((arguments, constants))
    return merged, len(known)


def test_launches_of_one_kind_are_of_one_kernel_to_triton(kernel):
    merged, kinds = _merged(kernel)
    assert merged == []
    assert kinds > 150


def test_launches_of_one_kernel_are_of_few_kinds(kernel):
    """What a kernel is not compiled for does not begin another kind."""
    x, y = POINTERS[0], POINTERS[0].clone()
    kinds = {kernel.kind(0, (x, y, n, n), CONSTANTS[0]) for n in range(2, 1000)}
    assert len(kinds) == 2
    assert len({kernel.kind(0, (x, y, 16, n), CONSTANTS[0]) for n in range(1000)}) == 1


def _unaligned(kernel):
    kernel._aligned = (False,) * 4


def _unspecialised(kernel):
    kernel._specialised = (False,) * 4


def _untyped(kernel):
    kernel._read = lambda *given: launch.libtriton.native_specialize_impl(*given)[1]


def _short(kernel):
    kernel._const = kernel._const[:3]


def _nameless(kernel):
    whole = Launched.kind
    kernel.kind = lambda device, arguments, _constants: whole(kernel, device, arguments, {})


@pytest.mark.parametrize("forget", [_unaligned, _unspecialised, _untyped, _short, _nameless])
def test_a_kind_that_forgets_something_is_caught(kernel, forget):
    """Sabotage: alignment, values, types, the last argument, constants."""
    forget(kernel)
    merged, _ = _merged(kernel)
    assert merged


def test_devices_and_counts_of_arguments_are_told_apart(kernel):
    x = POINTERS[0]
    kinds = [
        kernel.kind(device, arguments, CONSTANTS[0])
        for device in (0, 1)
        for arguments in ((x, x, 16), (x, x, 16, 16), (x, x, 16, 16, 2))
    ]
    assert len(set(kinds)) == len(kinds)


class Compiled(CompiledKernel):
    """A compiled kernel that notes what its launcher is called with."""

    def __init__(self, calls):
        self.module, self.function, self.packed_metadata = None, 7, "packed"
        self._run = lambda *given: calls.append(given)

    def _init_handles(self):
        pass

    def launch_metadata(self, *_):
        return None


class Machine:
    """Triton's own launch, a driver and a launcher, and who called them."""

    def __init__(self, kernel, patch):
        self.own, self.calls, self.bound = [], [], {}
        self.params, self.pre_run_hooks = kernel.kernel.params, []
        kernel.kernel = self
        active = SimpleNamespace(
            get_current_device=lambda: 3, get_current_stream=lambda device: 100 + device
        )
        patch.setattr(launch, "driver", SimpleNamespace(active=active))

    def __getitem__(self, grid):
        def run(*arguments, **constants):
            self.own.append((grid, arguments))
            return Compiled(self.calls)

        return run


@pytest.fixture
def machine(kernel, monkeypatch):
    return Machine(kernel, monkeypatch)


ARGUMENTS = (POINTERS[0], POINTERS[4], 16, 5)


def test_the_second_launch_calls_what_the_first_has_compiled(kernel, machine):
    kernel[2,](*ARGUMENTS, num_warps=4, FLAG="flag", SIZE=8)
    assert machine.own == [((2,), ARGUMENTS)]
    assert machine.calls == []
    fresh = (*ARGUMENTS[:2], 32, 6)
    kernel[3, 4](*fresh, num_warps=4, FLAG="flag", SIZE=8)
    assert len(machine.own) == 1
    # constants as they stand in the signature, hooks left out
    (call,) = machine.calls
    assert call == (3, 4, 1, 103, 7, "packed", None, None, None, *fresh, 8, "flag")


def test_another_kind_is_launched_by_triton_first(kernel, machine):
    for n in (16, 1, 17, 16, 1, 17):
        kernel[1,](*ARGUMENTS[:2], n, 5, SIZE=8, FLAG=True)
    assert [arguments[2] for _, arguments in machine.own] == [16, 1, 17]
    assert [call[11] for call in machine.calls] == [16, 1, 17]


def test_a_constant_that_is_given_by_place_is_left_to_triton(kernel, machine):
    for _ in range(2):
        kernel[1,](*ARGUMENTS, 8, FLAG=True)
    assert len(machine.own) == 2
    assert machine.calls == []


def test_a_constant_that_keeps_its_default_is_left_to_triton(kernel, machine):
    for _ in range(2):
        kernel[1,](*ARGUMENTS, SIZE=8)
    assert len(machine.own) == 2
    assert machine.calls == []


def test_nothing_is_kept_of_a_launch_that_compiled_nothing(kernel, machine, monkeypatch):
    monkeypatch.setattr(Machine, "__getitem__", lambda *_: lambda *_, **__: None)
    kernel[1,](*ARGUMENTS, SIZE=8, FLAG=True)
    assert kernel.ready == {}


def _watch(patch, name):
    if name in ("launch_enter_hook", "launch_exit_hook"):
        chain = knobs.HookChain()
        chain.add(print)
        patch.setattr(knobs.runtime, name, chain)
    elif name == "instrumentation_mode":
        patch.setattr(knobs.compilation, name, "fine")
    else:
        patch.setattr(knobs.runtime, name, True)


WATCHES = [
    "launch_enter_hook",
    "launch_exit_hook",
    "debug",
    "add_stages_inspection_hook",
    "instrumentation_mode",
]


@pytest.mark.parametrize("name", WATCHES)
def test_who_watches_sees_launches_of_triton(kernel, machine, monkeypatch, name):
    for watched in (False, True, False):
        with monkeypatch.context() as patch:
            if watched:
                _watch(patch, name)
            assert launch.is_watched() is watched
            for _ in range(3):
                kernel[1,](*ARGUMENTS, SIZE=8, FLAG=True)
    assert (len(machine.own), len(machine.calls)) == (1 + 3, 2 + 3)


def test_a_hook_of_the_kernel_sees_launches_of_triton(kernel, machine):
    machine.pre_run_hooks.append(print)
    for _ in range(2):
        kernel[1,](*ARGUMENTS, SIZE=8, FLAG=True)
    assert len(machine.own) == 2


def test_this_triton_is_known():
    assert launch.reads_as_known()
    assert launch.calls_as_known()
    made = JITFunction(_kernel)
    assert launched(made).kernel is made


def _without_reader(patch):
    patch.delattr(launch.libtriton, "native_specialize_impl")


def _other_reader(patch):
    patch.setattr(launch.libtriton, "native_specialize_impl", lambda *_: ("i32", "D"))


def _fewer_flags(patch):
    patch.setattr(launch.libtriton, "native_specialize_impl", lambda _backend, _arg: ("i32", "D"))


def _other_order(patch):
    def item(self, grid):
        return lambda *given, stream: self.run(stream, *grid, *given)

    patch.setattr(CompiledKernel, "__getitem__", item)


def _other_names(patch):
    patch.setattr(CompiledKernel, "__getitem__", lambda self, _grid: self.runner)


def _no_knob(patch):
    patch.setattr(launch, "is_watched", lambda: knobs.runtime.no_such_knob)


@pytest.mark.parametrize(
    "change",
    [_without_reader, _other_reader, _fewer_flags, _other_order, _other_names, _no_knob],
)
def test_a_triton_that_is_not_known_launches_itself(monkeypatch, change):
    made = JITFunction(_kernel)
    change(monkeypatch)
    assert launched(made) is made


def test_an_interpreted_kernel_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    made = triton.jit(_kernel)
    assert launched(made) is made


def test_every_kernel_that_the_host_launches_is_launched_so():
    for path in sorted(Path(launch.__file__).parent.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        marks = {
            node.name: [ast.unparse(mark) for mark in node.decorator_list]
            for node in nodes
            if isinstance(node, ast.FunctionDef)
        }
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                assert "launched" in marks.get(ast.unparse(node.func.value), ["launched"]), path
        assert all(made[0] == "launched" for name, made in marks.items() if "launched" in made), (
            path
        )


@launched
@triton.jit
def _doubled(x, y, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, 2 * tl.load(x + at, mask=at < count, other=0.0), mask=at < count)


@pytest.mark.gpu
def test_views_of_every_alignment_are_read_where_they_lie():
    x = torch.randn(4096, device="cuda", dtype=torch.bfloat16)
    for _ in range(2):  # the second time every kind is known
        for start, count in itertools.product((0, 1, 8, 3), (1, 16, 17, 1024)):
            part = x[start : start + count]
            made = torch.full_like(x, 7)
            _doubled[4,](part, made[start:], count, BLOCK=256)
            assert torch.equal(made[start : start + count], 2 * part)
            assert (made[start + count :] == 7).all()
    assert len(_doubled.ready) == 2 * 3
