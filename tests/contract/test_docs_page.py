"""`/docs` in a real browser: it shows the model's own fields, scores the example, and asks no other host."""

from __future__ import annotations

import json
import shutil
from urllib.parse import urlsplit

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (requirements/dev.txt)")
ui = pytest.importorskip("selenium.webdriver.support.ui")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
HOST = "container.test"
"""Not localhost, where a page might keep quiet about itself."""

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not on this machine"),
    pytest.mark.parametrize("kind", ["asgi"], indirect=True, scope="module"),
]


class Page:
    """`/docs` of a server, opened in a browser."""

    def __init__(self, browser, port):
        self.browser = browser
        self.browser.get(f"http://{HOST}:{port}/docs")
        self.find(".opblock")

    def find_all(self, selector, inside=None, text=None):
        """Waits until there are such elements (with this text), because the page draws itself piece by piece."""

        def found(browser):
            elements = (inside or browser).find_elements("css selector", selector)
            return elements if text is None else [element for element in elements if element.text == text]

        return ui.WebDriverWait(self.browser, 20).until(found)

    def find(self, selector, inside=None, text=None):
        """The first of them."""
        return self.find_all(selector, inside, text)[0]

    def expand(self, path):
        """Opens an operation."""
        summary = self.find(".opblock-summary-path", text=path)
        block = summary.find_element("xpath", "ancestor::div[contains(concat(' ', @class, ' '), ' opblock ')]")
        self.find(".opblock-summary-control", block).click()
        self.find(".opblock-body", block)
        return block

    def execute(self, block):
        """Sends the operation's request; returns what was sent, and status and body of the answer."""
        self.find(".try-out__btn", block).click()
        sent = self.find("textarea.body-param__text", block).get_attribute("value")
        self.find(".execute", block).click()
        answer = self.find(".live-responses-table .response", block)
        status = self.find(".response-col_status", answer).text.split()[0]
        return sent, status, self.find(".highlight-code code", answer).text


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1200,1800",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}", f"host-resolver-rules=MAP {HOST} 127.0.0.1",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, demo):
    return Page(browser, demo.port)


@pytest.fixture(autouse=True)
def _quiet(browser):
    """Whatever a test does, the page asks no other host and has nothing to complain about."""
    yield
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [urlsplit(m["params"]["request"]["url"]) for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url.hostname for url in asked if url.scheme.startswith(("http", "ws"))} == {HOST}
    assert browser.get_log("browser") == []


def test_what_a_newcomer_sees(page, golden):
    assert page.browser.title == "Trimodal inference container"
    text = page.find(".info").text
    assert "Scores records of two texts, dialogue and shiptrack_event_history_by_order, and 9 tabular fields." in text
    assert "To begin, open POST /predict" in text
    paths = [element.text for element in page.find_all(".opblock-summary-path")]
    assert paths == ["/predict", "/invocations", "/ping", "/health", "/execution-parameters"]
    schema = page.find(".model-container", text="Record")
    page.find(".model-toggle", schema).click()
    fields = {element.text.rstrip("*") for element in page.find_all(".property-row td:first-child", schema)}
    assert fields == set(golden[0]["record"])


def test_the_example_is_scored(page, demo):
    block = page.expand("/predict")
    sent, status, body = page.execute(block)

    assert status == "200"
    (row,) = json.loads(body)["predictions"]
    assert [isinstance(row[name], float) for name in ("legacy-score", "calibrated-score", "score-percentile")] == [
        True
    ] * 3
    assert demo.request("POST", "/predict", sent).json["predictions"] == [row]
    assert "A record cannot be scored." in block.text
    assert '"code": "invalid_record"' in block.text


@pytest.mark.parametrize("media", ["application/jsonlines", "application/x-ndjson", "text/csv"])
def test_the_other_media_types_are_scored_too(page, demo, media):
    block = page.expand("/invocations")
    ui.Select(page.find(".opblock-section-request-body select", block)).select_by_value(media)

    sent, status, body = page.execute(block)

    assert status == "200"
    body_of_one_line = json.dumps(json.loads(sent)) if "json" in media else sent
    assert demo.post(body_of_one_line, media).json == json.loads(body)


def test_an_error_says_what_to_fix(page):
    block = page.expand("/predict")
    page.find(".try-out__btn", block).click()
    area = page.find("textarea.body-param__text", block)
    area.clear()
    area.send_keys('{"dialogue": "alone"}')
    page.find(".execute", block).click()

    answer = page.find(".live-responses-table .response", block)

    assert "422" in answer.text
    assert "Record 0 lacks the fields" in answer.text
    assert page.browser.get_log("browser")[0]["message"].endswith("(Unprocessable Entity)")
