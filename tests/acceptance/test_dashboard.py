"""The dashboard in a real Chromium, on a stack that is really up. Screenshots are left in `build/screenshots/`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from pipeline import registry
from pipeline.settings import to_environment
from tests.acceptance.test_stack import ROOT, Up, green, photographs, wait_for
from tests.fixtures.databases import missing_service
from tests.fixtures.models import LIMITS, write_model
from tests.fixtures.web import Receiver
from workers.ports import choose

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)
SHOTS = ROOT / "build" / "screenshots"
METRICS = {"self_blended": {"n": 100, "auc": 0.5, "auc_ci": [0.4, 0.6], "eer": 0.5, "tpr_at_1fpr": 0.01, "ece15": 0.2}}

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or whatever goes by its names."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing_service("Chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def live(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A stack that is up, with two versions of the tests' model and a few pictures judged."""
    up = Up(tmp_path_factory.mktemp("live"), UNMASK_WEBHOOK_ALLOW_HTTP="true", UNMASK_WEBHOOK_ALLOW_PRIVATE="true").ready()
    for version in ("1", "2"):
        folder = write_model(tmp_path_factory.mktemp("model"), version=version, metrics=METRICS)
        registry.publish(up.db, up.store, up.settings, folder)
    registry.promote(up.db, up.settings, "green", "1")
    first, second = photographs(2)
    up.put("people/plain.jpg", first)
    up.put("people/tinted.jpg", green(second))
    up.put("broken/no picture.jpg", b"nothing that anybody could see")
    for key in ("people/plain.jpg", "people/tinted.jpg", "broken/no picture.jpg"):
        up.job(key)
    yield up
    assert up.stopped(signal.SIGINT) == 0, up.said


class Visit:
    """Pages of one browser context, and everything they complained of or asked other hosts for."""

    def __init__(self, browser: Browser, home: str, **how: Any) -> None:
        self.home = home
        self.complaints: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._seen)

    def _seen(self, request: Request) -> None:
        if not request.url.startswith((self.home, "data:")):
            self.complaints.append(f"asked for {request.url}")

    def to(self, path: str) -> Page:
        self.page.goto(self.home + path)
        return self.page

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.evaluate(
            "Promise.all([...document.images].map(image => { image.loading = 'eager'; return image.decode().catch(() => 0) }))"
        )
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def visit(browser: Browser, live: Up) -> Iterator[Visit]:
    """A fresh visitor; at the end nothing may have been complained of."""
    made = Visit(browser, live.settings.url)
    yield made
    made.context.close()
    assert made.complaints == []


def row(page: Page, name: str) -> Any:
    """The row of a job in the list."""
    return page.locator("li.row").filter(has=page.get_by_role("link", name=name, exact=True))


def all_pictures_shown(page: Page) -> bool:
    return bool(page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)"))


def test_the_list_shows_every_job_with_its_picture_verdict_and_reason(visit: Visit, live: Up) -> None:
    page = visit.to("/")
    expect(row(page, "plain.jpg")).to_contain_text("Authentic")
    expect(row(page, "tinted.jpg")).to_contain_text("Manipulated")
    expect(row(page, "tinted.jpg")).to_contain_text(re.compile(r"\d s|min ago|now"))
    expect(row(page, "no picture.jpg")).to_contain_text("This is not a picture in a known format")
    expect(page.locator(".limits")).to_contain_text(LIMITS[0])
    page.wait_for_load_state("networkidle")
    assert all_pictures_shown(page)
    visit.shot("jobs")


def test_an_upload_appears_and_gets_its_verdict_without_a_reload(visit: Visit, live: Up) -> None:
    page = visit.to("/")
    page.evaluate("window.sameDocument = true")
    live.put("people/while you look.jpg", photographs(3)[2])
    expect(row(page, "while you look.jpg")).to_contain_text("Authentic", timeout=30_000)
    assert page.evaluate("window.sameDocument")


def test_a_page_that_nobody_looks_at_asks_for_nothing(visit: Visit, live: Up) -> None:
    visit.page.clock.install()
    page = visit.to("/")
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => window.away ?? false })")
    with page.expect_response("**/fragments/jobs"):
        page.clock.run_for(5_000)
    page.evaluate("window.away = true")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/fragments/" in request.url else None)
    page.clock.run_for(120_000)
    assert asked == []
    with page.expect_response("**/fragments/jobs"):
        page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")


