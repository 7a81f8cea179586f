import pytest

from diffalign.core import DiffalignError, dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5), ("3.", 3.0), ("1.0e-05", 1e-5),
        ("7", 7), ("-7", -7), ("010", 10), ("+3", 3),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("yes", "yes"), ("no", "no"), ("off", "off"), ("16:9", "16:9"), ("1:30:00", "1:30:00"),
        ("2024-01-02", "2024-01-02"), ("1_000", "1_000"), ("0x1f", "0x1f"), ("e5", "e5"), ("'1e-4'", "1e-4"),
        ("[1, two]", [1, "two"]), ("{a: {b: 1}}", {"a": {"b": 1}}), ("<<", "<<"), ("a=b", "a=b"), ("=", "="),
    ],
)  # fmt: skip
def test_plain_words(text, value):
    parsed = parse_yaml(text, where="here")
    assert parsed == value and type(parsed) is type(value)


def test_infinity():
    assert parse_yaml("[.inf, -.inf]", where="here") == [float("inf"), float("-inf")]


@pytest.mark.parametrize(
    "value",
    [
        "1e-4", "1", "1.0", "no", "yes", "null", "~", "", "true", "16:9", "2024-01-02", "<<", "=", "a: b", "# x",
        "é\n北京", " lead", "x" * 300, 1e-4, 1e22, 5e-324, 3, -0.0, float("inf"), True, None, [], {},
        {"1": [1, {"a": None}]},
    ],
)  # fmt: skip
def test_what_is_dumped_reads_back_unchanged(value):
    again = parse_yaml(dump_yaml({"key": value}), where="here")["key"]
    assert again == value and type(again) is type(value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: [1, 2", r"here, line 2.* is not valid YAML"),
        ("a: 1\nb: 2\na: 3", r"here, line 3, column 1 is not valid YAML: the key 'a' is given twice"),
        ("x: {a: 1, a: 2}", r"the key 'a' is given twice"),
        ("!!python/object/apply:os.system [ls]", r"could not determine a constructor"),
        ("? [1]\n: 2", r"here, line 1.*unhashable"),
        ("a: 1\n---\nb: 2", r"but found another document"),
        ("a: \x00", r"here.* is not valid YAML"),
        ("!!float abc", r"here is not valid YAML: could not convert"),
        ("1" * 5000, r"here is not valid YAML"),
    ],
)
def test_bad_yaml_names_the_place(text, complaint):
    with pytest.raises(DiffalignError, match=complaint):
        parse_yaml(text, where="here")
