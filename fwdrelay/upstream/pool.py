"""
A set of targets at run time: which there are, who of them is elected for the next session, and who
waits for a place.

How the choice is made is `fwdrelay.upstream.elect`'s, whether targets are up `fwdrelay.upstream.health`'s,
and which there are besides those of the configuration `fwdrelay.upstream.discovery`'s: a pool is where
they meet. A reload changes a pool, and leaves the targets that stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

from attrs import evolve
from twisted.logger import Logger

from ..config import DiscoverConfig, PoolConfig, TargetConfig
from ..config.grammar import parse_target
from ..interfaces import IDiscovery
from ..ledger import Ledger
from ..tls import UpstreamTLS
from ..words import counted, some
from .discovery import Following
from .health import Health
from .parts import PoolParts
from .resolve import Resolver
from .target import Target, TargetState

# Of its share, what a target that starts slowly begins with.
FIRST_SHARE = 0.1
# Seconds between looks for a place that another process may have given back, while somebody waits.
LOOK_EVERY = 0.05
# Who has waited for so much longer in another process goes first, and has so long to take the place.
_HEAD_START = 0.1
_LET_FIRST_FOR = 0.15
# Elections that have no use for the client's address, which costs a session something to tell.
_ANONYMOUS = frozenset({"round-robin", "least-sessions", "random-two", "first"})


class Waiter(Protocol):
    """
    A session that waits for a place.

    @ivar tried: targets that its dial has failed with.
    """

    @property
    def client_host(self) -> str | None:
        """The client's IP address, for elections that want it."""

    @property
    def tried(self) -> Sequence[Target]:
        """Targets that it has tried."""

    def place_found(self, target: Target) -> None:
        """`target` was elected for it, and a session is counted there; it waits no more."""

    def no_place(self) -> None:
        """There is nothing to wait for any more, and it waits no more."""


