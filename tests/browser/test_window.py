"""The window, in a real Chromium, on a real application: NATS, a scheduler, an engine, a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from myna.actors import config
from myna.actors.config import GatewaySettings
from myna.actors.engine_host.backend import EngineBackend
from myna.actors.gateway import keys
from myna.actors.messages import Message, ModelCall, Output, Sampling, Text
from myna.sdk.client import Client, connect
from tests.actors.gateway.conftest import House, furnished, house
from tests.actors.stage import GatedBackend, call, until
from tests.browser.page import LAPTOP, PHONE, Page, chromium
from tests.engine.tiny_folder import tiny_folder
from tests.network import NatsNetwork, nats, nats_server

pytestmark = [pytest.mark.browser, pytest.mark.nats]

__all__ = ["house", "nats", "nats_server"]


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with chromium() as it:
        yield it


@pytest.fixture
async def page(driver: webdriver.Chrome) -> AsyncIterator[Page]:
    it = Page(driver)
    await it.show_as(LAPTOP)
    yield it
    severe = [c for c in await it.complaints() if "Failed to load resource" not in c]
    await it.leave()
    assert severe == []


@pytest.fixture
async def idle(nats: NatsNetwork) -> AsyncIterator[House]:
    """A house without an engine: what is ready stays so."""
    async with furnished(nats, worker=False) as it:
        yield it


@pytest.fixture
async def client(house: House) -> AsyncIterator[Client]:
    async with connect(bus=await house.network.bus()) as it:
        yield it


def node(label: str) -> str:
    return f"[...document.querySelectorAll('.node')].find((n) => n.getAttribute('aria-label').startsWith('{label},'))"


async def test_a_session_is_followed_from_its_first_wait_to_its_last_text(
    house: House, client: Client, page: Page
) -> None:
    backend = GatedBackend(("draft", 2), ("review", 0))
    await house.cast.crash("worker")
    await house.cast.worker("gated", backend)
    gateway = await house.open()
    async with client.session("an application") as session:
        session.resubmit([call("draft", tokens=4), call("review", "draft"), call("final", "draft", "review")])
        await page.open(gateway.url)
        await page.click(".sessions a")
        await page.until(f"{node('draft')}?.classList.contains('decode')")
        assert await page.run(f"{node('review')}.classList.contains('waiting')")
        assert "waiting" in await page.text(".counts")
        await page.click(".node.decode")
        await page.until("document.querySelector('.panel pre')?.textContent === 'draft0 draft1'")
        await page.until("document.querySelectorAll('.reasons li').length > 0")
        assert "was chosen because" in await page.text(".reasons")
        assert "call-draft" in await page.run("decodeURIComponent(location.hash)")
        backend.gates["draft", 2].set()
        await page.until("document.querySelector('.panel pre').textContent === 'draft0 draft1 draft2 draft3'")
        await page.until("document.querySelector('.times-bar')")
        assert "gated" in await page.text(".facts")
        backend.gates["review", 0].set()
        await page.until(f"{node('final')}.classList.contains('done')")
        await page.click("[aria-label='final, done']")
        await page.until("document.querySelector('.panel h2').textContent === 'final'")
        await page.until("document.querySelector('.panel pre').textContent === 'final0 final1'")
        await page.run("[...document.querySelectorAll('.reads a')].find((a) => a.textContent === 'review').click()")
        await page.until("document.querySelector('.panel h2').textContent === 'review'")
        await page.shoot("session-laptop")
    await page.until("!document.querySelector('.note').hidden")  # and it is told when it ends


async def test_a_failure_is_told_in_the_list_and_at_its_call(house: House, client: Client, page: Page) -> None:
    gateway = await house.open()
    async with client.session("a failure") as session:
        session.resubmit([call("good"), call("bad", "never-made"), call("after", "bad")])
        await page.open(gateway.url)
        await page.until("document.querySelector('.sessions')?.textContent.includes('1 done, 2 failed')")
        assert await page.run("document.querySelectorAll('.progress .failed').length") == 1
        await page.click(".sessions a")
        await page.click("[aria-label='bad, failed']")
        await page.until("document.querySelector('.panel pre')?.textContent.includes('never-made')")


async def test_the_bar_of_a_call_that_goes_on_tells_when_its_first_token_came(
    house: House, client: Client, page: Page
) -> None:
    backend = GatedBackend(("draft", 0), ("draft", 2))
    await house.cast.crash("worker")
    await house.cast.worker("gated", backend)
    gateway = await house.open()
    async with client.session("an application") as session:
        session.resubmit([call("draft", tokens=4)])
        await page.open(f"{gateway.url}/window/#/engines")
        await page.until("document.querySelector('.timeline a .queued')")
        backend.gates["draft", 0].set()
        await page.until("document.querySelector('.timeline a .prefill')?.nextSibling?.matches('.decode')")
        backend.gates["draft", 2].set()


async def test_hostile_names_and_texts_are_only_text(house: House, client: Client, page: Page) -> None:
    evil = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
    await house.cast.crash("worker")
    await house.cast.worker("evil", GatedBackend(text=evil))
    gateway = await house.open()
    async with client.session(evil) as session:
        made = call("evil", tokens=2)
        session.resubmit([ModelCall(id=made.id, function=evil, messages=made.messages)])
        given = session.variable(evil)
        await given.set(evil)
        for view in (
            f"sessions/default/{session.id}/calls/call-evil",
            f"sessions/default/{session.id}/variables/{given.id}",
        ):
            await page.open(f"{gateway.url}/window/#/{view}")
            await page.until("document.querySelector('.panel pre')?.textContent.includes('onerror=')")
        for view in ("sessions", "engines", "prefixes", "tenants"):
            await page.open(f"{gateway.url}/window/#/{view}")
            await page.until("document.querySelector('main section')")
        await page.open(f"{gateway.url}/window/#/engines")
        await page.until(
            "[...document.querySelectorAll('.timeline title')].some((t) => t.textContent.includes('<img'))"
        )
        assert await page.run("[window.hacked, document.images.length, document.scripts.length]") == [None, 0, 1]
        await page.run(
            "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 2';"
            " document.body.append(s); return true; })()"
        )
        assert await page.run("window.hacked") is None
        assert any("Content Security Policy" in c for c in await page.complaints())


async def test_a_graph_of_a_thousand_calls_is_drawn_and_walked_by_keys(idle: House, page: Page) -> None:
    gateway = await idle.open()
    async with connect(bus=await idle.network.bus()) as client, client.session("map and reduce") as session:
        names = [f"part{n}" for n in range(1000)]
        session.resubmit([*(call(name) for name in names), call("whole", *names), call("title", "whole")])
        await session.flush()
        await page.open(f"{gateway.url}/window/#/sessions/default/{session.id}")
        await page.until("document.querySelectorAll('.node').length === 1002")
        assert await page.run("document.querySelector('.graph').classList.contains('far')")
        await page.shoot("thousand-laptop")
        await page.run("(document.querySelector('.graph').focus(), true)")
        for key, label in (
            (Keys.ARROW_DOWN, "part0"),
            (Keys.ARROW_RIGHT, "whole"),
            (Keys.ARROW_RIGHT, "title"),
            (Keys.ARROW_LEFT, "whole"),
        ):
            await page.press(key)
            await page.until(
                f"document.querySelector('.node.selected')?.getAttribute('aria-label').startsWith('{label},')"
            )
        chosen = "document.getElementById(document.querySelector('.graph').getAttribute('aria-activedescendant'))"
        assert await page.run(f"{chosen}.getAttribute('aria-label')") == "whole, waiting"
        await page.until("document.querySelectorAll('.node').length < 600")  # nearer now: the rest is not drawn
        await page.press(Keys.ENTER)
        await page.until("document.querySelector('.panel h2')?.textContent === 'whole'")
        await page.until("document.querySelector('.reasons')?.textContent.includes('comes from call')")
        await page.run("(document.querySelector('.graph').focus(), true)")
        await page.press("0")
        await page.until("document.querySelectorAll('.node').length === 1002")
        await page.until("document.querySelectorAll('.node.ready').length === 1000")
        assert "1000 ready" in (await page.text(".counts")).replace(",", "")
        figure = "[...document.querySelectorAll('#figures div')].find((e) => e.innerText.startsWith('ready'))"
        await page.until(f"{figure}?.innerText.replace(/\\D/g, '') === '1000'")


CONTRAST = """(() => {
  const parse = (color) => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (el) => {
    for (; el; el = el.parentElement) {
      const color = getComputedStyle(el).backgroundColor;
      if (parse(color)[3] > 250) return color;
    }
    return 'white';
  };
  const bad = [];
  for (const el of document.querySelectorAll('body *:not(svg *)')) {
    const own = [...el.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !el.checkVisibility() || el.matches('.skip')) continue;
    const style = getComputedStyle(el), a = light(parse(style.color)), b = light(parse(ground(el)));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${el.className || el.tagName} ${el.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return bad;
})()"""
UNNAMED = """[...document.querySelectorAll('a[href], button, input, [role=listbox], [role=region]')]
  .filter((el) => el.checkVisibility() && !(el.textContent.trim() || el.getAttribute('aria-label') || el.labels?.length))
  .map((el) => el.outerHTML.slice(0, 80))"""


@pytest.fixture
async def tiny(nats: NatsNetwork, tmp_path: Path) -> AsyncIterator[House]:
    """A house whose engine is a real one, with a tiny model."""
    engine = config.EngineSettings(model=str(tiny_folder(tmp_path)), dtype=config.Dtype.FLOAT32, kv_memory=2**20)
    settings = replace(config.read({"HOME": str(tmp_path)}), engine=engine)
    async with furnished(nats, worker=False) as it:
        await it.cast.worker("engine-1", EngineBackend(settings))
        yield it


def prompt(name: str, text: str, tokens: int) -> ModelCall:
    segments = (Text(text=text), Output(variables=(name,), sampling=Sampling(max_tokens=tokens, ignore_eos=True)))
    return ModelCall(id=f"call-{name}", function=name, messages=(Message(segments=segments),))


async def test_it_shows_a_real_engines_batch_and_prefixes_on_laptop_and_phone_in_light_and_dark(
    tiny: House, page: Page
) -> None:
    gateway = await tiny.open()
    async with connect(bus=await tiny.network.bus()) as client, client.session("shared prefixes") as session:
        rules = "the quick brown fox jumps over the lazy dog while it rains in Spain. " * 3
        session.resubmit([prompt(f"ask{n}", f"{rules} question {n}:", 24) for n in range(6)])
        await session.gather(*(session.lookup(f"ask{n}") for n in range(6)), timeout=60)
        session.resubmit([prompt(f"again{n}", f"{rules} question {n}: once more", 64) for n in range(6)])
        await session.gather(*(session.lookup(f"again{n}") for n in range(6)), timeout=60)
        await page.open(f"{gateway.url}/window/#/prefixes")
        await page.until("document.querySelector('.prefix')?.textContent.includes('saved')")
        assert "the quick brown fox" in await page.text(".prefix")
        assert "found instead of computed" in await page.text(".lead")
        await page.open(f"{gateway.url}/window/#/engines")
        await page.until("document.querySelector('.area.running')")
        await page.until("document.querySelectorAll('.timeline a').length === 12")
        assert "KV in use" in await page.text(".figures")
        link = await page.run("document.querySelector('.timeline a').getAttribute('href')")
        assert link.startswith(f"#/sessions/default/{session.id}/calls/call-")
        views = ["sessions", f"sessions/default/{session.id}/calls/call-ask0", "engines", "prefixes", "tenants"]
        for size, name in ((LAPTOP, "laptop"), (PHONE, "phone")):
            for dark in (False, True):
                await page.show_as(size, dark=dark)
                for view in views:
                    await page.open(f"{gateway.url}/window/#/{view}")
                    await page.until("document.querySelector('main section')?.innerText.length > 20")
                    if "calls" in view:
                        await page.until("document.querySelector('.panel pre')?.textContent")
                    what = f"{view.rpartition('/')[2]}-{name}-{'dark' if dark else 'light'}"
                    assert len(await page.shoot(what)) > 5000
                    assert await page.run("document.documentElement.scrollWidth <= innerWidth"), what
                    assert await page.run(CONTRAST) == [], what
                    assert await page.run(UNNAMED) == [], what


async def test_the_tab_key_leads_through_the_page_in_its_order(house: House, client: Client, page: Page) -> None:
    gateway = await house.open()
    async with client.session("one") as session:
        session.resubmit([call("only")])
        await page.open(f"{gateway.url}/window/#/sessions/default/{session.id}")
        await page.until("document.querySelector('.node.done')")
        names = []
        for _ in range(11):
            await page.press(Keys.TAB)
            named = "(document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent)"
            names.append(await page.run(named))
    order = ["Skip to the content", "Myna", "Sessions", "Engines", "Prefixes", "Tenants", "All sessions"]
    assert names == [*order, "Calls of this session", "Smaller", "Larger", "The whole graph"]


async def test_a_key_is_asked_for_stays_in_the_tab_and_shows_its_tenants_own(
    house: House, page: Page, tmp_path: Path
) -> None:
    table = tmp_path / "keys.toml"
    acme, mine = keys.make("acme", "laptop")
    boss, all_ = keys.make("ops", "boss", operator=True)
    table.write_text(f"{mine}\n{all_}")
    gateway = await house.open(GatewaySettings(keys=table))
    async with connect(bus=await house.network.bus(), tenant="acme") as client, client.session("secret plan"):
        await page.open(gateway.url)
        for attempt in ("wrong", acme):
            await page.until("document.getElementById('login').open")
            await page.press(*attempt, Keys.ENTER)
            if attempt == "wrong":
                await page.until("document.getElementById('login-trouble').textContent.includes('not known')")
        await page.until("document.querySelector('.sessions a')?.textContent.includes('secret plan')")
        assert await page.run("document.querySelector('[data-view=tenants]').hidden")
        assert await page.run("[localStorage.length, document.cookie, location.href.includes('myna-')]") == [
            0,
            "",
            False,
        ]
        await page.run("(sessionStorage.clear(), true)")
        await page.open("about:blank")
        await page.open(f"{gateway.url}/window/#key={boss}")
        await page.until("document.querySelector('.sessions a')?.textContent.includes('acme')")
        assert boss not in await page.run("location.href")
        await page.click(".sessions a")
        await page.until("document.querySelector('h1').textContent === 'secret plan'")


async def test_a_gateway_that_goes_is_told_and_one_that_comes_back_is_found(house: House, page: Page) -> None:
    gateway = await house.open()
    port = int(gateway.url.rpartition(":")[2])
    await page.open(gateway.url)
    await page.until("document.querySelector('#figures dd')")
    await house.shut(gateway)
    await page.until("!document.getElementById('trouble').hidden")
    assert "does not answer" in await page.text("#trouble")
    await house.open(GatewaySettings(port=port))
    await page.until("document.getElementById('trouble').hidden")


async def test_to_look_at_a_lazy_session_starts_nothing(house: House, client: Client, page: Page) -> None:
    gateway = await house.open()
    async with client.session("lazy", lazy=True) as session:
        session.resubmit([call("idle")])
        await session.flush()
        await page.open(f"{gateway.url}/window/#/sessions/default/{session.id}/calls/call-idle")
        await page.until("document.querySelector('.reasons')?.textContent.includes('nobody has asked')")

        async def seen() -> bool:
            return (await house.cast.status()).sessions[0].waiting == 1

        await until(seen, "the call waits still")
        assert await page.text(".panel .status") == "not there yet"
