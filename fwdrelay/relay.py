"""
The relay: built from a `Config`, started, changed while it runs, stopped in order.

This is where the parts meet; each knows only those below it. Twisted's `MultiService` stops all its
children at once and without a deadline, so the order of a stop is written out here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from ._version import __version__
from .config import Config, ListenerConfig, PoolConfig, RelayConfig, TargetConfig
from .deadlines import Deadlines
from .dial import Dialer
from .errors import ConfigErrors, FwdrelayError, NotPossible
from .frontend import Addresses, Inherited, Key, Listener, Totals, keys
from .interfaces import IPump
from .ledger import Ledger
from .observe.access_log import AccessLog
from .observe.audience import Audience
from .observe.feed import Feed
from .observe.journal import JournalSink
from .observe.sink import Sink
from .observe.snapshot import Outcome, RelayState
from .observe.trace import Tracer
from .parts import Parts, make_parts
from .process.sdnotify import Notifier
from .pump import make_pump
from .reloading import Reloads, refuse_what_takes_a_restart, told, try_reload
from .session import IKeeping, PortableSession, Reason, Session
from .steering import Steering
from .tls import File, Files, ServerTLS, UpstreamTLS
from .upstream import Pool, Resolver, Target
from .words import counted

if TYPE_CHECKING:
    from .admin import AdminServer
    from .demo import Demo

STATUS_EVERY = 5.0


@frozen
class Membership:
    """
    What a relay has of the supervisor whose worker it is; see `fwdrelay.workers`.

    @ivar worker: its number.
    @ivar inherited: the sockets that it listens on; it binds none itself.
    @ivar ledger: where is counted what is limited for all workers together.
    @ivar keeping: sees to it that sessions outlive it.
    """

    worker: int
    inherited: Mapping[Key, Inherited]
    ledger: Ledger
    keeping: IKeeping


class Relay(Service):
    """
    One relay process: its listeners, its pools, its access log.

    @param reactor: Twisted's reactor.
    @param notifier: the line to systemd, if there is one.
    @param give_up: called with a sentence when the relay can't start; it must not return. Without it,
        `privilegedStartService` raises the `FwdrelayError`.
    @param read: reads the configuration anew, for `reload`; raises `ConfigErrors`. None: there is nothing
        that could have changed.
    @param stop: ends the whole process in order, or at once; None: that is not for the relay to ask.
    @param membership: None: it is nobody's worker.
    @ivar state: `starting` until everything listens, `draining` from when a stop has begun.
    @ivar started: when it was made, by the reactor's clock.
    @ivar audience: whom its sessions are told to.
    @ivar config: what is asked for now.
    @ivar listeners: by name.
    @ivar pools: by name.
    """

    name = "fwdrelay"
    log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: Any,
        notifier: Notifier | None = None,
        give_up: Callable[[str], None] | None = None,
        read: Callable[[], Config] | None = None,
        stop: Callable[[bool], object] | None = None,
        membership: Membership | None = None,
    ) -> None:
        notifier = Notifier() if notifier is None else notifier
        self.config = config
        self._reactor = reactor
        self._notifier = notifier
        self._give_up = give_up
        self._read = read
        self._stop_process = stop
        self.membership = membership
        self.state: RelayState = "starting"
        self.started: float = reactor.seconds()
        self._deadlines = Deadlines(reactor)
        self._files = Files(reactor, self._renew_tls)
        self._resolver = Resolver(reactor)
        self._pump: IPump | None = None
        self._addresses: Addresses
        self._dialer: Dialer
        self._access_log: AccessLog | None = None
        self.audience = Audience(Feed(reactor), Tracer(reactor))
        self._admin: AdminServer | None = None
        self._demo: Demo | None = None
        self._dropped_before = 0
        self._ended_count = 0
        self._reloads = Reloads()
        self._drained: Deferred[None] | None = None
        self._status = LoopingCall(self._tell_status)
        self._watchdog = LoopingCall(notifier.watchdog)
        self._status.clock = self._watchdog.clock = reactor
        self._told = ""
        self._leaving: dict[Listener, Any] = {}
        self.listeners: dict[str, Listener] = {}
        self.pools: dict[str, Pool] = {}
        self._totals: dict[str, Totals] = {}
        self._departed = Totals()

    @property
    def reloads(self) -> Counter[str]:
        """How many there were, by result: `success`, `failure`."""
        return self._reloads.count

    @property
    def last_reload(self) -> tuple[float, str] | None:
        """When the last one was, in seconds since the epoch, and its result; None: never."""
        return self._reloads.last

    @property
    def active(self) -> int:
        """How many sessions are open."""
        return sum(listener.active for listener in self.all_listeners())

    def all_listeners(self) -> list[Listener]:
        """Those there are, and those removed whose sessions have not ended yet."""
        return [*self.listeners.values(), *self._leaving]

    def all_totals(self) -> list[Totals]:
        """What these have counted, and those that were there before them."""
        return [*self._totals.values(), self._departed]

    def addresses_of(self, listener: Listener) -> tuple[str, ...]:
        """
        @return: where it can be connected to now, as logs write it.
        """
        return self._addresses.texts(listener)

    @property
    def access_log_dropped(self) -> int:
        """Lines of the access log that nobody took in time, since the start."""
        log = self._access_log
        return self._dropped_before + (0 if log is None else log.dropped)

    @property
    def certificate_expiries(self) -> Mapping[str, float]:
        """When the certificates in a file expire, in seconds since the epoch, by its path."""
        return self._files.expiries

    @property
    def draining(self) -> bool:
        """Whether a stop has begun."""
        return not self.running

    def privilegedStartService(self) -> None:
        """Open everything that may need privileges: the access log, the listeners."""
        try:
            parts = make_parts(self.config, self._reactor)
            self._write_to(self._open_access_log(self.config.relay))
            self.audience.log_interval = self.config.relay.access_log_interval
            self._build(parts)
            for listener in self.listeners.values():
                bound = self._addresses.bind(listener, listener.config)
                self._tell_of(listener, bound)
            self._files.follow(self._tls_files())
            if self.config.relay.admin != "off":
                self._serve_admin()
        except FwdrelayError as failed:
            if self._give_up is None:
                raise
            self._give_up(str(failed))

    def _tell_of(self, listener: Listener, bound: list[Key]) -> None:
        if self.membership is None:  # else its supervisor has told of it
            self._addresses.tell(listener, bound)

    def _serve_admin(self) -> None:
        """
        @raise FwdrelayError: its address can't be bound, or its token not be read.
        """
        from .admin import AdminServer  # with a whole web server, which not every relay needs

        steering = Steering(self, self._reactor)
        self._admin = AdminServer(self.config.relay, steering, self._reactor)
        self._admin.listen()

    def startService(self) -> None:
        """The sockets listen: say so, once the reactor runs."""
        super().startService()
        for pool in self.pools.values():
            pool.start()
        self._files.start()
        self._reactor.callWhenRunning(self._running)

    def stopService(self) -> Deferred[None]:
        """
        Stop accepting, let sessions end within the drain time-out, cut what is left, then stop the rest.

        @return: fires when nothing is left.
        """
        super().stopService()
        self.state = "draining"
        return Deferred.fromCoroutine(self._stop())

    def leave(self) -> None:
        """
        Accept nobody any more, also none of those who wait: others listen on the same sockets. Sessions go on
        until they end, are handed over, or `stopService` is called.
        """
        self.state = "draining"
        self._addresses.leave()

    def inherit(self, sockets: Mapping[Key, Inherited]) -> None:
        """Sockets that a change of the configuration is going to need."""
        for key, inherited in sockets.items():
            self._addresses.inherit(key, inherited)

    def adopt(self, portable: PortableSession, descriptors: tuple[int, int, int, int]) -> Session:
        """
        Go on with a session that another process relayed.

        @param descriptors: the client's socket, the target's, and the pipes of both flows; they are the
            session's now.
        """
        listener = self.listeners.get(portable.listener)
        if listener is None:
            listener = self._listener_that_was(portable.listener)
        session = listener.adopt(portable, descriptors, self.pools.get(portable.pool))
        if self._is_unwanted(session):
            self._reactor.callLater(0, session.cut, Reason.TARGET_DOWN)
        return session

    def _is_unwanted(self, session: Session) -> bool:
        """
        Whether its pool would have closed it here before: its target is down, or no longer configured. One that was
        discovered may only not be found yet.
        """
        pool, target = session.pool, session.target
        if pool is None or target is None or pool.config.on_target_down != "close":
            return False
        if target.removed:
            return not pool.config.discover
        return not target.up or target.state == "down"

    def _listener_that_was(self, name: str) -> Listener:
        """
        @return: one that is not configured any more, for sessions that it has.
        """
        for listener in self._leaving:
            if listener.name == name:
                return listener
        config = ListenerConfig(name=name, listen=(), pool="")
        parts = Parts({}, {name: ()}, {})
        listener = self._make_listener(config, self.pools, parts)
        limit = self.config.relay.drain_timeout
        self._leaving[listener] = (
            self._reactor.callLater(limit, self._cut_leaving, listener) if limit else None
        )
        return listener

    def cut_all(self, reason: Reason = Reason.STOPPED) -> None:
        """End every session now."""
        if reason is Reason.DRAIN_TIMEOUT:
            self.log.warn(
                "The drain time is over: cutting {active}.", active=counted(self.active, "session")
            )
        else:
            self.log.info("Cutting {active}.", active=counted(self.active, "session"))
        for session in self._sessions():
            session.cut(reason)

    def upgrade(self) -> None:
        """SIGUSR2: only a relay with workers can be upgraded in place."""
        self.log.warn(
            "Not upgraded: this relay has no workers, so it takes a restart. With --workers 1 or more, another"
            " process could go on with its sessions."
        )

    def reopen_logs(self) -> None:
        """The access log was moved away: begin a new file."""
        if self._access_log is not None:
            self._access_log.reopen()

    def reload(self) -> Deferred[Outcome]:
        """
        Read the configuration anew, and be as it says from now on. Where anything is wrong with it, nothing
        changes, and the log says what is wrong.

        @return: fires, as soon as what an earlier one has closed is closed, with what came of it.
        """
        self.reopen_logs()
        if self._read is None:
            return succeed(self._reloads.done(self._reload_files()))
        return Deferred.fromCoroutine(self._reload(self._read))

    def _reload_files(self) -> Outcome:
        """There is no configuration file: read anew what the command line names."""
        self._renew_token()
        files = self._tls_files()
        if not files:
            self.log.info("There is no configuration file to read again.")
        wrong = self._renew_tls(frozenset(file.path for file in files))
        changed = "certificates and authorities were read anew" if files else ""
        return Outcome(not wrong, changed or "there is no file to read again", wrong)

    def _renew_token(self) -> None:
        if self._admin is not None:
            self._admin.renew_token()

    async def _reload(self, read: Callable[[], Config]) -> Outcome:
        # An address that was removed a moment ago may be wanted again.
        await self._addresses.closed()
        if self.draining:
            self.log.warn("The configuration is not read again: the relay is stopping.")
            return Outcome(False, errors=("the relay is stopping",))
        self._notifier.reloading()
        try:
            return await self._reloads.attempt(lambda: self._read_and_change(read))
        finally:
            self._told = self._status_text()
            self._notifier.ready(self._told)

    async def _read_and_change(self, read: Callable[[], Config]) -> str:
        changed = self.change(read())
        self._renew_token()
        return changed

    def check(self) -> Outcome:
        """
        @return: what a reload would come to, as far as that can be known without one; nothing is changed.
        """
        return try_reload(self.config, self._read)

    def drain(self, *, now: bool = False) -> None:
        """
        End the process, as SIGTERM does.

        @param now: cut what is left, as a second one does.
        @raise NotPossible: it does not run yet, or is a part of a larger program.
        """
        if self._stop_process is None:
            raise NotPossible("this relay is a part of a larger program, which has to stop it")
        if self.state == "starting":
            raise NotPossible("the relay is still starting")
        self._stop_process(now)

    def try_change(self, config: Config) -> None:
        """
        Look whether `change` would do, as far as that can be known without it.

        @raise FwdrelayError: it would not.
        """
        refuse_what_takes_a_restart(self.config, config)
        make_parts(config, self._reactor)
        if _log_of(config.relay) != _log_of(self.config.relay):
            access_log = self._open_access_log(config.relay)
            if access_log is not None:
                access_log.close(patience=0.0)

    def change(self, config: Config) -> str:
        """
        Be as `config` says from now on. Addresses that stay are never closed; sessions keep what they have;
        targets that stay keep their state.

        @return: what that changed, in words.
        @raise FwdrelayError: nothing was changed: it asks for what can't change while the relay runs, for
            a plugin that doesn't exist, or for an address or a file that can't be opened.
        """
        before = self.config
        refuse_what_takes_a_restart(before, config)
        terminated = {name: listener.tls for name, listener in self.listeners.items()}
        originated = {name: pool.tls for name, pool in self.pools.items()}
        parts = make_parts(config, self._reactor, terminated, originated)
        new_pools = {
            each.name: self._make_pool(each, parts)
            for each in config.pools
            if each.name not in self.pools
        }
        pools = {**self.pools, **new_pools}
        new_listeners = {
            each.name: self._make_listener(each, pools, parts)
            for each in config.listeners
            if each.name not in self.listeners
        }
        log_changes = _log_of(config.relay) != _log_of(before.relay)
        access_log = self._open_access_log(config.relay) if log_changes else self._access_log
        try:
            new_addresses = self._bind_new(config, new_listeners)
        except FwdrelayError:
            if log_changes and access_log is not None:
                access_log.close(patience=0.0)
            raise
        # From here on nothing can go wrong, and nobody is accepted before all of it is done.
        if log_changes:
            old_log = self._access_log
            self._write_to(access_log)
            if old_log is not None:
                old_log.close(patience=0.0)
                self._dropped_before += old_log.dropped
        self.config = config
        self._close_unused()  # first: who was promised a connection there gets it in the old world
        self._change_pools(before, config, parts, new_pools)
        self._change_listeners(config, parts, new_listeners)
        for listener in self.listeners.values():
            self._addresses.serve(listener)
            mine = [key for key in keys(listener.config) if key in new_addresses]
            self._tell_of(listener, mine)
        self._forget_totals()
        self._tell_progress_every(config.relay.access_log_interval)
        self._files.follow(self._tls_files())
        changed = told(before, config)
        if self.membership is None:
            self.log.info("The configuration is in force: {changed}.", changed=changed)
        return changed

    def _tls_files(self) -> list[File]:
        """Those that TLS is made of now."""
        speakers: list[ServerTLS | UpstreamTLS | None] = [
            *(listener.tls for listener in self.listeners.values()),
            *(pool.tls for pool in self.pools.values()),
        ]
        return [file for tls in speakers if tls is not None for file in tls.files]

    def _renew_tls(self, paths: frozenset[str]) -> tuple[str, ...]:
        """
        Read the certificates and authorities in these files anew, and use them from now on, as far as they
        are of use; sessions keep what they have.

        @return: what is wrong with those that are of none.
        """
        renewed: list[str] = []
        errors: list[str] = []
        for index, config in enumerate(self.config.listeners):
            listener = self.listeners[config.name]
            tls = listener.tls
            if tls is None or not _among(tls.files, paths):
                continue
            try:
                listener.tls = ServerTLS(tls.config, f"listener[{index}].tls", tls)
                renewed.append(f"listener {config.name}")
            except ConfigErrors as wrong:
                errors += self._not_renewed(f"listener {config.name}", wrong)
        for name, pool in self.pools.items():
            of_pool = pool.tls
            if of_pool is None or not _among(of_pool.files, paths):
                continue
            try:
                pool.renew_tls(UpstreamTLS(of_pool.config, f"pool.{name}.tls", of_pool))
                renewed.append(f"pool {name}")
            except ConfigErrors as wrong:
                errors += self._not_renewed(f"pool {name}", wrong)
        if renewed:
            self.log.info(
                "Certificates and authorities were read anew: {renewed}.",
                renewed=", ".join(renewed),
            )
            self._files.follow(self._tls_files())
        return tuple(errors)

    def _not_renewed(self, whose: str, wrong: ConfigErrors) -> list[str]:
        """@return: what is wrong."""
        self.log.error(
            "The certificates of {whose} stay as they were read before, for now there is something wrong:"
            " {wrong}",
            whose=whose,
            wrong=wrong,
        )
        return [str(error) for error in wrong.errors]

    def _bind_new(self, config: Config, new: Mapping[str, Listener]) -> list[Key]:
        """
        Bind what is not bound yet, for listeners that are not the relay's yet, or are with another
        configuration.

        @return: which addresses those are.
        @raise CannotListen: nothing new is bound.
        """
        bound: list[Key] = []
        try:
            for each in config.listeners:
                listener = new.get(each.name) or self.listeners[each.name]
                bound += self._addresses.bind(listener, each)
        except FwdrelayError:
            self._addresses.unbind(bound)
            for listener in new.values():
                self._let_leave(listener)  # somebody may have been quicker than we
            raise
        return bound

    def _change_pools(
        self, before: Config, config: Config, parts: Parts, new: Mapping[str, Pool]
    ) -> None:
        anew = config.relay.nameservers != before.relay.nameservers
        wanted = {each.name: each for each in config.pools}
        for name in [name for name in self.pools if name not in wanted]:
            self.pools.pop(name).remove()
        for name, pool in self.pools.items():
            pool.change(self._with_demo(wanted[name]), parts.pools[name], anew)
        for name, pool in new.items():
            self.pools[name] = pool
            if self.running:
                pool.start()

    def _change_listeners(self, config: Config, parts: Parts, new: Mapping[str, Listener]) -> None:
        wanted = {each.name: each for each in config.listeners}
        for name in [name for name in self.listeners if name not in wanted]:
            self._let_leave(self.listeners.pop(name))
        for name, listener in self.listeners.items():
            listener.change(wanted[name], self.pools, parts.admissions[name], parts.tls.get(name))
        self.listeners.update(new)

    def _let_leave(self, listener: Listener) -> None:
        """It is no longer configured: its sessions have the drain time-out to end in."""
        if not listener.active:
            listener.refusals.stop()
            return
        limit = self.config.relay.drain_timeout
        self.log.info(
            "Listener {listener} is removed; draining {active} of it; {limit}.",
            listener=listener.name,
            active=counted(listener.active, "session"),
            limit=_patience(limit),
        )
        self._leaving[listener] = (
            self._reactor.callLater(limit, self._cut_leaving, listener) if limit else None
        )

    def _cut_leaving(self, listener: Listener) -> None:
        self._leaving[listener] = None
        self.log.warn(
            "The drain time of listener {listener} is over: cutting {active}.",
            listener=listener.name,
            active=counted(listener.active, "session"),
        )
        for session in list(listener.sessions):
            session.cut(Reason.DRAIN_TIMEOUT)

    def _close_unused(self) -> None:
        wanted = {key for listener in self.config.listeners for key in keys(listener)}
        unused = [key for key in self._addresses.bound if key not in wanted]
        self._addresses.close(unused)

    def _open_access_log(self, config: RelayConfig) -> AccessLog | None:
        return open_access_log(config, self._reactor)

    def _write_to(self, log: AccessLog | None) -> None:
        """Sessions are told to this access log from now on."""
        self._access_log = log
        self.audience.log = None if log is None else log.session_ended

    def _build(self, parts: Parts) -> None:
        config = self.config
        pump = self._pump = make_pump(config.relay.pump, self._reactor, config.relay.probing)
        membership = self.membership
        self._addresses = Addresses(pump, None if membership is None else membership.inherited)
        self._dialer = Dialer(self._reactor, pump, self._resolver)
        for pool in config.pools:
            self.pools[pool.name] = self._make_pool(pool, parts)
        for listener in config.listeners:
            self.listeners[listener.name] = self._make_listener(listener, self.pools, parts)

    def _make_pool(self, config: PoolConfig, parts: Parts) -> Pool:
        return Pool(
            self._with_demo(config),
            parts.pools[config.name],
            self._reactor,
            self._resolver,
            self._end_sessions_of,
            None if self.membership is None else self.membership.ledger,
        )

    def _make_listener(
        self, config: ListenerConfig, pools: Mapping[str, Pool], parts: Parts
    ) -> Listener:
        assert self._pump is not None
        return Listener(
            config,
            pools,
            parts.admissions[config.name],
            parts.tls.get(config.name),
            clock=self._reactor,
            pump=self._pump,
            dialer=self._dialer,
            deadlines=self._deadlines,
            audience=self.audience,
            # One that was removed may have sessions still.
            totals=self._totals.setdefault(config.name, Totals()),
            left=self._session_left,
            all_active=lambda: self.active,
            ledger=None if self.membership is None else self.membership.ledger,
            keeping=None if self.membership is None else self.membership.keeping,
        )

    def _forget_totals(self) -> None:
        """Names may come and go; what was counted under those that are gone stays in the sums."""
        kept = {listener.name for listener in self.all_listeners()}
        for name in [name for name in self._totals if name not in kept]:
            self._departed.add(self._totals.pop(name))

    def _tell_progress_every(self, interval: float) -> None:
        if interval != self.audience.log_interval:
            self.audience.log_interval = interval
            for listener in self.all_listeners():
                listener.log_interval_changed()

    def _end_sessions_of(self, target: Target) -> None:
        """`target` is down or removed, and its pool wants its sessions closed."""
        if not target.sessions:
            return
        ending = [session for session in self._sessions() if session.target is target]
        if ending:
            self.log.info(
                "Closing {count} on {target}.",
                count=counted(len(ending), "session"),
                target=target.label,
            )
        for session in ending:
            session.cut(Reason.TARGET_DOWN)

    def _with_demo(self, pool: PoolConfig) -> PoolConfig:
        if not self.config.demo:
            return pool
        if self._demo is None:
            from .demo import Demo  # with a whole web server, which few relays need

            self._demo = Demo(self._reactor, self._sessions)
            self._demo.listen()
        target = TargetConfig(host="127.0.0.1", port=self._demo.port, name="demo")
        return PoolConfig(name=pool.name, targets=(target,))

    def _sessions(self) -> list[Session]:
        return [session for each in self.all_listeners() for session in each.sessions]

    def _running(self) -> None:
        if self.running:
            self.state = "running"
        if self.membership is None:
            self.log.info("fwdrelay {version} is ready.", version=__version__)
        self._told = self._status_text()
        self._notifier.ready(self._told)
        self._status.start(STATUS_EVERY, now=False)
        if self._notifier.watchdog_interval is not None:
            self._watchdog.start(self._notifier.watchdog_interval)

    def _status_text(self) -> str:
        doing = "draining" if self.draining else "relaying"
        return f"{doing}, {self.active} sessions open, {self._ended_count} ended"

    def _tell_status(self) -> None:
        text = self._status_text()
        if text != self._told:
            self._told = text
            self._notifier.status(text)

    def _session_left(self) -> None:
        self._ended_count += 1
        if self._leaving:
            for listener in [each for each in self._leaving if not each.active]:
                deadline = self._leaving.pop(listener)
                if deadline is not None:
                    deadline.cancel()
                listener.refusals.stop()
        if self._drained is not None and not self.active:
            drained, self._drained = self._drained, None
            drained.callback(None)

    async def _stop(self) -> None:
        self._notifier.stopping(self._status_text())
        if self._pump is not None:
            self._addresses.close(list(self._addresses.bound))
            await self._addresses.closed()
        await self._drain()
        # Cut connections are closed in the reactor's next turn.
        await deferLater(self._reactor, 0)
        for pool in self.pools.values():
            pool.stop()
        for listener in self.listeners.values():
            listener.refusals.stop()
        for loop in (self._status, self._watchdog):
            if loop.running:
                loop.stop()
        self._files.stop()
        self._deadlines.stop()
        if self._pump is not None:
            self._pump.stop()
        if self._demo is not None:
            await self._demo.stop()
        if self._admin is not None:
            await self._admin.stop()
            self._admin = None
        if self._access_log is not None:
            self._access_log.close()
            self._access_log = None
        self._notifier.close()

    async def _drain(self) -> None:
        if not self.active:
            return
        limit = self.config.relay.drain_timeout
        self.log.info(
            "Draining {active}; {limit}.",
            active=counted(self.active, "session"),
            limit=_patience(limit),
        )
        self._drained = Deferred()
        deadline = (
            self._reactor.callLater(limit, self.cut_all, Reason.DRAIN_TIMEOUT) if limit else None
        )
        await self._drained
        if deadline is not None and deadline.active():
            deadline.cancel()


def open_access_log(config: RelayConfig, reactor: Any) -> AccessLog | None:
    """
    @return: None: there is to be none.
    @raise CannotOpenLog: it can't be opened.
    """
    where = config.access_log
    if where == "off":
        return None
    if where == "journald":
        return AccessLog(config.access_log_format, JournalSink(reactor))
    return AccessLog(config.access_log_format, Sink(reactor, None if where == "stdout" else where))


def _among(files: Iterable[File], paths: frozenset[str]) -> bool:
    return any(file.path in paths for file in files)


def _patience(limit: float) -> str:
    return f"what is left is cut in {limit:g} s" if limit else "nothing is cut"


def _log_of(config: RelayConfig) -> tuple[str, str]:
    return config.access_log, config.access_log_format
