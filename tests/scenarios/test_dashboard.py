"""
The dashboard, as people see and use it: a real relay, and a real browser (Debian's Chromium, driven by Playwright)
in which the page is looked at, typed at and clicked.

What the page shows is waited for, never slept for. Whatever a page complained of in its console, and whatever it asked
of anybody but its relay, fails the scenario.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Locator,
    Page,
    Route,
    ViewportSize,
    expect,
    sync_playwright,
)

from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.programs import find, folder, free_port, skip_unless_installed
from tests.scenarios.relay_process import (
    PATIENCE,
    RelayProcess,
    Upstream,
    connect,
    read_exactly,
    read_until_reset,
    wait_until,
)
from tests.scenarios.scenario import Scenario
from tests.scenarios.test_nginx import CONNECTIONS, nginx, wrk

_SERVED = re.compile(r"Metrics, API and dashboard: (http://\S+)")
_MARKUP = "<img/src=x/onerror=alert(1)>"
_NOTHING = "\N{EN DASH}"
_DESK = {"width": 1280, "height": 900}
_PHONE = {"width": 360, "height": 740}
# In whatever a browser was about when the relay went.
_GONE = r"ERR_CONNECTION_|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|ERR_SOCKET_NOT_CONNECTED"
_LOUD = """
addEventListener('securitypolicyviolation', (event) => console.error(`policy: ${event.violatedDirective}`));
"""

# `losses` is how often the banner has come up since.
_COUNT_LOSSES = """() => {
  const banner = document.querySelector('#banner');
  window.losses = 0;
  const look = () => { if (!banner.hidden) window.losses += 1; };
  new MutationObserver(look).observe(banner, { attributes: true, attributeFilter: ['hidden'] });
}"""

# The lowest contrast of all texts that are shown, by the formula of WCAG 2.2, and where it is.
_LOWEST_CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const channels = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = channels(getComputedStyle(element).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    throw new Error('nothing is behind it');
  };
  let lowest = [99, ''];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest('script, style, noscript')) continue;
    const [a, b] = [channels(getComputedStyle(element).color), behind(element)].map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, node.data];
  }
  return lowest;
}"""


class Dashboard(Scenario, every_pump=False):
    """
    The base of the scenarios here: a browser for each.

    It can't be one for all of them: as long as Playwright runs, its event loop counts as running in this thread, and
    nobody else could have one.
    """

    browser: Browser

    def setUp(self) -> None:
        skip_unless_installed("chromium")
        chromium = find("chromium")
        playwright = sync_playwright().start()
        self.addCleanup(playwright.stop)
        # It refuses to run as root otherwise, which CI does.
        options = ["--no-sandbox"]
        self.browser = playwright.chromium.launch(executable_path=chromium, args=options)
        self.addCleanup(self.browser.close)
        expect.set_options(timeout=PATIENCE * 1000)

    @contextmanager
    def page(self, relay: RelayProcess, allowed: str = "", **options: Any) -> Iterator[Page]:
        """
        The dashboard of `relay`, opened; at the end of the `with` block it may have complained of nothing.

        @param allowed: a regular expression of what it may complain of all the same.
        @param options: of the browser's context.
        """
        complaints: list[str] = []

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                complaints.append(message.text)

        def asked(url: str) -> None:
            if not url.startswith((address, "data:image/svg+xml,", "data:,")):
                complaints.append(f"asked for {url}")

        def popped_up(dialog: Dialog) -> None:
            complaints.append(f"popped up: {dialog.message}")
            dialog.dismiss()

        address = served_at(relay)
        context = self.browser.new_context(
            **{"viewport": _DESK, "reduced_motion": "reduce", **options}
        )
        try:
            context.set_default_timeout(PATIENCE * 1000)
            context.add_init_script(_LOUD)
            page = context.new_page()
            page.on("console", said)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: asked(request.url))
            page.on("dialog", popped_up)
            page.goto(address)
            yield page
        finally:
            context.close()
        unexpected = [each for each in complaints if not allowed or not re.search(allowed, each)]
        self.assertEqual(unexpected, [])

    @contextmanager
    def shown(self, *options: str, **more: Any) -> Iterator[tuple[RelayProcess, Page]]:
        """A relay with these options, and its page, which has had its first news."""
        with (
            self.relaying("--admin", "127.0.0.1:0", *options) as relay,
            self.page(relay, **more) as page,
        ):
            expect(page.locator("#state-word")).to_have_text("running")
            yield relay, page


def served_at(relay: RelayProcess) -> str:
    """The address of a relay's dashboard."""
    found = _SERVED.search("\n".join(relay.lines))
    assert found is not None
    return found[1]


def asked(relay: RelayProcess, path: str) -> Any:
    """What the API answers."""
    with urllib.request.urlopen(served_at(relay) + path, timeout=PATIENCE) as answer:
        return json.load(answer)


def row(page: Page, table: str, words: str) -> Locator:
    """The row of a table in which these words stand."""
    return page.locator(f"{table} tbody tr", has_text=words)


def cell(row: Locator, label: str) -> Locator:
    """What stands below that head."""
    return row.locator(f'[data-label="{label}"]')


def confirm(page: Page, button: str) -> None:
    """Say yes to the question that stands there."""
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=button, exact=True).click()
    expect(dialog).to_be_hidden()


