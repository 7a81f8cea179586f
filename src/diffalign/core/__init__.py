"""What everything stands on: errors, whole files, locks, shards, seeds, registries, settings, the console, run folders.

Importing it loads neither torch nor any library of models.
"""

from __future__ import annotations

from diffalign.core.config import (
    Config,
    Setting,
    config_to_yaml,
    describe,
    dump_config,
    load_config,
    override,
    setting,
)
from diffalign.core.console import get_console, print_table, progress, warn
from diffalign.core.devices import default_device
from diffalign.core.errors import DiffalignError, nearest, unknown
from diffalign.core.files import (
    atomic_path,
    read_json,
    read_jsonl,
    read_text,
    remove_stale,
    safe_name,
    sha256_file,
    write_json,
    write_jsonl,
    write_text,
)
from diffalign.core.locks import folder_lock
from diffalign.core.registry import Registry, resolve
from diffalign.core.runs import RunFolder, versions
from diffalign.core.seeds import content_hash, numpy_generator, seed_from, torch_generator
from diffalign.core.shards import Mapper, Shard, plan_shards, run_shards, shard_name
from diffalign.core.yamls import dump_yaml, parse_yaml

__all__ = [
    "Config",
    "DiffalignError",
    "Mapper",
    "Registry",
    "RunFolder",
    "Setting",
    "Shard",
    "atomic_path",
    "config_to_yaml",
    "content_hash",
    "default_device",
    "describe",
    "dump_config",
    "dump_yaml",
    "folder_lock",
    "get_console",
    "load_config",
    "nearest",
    "numpy_generator",
    "override",
    "parse_yaml",
    "plan_shards",
    "print_table",
    "progress",
    "read_json",
    "read_jsonl",
    "read_text",
    "remove_stale",
    "resolve",
    "run_shards",
    "safe_name",
    "seed_from",
    "setting",
    "sha256_file",
    "shard_name",
    "torch_generator",
    "unknown",
    "versions",
    "warn",
    "write_json",
    "write_jsonl",
    "write_text",
]
