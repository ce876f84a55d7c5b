"""What scenarios can see of a relay with workers from outside: its processes, and what each of them has open."""

from __future__ import annotations

import os
import signal

from tests.case import SynchronousTestCase
from tests.scenarios.relay_process import Upstream, relaying, wait_until

ONCE = 2
"""Descriptors that workers open with their first session, and keep."""


class FamilyTests(SynchronousTestCase):
    def test_a_relay_alone(self) -> None:
        with Upstream() as upstream, relaying("--target", upstream.target) as relay:
            self.assertEqual((relay.children(), relay.workers()), ([], []))
            self.assertEqual(relay.family_descriptors(), {relay.pid: relay.at_rest})
            self.assertGreater(relay.family_memory(), 1 << 20)

    def test_a_relay_with_workers(self) -> None:
        with (
            Upstream() as upstream,
            relaying("--target", upstream.target, "--workers", "2") as relay,
        ):
            workers = relay.workers()
            self.assertEqual(len(workers), 2)
            self.assertEqual(relay.family(), [relay.pid, *workers])
            before = relay.family_descriptors()
            self.assertEqual(set(before), set(relay.family()))
            most = sum(before.values()) + ONCE
            sessions = [(relay.connect(), upstream.accept()) for _ in range(ONCE)]
            self.assertGreater(sum(relay.family_descriptors().values()), most)
            for session in sessions:
                for end in session:
                    end.close()
            relay.wait_for_family_descriptors(most)
            os.kill(workers[0], signal.SIGKILL)
            wait_until(lambda: workers[0] not in relay.workers() and len(relay.workers()) == 2)
            relay.wait_for_family_descriptors(most)
