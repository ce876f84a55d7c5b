"""`fwdrelay.steering`: what the API sees of a running relay, and does to it."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime
from ipaddress import ip_network
from typing import Any
from unittest import mock

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import deferLater

from fwdrelay import steering
from fwdrelay._version import __version__
from fwdrelay.config import Config, PoolConfig, TargetConfig
from fwdrelay.errors import CannotListen, ConfigError, ConfigErrors, NotPossible, NotThere
from fwdrelay.networks import Networks
from fwdrelay.observe.events import SessionEnded
from fwdrelay.observe.feed import SessionEvent, SessionOpened
from fwdrelay.observe.snapshot import SessionsWanted
from fwdrelay.observe.trace import TraceStep
from fwdrelay.relay import Relay
from fwdrelay.session import Reason
from fwdrelay.steering import Steering
from tests.case import SynchronousTestCase
from tests.test_relay import End, RelayTestCase, port_of, reactor


class SteeringTestCase(RelayTestCase):
    def begin(self, **fields: Any) -> None:
        self.relay = self.start(**fields)
        self.addCleanup(self.relay.stopService)
        self.addCleanup(self.relay.cut_all)
        self.steering = Steering(self.relay, reactor)

    async def connected(self) -> End:
        """A client that has connected, and no more."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port_of(self.relay))
        client: End = await connectProtocol(endpoint, End())
        self.ends.append(client)
        return client

    async def end(self, client: End, server: End) -> None:
        """Both ends of a session end, which is over then."""
        for end in (client, server):
            end.transport.loseWriteConnection()
        for end in (client, server):
            await end.ended
            end.transport.loseConnection()
            await end.closed
        while self.relay.active:
            await deferLater(reactor, 0)


