"""The page in a real browser: what a person does with mouse, keyboard and drops, and what is then to be seen."""

import base64
import contextlib
import http.server
import itertools
import threading

import pytest
from drawings import ANGLES, drawing, encoded

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

DROP = """
const [selector, files, photograph] = arguments, transfer = new DataTransfer();
if (photograph) transfer.setData("text/x-photograph", photograph);
for (const [name, text] of files) {
  transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
}
const zone = document.querySelector(selector);
for (const kind of ["dragover", "drop"]) {
  zone.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}
"""

BUTTONS = """
const buttons = [...document.querySelectorAll("button, .button, select")].filter((each) => each.checkVisibility());
return buttons.map((each) => {
  const { width, height } = each.getBoundingClientRect();
  return [each.getAttribute("aria-label") || each.innerText, Math.min(width, height)];
});
"""


class Reader:
    """A person who looks at the page."""

    def __init__(self, browser, address):
        self.browser, self.address, self.drawn = browser, address, "0"
        browser.get(address)
        self.wait()

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (only,) = self.all(selector)
        return only

    def text(self, selector):
        return self.one(selector).text

    def wait(self):
        """Until what was done last is to be seen."""
        WebDriverWait(self.browser, 20).until(
            lambda browser: browser.execute_script("return document.body?.dataset.done") not in (None, self.drawn)
        )
        self.drawn = self.browser.execute_script("return document.body.dataset.done")

    def do(self, action, *words):
        """Does something that changes the page, and waits until it has."""
        action(*words)
        with contextlib.suppress(NoAlertPresentException):
            self.browser.switch_to.alert.accept()
        self.wait()

    def press(self, *keys):
        ActionChains(self.browser).send_keys(*keys).perform()

    def focused(self):
        return self.browser.switch_to.active_element

    def drop(self, selector, files):
        """Drops files, by name, onto an element."""
        coded = [(name, base64.b64encode(raw).decode()) for name, raw in files.items()]
        self.do(self.browser.execute_script, DROP, selector, coded)

    def class_of(self, name):
        """The selector of a class's card."""
        return f'[aria-label="Class {name}"]'

    def size(self, width, height, scheme="light"):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


@pytest.fixture
def reader(chromium, page):
    reader = Reader(chromium, page.address)
    yield reader
    complaints = [line for line in chromium.get_log("browser") if "Failed to load resource" not in line["message"]]
    assert not complaints  # such as what the page's own security policy forbids


@pytest.fixture
def files(tmp_path):
    """Paths of drawings, by class; the fourth of each is for sorting."""
    for name in ANGLES:
        for number in range(4):
            drawing(name, number).save(tmp_path / f"{name}{number}.png")
    return {name: [str(tmp_path / f"{name}{number}.png") for number in range(4)] for name in ANGLES}


def fill(reader, names=("flat", "steep")):
    """Makes classes, each of three drawings."""
    for name in names:
        reader.do(reader.one("#new-name").send_keys, name, Keys.ENTER)
        reader.drop(reader.class_of(name), {f"{name}{i}.png": encoded(drawing(name, i)) for i in range(3)})