class Pool:
    """
    @param parts: made of `config`.
    @param reactor: what health checks connect with; its clock is the pool's.
    @param lost: called with each target whose sessions are to end.
    @param ledger: where sessions are counted for limits that hold over several processes; None: there is only
        this one.
    @ivar name: as configured.
    @ivar targets: all targets there are now: those of the configuration, then what was found.
    @ivar sessions: how many of this process are on all targets, those removed included.
    @ivar tls: how TLS is spoken to its targets; None: it is not.
    @ivar by_client: whether `elect` wants to know the client.
    """

    log = Logger()

    def __init__(
        self,
        config: PoolConfig,
        parts: PoolParts,
        reactor: Any,
        resolver: Resolver,
        lost: Callable[[Target], None] = lambda target: None,
        ledger: Ledger | None = None,
    ) -> None:
        self.name = config.name
        self.config = config
        self.targets: tuple[Target, ...] = ()
        self.sessions = 0
        self._reactor = reactor
        self._resolver = resolver
        self._lost = lost
        self._ledger = ledger
        if ledger is not None:
            self._key = ledger.key("pool", config.name)
            self._queue_key = ledger.key("queue", config.name)
        self._let_first = 0
        self._let_first_until = 0.0
        self._running = False
        self._removed = False
        self._health: Health | None = None
        self._followings: dict[DiscoverConfig, Following] = {}
        self._tiers: list[tuple[Target, ...]] = []
        self._starting: list[Target] = []
        # Since when each waits, by the ledger's clock.
        self._waiting: dict[Waiter, float] = {}
        self._serving: Any = None
        self._polling: Any = None
        self._electorate: list[tuple[Target, int, tuple[bool, int]]] = []
        self._election_failing = False
        self._repeated: set[str] = set()
        self._apply(config, parts)
        self._find_members()

    # What it is made of.

    def start(self) -> None:
        """Begin to discover targets and to check them."""
        self._running = True
        self._watch_all()
        for following in self._followings.values():
            following.start()

    def stop(self) -> None:
        """Discover and check no more. Sessions go on."""
        self._running = False
        self._stop_health()
        for following in self._followings.values():
            following.stop()
        self._followings.clear()
        if self._serving is not None:
            self._serving.cancel()
            self._serving = None
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None

    def remove(self) -> None:
        """The pool is no longer configured: as `stop`, and its targets are removed. Nobody waits on."""
        self.stop()
        self._removed = True
        self.config = evolve(self.config, targets=(), discover=())
        self._find_members()
        for waiter in list(self._waiting):
            self._send_away(waiter)

    def change(self, config: PoolConfig, parts: PoolParts, nameservers_changed: bool) -> None:
        """
        Be as `config` has it from now on.

        @param parts: made of `config`; of those, what is already there goes on instead.
        @param nameservers_changed: discoveries begin anew, with what is known.
        """
        before = self.config
        followed = {} if nameservers_changed else dict(self._followings)
        self._apply(
            config,
            parts,
            same_election=config.balance == before.balance,
            same_nameservers=not nameservers_changed,
        )
        seen = set() if _checks(config) == _checks(before) else self._stop_health()
        changes = self._find_members()
        if self._running:
            if changes:
                self.log.info(
                    "Pool {pool} has {count} now: {changes}.",
                    pool=self.name,
                    count=counted(len(self.targets), "target"),
                    changes=changes,
                )
            self._watch_all(seen)
            for discover, following in self._followings.items():
                if discover not in followed:
                    following.start()

    def _apply(
        self,
        config: PoolConfig,
        parts: PoolParts,
        same_election: bool = False,
        same_nameservers: bool = True,
    ) -> None:
        self.config = config
        if not same_election:
            self._election = parts.election
            self._election_failing = False
            self._electorate = []
        self.tls: UpstreamTLS | None = parts.tls
        if self._health is not None and parts.tls is not None:
            self._health.renew_tls(parts.tls)
        self.by_client = config.balance not in _ANONYMOUS
        followings: dict[DiscoverConfig, Following] = {}
        before = {str(discover): each.known for discover, each in self._followings.items()}
        for discover, discovery in zip(config.discover, parts.discoveries, strict=True):
            if same_nameservers and discover in self._followings:
                followings[discover] = self._followings.pop(discover)
            else:
                followings[discover] = following = self._follow(discover, discovery)
                # It asks the same: what is known is so until there is another answer.
                following.known = before.get(str(discover))
        for gone in self._followings.values():
            gone.stop()
        self._followings = followings

    def renew_tls(self, tls: UpstreamTLS) -> None:
        """Speak TLS so from now on: its files have changed."""
        self.tls = tls
        if self._health is not None:
            self._health.renew_tls(tls)

    def _follow(self, discover: DiscoverConfig, discovery: IDiscovery) -> Following:
        def found(targets: object) -> None:
            self._find_members()

        return Following(discovery, discover, self._reactor, found, self.name)

    def _watch_all(self, seen: Collection[Target] = ()) -> None:
        """
        Give the targets to a health of their own, if they have none.

        @param seen: those of which another one has found out before whether they are up.
        """
        config = self.config
        health = config.health
        if self._health is None and (health.check != "off" or health.passive_failures):
            self._health = Health(
                self._reactor,
                self._resolver,
                health,
                bind=config.bind,
                send_proxy=config.send_proxy,
                tls=self.tls,
                changed=self._target_changed,
            )
            for target in self.targets:
                self._health.watch(target, target in seen)
        elif self._health is None:
            for target in self.targets:  # which nobody would find to be up again
                if not target.up:
                    self._target_changed(target, True, "it is no longer checked")

    def _stop_health(self) -> set[Target]:
        """
        @return: the targets of which it had found out whether they are up.
        """
        health, self._health = self._health, None
        if health is None:
            return set()
        seen = health.seen()
        health.stop()
        return seen

    @property
    def known(self) -> bool:
        """Whether each discovery has answered once."""
        return all(following.known is not None for following in self._followings.values())

    def _wanted(self) -> list[TargetConfig]:
        """What is configured and found, each label once."""
        wanted: dict[str, TargetConfig] = {}
        repeated: set[str] = set()
        found = [target for each in self._followings.values() for target in each.known or ()]
        for target in (*self.config.targets, *found):
            if target.label in wanted:
                repeated.add(target.label)
            else:
                wanted[target.label] = target
        for label in sorted(repeated - self._repeated):
            self.log.warn(
                "Pool {pool} has {target} more than once; the first counts.",
                pool=self.name,
                target=label,
            )
        self._repeated = repeated
        return list(wanted.values())

    def _find_members(self) -> str:
        """
        The configuration, or what was found, has changed.

        @return: what that changed, in words; empty: nothing.
        """
        there = {target.identity: target for target in self.targets}
        members: list[Target] = []
        added: list[str] = []
        changed: list[str] = []
        for config in self._wanted():
            target = there.pop((config.label, config.address), None)
            if target is None:
                target = Target(config)
                if self._ledger is not None:
                    target.key = self._ledger.key("target", self.name, *target.identity)
                added.append(target.label)
                if self._running:
                    target.since = self._reactor.seconds()
                    self._start_slowly(target)
            elif target.config != config:
                if _told(config) != _told(target.config):
                    changed.append(target.label)
                target.change(config)
                if target in self._starting:
                    self._ramp_up(target)
            members.append(target)
        removed = list(there.values())
        self.targets = tuple(members)
        self._regroup()
        self._tell_election_of_changes()
        self._let_in_and_go(removed)
        parts = (
            ("added", added),
            ("changed", changed),
            ("removed", [target.label for target in removed]),
        )
        return "; ".join(f"{word} {some(labels)}" for word, labels in parts if labels)

    def _let_in_and_go(self, removed: Iterable[Target]) -> None:
        if self._health is not None:
            for target in self.targets:
                self._health.watch(target)
        for target in removed:
            target.removed = True
            if self._health is not None:
                self._health.unwatch(target)
            if target in self._starting:
                self._starting.remove(target)
            if self.config.on_target_down == "close":
                self._lost(target)
        self._serve_soon()

    def _regroup(self) -> None:
        """
        Sort those that may be elected into tiers; the first that has one left is elected from. What `elect`
        asks about each target, it asks for each session.
        """
        electable = [target for target in self.targets if target.electable]
        if not electable and self.config.health.when_all_down == "try":
            # They are only thought to be down; what an operator says is so.
            electable = [target for target in self.targets if target.state == "ready"]
        tiers: dict[tuple[bool, int], list[Target]] = {}
        for target in electable:
            tiers.setdefault(target.tier, []).append(target)
        self._tiers = [tuple(tiers[rank]) for rank in sorted(tiers)]
        self._limited = any(target.config.max_sessions for target in electable)

    # Who is elected.

    def elect(
        self,
        client: str | None = None,
        tried: Collection[Target] = (),
        since: float | None = None,
    ) -> Target | None:
        """
        Choose a target and count a session on it; whoever gets it owes a `release`.

        @param client: its IP address; only if `by_client` is true does it matter.
        @param tried: targets that this session's dial has failed with, which are not chosen again.
        @param since: when it began to wait for a place, by the ledger's clock; None: it didn't.
        @return: None where no target is left that may take one more session.
        """
        limit = self.config.max_sessions
        if limit and self.sessions >= limit:
            return None
        ledger = self._ledger
        if ledger is not None and not ledger.take(self._key, limit):
            return None
        if self._starting:
            self._ramp_all_up()
        for tier in self._tiers:
            candidates: Sequence[Target] = tier
            if self._limited:
                candidates = [each for each in tier if each.sessions < each.limit]
            if tried:
                candidates = [each for each in candidates if each not in tried]
            while candidates:
                elected = candidates[0]
                if len(candidates) > 1:
                    elected = self._choose(candidates, client)
                if ledger is None or ledger.take(elected.key, elected.config.max_sessions):
                    elected.sessions += 1
                    self.sessions += 1
                    if ledger is None or not self._lets_first(ledger, since):
                        return elected
                    self._uncount(elected)
                    return None
                # Full, with what other processes have there.
                candidates = [each for each in candidates if each is not elected]
        if ledger is not None:
            ledger.give_back(self._key)
        return None

    def adopt(self, target: Target) -> None:
        """
        Count a session on `target` that was another process', whatever the limits are; it owes a `release`.
        """
        target.sessions += 1
        self.sessions += 1
        if self._ledger is not None:
            self._ledger.add(self._key)
            self._ledger.add(target.key)

    def place(self, label: str, address: str) -> Target:
        """
        As `adopt`, where another process tells which target it is. One that is none of the pool's any more is
        made, for that session alone.
        """
        identity = label, address
        for target in self.targets:
            if target.identity == identity:
                break
        else:
            target = former_target(label, address)
            if self._ledger is not None:
                target.key = self._ledger.key("target", self.name, *identity)
        self.adopt(target)
        return target

    def _choose(self, candidates: Sequence[Target], client: str | None) -> Target:
        """Ask the election, which may be somebody else's code."""
        try:
            elected: Any = self._election.elect(candidates, client)
            if elected not in candidates:
                raise TypeError(f"it elected {elected!r}, which was no candidate")
        except Exception as failed:
            self._election_failed(failed)
            return candidates[0]
        target: Target = elected
        return target

    def _tell_election_of_changes(self) -> None:
        electorate = [(target, target.weight, target.tier) for target in self.targets]
        if electorate != self._electorate:
            self._electorate = electorate
            self._tell_election()

    def _tell_election(self) -> None:
        """Tell the election who there is. Whatever it makes of that, a change goes on to its end."""
        try:
            self._election.targets_changed(self.targets)
        except Exception as failed:
            self._election_failed(failed)

    def _election_failed(self, failed: Exception) -> None:
        if not self._election_failing:
            self.log.failure(
                "The election {balance} of pool {pool} failed ({failed}); where it does, the first"
                " target is taken, and this is told once.",
                balance=self.config.balance,
                pool=self.name,
                failed=str(failed) or type(failed).__name__,
            )
        self._election_failing = True

    def why_none(self) -> str:
        """
        @return: why `elect` found nobody.
        """
        if self._removed:
            return "the pool was removed"
        if not self.known:
            return "no discovery of its targets has answered yet"
        if not self.targets:
            return "the pool has no targets"
        if not self._tiers:
            taken_out = sum(target.state != "ready" for target in self.targets)
            if taken_out == len(self.targets):
                return "every target was taken out by an operator"
            return "every target is down" + (" or taken out by an operator" if taken_out else "")
        if self.config.max_sessions and self._taken >= self.config.max_sessions:
            return "the pool has as many sessions as it may"
        return "every target that is up has as many sessions as it may"

    def release(self, target: Target) -> None:
        """The session that `target` was elected for is over, or went elsewhere."""
        self._uncount(target)
        if self._waiting:
            self._serve_soon()

    def _uncount(self, target: Target) -> None:
        target.sessions -= 1
        self.sessions -= 1
        if self._ledger is not None:
            self._ledger.give_back(target.key)
            self._ledger.give_back(self._key)

    @property
    def _taken(self) -> int:
        """How many sessions count for its limit."""
        return self.sessions if self._ledger is None else self._ledger.count(self._key)

    def _is_full(self, target: Target) -> bool:
        taken = target.sessions if self._ledger is None else self._ledger.count(target.key)
        return taken >= target.limit

    def dialed(self, target: Target, seconds: float) -> None:
        """A session's dial has reached `target`, which took so long."""
        target.dials.done(seconds)
        if self._health is not None and not target.removed:
            self._health.dialed(target)

    def dial_failed(self, target: Target, cause: str, detail: str) -> None:
        """
        A session's dial has failed to reach `target`.

        @param cause: a word of `fwdrelay.dial.CAUSES`.
        """
        target.dials.failed(cause)
        if self._health is not None and not target.removed:
            self._health.dial_failed(target, cause, detail)

    def turning(self, target: Target) -> str:
        """
        @return: what speaks for its going down, or coming up, soon; empty: nothing does.
        """
        return "" if self._health is None else self._health.turning(target)

    def shares(self) -> dict[Target, float]:
        """
        @return: which part of the next sessions is meant for each target that may get any; from 0 to 1. How
            full they are is not looked at, nor who the clients are.
        """
        by_weight = self.config.balance == "source-hash"  # which has no use for a slow start
        if self._starting:
            self._ramp_all_up()
        tier = self._tiers[0] if self._tiers else ()
        if self.config.balance == "first":
            tier = tier[:1]
        parts = {target: target.weight if by_weight else target.share for target in tier}
        total = sum(parts.values())
        return {target: part / total for target, part in parts.items()}

    def why(self, elected: Target, tried: Collection[Target] = ()) -> str:
        """
        @return: why `elected` has just been elected, in words.
        """
        others = [target for target in self.targets if target is not elected]
        passed_over = []
        candidates = []
        for target in others:
            if target in tried:
                passed_over.append(f"{target.label} was tried")
            elif target.state != "ready":
                passed_over.append(f"{target.label} is set to {target.state}")
            elif not target.up and elected.up:
                passed_over.append(f"{target.label} is down")
            elif self._is_full(target):
                passed_over.append(f"{target.label} is full")
            elif target.tier != elected.tier:
                passed_over.append(f"{target.label} is of another tier")
            else:
                candidates.append(target)
        if candidates:
            among = [elected, *candidates]
            # Of the elected, this session is counted already.
            had = [f"{each.label} has {each.sessions - (each is elected)}" for each in among]
            why = f"by {self.config.balance} among {len(among)}: {some(had)}"
        else:
            why = "the only one left" if others else "the only one"
        return "; ".join([why, some(passed_over)] if passed_over else [why])

    # What operators want.

    def steer(self, target: Target, state: TargetState | None, weight: int | None) -> None:
        """
        Want `target` to be so from now on, until somebody says otherwise, or a reload gives it another weight; None:
        as it is.
        """
        before = target.state
        if weight is not None and weight != target.weight:
            target.own_weight = None if weight == target.config.weight else weight
            target.share = target.weight
            if target in self._starting:
                self._ramp_up(target)
        if state is not None:
            target.state = state
        self._regroup()
        self._tell_election_of_changes()
        if before == "ready" != target.state:
            self._tell_if_none_is_left()
        if before != target.state == "down" and self.config.on_target_down == "close":
            self._lost(target)
        self._serve_soon()

    # Who waits.

    @property
    def waiting(self) -> int:
        """How many sessions wait for a place."""
        return len(self._waiting)

    def may_wait(self, tried: Collection[Target] = ()) -> bool:
        """
        @return: whether it makes sense to wait: some target is only full, or not known yet.
        """
        if not self.known:
            return True
        if not self.config.queue:
            return False
        return any(target not in tried for tier in self._tiers for target in tier)

    def wait(self, waiter: Waiter) -> bool:
        """
        Line up for a place; whoever does ends with `place_found` or `no_place`, or owes a `leave`.

        @return: False where so many wait that this one may not.
        """
        if len(self._waiting) >= self.config.max_queued:
            return False
        self._waiting[waiter] = 0.0 if self._ledger is None else self._ledger.seconds()
        self._post()
        self._serve_soon()
        return True

    def leave(self, waiter: Waiter) -> None:
        """It waits no longer."""
        self._waiting.pop(waiter, None)
        self._post()

    def _post(self) -> None:
        """Let the other processes see since when the first waits who would take any place."""
        if self._ledger is not None:
            first = next((since for each, since in self._waiting.items() if not each.tried), 0.0)
            self._ledger.post(self._queue_key, int(first * 1000))

    def _lets_first(self, ledger: Ledger, since: float | None) -> bool:
        """
        @param since: when somebody of this process has begun to wait; None: just now.
        @return: whether to leave a place to somebody of another process. Without that, places would stay
            with a process that has some, and who waits in another would wait in vain. But the other one may
            not want it: it has checks of its own.
        """
        if not self.config.queue:
            return False
        first = min(ledger.posted(self._queue_key), default=0)
        if not first:
            return False
        now = ledger.seconds()
        if first / 1000 + _HEAD_START >= (now if since is None else since):
            return False
        if first != self._let_first:
            self._let_first, self._let_first_until = first, now + _LET_FIRST_FOR
        return now < self._let_first_until

    def _serve_soon(self) -> None:
        # In a turn of its own: a place is often given back in the middle of a session's end.
        if self._waiting and self._serving is None and self._running:
            self._serving = self._reactor.callLater(0, self._serve)

    def _poll(self) -> None:
        self._polling = None
        self._serve_soon()

    def _serve(self) -> None:
        self._serving = None
        self._serve_in_order()
        self._post()
        if self._ledger is not None and self._waiting and self._polling is None and self._running:
            self._polling = self._reactor.callLater(LOOK_EVERY, self._poll)

    def _serve_in_order(self) -> None:
        for waiter, since in list(self._waiting.items()):
            if waiter not in self._waiting:
                continue  # gone, because of what came of one before it
            target = self.elect(waiter.client_host, waiter.tried, since)
            if target is not None:
                del self._waiting[waiter]
                waiter.place_found(target)
            elif self.known and not self.config.queue:
                self._send_away(waiter)  # it was only to be found out who there is
            elif not waiter.tried:
                break  # and nobody behind it could get more

    def _send_away(self, waiter: Waiter) -> None:
        if waiter in self._waiting:
            self.leave(waiter)
            waiter.no_place()

    # How targets are.

    def _target_changed(self, target: Target, up: bool, cause: str) -> None:
        """Told by the health: `target` has come up or gone down."""
        target.up, target.cause = up, cause
        target.since = self._reactor.seconds()
        if up:
            self._start_slowly(target)
        self._regroup()
        left = sum(each.up for each in self.targets)
        how_many = f"Targets up: {left} of {len(self.targets)}"
        if up:
            self.log.info(
                "Target {target} of pool {pool} is up: {cause}. {how_many}.",
                target=target.label,
                pool=self.name,
                cause=cause,
                how_many=how_many,
            )
        else:
            self.log.warn(
                "Target {target} of pool {pool} is down: {cause}. {how_many}.",
                target=target.label,
                pool=self.name,
                cause=cause,
                how_many=how_many,
            )
            self._tell_if_none_is_left()
            if self.config.on_target_down == "close":
                self._lost(target)
        self._serve_soon()

    def _tell_if_none_is_left(self) -> None:
        if not any(each.electable for each in self.targets):
            self.log.error(
                "Pool {pool} has no target left that is up: new sessions {policy}.",
                pool=self.name,
                policy="try them all the same" if self._tiers else "are refused",
            )

    def _start_slowly(self, target: Target) -> None:
        if self.config.health.slow_start and target not in self._starting:
            self._starting.append(target)
        self._ramp_up(target)

    def _ramp_all_up(self) -> None:
        for target in list(self._starting):
            self._ramp_up(target)

    def _ramp_up(self, target: Target) -> None:
        """Give it the share that it has by now."""
        slow_start = self.config.health.slow_start
        part = 1.0
        if slow_start:
            age = self._reactor.seconds() - target.since
            part = min(max(age / slow_start, FIRST_SHARE), 1.0)
        target.share = target.weight * part
        if part == 1.0 and target in self._starting:
            self._starting.remove(target)


def former_target(label: str, address: str) -> Target:
    """
    @return: one that is nobody's target any more.
    """
    try:
        config = evolve(parse_target(address), name=label)
    except ValueError:  # as another version had it
        config = TargetConfig(host=address, name=label)
    return Target(config, removed=True)


def _checks(config: PoolConfig) -> tuple[object, ...]:
    """What a running health can't change."""
    health = evolve(config.health, slow_start=0.0, when_all_down="try")
    return health, config.bind, config.send_proxy, config.tls


def _told(config: TargetConfig) -> tuple[object, ...]:
    """What of a target is worth a line in the log when it changes: not its addresses."""
    return config.weight, config.backup, config.priority, config.max_sessions
