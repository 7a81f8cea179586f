"""The shape of the house: what may import what, what is public, what is never used."""

import ast
import importlib
from pathlib import Path

import pytest
from pydantic import ValidationError

import diffalign
from diffalign.core import Config, describe, setting

ROOT = Path(diffalign.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ORDER = (
    "types", "core", "data", "models", "rewards", "objectives", "guidance", "stats",
    "sample", "curate", "train", "evaluate", "report", "study", "recipes", "cli",
)  # fmt: skip
# these hand rows to the report through files and the command line
APART = {("report", "curate"), ("report", "train"), ("report", "evaluate")}


def module_name(path: Path) -> str:
    parts = ["diffalign", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [module_name(path) for path in FILES]
PACKAGES = [module_name(path) for path in FILES if path.name == "__init__.py"]


def imported(tree: ast.AST, importer: str, is_package: bool) -> list[str]:
    """The absolute names a module imports, also inside functions; ``from a import b`` counts as a and as a.b."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = importer.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def part(name: str) -> str:
    """The folder (or top module) of the house a name lies in; empty outside it."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "diffalign" and len(pieces) > 1 and pieces[1] in ORDER else ""


def wrong_imports(source: str, importer: str, is_package: bool = False) -> list[str]:
    here = part(importer)
    there = {part(name) for name in imported(ast.parse(source), importer, is_package)} - {"", here}
    if not here:  # diffalign/__init__ stands outside the order
        return sorted(there)
    return sorted(name for name in there if ORDER.index(name) > ORDER.index(here) or (name, here) in APART)


def test_every_part_is_in_the_order():
    parts = {module.split(".")[1] for module in MODULES if "." in module}
    assert parts <= set(ORDER), f"name the place of {parts - set(ORDER)} in ORDER"


@pytest.mark.parametrize("path", FILES, ids=MODULES)
def test_imports_point_one_way(path):
    wrong = wrong_imports(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py")
    assert not wrong, f"{module_name(path)} may not import {wrong}"


@pytest.mark.parametrize(
    ("source", "importer", "is_package", "wrong"),
    [
        ("import diffalign.models.processes", "diffalign.data.rows", False, ["models"]),
        ("from diffalign import train", "diffalign.data.rows", False, ["train"]),
        ("from ..train import loop", "diffalign.data.rows", False, ["train"]),
        ("from ..train import loop", "diffalign.data.rows.sub", True, []),
        ("from ..models import x", "diffalign.core", True, ["models"]),
        ("def f():\n    from diffalign.report import x", "diffalign.train.loop", False, ["report"]),
        ("from diffalign.evaluate import x", "diffalign.report.page", False, []),
        ("from diffalign.core import x", "diffalign.data.rows", False, []),
        ("import torch", "diffalign.core.seeds", False, []),
        ("from diffalign.core import x", "diffalign", True, ["core"]),
    ],
)
def test_the_check_of_imports_sees_wrong_ones(source, importer, is_package, wrong):
    assert wrong_imports(source, importer, is_package) == wrong


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_every_public_name_exists(name):
    module = importlib.import_module(name)
    public = getattr(module, "__all__", None)
    if name in PACKAGES:
        assert public, f"{name} must name its public API in __all__"
    for each in public or ():
        assert hasattr(module, each), f"{name}.__all__ names {each!r}, which it lacks"
    assert len(set(public or ())) == len(public or ())


def unsafe_uses(source: str) -> list[str]:
    """Uses of pickle, and torch.load without weights_only=True."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [name for name in imported(node, "", False) if name.split(".")[0] in PICKLES]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "torch.load",
            "torch.save",
            "np.load",
            "numpy.load",
        }:
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            safe = {"torch.load": keywords.get("weights_only") == "True", "torch.save": False}
            if not safe.get(ast.unparse(node.func), keywords.get("allow_pickle", "False") == "False"):
                found.append(ast.unparse(node))
    return found


PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("path", FILES, ids=MODULES)
def test_nothing_pickles(path):
    assert unsafe_uses(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import dill as p", "def f():\n    import pickle",
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.save(x, path)",
        "np.load(path, allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_check_of_pickle_sees_it(source):
    assert unsafe_uses(source)


def test_the_check_of_pickle_lets_safe_reading_pass():
    assert unsafe_uses("torch.load(path, weights_only=True)\nnp.load(path)\nimport json") == []


def configs(cls: type[Config] = Config) -> list[type[Config]]:
    """Every settings class of the package; call it after the modules were imported."""
    below = [found for child in cls.__subclasses__() for found in [child, *configs(child)]]
    return [found for found in below if found.__module__.startswith("diffalign.")]


def undocumented(cls: type[Config]) -> list[str]:
    return [row.key for row in describe(cls) if not row.doc]


def wrong_defaults(cls: type[Config]) -> list[str]:
    """pydantic takes defaults on trust; here they are validated like given values."""
    fields = {name: field for name, field in cls.model_fields.items() if not field.is_required()}
    defaults = {name: field.get_default(call_default_factory=True, validated_data={}) for name, field in fields.items()}
    try:
        cls.__pydantic_validator__.validate_python(defaults)
    except ValidationError as error:
        return [str(details["loc"]) for details in error.errors() if details["type"] != "missing"]
    return []


def test_every_setting_is_documented_and_every_default_valid():
    for name in MODULES:
        importlib.import_module(name)
    for cls in configs():
        assert undocumented(cls) == [] and wrong_defaults(cls) == [], cls.__name__


def test_the_check_of_settings_sees_wrong_ones():
    class Wrong(Config):
        given: int = setting(..., "must be given")
        steps: int = setting(0, "", gt=0)
        sizes: tuple[int, ...] = setting([1], "a list is no tuple")

    assert undocumented(Wrong) == ["steps"]
    assert wrong_defaults(Wrong) == ["('steps',)", "('sizes',)"]
