"""Pages: what they embed, and what a browser shows of them."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

#: Names that would do something in a page if they were not treated as text.
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "{{data}} & \"quotes\" 'too' \u2028 \\u003c",
)


def data_of(path: Path) -> dict[str, Any]:
    """What the page embeds."""
    (embedded,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', path.read_text("utf-8"), re.S)
    data: dict[str, Any] = json.loads(embedded)
    return data


def decoded(encoded: dict[str, Any]) -> torch.Tensor:
    whole = np.frombuffer(base64.b64decode(encoded["values"]), "<i2").astype(np.float64)
    return torch.from_numpy(whole.reshape(encoded["rows"], encoded["columns"]) * encoded["scale"])


@pytest.fixture
def browse() -> Iterator[Callable[..., Any]]:
    """Opens a page in a headless browser: a function of the file, the window's size and the preferred colours."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs the programs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    opened = []

    def open_page(path: Path, width: int = 1280, height: int = 900, colours: str = "light") -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        # In a container the superuser has no sandbox and little shared memory.
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            f"--window-size={width},{height}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        page = webdriver.Chrome(options, webdriver.ChromeService(driver))
        opened.append(page)
        emulate = page.execute_cdp_cmd
        emulate(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        emulate("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": colours}]})
        page.get(path.as_uri())
        return page

    yield open_page
    for page in opened:
        page.quit()


def text(page: Any, identifier: str) -> str:
    return str(page.find_element("id", identifier).text)


def button(page: Any, group: str, name: str) -> Any:
    """The button of a group on which a name stands."""
    (found,) = [one for one in page.find_elements("css selector", f"#{group} button") if name in one.text.split("\n")]
    return found


def check_clean(page: Any, path: Path) -> None:
    """No message in the console, and nothing asked for but the page itself and what it embeds."""
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert path.as_uri() in asked
    assert [url for url in asked if url != path.as_uri() and not url.startswith("data:")] == []
