"""Lists of prompts: every format, ids from the text alone, and mistakes told with their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffalign.core import DiffalignError
from diffalign.data import captions
from diffalign.sample import PromptRow, prompt_id, read_prompts

LISTS = Path(__file__).resolve().parents[2].parent / "shared" / "prompts"


@pytest.mark.parametrize(
    ("name", "count", "prompt"),
    [
        ("drawbench_200.txt", 200, "A red colored car."),
        ("pickapic_sfw_test_1024.txt", 1024, "Danish male with blue eyes, realistic, viking"),
        ("geneval_553.jsonl", 553, "a photo of a cow"),
        ("partiprompts_1632.tsv", 1632, "yin-yang"),
        ("hpdv2_3200.tsv", 3172, '"A man drinking a cup of cosmic energy in a surreal anime style artwork."'),
    ],
)
def test_the_lists_of_the_field_read(name: str, count: int, prompt: str) -> None:
    if not (LISTS / name).is_file():
        pytest.skip(f"no {LISTS / name}")
    rows = read_prompts(LISTS / name)
    assert len(rows) == count == len({row.id for row in rows})
    assert PromptRow(prompt_id(prompt), prompt) in rows


def test_a_prompt_has_one_id_in_every_format(tmp_path: Path) -> None:
    contents = {
        "a.txt": "\ufeffa cat, asleep\r\n\n  grass \n",
        "a.jsonl": '{"prompt": "a cat, asleep", "tag": 3}\n\n{"prompt": "grass"}\n',
        "a.tsv": "style\tPrompt\nphoto\ta cat, asleep\nphoto\tgrass\n",
        "a.csv": 'prompt,style\r\n"a cat, asleep",photo\r\ngrass,photo\r\n',
    }
    expected = [PromptRow(prompt_id(text), text) for text in ("a cat, asleep", "grass")]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode())
        assert read_prompts(tmp_path / name) == expected, name


def test_ids_that_are_given_stay(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 7, "prompt": "grass"}\n{"id": "../x", "prompt": "gravel"}\n')
    assert read_prompts(tmp_path / "a.jsonl") == [PromptRow("7", "grass"), PromptRow("../x", "gravel")]


def test_quotes_belong_to_the_text_of_tab_separated_tables(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('prompt\n"G I G G L E" painted\n')
    (tmp_path / "a.csv").write_text('prompt\n"""G I G G L E"" painted"\n')
    assert read_prompts(tmp_path / "a.tsv") == read_prompts(tmp_path / "a.csv")


def test_repeated_prompts_keep_the_first_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("grass\ngravel\ngrass \ngrass\n")
    assert [row.prompt for row in read_prompts(tmp_path / "a.txt")] == ["grass", "gravel"]
    assert "left out 2 of 4 rows" in capsys.readouterr().err


def test_the_photographs_captions_are_a_list() -> None:
    assert [row.prompt for row in read_prompts("photographs")] == captions()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", '{"prompt": "x"}\n{"text": "y"}', "row 2: expected a prompt, got None"),
        ("a.jsonl", '{"prompt": "x"}\n{', "line 2 is not JSON"),
        ("a.jsonl", '{"prompt": "x", "id": [1]}', r"row 1: expected an id .* got \[1\]"),
        ("a.jsonl", '{"prompt": "x\\ud800"}', "row 1: .* Unicode"),
        ("a.jsonl", '{"prompt": "x", "id": "1"}\n{"prompt": "y", "id": 1}', "row 2: the id '1' is also"),
        ("a.tsv", "a cat\na dog\n", "line 1: expected a heading with one column 'prompt'"),
        ("a.tsv", "style\tprompt\nphoto\tx\nphoto\n", "line 3: expected 2 cells .* got 1"),
        ("a.tsv", "style\tprompt\nphoto\t \n", "line 2: expected a prompt"),
        ("a.csv", "prompt\na cat, asleep\n", "line 2: expected 1 cells .* got 2; put"),
        ("a.csv", 'prompt\n"a cat\n', "line 2: "),
        ("a.parquet", "", "unknown list of prompts .*photographs"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DiffalignError, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiffalignError, match="cannot read"):
        read_prompts(tmp_path / "a.txt")
