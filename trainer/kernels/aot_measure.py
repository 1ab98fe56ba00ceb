"""What a compiled kernel is made of: registers, stack, spills, shared memory, matrix and wide memory instructions.

Read from the cubin by cuobjdump and nvdisasm, which come with triton, or from AMD's assembly and its metadata notes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple


class Chip(NamedTuple):
    """A compile target. `shared`: bytes of shared memory one block may have; only a launch would refuse more."""

    backend: str
    arch: int | str
    warp: int
    shared: int


CHIPS = {
    "sm80": Chip("cuda", 80, 32, 166_912),  # A100: 163 KiB a block (CUDA C programming guide, compute capabilities)
    "sm90": Chip("cuda", 90, 32, 232_448),  # H100, H200: 227 KiB
    "sm100": Chip("cuda", 100, 32, 232_448),  # B200: 227 KiB
    "gfx942": Chip("hip", "gfx942", 64, 65_536),  # MI300X: 64 KiB of LDS (CDNA 3 ISA guide)
}

NVIDIA = {  # SASS opcodes
    "hmma": r"(HMMA|IMMA|QMMA|DMMA)",  # a warp's: sm80, and sm90 where no warp group's fits
    "hgmma": r"(HGMMA|QGMMA|IGMMA)",  # a warp group's: sm90
    "tcgen05": r"UTC\w*MMA",  # tensor memory's: sm100
    "load_wide": r"LDG(?!STS).*\.(128|256)",
    "load_async": r"LDGSTS",
    "load_tma": r"UTMALDG",
    "load_narrow": r"LDG(?!STS)(?!.*\.(128|256))",
    "store_wide": r"(STG.*\.(128|256)|UTMASTG)",
    "store_narrow": r"STG(?!.*\.(128|256))",
    "atomics": r"(ATOM|RED)",
    "barriers": r"BAR",
    "spills": r"(STL|LDL)",
    "instructions": r"",
}
AMD = {
    "mfma": r"v_mfma",
    "load_wide": r"(global|buffer)_load_(dwordx4|b128)",
    "load_async": r"(global|buffer)_load_lds",
    "load_narrow": r"(global|buffer)_load_(?!dwordx4|b128|lds)",
    "store_wide": r"(global|buffer)_store_(dwordx4|b128)",
    "store_narrow": r"(global|buffer)_store_(?!dwordx4|b128)",
    "atomics": r"(global|buffer)_atomic",
    "barriers": r"s_barrier",
    "spills": r"scratch_(load|store)",
    "instructions": r"",
}
MATRIX = ("hmma", "hgmma", "tcgen05", "mfma")
WIDE = ("load_wide", "load_async", "load_tma", "store_wide")

SASS_LINE = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.M)
AMD_LINE = re.compile(r"^\t([a-z]\w+)", re.M)
DOT = re.compile(r"^.*\btt\.dot\b.*$", re.M)


def toolchain(chip: Chip) -> str:
    """The versions that decide the machine code, as budgets name them: "triton 3.7.1, ptxas 12.8"."""
    import triton

    if chip.backend != "cuda":
        return f"triton {triton.__version__}"
    from triton.backends.nvidia.compiler import get_ptxas

    return f"triton {triton.__version__}, ptxas {get_ptxas(int(chip.arch)).version}"


def measure(kernel: Any, chip: Chip) -> dict[str, int]:
    """The figures of one triton CompiledKernel; counts of opcodes that do not occur are left out."""
    figures = {"shared": int(kernel.metadata.shared)}
    if chip.backend == "cuda":
        usage, code = _dissect(kernel.asm["cubin"])
        figures["registers"], figures["stack"] = (int(_first(rf"{key}:(\d+)", usage)) for key in ("REG", "STACK"))
        if getattr(kernel.metadata, "tmem_size", 0):
            figures["tensor_memory"] = int(kernel.metadata.tmem_size)
        opcodes, kinds = SASS_LINE.findall(code), NVIDIA
    else:
        text = kernel.asm["amdgcn"]
        figures["registers"] = int(_first(r"\.vgpr_count:\s+(\d+)", text))
        figures["stack"] = int(_first(r"\.private_segment_fixed_size:\s+(\d+)", text))
        opcodes, kinds = AMD_LINE.findall(text), AMD
    assert opcodes, "the disassembly has another form than known"
    for kind, pattern in kinds.items():
        if count := sum(bool(re.match(pattern, opcode)) for opcode in opcodes):
            figures[kind] = count
    if dots(kernel.asm["ttir"]):
        figures["dots"] = dots(kernel.asm["ttir"])
    return figures


def dots(ttir: str) -> int:
    """Matrix products that are meant for matrix units: all but those of fp32 at full precision."""
    return sum("inputPrecision = tf32" in line or "xf32> *" not in line for line in DOT.findall(ttir))


def _dissect(cubin: bytes) -> tuple[str, str]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        runs = [
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for command in (
                [str(tools / "cuobjdump"), "-res-usage", file.name],
                [str(tools / "nvdisasm"), "-c", file.name],
            )
        ]
    return runs[0], runs[1]


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in the tool's output"
    return found[1]
