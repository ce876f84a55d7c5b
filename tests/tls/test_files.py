"""`fwdrelay.tls.files`: changes are told once, and what expires in time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher

from fwdrelay.tls import File, Files
from fwdrelay.tls.files import AGAIN, AHEAD, EVERY
from fwdrelay.tls.pem import stamp_of
from tests.tls.talk import TLSCase

NOW = 1_800_000_000.0


class FilesCase(TLSCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.told: list[set[str]] = []
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)  # type: ignore[arg-type]
        self.files = Files(self.clock, self.changed, self.now)
        self.files.start()
        self.addCleanup(self.files.stop)

    def now(self) -> float:
        return NOW + self.clock.seconds()

    def changed(self, paths: frozenset[str]) -> None:
        self.told.append({os.path.basename(path) for path in paths})

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def put(self, name: str, data: bytes = b"") -> str:
        """Replace a file, as careful programs do."""
        path = self.path(name)
        Path(path + ".new").write_bytes(data)
        os.replace(path + ".new", path)
        return path

    def follow(self, *names: str) -> None:
        self.files.follow(File(self.path(name), stamp_of(self.path(name)), b"") for name in names)

    def looks(self, count: int) -> None:
        self.clock.pump([EVERY] * count)

    def texts(self, level: LogLevel = LogLevel.warn) -> list[str]:
        from twisted.logger import formatEvent

        found = [formatEvent(each) for each in self.events if each["log_level"] is level]
        self.events.clear()
        return found


class ChangeTests(FilesCase):
    def test_a_change_is_told_when_it_has_settled(self) -> None:
        self.put("a", b"1")
        self.put("b", b"1")
        self.follow("a", "b")
        self.looks(3)
        self.assertEqual(self.told, [])
        self.put("a", b"2")
        self.looks(1)
        self.assertEqual(self.told, [])
        self.looks(1)
        self.assertEqual(self.told, [{"a"}])
        self.looks(5)
        self.assertEqual(self.told, [{"a"}])

    def test_what_moves_is_waited_for_and_what_moved_together_is_told_together(self) -> None:
        for name in ("chain", "key", "other"):
            self.put(name)
        self.follow("chain", "key", "other")
        self.put("chain", b"new")
        self.looks(1)
        self.put("key", b"new")
        self.looks(1)
        with open(self.path("key"), "ab") as file:
            file.write(b", and more")
        self.looks(1)
        self.assertEqual(self.told, [])
        self.looks(1)
        self.assertEqual(self.told, [{"chain", "key"}])

    def test_a_file_that_goes_and_comes(self) -> None:
        self.put("a")
        self.follow("a")
        os.unlink(self.path("a"))
        self.looks(3)
        self.assertEqual(self.told, [{"a"}])
        self.put("a")
        self.looks(3)
        self.assertEqual(self.told, [{"a"}, {"a"}])

    def test_one_that_goes_and_is_back_at_the_next_look_was_never_away(self) -> None:
        path = self.put("a")
        self.follow("a")
        os.rename(path, path + ".away")
        self.looks(1)
        os.rename(path + ".away", path)
        # Its inode's time of change is another; its content need not be.
        self.looks(3)
        self.assertLessEqual(len(self.told), 1)

    def test_links_that_are_set_anew(self) -> None:
        """As Kubernetes does: the file is a link through a link, which is what changes."""
        for version in ("v1", "v2"):
            os.mkdir(self.path(version))
            Path(self.path(version), "tls.crt").write_bytes(version.encode())
        os.symlink("v1", self.path("..data"))
        os.symlink("..data/tls.crt", self.path("tls.crt"))
        self.follow("tls.crt")
        self.looks(3)
        self.assertEqual(self.told, [])
        os.symlink("v2", self.path("..new"))
        os.replace(self.path("..new"), self.path("..data"))
        self.looks(2)
        self.assertEqual(self.told, [{"tls.crt"}])

    def test_what_changed_between_reading_and_following_is_told(self) -> None:
        self.put("a")
        read = File(self.path("a"), stamp_of(self.path("a")), b"")
        self.put("a", b"new")
        self.files.follow([read])
        self.looks(2)
        self.assertEqual(self.told, [{"a"}])

    def test_what_was_read_as_two_different_ones_is_told(self) -> None:
        self.put("a")
        first = File(self.path("a"), stamp_of(self.path("a")), b"")
        self.put("a", b"new")
        second = File(self.path("a"), stamp_of(self.path("a")), b"")
        self.files.follow([first, second])
        self.looks(2)
        self.assertEqual(self.told, [{"a"}])

    def test_what_was_of_no_use_is_not_told_again(self) -> None:
        self.put("a")
        self.put("b")
        old = [File(self.path(name), stamp_of(self.path(name)), b"") for name in ("a", "b")]
        self.files.follow(old)
        self.put("a", b"good")
        self.put("b", b"bad")
        self.looks(2)
        self.files.follow([File(self.path("a"), stamp_of(self.path("a")), b""), old[1], old[0]])
        self.looks(5)
        self.assertEqual(self.told, [{"a", "b"}])
        self.put("b", b"good")
        self.looks(2)
        self.assertEqual(self.told, [{"a", "b"}, {"b"}])

    def test_only_those_that_matter_are_looked_at(self) -> None:
        self.put("a")
        self.follow("a")
        self.put("a", b"new")
        self.looks(1)
        self.follow()
        self.looks(3)
        self.assertEqual(self.told, [])

    def test_who_is_told_may_fail(self) -> None:
        self.put("a")
        self.follow("a")
        self.patch(self.files, "_changed", lambda paths: 1 // 0)
        self.put("a", b"new")
        self.looks(2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.patch(self.files, "_changed", self.changed)
        self.put("a", b"newer")
        self.looks(2)
        self.assertEqual(self.told, [{"a"}])

    def test_who_is_told_may_follow_others(self) -> None:
        self.put("a")
        self.follow("a")
        self.patch(self.files, "_changed", lambda paths: self.follow("b"))
        self.put("a", b"new")
        self.looks(3)
        self.put("b")
        self.patch(self.files, "_changed", self.changed)
        self.looks(2)
        self.assertEqual(self.told, [{"b"}])

    def test_nothing_ticks_after_a_stop(self) -> None:
        self.files.stop()
        self.files.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ExpiryTests(FilesCase):
    def expires(self, **files: float) -> None:
        """@param files: seconds from now, by name."""
        self.files.follow(
            File(name, stamp_of(name), b"", self.now() + left) for name, left in files.items()
        )

    def test_warned_of_ahead_and_once_a_day(self) -> None:
        self.expires(web=AHEAD + 3600, other=AHEAD * 9)
        self.assertEqual(self.texts(), [])
        self.clock.advance(3600)
        self.assertEqual(
            self.texts(),
            ["The certificate in web expires in 14 days, on 2027-01-29 09:00 UTC."],
        )
        for _ in range(23):
            self.clock.advance(3600)
        self.assertEqual(self.texts(), [])
        self.clock.advance(3600)
        self.assertEqual(
            self.texts(),
            ["The certificate in web expires in 13 days, on 2027-01-29 09:00 UTC."],
        )

    def test_warned_of_at_once_where_it_is_near(self) -> None:
        self.expires(web=7300)
        self.assertEqual(
            self.texts(), ["The certificate in web expires in 2 hours, on 2027-01-15 10:01 UTC."]
        )
        self.expires(web=7300)
        self.assertEqual(self.texts(), [])

    def test_what_has_expired_is_an_error_at_once(self) -> None:
        self.expires(web=1000, old=-5.0)
        self.assertEqual(len(self.texts()), 1)
        self.events.clear()
        self.clock.pump([600, 600])
        self.assertEqual(
            self.texts(LogLevel.error),
            ["The certificate in web has expired, on 2027-01-15 08:16 UTC. Renew it."],
        )

    def test_renewed_ones_are_not_warned_of(self) -> None:
        self.expires(web=1000)
        self.texts()
        self.expires(web=AHEAD * 2)
        self.clock.advance(AGAIN * 2)
        self.assertEqual(self.texts(), [])

    def test_the_ends_are_there_to_be_asked_for(self) -> None:
        self.expires(web=1000.0, other=5.0)
        self.assertEqual(self.files.expiries, {"web": NOW + 1000, "other": NOW + 5})

    def test_nobody_is_warned_before_the_start(self) -> None:
        files = Files(self.clock, self.changed, self.now)
        files.follow([File("web", (), b"", NOW + 5)])
        self.assertEqual(self.texts(), [])
        files.start()
        self.assertEqual(len(self.texts()), 1)
        files.stop()
