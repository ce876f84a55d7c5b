"""`fwdrelay.workers.supervisor`; what it does with its processes is in `tests/scenarios`."""

from __future__ import annotations

from twisted.internet.task import Clock

from fwdrelay.config import Config, RelayConfig
from fwdrelay.errors import NotPossible
from fwdrelay.process.sdnotify import Notifier
from fwdrelay.workers.renewal import Command
from fwdrelay.workers.supervisor import Supervisor
from tests.case import SynchronousTestCase


class DrainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.stopped: list[bool] = []
        self.supervisor = Supervisor(
            Config(listeners=(), pools=(), relay=RelayConfig(workers=2)),
            Clock(),
            notifier=Notifier(),
            give_up=self.fail,
            read=None,
            stop=self.stopped.append,
            fail=self.fail,
            command=Command((), "", None, 0),
        )

    def test_it_stops_while_workers_are_still_starting_as_by_a_signal(self) -> None:
        self.assertEqual(self.supervisor.state, "starting")
        self.supervisor.drain()
        self.supervisor.drain(now=True)
        self.assertEqual(self.stopped, [False, True])

    def test_what_would_be_lost_with_this_program_is_not_promised(self) -> None:
        self.supervisor.state = "running"
        self.supervisor._renewing = True
        with self.assertRaisesRegex(NotPossible, "ask again in a moment"):
            self.supervisor.drain()
        self.assertEqual(self.stopped, [])
