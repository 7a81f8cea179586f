"""``diffalign inspect`` writes a page and prints where."""

from __future__ import annotations

from typer.testing import CliRunner

from diffalign.cli import app


def test_inspect_shows_any_preference_set(make_pairs, tmp_path):
    data, out = make_pairs(5, "blur"), tmp_path / "page.html"
    done = CliRunner().invoke(app, ["inspect", str(data), "--out", str(out), "--limit", "3"])
    assert (done.exit_code, done.stdout) == (0, f"{out}\n")
    text = out.read_text()
    assert "3 of 5 rows" in text and "5 pairs of" in text and text.count('class="card"') == 3


def test_inspect_tells_what_it_cannot_read(tmp_path):
    done = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert done.exit_code == 2 and "no Parquet files" in done.output
