"""What every benchmark does at its end: print one table, write one JSON with the machine."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from fracray.runtime.run_folder import environment


def machine() -> dict[str, Any]:
    """Cores, the processor's name, memory (GiB) and versions."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cores": len(psutil.Process().cpu_affinity()),
        "processor": names[0] if names else platform.processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        **{name: value for name, value in environment().items() if name != "command"},
    }


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def write_results(console: Console, name: str, table: Table, figures: Mapping[str, Any], path: Path) -> None:
    """Print the table and write figures and machine to `path`."""
    console.print(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, "machine": machine(), **figures}, indent=1) + "\n")
    console.print(f"written: {path}", soft_wrap=True)
