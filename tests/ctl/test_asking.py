"""Where the relay is asked, with which token, and how JSON is written."""

from __future__ import annotations

import json
import os
import unittest

from fwdrelay.ctl import asking
from tests.ctl.fake_relay import SESSION, CtlTestCase, FakeRelay, Reply, document


class WhereTests(CtlTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.other = FakeRelay(str(self.folder() / "admin.sock"))
        self.addCleanup(self.other.close)

    def test_the_environment_says_it(self) -> None:
        self.ctl("pools")
        self.assertEqual(len(self.relay.asked), 1)

    def test_the_command_line_says_it_better_before_or_behind_the_command(self) -> None:
        self.ctl("--admin", self.other.admin, "pools")
        self.ctl("pools", "--admin", self.other.admin)
        self.ctl(
            "--admin",
            "127.0.0.1:1",
            "target",
            "--admin",
            self.other.admin,
            "ready",
            "a:80",
            status=4,
        )
        self.assertEqual(self.relay.asked, [])
        self.assertEqual(len(self.other.asked), 4)

    def test_what_nothing_was_said_of(self) -> None:
        del os.environ["FWDRELAY_ADMIN"]
        self.patch(asking, "SOCKET", self.other.admin.removeprefix("unix:"))
        self.ctl("pools")
        self.assertEqual(len(self.other.asked), 1)
        self.patch(asking, "SOCKET", "/nonexistent")
        self.patch(asking, "ADDRESS", self.relay.admin)
        self.ctl("pools")
        self.assertEqual(len(self.relay.asked), 1)

    def test_what_is_no_place(self) -> None:
        for place in (
            "off",
            "127.0.0.1:0",
            "example.com:80",
            "127.0.0.1",
            "unix:",
            "::1:80",
            "http://127.0.0.1:80/",
        ):
            ran = self.ctl("pools", "--admin", place, status=2)
            self.assertIn("is not where a relay can be asked: write ADDR:PORT,", ran.err)
            self.assertIn("ADDR is an IP address or localhost, with no http://", ran.err)
            os.environ["FWDRELAY_ADMIN"] = place
            ran = self.ctl("pools", status=2)
            self.assertIn(f"FWDRELAY_ADMIN: {place!r} is not where a relay", ran.err)


class TokenTests(CtlTestCase):
    def token(self, text: str) -> str:
        file = self.folder() / "token"
        file.write_text(text)
        return str(file)

    def shown(self) -> list[str | None]:
        return [asked.headers.get("Authorization") for asked in self.relay.asked]

    def test_the_first_line_of_the_file_is_shown(self) -> None:
        self.ctl("pools", "--token-file", self.token("abc\nrest"))
        os.environ["FWDRELAY_TOKEN_FILE"] = self.token("def")
        self.ctl("pools")
        self.ctl("--token-file", self.token("ghi\n"), "pools")
        self.assertEqual(self.shown(), ["Bearer abc", "Bearer def", "Bearer ghi"])

    def test_a_socket_needs_none(self) -> None:
        relay = FakeRelay(str(self.folder() / "admin.sock"))
        self.addCleanup(relay.close)
        os.environ["FWDRELAY_TOKEN_FILE"] = "/nonexistent"
        self.ctl("pools", "--admin", relay.admin)

    def test_a_file_that_is_of_no_use(self) -> None:
        ran = self.ctl("pools", "--token-file", "/nonexistent", status=2)
        self.assertIn("the token can't be read: /nonexistent: no such file or directory", ran.err)
        for text in ("", "\nabc", "a\x1bb", "schlüssel"):
            ran = self.ctl("pools", "--token-file", self.token(text), status=2)
            self.assertIn("is no token", ran.err)
        self.assertEqual(self.relay.asked, [])

    def test_a_file_that_one_may_not_read(self) -> None:
        if os.geteuid() == 0:
            raise unittest.SkipTest("root may read any")
        file = self.token("abc")
        os.chmod(file, 0)
        said = self.refused("pools", "--token-file", file, status=5)
        self.assertEqual(said, f"you may not read the token in {file}: permission denied")


class JSONTests(CtlTestCase):
    def test_everywhere_it_may_stand(self) -> None:
        for line in (("--json", "pools"), ("pools", "--json"), ("--json", "pools", "--json")):
            told = json.loads(self.ctl(*line).out)
            self.assertEqual(told, self.relay.replies["GET /v1/pools"].body)

    def test_a_refusal_is_written_too(self) -> None:
        ran = self.ctl("--json", "kill", "x y", status=4)
        self.assertEqual(json.loads(ran.out), {"error": "there is nothing at /v1/sessions/x%20y"})
        self.assertEqual(ran.err, "fwdrelayctl: there is nothing at /v1/sessions/x%20y\n")

    def test_nothing_in_it_reaches_a_terminal_raw(self) -> None:
        evil = '\x1b[2J\x9b\u202e\U000e0041\ud800é"\\'
        session = {**document(SESSION), "sni": evil}
        self.relay.replies["GET /v1/sessions"] = Reply(200, {"sessions": [session], "count": 1})
        out = self.ctl("sessions", "--json").out
        self.assertTrue(out.removesuffix("\n").isprintable())
        self.assertIn("é", out)
        self.assertEqual(json.loads(out)["sessions"][0]["sni"], evil)
