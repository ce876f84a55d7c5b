"""`fwdrelay.session.portable`: what crosses from one process, and one version, to another."""

from __future__ import annotations

import json

from fwdrelay.pump.tcp_info import FlowOrigin
from fwdrelay.session import PortableSession
from tests.case import SynchronousTestCase


class PortableTests(SynchronousTestCase):
    def test_it_is_the_same_again(self) -> None:
        portable = PortableSession(
            session="a-1",
            listener="front",
            client="[2001:db8::1]:5",
            counted="2001:db8::1",
            started=1e9,
            bytes_up=1 << 40,
            up_read=1,
            up_written=2,
        )
        self.assertEqual(PortableSession.parse(portable.text()), portable)
        self.assertEqual(portable.origins, (FlowOrigin(1, 2), None))

    def test_what_is_unknown_is_ignored_and_what_is_missing_has_its_default(self) -> None:
        text = json.dumps({"session": "a-1", "listener": "f", "client": "c", "mood": "good"})
        self.assertEqual(
            PortableSession.parse(text), PortableSession(session="a-1", listener="f", client="c")
        )

    def test_what_is_none(self) -> None:
        for text in ("", "[]", "7", '{"listener": "f"}'):
            self.assertRaises(ValueError, PortableSession.parse, text)