class SeeingTests(SteeringTestCase):
    async def test_a_relay_at_rest(self) -> None:
        self.begin()
        self.assertEqual(self.steering.state, "starting")
        await deferLater(reactor, 0)
        status = await self.steering.status()
        self.assertEqual((status.version, status.state), (__version__, "running"))
        [listener] = status.listeners
        self.assertEqual(
            (listener.name, listener.addresses, listener.state, listener.pool),
            ("l", (f"127.0.0.1:{port_of(self.relay)}",), "listening", "p"),
        )
        self.assertEqual((status.totals.sessions, status.totals.sessions_total), (0, 0))
        self.assertEqual((await self.steering.sessions(SessionsWanted())).count, 0)
        began = datetime.fromisoformat(status.started).timestamp()
        self.assertLess(abs(began + status.uptime - time.time()), 60)

    async def test_bytes_count_while_a_session_runs_and_after_it(self) -> None:
        self.begin()
        client, server = await self.session(self.relay)
        before = (await self.steering.status()).totals
        self.assertEqual(
            (before.sessions, before.sessions_total, before.bytes_up, before.bytes_down),
            (1, 1, 1, 1),
        )
        server.transport.write(b"answer")
        await self.end(client, server)
        after = (await self.steering.status()).totals
        self.assertEqual(after, evolve(before, sessions=0, bytes_down=7))
        [listener] = (await self.steering.counters()).listeners
        self.assertEqual((await self.steering.counters()).totals, after)
        self.assertEqual((listener.ended, listener.let_in), ({("p", "done"): 1}, 1))
        self.assertEqual((listener.active, listener.seconds.count), (0, 1))
        self.assertEqual((listener.bytes_up, listener.bytes_down), (1, 7))
        [target] = (await self.steering.counters()).targets
        self.assertEqual((target.dials.count, target.sessions, target.up), (1, 0, True))

    async def test_a_session_as_it_is(self) -> None:
        self.begin()
        client, _ = await self.session(self.relay)
        [session] = (await self.steering.sessions(SessionsWanted())).sessions
        [address] = (await self.steering.status()).listeners[0].addresses
        me = client.transport.getHost()
        self.assertEqual(
            (session.listener, session.client, session.local, session.pool, session.state),
            ("l", f"127.0.0.1:{me.port}", address, "p", "relaying"),
        )
        self.assertEqual(
            (session.target, session.bytes_up, session.bytes_down, session.retries),
            (f"127.0.0.1:{self.target.port}", 1, 1, 0),
        )
        self.assertIsNotNone(session.idle_ms)
        self.assertIsNotNone(session.dial_ms)

    async def test_which_process_has_it_is_said_where_there_are_several(self) -> None:
        self.begin()
        await self.session(self.relay)
        for steering_, worker in ((self.steering, None), (Steering(self.relay, reactor, 3), 3)):
            [session] = (await steering_.sessions(SessionsWanted())).sessions
            self.assertEqual((session.worker, session.kept), (worker, False))

    async def test_one_that_is_half_closed(self) -> None:
        self.begin()
        client, server = await self.session(self.relay)
        client.transport.loseWriteConnection()
        await server.ended
        await deferLater(reactor, 0)
        [session] = (await self.steering.sessions(SessionsWanted())).sessions
        self.assertEqual(session.state, "half-closed")
        for end in (server, client):
            end.transport.loseConnection()
            await end.closed

    async def test_sessions_are_chosen_by_all_that_is_said_of_them(self) -> None:
        self.begin()
        ends = [await self.session(self.relay) for _ in range(3)]
        target = f"127.0.0.1:{self.target.port}"
        ports = [client.transport.getHost().port for client, _ in ends]

        async def found(**wanted: Any) -> list[int]:
            shown = await self.steering.sessions(SessionsWanted(**wanted))
            self.assertGreaterEqual(shown.count, len(shown.sessions))
            return [int(each.client.rpartition(":")[2]) for each in shown.sessions]

        for wanted in ({}, {"listener": "l"}, {"target": target}, {"client": "127.0.0.0/8"}):
            self.assertEqual(await found(**wanted), ports, wanted)
        for nobody in ({"listener": "x"}, {"target": "x"}, {"client": "192.0.2.1"}):
            self.assertEqual(await found(**nobody), [], nobody)
        self.assertEqual(await found(client=f"127.0.0.1:{ports[1]}", listener="l"), ports[1:2])
        self.assertEqual(await found(limit=2), ports[:2])
        self.assertEqual((await self.steering.sessions(SessionsWanted(limit=2))).count, 3)

    async def test_very_many_are_shown_bit_by_bit(self) -> None:
        self.begin()
        self.patch(steering, "BATCH", 1)
        ends = [await self.session(self.relay) for _ in range(3)]
        turns: list[None] = []
        reactor.callLater(0, turns.append, None)
        showing = Deferred.fromCoroutine(self.steering.sessions(SessionsWanted()))
        # Meanwhile others are served, and one may end.
        self.assertNoResult(showing)
        newest = max(self.relay._sessions(), key=lambda each: each.number)
        newest.cut(Reason.KILLED)
        shown = await showing
        self.assertEqual((len(shown.sessions), shown.count, len(turns)), (2, 3, 1))
        for end in ends[2]:
            await end.closed

    async def test_when_it_began_does_not_change(self) -> None:
        self.begin()
        first = (await self.steering.status()).started
        await deferLater(reactor, 0.01)
        self.assertEqual((await self.steering.status()).started, first)

    async def test_what_is_no_client(self) -> None:
        self.begin()
        for wrong in ("nobody", "127.0.0.1:x", "10.0.0.0/99", ":1"):
            with self.assertRaises(ValueError) as raised:
                await self.steering.sessions(SessionsWanted(client=wrong))
            self.assertIn(f"{wrong!r} is not a client", str(raised.exception))

    async def test_refused_clients_are_sessions_that_got_nowhere(self) -> None:
        self.begin()
        self.relay.change(
            evolve(
                self.relay.config,
                listeners=(evolve(self.relay.config.listeners[0], max_sessions=1),),
            )
        )
        client, server = await self.session(self.relay)
        refused = await self.connected()
        await refused.closed
        counters = await self.steering.counters()
        [listener] = counters.listeners
        self.assertEqual(listener.rejected, {"max-sessions": 1})
        self.assertEqual(listener.ended, {("", "max-sessions"): 1})
        totals = (await self.steering.status()).totals
        self.assertEqual((totals.sessions_total, totals.rejected_total), (1, 1))
        await self.end(client, server)

    async def test_a_listener_that_was_removed_counts_until_its_sessions_have_ended(self) -> None:
        self.begin(drain_timeout=0.0)
        before = self.relay.config
        client, server = await self.session(self.relay)
        other = evolve(before.listeners[0], name="m")
        self.relay.change(evolve(before, listeners=(other,)))
        status = await self.steering.status()
        self.assertEqual(
            [(each.name, each.state, each.sessions) for each in status.listeners],
            [("m", "listening", 0), ("l", "draining", 1)],
        )
        self.assertEqual((await self.steering.sessions(SessionsWanted(listener="l"))).count, 1)
        # One of its name is one with it, to whoever counts.
        self.relay.change(evolve(before, listeners=(before.listeners[0],)))
        await self.session(self.relay)
        [counters] = (await self.steering.counters()).listeners
        self.assertEqual((counters.active, counters.bytes_up), (2, 2))
        self.assertEqual((await self.steering.status()).totals.sessions_total, 2)
        for end in (client, server):
            end.transport.loseConnection()
            await end.closed

    async def test_pools_and_targets(self) -> None:
        self.begin()
        await self.session(self.relay)
        [pool] = await self.steering.pools()
        self.assertEqual(
            (pool.name, pool.balance, pool.check, pool.sessions), ("p", "round-robin", "off", 1)
        )
        [target] = pool.targets
        self.assertEqual(
            (target.name, target.state, target.up, target.share, target.sessions),
            (f"127.0.0.1:{self.target.port}", "ready", True, 1.0, 1),
        )
        self.assertEqual((target.dials_total, target.dial_failures_total), (1, 0))
        self.assertIsNotNone(target.dial_ms)
        self.assertIsNone(target.since)

    async def test_when_a_target_went_down(self) -> None:
        self.begin()
        pool = self.relay.pools["p"]
        pool._target_changed(pool.targets[0], False, "cut off")
        [target] = (await self.steering.pools())[0].targets
        assert target.since is not None
        since = datetime.fromisoformat(target.since).timestamp()
        self.assertLess(abs(since - time.time()), 60)
        self.assertEqual((target.up, target.cause), (False, "cut off"))
        [counters] = (await self.steering.counters()).targets
        self.assertFalse(counters.up)


