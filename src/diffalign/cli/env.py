"""``diffalign env``: what this machine offers, for a bug report or before a long run."""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from typing import Annotated, Any

import typer

from diffalign.core import print_table, versions

__all__ = ["env", "environment"]


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Show versions, devices, threads, memory and extras."""
    facts = environment()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    rows = [(group, name, value) for group, entries in facts.items() for name, value in entries.items()]
    print_table(["", "what", "found"], rows)


def environment() -> dict[str, dict[str, Any]]:
    """The facts of ``diffalign env``: group -> name -> value."""
    found = versions()
    revision = found.pop("git_revision") or "not a checkout"
    packages = {name: version or "not installed" for name, version in found.items()}
    return {
        "versions": packages | {"git_revision": revision},
        "devices": _devices(),
        "processor": _processor(),
        "extras": _extras(),
    }


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": "always"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def _processor() -> dict[str, Any]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": cores, "torch_threads": torch.get_num_threads(), "memory_gib": round(memory / 2**30, 1)}


def _extras() -> dict[str, str]:
    """Per optional group of packages: installed, or which of them are missing."""
    missing: dict[str, list[str]] = {
        name: [] for name in metadata.metadata("diffalign").get_all("Provides-Extra") or ()
    }
    for requirement in metadata.requires("diffalign") or ():
        extra = re.search(r"""extra == ['"]([^'"]+)['"]""", requirement)
        package = re.match(r"[A-Za-z0-9._-]+", requirement)
        if extra and package and not _installed(package.group()):
            missing[extra.group(1)].append(package.group())
    return {name: f"missing: {', '.join(absent)}" if absent else "installed" for name, absent in missing.items()}


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
