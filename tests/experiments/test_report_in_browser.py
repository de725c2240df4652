"""The report, opened from a file in headless Chromium: it asks for nothing else, fits a phone, and can be searched.

Runs are small real files (written_runs.py); screenshots are left in the test's folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from written_runs import STEPS, TERSE, write_graded, write_run

from pspo.config import StudyConfig
from report import rebuild
from studies import Cell, load_study

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
STUDY = load_study("smoke")
HOSTILE = "</pre><script>document.title = 'taken over'</script><img src=http://localhost:1/x>#### 5"
WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = shutil.which("chromedriver")
    if not shutil.which("chromium") or not driver:
        reason = "no chromium and chromedriver here: scripts/browser.sh says why"
        if os.environ.get("PSPO_NEED_BROWSER") == "1":
            pytest.fail(f"PSPO_NEED_BROWSER=1, and {reason}")
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as chrome:
        chrome.set_page_load_timeout(60)
        yield chrome


@pytest.fixture
def report(smoke: tuple[StudyConfig, list[Cell]]) -> Path:
    """Of four runs: pspo has the third problem right where no_clip has not, and one completion is hostile."""
    cfg, cells = smoke
    for cell in cells:
        right = [True, False, cell.arm == "pspo", False]
        write_run(cell, right, best=right, text=HOSTILE if cell.arm == "pspo" else TERSE)
    write_graded(cells[0].start_evaluation, [True, False, False, False], text=STEPS)
    rebuild(STUDY, cells, cfg)
    return Path(cfg.results) / "smoke" / "report.html"


def open_at(browser: webdriver.Chrome, report: Path, width: int) -> None:
    browser.get_log("browser"), browser.get_log("performance")  # what came before
    browser.set_window_size(width, 900)
    # Headless windows have a least width; this is the page's own.
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(report.as_uri())


@pytest.mark.parametrize("name", WIDTHS)
def test_it_fits_asks_for_nothing_and_complains_of_nothing(
    browser: webdriver.Chrome, report: Path, tmp_path: Path, name: str
) -> None:
    open_at(browser, report, WIDTHS[name])
    browser.save_screenshot(str(tmp_path / f"{name}.png"))
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert browser.get_log("browser") == []
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) <= 0, "the page scrolls sideways: only its tables may"
    # Every heading that the navigation names is there, and the order is: what holds first.
    links = [link.get_attribute("hash") for link in browser.find_elements(By.CSS_SELECTOR, "nav a")]
    places = [browser.find_element(By.CSS_SELECTOR, str(link)).location["y"] for link in links]
    assert links[0] == "#verdicts" and places == sorted(places) and len(links) > 8
    assert browser.title == STUDY.title  # and not what a completion would have made of it


def test_samples_and_settings_can_be_searched(browser: webdriver.Chrome, report: Path) -> None:
    open_at(browser, report, WIDTHS["desktop"])

    def shown() -> list[str]:
        boxes = browser.find_elements(By.CSS_SELECTOR, ".sample")
        return [box.find_element(By.TAG_NAME, "b").text for box in boxes if box.is_displayed()]

    def count(name: str) -> str:
        return browser.find_element(By.ID, f"{name}-count").text

    assert shown() == ["wp-2", "wp-1", "wp-3", "wp-0"]  # told apart, all wrong, all right
    assert count("sample") == "4 of 4 problems"
    text = browser.find_element(By.ID, "sample-text")
    text.send_keys("WP-3 3-1")
    assert shown() == ["wp-3"] and count("sample") == "1 of 4 problems"
    text.clear()
    text.send_keys(" ")
    method = Select(browser.find_element(By.ID, "sample-method"))
    assert [option.text for option in method.options] == ["any", "before RL", "no_clip", "pspo"]
    method.select_by_visible_text("pspo")
    verdict = Select(browser.find_element(By.ID, "sample-verdict"))
    verdict.select_by_value("right")
    assert shown() == ["wp-2", "wp-0"]
    method.select_by_visible_text("no_clip")
    assert shown() == ["wp-0"]
    verdict.select_by_value("wrong")
    assert shown() == ["wp-2", "wp-1", "wp-3"]

    browser.find_element(By.ID, "setting-text").send_keys("adam_eps")
    rows = browser.find_elements(By.CSS_SELECTOR, "#setting-list tbody tr")
    assert [row.text.split()[0] for row in rows if row.is_displayed()] == ["learner.adam_eps"]
    assert "library default" in next(row.text for row in rows if row.is_displayed())
    assert count("setting").startswith("1 of ")


def test_a_hostile_completion_is_shown_and_does_nothing(browser: webdriver.Chrome, report: Path) -> None:
    open_at(browser, report, WIDTHS["desktop"])
    written = [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".sample pre[data-method=pspo]")]
    assert all(HOSTILE in text for text in written) and len(written) == 4
    assert len(browser.find_elements(By.TAG_NAME, "img")) == 0 and browser.title == STUDY.title
