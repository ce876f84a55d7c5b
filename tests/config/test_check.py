"""`fwdrelay.config.check`: what does not fit, and what fits."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from fwdrelay.config import (
    Config,
    HealthConfig,
    IdentityPattern,
    ListenerConfig,
    ListenerTLSConfig,
    PoolConfig,
    ProxyProtocolConfig,
    RelayConfig,
    RouteConfig,
    SNIConfig,
    UpstreamTLSConfig,
)
from fwdrelay.config.check import Finding, did_you_mean, place_text, problems
from fwdrelay.config.grammar import parse_discover, parse_network, parse_target
from fwdrelay.errors import ConfigError
from tests.case import SynchronousTestCase

ANYBODY = (parse_network("10.0.0.0/8"),)


def listener(
    *listen: str, name: str = "web", pool: str = "web", routes: tuple[RouteConfig, ...] = ()
) -> ListenerConfig:
    """One that is all right."""
    return ListenerConfig(name=name, listen=listen or ("tcp:5678",), pool=pool, routes=routes)


def pool(*targets: str, name: str = "web", discover: tuple[str, ...] = ()) -> PoolConfig:
    """One that is all right."""
    return PoolConfig(
        name=name,
        targets=tuple(map(parse_target, targets)),
        discover=tuple(map(parse_discover, discover)),
    )


class CheckTestCase(SynchronousTestCase):
    def found(self, *parts: ListenerConfig | PoolConfig, demo: bool = False) -> dict[str, str]:
        """What is wrong, by its place; at each, one thing."""
        told = problems(
            Config(
                listeners=tuple(each for each in parts if isinstance(each, ListenerConfig)),
                pools=tuple(each for each in parts if isinstance(each, PoolConfig)),
                demo=demo,
            )
        )
        by_place = {each.where: each.problem for each in told}
        self.assertEqual(len(by_place), len(told), told)
        return by_place

    def one(self, *parts: ListenerConfig | PoolConfig) -> tuple[str, str]:
        """The one thing that is wrong."""
        ((where, problem),) = self.found(*parts).items()
        return where, problem

    def fine(self, *parts: ListenerConfig | PoolConfig, demo: bool = False) -> None:
        self.assertEqual(self.found(*parts, demo=demo), {})


class ListenerTests(CheckTestCase):
    def test_the_least(self) -> None:
        self.fine(listener(), pool("localhost:80"))

    def test_no_listener(self) -> None:
        where, problem = self.one(pool("localhost:80"))
        self.assertEqual(where, "listener")
        self.assertIn("[[listener]]", problem)

    def test_one_name_twice(self) -> None:
        where, problem = self.one(listener(), listener("tcp:1"), pool("a:1"))
        self.assertEqual(where, "listener[1].name")
        self.assertIn("listener[0] is called 'web', too", problem)

    def test_nothing_to_listen_on(self) -> None:
        where, problem = self.one(evolve(listener(), listen=()), pool("a:1"))
        self.assertEqual(where, "listener[0].listen")
        self.assertIn('listen = ["tcp:5678"]', problem)

    def test_endpoints_that_exclude_each_other(self) -> None:
        for one, other in (
            ("tcp:1", "tcp:1"),
            ("tcp:1", "tcp6:1"),
            ("tcp:1", "tcp:1:interface=127.0.0.1"),
            ("tcp:1:interface=127.0.0.1", "tcp6:1"),
            (r"tcp:1:interface=\:\:1", r"tcp6:1:interface=0\:0\:\:1"),
            (r"tcp:1:interface=\:\:ffff\:127.0.0.1", "tcp:1:interface=127.0.0.1"),
            ("tcp:1:interface=localhost", "tcp:1:interface=127.0.0.1"),
            ("tcp:1:interface=a.example", "tcp:1:interface=a.example"),
            ("unix:/a", "unix:/a:mode=600"),
            ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0"),
        ):
            for first, second in ((one, other), (other, one)):
                two = (listener(first), listener(second, name="b"))
                where, problem = self.one(*two, pool("a:2"))
                self.assertEqual(where, "listener[1].listen")
                for words in (repr(first), repr(second), "at listener[0].listen"):
                    self.assertIn(words, problem)
        where, problem = self.one(listener("tcp:1", "tcp:2", "tcp:1"), pool("a:2"))
        self.assertEqual(where, "listener[0].listen")
        self.assertIn("here", problem)

    def test_endpoints_that_do_not(self) -> None:
        self.fine(
            listener(
                *("tcp:0", "tcp:0", "tcp:1", r"tcp:2:interface=\:\:1", "tcp:2"),
                *("tcp:3:interface=127.0.0.1", "tcp:3:interface=127.0.0.2", "unix:/a", "unix:/b"),
                *("systemd:domain=INET:index=0", "systemd:domain=INET:index=1"),
            ),
            pool("a:2"),
        )

    def test_sessions_that_go_nowhere(self) -> None:
        where, problem = self.one(listener(pool=""), pool("a:1"))
        self.assertEqual(where, "listener[0]")
        self.assertIn("[[listener.route]]", problem)
        routes = (RouteConfig(client=ANYBODY, pool="web"),)
        self.fine(listener(pool="", routes=routes), pool("a:1"))

    def test_a_route_that_takes_everybody(self) -> None:
        routes = (RouteConfig(client=ANYBODY, pool="web"), RouteConfig(pool="web"))
        where, problem = self.one(listener(routes=routes), pool("a:1"))
        self.assertEqual(where, "listener[0].route[1]")
        self.assertIn("take everybody", problem)

    def test_any_condition_of_a_route_is_one(self) -> None:
        routes = (
            RouteConfig(sni=("a.example",), pool="web"),
            RouteConfig(alpn=("h2",), pool="web"),
            RouteConfig(client=ANYBODY, pool="web"),
            RouteConfig(sni=("a.example",), pool="web"),  # never come to, and fine
        )
        self.fine(listener(routes=routes), pool("a:1"))

    def test_networks_to_believe_where_no_header_is_read(self) -> None:
        proxied = ProxyProtocolConfig(trusted=ANYBODY)
        where, problem = self.one(evolve(listener(), proxy_protocol=proxied), pool("a:1"))
        self.assertEqual(where, "listener[0].proxy_protocol.trusted")
        self.assertIn('accept = "required"', problem)
        for proxied in (
            ProxyProtocolConfig(accept="optional", trusted=ANYBODY),
            ProxyProtocolConfig(accept="required", trusted=ANYBODY),
            ProxyProtocolConfig(accept="required"),
        ):
            self.fine(evolve(listener(), proxy_protocol=proxied), pool("a:1"))

    def test_pools_that_do_not_exist(self) -> None:
        routes = (RouteConfig(client=ANYBODY, pool="databse"),)
        told = self.found(
            listener(pool="zzz", routes=routes), pool("a:1"), pool("b:1", name="database")
        )
        self.assertEqual(
            told,
            {
                "listener[0].pool": "there is no pool 'zzz'; there is web, database",
                "listener[0].route[0].pool": "there is no pool 'databse'; did you mean database?",
            },
        )
        self.assertEqual(
            self.one(listener()), ("listener[0].pool", "there is no pool 'web', nor any other")
        )

    def test_a_pool_that_nobody_uses_is_fine(self) -> None:
        self.fine(listener(), pool("a:1"), pool("b:1", name="spare"))


class ListenerTLSTests(CheckTestCase):
    TLS = ListenerTLSConfig(certificate=("ec.pem", "rsa.pem"))

    def terminating(
        self, tls: ListenerTLSConfig, *routes: RouteConfig
    ) -> tuple[ListenerConfig, PoolConfig]:
        """A relay that has this TLS and these routes, and is all right else."""
        return evolve(listener(routes=routes), tls=tls), pool("a:1")

    def test_keys(self) -> None:
        for fitting in ((), ("ec.key", "rsa.key")):
            self.fine(*self.terminating(evolve(self.TLS, key=fitting)))
        for key in (("ec.key",), ("a", "b", "c")):
            where, problem = self.one(*self.terminating(evolve(self.TLS, key=key)))
            self.assertEqual(where, "listener[0].tls.key")
            self.assertIn(f"their number is {len(key)}, that of certificates 2", problem)

    def test_no_certificates_and_no_names(self) -> None:
        where, problem = self.one(*self.terminating(evolve(self.TLS, certificate=(), key=("a",))))
        self.assertEqual(where, "listener[0].tls.certificate")
        self.assertIn('write "web.pem"', problem)
        other = SNIConfig(names=(), certificate=("a.pem",))
        where, problem = self.one(*self.terminating(evolve(self.TLS, sni=(other,))))
        self.assertEqual(where, "listener[0].tls.sni[0].names")
        self.assertIn('["*.example.com"]', problem)

    def test_keys_of_other_certificates(self) -> None:
        other = SNIConfig(names=("a.example",), certificate=("a.pem",), key=("a.key", "b.key"))
        where, problem = self.one(*self.terminating(evolve(self.TLS, sni=(other,))))
        self.assertEqual(where, "listener[0].tls.sni[0].key")
        self.assertIn("in the same order", problem)

    def test_who_may_enter_of_clients_that_are_not_asked(self) -> None:
        tls = evolve(self.TLS, allow_identities=(IdentityPattern("cn", "web"),))
        where, problem = self.one(*self.terminating(tls))
        self.assertEqual(where, "listener[0].tls.allow_identities")
        self.assertIn("client_ca", problem)
        self.fine(*self.terminating(evolve(tls, client_ca="ca.pem")))
        self.fine(*self.terminating(evolve(self.TLS, require_client_certificate=False)))

    def test_server_names_that_are_there_twice(self) -> None:
        def others(*names: tuple[str, ...]) -> tuple[ListenerConfig, PoolConfig]:
            sni = tuple(SNIConfig(names=each, certificate=("a.pem",)) for each in names)
            return self.terminating(evolve(self.TLS, sni=sni))

        where, problem = self.one(*others(("a.example", "b.example"), ("c.example", "b.example")))
        self.assertEqual(where, "listener[0].tls.sni[1].names")
        self.assertEqual(
            problem,
            "'b.example' has its certificate at listener[0].tls.sni[0].names already: leave one out",
        )
        where, problem = self.one(*others(("a.example", "a.example", "a.example")))
        self.assertEqual(where, "listener[0].tls.sni[0].names")
        self.assertIn("'a.example' is there twice", problem)
        self.fine(*others(("a.example", "*.a.example"), ("*.example", "b.a.example")))

    def test_protocols_that_nobody_agrees_on(self) -> None:
        route = RouteConfig(alpn=("h2", "h3"), pool="web")
        for alpn, words in ((("http/1.1", "h1"), "only http/1.1, h1 can"), ((), "nothing can")):
            where, problem = self.one(*self.terminating(evolve(self.TLS, alpn=alpn), route))
            self.assertEqual(where, "listener[0].route[0].alpn")
            self.assertIn(words, problem)
            self.assertIn("see listener[0].tls.alpn", problem)
        self.fine(*self.terminating(evolve(self.TLS, alpn=("http/1.1", "h2")), route))
        self.fine(listener(routes=(route,)), pool("a:1"))  # which looks at what is offered


class PoolTests(CheckTestCase):
    def test_no_targets(self) -> None:
        where, problem = self.one(listener(), pool())
        self.assertEqual(where, "pool.web")
        self.assertIn('targets = ["localhost:80"]', problem)
        self.fine(listener(), pool(discover=("dns:a:80",)))
        self.fine(listener(), pool(), demo=True)

    def test_backups_only_is_fine(self) -> None:
        self.fine(listener(), pool("a:1,backup"))

    def test_one_label_twice(self) -> None:
        where, problem = self.one(listener(), pool("a:1", "b:1", "a:1", "a:1"))
        self.assertEqual(where, "pool.web.targets")
        self.assertEqual(problem, "'a:1' is there twice: give one a ,name=LABEL")
        self.one(listener(), pool("a:1,name=b", "c:1,name=b"))
        self.fine(listener(), pool("a:1", "a:1,name=b"), pool("a:1", name="other"))

    def test_targets_that_cannot_be_dialed_from_the_source_address(self) -> None:
        bound = evolve(pool("10.0.0.7:80", "a:1", "[::1]:80", "unix:/a"), bind="10.0.0.2")
        self.assertEqual(
            self.one(listener(), bound),
            (
                "pool.web.targets",
                "'[::1]:80' can't be dialed from 10.0.0.2, which `bind` says",
            ),
        )

    def test_one_discovery_twice(self) -> None:
        where, problem = self.one(listener(), pool(discover=("dns:a:1", "dns:a:1,backup")))
        self.assertEqual(where, "pool.web")
        self.assertIn("'dns:a:1' is there twice", problem)

    def test_a_queue_without_limits(self) -> None:
        queue = evolve(pool("a:1", discover=("dns:a:80",)), queue=5.0)
        where, problem = self.one(listener(), queue)
        self.assertEqual(where, "pool.web.queue")
        self.assertIn("max_sessions", problem)

    def test_queues_with_limits(self) -> None:
        for each in (
            evolve(pool("a:1"), max_sessions=1),
            pool("a:1", "b:1,max-sessions=1"),
            pool("a:1", discover=("dns:a:80,max-sessions=1",)),
            pool("a:1", discover=("file:/a",)),  # which may give targets limits
            pool("a:1", discover=("etcd:/a",)),
        ):
            self.fine(listener(), evolve(each, queue=5.0))

    def test_what_goes_with_one_check_only(self) -> None:
        for key, value, check in (
            ("send", "PING", "http"),
            ("expect", "PONG", "off"),
            ("path", "/health", "tcp"),
        ):
            health = HealthConfig(check=check, **{key: value})  # type: ignore[arg-type]
            where, problem = self.one(listener(), evolve(pool("a:1"), health=health))
            self.assertEqual(where, f"pool.web.health.{key}")
            self.assertIn(f'check is "{check}"', problem)
        for health in (
            HealthConfig(check="tcp", send="PING", expect="PONG"),
            HealthConfig(check="http", path="/health"),
        ):
            self.fine(listener(), evolve(pool("a:1"), health=health))


class UpstreamTLSTests(CheckTestCase):
    def originating(self, *targets: str, **tls: Any) -> tuple[ListenerConfig, PoolConfig]:
        """A relay whose pool has this TLS."""
        return listener(), evolve(pool(*targets), tls=UpstreamTLSConfig(**tls))

    def test_what_is_fine(self) -> None:
        for tls in (
            {},
            {"certificate": "a.pem"},
            {"certificate": "a.pem", "key": "a.key"},
            {"verify": False, "ca": "ca.pem", "name": "a.example"},
        ):
            self.fine(*self.originating("a:1", "[::1]:1", **tls))

    def test_a_key_alone(self) -> None:
        where, problem = self.one(*self.originating("a:1", key="a.key"))
        self.assertEqual(where, "pool.web.tls.key")
        self.assertIn("it goes with a certificate", problem)

    def test_sockets_without_a_name_to_verify(self) -> None:
        where, problem = self.one(*self.originating("a:1", "unix:/a", "unix:/b"))
        self.assertEqual(where, "pool.web.tls.name")
        self.assertIn("'unix:/a' is no name", problem)
        self.fine(*self.originating("unix:/a", name="a.example"))
        self.fine(*self.originating("unix:/a", verify=False))

    def test_every_check_goes_with_it(self) -> None:
        for check in ("tcp", "tls", "http"):
            front, back = self.originating("a:1")
            self.fine(front, evolve(back, health=HealthConfig(check=check)))


class CircleTests(CheckTestCase):
    def test_targets_that_are_the_listener_itself(self) -> None:
        for listen, target in (
            ("tcp:5678", "localhost:5678"),
            ("tcp:5678", "LocalHost.:5678"),
            ("tcp:5678", "127.0.0.1:5678"),
            ("tcp:5678", "127.1.2.3:5678"),
            ("tcp:5678", "0.0.0.0:5678"),
            ("tcp6:5678", "127.0.0.1:5678"),
            ("tcp6:5678", "[::1]:5678"),
            ("tcp6:5678", "[::]:5678"),
            (r"tcp:5678:interface=\:\:", "localhost:5678"),
            (r"tcp:5678:interface=\:\:1", "localhost:5678"),
            ("tcp:5678:interface=127.0.0.1", "localhost:5678"),
            ("tcp:5678:interface=127.0.0.1", "[::ffff:127.0.0.1]:5678"),
            ("tcp:5678:interface=10.0.0.1", "10.0.0.1:5678"),
            ("tcp:5678:interface=a.example", "a.example:5678"),
            ("unix:/run/a", "unix:/run/a"),
            ("unix:@a", "unix:@a"),
        ):
            where, problem = self.one(listener(listen), pool("b:1", target))
            self.assertEqual(where, "pool.web.targets", (listen, target))
            self.assertIn("listener 'web'", problem)
            self.assertIn("round in a circle", problem)

    def test_targets_that_are_not(self) -> None:
        for listen, target in (
            ("tcp:5678", "localhost:5679"),
            ("tcp:5678", "[::1]:5678"),
            ("tcp:5678", "10.0.0.1:5678"),
            ("tcp:5678", "a.example:5678"),
            ("tcp:5678:interface=127.0.0.1", "127.0.0.2:5678"),
            (r"tcp:5678:interface=\:\:1", "127.0.0.1:5678"),
            ("tcp:5678:interface=a.example", "b.example:5678"),
            ("unix:/run/a", "unix:/run/b"),
            ("systemd:domain=INET:index=0", "localhost:5678"),
        ):
            self.fine(listener(listen), pool(target))
        self.fine(listener("tcp:5678"), pool("localhost:5678"), demo=True)

    def test_a_longer_way_round(self) -> None:
        three = (
            listener("tcp:1", name="a", pool="a"),
            listener("tcp:2", name="b", pool="b"),
            listener("unix:/c", name="c", pool="c"),
        )
        pools = (pool("localhost:2", name="a"), pool("unix:/c", name="b"))
        self.fine(*three, *pools, pool("localhost:80", name="c"))
        told = self.found(*three, *pools, pool("localhost:1", name="c"))
        self.assertEqual(list(told), [f"pool.{name}.targets" for name in "abc"])

    def test_a_chain_that_leads_into_a_circle(self) -> None:
        told = self.found(
            listener("tcp:1", name="a", pool="a"),
            listener("tcp:2", name="b", pool="b"),
            pool("localhost:2", name="a"),
            pool("localhost:2", name="b"),
        )
        self.assertEqual(list(told), ["pool.b.targets"])

    def test_round_by_a_route(self) -> None:
        routes = (RouteConfig(client=ANYBODY, pool="back"),)
        where, _ = self.one(
            listener(routes=routes), pool("a:1"), pool("localhost:5678", name="back")
        )
        self.assertEqual(where, "pool.back.targets")


class MoreTests(SynchronousTestCase):
    def test_what_else_is_wrong_comes_behind(self) -> None:
        config = Config(listeners=(), pools=())
        more = [ConfigError("pool.web.balance", "no such plugin")]
        self.assertEqual(
            [each.where for each in problems(config, lambda _: more)],
            ["listener", "pool.web.balance"],
        )

    def test_files_of_tls_that_is_wrong_are_not_looked_at(self) -> None:
        good = Config(
            listeners=(evolve(listener(), tls=ListenerTLSConfig(certificate=("a.pem",))),),
            pools=(evolve(pool("a:1"), tls=UpstreamTLSConfig()),),
        )
        wrong = Config(
            listeners=(
                evolve(listener(), tls=ListenerTLSConfig(certificate=("a",), key=("a", "b"))),
            ),
            pools=(evolve(pool("a:1"), tls=UpstreamTLSConfig(key="a.key")),),
        )
        seen: list[Config] = []

        def more(config: Config) -> list[ConfigError]:
            seen.append(config)
            return []

        self.assertEqual(problems(good, more), [])
        self.assertEqual(len(problems(wrong, more)), 2)
        one, other = seen
        self.assertEqual(one, good)
        self.assertEqual(other, Config(listeners=(listener(),), pools=(pool("a:1"),)))


class PlacesTests(SynchronousTestCase):
    def test_as_an_operator_writes_them(self) -> None:
        for place, text in (
            (("listener", 0, "timeouts", "idle"), "listener[0].timeouts.idle"),
            (("pool", "web", "targets", 1), "pool.web.targets[1]"),
            (("pool", "a.b", "queue"), 'pool."a.b".queue'),
            (("pool", 'a"b'), r'pool."a\"b"'),
            (("pool", "a\n\x7f\u2028\U000e0001é"), r'pool."a\n\u007f\u2028\U000e0001é"'),
        ):
            self.assertEqual(place_text(place), text)

    def test_what_was_concluded_from_what_is_not_known(self) -> None:
        found = Finding(("pool", "a", "queue"), "", (("pool", "a", "queue"), ("pool", "a", "b")))
        for unread, holds in (
            ((), True),
            ((("pool", "b"),), True),
            ((("pool", "a", "c"),), True),
            ((("pool", "a", "b"),), False),
            ((("pool", "a", "b", 3),), False),
            ((("pool",),), False),
        ):
            self.assertEqual(found.holds_without(unread), holds, unread)

    def test_did_you_mean(self) -> None:
        self.assertEqual(did_you_mean("idel", ["idle", "x"]), "; did you mean idle?")
        self.assertEqual(did_you_mean("idel", ["x"]), "")


class WorkersTests(SynchronousTestCase):
    def found(self, **relay: Any) -> list[str]:
        config = Config(listeners=(listener(),), pools=(pool("h:1"),), relay=RelayConfig(**relay))
        return [str(each) for each in problems(config)]

    def test_what_survives_needs_workers(self) -> None:
        [told] = self.found(survive_crashes=True)
        self.assertEqual(
            told,
            "relay.survive_crashes: it needs workers, and there are none: have one of them at least",
        )

    def test_what_survives_needs_a_pump_that_leaves_it_to_the_kernel(self) -> None:
        [told] = self.found(survive_crashes=True, workers=2, pump="buffered")
        self.assertIn("relay.survive_crashes: ", told)
        self.assertIn("pump is buffered: take splice, or auto", told)

    def test_what_fits(self) -> None:
        for relay in (
            {"workers": 1, "survive_crashes": True},
            {"workers": 64, "survive_crashes": True, "pump": "splice"},
            {"workers": 2, "pump": "buffered"},
        ):
            self.assertEqual(self.found(**relay), [])


class AdminTests(SynchronousTestCase):
    def found(self, **relay: Any) -> list[str]:
        config = Config(listeners=(listener(),), pools=(pool("h:1"),), relay=RelayConfig(**relay))
        return [str(each) for each in problems(config)]

    def test_what_other_machines_reach_takes_a_token(self) -> None:
        [told] = self.found(admin="0.0.0.0:9678")
        self.assertIn("relay.admin: 0.0.0.0:9678 can be reached from other machines", told)
        self.assertEqual(self.found(admin="0.0.0.0:9678", admin_token_file="/t"), [])
        for admin in ("127.0.0.1:9678", "[::1]:9678", "unix:/run/a"):
            self.assertEqual(self.found(admin=admin), [])

    def test_a_token_for_nothing(self) -> None:
        [told] = self.found(admin_token_file="/t")
        self.assertEqual(told, "relay.admin_token_file: it goes with admin, which is off")