def test_the_story_with_keyboard_and_chosen_files(reader, files):
    assert reader.text("#classes-hint").startswith("No classes yet. Name the first one, or drop folders here")
    assert reader.text("#hint") == "Drop photographs here whose class you want to know."
    reader.do(reader.one("#add-0").send_keys, files["flat"][3])
    assert reader.text("#hint") == "Answers need two classes with photographs: there is none."
    while reader.focused().get_attribute("id") != "new-name":  # by the keyboard alone
        reader.press(Keys.TAB)
    reader.do(reader.press, "flat", Keys.ENTER)
    assert reader.focused().get_attribute("id") == "new-name" and not reader.focused().get_attribute("value")
    assert "No photographs yet" in reader.text(reader.class_of("flat"))
    reader.do(reader.one(f"{reader.class_of('flat')} input[type=file]").send_keys, "\n".join(files["flat"][:3]))
    assert "No photographs yet" not in reader.text(reader.class_of("flat"))
    assert reader.text("#hint") == "Answers need two classes with photographs: there is one."
    reader.do(reader.one("#new-name").send_keys, "steep", Keys.ENTER)
    reader.do(reader.one(f"{reader.class_of('steep')} input[type=file]").send_keys, "\n".join(files["steep"][:3]))
    assert reader.text("#status") == "3 photographs added" and not reader.all("#hint:not(:empty)")
    assert reader.text("#answers .said") == "flat" and reader.text("#summary") == "1 flat"
    first = reader.all("#answers .bars li")[0]
    assert first.text.startswith("flat") and 50 < int(first.text.split()[-2]) <= 100
    assert [span.text for span in reader.all("#answers .nearest span")] == ["flat"] * 3
    script = "return [...document.images].every((image) => image.complete && image.naturalWidth === 192)"
    WebDriverWait(reader.browser, 10).until(lambda browser: browser.execute_script(script))
    for image in reader.all("img"):
        assert image.get_attribute("alt").endswith(".png")

    reader.browser.refresh()  # all is still there
    reader.drawn = None
    reader.wait()
    assert reader.text("#answers .said") == "flat" and len(reader.all(".photographs img")) == 6
    name = reader.one(f"{reader.class_of('flat')} .name")
    reader.do(name.send_keys, Keys.CONTROL, "a", Keys.NULL, "lying", Keys.ENTER)
    assert reader.text("#answers .said") == "lying" and reader.focused() == name
    reader.do(Select(reader.one("#answers .move")).select_by_visible_text, "steep")
    assert not reader.all("#answers li") and len(reader.all(f"{reader.class_of('steep')} img")) == 4
    button = reader.one('[aria-label="Remove flat3.png"]')
    reader.do(button.send_keys, Keys.ENTER)
    assert reader.focused() == reader.one(f"{reader.class_of('steep')} input[type=file]")  # the focus is not lost
    reader.do(reader.one('[aria-label="Remove class steep"]').send_keys, Keys.SPACE)
    assert [each.get_attribute("value") for each in reader.all("#classes .name")] == ["lying"]
    assert reader.focused().get_attribute("id") == "new-name"


def test_photographs_are_dropped_and_what_is_none_is_named(reader):
    fill(reader)
    reader.drop("section.drop h2", {"a.png": encoded(drawing("steep", 9)), "b.jpg": encoded(drawing("flat", 9), "JPEG"),
                                    "notes.jpg": b"no image", ".DS_Store": b"hidden"})  # fmt: skip
    assert [each.text for each in reader.all("#answers .said")] == ["steep", "flat"]
    assert reader.text("#summary") == "1 steep, 1 flat"
    assert reader.text("#problems li") == "notes.jpg: not an image but data that starts with b'no image'"
    assert reader.text("#status") == "2 photographs added, 1 left out"
    reader.one("#problems button").click()
    assert not reader.one("#problems").is_displayed()
    reader.drop("#new-class", {"c.png": encoded(drawing("slanted", 0))})  # without a folder and a name
    assert [each.get_attribute("value") for each in reader.all("#classes .name")] == ["flat", "steep", "new class"]
    number = reader.one('#answers img[alt="b.jpg"]').get_attribute("src").rsplit("/", 1)[1]
    reader.do(reader.browser.execute_script, DROP, reader.class_of("flat"), [], number)
    assert len(reader.all(f"{reader.class_of('flat')} img")) == 4 and len(reader.all("#answers > li")) == 1
    reader.do(reader.one("#remove-all").click)
    assert not reader.all("#answers > li") and reader.focused().get_attribute("id") == "add-0"


