"""What scenarios can see of a relay with workers from outside: its processes, and what each of them has open."""

from __future__ import annotations

import os
import signal

from tests.case import SynchronousTestCase
from tests.scenarios.relay_process import Upstream, relaying, wait_until


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
            before = sum(relay.family_descriptors().values())
            self.assertEqual(set(relay.family_descriptors()), set(relay.family()))
            with relay.connect() as client, upstream.accept() as server:
                self.assertGreater(sum(relay.family_descriptors().values()), before)
                client.close()
                server.close()
                relay.wait_for_family_descriptors(before)
            os.kill(workers[0], signal.SIGKILL)
            wait_until(lambda: workers[0] not in relay.workers() and len(relay.workers()) == 2)
            relay.wait_for_family_descriptors(before)
