"""A page in this process, with the small network of the package; and a browser where one is installed."""

import shutil
import threading

import pytest

from mtl_jax import FewShotClassifier
from mtl_jax.demo_page.album import Album
from mtl_jax.demo_page.server import Server


@pytest.fixture(scope="session")
def classifier():
    """A classifier with the small network of the package."""
    return FewShotClassifier.from_pretrained("fc100-conv4")


@pytest.fixture
def page(classifier):
    """A server that answers, with an empty album."""
    with Server(0) as server:
        server.album = Album(classifier, "fc100-conv4")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A browser of this machine, driven by selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    quiet = ("disable-background-networking", "disable-component-update", "disable-sync")
    for word in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", *quiet):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()