class ActingTests(SteeringTestCase):
    async def test_a_session_is_ended(self) -> None:
        self.begin()
        client, server = await self.session(self.relay)
        [session] = (await self.steering.sessions(SessionsWanted())).sessions
        shown = await self.steering.end_session(session.session)
        self.assertEqual((shown.session, shown.bytes_up), (session.session, 1))
        await client.closed
        await server.closed
        [line] = self.logged()
        self.assertEqual((line["reason"], line["code"]), ("killed", "KD"))
        with self.assertRaises(NotThere) as raised:
            await self.steering.end_session(session.session)
        self.assertIn(session.session, str(raised.exception))

    async def test_names_that_are_no_sessions(self) -> None:
        self.begin()
        await self.session(self.relay)
        [session] = (await self.steering.sessions(SessionsWanted())).sessions
        number = session.session.rpartition("-")[2]
        for name in ("", "x", number, f"0-{number}", f"{session.session}0"):
            with self.assertRaises(NotThere):
                await self.steering.end_session(name)
        self.assertEqual(self.relay.active, 1)

    async def test_a_target_that_need_not_be_there(self) -> None:
        self.begin()
        name = f"127.0.0.1:{self.target.port}"
        found = await self.steering.steer_if_there("p", name, "drain", None)
        assert found is not None
        self.assertEqual((found.name, found.state), (name, "drain"))
        self.assertIsNone(await self.steering.steer_if_there("p", "x", "drain", None))
        self.assertIsNone(await self.steering.steer_if_there("x", name, "drain", None))

    async def test_a_target_is_steered(self) -> None:
        self.begin()
        label = f"127.0.0.1:{self.target.port}"
        shown = await self.steering.steer_target("p", label, "drain", 3)
        self.assertEqual((shown.state, shown.weight, shown.share), ("drain", 3, 0.0))
        [counters] = (await self.steering.counters()).targets
        self.assertTrue(counters.up)  # it still serves
        await self.steering.steer_target("p", label, "down", None)
        [counters] = (await self.steering.counters()).targets
        self.assertFalse(counters.up)
        shown = await self.steering.steer_target("p", label, "ready", None)
        self.assertEqual((shown.state, shown.weight, shown.share), ("ready", 3, 1.0))

    async def test_targets_that_are_not_there(self) -> None:
        self.begin()
        with self.assertRaises(NotThere) as raised:
            await self.steering.steer_target("q", "x", "drain", None)
        self.assertEqual(str(raised.exception), "there is no pool 'q'")
        with self.assertRaises(NotThere) as raised:
            await self.steering.steer_target("p", "x", "drain", None)
        self.assertEqual(str(raised.exception), "pool 'p' has no target 'x'")

    async def test_a_relay_that_is_part_of_a_program_is_not_stopped_from_here(self) -> None:
        self.begin()
        with self.assertRaises(NotPossible):
            self.steering.drain()

    async def test_a_process_of_its_own_is_asked_to_stop(self) -> None:
        told: list[bool] = []
        relay = Relay(self.make("tcp:0:interface=127.0.0.1").config, reactor, stop=told.append)
        steering = Steering(relay, reactor)
        with self.assertRaises(NotPossible):
            steering.drain()
        relay.privilegedStartService()
        relay.startService()
        await deferLater(reactor, 0)
        steering.drain()
        steering.drain(now=True)
        self.assertEqual(told, [False, True])
        await relay.stopService()
        self.assertEqual(steering.state, "draining")


