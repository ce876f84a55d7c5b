"""A configuration that is changed while it runs: nobody notices who isn't meant to."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.scenarios.configured import IN_FORCE, UNCHANGED, ConfiguredRelay
from tests.scenarios.programs import folder, free_port, skip_unless_installed
from tests.scenarios.relay_process import (
    Upstream,
    read_all,
    read_exactly,
    read_until_reset,
    wait_until,
)
from tests.scenarios.scenario import Scenario
from tests.scenarios.test_nginx import nginx, wrk

ANY_PORT = '"tcp:0:interface=127.0.0.1"'


def web(*targets: str, listen: str = ANY_PORT, more: str = "", relay: str = "") -> str:
    """One listener, one pool of these targets."""
    return f"""
[relay]
{relay}
[[listener]]
name = "web"
listen = [{listen}]
pool = "web"
[pool.web]
targets = {list(targets)}
{more}
"""


class Reload(Scenario, every_pump=False):
    @contextmanager
    def configured(self, text: str, *options: str) -> Iterator[ConfiguredRelay]:
        with ConfiguredRelay(self.path("fwdrelay.toml"), text, *options) as relay:
            yield relay
            if relay.process.poll() is None:
                relay.wait_for_descriptors(relay.at_rest)

    def test_new_sessions_see_the_new_world_and_old_ones_the_old(self) -> None:
        with (
            Upstream() as old,
            Upstream() as new,
            self.configured(web(old.target)) as relay,
            relay.connect() as first,
            old.accept() as first_server,
        ):
            relay.reload(web(new.target))
            relay.wait_for_line("in force: pool web changed")
            with relay.connect() as second, new.accept() as second_server:
                for client, server in ((first, first_server), (second, second_server)):
                    client.sendall(b"question")
                    self.assertEqual(read_exactly(server, 8), b"question")
                    server.sendall(b"answer")
                    self.assertEqual(read_exactly(client, 6), b"answer")

    def test_a_bad_file_changes_nothing_and_says_all_that_is_wrong(self) -> None:
        with Upstream() as upstream, self.configured(web(upstream.target)) as relay:
            bad = web("127.0.0.1:99999", more='retries = "x"\nqeue = "5s"')
            lines = "\n".join(relay.reload(bad, UNCHANGED))
            for words in ("pool.web.targets[0]", "pool.web.retries", "pool.web.qeue", "3 things"):
                self.assertIn(words, lines)
            lines = "\n".join(relay.reload("[relay\n", UNCHANGED))
            self.assertIn("line 1", lines)
            relay.file.unlink()
            lines = "\n".join(relay.reload(outcome=UNCHANGED))
            self.assertIn("No such file", lines)
            with relay.connect() as client, upstream.accept() as server:
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(server), b"")

    def test_what_takes_a_restart_is_refused(self) -> None:
        with Upstream() as upstream, self.configured(web(upstream.target)) as relay:
            other = web("127.0.0.1:9", relay='pump = "buffered"\nkeepalive = "10s"')
            lines = "\n".join(relay.reload(other, UNCHANGED))
            self.assertIn("relay.pump: 'buffered' takes a restart; it is 'auto' now", lines)
            self.assertIn("relay.keepalive: '10s' takes a restart; it is '60s' now", lines)
            with relay.connect(), upstream.accept():
                pass

    def test_the_same_again(self) -> None:
        with Upstream() as upstream, self.configured(web(upstream.target)) as relay:
            relay.reload()
            relay.wait_for_line("in force: nothing in it has changed")

    def test_the_same_in_another_order(self) -> None:
        with Upstream() as upstream:
            other = '[pool.other]\ntargets = ["127.0.0.1:9"]\n'
            with self.configured(web(upstream.target) + other) as relay:
                relay.reload(other + web(upstream.target))
                relay.wait_for_line("in force: only the order of its tables has changed")
                with relay.connect(), upstream.accept():
                    pass

    def test_listeners_come_and_go(self) -> None:
        with Upstream() as upstream, self.configured(web(upstream.target)) as relay:
            second = f'[[listener]]\nname = "two"\nlisten = [{ANY_PORT}]\npool = "web"\n'
            relay.reload(web(upstream.target) + second)
            with relay.connect_to("two"), upstream.accept():
                pass
            with relay.connect_to("web"), upstream.accept():
                pass
            relay.reload(web(upstream.target))
            relay.wait_for_line("in force: listener two removed")
            wait_until(lambda: self.is_refused(relay, "two"))
            with relay.connect_to("web"), upstream.accept():
                pass

    def test_an_address_that_is_removed_may_be_wanted_again_at_once(self) -> None:
        with Upstream() as upstream, self.configured(web(upstream.target)) as relay:
            port = free_port()
            second = f'[[listener]]\nname = "two"\nlisten = ["tcp:{port}"]\npool = "web"\n'
            for _ in range(20):
                start = len(relay.lines)
                relay.write(web(upstream.target) + second)
                relay.signal(signal.SIGHUP)
                relay.write(web(upstream.target))
                relay.signal(signal.SIGHUP)
                relay.reload(web(upstream.target) + second)
                self.assertNotIn(UNCHANGED, "\n".join(relay.lines[start:]))
            relay.reload(web(upstream.target))

    def is_refused(self, relay: ConfiguredRelay, name: str) -> bool:
        """Whether nobody listens there any more."""
        try:
            relay.connect_to(name).close()
        except ConnectionRefusedError:
            return True
        return False

    def test_sessions_of_a_listener_that_is_removed_have_the_drain_time(self) -> None:
        two = '[[listener]]\nname = "two"\nlisten = ["tcp:0:interface=127.0.0.1:backlog=9"]\npool = "web"\n'
        with (
            Upstream() as upstream,
            self.configured(web(upstream.target, relay='drain_timeout = "200ms"') + two) as relay,
            relay.connect_to("two") as client,
            upstream.accept() as server,
            relay.connect_to("web") as other,
            upstream.accept() as other_server,
        ):
            other.sendall(b"!")
            read_exactly(other_server, 1)
            relay.reload(web(upstream.target, relay='drain_timeout = "200ms"'))
            read_until_reset(client)
            read_until_reset(server)
            (entry,) = relay.ended()
            self.assertEqual((entry["listener"], entry["reason"]), ("two", "drain-timeout"))
            other.sendall(b"still there")
            self.assertEqual(read_exactly(other_server, 11), b"still there")

    def test_an_address_changes_hands_without_being_closed(self) -> None:
        path = os.path.join(self.folder(), "s")
        listen = f'"unix:{path}"'
        with (
            Upstream() as old,
            Upstream() as new,
            self.configured(web(old.target, listen=listen)) as relay,
        ):
            inode = os.stat(path).st_ino
            other = web(new.target, listen=listen).replace('name = "web"', 'name = "other"')
            relay.reload(other)
            relay.wait_for_line("in force: listener other added")
            self.assertEqual(os.stat(path).st_ino, inode)
            with relay.connect(), new.accept():
                pass
            (entry,) = relay.ended()
            self.assertEqual(entry["listener"], "other")

    def test_an_address_that_is_taken_changes_nothing(self) -> None:
        with (
            Upstream() as upstream,
            socket.create_server(("127.0.0.1", 0)) as taken,
            self.configured(web(upstream.target)) as relay,
        ):
            port = taken.getsockname()[1]
            listen = f'{ANY_PORT.replace("0:", "0:backlog=7:")}, "tcp:{port}:interface=127.0.0.1"'
            lines = relay.reload(web("127.0.0.1:9", listen=listen), UNCHANGED)
            self.assertIn("Address already in use", "\n".join(lines))
            with relay.connect(), upstream.accept():
                relay.wait_for_descriptors(relay.at_rest + 2)  # those of this session

    def test_sessions_on_a_target_that_is_removed_are_closed_if_that_is_wanted(self) -> None:
        close = 'on_target_down = "close"'
        with (
            Upstream() as old,
            Upstream() as new,
            self.configured(web(old.target, more=close)) as relay,
            relay.connect() as client,
            old.accept() as server,
        ):
            client.sendall(b"!")
            read_exactly(server, 1)
            relay.reload(web(new.target, more=close))
            read_until_reset(client)
            read_until_reset(server)
            self.has_ended(relay, "target-down", "DD", target=old.target)

    def test_the_access_log_moves(self) -> None:
        log = self.path("access.log")
        with Upstream() as upstream, self.configured(web(upstream.target)) as relay:
            relay.reload(web(upstream.target, relay=f'access_log = "{log}"'))
            with relay.connect(), upstream.accept():
                pass
            wait_until(lambda: '"reason"' in log.read_text())
            moved = log.with_suffix(".1")
            log.rename(moved)
            relay.reload()
            with relay.connect(), upstream.accept():
                pass
            wait_until(lambda: '"reason"' in log.read_text())
            folder = log.parent / "no" / "such"
            lines = relay.reload(web(upstream.target, relay=f'access_log = "{folder}"'), UNCHANGED)
            self.assertIn("No such file", "\n".join(lines))
            relay.reload(web(upstream.target))

    def test_limits_change_for_those_who_come(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(web(upstream.target)) as relay,
            relay.connect(),
            upstream.accept(),
        ):
            limited = web(upstream.target).replace("pool =", "max_sessions = 1\npool =")
            relay.reload(limited)
            relay.turn_away()
            self.assertEqual(relay.ended()[0]["reason"], "max-sessions")

    def test_options_of_the_command_line_still_win(self) -> None:
        log = self.path("access.log")
        text = 'access_log = "off"'
        with Upstream() as upstream:
            options = ("--access-log", str(log))
            with self.configured(web(upstream.target, relay=text), *options) as relay:
                relay.reload(web(upstream.target, relay=text + '\ndrain_timeout = "5s"'))
                with relay.connect(), upstream.accept():
                    pass
                wait_until(lambda: '"reason"' in log.read_text())

    def test_without_a_file_there_is_nothing_to_read(self) -> None:
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            relay.signal(signal.SIGHUP)
            relay.wait_for(lambda line: "no configuration file to read" in line)


class UnderLoad(Scenario, every_pump=False):
    def test_fifty_reloads_while_requests_run_cost_none_of_them(self) -> None:
        skip_unless_installed("nginx", "wrk")
        with contextlib.ExitStack() as stack:
            places = [stack.enter_context(folder()) for _ in range(4)]
            ports = [stack.enter_context(nginx(place)) for place in places[:3]]
            text = self.configuration(0, ports)
            relay = stack.enter_context(ConfiguredRelay(places[3] / "fwdrelay.toml", text))
            listener = relay.listener("web")
            assert isinstance(listener, tuple)
            with ThreadPoolExecutor() as pool:
                # Each request is a session of its own, and an old one: both kinds are on the way.
                running = [
                    pool.submit(wrk, place, listener[1], *options)
                    for place, options in (
                        (self.script(places[0], "a"), ("--header", "Connection: close")),
                        (self.script(places[1], "b"), ()),
                    )
                ]
                reloads = 0
                while not all(each.done() for each in running) or reloads < 50:
                    reloads += 1
                    relay.reload(self.configuration(reloads, ports))
                counts = [each.result() for each in running]
            self.assertGreaterEqual(reloads, 50)
            self.assertTrue(all(counts), counts)
            targets = Counter(entry["target"] for entry in relay.ended(counts[0]))
            self.assertEqual(set(targets), {f"127.0.0.1:{port}" for port in ports})
            self.assertTrue(any(IN_FORCE in line and "pool" in line for line in relay.lines))

    def script(self, place: Path, name: str) -> Path:
        """A folder for that wrk's own script."""
        path = place / name
        path.mkdir()
        return path

    def configuration(self, turn: int, ports: list[int]) -> str:
        """
        Targets are added, removed, reweighted, and moved between pools; a listener, a pool and limits come
        and go; one port always leads to servers.
        """
        first, second, third = (f"127.0.0.1:{port}" for port in ports)
        web_pool, other = (
            ([first, f"{second},weight={1 + turn % 3}"], [third]),
            ([first, third], [second]),
            ([f"{second},weight=2", third], [first]),
            ([first, second, f"{third},backup"], []),
        )[turn % 4]
        balance = ("round-robin", "least-sessions", "random-two", "source-hash")[turn // 4 % 4]
        text = web(
            *web_pool,
            more=f'balance = "{balance}"\nretries = {turn % 3}\n[pool.web.health]\n'
            f'check = "{"tcp" if turn % 5 else "off"}"\n',
        )
        if other:
            text += (
                f'[pool.other]\ntargets = {other}\n[[listener]]\nname = "other"\npool = "other"\n'
            )
            text += f"listen = [{ANY_PORT.replace('0:', '0:backlog=8:')}]\n"
            if turn % 2:
                text += '[[listener.route]]\nclient = ["10.0.0.0/8"]\npool = "web"\n'
        return text
