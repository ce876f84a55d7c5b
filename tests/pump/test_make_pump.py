"""`fwdrelay.pump.make_pump`: which pump a name means, here and where the kernel hasn't what it takes."""

from __future__ import annotations

from typing import get_args
from unittest import mock

from twisted.internet.task import Clock

from fwdrelay import pump as pump_module
from fwdrelay.config import KeepAlive, PumpName
from fwdrelay.errors import CannotSplice
from fwdrelay.pump import make_pump
from fwdrelay.pump.buffered import BufferedPump
from fwdrelay.pump.spliced import SplicedPump
from tests.case import SynchronousTestCase


class MakePumpTests(SynchronousTestCase):
    def kind(self, name: PumpName, supported: bool) -> type:
        with mock.patch.object(pump_module, "is_supported", lambda: supported):
            return type(make_pump(name, Clock(), KeepAlive()))

    def test_where_it_can_be_had_all_but_one_name_mean_the_spliced_one(self) -> None:
        kinds = {name: self.kind(name, True) for name in get_args(PumpName)}
        wanted = {"auto": SplicedPump, "splice": SplicedPump, "buffered": BufferedPump}
        self.assertEqual(kinds, wanted)

    def test_where_it_cannot_auto_is_the_buffered_one(self) -> None:
        self.assertIs(self.kind("auto", False), BufferedPump)
        self.assertIs(self.kind("buffered", False), BufferedPump)

    def test_where_it_cannot_who_insists_is_told_what_to_do(self) -> None:
        told = str(self.assertRaises(CannotSplice, self.kind, "splice", False))
        self.assertEqual(len(told.splitlines()), 1)
        for words in ("--pump splice", "Linux", "auto", "buffered"):
            self.assertIn(words, told)