class ReloadTests(SteeringTestCase):
    def begin_with(self, read: Any) -> None:
        config = self.make("tcp:0:interface=127.0.0.1").config
        self.relay = Relay(config, reactor, read=lambda: read(config))
        self.relay.privilegedStartService()
        self.relay.startService()
        self.addCleanup(self.relay.stopService)
        self.steering = Steering(self.relay, reactor)

    async def test_what_it_changed_is_told(self) -> None:
        def read(config: Config) -> Config:
            more = PoolConfig(name="q", targets=(TargetConfig(host="127.0.0.1", port=1),))
            return evolve(config, pools=(*config.pools, more))

        self.begin_with(read)
        would = await self.steering.check()
        self.assertEqual((would.okay, would.changed), (True, "pool q added"))
        self.assertNotIn("q", self.relay.pools)
        outcome = await self.steering.reload()
        self.assertEqual((outcome.okay, outcome.changed), (True, "pool q added"))
        self.assertIn("q", self.relay.pools)
        reloads = (await self.steering.status()).reloads
        self.assertEqual((reloads.success, reloads.failure, reloads.last_result), (1, 0, "success"))
        self.assertIsNotNone(reloads.last)

    async def test_what_is_wrong_is_told(self) -> None:
        def read(config: Config) -> Config:
            raise ConfigErrors([ConfigError("a", "is wrong"), ConfigError("b", "is, too")])

        self.begin_with(read)
        expected = (False, ("a: is wrong", "b: is, too"))
        would = await self.steering.check()
        self.assertEqual((would.okay, would.errors), expected)
        outcome = await self.steering.reload()
        self.assertEqual((outcome.okay, outcome.errors), expected)
        self.assertEqual((await self.steering.counters()).reloads, {"success": 0, "failure": 1})

    async def test_a_token_is_read_anew_where_the_configuration_is_good(self) -> None:
        wrong = [ConfigErrors([ConfigError("a", "is wrong")])]

        def read(config: Config) -> Config:
            if wrong:
                raise wrong.pop()
            return config

        self.begin_with(read)
        self.relay._admin = admin = mock.Mock()
        self.addCleanup(setattr, self.relay, "_admin", None)
        self.assertFalse((await self.steering.reload()).okay)
        admin.renew_token.assert_not_called()
        self.assertTrue((await self.steering.reload()).okay)
        admin.renew_token.assert_called_once_with()

    async def test_what_takes_a_restart_is_found_by_a_check_too(self) -> None:
        self.begin_with(
            lambda config: evolve(config, relay=evolve(config.relay, admin="127.0.0.1:1"))
        )
        would = await self.steering.check()
        self.assertIn("relay.admin: '127.0.0.1:1' takes a restart", would.errors[0])
        self.assertFalse((await self.steering.reload()).okay)

    async def test_an_address_that_is_taken_is_found_by_the_reload(self) -> None:
        self.begin_with(lambda config: evolve(config, demo=False))
        with mock.patch.object(self.relay, "change", side_effect=CannotListen("it is taken")):
            outcome = await self.steering.reload()
        self.assertEqual((outcome.okay, outcome.errors), (False, ("it is taken",)))

    async def test_a_defect_of_ours_is_told_of_without_its_details(self) -> None:
        self.begin_with(lambda config: config)
        with mock.patch.object(self.relay, "change", side_effect=ZeroDivisionError("why")):
            outcome = await self.steering.reload()
        self.assertEqual(outcome.okay, False)
        self.assertNotIn("why", outcome.errors[0])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_without_a_file_there_is_nothing_that_could_be_wrong(self) -> None:
        self.begin()
        self.assertTrue((await self.steering.check()).okay)
        self.assertTrue((await self.steering.reload()).okay)
        self.assertEqual((await self.steering.counters()).reloads["success"], 1)

    async def test_one_that_stops_reads_nothing(self) -> None:
        self.begin()
        await self.relay.stopService()
        with self.assertRaises(NotPossible):
            await self.steering.reload()