def test_a_picture_chosen_on_the_page_is_judged_before_ones_eyes(visit: Visit, live: Up, tmp_path: Path) -> None:
    (tmp_path / "chosen.jpg").write_bytes(photographs(4)[3])
    page = visit.to("/")
    page.set_input_files("input[type=file]", tmp_path / "chosen.jpg")
    expect(page.get_by_role("heading", name="chosen.jpg")).to_be_visible()
    expect(page.locator(".outcome")).to_contain_text("Authentic", timeout=30_000)
    expect(page.locator(".timeline li").last).to_contain_text("Done")


def test_a_jobs_page_shows_all_there_is_to_know(visit: Visit, live: Up) -> None:
    job = live.job("people/tinted.jpg")
    page = visit.to(f"/jobs/{job.id}")
    expect(page.locator(".outcome")).to_contain_text("Manipulated")
    expect(page.locator(".pair img")).to_have_count(2)
    expect(page.locator("svg.boxes rect")).to_have_count(1)
    expect(page.locator("table.faces tbody tr")).to_have_count(1)
    expect(page.locator("table.faces svg.scale")).to_have_attribute("aria-label", re.compile("authentic below .* manipulated from"))
    expect(page.locator(".limits")).to_contain_text(LIMITS[0])
    expect(page.locator(".legend")).to_contain_text("Classify")
    expect(page.locator(".facts").first).to_contain_text("inbox/people/tinted.jpg")
    expect(page.locator(".facts").last).to_contain_text("green 1")
    assert page.locator(".timeline li").count() == 7
    page.wait_for_load_state("networkidle")
    assert all_pictures_shown(page)
    visit.shot("job")


def test_filters_and_pages_are_addresses(visit: Visit, live: Up) -> None:
    page = visit.to("/")
    page.get_by_label("Verdict").select_option("manipulated")
    page.wait_for_url("**/?*verdict=manipulated*")
    expect(row(page, "tinted.jpg")).to_have_count(1)
    expect(row(page, "plain.jpg")).to_have_count(0)
    page = visit.to("/?prefix=broken/")
    expect(page.locator("li.row")).to_have_count(1)
    page.get_by_role("link", name="Show all").click()
    expect(row(page, "plain.jpg")).to_have_count(1)


def test_a_refused_job_says_why_and_can_be_sent_through_again(visit: Visit, live: Up) -> None:
    job = live.job("broken/no picture.jpg")
    page = visit.to(f"/jobs/{job.id}")
    expect(page.locator(".outcome")).to_contain_text("This is not a picture")
    visit.shot("refused")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".timeline")).to_contain_text("Sent through again")
    expect(page.locator(".timeline li").last).to_contain_text("Refused", timeout=30_000)


def test_a_receiver_is_added_told_and_its_attempts_shown(visit: Visit, live: Up, receivers: Callable[[], Receiver]) -> None:
    receiver = receivers()
    page = visit.to("/endpoints")
    page.get_by_label("URL").fill(receiver.url)
    page.get_by_label("Description").fill("The newsroom")
    page.get_by_label("job.done").check()
    page.get_by_role("button", name="Add").click()
    secret = page.locator("code.secret").inner_text()
    visit.shot("secret")
    receiver.answer(secret=secret)
    page.get_by_role("link", name="I have kept it").click()
    page.get_by_role("button", name="Send a test").click()
    expect(page.locator("tbody tr").first).to_contain_text("Delivered")
    assert receiver.got[0]["verified"]

    receiver.answer(secret=secret, status=503, body="down for maintenance")
    live.put("people/told.jpg", photographs(5)[4])
    job = live.job("people/told.jpg")
    wait_for(lambda: len(receiver.got) >= 2, "the webhook", live)
    page = visit.to(f"/jobs/{job.id}")
    delivery = page.locator("tbody tr").filter(has_text="job.done")
    expect(delivery).to_contain_text("Pending", timeout=10_000)
    delivery.locator("summary").click()
    expect(delivery).to_contain_text("down for maintenance")
    receiver.answer(secret=secret)
    delivery.get_by_role("button", name="Send again").click()
    expect(page.locator("tbody tr").filter(has_text="job.done")).to_contain_text("Delivered")
    assert {one["verified"] for one in receiver.got} == {True}
    assert receiver.got[-1]["id"] == receiver.got[-2]["id"]

    page.get_by_role("link", name=receiver.url).first.click()
    page.get_by_role("button", name="New secret").click()
    assert page.locator("code.secret").inner_text() != secret
    page.get_by_role("link", name="I have kept it").click()
    page.get_by_role("button", name="Disable").click()
    expect(page.locator(".outcome")).to_contain_text("Disabled by hand.")
    visit.shot("endpoint")
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("No receiver is registered yet.")).to_be_visible()
    visit.shot("endpoints")


