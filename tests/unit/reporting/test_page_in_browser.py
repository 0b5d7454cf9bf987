"""Tests of the report in Debian's chromium."""

import io
import shutil

import numpy as np
import pytest
from folders import make_inside, make_shots, write_run
from PIL import Image

from ptq4vm.reporting.page import write_page
from ptq4vm.reporting.runs import read_run

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian's packages)"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    run = write_run(
        tmp_path_factory.mktemp("run")
        / "a_name_so_long_that_a_phone_cannot_hold_it_in_one_line_of_text"
    )
    write_page(read_run(run), make_shots(), make_inside(), run / "report.html")
    return (run / "report.html").as_uri()


@pytest.fixture(scope="module")
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids=str)
def page(chromium, url, request):
    """Open the report at a given width and color scheme."""
    width, scheme = request.param
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    chromium.get(url)
    return chromium


def pixels(element):
    return np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("L"), dtype=float)


def find(page, selector):
    return page.find_elements("css selector", selector)


def test_it_opens_without_complaint_and_fits(page):
    assert page.get_log("browser") == []
    inner, whole = page.execute_script(
        "return [window.innerWidth, document.documentElement.scrollWidth]"
    )
    assert whole <= inner
    assert inner in (1280, 390)
    images = find(page, "img")
    assert len(images) == 5 + 4  # the second clip has no true alpha
    loaded = (
        "return arguments[0].decode().then(() => [arguments[0].naturalWidth, arguments[0].alt])"
    )
    for image in images:
        width, text = page.execute_script(loaded, image)
        assert width == 64
        assert "frame 1" in text


def test_the_slider_moves_the_picture_by_keyboard_and_by_pointer(page):
    stage, slider = find(page, ".stage")[0], find(page, "input[type=range]")[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    for key, left, right in (
        ("\ue010", 255, 255),
        ("\ue011", 0, 0),
    ):  # End: float only, Home: quantized only
        slider.send_keys(key)
        picture = pixels(stage)
        rows, columns = picture.shape
        low = picture[rows // 2 :]
        assert low[:, columns // 5].mean() == pytest.approx(left, abs=3)
        assert low[:, -columns // 5].mean() == pytest.approx(right, abs=3)
    from selenium.webdriver import ActionChains

    ActionChains(page).drag_and_drop_by_offset(stage, stage.size["width"] // 4, 0).perform()
    assert float(slider.get_property("value")) == pytest.approx(75, abs=2)
    assert pixels(stage)[-10, stage.size["width"] // 2] == pytest.approx(255, abs=3)


def test_choices_change_what_is_seen(page):
    card = find(page, "[data-clip]")[1]
    for choice in card.find_elements("css selector", "input[type=radio]"):
        choice.send_keys(" ")
    texts = [image.get_attribute("alt") for image in card.find_elements("css selector", "img")]
    assert all("frame 5" in text for text in texts)
    assert "Alpha by the W4A8 network of set/two </script>, frame 5" in texts
    before = len([line for line in find(page, "#time polyline") if line.is_displayed()])
    find(page, "#time input")[1].send_keys(" ")
    after = len([line for line in find(page, "#time polyline") if line.is_displayed()])
    assert (before, after) == (3 * 4, 4 * 4)


def test_colours_follow_the_reader(page, request):
    dark = "dark" in request.node.callspec.id
    page_colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    text_colour = page.execute_script("return getComputedStyle(document.body).color")
    brightness = [
        sum(map(int, colour[4:-1].split(","))) / 3 for colour in (page_colour, text_colour)
    ]
    assert (
        (brightness[0] < 60 and brightness[1] > 200)
        if dark
        else (brightness[0] > 200 and brightness[1] < 60)
    )