def set_to(page: Page, target: str, state: str) -> Locator:
    """The button that sets a target to a state."""
    group = page.get_by_role("group", name=f"What {target} is set to", exact=True)
    return group.get_by_role("button", name=state, exact=True)


def press_tab_until(page: Page, wanted: Locator) -> None:
    """Walk through the page by keyboard until `wanted` has the focus."""
    for _ in range(100):
        page.keyboard.press("Tab")
        if wanted.evaluate("(element) => element === document.activeElement"):
            return
    raise AssertionError("the keyboard does not lead there")


def wide_of_the_page(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    wide: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return wide


def configuration(targets: list[str], more: str = "", port: int = 0) -> str:
    """A file with one listener and one pool."""
    return f"""
        [relay]
        admin = "127.0.0.1:{port}"
        [[listener]]
        name = "web"
        listen = ["tcp:0:interface=127.0.0.1"]
        pool = "web"
        [pool.web]
        targets = {json.dumps(targets)}
        {more}
    """


class DashboardShows(Dashboard, every_pump=False):
    """What is seen."""

    def test_a_relay_at_rest_has_words_for_all_that_is_empty(self) -> None:
        with Upstream() as upstream, self.shown("--target", upstream.target) as (relay, page):
            expect(page.locator("#process")).to_have_text(f"process {relay.pid}")
            expect(page).to_have_title("running · 0 open · fwdrelay")
            expect(page.locator("#attention")).to_have_text("The target is up.")
            expect(page.locator("#sessions-empty")).to_have_text("No session is open.")
            expect(page.locator("#ends-empty")).to_be_visible()
            expect(page.locator("#banner")).to_be_hidden()
            listener = row(page, "main", f"127.0.0.1:{relay.port}")
            expect(cell(listener, "Sessions")).to_have_text("0")
            target = row(page, ".pool", upstream.target)
            expect(cell(target, "State")).to_have_text("up")
            expect(cell(target, "Share")).to_have_text("100 %")

    def test_numbers_move_while_bytes_flow(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target) as (relay, page),
            self.session(relay, upstream) as (client, server),
        ):
            reading = '[data-reading="{}"]'.format
            expect(page.locator(reading("up"))).to_have_text("0 B/s")
            expect(page.locator(reading("sessions"))).to_have_text("1")
            live = row(page, "#sessions", f"127.0.0.1:{client.getsockname()[1]}")
            expect(cell(live, "Target")).to_have_text(upstream.target)
            expect(cell(live, "State")).to_have_text("relaying")
            sent = 0

            def up_moves() -> bool:
                """Bytes flow until that is seen: a browser that is busy draws only what was told last."""
                nonlocal sent
                client.sendall(bytes(10_000))
                read_exactly(server, 10_000)
                sent += 10_000
                return "iB/s" in page.locator(reading("up")).inner_text()

            wait_until(up_moves)
            server.sendall(bytes(5_000))
            expect(cell(live, "↑ Up")).to_have_attribute("title", f"{sent:,}")
            expect(cell(live, "↓ Down")).to_have_attribute("title", "5,000")
            listener = row(page, "main", f"127.0.0.1:{relay.port}")
            expect(cell(listener, "↑ Up")).to_have_attribute("title", f"{sent:,}")
            # The trace has gone up and come down again.
            trace = page.locator('[data-chart="throughput"] .trace.series-up')
            expect(trace).to_have_attribute("d", re.compile(r"M[\d. ]+L[\d. L]+"))

    def test_what_it_shows_is_what_wrk_has_done(self) -> None:
        skip_unless_installed("nginx", "wrk")
        with (
            folder() as place,
            nginx(place) as port,
            self.shown("--target", f"127.0.0.1:{port}", "--access-log", "off") as (relay, page),
        ):
            requests = wrk(place, relay.port, "--header", "Connection: close")
            # Of those whom wrk has left the last may be waiting to be let in; who comes now waits behind them.
            with urllib.request.urlopen(
                f"http://127.0.0.1:{relay.port}/", timeout=PATIENCE
            ) as answer:
                answer.read()
            wait_until(lambda: asked(relay, "v1/status")["totals"]["sessions"] == 0)
            expect(page.locator('[data-reading="sessions"]')).to_have_text("0")
            totals = asked(relay, "v1/status")["totals"]
            listener = row(page, "main", f"127.0.0.1:{relay.port}")
            for label, key in (
                ("Since start", "sessions_total"),
                ("↓ Down", "bytes_down"),
                ("↑ Up", "bytes_up"),
            ):
                expect(cell(listener, label)).to_have_attribute("title", f"{totals[key]:,}")
            expect(page.locator("#totals")).to_contain_text(
                f"Since the start: {totals['sessions_total']:,} sessions,"
            )
            # wrk asks once more at first, and leaves in the middle of things when its time is up.
            self.assertGreater(totals["sessions_total"], requests)
            self.assertLessEqual(totals["sessions_total"], requests + CONNECTIONS + 2)
            expect(page.get_by_role("button", name=re.compile("^done "))).to_be_visible()
            expect(page.locator("#ends-summary")).to_contain_text("came too fast to be told")

    def test_a_target_that_dies_and_comes_back_is_seen_to(self) -> None:
        checked = """
            [pool.web.health]
            check = "tcp"
            interval = "200ms"
            fall = 2
            rise = 2
        """
        with ExitStack() as stack:
            port = free_port()  # which nobody's connection takes while the target is dead
            first = stack.enter_context(Upstream(port=port))
            second = stack.enter_context(Upstream())
            text = configuration([first.target, second.target], checked)
            relay = stack.enter_context(ConfiguredRelay(self.path("relay.toml"), text))
            page = stack.enter_context(self.page(relay))
            expect(page.locator("#attention")).to_have_text("All 2 targets are up.")
            first.socket.close()
            target = row(page, ".pool", first.target)
            expect(cell(target, "State")).to_have_text("down")
            expect(cell(target, "Share")).to_have_text("0 %")
            expect(cell(target, "Last change")).to_have_text(
                re.compile(r"connection refused \(2 checks in a row\), \d+ s ago")
            )
            expect(page.locator("#attention")).to_contain_text(
                f"Target {first.target} of pool web is down: connection refused"
            )
            expect(page).to_have_title("running · 0 open · 1 down · fwdrelay")
            with Upstream(port=port):
                expect(cell(target, "State")).to_have_text("up")
                expect(page.locator("#attention")).to_have_text("All 2 targets are up.")

    def test_a_target_whose_checks_begin_to_fail_is_seen_to(self) -> None:
        checked = """
            [pool.web.health]
            check = "tcp"
            interval = "200ms"
            fall = 1000
        """
        with ExitStack() as stack:
            upstream = stack.enter_context(Upstream())
            text = configuration([upstream.target], checked)
            relay = stack.enter_context(ConfiguredRelay(self.path("relay.toml"), text))
            page = stack.enter_context(self.page(relay))
            target = row(page, ".pool", upstream.target)
            for _ in range(2):  # the first check, which would decide alone, is over then
                upstream.accept().close()
            expect(cell(target, "State")).to_have_text("up")
            upstream.socket.close()
            expect(cell(target, "State")).to_have_text("up, failing")
            expect(cell(target, "Last change")).to_have_text(
                re.compile(r"\d+ of 1000 checks failed: connection refused")
            )

    def test_sessions_that_have_ended_are_told_with_their_reasons(self) -> None:
        with Upstream() as upstream, self.shown("--target", upstream.target) as (relay, page):
            with self.session(relay, upstream) as (client, _):
                client.sendall(b"12345")
                name = f"127.0.0.1:{client.getsockname()[1]}"
                expect(row(page, "#sessions", name)).to_be_visible()
            end = row(page, "#ends-box", name)
            expect(end).to_contain_text(relay.ended()[0]["reason"])
            expect(cell(end, "↑ Up")).to_have_attribute("title", "5")
            expect(row(page, "#sessions", name)).to_have_count(0)
            with self.session(relay, upstream) as (client, server):
                client.shutdown(socket.SHUT_WR)
                server.shutdown(socket.SHUT_WR)
            expect(page.locator("#ends tr")).to_have_count(2)
            done = page.locator("#tally").get_by_role("button", name="done 1")
            done.click()
            expect(done).to_have_attribute("aria-pressed", "true")
            expect(page.locator("#ends tr")).to_have_count(1)
            done.click()
            expect(page.locator("#ends tr")).to_have_count(2)

    def test_live_sessions_are_found_and_sorted(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target) as (relay, page),
            ExitStack() as stack,
        ):
            pairs = [stack.enter_context(self.session(relay, upstream)) for _ in range(5)]
            for number, (client, server) in enumerate(pairs):
                client.sendall(bytes(1000 * (number + 1)))
                read_exactly(server, 1000 * (number + 1))
            rows = page.locator("#session-rows tr")
            expect(rows).to_have_count(5)
            expect(page.locator("#sessions-count")).to_have_text("5 of 5")
            table = page.get_by_role("region", name="Live sessions")
            up = table.get_by_role("button", name="↑ Up", exact=True)
            for order in ("descending", "ascending"):
                up.click()
                head = table.get_by_role("columnheader", name="↑ Up", exact=True)
                expect(head).to_have_attribute("aria-sort", order)
                sizes = [f"{1000 * size:,}" for size in range(1, 6)]
                wanted = sizes if order == "ascending" else sizes[::-1]
                for index, size in enumerate(wanted):
                    expect(cell(rows.nth(index), "↑ Up")).to_have_attribute("title", size)
            port = str(pairs[2][0].getsockname()[1])
            search = page.get_by_label("Filter", exact=True)
            search.fill(f"RELAYING {port}")
            expect(rows).to_have_count(1)
            expect(page.locator("#sessions-count")).to_have_text("1 of 5")
            search.fill("nowhere")
            expect(page.locator("#sessions-empty")).to_have_text("None of 5 sessions matches.")
            # This the relay answers; and says what it does not understand.
            search.fill(f"client=127.0.0.1:{port}")
            expect(page.locator("#sessions-count")).to_have_text("1 of 1")
            expect(rows).to_have_count(1)

    def test_a_filter_that_the_relay_does_not_take_has_its_sentence(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target, allowed="400") as (_, page),
        ):
            search = page.get_by_label("Filter", exact=True)
            search.fill("client=nobody")
            expect(page.locator("#filter-note")).to_contain_text("'nobody' is not a client")
            search.press("Escape")
            expect(search).to_have_value("")
            expect(page.locator("#filter-note")).to_have_text("")

    def test_of_very_many_sessions_it_shows_some_and_says_so(self) -> None:
        most = 500
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target) as (relay, page),
            ExitStack() as stack,
        ):
            for _ in range(most + 7):
                stack.enter_context(relay.connect())
            expect(page.locator("#sessions-count")).to_have_text(
                f"{most} of {most + 7}; only the oldest {most} are looked at"
            )
            expect(page.locator("#session-rows tr")).to_have_count(most)
            # Nobody has accepted them, so nobody else closes them.
            upstream.socket.close()

    def test_the_focus_stays_where_it_is_while_rows_change(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target) as (relay, page),
            ExitStack() as stack,
        ):
            first = stack.enter_context(self.session(relay, upstream))
            end = row(page, "#sessions", f":{first[0].getsockname()[1]}").get_by_role("button")
            end.focus()
            with self.session(relay, upstream) as (client, _):
                client.sendall(b"1")
                expect(page.locator("#session-rows tr")).to_have_count(2)
                expect(end).to_be_focused()
                expect(page.locator("#sessions-held")).to_be_visible()
            expect(page.locator("#session-rows tr")).to_have_count(1)
            expect(end).to_be_focused()
            for sock in first:
                sock.close()
            # Who was in the last row is near it still.
            expect(page.locator("#session-rows tr")).to_have_count(0)
            expect(page.get_by_label("Filter", exact=True)).to_be_focused()

    def test_workers_are_shown_where_there_are_any(self) -> None:
        worker = {
            "worker": 1,
            "pid": 4711,
            "state": "running",
            "started": "2026-01-02T03:04:05.678Z",
            "restarts": 0,
            "sessions": 1,
            "kept": 1,
        }
        ended = {**worker, "worker": 2, "pid": None, "state": "ended", "started": None}
        status = {
            "workers": [worker, {**ended, "restarts": 5, "sessions": 0, "kept": 0}],
            "unwell": "worker 2 has died 5 times",
        }

        def more(route: Route) -> None:
            """What a supervisor would say, too."""
            answer = route.fetch()
            told = answer.json()
            if "listeners" in told:
                told |= status
            for session in told.get("sessions", []):
                session |= {"worker": 1, "kept": True}
            route.fulfill(response=answer, json=told)

        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target, allowed="503") as (relay, page),
            self.session(relay, upstream),
        ):
            expect(row(page, "#sessions", "relaying")).to_have_count(1)
            expect(page.locator("#workers-title")).to_be_hidden()
            expect(page.locator("#sessions").get_by_text("Worker")).to_be_hidden()
            page.route("**/v1/status", more)
            page.route("**/v1/sessions?*", more)
            # What comes by the stream can't be changed; without it, the page asks.
            page.route("**/v1/events", lambda route: route.fulfill(status=503, body="{}"))
            page.reload()
            table = page.get_by_role("table", name="Workers")
            first, second = (table.get_by_role("row").nth(number) for number in (1, 2))
            expect(cell(first, "State")).to_have_text("running")
            expect(cell(first, "Process")).to_have_text("4711")
            expect(cell(first, "Kept")).to_have_text("1")
            expect(cell(second, "State")).to_have_text("ended")
            expect(cell(second, "Process")).to_have_text(_NOTHING)
            expect(cell(second, "Died")).to_have_text("5")
            expect(page.locator("#attention")).to_contain_text(
                "The relay is unwell: worker 2 has died 5 times."
            )
            session = row(page, "#sessions", "relaying")
            expect(cell(session, "Worker")).to_have_text("1, kept")
            widths = page.evaluate(
                """() => ['#sort', '#session-rows tr'].map((one) => [...document.querySelector(one).children]
                  .map((cell) => Math.round(cell.getBoundingClientRect().left)))"""
            )
            self.assertEqual(widths[0], widths[1])
            page.set_viewport_size(ViewportSize(width=360, height=740))
            self.assertLessEqual(wide_of_the_page(page), 0)
            # The page asks again and again, and may be in the midst of it when it is closed.
            page.unroute_all(behavior="ignoreErrors")

    def test_names_are_text_whatever_is_in_them(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", f"{upstream.target},name={_MARKUP}") as (relay, page),
        ):
            with self.session(relay, upstream) as (client, _):
                client.sendall(b"1")
                expect(row(page, "#sessions", _MARKUP)).to_be_visible()
                expect(row(page, ".pool", _MARKUP)).to_be_visible()
            expect(row(page, "#ends-box", _MARKUP)).to_be_visible()
            set_to(page, _MARKUP, "Drain").click()
            expect(page.locator("#question-title")).to_have_text(f"Drain {_MARKUP}?")
            confirm(page, "Drain")
            expect(page.get_by_role("status").filter(has_text=_MARKUP)).to_be_visible()
            expect(page.locator("#attention")).to_contain_text(f"Target {_MARKUP} of pool main")
            expect(page.locator("img")).to_have_count(0)

    def test_looking_back_shows_what_was(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target) as (relay, page),
        ):
            reading = page.locator('[data-reading="sessions"]')
            with self.session(relay, upstream):
                expect(reading).to_have_text("1")
            expect(reading).to_have_text("0")
            plot = page.get_by_role("slider", name="Open sessions over the last 5 minutes")
            plot.focus()
            page.keyboard.press("Home")
            expect(page.locator("#moment")).to_contain_text("5 min ago")
            expect(reading).to_have_text(_NOTHING)
            expect(plot).to_have_attribute("aria-valuetext", f"5 min ago: {_NOTHING} open")
            page.keyboard.press("End")
            for _ in range(60):
                page.keyboard.press("ArrowLeft")
                if reading.inner_text() == "1":
                    break
            else:
                raise AssertionError("the session is not in the chart")
            page.keyboard.press("Escape")
            expect(reading).to_have_text("0")
            expect(page.locator("#moment")).to_have_text("the last 5 minutes")


