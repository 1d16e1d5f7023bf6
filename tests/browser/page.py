"""A page in a real Chromium, for tests that run in an event loop: each step is awaited in a thread."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

LAPTOP, PHONE = (1280, 800), (390, 844)
SHOTS = os.environ.get("MYNA_SCREENSHOTS")
"""A folder in which screenshots are kept, for people to look at."""

_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a profile. Its driver is the system's: nothing is downloaded."""
    options = Options()
    names = ("chromium", "chromium-browser", "google-chrome")
    options.binary_location = next(path for name in names if (path := shutil.which(name)))
    for option in _OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """One tab."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    async def open(self, url: str) -> None:
        await asyncio.to_thread(self._driver.get, url)

    async def run(self, script: str, *given: Any) -> Any:
        """The value of an expression."""
        return await asyncio.to_thread(self._driver.execute_script, f"return {script}", *given)

    async def until(self, script: str, *given: Any, timeout: float = 20.0) -> Any:
        """Wait until an expression is true; returns its value."""
        waiting = (
            "const [script, given, ms, done] = [arguments[0], arguments[1], arguments[2], arguments[3]];"
            "const test = new Function(`return ${script}`), end = performance.now() + ms;"
            "const look = () => { let found; try { found = test.apply(null, given); } catch (e) { found = null; }"
            " found || performance.now() > end ? done(found || null) : setTimeout(look, 20); }; look();"
        )
        self._driver.set_script_timeout(timeout + 10)
        found = await asyncio.to_thread(self._driver.execute_async_script, waiting, script, list(given), 1000 * timeout)
        assert found, f"never true: {script}; the page says: {(await self.text())[:600]}"
        return found

    async def text(self, selector: str = "body") -> str:
        found: str = await self.run("document.querySelector(arguments[0])?.innerText ?? ''", selector)
        return found

    async def click(self, selector: str) -> None:
        found = "document.querySelector(arguments[0])"
        await self.until(found, selector)
        await self.run(f"{found}.dispatchEvent(new MouseEvent('click', {{bubbles: true, cancelable: true}}))", selector)

    async def press(self, *keys: str) -> None:
        """Keys, as a person presses them."""
        for key in keys:
            await asyncio.to_thread(ActionChains(self._driver).send_keys(key).perform)

    async def show_as(self, size: tuple[int, int], *, dark: bool = False) -> None:
        """As a screen of this size, in light or dark."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await asyncio.to_thread(self._driver.execute_cdp_cmd, "Emulation.setDeviceMetricsOverride", metrics)
        await asyncio.to_thread(self._driver.execute_cdp_cmd, "Emulation.setEmulatedMedia", {"features": scheme})

    async def shoot(self, name: str) -> bytes:
        """The page as a PNG; kept where MYNA_SCREENSHOTS says."""
        picture: bytes = await asyncio.to_thread(self._driver.get_screenshot_as_png)
        if SHOTS:
            await asyncio.to_thread(_keep, Path(SHOTS, f"{name}.png"), picture)
        return picture

    async def complaints(self) -> list[str]:
        """What the browser has complained of since it was asked last."""
        return [entry["message"] for entry in await asyncio.to_thread(self._driver.get_log, "browser")]

    async def leave(self) -> None:
        """Forget all that the page has stored."""
        await self.run("(location.protocol.startsWith('http') && sessionStorage.clear(), true)")
        await self.open("about:blank")


def _keep(path: Path, picture: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)
