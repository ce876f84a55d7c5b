"""
The documentation, held against the code: what it tells of options, reasons, fields, commands and files
is what there is.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import attrs
from twisted.python.usage import Options as TwistedOptions
from twisted.scripts._twistd_unix import ServerOptions

from fwdrelay.observe.access_log import json_line
from fwdrelay.observe.events import SessionEnded
from fwdrelay.session.lifecycle import TABLE, Input, Reason, State, code
from fwdrelay.tap import Options
from tests.case import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
ENVIRONMENTS = sorted((ROOT / "etc").rglob("*.env"))

EVENT = SessionEnded(
    time=0.0,
    session="1",
    listener="main",
    client="192.0.2.1:1",
    local="192.0.2.2:2",
    pool="main",
    target="192.0.2.3:3",
    reason="done",
    code="--",
    bytes_up=0,
    bytes_down=0,
    dial_ms=0.0,
    duration_ms=0.0,
    retries=0,
    sessions=1,
)


def read(page: Path) -> str:
    """Its text."""
    return page.read_text(encoding="utf-8")


def name(page: Path) -> str:
    """How a complaint calls it."""
    return page.relative_to(ROOT).as_posix()


def section(text: str, title: str) -> str:
    """What stands below the heading `title`, up to the next one of its rank."""
    found = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert found is not None, f"there is no heading {title!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of each table, the heads of the tables left out."""
    table: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split(" | ")])
        else:
            yield from table[2:]
            table = []


def spans(text: str) -> list[str]:
    """What stands in `code` within a line."""
    return re.findall(r"`([^`\n]+)`", text)


def blocks(text: str, *languages: str) -> Iterator[str]:
    """The fenced blocks; of these languages, if any are given."""
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        if not languages or found[2] in languages:
            yield found[3]


