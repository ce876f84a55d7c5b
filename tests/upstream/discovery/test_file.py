"""`fwdrelay.upstream.discovery.file`, with real files and a clock that tests own."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from fwdrelay.config import TargetConfig
from fwdrelay.errors import DiscoveryFailed
from fwdrelay.interfaces import Found
from fwdrelay.upstream.discovery import file
from fwdrelay.upstream.discovery.file import EVERY, LARGEST, FileDiscovery, targets_in
from fwdrelay.upstream.discovery.follow import Following, checked
from tests.case import SynchronousTestCase
from tests.upstream.discovery.parts import Findings, Log, discover, labels, no_chance

A = TargetConfig(host="192.0.2.1", port=80)


class FileTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "targets.json")

    def write(self, *entries: object) -> None:
        """Rewrite the file in place."""
        self.path.write_text(json.dumps(entries), encoding="utf-8")

    def replace(self, text: str) -> None:
        """Put another file in its place."""
        other = self.path.with_name("other")
        other.write_text(text, encoding="utf-8")
        other.replace(self.path)


class FileDiscoveryTests(FileTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.discovery = FileDiscovery(str(self.path), self.clock)

    def ask(self) -> Deferred[Found]:
        return Deferred.fromCoroutine(self.discovery.discover())

    def found(self) -> list[str]:
        """Ask, and be told at once."""
        found = self.successResultOf(self.ask())
        self.assertEqual(found.ttl, EVERY)
        return labels(found.targets)

    def failed(self) -> str:
        """Ask, and be told at once why not."""
        return str(self.failureResultOf(self.ask(), DiscoveryFailed).value)

    def test_json(self) -> None:
        self.write("192.0.2.1:80", {"host": "192.0.2.2", "port": 80, "weight": 2})
        self.assertEqual(self.found(), ["192.0.2.1:80", "192.0.2.2:80"])

    def test_toml(self) -> None:
        path = self.path.with_suffix(".toml")
        path.write_text(
            'targets = ["192.0.2.1:80,weight=3", { path = "/run/app.sock" }]\n', encoding="utf-8"
        )
        found = self.successResultOf(
            Deferred.fromCoroutine(FileDiscovery(str(path), self.clock).discover())
        )
        self.assertEqual(
            found.targets,
            (TargetConfig(host="192.0.2.1", port=80, weight=3), TargetConfig(path="/run/app.sock")),
        )

    def test_the_ending_says_how_it_is_read(self) -> None:
        for path in ("/run/targets", "/run/targets.yaml", "/run/json"):
            with self.assertRaisesRegex(ValueError, r"neither \.json nor \.toml"):
                FileDiscovery(path, self.clock)

    def test_an_empty_list_is_taken_as_such(self) -> None:
        self.write()
        self.assertEqual(self.found(), [])

    def test_an_empty_file_is_no_list(self) -> None:
        self.path.write_text("", encoding="utf-8")
        self.assertIn("it is not JSON: ", self.failed())

    def test_it_is_read_again_when_it_is_another(self) -> None:
        self.write("192.0.2.1:80")
        self.assertEqual(self.found(), ["192.0.2.1:80"])
        self.write("192.0.2.2:80", "192.0.2.3:80")
        self.assertEqual(self.found(), ["192.0.2.2:80", "192.0.2.3:80"])
        self.replace('["192.0.2.4:80"]')
        self.assertEqual(self.found(), ["192.0.2.4:80"])

    def test_it_is_not_read_again_while_it_is_the_same(self) -> None:
        self.write("192.0.2.1:80")
        self.found()
        self.found()
        self.patch(file, "_read_file", lambda path: self.fail(f"{path} was read"))
        self.assertEqual(self.found(), ["192.0.2.1:80"])

    def test_who_sets_the_time_of_writing_is_seen(self) -> None:
        self.write("192.0.2.1:80")
        self.found()
        self.found()
        times = self.path.stat()
        self.write("192.0.2.9:80")  # as long as before
        os.utime(self.path, ns=(times.st_atime_ns, times.st_mtime_ns))
        self.assertEqual(self.found(), ["192.0.2.9:80"])

    def test_what_is_written_within_the_same_tick_is_seen(self) -> None:
        self.write("192.0.2.1:80")
        self.found()
        times = self.path.stat()
        with self.path.open("r+b") as file:
            file.write(b'["192.0.2.9')
        os.utime(self.path, ns=(times.st_atime_ns, times.st_mtime_ns))
        self.assertEqual(self.found(), ["192.0.2.9:80"])

    def test_a_failure_is_told_once(self) -> None:
        self.assertIn("it can't be read: No such file", self.failed())
        waiting = self.ask()
        self.clock.pump([EVERY] * 5)
        self.assertNoResult(waiting)
        self.write("192.0.2.1:80")
        self.clock.advance(EVERY)
        self.assertEqual(labels(self.successResultOf(waiting).targets), ["192.0.2.1:80"])

    def test_another_failure_is_told(self) -> None:
        self.failed()
        waiting = self.ask()
        self.path.write_text('["192.0.2.1:80", ', encoding="utf-8")
        self.clock.advance(EVERY)
        failure = self.failureResultOf(waiting, DiscoveryFailed)
        self.assertIn("line 1 column", str(failure.value))

    def test_waiting_can_be_cancelled(self) -> None:
        self.failed()
        waiting = self.ask()
        waiting.cancel()
        self.failureResultOf(waiting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_no_file(self) -> None:
        self.path.mkdir()
        self.assertIn("Is a directory", self.failed())
        self.path.rmdir()
        os.mkfifo(self.path)  # which nobody ever writes to
        self.assertIn("not a regular file", self.failed())

    def test_what_is_too_large(self) -> None:
        with self.path.open("wb") as file:
            file.truncate(LARGEST + 1)
        self.assertIn(f"larger than {LARGEST} bytes", self.failed())
        self.path.write_text("[]" + " " * (LARGEST - 2), encoding="utf-8")
        self.assertEqual(self.found(), [])

    def test_what_is_not_text(self) -> None:
        self.path.write_bytes(b"\xff\xfe\x00")
        self.assertIn("it is not UTF-8: invalid start byte at byte 0", self.failed())

    def test_what_is_too_deep(self) -> None:
        self.path.write_text("[" * 100_000, encoding="utf-8")
        self.assertIn("lists in lists", self.failed())

    def test_a_number_that_has_no_end(self) -> None:
        self.path.write_text("9" * 10_000, encoding="utf-8")
        self.assertIn("4300 digits", self.failed())

    def test_a_byte_order_mark_is_no_error(self) -> None:
        self.path.write_bytes(b'\xef\xbb\xbf["192.0.2.1:80"]')
        self.assertEqual(self.found(), ["192.0.2.1:80"])

    def test_a_key_twice(self) -> None:
        self.path.write_text('[{"host": "a", "port": 1, "port": 2}]', encoding="utf-8")
        self.assertIn("'port' twice", self.failed())


class FollowedFileTests(FileTestCase):
    """What becomes of a file's adventures, once it is followed."""

    def setUp(self) -> None:
        super().setUp()
        self.findings = Findings()
        self.log = Log(self)
        self.following = Following(
            FileDiscovery(str(self.path), self.clock),
            discover(f"file:{self.path}"),
            self.clock,
            self.findings,
            "web",
            chance=no_chance,
        )
        self.addCleanup(self.following.stop)

    def known(self) -> list[str]:
        """After a few seconds."""
        self.clock.pump([EVERY] * 4)
        assert self.following.known is not None
        return labels(self.following.known)

    def test_it_vanishes_and_is_back(self) -> None:
        self.write("192.0.2.1:80")
        self.following.start()
        self.assertEqual(self.known(), ["192.0.2.1:80"])
        self.path.unlink()
        self.assertEqual(self.known(), ["192.0.2.1:80"])
        self.clock.pump([60.0] * 10)
        self.write("192.0.2.2:80")
        self.assertEqual(self.known(), ["192.0.2.2:80"])
        told = [line for line in self.log.lines if "No such file" in line]
        self.assertEqual(len(told), 1)
        self.assertIn("going on with 1 target", told[0])

    def test_it_is_half_written_for_a_while(self) -> None:
        self.write("192.0.2.1:80")
        self.following.start()
        for size in range(1, 9):
            self.path.write_text('["192.0.2.2:80",'[:size], encoding="utf-8")
            self.assertEqual(self.known(), ["192.0.2.1:80"])
        self.write("192.0.2.2:80")
        self.assertEqual(self.known(), ["192.0.2.2:80"])

    def test_it_comes_late(self) -> None:
        self.following.start()
        self.assertIsNone(self.following.known)
        self.clock.pump([EVERY] * 1000)
        self.assertIsNone(self.following.known)
        self.write("192.0.2.1:80")
        self.assertEqual(self.known(), ["192.0.2.1:80"])

    def test_stop(self) -> None:
        for _ in range(2):  # in either kind of waiting
            self.following.start()
            self.clock.pump([EVERY] * 4)
            self.following.stop()
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.write("192.0.2.1:80")


