"""The benchmark report in a browser: it fetches nothing, says no error, sorts, filters, follows the theme and fits."""

from pathlib import Path

import pytest

from benchmarks.record import Result

from .browser import CONTRASTS, opened, started
from .report_runs import RUNS, full, write_reports

each = pytest.mark.parametrize("run", RUNS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return write_reports(tmp_path_factory)


@pytest.fixture(scope="module")
def browser():
    with started() as running:
        yield running


def rows_of(result: Result, **wanted: str) -> int:
    """How many rows the ops' tables have for works with these attributes."""
    works = [w for w in result.works if w.sweep is None and all(getattr(w, k) == v for k, v in wanted.items())]
    return sum(max(1, len(work.variants)) for work in works)


@each
@pytest.mark.parametrize("width", [390, 1280])
def test_browser_opens(browser, folders, run, width):
    """Without an error or a request, as wide as the window, with all rows."""
    with opened(browser, folders[run] / "report.html", width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("#ops tbody tr").count() == rows_of(RUNS[run]())
        assert page.locator("#goals tbody tr").count() == len(RUNS[run]().goals)
        assert page.locator("nav a").evaluate_all("links => links.every(l => document.querySelector(l.hash))")


def test_browser_sorts(browser, folders):
    with opened(browser, folders["full"] / "report.html") as page:
        table = page.locator("#ops table").first
        medians = "rows => rows.map(row => Number(row.querySelector('td.strong').dataset.value))"
        before = table.locator("tbody tr").evaluate_all(medians)
        for direction, flip in (("ascending", False), ("descending", True)):
            table.get_by_role("button", name="Median").click()
            assert table.locator(f"th[aria-sort={direction}]").inner_text().startswith("Median")
            assert table.locator("tbody tr").evaluate_all(medians) == sorted(before, reverse=flip) != before
        table.get_by_role("button", name="Shape").click()
        shapes = table.locator("tbody th").all_inner_texts()
        assert shapes == sorted(shapes) and len(set(shapes)) > 1


def test_browser_sorts_the_unmeasured_last(browser, folders):
    with opened(browser, folders["awkward"] / "report.html") as page:
        table = page.locator("#op-nan table")
        for _ in range(2):
            table.get_by_role("button", name="Median").click()
            assert [row.split()[4] for row in table.locator("tbody tr").all_inner_texts()] == ["eager", "fused"]


def test_browser_filters(browser, folders):
    result = full()
    with opened(browser, folders["full"] / "report.html") as page:
        shown = page.locator("#ops tbody tr:visible")
        page.select_option("select[name=dtype]", "bfloat16")
        assert shown.count() == rows_of(result, dtype="bfloat16")
        page.fill("input[type=search]", "CREMAD cold")
        assert shown.count() == rows_of(result, dtype="bfloat16", shape="cremad", cache="cold") > 0
        assert page.locator("output").inner_text() == f"{shown.count()} of {rows_of(result)} rows"
        page.fill("input[type=search]", "no such work")
        assert shown.count() == 0 and page.locator("#ops .group:visible").count() == 0
        page.get_by_role("button", name="Reset").click()
        page.wait_for_function(f"document.querySelector('output').textContent.startsWith('{rows_of(result)} of')")
        assert shown.count() == rows_of(result)


@pytest.mark.parametrize("run", ["full", "awkward"])
def test_browser_is_readable_in_light_and_dark(browser, folders, run):
    """All text stands out against what is behind it, that of plots included, as WCAG AA asks."""
    backgrounds, labels = [], []
    for scheme in ("light", "dark"):
        with opened(browser, folders[run] / "report.html", scheme=scheme) as page:
            found = page.evaluate(CONTRASTS)
            backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        labels.append({(said, *color) for _, color, _, said, in_plot in found if in_plot})
        assert [entry for entry in found if entry[0] < 4.5] == []
    assert len(set(backgrounds)) == 2
    assert len(labels[0]) > 5 and labels[0].isdisjoint(labels[1])


def test_browser_keeps_the_theme(browser, folders):
    background = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, folders["nothing"] / "report.html", scheme="dark") as page:
        dark = page.evaluate(background)
        page.locator("button.theme").click()
        assert page.locator("button.theme").inner_text() == "Theme: light"
        light = page.evaluate(background)
        page.reload()
        assert page.evaluate(background) == light != dark
        for _ in range(2):
            page.locator("button.theme").click()
        assert page.locator("button.theme").inner_text() == "Theme: auto"
        assert page.evaluate(background) == dark


def test_browser_prints_on_white(browser, folders):
    with opened(browser, folders["full"] / "report.html", scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator(".bar").is_visible() and not page.locator(".filter").is_visible()
        assert page.locator("#ops .scroll").first.evaluate("e => e.scrollHeight <= e.clientHeight + 1")
        assert min(entry[0] for entry in page.evaluate(CONTRASTS)) >= 4.5


def test_without_a_browser(monkeypatch):
    """It is a skip that says what to install, but a failure where CI is set."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install"), started():
        pass
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install"), started():
        pass
