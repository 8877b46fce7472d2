"""The page in a real browser: Debian's Chromium, driven by Playwright. Run with ``make test-browser``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from dlen.reports.report import report
from tests.conftest import ROOT

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SHOTS = ROOT / "runs" / "browser"  # for inspection after changes to the page
OPEN_MS = 2000
Compose = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(
    made: Path, tmp_path: Path, compose_report: Compose, browser: Browser
) -> Callable[..., tuple[Page, list[str]]]:
    """The page of the small runs, and its console messages."""
    report(compose_report(f"runs={made / 'runs'}", f"out={tmp_path / 'report.html'}"))

    def show(**options: Any) -> tuple[Page, list[str]]:
        return open_page(browser, tmp_path / "report.html", **options)

    return show


def open_page(browser: Browser, path: Path, **options: Any) -> tuple[Page, list[str]]:
    page = browser.new_context(offline=True, **{"viewport": {"width": 1400, "height": 900}, **options}).new_page()
    said: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        software = "GL Driver Message" in message.text  # from Plotly's parallel coordinates in Chromium without a GPU
        if message.type in ("error", "warning") and not software:
            said.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    return page, said


def scroll(page: Page) -> None:
    """Scroll to the end, so that every plot is drawn."""
    for top in range(0, page.evaluate("document.documentElement.scrollHeight"), 400):
        page.evaluate(f"window.scrollTo(0, {top})")
        page.wait_for_timeout(50)
    page.evaluate("window.scrollTo(0, 0)")


def shoot(page: Page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def column(page: Page, number: int) -> list[str]:
    cells = page.locator(f"#runs tbody tr:not([hidden]) td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_plot_is_drawn_without_an_error(opened: Any, scheme: str) -> None:
    page, said = opened(color_scheme=scheme)
    scroll(page)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    plots = page.locator(".plot")
    assert plots.count() > 15
    assert page.locator(".plot .main-svg").count() >= plots.count()
    assert said == []
    ink = page.evaluate("getComputedStyle(document.querySelector('.plot text')).fill")
    assert ink == {"light": "rgb(28, 31, 36)", "dark": "rgb(230, 232, 235)"}[scheme]
    shoot(page, scheme)


def test_it_sorts(opened: Any) -> None:
    page, _ = opened()
    names = page.locator("#runs thead th").all_inner_texts()
    number = next(i for i, name in enumerate(names, 1) if name.startswith("mean AUC"))
    header = page.locator(f"#runs thead th:nth-child({number})")
    header.locator("button").click()
    values = [float(v) for v in column(page, number)]
    assert values == sorted(values, reverse=True)
    assert len(values) == 6
    assert header.get_attribute("aria-sort") == "descending"
    header.locator("button").click()
    assert [float(v) for v in column(page, number)] == values[::-1]


def test_it_filters_the_table_and_the_curves(opened: Any) -> None:
    page, said = opened()
    scroll(page)

    def lines() -> int:
        return int(
            page.evaluate(
                "[...document.querySelectorAll('.plot')].flatMap(p => p.data || [])"
                ".filter(t => t.meta && t.meta.run !== undefined && t.visible).length"
            )
        )

    before = lines()
    page.fill("#filter", "model:mmoe seed:1")
    page.wait_for_function("document.getElementById('count').textContent === '1 of 6 runs'")
    assert 0 < lines() < before / 3
    assert column(page, 3) == ["MMoE"]
    page.fill("#filter", "auc>2")
    page.wait_for_function("document.getElementById('count').textContent === '0 of 6 runs'")
    assert lines() == 0
    page.fill("#filter", "data:aliccp")
    page.wait_for_function("document.getElementById('count').textContent === '1 of 6 runs'")
    shown = page.locator("#runs thead th:visible").all_inner_texts()
    assert any("ctcvr" in name for name in shown)
    assert not any("comment" in name for name in shown)  # an empty column for all remaining runs
    page.fill("#filter", "")
    page.wait_for_function("document.getElementById('count').textContent === '6 of 6 runs'")
    assert lines() == before
    assert said == []


def test_a_run_is_chosen_by_its_name(opened: Any) -> None:
    page, said = opened()
    page.locator("#runs a", has_text="one").click()
    page.wait_for_timeout(300)
    scroll(page)
    assert "mran" in page.locator("#run-choice option:checked").inner_text()
    assert "Attention, task to fields" in page.locator("#run-plots").inner_text()
    page.locator("summary").click()
    assert 'model_name: "mran"' in page.locator("#run-config").inner_text()
    assert said == []


def test_a_phone_scrolls_down_alone(opened: Any) -> None:
    page, said = opened(viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True)
    scroll(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    widths = page.evaluate(
        "[...document.querySelectorAll('.plot')].filter(p => p.layout && !p.layout.xaxis2)"  # panels scroll
        ".map(p => p.querySelector('.main-svg').getBoundingClientRect().width)"
    )
    assert max(widths) <= 390
    assert said == []
    shoot(page, "phone")


def test_paper_has_every_plot_in_dark_ink(opened: Any, tmp_path: Path) -> None:
    page, said = opened(color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator('.plot[data-drawn="yes"]').count() == page.locator(".plot").count()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.locator("nav").is_hidden()
    pdf = page.pdf(path=SHOTS / "report.pdf")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type/Page") > 2
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert said == []


def test_two_hundred_runs_open_in_two_seconds(
    made: Path, tmp_path: Path, compose_report: Compose, browser: Browser
) -> None:
    for number in range(200):  # files of a real run, as for 20 seeds of ten settings
        folder = tmp_path / "runs" / f"run-{number:03d}"
        source = made / ("runs/compare/cache/feed-2" if number % 2 else "runs/compare/cache/feed-0")
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints", "*.png"))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["seed"], config["optimizer"]["lr"] = number // 10, 0.001 * (1 + number % 10)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    report(compose_report(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'report.html'}"))
    times = []
    for _ in range(3):
        page, said = open_page(browser, tmp_path / "report.html")
        times.append(page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart"))
        assert page.locator("#count").inner_text() == "200 of 200 runs"
    print(f"200 runs: opened in {times} ms, {(tmp_path / 'report.html').stat().st_size / 2**20:.1f} MiB")
    assert min(times) < OPEN_MS
    scroll(page)
    assert said == []
    shoot(page, "200-runs")