def test_an_address_that_cannot_be_is_refused_with_a_sentence(visit: Visit, live: Up) -> None:
    page = visit.to("/endpoints")
    page.get_by_label("URL").fill("ftp://example.com/")
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("alert")).to_have_text("The URL must be absolute and start with https://.")
    assert visit.complaints.pop().startswith("Failed to load resource: the server responded with a status of 422")


def test_models_are_shown_with_figures_and_limits_promoted_and_rolled_back(visit: Visit, live: Up) -> None:
    page = visit.to("/models")
    expect(page.locator(".model")).to_have_count(2)
    expect(page.locator(".model").first).to_contain_text("0.400 – 0.600")
    expect(page.locator(".model").first).to_contain_text(LIMITS[0])
    visit.shot("models")
    page.get_by_role("button", name="Promote").click()
    expect(page.locator(".model").filter(has_text="green 2")).to_contain_text("Champion")
    page.get_by_role("button", name="Roll back to green 1").click()
    expect(page.locator(".model").filter(has_text="green 1")).to_contain_text("Champion")


def test_the_api_is_described_without_asking_anybody_else(visit: Visit, live: Up) -> None:
    page = visit.to("/docs")
    expect(page.get_by_text("Judge one image and wait for the verdict")).to_be_visible()
    page.get_by_text("Judge one image and wait for the verdict").click()
    expect(page.get_by_role("button", name="Try it out")).to_be_visible()


@pytest.mark.parametrize(("name", "how"), [("dark", {"color_scheme": "dark"}), ("narrow", {"viewport": {"width": 390, "height": 844}})])
def test_every_page_is_good_in_the_dark_and_on_a_narrow_screen(browser: Browser, live: Up, name: str, how: dict[str, Any]) -> None:
    visit = Visit(browser, live.settings.url, **how)
    job = live.job("people/tinted.jpg")
    for title, path in (("jobs", "/"), ("job", f"/jobs/{job.id}"), ("endpoints", "/endpoints"), ("models", "/models")):
        page = visit.to(path)
        page.wait_for_load_state("load")
        visit.shot(f"{title}-{name}")
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0, f"{path} scrolls sideways by {wide} px"
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground)[:3])) < 60) == (name == "dark")
    visit.context.close()
    assert visit.complaints == []


def test_everything_can_be_reached_by_keyboard(visit: Visit, live: Up) -> None:
    page = visit.to("/")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.name"))
    for name in ("Skip to the content", "Webhooks", "file", "anyQueuedRunning", "Filter", "plain.jpg", "Retry"):
        assert any(name in one for one in reached), f"{name} was not reached: {reached}"
    page = visit.to("/")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")


def test_a_server_with_a_key_asks_for_it(browser: Browser, live: Up) -> None:
    port = choose(("web",), {}, paired="")["web"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
    environment |= to_environment(live.settings) | {
        "UNMASK_WEB_PORT": str(port),
        "UNMASK_API_KEY": "a key for this test",
        "UNMASK_PUBLIC_URL": "",
    }
    process = subprocess.Popen([sys.executable, "-m", "webhooks.app"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    visit = Visit(browser, f"http://127.0.0.1:{port}")
    try:
        assert process.stderr is not None
        assert any("Serving on" in line for line in process.stderr)
        page = visit.to("/endpoints")
        visit.shot("login")
        page.get_by_text("Log in with an API key").click()
        page.get_by_label("API key").fill("a guess")
        page.get_by_role("button", name="Log in with the key").click()
        expect(page.get_by_role("alert")).to_have_text("That is no API key of this server.")
        visit.complaints.clear()  # Chromium notes the 401
        page.get_by_text("Log in with an API key").click()
        page.get_by_label("API key").fill("a key for this test")
        page.get_by_role("button", name="Log in with the key").click()
        page.wait_for_url("**/endpoints")
        page = visit.to("/")
        page.wait_for_load_state("networkidle")
        assert all_pictures_shown(page)
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Password")).to_be_visible()
        assert visit.complaints == []
    finally:
        visit.context.close()
        process.terminate()
        process.communicate(timeout=10)
