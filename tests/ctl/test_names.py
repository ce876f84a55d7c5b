"""Which target is meant."""

from __future__ import annotations

from attrs import evolve

from fwdrelay.ctl.exits import NoSuchThing
from fwdrelay.ctl.names import Ambiguous, find_target, target_path
from fwdrelay.observe.snapshot import PoolShown
from tests.case import SynchronousTestCase
from tests.ctl.fake_relay import POOL, TARGET


def pool(name: str, *labels: str) -> PoolShown:
    return evolve(POOL, name=name, targets=tuple(evolve(TARGET, name=each) for each in labels))


POOLS = (
    pool("web", "a:80", "unix:/run/x.sock", "both"),
    pool("db", "b:5432", "both", "web/odd"),
    pool("odd", "web/a:80"),
    pool("empty"),
)


class FindingTests(SynchronousTestCase):
    def found(self, text: str) -> tuple[str, str]:
        in_pool, target = find_target(text, POOLS)
        return in_pool.name, target.name

    def test_by_pool_and_label(self) -> None:
        self.assertEqual(self.found("web/both"), ("web", "both"))
        self.assertEqual(self.found("web/unix:/run/x.sock"), ("web", "unix:/run/x.sock"))
        self.assertEqual(self.found("db/web/odd"), ("db", "web/odd"))

    def test_by_the_label_alone(self) -> None:
        self.assertEqual(self.found("b:5432"), ("db", "b:5432"))
        self.assertEqual(self.found("unix:/run/x.sock"), ("web", "unix:/run/x.sock"))
        self.assertEqual(self.found("web/odd"), ("db", "web/odd"))

    def test_a_full_name_goes_before_a_label(self) -> None:
        self.assertEqual(self.found("web/a:80"), ("web", "a:80"))

    def test_one_that_is_in_several_pools(self) -> None:
        with self.assertRaises(Ambiguous) as raised:
            self.found("both")
        self.assertEqual(
            str(raised.exception), "'both' is in several pools: say which, of web/both, db/both"
        )
        self.assertEqual(raised.exception.status, 2)

    def test_none(self) -> None:
        for text, hint in (
            ("web/a:8", "; did you mean web/a:80?"),
            ("b:543", "; did you mean b:5432?"),
            ("zzz", "; there is web/a:80, web/unix:/run/x.sock, "),
        ):
            with self.assertRaises(NoSuchThing) as raised:
                self.found(text)
            self.assertIn(f"there is no target '{text}'{hint}", str(raised.exception))
        with self.assertRaises(NoSuchThing) as raised:
            find_target("x", POOLS[-1:])
        self.assertEqual(str(raised.exception), "there is no target 'x', nor any other")

    def test_paths(self) -> None:
        self.assertEqual(
            target_path(*find_target("web/unix:/run/x.sock", POOLS)),
            "/v1/pools/web/targets/unix%3A%2Frun%2Fx.sock",
        )
