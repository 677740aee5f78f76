"""The report in headless Chromium: used by mouse and keyboard, in colours light and dark, on paper and on a phone.

Skipped without Chromium and its driver. Screenshots are left in build/screenshots.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastcnn.inspection import activations, write_report
from fastcnn.inspection.report.evidence import choose_images, look_at
from tests.inspection.networks import fitted

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = Path(__file__).parents[2] / "build/screenshots"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def report(request, tmp_path_factory):
    """The page, its classifier, and the images in the page's order."""
    clf, X, y = fitted(request.param)
    y = y.copy()
    y[:2] = y[1::-1]  # mistakes for sure
    path = tmp_path_factory.mktemp("report") / "page.html"
    write_report(path, clf, X, y, n_images=9, title="Bars on the left, on the right and on top")
    chosen = np.concatenate(choose_images(look_at(clf, X, y), 9))
    return path, clf, X[chosen], y[chosen], request.param


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Reader:
    """The page as someone uses it."""

    def __init__(self, driver, path):
        self.driver = driver
        self.size(1280, 900)
        self.colors("light")
        driver.get(path.as_uri())
        self.wait(lambda: self.script("return document.body.dataset.shown") == "0")

    def size(self, width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def colors(self, scheme):
        features = [("prefers-color-scheme", scheme), ("prefers-reduced-motion", "reduce")]
        media = {"features": [{"name": name, "value": value} for name, value in features]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def script(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition):
        WebDriverWait(self.driver, 10, poll_frequency=0.05).until(lambda _: condition())

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def press(self, *keys):
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    @property
    def focused(self):
        return self.driver.switch_to.active_element

    def wait_for_image(self, number):
        self.wait(lambda: self.script("return document.body.dataset.shown") == str(number))
        checked = [button.get_attribute("aria-checked") for button in self.all(".picker button")]
        assert checked.index("true") == number and checked.count("true") == 1

    def pixels(self, selector):
        """A canvas as an array (H, W, 4)."""
        code = """
            const canvas = document.querySelector(arguments[0]);
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return [canvas.height, canvas.width, Array.from(data)];
        """
        height, width, values = self.script(code, selector)
        return np.reshape(values, (height, width, 4))

    def screenshot(self, name):
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        (SCREENSHOTS / name).write_bytes(base64.b64decode(shot["data"]))


@pytest.fixture
def reader(chromium, report):
    path, *_ = report
    chromium.get_log("performance"), chromium.get_log("browser")
    page = Reader(chromium, path)
    yield page
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # Chromium's own first page may still be loading when the first test begins.
    asked = [request["request"]["url"] for request in sent if not request["documentURL"].startswith("chrome://")]
    # The page itself, and images that are in it.
    assert path.as_uri() in asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert [url for url in asked if url.startswith("file:")] == [path.as_uri()] * asked.count(path.as_uri())


def test_images_are_chosen_by_mouse_and_keyboard(reader, report):
    _, clf, X, y, channels = report
    buttons = reader.all(".picker button")
    assert len(buttons) == 9
    buttons[4].click()
    reader.wait_for_image(4)
    shown = reader.pixels(".strip canvas.image")[..., : 3 if channels == 3 else 1]
    np.testing.assert_array_equal(shown, X[4])
    said = clf.predict(X)
    assert f"is {y[4]}. The network says {said[4]}" in reader.find(".verdict").text
    reader.press(Keys.ARROW_RIGHT)
    reader.wait_for_image(5)
    assert reader.focused == buttons[5]
    reader.press(Keys.END)
    reader.wait_for_image(8)
    verdict = reader.find(".verdict").text
    assert "wrong" in verdict if y[8] != said[8] else "right" in verdict
    np.testing.assert_array_equal(reader.pixels(".strip canvas.image")[..., : X.shape[3]], X[8])
    reader.press(Keys.ARROW_RIGHT)  # there is nothing after the last
    reader.wait_for_image(8)
    reader.press(Keys.HOME)
    reader.wait_for_image(0)
    top = reader.find(".result .top .name").text
    assert said[0] in top


def test_a_mistake_is_walked(reader, report):
    _, clf, X, y, _ = report
    mistake = reader.find(".mistake")
    number = int(mistake.get_attribute("data-image"))
    mistake.click()
    reader.wait_for_image(number)
    assert reader.focused == reader.all(".picker button")[number]
    assert f"is {y[number]}. The network says {clf.predict(X)[number]}" in reader.find(".verdict").text


def test_steps_and_maps_by_keyboard(reader, report):
    _, clf, X, _, _ = report
    tabs = reader.all("[role=tab]")
    assert [tab.text.split("\n")[0] for tab in tabs] == [
        "Image", "Conv2D", "ReLU", "MaxPool2D", "Conv2D", "ReLU", "MaxPool2D", "Dense", "ReLU", "Dense", "Softmax",
        "Where it looks",
    ]  # fmt: skip
    tabs[0].click()
    for at, key in ((1, Keys.ARROW_DOWN), (2, Keys.ARROW_RIGHT), (1, Keys.ARROW_UP)):
        reader.press(key)
        reader.wait(lambda at=at: tabs[at].get_attribute("aria-selected") == "true")
        assert reader.focused == tabs[at]
        assert reader.find("#panel").get_attribute("aria-labelledby") == tabs[at].get_attribute("id")
    maps = reader.all(".maps [role=radio]")
    assert len(maps) == 6 and "6 maps of 8 × 8" in reader.find("#panel").text
    reader.press(Keys.TAB, Keys.TAB)  # the panel, then its maps
    assert reader.focused == maps[0]
    reader.press(Keys.ARROW_RIGHT)
    assert maps[1].get_attribute("aria-checked") == "true"
    reader.press(Keys.TAB, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)  # the large map: its middle is row 4, column 4
    readout = reader.find(".readout").text
    value = activations(clf, X[:1], 0)[0, 5, 5, 1]
    assert readout.startswith("map 1, row 5, column 5: ")
    limit = float(np.abs(activations(clf, X, 0)).max())
    assert float(readout.split()[-1].replace("−", "-")) == pytest.approx(float(value), abs=0.02 + limit / 127)


def test_scores_probabilities_and_grad_cam(reader, report):
    _, clf, X, _, _ = report
    *_, logits, softmax, cam = reader.all("[role=tab]")
    logits.click()
    found = [float(item.text.replace("−", "-")) for item in reader.all("#panel .bars .n")]
    np.testing.assert_allclose(found, activations(clf, X[:1], -1)[0], atol=0.06)
    softmax.click()
    found = [float(item.text.rstrip("%\u2009")) for item in reader.all("#panel .bars .n")]
    np.testing.assert_allclose(found, 100 * np.sort(clf.predict_proba(X[:1])[0])[::-1], atol=0.06)
    cam.click()
    assert reader.pixels("#panel .heat").shape == (4, 4, 4)


def test_one_step_of_the_convolution(reader, report):
    _, clf, X, _, _ = report
    x = clf.network_input(X[:1])
    maps = activations(clf, X[:1], 0)[0]

    def value():
        return float(reader.find(".sum").get_attribute("data-value"))

    assert value() == pytest.approx(maps[4, 4, 0], abs=2e-3)
    reader.find(".near .viewer[tabindex]").click()
    for keys in ([Keys.ARROW_UP] * 9, [Keys.ARROW_LEFT] * 9):
        reader.press(*keys)
    reader.wait(lambda: "Row 0, column 0" in reader.find(".sum").text)
    assert value() == pytest.approx(maps[0, 0, 0], abs=2e-3)  # a part of the window lies beside the image
    reader.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    reader.wait(lambda: "Row 1, column 2" in reader.find(".sum").text)
    reader.find("#filter option[value='3']").click()
    reader.wait(lambda: value() == pytest.approx(maps[1, 2, 3], abs=2e-3))
    grids = [[float(cell.text.replace("−", "-")) for cell in grid.find_elements("css selector", "td")]
             for grid in reader.all(".working .row:first-child .grid")]  # fmt: skip
    np.testing.assert_allclose(grids[0], x[0, 0:3, 1:4, 0].ravel(), atol=0.006)
    np.testing.assert_allclose(grids[1], clf.network_.params["0.weight"][:, :, 0, 3].ravel(), atol=0.006)
    np.testing.assert_allclose(grids[2], np.multiply(*grids[:2]), atol=0.02)


def test_light_dark_phone_and_paper(reader, report):
    *_, channels = report
    kind = "grey" if channels == 1 else "colour"

    def paper():
        return reader.script("return getComputedStyle(document.body).backgroundColor")

    reader.all("[role=tab]")[1].click()
    light = paper()
    reader.screenshot(f"report-{kind}-light.png")
    reader.colors("dark")
    dark = paper()
    assert light != dark
    reader.screenshot(f"report-{kind}-dark.png")
    buttons = {button.text: button for button in reader.all(".theme button")}
    buttons["Light"].click()
    assert paper() == light and buttons["Light"].get_attribute("aria-pressed") == "true"
    reader.colors("light")
    buttons["Dark"].send_keys(Keys.ENTER)
    assert paper() == dark and buttons["Light"].get_attribute("aria-pressed") == "false"
    buttons["Auto"].click()
    reader.size(390, 844)
    assert reader.script("return document.documentElement.scrollWidth") <= 390
    reader.screenshot(f"report-{kind}-phone.png")
    pdf = base64.b64decode(reader.driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF")


def test_what_has_the_focus_is_seen_and_has_a_name(reader):
    seen = set()
    for _ in range(60):
        reader.press(Keys.TAB)
        focused = reader.focused
        if focused.tag_name == "body":
            break
        outline = reader.script("return getComputedStyle(arguments[0]).outlineStyle", focused)
        assert outline != "none", focused.get_attribute("outerHTML")[:200]
        assert focused.accessible_name, focused.get_attribute("outerHTML")[:200]
        seen.add(focused.get_attribute("role") or focused.tag_name)
    assert {"a", "button", "radio", "tab", "select", "summary", "region"} <= seen
