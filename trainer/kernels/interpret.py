"""Triton's interpreter: whether kernels run in it, and the patch without which its bfloat16 is silently wrong.

Under TRITON_INTERPRET=1 triton 3.7 to 3.9 keeps bf16 as the uint16 of its bits and computes on those: tl.dot multiplies bit
patterns, `a + b` adds them, a cast from fp32 truncates (half of all values come out one unit low). The maintainers don't
support it (triton-lang/triton issue 11584). Patched here: tl.dot widens bf16 to fp32, which is exact, as a matrix unit does;
casts between bf16 and fp32 are exact up, to nearest even down. Moves of data (load, store, reshape, where, ...) were right.
Everything else that meets a bf16 operand raises `Uncovered`: kernels write .to(tl.float32) behind each load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gristmill.core.errors import GristmillError

MOVES = frozenset(  # of the builder's create_*: they move bits and compute nothing on them
    f"create_{name}"
    for name in [
        "load",
        "store",
        "masked_load",
        "masked_store",
        "tensor_pointer_load",
        "tensor_pointer_store",
        "descriptor_load",
        "descriptor_store",
        "descriptor_gather",
        "descriptor_scatter",
        "make_block_ptr",
        "advance",
        "make_tensor_descriptor",
        "addptr",
        "bitcast",
        "reshape",
        "trans",
        "expand_dims",
        "broadcast",
        "splat",
        "unsplat",
        "cat",
        "join",
        "split",
        "gather",
        "select",
        "barrier",
    ]
)
CASTS = frozenset({"create_fp_ext", "create_fp_trunc", "create_fp_to_fp"})  # between bf16 and fp32 alone
COVERED = MOVES | CASTS | {"create_dot"}


class Uncovered(GristmillError):
    """bf16 met an operation of the interpreter that computes on its bits, and that the patch doesn't mend."""

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"triton's interpreter has no bf16 {operation.removeprefix('create_')}: it would compute on the bits. "
            "Widen with .to(tl.float32) straight after tl.load"  # no hint: triton wraps the error, and keeps its message alone
        )


def interpreting() -> bool:
    """Whether kernels run in triton's interpreter (TRITON_INTERPRET=1 before triton was imported); patches it if so."""
    from triton import knobs

    if knobs.runtime.interpret:
        patch()
        return True
    return False


def patch() -> None:
    """Make bf16 right or refused, for the life of the process. Calling it again does nothing.

    Raises GristmillError where this triton has no operation of a name that is patched: its interpreter was rewritten.
    """
    import triton
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if getattr(builder, "_gristmill_bf16", False):
        return
    names = [name for name in dir(builder) if name.startswith("create_")]
    missing = sorted((CASTS | {"create_dot", "create_load", "create_store", "create_fadd"}) - set(names))
    if missing or not hasattr(interpreter.ReduceScanOpInterface, "apply"):
        raise GristmillError(
            f"the interpreter of triton {triton.__version__} can't be patched for bf16: no {', '.join(missing)}",
            hint="install the triton of constraints.txt",
        )
    for name in names:
        if name not in COVERED:
            setattr(builder, name, _refusing(name, getattr(builder, name)))
    builder.create_dot = _wide_dot(builder.create_dot)
    for name in CASTS:
        setattr(builder, name, _rounding(name, getattr(builder, name)))
    reduce_or_scan = interpreter.ReduceScanOpInterface
    reduce_or_scan.apply = _refusing("reduce or scan", reduce_or_scan.apply)
    builder._gristmill_bf16 = True


def _is_bf16(value: Any) -> bool:
    """Of a handle or tensor; pointers to bf16 are none. Looks into the tuples that reductions and asm take."""
    import triton.language as tl

    if isinstance(value, (tuple, list)):
        return any(_is_bf16(v) for v in value)
    dtype = getattr(value, "dtype", value)
    return isinstance(dtype, tl.dtype) and dtype.scalar == tl.bfloat16


def _refusing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(self: Any, *arguments: Any, **options: Any) -> Any:
        if any(_is_bf16(a) for a in (*arguments, *options.values())):  # a dtype too: a cast from an integer to bf16
            raise Uncovered(name)
        return original(self, *arguments, **options)

    return refuse


def _wide_dot(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
        if _is_bf16(accumulator):
            raise Uncovered("create_dot with a bf16 result")
        a, b = (_widened(x) if _is_bf16(x) else x for x in (a, b))
        return original(self, a, b, accumulator, *rest)

    return create_dot


def _rounding(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def cast(self: Any, source: Any, to: Any, *rounding: Any) -> Any:
        import triton.language as tl
        from triton._C.libtriton import ir

        kinds = (source.dtype.scalar, to.scalar)
        if tl.bfloat16 not in kinds:
            return original(self, source, to, *rounding)
        if kinds == (tl.bfloat16, tl.float32):
            return _widened(source)
        if kinds == (tl.float32, tl.bfloat16) and all(r in (None, ir.ROUNDING_MODE.RTNE) for r in rounding):
            return _rounded(source)
        raise Uncovered(f"{name} from {kinds[0]} to {kinds[1]} (rounding {rounding or 'to nearest'})")

    return cast


def _widened(handle: Any) -> Any:
    """bf16 is the upper half of an fp32."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    bits = np.ascontiguousarray(handle.data).astype(np.uint32) << np.uint32(16)
    return TensorHandle(bits.view(np.float32).reshape(handle.data.shape), tl.float32)


def _rounded(handle: Any) -> Any:
    """To nearest, ties to even: adding 0x7FFF, and the lowest bit kept, carries into the upper half when it must."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    bits = np.ascontiguousarray(handle.data).view(np.uint32)
    with np.errstate(over="ignore"):  # of a NaN alone, which is replaced
        up = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    halves = np.where(np.isnan(handle.data).reshape(up.shape), np.uint16(0x7FC0), up.astype(np.uint16))
    return TensorHandle(halves.reshape(handle.data.shape), tl.bfloat16)
