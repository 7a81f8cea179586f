import sys

import pytest

from diffalign.core import DiffalignError, Registry, resolve


@pytest.fixture
def shapes():
    registry: Registry[type] = Registry("shape")

    @registry.register("square")
    class Square: ...

    @registry.register("circle")
    class Circle: ...

    return registry


def test_names_are_sorted_and_found(shapes):
    assert shapes.names() == list(shapes) == ["circle", "square"]
    assert len(shapes) == 2 and "square" in shapes and "squire" not in shapes
    assert shapes.get("square").__name__ == "Square"


def test_unknown_name_lists_the_nearest(shapes):
    with pytest.raises(DiffalignError, match=r"unknown shape 'squire'; nearest: square \(known: circle, square\)"):
        shapes.get("squire")


def test_duplicate_name_is_refused_and_the_first_stays(shapes):
    first = shapes.get("square")
    with pytest.raises(ValueError, match=r"shape 'square' is already registered, as .*Square"):
        shapes.register("square")(object())
    assert shapes.get("square") is first


@pytest.mark.parametrize("name", ["", "module:function"])
def test_bad_names_are_refused(shapes, name):
    with pytest.raises(ValueError, match="not empty and holds no colon"):
        shapes.register(name)


@pytest.fixture
def user_modules(tmp_path, monkeypatch):
    (tmp_path / "user_rewards.py").write_text(
        "class Reward:\n    score = staticmethod(lambda x: 2 * x)\n\nbrightness = Reward.score\nlevel = 3\n"
    )
    (tmp_path / "user_needy.py").write_text("import package_that_is_absent\n")
    (tmp_path / "user_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("user_rewards", "user_needy", "user_broken"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("user_modules")
def test_resolve_reaches_functions_and_into_classes():
    assert resolve("user_rewards:brightness")(3) == resolve("user_rewards:Reward.score")(3) == 6


@pytest.mark.usefixtures("user_modules")
@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("brightness", "expected 'module:function'"),
        ("user_rewards:", "expected 'module:function'"),
        ("a b:c", "expected 'module:function'"),
        ("user_rewrads:brightness", "no module 'user_rewrads'.*PYTHONPATH"),
        ("user_rewards.sub:brightness", "no module 'user_rewards.sub'"),
        ("user_needy:f", "needs 'package_that_is_absent'"),
        ("user_broken:f", "importing 'user_broken' failed: ZeroDivisionError"),
        ("user_rewards:brightnes", "unknown name in 'user_rewards' 'brightnes'; nearest: brightness"),
        ("user_rewards:level", "expected something to call, got int"),
    ],
)
def test_resolve_says_what_is_wrong(spec, complaint):
    with pytest.raises(DiffalignError, match=complaint):
        resolve(spec)