class PageTests(SynchronousTestCase):
    def test_the_files_of_the_page_are_right(self) -> None:
        page = Path(__file__).resolve().parents[3] / "docs" / "discovery.md"
        text = page.read_text(encoding="utf-8")
        section = text.partition("\n## A file\n")[2].partition("\n## ")[0]
        blocks = re.findall(r"^```(json|toml)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        self.assertEqual([ending for ending, _ in blocks], ["json", "toml"])
        for ending, block in blocks:
            parsed = json.loads(block) if ending == "json" else tomllib.loads(block)
            self.assertEqual(len(targets_in(parsed)), 3)


class TargetsInTests(SynchronousTestCase):
    def assert_refused(self, content: object, *words: str) -> None:
        with self.assertRaises(ValueError) as raised:
            targets_in(content)
        for word in words:
            self.assertIn(word, str(raised.exception))

    def test_texts(self) -> None:
        (target,) = targets_in(["[2001:db8::1]:443,weight=2,backup,max-sessions=3,name=far"])
        self.assertEqual(
            target,
            TargetConfig(
                host="2001:db8::1", port=443, weight=2, backup=True, max_sessions=3, name="far"
            ),
        )

    def test_tables_say_the_same(self) -> None:
        for text, table in (
            ("192.0.2.1:80", {"host": "192.0.2.1", "port": 80}),
            ("[::1]:80,weight=5", {"host": "::1", "port": 80, "weight": 5}),
            ("web.test:1,backup", {"host": "web.test", "port": 1, "backup": True}),
            ("web.test:1", {"host": "web.test", "port": 1, "backup": False}),
            ("unix:@x,max-sessions=7", {"path": "@x", "max_sessions": 7}),
            ("unix:/run/x,name=b1", {"path": "/run/x", "name": "b1"}),
        ):
            self.assertEqual(targets_in([text]), targets_in([table]))

    def test_a_table_of_targets(self) -> None:
        self.assertEqual(targets_in({"targets": ["192.0.2.1:80"]}), (A,))

    def test_an_address_has_one_name_however_it_is_written(self) -> None:
        self.assert_refused(["[::1]:80", "[0::0:1]:80"], "target 2: [::1]:80 is there twice")

    def test_what_is_no_list(self) -> None:
        self.assert_refused("192.0.2.1:80", "'192.0.2.1:80'", "not a list of targets")
        self.assert_refused(None, "None", "not a list")
        self.assert_refused({}, "no `targets`", "empty list")
        self.assert_refused({"targets": {}}, "not a list")
        self.assert_refused({"target": []}, "'target' is not known", "`targets`")
        self.assert_refused({"targets": [], "more": 1}, "'more' is not known")

    def test_the_entry_is_named(self) -> None:
        self.assert_refused(["192.0.2.1:80", "no"], "target 2: ", "'no' is not a target")

    def test_wrong_texts(self) -> None:
        self.assert_refused(["192.0.2.1:80,weight=0"], "weight=0")
        self.assert_refused(["srv:_http._tcp.test"], "srv:_http._tcp.test")

    def test_wrong_tables(self) -> None:
        right: dict[str, object] = {"host": "web.test", "port": 80}
        for entry, *words in (
            (5, "5 is not a target"),
            ([], "[] is not a target"),
            ({}, "needs host and port, or path"),
            ({"host": "web.test"}, "needs host and port"),
            ({"path": "/x", "port": 1}, "one or the other"),
            ({**right, "wieght": 1}, "'wieght' is not known", "weight"),
            ({**right, "port": "80"}, "port is '80'", "a whole number"),
            ({**right, "port": True}, "port is True", "a whole number"),
            ({**right, "port": 80.0}, "port is 80.0", "a whole number"),
            ({**right, "port": 0}, "not a port"),
            ({**right, "port": 65536}, "not a port"),
            ({**right, "weight": 0}, "weight=0"),
            ({**right, "weight": -1}, "from 1 up"),
            ({**right, "max_sessions": -1}, "from 0 up"),
            ({**right, "backup": 1}, "backup is 1", "true or false"),
            ({**right, "name": ""}, "name is ''"),
            ({**right, "name": "a,backup"}, "without commas"),
            ({**right, "host": "unix"}, "'unix' is not a host name"),
            ({**right, "host": "-"}, "'-' is not a host name"),
            ({**right, "host": "1.2.3"}, "not an IPv4 address"),
            ({"path": "x" * 108}, "107 bytes"),
        ):
            self.assert_refused([entry], "target 1: ", *words)

    def test_the_same_label_twice(self) -> None:
        self.assert_refused(
            ["192.0.2.1:80", "192.0.2.1:80,weight=2"], "target 2: 192.0.2.1:80 is there twice"
        )
        two = targets_in(["192.0.2.1:80", "192.0.2.1:80,name=other"])
        self.assertEqual(labels(two), ["192.0.2.1:80", "other"])

    _scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    _keys = st.sampled_from(["host", "port", "path", "weight", "backup", "name", "max_sessions"])
    _values = _scalars | st.sampled_from(["web.test", "192.0.2.1", "::1", "/run/x", 80])

    @given(st.lists(_scalars | st.dictionaries(_keys, _values)) | _scalars)
    def test_targets_or_a_sentence(self, content: object) -> None:
        try:
            targets = targets_in(content)
        except ValueError as wrong:
            self.assertNotEqual(str(wrong), "")
        else:
            checked(Found(targets, EVERY))
