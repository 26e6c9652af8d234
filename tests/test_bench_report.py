"""The benchmark report: what the page says of a run, and its pictures."""

import argparse
import dataclasses
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import pictures, report
from benchmarks.ratios import duration
from benchmarks.record import Result
from benchmarks.tables import markdown

from .report_runs import ODD, RUNS, awkward, full

PICTURES = {"ratios.png", "roofline.png", "scaling.png", "memory.png"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The reports of the runs, each in a folder."""
    made = {name: tmp_path_factory.mktemp(name) for name in RUNS}
    for name, run in RUNS.items():
        assert list(report.write_report(run(), made[name])) == []
    return made


def cells(text: str) -> list[list[str]]:
    """The rows of all tables, without those below their heads."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


each = pytest.mark.parametrize("run", RUNS)


@each
def test_page_is_sound(folders, run):
    """As many cells in each row of a table as in its head; the pictures are there."""
    text = (folders[run] / "report.md").read_text()
    for table in filter(lambda part: part.startswith("|"), text.split("\n\n")):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert all((folders[run] / name).exists() == (f"![{name}]" in text) for name in PICTURES)


@each
def test_every_work_and_variant(folders, run):
    result = RUNS[run]()
    expected = Counter(
        (w.dtype, w.direction, w.cache, str(w.threads), " ".join(name.replace("|", "&#124;").split()))
        for w in result.works
        for name in w.variants
    )
    rows = cells((folders[run] / "report.md").read_text())
    assert Counter(tuple(row[1:6]) for row in rows if row[3:4] in (["warm"], ["cold"])) == expected


def test_figures_are_the_records(folders):
    result = full()
    work = result.works[0]
    rows = cells((folders["full"] / "report.md").read_text())
    found = next(row for row in rows if row[:2] == ["cremad", "float32"] and row[5] == "fused")
    for figure in (
        duration(work.variants["fused"].median),
        f"{work.gb_s():.3g}",
        f"{100 * result.copy_share(work):.3g} %",
        f"{work.ratio('eager'):.3g}",
        f"{work.ratio('compile'):.3g}",
        f"{work.variants['fused'].peak_extra_bytes / 2**20:.1f}",
    ):
        assert figure in found


def test_goals_are_told_honestly(folders):
    rows = [row[2:] for row in cells((folders["full"] / "report.md").read_text()) if row[1][:2] in (">=", "<=")]
    assert rows == [["23 x", "NOT met"], ["1.9 x", "met"], ["not measured", ""]]


def test_what_is_missing_is_said(folders):
    text = (folders["awkward"] / "report.md").read_text()
    assert "Wrong results, not timed" in text and "fused, result 0: error 1e9 a&#124;b $x^2$ <c>" in text
    assert "Slopes" not in text and "not measured" in text and not {"nan", "None", "inf"} & set(text.split())
    assert "launches" in text and "40 µs" in text
    nothing = (folders["nothing"] / "report.md").read_text()
    assert "an unknown processor" in nothing and "Goals" not in nothing


def test_names_are_text():
    assert markdown([("a", "b"), (ODD.replace("^", "\n"), "c")]) == "| a | b |\n|---|---|\n| a&#124;b $x 2$ <c> | c |"


def test_pictures(folders):
    for name in PICTURES:
        with Image.open(folders["full"] / name) as image:
            assert image.width > 400 and len(image.getcolors(1 << 20)) > 20
    assert not PICTURES & {path.name for path in folders["nothing"].iterdir()}


def test_stale_pictures_go(tmp_path):
    (tmp_path / "scaling.png").write_bytes(b"old")
    list(report.write_report(RUNS["nothing"](), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_without_matplotlib_there_is_a_page(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.pictures", None)
    (said,) = report.write_report(awkward(), tmp_path)
    assert said.startswith("no pictures: ") and [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_bars_are_as_long_as_the_ratios():
    """A bar for each ratio, from 1; what was not measured has none."""
    work = full().works[0]
    bare = dataclasses.replace(work, shape="bare", variants={"fused": work.variants["fused"]})
    (panel,), kinds = pictures._pictures(Result({}, {}, [work, bare]))["ratios"]
    axes = pictures.Figure().subplots()
    panel.draw(axes)
    assert list(kinds) == ["eager", "compile"] and [label.get_text() for label in axes.get_yticklabels()] == [
        "cremad fwd"
    ]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx([work.ratio("eager"), work.ratio("compile")])


def test_fused_has_its_colour_alone():
    assert pictures._kind("fused", "fused") == "fused"
    assert pictures._kind("triton", "fused") == "backend"


def test_command(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    out = tmp_path / "new"
    RUNS["nothing"]().save(tmp_path / "results.json")
    assert report.run(parser.parse_args([str(tmp_path / "results.json"), "--out", str(out)])) == 0
    assert (out / "report.md").exists()
    (tmp_path / "other.json").write_text("{}")
    assert report.run(parser.parse_args([str(tmp_path / "other.json")])) == 2
    assert "expected schema" in capsys.readouterr().err