def test_folders_become_classes(reader, tmp_path):
    for name in ("flat", "steep"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for number in range(2):
            drawing(name, number).save(tmp_path / "mine" / name / f"{number}.png")
    reader.do(reader.one("#new-folder").send_keys, str(tmp_path / "mine"))
    assert sorted(each.get_attribute("value") for each in reader.all("#classes .name")) == ["flat", "steep"]
    reader.do(reader.one("#new-folder").send_keys, str(tmp_path / "mine" / "flat"))  # they are there already
    assert len(reader.all("#problems li")) == 2 and len(reader.all(".photographs img")) == 4


def test_names_are_shown_as_text_whatever_they_hold(reader):
    evil = "<img src=x onerror=document.title='evil'>"
    fill(reader, ["flat"])
    reader.do(reader.one("#new-name").send_keys, evil, Keys.ENTER)
    reader.do(reader.one("#new-name").send_keys, evil, Keys.ENTER)
    assert reader.text("#problems li") == f"There is a class {evil} already."
    card = "#classes .card:last-child"
    reader.drop(card, {f"{number}{evil}.png": encoded(drawing("steep", number)) for number in range(2)})
    reader.drop("section.drop", {f"{evil}.png": encoded(drawing("steep", 9))})
    assert reader.text("#answers .said") == evil and reader.text("#answers .file") == f"{evil}.png"
    assert reader.browser.title == "Sort photographs by examples"


def test_it_fits_narrow_and_wide_screens_in_light_and_dark(reader):
    fill(reader)
    reader.do(reader.one("#new-name").send_keys, "long" * 25, Keys.ENTER)
    reader.drop("section.drop", {"IMG_0123_a_long_name_from_a_telephone.png": encoded(drawing("flat", 9))})
    for width, scheme in itertools.product((320, 390, 1280), ("light", "dark")):
        reader.size(width, 800, scheme)
        assert reader.browser.execute_script("return document.documentElement.scrollWidth") <= width
        ink, paper = (
            [int(part) for part in reader.one("body").value_of_css_property(name).strip("rgba()").split(",")[:3]]
            for name in ("color", "background-color")
        )
        assert (sum(ink) < sum(paper)) == (scheme == "light")
        for label, side in reader.browser.execute_script(BUTTONS):
            assert label and side >= 24, label  # who sees nothing knows what it is, and a finger finds it


def test_another_site_in_the_same_browser_can_neither_see_nor_change_the_page(reader, page):
    fill(reader)
    host, own = page.address.rstrip("/"), b"<!DOCTYPE html><title>evil</title>"

    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(own)

        def log_message(self, *words):
            pass

    script = """
    const [host, done] = arguments;
    const image = new Image();
    const seen = new Promise((resolve) => {
      image.onload = () => resolve("seen");
      image.onerror = () => resolve("no");
    });
    image.src = `${host}/thumbnails/2`;
    const frame = document.body.appendChild(document.createElement("iframe"));
    frame.src = host;
    const post = (path, options) => fetch(host + path, { method: "POST", ...options }).then(() => "sent", () => "no");
    Promise.all([
      seen, post("/classes?name=evil", { mode: "no-cors" }), post("/classes?name=evil", { headers: { "X-A": "b" } }),
      fetch(`${host}/state`).then((r) => r.text(), () => "no"),
      fetch(`${host}/photographs/2`, { method: "DELETE" }).then(() => "sent", () => "no"),
    ]).then(done);
    """
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil) as evil:
        thread = threading.Thread(target=evil.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        before = page.album.state()
        for name in ("127.0.0.1", "localhost"):
            reader.browser.get(f"http://{name}:{evil.server_port}/")
            found = reader.browser.execute_async_script(script, host)
            assert found[0] == found[2] == found[3] == found[4] == "no"
        assert page.album.state() == before
        evil.shutdown()
        thread.join()
    reader.browser.get("about:blank")
    reader.browser.get_log("browser")  # its complaints are those of the other site


def test_a_program_that_has_ended_is_said(reader):
    reader.browser.set_network_conditions(offline=True, latency=0, throughput=0)
    try:
        reader.do(reader.one("#new-name").send_keys, "flat", Keys.ENTER)
        assert reader.text("#problems li").endswith("Is it still running in its terminal?")
    finally:
        reader.browser.delete_network_conditions()
    reader.do(reader.one("#new-name").send_keys, Keys.ENTER)  # what was typed is still there
    assert reader.one(reader.class_of("flat"))
