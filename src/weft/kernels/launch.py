"""What the host does for a launch: Triton's work once for each way a kernel is compiled.

`kernel[grid](...)` binds the arguments, reads off them what the kernel is compiled for, writes that
as text, looks it up, compares global variables and calls hooks. A kernel that is `launched` does so
at the first launch of a kind; a later one reads the same and calls what was compiled then.

    kind    device, constants and options by name, and of each argument what Triton itself reads:
            dtype and alignment of a tensor; of a number its width, whether it is 1 or a multiple
            of 16; dtype and block of a descriptor; None

So launches of one kind are of one kernel to Triton too. Whoever watches (hooks of a profiler,
debugging, instrumentation) sees Triton's own launch. Left out: that global variables which a kernel
reads are what they were; here they are constants of modules.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

from triton import knobs
from triton._C import libtriton
from triton.backends import BaseBackend
from triton.compiler import CompiledKernel, make_backend
from triton.runtime import driver
from triton.runtime.jit import JITFunction, KernelInterface

Grid = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A compiled kernel, what its launcher is called with, and the constants behind arguments."""

    compiled: CompiledKernel  # unloads its code when it goes
    run: Any
    function: Any
    metadata: Any
    constants: tuple[object, ...]


class Launched:
    """A kernel, and what has been compiled of it by kind of launch."""

    def __init__(self, kernel: JITFunction) -> None:
        operands = [p for p in kernel.params if not p.is_constexpr]
        assert kernel.params[: len(operands)] == operands, f"a constant first: {kernel}"
        self.kernel = kernel
        self.constants = [p.name for p in kernel.params if p.is_constexpr]
        self.ready: dict[Hashable, Ready] = {}
        self._read = libtriton.native_specialize_impl
        self._const = tuple(p.is_const for p in operands)
        self._specialised = tuple(not p.do_not_specialize for p in operands)
        self._aligned = tuple(not p.do_not_specialize_on_alignment for p in operands)

    def __getitem__(self, grid: Grid) -> Any:
        return partial(self._launch, grid)

    def kind(self, device: int, arguments: tuple, constants: dict[str, object]) -> Hashable:
        """What a launch has in common with every other one of the same compiled kernel."""
        read = map(
            self._read, self._backends, arguments, self._const, self._specialised, self._aligned
        )
        types = map(type, constants.values())  # True is 1, and compiled otherwise
        return device, len(arguments), tuple(read), *constants.items(), *types

    @cached_property
    def _backends(self) -> tuple[object, ...]:
        """Triton's backend, once an argument; asked for at a launch, since it begins CUDA."""
        active: Any = driver.active
        return (make_backend(active.get_current_target()),) * len(self._const)

    def _launch(self, grid: Grid, *arguments: Any, **constants: Any) -> None:
        if is_watched() or self.kernel.pre_run_hooks:
            self.kernel[grid](*arguments, **constants)
            return
        active: Any = driver.active
        device = active.get_current_device()
        kind = self.kind(device, arguments, constants)
        ready = self.ready.get(kind)
        if ready is None:
            self._keep(kind, self.kernel[grid](*arguments, **constants), arguments, constants)
            return
        x, y, z = (*grid, 1, 1)[:3]
        ready.run(
            x, y, z, active.get_current_stream(device), ready.function, ready.metadata,
            None, None, None, *arguments, *ready.constants,
        )  # fmt: skip

    def _keep(self, kind: Hashable, compiled: Any, arguments: tuple, constants: dict) -> None:
        """Keeps what a launch has compiled, if constants, and they alone, were given by name."""
        named = len(arguments) == len(self._const) and constants.keys() >= set(self.constants)
        if named and isinstance(compiled, CompiledKernel):
            self.ready[kind] = Ready(
                compiled=compiled,
                run=compiled.run,
                function=compiled.function,
                metadata=compiled.packed_metadata,
                constants=tuple(constants[name] for name in self.constants),
            )


def launched(kernel: KernelInterface) -> KernelInterface | Launched:
    """Returns a kernel whose launches cost the host less; the kernel itself where it is interpreted
    or where Triton reads arguments or calls launchers in another way than is known here.
    """
    if isinstance(kernel, JITFunction) and reads_as_known() and calls_as_known():
        return Launched(kernel)
    return kernel


def is_watched() -> bool:
    """Whether somebody sees every launch, or has kernels compiled in another way from now on."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    if type(enter) is not knobs.HookChain or type(leave) is not knobs.HookChain:
        return True  # a plain function, or none: chains are what there is from the start
    return bool(
        enter.calls
        or leave.calls
        or runtime.debug
        or runtime.add_stages_inspection_hook
        or knobs.compilation.instrumentation_mode
    )


def reads_as_known() -> bool:
    """Whether Triton reads an argument by the function, and with the flags, that `kind` calls."""
    flags = [(True, True), (True, False), (False, True)]  # specialise, and on alignment
    try:
        is_watched()  # every knob it looks at is there
        read = [libtriton.native_specialize_impl(BaseBackend, 16, False, *each) for each in flags]
    except (AttributeError, TypeError):
        return False
    return read == [("i32", "D"), ("i32", ""), ("i32", None)]


def calls_as_known() -> bool:
    """Whether Triton, launching what it has compiled, calls a launcher as `Launched` does."""
    calls = []
    stand_in: Any = SimpleNamespace(
        function="function",
        packed_metadata="packed",
        launch_metadata=lambda *_: "metadata",
        run=lambda *given: calls.append(given),
        _init_handles=lambda: None,
    )
    try:
        CompiledKernel.__getitem__(stand_in, (1, 2, 3))("argument", stream="stream")
    except (AttributeError, TypeError):
        return False
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    known = (1, 2, 3, "stream", "function", "packed", "metadata", *hooks, "argument")
    return calls == [known]
