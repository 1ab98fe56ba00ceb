"""Compile every kernel for a GPU that is not there, through the launchers that production uses, and check the result.

  python -m gristmill.trainer.kernels.aot --target sm90 [--check] [--write] [--json]

Launchers run on meta tensors under a driver that only names its target; each launch compiles what a real one would and
stops there. Kernel files are compiled in processes of their own: under TRITON_INTERPRET there is nothing to compile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gristmill.trainer.kernels import aot_limits
from gristmill.trainer.kernels.aot_measure import CHIPS, MATRIX, Chip, measure, toolchain
from gristmill.trainer.kernels.cases import MODULES, cases

Table = dict[str, dict[str, int]]

SECONDS = 900  # a kernel file takes about 10 s for one target; ptxas has been seen to hang on a tile far too large


@contextmanager
def compiled(chip: Chip) -> Iterator[list[tuple[str, Any]]]:
    """Launches in this block only compile, for `chip`: yields the growing list of (kernel's name, triton's kernel)."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import driver, jit

    class Absent(DriverBase):  # type: ignore[misc]
        """A GPU of which only the target is known."""

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_current_target(self) -> Any:
            return GPUTarget(chip.backend, chip.arch, chip.warp)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("meta")

        def get_benchmarker(self) -> Any:
            raise AssertionError("a kernel is timed while it is compiled: tiles are chosen from a table")

        def get_current_device(self) -> Any:
            return chip  # caches of compiled kernels are keyed by it

        def get_current_stream(self, device: Any) -> int:
            return 0

    launches: list[tuple[str, Any]] = []
    run = jit.JITFunction.run

    def warmup(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        launches.append((self.fn.__name__, kernel))
        return kernel

    before = driver._active
    driver.set_active(Absent())
    jit.JITFunction.run = warmup
    try:
        yield launches
    finally:
        jit.JITFunction.run, driver._active = run, before


def compile_module(module: str, target: str) -> tuple[Table, list[str]]:
    """({kernel: figures}, faults) of one kernel file, in this process. A specialisation counts once, for its first case."""
    chip, seen, table, faults = CHIPS[target], set(), Table(), []
    for case, launch in cases(module):
        with compiled(chip) as launches:
            try:
                launch()
            except Exception as error:  # whatever the compiler raises is a finding
                faults.append(f"{module.rpartition('.')[2]} {case}: {type(error).__name__}: {str(error)[:500]}")
        for name, kernel in launches:
            if kernel.hash in seen:
                continue
            seen.add(kernel.hash)
            key = f"{module.rpartition('.')[2]}.{name.strip('_')} {case}"
            twins = sum(k == key or k.startswith(key + " #") for k in table)
            table[f"{key} #{twins + 1}" if twins else key] = measure(kernel, chip)
    if not table and not faults:
        faults.append(f"{module} launches nothing")
    return table, faults


def compile_all(modules: Sequence[str], target: str) -> tuple[Table, list[str]]:
    """({kernel: figures}, faults) of kernel files, each in a process without TRITON_INTERPRET, as many as there are cores."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}

    def one(module: str) -> tuple[Table, list[str]]:
        command = [sys.executable, "-m", __spec__.name, "--worker", module, "--target", target]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return {}, [f"{module}: not compiled in {SECONDS} s"]
        if done.returncode:
            return {}, [f"{module}: {(done.stderr.strip() or 'no message')[-500:]}"]
        table, faults = json.loads(done.stdout.splitlines()[-1])
        return table, faults

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(one, modules))
    return {k: v for table, _ in results for k, v in table.items()}, [f for _, faults in results for f in faults]


def render(table: Table) -> str:
    """The figures as Markdown."""
    lines = [
        "| kernel | registers | stack | spills | shared | matrix | wide loads | narrow | wide stores | narrow | instructions |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kernel, row in sorted(table.items()):
        matrix = ", ".join(f"{row[kind]} {kind}" for kind in MATRIX if kind in row) or "–"
        kinds = {"load_wide": "128-bit", "load_async": "async", "load_tma": "TMA"}
        loads = ", ".join(f"{row[kind]} {word}" for kind, word in kinds.items() if kind in row) or "–"
        cells = [row["registers"], row["stack"], row.get("spills", 0), row["shared"], matrix, loads]
        cells += [row.get(k, "–") for k in ("load_narrow", "store_wide", "store_narrow", "instructions")]
        lines.append(f"| {kernel} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gristmill.trainer.kernels.aot", description=__doc__.split("\n")[0])
    parser.add_argument("--target", required=True, choices=[*CHIPS], help="chip to compile for; needs no GPU")
    parser.add_argument("--check", action="store_true", help="exit 1 when a limit is broken")
    parser.add_argument("--write", action="store_true", help="make these figures the committed ones")
    parser.add_argument("--json", action="store_true", help="print figures and faults as JSON instead of a table")
    parser.add_argument("--module", action="append", help="a kernel file by its dotted name (default: all)")
    parser.add_argument("--budgets", type=Path, default=aot_limits.FOLDER, help="folder of committed figures")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(compile_module(options.worker, options.target)))
        return 0
    table, faults = compile_all(options.module or MODULES, options.target)
    versions = toolchain(CHIPS[options.target])
    if options.write:
        faults += [f for kernel, figures in table.items() for f in aot_limits.wrong(kernel, figures, options.target)]
        if not faults:
            path = aot_limits.write(table, options.target, versions, options.budgets)
            print(f"wrote {path}", file=sys.stderr)
    elif options.check:
        faults += aot_limits.check(table, options.target, versions, options.budgets)
    if options.json:
        print(
            json.dumps({"target": options.target, "toolchain": versions, "kernels": table, "faults": faults}, indent=1)
        )
    else:
        print(f"{options.target}, {versions}\n\n{render(table)}\n")
        for fault in faults:
            print(f"fault: {fault}")
    if options.check and not faults:
        print(f"{len(table)} kernels within their limits", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
