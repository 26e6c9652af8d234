"""The benchmark report: what the page says of a run, and its plots."""

import argparse
import math
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from benchmarks import report
from benchmarks.report import bars, drawing, palette, pictures, text

from .report_runs import HOSTILE, RUNS, full, write_reports

VOID = {"meta", "link", "input", "br"}


class Parsed(HTMLParser):
    """A page's tags with their attributes and text; unbalanced tags are an error."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        assert len(element[1]) == len(attributes), f"an attribute twice: {attributes}"
        self.tags.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, texts in self.open:
            texts.append(data)

    def find(self, tag: str, **attributes: str) -> list[str]:
        wanted = attributes.items()
        return ["".join(texts) for name, found, texts in self.tags if name == tag and wanted <= found.items()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return write_reports(tmp_path_factory)


@pytest.fixture(scope="module")
def pages(folders) -> dict[str, Parsed]:
    return {name: Parsed((folder / "report.html").read_text()) for name, folder in folders.items()}


each = pytest.mark.parametrize("run", RUNS)


@each
def test_page_is_sound(pages, run):
    """Balanced tags, unique ids, links that lead somewhere, nothing from elsewhere."""
    page = pages[run]
    ids = Counter(found["id"] for _, found, _ in page.tags if "id" in found)
    assert set(ids.values()) == {1}
    links = [found[key] for _, found, _ in page.tags for key in ("href", "xlink:href", "src") if key in found]
    assert len(links) > 10
    assert all(link == "data:," or (link[0] == "#" and link[1:] in ids) for link in links)
    assert all("scope" in found for tag, found, _ in page.tags if tag == "th")
    assert all(svg["aria-labelledby"] in ids for tag, svg, _ in page.tags if tag == "svg")


@each
def test_every_work_and_variant(pages, run):
    keys = ("op", "dtype", "direction", "cache", "variant")
    result = RUNS[run]()
    expected = Counter(
        (w.op, w.dtype, w.direction, w.cache, name) for w in result.works for name in w.variants or ["none"]
    )
    # The random numbers have a table of their own as well.
    expected.update(
        ("normal", w.dtype, w.direction, w.cache, n) for w in result.works if w.op == "normal" for n in w.variants
    )
    rows = Counter(
        tuple(r[f"data-{k}"] for k in keys) for tag, r, _ in pages[run].tags if tag == "tr" and "data-op" in r
    )
    assert rows == expected


def test_figures_are_the_records(pages):
    result = full()
    work = result.works[0]
    cells = next(
        "|".join(texts) for tag, r, texts in pages["full"].tags if tag == "tr" and r.get("data-variant") == "fused"
    )
    for figure in (
        text.seconds(work.variants["fused"].median),
        text.number(work.gb_s()),
        text.percent(result.copy_share(work)),
        text.times(work.ratio("eager")),
        text.times(work.ratio("compile")),
    ):
        assert figure in cells


def test_goals_are_told_honestly(pages):
    outcomes = [cell for page in (pages["full"], pages["awkward"]) for cell in page.find("td") if "met" in cell.split()]
    assert outcomes == ["✗ not met", "✓ met"]
    assert "1 of 3" in pages["full"].find("dd", **{"class": "big "})
    assert "0 of 1" in pages["awkward"].find("dd", **{"class": "big "})


def test_what_is_missing_is_said(pages):
    page = pages["awkward"]
    assert any(cell.startswith("wrong, no time: fused, result 0") for cell in page.find("td"))
    assert any(item.startswith("broken/cremad") and HOSTILE in item for item in page.find("li"))
    assert (
        sum(
            "Not measured" in note and "bare cremad fwd" in note
            for note in page.find("p", **{"class": "note missing-works"})
        )
        == 3
    )
    assert any("no sweeps" in note for note in page.find("p", **{"class": "missing"}))
    assert not {"nan", "None", "inf"} & {word for cell in page.find("td") for word in cell.split()}
    nothing = pages["nothing"]
    assert len([note for note in nothing.find("p", **{"class": "missing"}) if note.startswith("Not measured")]) == 6


def test_names_are_text(pages):
    page = pages["awkward"]
    assert len(page.find("script")) == 2
    assert HOSTILE in page.find("h3")
    assert any(HOSTILE in cell for cell in page.find("th"))
    assert any(HOSTILE in label for label in page.find("text"))


def test_pictures(folders):
    for name in pictures.PICTURES:
        with Image.open(folders["full"] / f"{name}.png") as image:
            assert image.width > 500 and len(image.getcolors()) > 20
    assert list(folders["nothing"].glob("*.png")) == []


def test_stale_pictures_go(folders, tmp_path):
    (tmp_path / "scaling.png").write_bytes(b"old")
    report.write_report(folders["nothing"] / "results.json", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_plots_follow_the_theme():
    """Every colour of a plot is a variable, its text is text, and it says what it shows."""
    (panel, *_) = bars.ratios(full())
    svg = drawing.svg(panel)
    assert "#" not in svg.replace('href="#', "").replace("url(#", "")
    assert all(f"var(--{name})" in svg for name in ("fg", "fused", "eager", "compile"))
    parsed = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
    assert "cremad fwd" in [element.text for element in parsed.iter("text")]
    assert "cremad fwd: " in parsed.find("title").text


def test_fused_has_its_colour_alone():
    assert palette.role("fused", "fused") == "fused"
    assert palette.role("triton", "fused") == "other"


@pytest.mark.parametrize(
    "written, expected",
    [
        (text.number(12345.6), "12,300"),
        (text.number(0.9999), "1.00"),
        (text.number(None), "not measured"),
        (text.number(math.nan), "not measured"),
        (text.seconds(0.0009996), "1.00 ms"),
        (text.seconds(2.5e-10), "0.250 ns"),
        (text.size(0), "0"),
        (text.size(1536), "1.50 KiB"),
        (text.part(13 * 2**20, 42.2 * 2**20), "13.0 of 42.2 MiB"),
        (text.part(900 * 2**10, 42.2 * 2**20), "900 KiB of 42.2 MiB"),
        (text.span(1e-3, 1.5e-3), "1.00 – 1.50 ms"),
        (text.span(9e-4, 1.5e-3), "900 µs – 1.50 ms"),
        (text.times(0.8), "0.80×"),
        (text.plain("10.0 ms"), "10 ms"),
        (text.plain("1.50×"), "1.5×"),
        (text.plain("100 %"), "100 %"),
    ],
)
def test_numbers(written, expected):
    assert written == expected


def test_command(folders, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    out = tmp_path / "new"
    assert report.run(parser.parse_args([str(folders["nothing"] / "results.json"), "--out", str(out)])) == 0
    assert (out / "report.html").exists()
    (tmp_path / "other.json").write_text("{}")
    assert report.run(parser.parse_args([str(tmp_path / "other.json")])) == 2
    assert "expected schema" in capsys.readouterr().err