class LookingOnTests(SteeringTestCase):
    async def test_sessions_are_told_of_as_they_come_and_go(self) -> None:
        self.begin(access_log="off")
        told: list[SessionEvent] = []
        leave = self.steering.subscribe(told.append)
        await self.end(*await self.session(self.relay))
        opened, ended = told
        assert isinstance(opened, SessionOpened)
        assert isinstance(ended, SessionEnded)
        self.assertEqual((opened.session, opened.client), (ended.session, ended.client))
        self.assertEqual((ended.reason, ended.bytes_up), ("done", 1))
        leave()
        await self.end(*await self.session(self.relay))
        self.assertEqual(len(told), 2)
        self.assertEqual(self.steering.events_skipped, 0)

    async def test_what_is_decided_about_a_session_is_told_step_by_step(self) -> None:
        self.begin()
        told: list[TraceStep] = []
        stop = self.steering.trace(Networks([ip_network("127.0.0.0/8")]), told.append)
        client, server = await self.session(self.relay)
        await self.end(client, server)
        label = f"127.0.0.1:{self.target.port}"
        steps = {step.step: step.detail for step in told}
        self.assertEqual(
            list(steps),
            [
                *("accepted", "admitted", "elected", "dialing", "connected", "first-byte-up"),
                *("first-byte-down", "client-ended", "upstream-ended", "ended"),
            ],
        )
        self.assertEqual(steps["elected"], f"{label}: the only one")
        self.assertEqual(steps["dialing"], label)
        self.assertEqual(steps["ended"], "done (--); 1 byte up, 1 down")
        self.assertEqual({step.session for step in told}, {self.logged()[0]["session"]})
        stop()
        await self.end(*await self.session(self.relay))
        self.assertEqual(len(told), len(steps))

    async def test_others_are_not_followed(self) -> None:
        self.begin()
        told: list[TraceStep] = []
        self.steering.trace(Networks([ip_network("192.0.2.0/24")]), told.append)
        await self.end(*await self.session(self.relay))
        self.assertEqual(told, [])

    async def test_a_session_that_lasts_is_told_of_again_and_again(self) -> None:
        self.begin(access_log_interval=0.05)
        client, server = await self.session(self.relay)
        while len(lines := self.logged()) < 2:
            await deferLater(reactor, 0.01)
        await self.end(client, server)
        self.assertEqual({line["reason"] for line in lines}, {"progress"})
        self.assertEqual({line["code"] for line in lines}, {"--"})
        ended = [line for line in self.logged() if line["reason"] == "done"]
        self.assertEqual([line["session"] for line in ended], [lines[0]["session"]])


class WithoutTests(SynchronousTestCase):
    def test_a_relay_that_nobody_asks_has_no_web_server_in_memory(self) -> None:
        heavy = ("twisted.web.server", "prometheus_client", "rich", "click", "fwdrelay.admin")
        say = f"import sys, fwdrelay.relay, fwdrelay.tap; print([m for m in {heavy} if m in sys.modules])"
        found = subprocess.run(
            [sys.executable, "-c", say], capture_output=True, text=True, check=True
        )
        self.assertEqual(found.stdout, "[]\n")