def prose(text: str) -> str:
    """Without the fenced blocks."""
    return re.sub(r"^( *)```\w*\n.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """What a link into this page may end in, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def long_names(options: TwistedOptions) -> set[str]:
    """The long names of all options."""
    return {option.rstrip("=") for option in options.longOpt}


def commands() -> Iterator[tuple[str, list[str]]]:
    """
    Each command that starts a relay, and each value of `FWDRELAY_OPTIONS`: where it stands, and what comes
    after `fwdrelay` in it.
    """
    for page in [*PAGES, *ENVIRONMENTS]:
        text = read(page)
        told = text if page.suffix == ".env" else "\n".join([*spans(prose(text)), *blocks(text)])
        for line in told.splitlines():
            found = _COMMAND.search(line) or _VARIABLE.search(line)
            if found is not None and "…" not in found[1] and "[options]" not in found[1]:
                yield f"{name(page)}: {line}", shlex.split(found[1])


_COMMAND = re.compile(r"^ *(?:[$#] )?(?:\S*/)?twistd (?:.* )?fwdrelay (.+)")
_VARIABLE = re.compile(r"^ *(?:#|# echo ')?FWDRELAY_OPTIONS=([^']+)")


class OptionsPageTests(SynchronousTestCase):
    page: ClassVar[str] = read(ROOT / "docs" / "options.md")

    def documented(self) -> dict[str, tuple[set[str], str]]:
        """By long name: the short ones, and the cell of the default."""
        found: dict[str, tuple[set[str], str]] = {}
        own = self.page.partition("## Targets")[0]
        for option, default, _ in rows(own):
            names = [span.partition(" ")[0] for span in spans(option)]
            (long,) = [each[2:] for each in names if each.startswith("--")]
            self.assertNotIn(long, found)
            found[long] = {each[1:] for each in names if not each.startswith("--")}, default
        return found

    def test_all_options_are_there_and_no_others(self) -> None:
        self.assertEqual(set(self.documented()), long_names(Options()) - {"help", "version"})

    def test_short_names(self) -> None:
        options = Options()
        short = {f"-{letter}" for letter in options.shortOpt if letter != ":"}
        documented = {f"-{each}" for names, _ in self.documented().values() for each in names}
        self.assertEqual(documented, short)

    def test_defaults(self) -> None:
        defaults = {each[0]: each[2] for each in Options.optParameters}
        for option, (_, cell) in self.documented().items():
            default = defaults.get(option)
            self.assertEqual(spans(cell), [] if default is None else [default], option)
            self.assertNotEqual(cell, "", option)

    def test_no_other_option_is_spoken_of(self) -> None:
        known = long_names(Options()) | long_names(ServerOptions())
        spoken_of = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", self.page))
        self.assertEqual(spoken_of - known, set())

    def test_examples_of_targets_and_endpoints_are_right(self) -> None:
        (targets,) = re.findall(r"^`localhost:80`.*$", self.page, re.MULTILINE)
        endpoints = [spans(example)[0] for example, _ in rows(section(self.page, "Endpoints"))]
        self.assertGreater(len(endpoints), 4)
        listen = [word for endpoint in endpoints for word in ("--listen", endpoint)]
        relay = [word for target in spans(targets) for word in ("--target", target)]
        Options().parseOptions([*listen, *relay])


class SessionsPageTests(SynchronousTestCase):
    page: ClassVar[str] = read(ROOT / "docs" / "sessions.md")

    # What ends a session for which reason, and where it may be then.
    CAUSES: ClassVar[dict[Reason, tuple[Input, set[State]]]] = {
        Reason.DONE: (Input.DELIVERED, {State.HALF_CLOSED}),
        Reason.CLIENT_RESET: (Input.DELIVERED, {State.HALF_CLOSED}),
        Reason.UPSTREAM_RESET: (Input.DELIVERED, {State.HALF_CLOSED}),
        Reason.CLIENT_LEFT: (Input.SIDE_RESET, {State.DIALING}),
        Reason.CLIENT_IDLE: (Input.TIMED_OUT, {State.RELAYING}),
        Reason.UPSTREAM_IDLE: (Input.TIMED_OUT, {State.RELAYING}),
        Reason.CLIENT_HALF_CLOSED: (Input.TIMED_OUT, {State.HALF_CLOSED}),
        Reason.UPSTREAM_HALF_CLOSED: (Input.TIMED_OUT, {State.HALF_CLOSED}),
        Reason.LIFETIME: (Input.TIMED_OUT, {State.DIALING, State.RELAYING, State.HALF_CLOSED}),
        Reason.STOPPED: (Input.CUT, {State.DIALING, State.RELAYING, State.HALF_CLOSED}),
        Reason.DRAIN_TIMEOUT: (Input.CUT, {State.DIALING, State.RELAYING, State.HALF_CLOSED}),
        **{
            reason: (Input.REFUSED, {State.ACCEPTED})
            for reason in (
                Reason.DENIED,
                Reason.MAX_SESSIONS,
                Reason.MAX_SESSIONS_PER_CLIENT,
            )
        },
        **{
            reason: (Input.DIAL_FAILED, {State.DIALING})
            for reason in (
                Reason.DIAL_FAILED,
                Reason.DIAL_TIMEOUT,
                Reason.NO_TARGET,
                Reason.NO_RESOURCES,
            )
        },
    }

    def documented(self) -> dict[str, set[str]]:
        """The codes of each reason."""
        table = rows(section(self.page, "Reasons and codes"))
        return {spans(reason)[0]: set(spans(codes)) for reason, codes, *_ in table}

    def test_every_reason_with_its_codes(self) -> None:
        self.assertEqual(set(self.CAUSES), set(Reason))
        for happened, states in self.CAUSES.values():
            for state in states:
                self.assertIs(TABLE[state, happened], State.CLOSED)
        self.assertEqual(
            self.documented(),
            {
                reason.word: {code(reason, state) for state in states}
                for reason, (_, states) in self.CAUSES.items()
            },
        )

    def test_what_the_scenarios_have_seen_is_documented(self) -> None:
        documented = {
            (reason, code) for reason, codes in self.documented().items() for code in codes
        }
        seen: set[tuple[str, str]] = set()
        for scenario in (ROOT / "tests" / "scenarios").glob("test_*.py"):
            seen |= set(re.findall(r'has_ended\(\s*\w+,\s*"([^"]+)",\s*"([^"]+)"', read(scenario)))
        self.assertNotEqual(seen, set())
        self.assertEqual(seen - documented, set())

    def test_every_state(self) -> None:
        documented = [state for state, _ in rows(section(self.page, "States"))]
        self.assertEqual(documented, [state.name.lower().replace("_", "-") for state in State])

    def test_every_field_of_the_access_log(self) -> None:
        documented = [spans(field)[0] for field, _ in rows(section(self.page, "The access log"))]
        produced = list(json.loads(json_line(attrs.evolve(EVENT, error="why"))))
        self.assertEqual(documented, produced)

    def test_time_outs_are_options(self) -> None:
        documented = {spans(option)[0][2:] for option, *_ in rows(section(self.page, "Time-outs"))}
        self.assertLessEqual(documented, long_names(Options()))


class PagesTests(SynchronousTestCase):
    def test_links_lead_somewhere(self) -> None:
        for page in PAGES:
            for link in re.findall(r"\]\(([^)\s]+)\)", prose(read(page))):
                if re.match(r"[a-z]+:", link):
                    continue
                path, _, anchor = link.partition("#")
                target = page.parent / path if path else page
                self.assertTrue(target.exists(), f"{name(page)} links to {link}")
                if anchor:
                    self.assertIn(anchor, anchors(read(target)), f"{name(page)} links to {link}")

    def test_every_page_is_listed(self) -> None:
        listed = read(ROOT / "docs" / "index.md")
        for page in (ROOT / "docs").glob("*.md"):
            if page.name != "index.md":
                self.assertIn(f"]({page.name})", listed)

    def test_commands_are_right(self) -> None:
        count = 0
        for where, arguments in commands():
            if arguments == ["--help"] or "--check" in arguments:  # which shows what is wrong
                continue
            try:
                Options().parseOptions(arguments)
            except SystemExit as refused:
                self.fail(f"{where}: exits with {refused}")
            count += 1
        self.assertGreater(count, 10)

    def test_lines_of_the_access_log_are_as_they_are(self) -> None:
        required = list(json.loads(json_line(EVENT)))
        count = 0
        for page in PAGES:
            for block in blocks(read(page)):
                for line in block.splitlines():
                    if line.startswith('{"time"'):
                        fields = list(json.loads(line))
                        self.assertIn(fields, (required, [*required, "error"]), name(page))
                        count += 1
        self.assertGreater(count, 1)

    def test_make_has_the_targets_that_are_mentioned(self) -> None:
        rules = read(ROOT / "Makefile") + read(ROOT / "etc" / "install.mk")
        targets = set(re.findall(r"^([a-z][a-z-]*):", rules, re.MULTILINE))
        for page in PAGES:
            text = read(page)
            for code_of_page in [*spans(prose(text)), *blocks(text)]:
                for target in re.findall(r"(?:^|[$#] )make ([a-z-]+)", code_of_page, re.MULTILINE):
                    self.assertIn(target, targets, f"{name(page)} says make {target}")

    def test_files_that_are_mentioned_exist(self) -> None:
        for page in PAGES:
            for span in spans(prose(read(page))):
                if re.fullmatch(
                    r"(fwdrelay|tests|etc|twisted|newsfragments|bench)/[\w/.*-]*", span
                ):
                    self.assertTrue((ROOT / span).exists(), f"{name(page)} speaks of {span}")