class DashboardSteers(Dashboard, every_pump=False):
    """What is done."""

    def test_a_session_is_ended_and_both_its_ends_are_reset(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target) as (relay, page),
            self.session(relay, upstream) as (client, server),
        ):
            name = f"127.0.0.1:{client.getsockname()[1]}"
            row(page, "#sessions", name).get_by_role("button").click()
            dialog = page.get_by_role("dialog")
            expect(dialog).to_contain_text(name)
            # What can't be taken back is not a thoughtless Enter away.
            expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
            confirm(page, "End session")
            self.assertEqual(read_until_reset(client), b"")
            self.assertEqual(read_until_reset(server), b"")
            expect(page.get_by_role("status").filter(has_text=name)).to_contain_text("was ended")
            expect(row(page, "#ends-box", name)).to_contain_text("killed")
            expect(page.locator("#sessions-empty")).to_be_visible()

    def test_a_question_that_is_cancelled_changes_nothing(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target) as (relay, page),
            self.session(relay, upstream) as (client, server),
        ):
            changes: list[str] = []
            page.on("request", lambda asked: changes.append(asked.method))
            end = row(page, "#sessions", "relaying").get_by_role("button")
            end.click()
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_be_hidden()
            expect(end).to_be_focused()
            set_to(page, upstream.target, "Drain").click()
            page.get_by_role("button", name="Cancel").click()
            expect(page.get_by_role("dialog")).to_be_hidden()
            client.sendall(b"still there")
            self.assertEqual(read_exactly(server, 11), b"still there")
            self.assertEqual(set(changes) - {"GET"}, set())

    def test_a_target_is_drained_and_restored(self) -> None:
        with ExitStack() as stack:
            first, second = (stack.enter_context(Upstream()) for _ in range(2))
            relay, page = stack.enter_context(
                self.shown("--target", first.target, "--target", second.target)
            )
            drain = set_to(page, first.target, "Drain")
            drain.click()
            confirm(page, "Drain")
            # First what does not stay.
            expect(page.get_by_role("status").filter(has_text="is set to drain")).to_be_visible()
            expect(drain).to_have_attribute("aria-pressed", "true")
            target = row(page, ".pool", first.target)
            expect(cell(target, "State")).to_have_text("drained")
            expect(cell(target, "Share")).to_have_text("0 %")
            for _ in range(2):
                stack.enter_context(self.session(relay, second))
            set_to(page, first.target, "Ready").click()
            confirm(page, "Set to ready")
            expect(cell(target, "State")).to_have_text("up")
            expect(cell(target, "Share")).to_have_text("50 %")

    def test_a_target_is_taken_down(self) -> None:
        with ExitStack() as stack:
            first, second = (stack.enter_context(Upstream()) for _ in range(2))
            relay, page = stack.enter_context(
                self.shown("--target", first.target, "--target", second.target)
            )
            set_to(page, second.target, "Down").click()
            confirm(page, "Take down")
            expect(cell(row(page, ".pool", second.target), "State")).to_have_text("set down")
            expect(page.locator("#attention")).to_contain_text(
                f"{second.target} of pool main is set to down"
            )
            self.assertEqual(
                [each["state"] for each in asked(relay, "v1/pools")["pools"][0]["targets"]],
                ["ready", "down"],
            )

    def test_a_weight_is_changed(self) -> None:
        with ExitStack() as stack:
            first, second = (stack.enter_context(Upstream()) for _ in range(2))
            _, page = stack.enter_context(
                self.shown("--target", first.target, "--target", second.target)
            )
            target = row(page, ".pool", first.target)
            weight = target.get_by_role("button", name="Weight 1: change it")
            weight.click()
            field = page.get_by_label("Weight", exact=True)
            expect(field).to_be_focused()
            # The browser takes no weight that the relay would not take.
            field.fill("0")
            field.press("Enter")
            expect(page.get_by_role("dialog")).to_be_visible()
            field.fill("3")
            field.press("Enter")
            expect(page.get_by_role("dialog")).to_be_hidden()
            expect(page.get_by_role("status").filter(has_text="has weight 3")).to_be_visible()
            expect(cell(target, "Weight")).to_have_text("3")
            expect(cell(target, "Share")).to_have_text("75 %")

    def test_what_the_relay_refuses_is_told_in_its_own_words(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target, allowed="404") as (relay, page),
        ):
            with self.session(relay, upstream):
                row(page, "#sessions", "relaying").get_by_role("button").click()
            expect(page.locator("#sessions-empty")).to_be_visible()
            confirm(page, "End session")
            outcome = page.get_by_role("alert").filter(has_text="failed")
            expect(outcome).to_contain_text("failed: there is no open session '")
            outcome.get_by_role("button", name="Dismiss").click()
            expect(outcome).to_have_count(0)

    def test_a_wrong_configuration_is_known_before_it_is_reloaded(self) -> None:
        with ExitStack() as stack:
            first, second = (stack.enter_context(Upstream()) for _ in range(2))
            text = configuration([first.target])
            relay = stack.enter_context(ConfiguredRelay(self.path("relay.toml"), text))
            page = stack.enter_context(self.page(relay, allowed="422"))
            relay.write(configuration(["nonsense"]))
            page.get_by_role("button", name="Reload…").click()
            dialog = page.get_by_role("dialog")
            expect(dialog).to_contain_text("'nonsense' is not a target")
            confirm(page, "Reload")
            outcome = page.get_by_role("alert").filter(has_text="failed")
            expect(outcome).to_contain_text("nothing was changed: ")
            expect(outcome).to_contain_text("'nonsense' is not a target")
            expect(page.locator("#attention")).to_contain_text("The last reload failed")
            relay.write(configuration([first.target, second.target]))
            page.get_by_role("button", name="Reload…").click()
            expect(dialog).to_contain_text("it can be put in force")
            confirm(page, "Reload")
            expect(page.get_by_role("status").filter(has_text="reload is done")).to_contain_text(
                "pool web changed"
            )
            expect(row(page, ".pool", second.target)).to_be_visible()
            expect(page.locator("#reloads")).to_have_text(re.compile(r"reloaded \d+ s ago"))

    def test_the_relay_is_drained_and_then_stopped(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target, allowed=_GONE) as (relay, page),
            self.session(relay, upstream) as (client, server),
        ):
            expect(page).to_have_title("running · 1 open · fwdrelay")  # what a question tells, too
            page.get_by_role("button", name="Drain relay…").click()
            expect(page.get_by_role("dialog")).to_contain_text("1 open session")
            confirm(page, "Drain relay")
            expect(page.locator("#banner-words")).to_contain_text("The relay is draining")
            expect(page.locator("#state-word")).to_have_text("draining")
            client.sendall(b"goes on")
            self.assertEqual(read_exactly(server, 7), b"goes on")
            page.get_by_role("button", name="Stop now…").click()
            confirm(page, "Stop now")
            self.assertEqual(read_until_reset(client), b"")
            expect(page.locator("#banner-words")).to_contain_text("was draining, and is gone")
            expect(page).to_have_title("no connection · fwdrelay")
            self.assertEqual(relay.process.wait(PATIENCE), 0)

    def test_a_target_is_drained_by_keyboard_alone(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target) as (_, page),
        ):
            drain = set_to(page, upstream.target, "Drain")
            press_tab_until(page, drain)
            outline = drain.evaluate("(element) => getComputedStyle(element).outlineStyle")
            self.assertEqual(outline, "solid")
            page.keyboard.press("Enter")
            yes = page.get_by_role("dialog").get_by_role("button", name="Drain", exact=True)
            expect(yes).to_be_focused()
            # The focus stays in the question.
            for _ in range(4):
                page.keyboard.press("Tab")
                inside = "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
                self.assertTrue(page.evaluate(inside))
            yes.focus()
            page.keyboard.press("Enter")
            expect(drain).to_have_attribute("aria-pressed", "true")
            expect(drain).to_be_focused()
            page.keyboard.press("Shift+Tab")
            page.keyboard.press("Space")
            expect(page.get_by_role("dialog")).to_contain_text(f"Set {upstream.target} to ready?")
            page.keyboard.press("Enter")
            expect(cell(row(page, ".pool", upstream.target), "State")).to_have_text("up")

    def test_the_filter_is_a_key_away(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target) as (_, page),
        ):
            search = page.get_by_label("Filter", exact=True)
            page.keyboard.press("/")
            expect(search).to_be_focused()
            page.keyboard.type("a/b")
            expect(search).to_have_value("a/b")
            page.keyboard.press("Escape")
            expect(search).to_have_value("")
            expect(search).not_to_be_focused()

    def test_the_sessions_of_a_target_are_a_click_away(self) -> None:
        with ExitStack() as stack:
            first, second = (stack.enter_context(Upstream()) for _ in range(2))
            relay, page = stack.enter_context(
                self.shown("--target", first.target, "--target", second.target)
            )
            stack.enter_context(self.session(relay, first))
            stack.enter_context(self.session(relay, second))
            expect(page.locator("#session-rows tr")).to_have_count(2)
            target = row(page, ".pool", second.target)
            target.get_by_role("button", name="1 session: show them").click()
            expect(page.get_by_label("Filter", exact=True)).to_have_value(f"target={second.target}")
            expect(page.locator("#sessions-count")).to_have_text("1 of 1")
            expect(row(page, "#sessions", second.target)).to_be_visible()


