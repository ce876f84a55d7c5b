"""
The documentation, held against the code: what it tells of options, reasons, fields, commands and files
is what there is.
"""

from __future__ import annotations

import ast
import copy
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import attrs
from twisted.python.usage import Options as TwistedOptions
from twisted.scripts._twistd_unix import ServerOptions

from fwdrelay.config import (
    BALANCES,
    Admit,
    Config,
    HealthConfig,
    ListenerConfig,
    ListenerTLSConfig,
    PoolConfig,
    ProxyProtocolConfig,
    RelayConfig,
    RouteConfig,
    SNIConfig,
    Timeouts,
    UpstreamTLSConfig,
)
from fwdrelay.config.grammar import parse_rate
from fwdrelay.config.model import LOGS, IdentityKind
from fwdrelay.config.names import parse_identity
from fwdrelay.config.read import make_config, read_config, table_keys
from fwdrelay.errors import ConfigErrors
from fwdrelay.observe.access_log import PROGRESS, fields, json_line
from fwdrelay.observe.events import SessionEnded
from fwdrelay.observe.journal import NOT_SERVED
from fwdrelay.observe.trace import STEPS
from fwdrelay.session.lifecycle import TABLE, Input, Reason, State, code
from fwdrelay.tap import Options
from tests.case import SynchronousTestCase
from tests.pki import Authority

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
EXAMPLE = ROOT / "etc" / "fwdrelay" / "examples" / "web.toml"
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
FULL_EVENT = attrs.evolve(
    EVENT, queue_ms=1.0, sni="a", alpn="h2", tls="TLSv1.3", identity="cn:a", error="why"
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
        relay = [word for target in spans(targets) for word in ("--target", target)]
        for endpoint in endpoints:
            Options().parseOptions(["--listen", endpoint, *relay])

    def test_examples_of_rates_and_identities_are_right(self) -> None:
        rates = [text for text in spans(section(self.page, "Rates")) if "/" in text]
        self.assertGreater(len(rates), 3)
        for text in rates:
            self.assertTrue(parse_rate(text), text)
        identities = section(self.page, "Identities")
        kinds = {parse_identity(spans(cell)[0]).kind for cell, _ in rows(identities)}
        self.assertEqual(kinds, set(get_args(IdentityKind)))
        *_, written, plain = spans(identities)
        self.assertEqual(str(parse_identity(written)), plain)


class ConfigurationPageTests(SynchronousTestCase):
    page: ClassVar[str] = read(ROOT / "docs" / "configuration.md")

    LEAST: ClassVar[dict[str, Any]] = {
        "relay": {},
        "listener": [
            {
                "name": "web",
                "listen": ["tcp:1"],
                "route": [{"client": ["::1"], "pool": "web"}],
                "timeouts": {},
                "admit": {},
                "tls": {
                    "certificate": "web.pem",
                    "sni": [{"names": ["other.example"], "certificate": "other.pem"}],
                },
                "proxy_protocol": {},
            }
        ],
        "pool": {"web": {"targets": ["a:1"], "health": {}, "tls": {}}},
    }
    # What stands below which heading, and how to come to it in a file.
    TABLES: ClassVar[dict[str, tuple[type, tuple[str | int, ...]]]] = {
        "`[relay]`": (RelayConfig, ("relay",)),
        "`[[listener]]`": (ListenerConfig, ("listener", 0)),
        "`timeouts` of a listener": (Timeouts, ("listener", 0, "timeouts")),
        "`[listener.admit]`": (Admit, ("listener", 0, "admit")),
        "`[listener.tls]`": (ListenerTLSConfig, ("listener", 0, "tls")),
        "`[[listener.tls.sni]]`": (SNIConfig, ("listener", 0, "tls", "sni", 0)),
        "`[listener.proxy_protocol]`": (ProxyProtocolConfig, ("listener", 0, "proxy_protocol")),
        "`[[listener.route]]`": (RouteConfig, ("listener", 0, "route", 0)),
        "`[pool.NAME]`": (PoolConfig, ("pool", "web")),
        "`[pool.NAME.health]`": (HealthConfig, ("pool", "web", "health")),
        "`[pool.NAME.tls]`": (UpstreamTLSConfig, ("pool", "web", "tls")),
    }

    def documented(self, heading: str) -> dict[str, tuple[str, str]]:
        """The default and the meaning of each key."""
        return {
            spans(key)[0]: (default, told)
            for key, default, told in rows(section(self.page, heading))
        }

    def test_every_table(self) -> None:
        told = {
            heading
            for heading in re.findall(r"^## (.+)$", self.page, re.MULTILINE)
            if "`" in heading
        }
        self.assertEqual(told, set(self.TABLES))
        self.assertEqual(set(table_keys(Config)), set(self.LEAST))

    def test_every_key_and_no_other(self) -> None:
        for heading, (table, _) in self.TABLES.items():
            self.assertEqual(list(self.documented(heading)), list(table_keys(table)), heading)

    def test_defaults(self) -> None:
        """To write a default makes no difference; what has none says so."""
        for heading, (table, way) in self.TABLES.items():
            keys = table_keys(table)
            for key, (cell, _) in self.documented(heading).items():
                if cell == "must be given":
                    self.assertIs(keys[key].default, attrs.NOTHING, f"{heading} {key}")
                    continue
                if cell == "none":  # which TOML has no word for
                    self.assertIsNone(keys[key].default, f"{heading} {key}")
                    continue
                (default,) = spans(cell)
                left_out, written = copy.deepcopy(self.LEAST), copy.deepcopy(self.LEAST)
                inner_left_out: Any = left_out
                inner: Any = written
                for step in way:
                    inner_left_out, inner = inner_left_out[step], inner[step]
                inner_left_out.pop(key, None)
                inner[key] = tomllib.loads(f"key = {default}")["key"]
                self.assertEqual(self.meaning(written), self.meaning(left_out), f"{heading} {key}")

    def meaning(self, tables: dict[str, Any]) -> Config | list[str]:
        """A configuration; or what is wrong with it as a whole."""
        try:
            return make_config(tables, "fwdrelay.toml", "/etc")
        except ConfigErrors as wrong:
            return list(map(str, wrong.errors))

    def test_choices(self) -> None:
        count = 0
        for heading, (table, _) in self.TABLES.items():
            hints = get_type_hints(table)
            for key, (_, told) in self.documented(heading).items():
                choices = get_args(hints.get(key)) if get_origin(hints.get(key)) is Literal else ()
                for choice in BALANCES if key == "balance" else choices:
                    self.assertIn(f'"{choice}"', spans(told), f"{heading} {key}")
                    count += 1
        self.assertGreater(count, 15)

    def test_what_is_said_of_a_wrong_one(self) -> None:
        """The lines of the example are what such mistakes are answered with."""
        text = """
            [[listener]]
            name = "web"
            listen = ["tcp:1"]
            pool = "web"
            timeouts = { idel = "5s" }
            [[listener]]
            name = "other"
            listen = ["tcp:2"]
            pool = "wbe"
            [pool.web]
            targets = ["10.0.0.7:80", "10.0.0.8"]
            queue = 5
        """
        told = self.meaning(tomllib.loads(text))
        self.assertEqual(
            re.findall(
                r"^fwdrelay: (.+)$", section(self.page, "What is wrong with it"), re.MULTILINE
            ),
            told,
        )

    def test_options_that_win(self) -> None:
        told = set(
            re.findall(
                r"`--([a-z-]+)`", section(self.page, "Options beside it").split("All others")[0]
            )
        )
        wins = {name for name in long_names(Options()) if self.wins(name)}
        self.assertEqual(told, wins | {"config"})

    def wins(self, name: str) -> bool:
        """Whether an option may stand beside a file."""
        return name.replace("-", "_") in {*table_keys(RelayConfig), "nameserver"}


class Credentials:
    """
    Certificates, keys and authorities where a configuration, or a command line, looks for them.

    @param folder: nothing is written elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = Authority()
        self._count = 0

    def write_for(self, config: Config) -> int:
        """
        All that the configuration names.

        @return: how many files.
        """
        self._count = 0
        for listener in config.listeners:
            if listener.tls is not None:
                self.write_chains(listener.tls.certificate, listener.tls.key)
                for other in listener.tls.sni:
                    self.write_chains(other.certificate, other.key)
                self.write_authority(listener.tls.client_ca)
        for pool in config.pools:
            if pool.tls is not None:
                own = [(each,) if each else () for each in (pool.tls.certificate, pool.tls.key)]
                self.write_chains(*own)
                self.write_authority(pool.tls.ca)
        return self._count

    def write_chains(self, certificates: Sequence[str], keys: Sequence[str]) -> None:
        """@param keys: as many; or none, where they stand in the certificates' files."""
        for index, path in enumerate(certificates):
            identity = self._authority.vouch("web", dns=["web.example"], kind=_KINDS[index])
            if keys:
                self._write(path, identity.chain)
                self._write(keys[index], identity.key)
            else:
                self._write(path, identity.chain + identity.key)

    def write_authority(self, path: str) -> None:
        """@param path: empty: there is none."""
        if path:
            self._write(path, self._authority.pem)

    def _write(self, path: str, content: bytes) -> None:
        file = self.folder / path
        if not file.is_relative_to(self.folder):
            raise ValueError(f"{path} is not below {self.folder}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self._count += 1

    def write_for_options(self, arguments: list[str]) -> list[str]:
        """
        All files that a command line names.

        @return: the command line with the paths that they really have.
        """
        words = [
            part for word in arguments for part in word.split("=", 1 if word[:2] == "--" else 0)
        ]
        given: dict[str, list[str]] = {option: [] for option in _FILES}
        for index, word in enumerate(words[:-1]):
            if word in given:
                words[index + 1] = str(self.folder / words[index + 1].lstrip("/"))
                given[word].append(words[index + 1])
        self.write_chains(given["--tls-cert"], given["--tls-key"])
        self.write_chains(given["--upstream-cert"], given["--upstream-key"])
        for path in (*given["--tls-client-ca"], *given["--upstream-ca"]):
            self.write_authority(path)
        for path in given["--admin-token-file"]:
            self._write(path, b"s3cret\n")
        return words


_KINDS = ("ecdsa", "rsa")
_FILES = (
    *("--tls-cert", "--tls-key", "--tls-client-ca"),
    *("--upstream-cert", "--upstream-key", "--upstream-ca"),
    "--admin-token-file",
)


class ExamplesTests(SynchronousTestCase):
    def copies(self) -> list[Path]:
        """Of the examples, with the certificates beside them that they name."""
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        self.addCleanup(folder.cleanup)
        copied = Path(folder.name, "examples")
        shutil.copytree(ROOT / "etc" / "fwdrelay" / "examples", copied)
        examples = sorted(copied.glob("*.toml"))
        credentials = Credentials(copied)
        self.assertGreater(
            sum(credentials.write_for(read_config(str(each))) for each in examples), 8
        )
        return examples

    def test_nothing_is_wrong_with_them(self) -> None:
        examples = self.copies()
        self.assertGreater(len(examples), 12)
        for example in examples:
            said = io.StringIO()
            with redirect_stdout(said):
                stopped = self.assertRaises(
                    SystemExit, Options().parseOptions, ["--config", str(example), "--check"]
                )
            self.assertEqual(stopped.code, 0, example)
            self.assertEqual(said.getvalue(), f"fwdrelay: nothing is wrong with {example}.\n")

    def test_files_that_they_name_are_beside_them(self) -> None:
        found = 0
        for example in (ROOT / "etc" / "fwdrelay" / "examples").glob("*.toml"):
            for pool in read_config(str(example)).pools:
                for discover in pool.discover:
                    if discover.scheme == "file":
                        self.assertTrue(Path(discover.argument).exists(), example)
                        found += 1
        self.assertGreater(found, 0)

    def test_those_of_the_pages(self) -> None:
        """What is whole is right, what is a part has no unknown keys and values."""
        count = 0
        for page in PAGES:
            for block in blocks(read(page), "toml"):
                tables = tomllib.loads(block)
                if not tables.keys() & table_keys(Config).keys():
                    continue  # of something else
                count += 1
                try:
                    make_config(tables, name(page), str(page.parent))
                except ConfigErrors as wrong:
                    # A part need not say where to listen, nor name only pools that it shows.
                    for error in wrong.errors:
                        self.assertRegex(
                            str(error), r"\[\[listener\]\]|there is no pool|no targets"
                        )
        self.assertGreater(count, 3)


class SessionsPageTests(SynchronousTestCase):
    page: ClassVar[str] = read(ROOT / "docs" / "sessions.md")

    OPEN: ClassVar[set[State]] = {
        State.OPENING,
        State.QUEUED,
        State.DIALING,
        State.RELAYING,
        State.HALF_CLOSED,
    }
    # What ends a session for which reason, and where it may be then.
    CAUSES: ClassVar[dict[Reason, tuple[Input, set[State]]]] = {
        Reason.DONE: (Input.DELIVERED, {State.HALF_CLOSED}),
        Reason.CLIENT_RESET: (Input.DELIVERED, {State.HALF_CLOSED}),
        Reason.UPSTREAM_RESET: (Input.DELIVERED, {State.HALF_CLOSED}),
        Reason.CLIENT_TRUNCATED: (Input.DELIVERED, {State.HALF_CLOSED}),
        Reason.UPSTREAM_TRUNCATED: (Input.DELIVERED, {State.HALF_CLOSED}),
        Reason.CLIENT_LEFT: (Input.SIDE_RESET, {State.OPENING, State.DIALING, State.QUEUED}),
        Reason.CLIENT_IDLE: (Input.TIMED_OUT, {State.RELAYING}),
        Reason.UPSTREAM_IDLE: (Input.TIMED_OUT, {State.RELAYING}),
        Reason.CLIENT_HALF_CLOSED: (Input.TIMED_OUT, {State.HALF_CLOSED}),
        Reason.UPSTREAM_HALF_CLOSED: (Input.TIMED_OUT, {State.HALF_CLOSED}),
        Reason.LIFETIME: (Input.TIMED_OUT, OPEN),
        Reason.KILLED: (Input.CUT, OPEN),
        Reason.STOPPED: (Input.CUT, OPEN),
        Reason.DRAIN_TIMEOUT: (Input.CUT, OPEN),
        Reason.TARGET_DOWN: (Input.CUT, {State.RELAYING, State.HALF_CLOSED}),
        Reason.QUEUE_TIMEOUT: (Input.TIMED_OUT, {State.QUEUED}),
        Reason.QUEUE_FULL: (Input.REFUSED, {State.QUEUED}),
        **{
            reason: (Input.REFUSED, {State.ACCEPTED, State.OPENING})
            for reason in (
                Reason.DENIED,
                Reason.RATE,
                Reason.RATE_PER_CLIENT,
                Reason.PROXY_HEADER,
                Reason.NO_ROUTE,
                Reason.MAX_SESSIONS_PER_CLIENT,
            )
        },
        Reason.MAX_SESSIONS: (Input.REFUSED, {State.ACCEPTED}),
        Reason.PROXY_TIMEOUT: (Input.TIMED_OUT, {State.OPENING}),
        Reason.TLS_FAILED: (Input.REFUSED, {State.OPENING}),
        Reason.TLS_TIMEOUT: (Input.TIMED_OUT, {State.OPENING}),
        Reason.IDENTITY: (Input.REFUSED, {State.OPENING}),
        **{
            reason: (Input.DIAL_FAILED, {State.DIALING})
            for reason in (
                Reason.DIAL_FAILED,
                Reason.DIAL_TIMEOUT,
                Reason.NO_RESOURCES,
            )
        },
        Reason.INTERNAL_ERROR: (Input.CUT, {State.OPENING, State.DIALING}),
        Reason.NO_TARGET: (Input.DIAL_FAILED, {State.DIALING, State.QUEUED}),
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
        produced = list(json.loads(json_line(FULL_EVENT)))
        self.assertEqual(documented, produced)

    def test_time_outs_are_options(self) -> None:
        documented = {spans(option)[0][2:] for option, *_ in rows(section(self.page, "Time-outs"))}
        self.assertLessEqual(documented, long_names(Options()))


class LogsPageTests(SynchronousTestCase):
    page: ClassVar[str] = read(ROOT / "docs" / "logs.md")

    def test_where_it_can_go(self) -> None:
        told = [spans(cell)[:1] for cell, _ in rows(section(self.page, "The access log"))]
        self.assertEqual({word for words in told for word in words}, set(LOGS))

    def test_what_is_worth_a_notice(self) -> None:
        (told,) = re.findall(r"^Notices are .*?\.$", self.page, re.MULTILINE | re.DOTALL)
        self.assertEqual(set(spans(told)), NOT_SERVED)

    def test_fields_of_the_journal(self) -> None:
        of_lines = {f"FWDRELAY_{each.upper()}" for each in fields(FULL_EVENT)}
        told = set(re.findall(r"FWDRELAY_[A-Z_]+\b", self.page.replace("FWDRELAY_OPTIONS", "")))
        self.assertEqual(told - of_lines, {"FWDRELAY_LOG", "FWDRELAY_NAMESPACE"})

    def test_the_example_for_logrotate_is_what_is_installed(self) -> None:
        installed = read(ROOT / "etc" / "logrotate.d" / "fwdrelay")
        (told,) = [each for each in blocks(self.page) if each.startswith("/var/log/")]
        self.assertIn(told, installed)

    def test_a_session_that_lasts(self) -> None:
        told = [
            json.loads(line)
            for block in blocks(section(self.page, "Long sessions"), "json")
            for line in block.splitlines()
        ]
        self.assertEqual([(each["reason"], each["code"]) for each in told], [(PROGRESS, "--")])
        self.assertNotIn(PROGRESS, [reason.word for reason in Reason])

    def test_every_level(self) -> None:
        told = [spans(level)[0] for level, *_ in rows(section(self.page, "Levels")) if level]
        self.assertLessEqual({"critical", "error", "warn", "info"}, set(told))

    def test_every_warning_and_error_is_explained_and_no_other(self) -> None:
        told = [
            (spans(level)[0], spans(line)[0])
            for level, line, _ in rows(section(self.page, "Warnings and errors"))
        ]
        used: set[tuple[str, str]] = set()
        messages = set(warnings_and_errors())
        self.assertGreater(len(messages), 20)
        for level, message in messages:
            explained = {row for row in told if row[0] == level and is_like(message, row[1])}
            self.assertEqual(len(explained), 1, f"{level}: {message}: {explained}")
            used |= explained
        self.assertEqual(set(told) - used, set())


def warnings_and_errors() -> Iterator[tuple[str, str]]:
    """
    The level and the first line of each that the program may log, with `…` for its fields; those without, which are
    nothing but fields, left out.
    """
    for path in sorted((ROOT / "fwdrelay").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(read(path))))
        sentences: dict[str, str] = {}
        for node in nodes:
            match node:
                case ast.Assign(targets=[ast.Name(id=known)], value=ast.Constant(value=str(text))):
                    sentences[known] = text
        for node in nodes:
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Name(id="log" | "_log") | ast.Attribute(attr="log" | "_log"),
                        attr="warn" | "error" as level,
                    ),
                    args=[ast.Constant() | ast.Name() as said, *_],
                ):
                    text = sentences[said.id] if isinstance(said, ast.Name) else str(said.value)
                    message = re.sub(r"\{[^}]*\}", "…", text.partition("\n")[0])
                    if message.strip("… "):
                        yield level, message


