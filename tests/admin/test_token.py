"""The token and its file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fwdrelay.admin.token import Token, read_token, token_problems
from fwdrelay.config import RelayConfig
from fwdrelay.errors import ConfigError
from tests.case import SynchronousTestCase


class TokenFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = Path(folder.name, "admin.token")
        self.warnings: list[str] = []

    def write(self, text: str, mode: int = 0o600) -> None:
        self.file.write_text(text)
        self.file.chmod(mode)

    def read(self) -> Token:
        return read_token(str(self.file), self.warnings.append)

    def assert_wrong(self, *words: str) -> None:
        error = self.assertRaises(ConfigError, self.read)
        for word in ("relay.admin_token_file: ", str(self.file), *words):
            self.assertIn(word, str(error))
        (problem,) = token_problems(RelayConfig(admin_token_file=str(self.file)))
        self.assertEqual(str(problem), str(error))

    def test_the_first_line_counts(self) -> None:
        self.write(" abc-123 \nwhat else is there\n")
        self.assertEqual(self.read(), Token.of("abc-123"))
        self.assertEqual(self.warnings, [])
        self.assertEqual(token_problems(RelayConfig(admin_token_file=str(self.file))), [])

    def test_none_is_asked_for(self) -> None:
        self.assertEqual(token_problems(RelayConfig()), [])

    def test_no_file(self) -> None:
        self.assert_wrong("cannot read", "No such file")

    def test_a_folder(self) -> None:
        self.file.mkdir()
        self.assert_wrong("Is a directory")

    def test_nothing_in_it(self) -> None:
        for text in ("", "\nabc", " \t\n"):
            self.write(text)
            self.assert_wrong("is empty", "openssl rand")

    def test_what_no_header_could_show(self) -> None:
        for text in ("two words", "schlüssel", "a" * 5000):
            self.write(text)
            self.assert_wrong("can't be a token")

    def test_nobody_is_waited_for(self) -> None:
        os.mkfifo(self.file)
        self.assert_wrong("is empty")

    def test_everybody_can_read_it(self) -> None:
        self.write("abc", 0o644)
        self.assertEqual(self.read(), Token.of("abc"))
        (warning,) = self.warnings
        self.assertIn(f"chmod o= {self.file}", warning)