class DashboardIsLost(Dashboard, every_pump=False):
    """What becomes of it without its relay, or without all that it would like."""

    def test_a_relay_that_is_gone_is_missed_and_found_again(self) -> None:
        with Upstream() as upstream, ExitStack() as stack:
            options = ("--target", upstream.target, "--admin", f"127.0.0.1:{free_port()}")
            first = RelayProcess("--pump", self.pump, *options)
            self.addCleanup(first.kill)
            with self.page(first, allowed=_GONE) as page:
                sessions = page.locator('[data-reading="sessions"]')
                with self.session(first, upstream):
                    expect(sessions).to_have_text("1")
                    first.kill()
                banner = page.locator("#banner")
                expect(banner).to_contain_text("No connection to the relay")
                expect(banner).to_contain_text(re.compile(r"Last heard of \d+ s ago\."))
                expect(page).to_have_title("no connection · fwdrelay")
                # What was known last is still shown.
                expect(row(page, ".pool", upstream.target)).to_be_visible()
                second = stack.enter_context(self.relaying(*options))
                expect(banner).to_be_hidden()
                expect(page.locator("#process")).to_have_text(f"process {second.pid}")
                expect(page).to_have_title("running · 0 open · fwdrelay")
                # The charts begin anew: the other relay's session is not in them.
                peak = "Math.max(...samples.map((sample) => sample.sessions))"
                self.assertEqual(page.evaluate(peak), 0)
                expect(page.locator("#sessions-empty")).to_be_visible()
                with self.session(second, upstream):
                    expect(sessions).to_have_text("1")

    def test_who_does_not_want_to_wait_tries_now(self) -> None:
        with Upstream() as upstream, ExitStack() as stack:
            options = ("--target", upstream.target, "--admin", f"127.0.0.1:{free_port()}")
            first = RelayProcess("--pump", self.pump, *options)
            self.addCleanup(first.kill)
            with self.page(first, allowed=_GONE) as page:
                expect(page.locator("#state-word")).to_have_text("running")
                # So that nothing but the button does it.
                page.evaluate("retryIn = () => {}")
                first.kill()
                expect(page.locator("#banner")).to_be_visible()
                stack.enter_context(self.relaying(*options))
                page.get_by_role("button", name="Try now").click()
                expect(page.locator("#banner")).to_be_hidden()

    def test_a_relay_that_says_nothing_any_more_is_missed(self) -> None:
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target) as (relay, page),
        ):
            relay.signal(signal.SIGSTOP)
            try:
                expect(page.locator("#banner-words")).to_contain_text("No connection to the relay")
            finally:
                relay.signal(signal.SIGCONT)
            expect(page.locator("#banner")).to_be_hidden()

    def test_where_too_many_listen_it_asks(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--admin", "127.0.0.1:0") as relay,
            ExitStack() as stack,
        ):
            host, _, port = served_at(relay).removeprefix("http://").strip("/").rpartition(":")
            for _ in range(64):
                listener = stack.enter_context(connect((host, int(port))))
                listener.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                self.assertTrue(listener.recv(1 << 16).startswith(b"HTTP/1.1 200 "))
            page = stack.enter_context(self.page(relay, allowed="503"))
            expect(page.locator("#state-word")).to_have_text("running")
            # What a stream that is refused does, not what a machine does that stands still for some seconds.
            page.evaluate("performance.now = () => heardAt")
            page.evaluate(_COUNT_LOSSES)
            with self.session(relay, upstream):
                expect(page.locator('[data-reading="sessions"]')).to_have_text("1")
            expect(page.locator('[data-reading="sessions"]')).to_have_text("0")
            self.assertEqual(page.evaluate("losses"), 0)

    def test_with_a_token_it_works_as_without(self) -> None:
        token = "a-token-of-some-length-0123456789"
        file = self.path("token")
        file.write_text(token + "\n")
        file.chmod(0o600)
        options = ("--admin-token-file", str(file))
        with ExitStack() as stack:
            upstream = stack.enter_context(Upstream())
            relay = stack.enter_context(
                self.relaying("--target", upstream.target, "--admin", "127.0.0.1:0", *options)
            )
            credentials = {"username": "anybody", "password": token}
            page = stack.enter_context(self.page(relay, http_credentials=credentials))
            expect(page.locator("#state-word")).to_have_text("running")
            client, _ = stack.enter_context(self.session(relay, upstream))
            row(page, "#sessions", "relaying").get_by_role("button").click()
            confirm(page, "End session")
            self.assertEqual(read_until_reset(client), b"")
            wrong = {"username": "anybody", "password": "something-else"}
            page = stack.enter_context(self.page(relay, http_credentials=wrong, allowed="401"))
            expect(page.locator("body")).to_contain_text("this is not the token")