def is_like(message: str, told: str) -> bool:
    """Whether `told` is `message`, but for what `…` stands for in it."""
    pattern = ".*".join(re.escape(part) for part in told.split("…"))
    return re.fullmatch(pattern, message) is not None


class TracingPageTests(SynchronousTestCase):
    def test_every_step(self) -> None:
        told = [
            step
            for cells in rows(section(read(ROOT / "docs" / "tracing.md"), "The steps"))
            for step in spans(cells[0])
        ]
        self.assertEqual(told, list(STEPS))


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
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        self.addCleanup(folder.cleanup)
        credentials = Credentials(Path(folder.name))
        count = 0
        for where, arguments in commands():
            if arguments == ["--help"] or "--check" in arguments:  # which shows what is wrong
                continue
            if "--config" in arguments:  # which is not here
                arguments[arguments.index("--config") + 1] = str(EXAMPLE)
            try:
                Options().parseOptions(credentials.write_for_options(arguments))
            except SystemExit as refused:
                self.fail(f"{where}: exits with {refused}")
            count += 1
        self.assertGreater(count, 10)

    def test_lines_of_the_access_log_are_as_they_are(self) -> None:
        required = set(json.loads(json_line(EVENT)))
        order = list(json.loads(json_line(FULL_EVENT)))
        count = 0
        for page in PAGES:
            for block in blocks(read(page)):
                for line in block.splitlines():
                    if line.startswith('{"time"'):
                        fields = list(json.loads(line))
                        self.assertLessEqual(required, set(fields), name(page))
                        self.assertEqual(fields, [each for each in order if each in fields])
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

    def test_make_run_serves_what_it_and_the_readme_tell_of(self) -> None:
        # What a make that runs the tests was told is not for this one.
        told_to = ("MFLAGS", "PORT", "TARGET", "ADMIN", "ARGS", "VENV", "PYTHON")
        environ = {
            name: value
            for name, value in os.environ.items()
            if "MAKE" not in name and name not in told_to
        }
        for words, admin in (((), "127.0.0.1:9678"), (("ADMIN=off",), "off")):
            dry = subprocess.run(
                ["make", "--dry-run", "--no-print-directory", "run", *words],
                cwd=ROOT,
                env=environ,
                capture_output=True,
                text=True,
                check=True,
            )
            told, command = dry.stdout.splitlines()[-2:]
            options = Options()
            options.parseOptions(shlex.split(command.partition(" fwdrelay ")[2]))
            self.assertEqual(options.config.relay.admin, admin)
            self.assertEqual("fwdrelayctl" in told, admin != "off")
            self.assertEqual(f"http://{admin}/" in told, admin != "off")
        self.assertIn("http://127.0.0.1:9678/", read(ROOT / "README.md"))

    def test_files_that_are_mentioned_exist(self) -> None:
        for page in PAGES:
            for span in spans(prose(read(page))):
                if re.fullmatch(
                    r"(fwdrelay|tests|etc|twisted|newsfragments|bench)/[\w/.*-]*", span
                ):
                    self.assertTrue((ROOT / span).exists(), f"{name(page)} speaks of {span}")