class DashboardLooks(Dashboard, every_pump=False):
    """How it looks, on what, and to whom."""

    @contextmanager
    def at_work(self, **options: Any) -> Iterator[tuple[RelayProcess, Page]]:
        """A page with something in each of its parts."""
        with ExitStack() as stack:
            upstream = stack.enter_context(Upstream())
            name = "a-target-whose-label-is-so-long-that-it-has-to-be-broken-somewhere"
            text = configuration(
                [f"127.0.0.1:{free_port()},name={name}", upstream.target],
                'balance = "first"\nhealth = { passive_failures = 1, interval = "1h" }',
            )
            relay = stack.enter_context(ConfiguredRelay(self.path("relay.toml"), text))
            page = stack.enter_context(self.page(relay, **options))
            expect(page.locator("#state-word")).to_have_text("running")
            # The first one finds the first target down.
            with relay.connect(), upstream.accept():
                pass
            expect(page.locator("#ends tr")).to_have_count(1)
            client = stack.enter_context(relay.connect())
            stack.enter_context(upstream.accept())
            expect(row(page, "#sessions", f":{client.getsockname()[1]}")).to_be_visible()
            expect(page.locator("#attention")).to_contain_text("is down")
            yield relay, page

    def test_on_a_phone_nothing_is_wider_than_it(self) -> None:
        with self.at_work(viewport=_PHONE, is_mobile=True, has_touch=True) as (_, page):
            self.assertEqual(wide_of_the_page(page), 0)
            target = row(page, ".pool", "a-target-whose-label")
            box = target.bounding_box()
            assert box is not None
            self.assertLessEqual(box["x"] + box["width"], _PHONE["width"])
            # What the head of the table says stands in the cards.
            label = cell(target, "Dials failed").evaluate(
                "(cell) => getComputedStyle(cell, '::before').content"
            )
            self.assertEqual(label, '"Dials failed"')
            target.get_by_role("button", name="Down", exact=True).tap()
            expect(page.get_by_role("dialog")).to_be_visible()
            self.assertEqual(wide_of_the_page(page), 0)
            page.get_by_role("button", name="Cancel").tap()
            expect(page.get_by_role("dialog")).to_be_hidden()

    def test_everything_can_be_read_by_light_and_in_the_dark(self) -> None:
        with self.at_work() as (_, page):
            page.get_by_role("button", name="Reload…").click()
            expect(page.get_by_role("dialog")).to_contain_text("it can be put in force")
            page.emulate_media(color_scheme="light")
            contrast, where = page.evaluate(_LOWEST_CONTRAST)
            self.assertGreaterEqual(contrast, 4.5, f"by light: {where}")
            page.emulate_media(color_scheme="dark")
            contrast, where = page.evaluate(_LOWEST_CONTRAST)
            self.assertGreaterEqual(contrast, 4.5, f"in the dark: {where}")

    def test_light_and_dark_follow_the_system_or_what_was_chosen(self) -> None:
        paper = "getComputedStyle(document.documentElement).backgroundColor"
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target, color_scheme="light") as (_, page),
        ):
            light = page.evaluate(paper)
            page.emulate_media(color_scheme="dark")
            dark = page.evaluate(paper)
            self.assertNotEqual(light, dark)
            theme = page.get_by_role("button", name=re.compile("^Theme: "))
            expect(theme).to_have_text("Theme: auto")
            theme.click()
            expect(theme).to_have_text("Theme: light")
            self.assertEqual(page.evaluate(paper), light)
            page.reload()
            expect(theme).to_have_text("Theme: light")
            self.assertEqual(page.evaluate(paper), light)
            theme.click()
            page.emulate_media(color_scheme="light")
            expect(theme).to_have_text("Theme: dark")
            self.assertEqual(page.evaluate(paper), dark)
            theme.click()
            self.assertEqual(page.evaluate(paper), light)

    def test_nothing_moves_for_who_wants_no_motion(self) -> None:
        duration = "getComputedStyle(document.querySelector('button')).transitionDuration"
        with (
            Upstream() as upstream,
            self.shown("--target", upstream.target, reduced_motion="no-preference") as (_, page),
        ):
            self.assertNotEqual(page.evaluate(duration), "0s")
            page.emulate_media(reduced_motion="reduce")
            self.assertEqual(page.evaluate(duration), "0s")

    def test_it_has_a_structure_that_can_be_listened_to(self) -> None:
        with self.at_work() as (_, page):
            self.assertEqual(page.locator("html").get_attribute("lang"), "en")
            expect(page.get_by_role("heading", level=1)).to_contain_text("fwdrelay")
            self.assertEqual(
                page.get_by_role("heading", level=2).all_inner_texts(),
                ["Traffic", "Listeners", "Pools", "Recent ends", "Live sessions"],
            )
            expect(page.get_by_role("table", name="Targets of pool web")).to_be_visible()
            expect(page.get_by_role("main")).to_be_visible()
            unnamed = page.evaluate(
                "[...document.querySelectorAll('button')].filter((each) => each.checkVisibility()"
                " && !each.textContent.trim() && !each.ariaLabel).length"
            )
            self.assertEqual(unnamed, 0)


class DashboardFileTests(Scenario, every_pump=False):
    """The file itself."""

    def test_it_has_nothing_that_its_policy_forbids(self) -> None:
        page = Path(__file__).parents[2] / "fwdrelay" / "admin" / "dashboard" / "index.html"
        text = page.read_text(encoding="utf-8")
        markup = re.sub(r"<(style|script)>.*?</\1>|<!--.*?-->", "", text, flags=re.DOTALL)
        self.assertEqual(re.findall(r"\sstyle=|\son\w+=|javascript:|https?://", markup), [])
        self.assertEqual(
            re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), []
        )
        self.assertEqual((text.count("<style"), text.count("<script")), (1, 1))
