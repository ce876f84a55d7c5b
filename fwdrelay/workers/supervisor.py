"""
The supervisor: what must outlive its workers, and what they are told.

It listens (`fwdrelay.workers.sockets`), holds what sessions need to go on in another process
(`fwdrelay.workers.keeper`), counts what is limited over all of them (`fwdrelay.ledger`), serves the admin API
(`fwdrelay.workers.together`), and has the processes (`fwdrelay.workers.crew`). It relays no byte itself.

An upgrade in place renews the supervisor first (`fwdrelay.workers.renewal`). Then workers of the new *generation*
start, on the same sockets, and when all of them relay, those of the old one hand over what can move, and drain.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred, succeed
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from .._version import __version__
from ..config import Config
from ..errors import FwdrelayError, NotPossible
from ..frontend import Key, keys
from ..ledger import Ledger
from ..observe.snapshot import Counters, Outcome, RelayState, WorkerShown
from ..process.sdnotify import Notifier
from ..relay import open_access_log
from ..reloading import Reloads, refuse_what_takes_a_restart, told, try_reload
from ..words import some
from . import renewal
from .child import Child
from .crew import Crew, Slot
from .keeper import Keeper
from .keeping import raise_limit
from .merging import nothing_counted
from .sockets import Sockets
from .talk import Ask, Begin, Change, Drain, Gone, HandOver, Renew, Reopen, Reread, Try
from .together import Together

if TYPE_CHECKING:
    from ..admin import AdminServer

STATUS_EVERY = 5.0
LOOK_AGAIN = 0.1
"""Seconds from one look whether workers have started to the next."""
RECOUNT_AFTER = 0.1
"""Seconds from a worker's death until it is looked whether its sessions are others' now."""
_COMM = "/proc/self/comm"
GRACE = 10.0
"""Seconds that workers have to end after the drain time-out, before they are killed."""


class Supervisor(Service):
    """
    @param config: with `relay.workers`.
    @param notifier: the line to systemd.
    @param give_up: called with a sentence when it can't start; it must not return.
    @param read: reads the configuration anew; None: there is nothing that could have changed.
    @param stop: ends the whole process in order, or at once.
    @param fail: ends the whole process, with a sentence, once the reactor runs.
    @param command: what makes this process anew, for an upgrade.
    @param before: what was left by the supervisor that this one goes on from; None: there was none.
    """

    name = "fwdrelay"
    log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: Any,
        *,
        notifier: Notifier,
        give_up: Callable[[str], None],
        read: Callable[[], Config] | None,
        stop: Callable[[bool], object],
        fail: Callable[[str], object],
        command: renewal.Command,
        before: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self._reactor = reactor
        self._notifier = notifier
        self._give_up = give_up
        self._read = read
        self._stop_process = stop
        self._fail = fail
        self._command = command
        self._before = before
        self.state: RelayState = "starting"
        self.started: float = time.time() if before is None else before["started"]
        self._generation = 0
        self._revision = 0
        self._reloads = Reloads()
        self._changing = DeferredLock()
        self._sockets: Sockets
        self._keeper: Keeper
        self._ledger: Ledger
        relay = config.relay
        self._crew = Crew(
            reactor,
            self,
            relay.workers,
            spares=relay.survive_crashes,
            departed=nothing_counted(),
        )
        self._together = Together(self, reactor)
        self._admin: AdminServer | None = None
        self._admin_before: tuple[str, socket.socket | None] = ("", None)
        """Where the API was served until a renewal, and what listens there still."""
        self._upgrading = False
        """Whether this process is to be renewed."""
        self._renewing = False
        """Whether that is about to be, so that what is promised now is lost."""
        self._taking_over = False
        """Whether it was renewed, and its workers do not all relay yet."""
        self._missing = ""
        """What the renewed supervisor could not have, so that the old workers go on."""
        self._old: list[Child] = []
        """Those of former generations that were not told to hand over yet."""
        self._status = LoopingCall(self._tell_status)
        self._watchdog = LoopingCall(notifier.watchdog)
        self._status.clock = self._watchdog.clock = reactor
        self._told = ""
        self._is_over = False

    # What the API asks; see `fwdrelay.workers.together.Supervised`.

    @property
    def reloads(self) -> Counter[str]:
        return self._reloads.count

    @property
    def last_reload(self) -> tuple[float, str] | None:
        return self._reloads.last

    @property
    def restarts(self) -> int:
        return self._crew.restarts

    @property
    def departed(self) -> Counters:
        return self._crew.departed

    @property
    def refused(self) -> int:
        return self._keeper.refused_total

    @property
    def events_skipped(self) -> int:
        return sum(child.skipped for child in self._crew.members)

    @property
    def unwell(self) -> str:
        return self._crew.unwell

    def workers(self) -> tuple[WorkerShown, ...]:
        return self._crew.shown(self._keeper.kept_by)

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        return await self._crew.ask(method, *arguments)

    async def ask_first(self, method: str, *arguments: Any) -> Any:
        return await self._crew.ask_first(method, *arguments)

    def listen(
        self, what: str, arguments: tuple[Any, ...], tell: Callable[[Any], object]
    ) -> Callable[[], None]:
        return self._crew.listen(what, arguments, tell)

    async def check(self) -> Outcome:
        return try_reload(self.config, self._read)

    def drain(self, *, now: bool = False) -> None:
        if self._renewing:
            raise NotPossible("the relay is being upgraded: ask again in a moment")
        self._stop_process(now)

    # Start.

    def privilegedStartService(self) -> None:
        """Bind what may need privileges, and have what workers share."""
        relay = self.config.relay
        if relay.survive_crashes:
            raise_limit()
        if self._before is not None:
            self._go_on_from(self._before)
        else:
            self._ledger = Ledger.create()
            self._keeper = Keeper(
                self._reactor, lost=self._channel_lost, holds=relay.survive_crashes
            )
            self._sockets = Sockets(self._reactor)
        for what in (self._bind, self._serve_admin):
            try:
                what()
            except FwdrelayError as failed:
                if self._before is None:
                    self._give_up(str(failed))
                self._missing = self._missing or str(failed)

    def _bind(self) -> None:
        count = self.config.relay.workers
        self._sockets.grow(count)
        self._tell_of(self._sockets.bind(self.config, count))

    def _tell_of(self, bound: Iterable[Key]) -> None:
        new = set(bound)
        for listener in self.config.listeners:
            for key in keys(listener):
                if key in new:
                    self.log.info(
                        "Listener {listener} listens on {address} for {where_to}",
                        listener=listener.name,
                        address=self._sockets.address(key),
                        where_to=_where_to(self.config, listener.name),
                    )

    def _serve_admin(self) -> None:
        """
        @raise FwdrelayError: its address can't be bound, or its token not be read.
        """
        relay = self.config.relay
        (address, inherited), self._admin_before = self._admin_before, ("", None)
        if inherited is not None and address != relay.admin:
            inherited.close()
            inherited = None
            if address.startswith("unix:"):
                with suppress(OSError):
                    os.unlink(address.removeprefix("unix:"))
        if relay.admin != "off":
            from ..admin import AdminServer

            admin = AdminServer(relay, self._together, self._reactor)
            admin.listen(inherited)
            self._admin = admin

    def _serve_admin_again(self) -> None:
        if self._admin is None and not self._is_over:
            try:
                self._serve_admin()
            except FwdrelayError as failed:
                self.log.error("The admin API is not served any more: {failed}.", failed=failed)

    def startService(self) -> None:
        """Start the workers, once the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        if not self.running:
            return
        self._status.start(STATUS_EVERY, now=False)
        if self._notifier.watchdog_interval is not None:
            self._watchdog.start(self._notifier.watchdog_interval)
        if self._before is not None:
            self._before = None
            self._taking_over = True
            self._keeper.resume()
        if self._missing and self._old:
            self._upgrade_failed(self._missing)
            self._crew.watch()
            return
        if self._missing:
            self._upgrade_stuck(self._missing)
        self._crew.start()

    # Workers come and go; see `fwdrelay.workers.crew.Ship`.

    @property
    def wants_workers(self) -> bool:
        return bool(self.running)

    def joined(self, child: Child, keeping: socket.socket) -> None:
        child.generation = self._generation
        self._keeper.join(child.pid, keeping)

    async def let_begin(self, child: Child) -> bool:
        revision = self._revision
        sockets, descriptors = self._sockets_of(child)
        try:
            await child.talk.ask(
                Begin,
                worker=child.worker,
                config=_for_workers(self.config),
                sockets=sockets,
                descriptors=[*descriptors, self._ledger.fileno()],
            )
            for (pool, target), (state, weight) in self._together.steered.items():
                arguments = (pool, target, state, weight)
                await child.talk.ask(Ask, method="steer_if_there", arguments=arguments)
        except Gone:
            child.kill()  # if it has not ended: what it could not answer is in the log
            return False
        except (FwdrelayError, ValueError) as failed:
            self.log.error(
                "Worker {worker} can't begin: {failed}", worker=child.worker, failed=failed
            )
            child.kill()
            return False
        if revision != self._revision:
            # The configuration has changed meanwhile, and it was not told.
            child.kill()
            return False
        return True

    def relays(self, child: Child) -> None:
        self.log.info("Worker {worker} ({pid}) relays.", worker=child.worker, pid=child.pid)
        self._keeper.may_receive(child.pid, True)
        if self.state == "draining" or not self._crew.all_relay:
            return
        if self._taking_over:
            self._upgraded()
        elif self.state == "starting":
            self.log.info("fwdrelay {version} is ready.", version=__version__)
            self._is_ready()

    def _is_ready(self) -> None:
        if self.state == "draining":  # it was told to stop meanwhile
            return
        self.state = "running"
        self._told = self._status_text()
        self._notifier.ready(self._told)

    def left(self, child: Child) -> None:
        self._keeper.left(child.pid)
        if child in self._old:
            self._old.remove(child)
        if child.worker:
            self._reactor.callLater(RECOUNT_AFTER, self._recount)

    def _recount(self) -> None:
        """What the dead held counts no more. Until others have its sessions they are not to be taken for new room."""
        if self._is_over:
            return
        if self._keeper.orphans:
            self._reactor.callLater(RECOUNT_AFTER, self._recount)
        else:
            self._ledger.recount()

    def hopeless(self, sentence: str) -> None:
        self.log.error("Stopping: {sentence}.", sentence=sentence)
        self._fail(sentence)

    def takes_over(self, slot: Slot, end: str) -> bool:
        if self._taking_over:
            why = f"worker {slot.number} of the new ones {end}"
            if self._old:
                self._upgrade_failed(why)
                return True
            self._upgrade_stuck(why)
        return False

    def _channel_lost(self, pid: int) -> None:
        """It has closed its way to the keeper, which it does at its end; its sessions are not to be two's."""
        child = self._crew.children.get(pid)
        if child is not None and child.state in ("running", "beginning"):
            child.kill()

    def _close_unwanted(self) -> None:
        """Listen no more where the configuration does not say so."""
        wanted = {key for listener in self.config.listeners for key in keys(listener)}
        self._sockets.close([key for key in self._sockets.bound if key not in wanted])

    def _sockets_of(
        self, child: Child, only: Iterable[Key] | None = None
    ) -> tuple[tuple[tuple[Key, bool, int], ...], list[int]]:
        """
        @return: as a worker is told of them, and their descriptors.
        """
        wanted = None if only is None else set(only)
        sockets: list[tuple[Key, bool, int]] = []
        descriptors: list[int] = []
        for key, owned, found in self._sockets.of(child.worker):
            if wanted is None or key in wanted:
                sockets.append((key, owned, len(found)))
                descriptors += [each.fileno() for each in found]
        return tuple(sockets), descriptors

    def _status_text(self) -> str:
        doing = {"starting": "starting", "running": "relaying"}.get(self.state, "draining")
        return f"{doing} {self._crew.text}"

    def _tell_status(self) -> None:
        text = self._status_text()
        if text != self._told and self.state != "starting":
            self._told = text
            self._notifier.status(text)

    # What has to wait for workers that start: a signal that asks for it comes but once.

    @property
    def _is_beginning(self) -> bool:
        """Whether workers have not all relayed yet, in this process."""
        return self.state == "starting" or self._taking_over

    async def _wait_while(self, busy: Callable[[], bool], what: str) -> None:
        """Wait for as long as that is so, and the relay does not stop."""
        if busy():
            self.log.info("{what} waits until workers have started.", what=what)
        while busy() and self.state != "draining":
            await deferLater(self._reactor, LOOK_AGAIN)

    # Reload.

    def reopen_logs(self) -> None:
        """The access log was moved away: all begin a new file."""
        for child in self._crew.members:
            child.talk.tell(Reopen)

    def reload(self) -> Deferred[Outcome]:
        """
        Read the configuration anew, and have all workers be as it says. Where anything is wrong with it, nothing
        changes, and the log says what.

        @return: fires with what came of it.
        """
        self.reopen_logs()
        return self._changing.run(lambda: Deferred.fromCoroutine(self._reload()))

    async def _reload(self) -> Outcome:
        await self._wait_while(lambda: self._is_beginning, "Reading the configuration")
        if self.state == "draining":
            self.log.warn("The configuration is not read again: the relay is stopping.")
            return Outcome(False, errors=("the relay is stopping",))
        if self._read is None:
            return self._reloads.done(await self._reread())
        read = self._read
        self._notifier.reloading()
        try:
            return await self._reloads.attempt(lambda: self._change(read))
        finally:
            self._told = self._status_text()
            self._notifier.ready(self._told)

    async def _reread(self) -> Outcome:
        """There is no configuration file: workers read anew what the command line names."""
        if self._admin is not None:
            self._admin.renew_token()
        outcomes: list[Outcome] = []
        for child in self._crew.members:
            try:
                outcomes.append((await child.talk.ask(Reread))["outcome"])
            except Gone:
                continue
        wrong = [outcome for outcome in outcomes if not outcome.okay]
        return (wrong or outcomes or [Outcome(True, "no worker relays just now")])[0]

    async def _change(self, read: Callable[[], Config]) -> str:
        before, config = self.config, read()
        refuse_what_takes_a_restart(before, config)
        bound = self._sockets.bind(config, config.relay.workers)
        try:
            await self._try_change(config)
        except BaseException:
            self._sockets.close(bound)
            raise
        # From here on nothing can go wrong: a worker that can't follow is replaced.
        self.config = config
        self._revision += 1
        for child in self._crew.members:
            if child.state == "running":
                await self._let_change(child, bound)
        self._close_unwanted()
        self._tell_of(bound)
        if self._admin is not None:
            self._admin.renew_token()
        changed = told(before, config)
        self.log.info("The configuration is in force: {changed}.", changed=changed)
        return changed

    async def _try_change(self, config: Config) -> None:
        """
        @param config: what is in force as soon as nobody has anything against it, and not before: who begins
            meanwhile begins with what is.
        @raise FwdrelayError: a worker has something against it.
        """
        for child in self._crew.members:
            if child.state == "running":
                try:
                    answer = await child.talk.ask(Try, config=_for_workers(config))
                except Gone:
                    continue  # its successor begins with what is in force then
                if answer["wrong"]:
                    raise FwdrelayError("; ".join(answer["wrong"]))

    async def _let_change(self, child: Child, bound: Iterable[Key]) -> None:
        sockets, descriptors = self._sockets_of(child, bound)
        try:
            await child.talk.ask(
                Change,
                config=_for_workers(self.config),
                sockets=sockets,
                descriptors=descriptors,
            )
        except (FwdrelayError, ValueError) as failed:
            if isinstance(failed, Gone) and child.talk.over:
                return
            self.log.error(
                "Worker {worker} can't follow the change of the configuration, and is replaced: {failed}",
                worker=child.worker,
                failed=failed,
            )
            self._send_away(child)
            slot = self._crew.slot_of(child)
            if slot is not None:
                slot.child = None
                self._crew.fill(slot)

    def _send_away(self, child: Child) -> None:
        """Have it hand over what it can, drain, and end."""
        child.state = "draining"
        self._keeper.may_receive(child.pid, False)
        child.talk.tell(HandOver)

    # Upgrade.

    def upgrade(self) -> Deferred[None]:
        """
        Go on with the code and the configuration that there are now: rehearse that in another process, renew this
        one, and have new workers take over. Where that can't be, all goes on as it was.

        @return: fires where this process is not renewed.
        """
        if self._upgrading or self._taking_over:
            self.log.warn("Not upgraded: an upgrade is under way already.")
            return succeed(None)
        self._upgrading = True
        upgrading = self._changing.run(lambda: Deferred.fromCoroutine(self._upgrade()))
        return upgrading.addErrback(self._upgrade_broke)

    def _upgrade_broke(self, failure: Any) -> None:
        self.log.failure("An upgrade went wrong in a way it never should", failure)
        self._upgrading = self._renewing = False
        renewal.unblock()
        self._keeper.resume()
        self._serve_admin_again()
        self._crew.have_all()
        self._crew.want_spare()
        self._is_ready()

    async def _upgrade(self) -> None:
        crew = self._crew
        crew.hold_back()  # those that die again and again come back afterwards, one way or the other
        await self._wait_while(lambda: self._is_beginning or crew.is_filling, "The upgrade")
        if self.state != "running" or not crew.may_be_handed_on:
            self._upgrading = False
            if self.state == "running":
                self.log.warn("Not upgraded: no worker relays just now.")
            else:
                self.log.warn("Not upgraded: the relay is stopping.")
            crew.have_all()
            return
        crew.stop()
        await crew.dismiss_spare()
        wrong = self._command.impossible or await renewal.rehearse(
            self._reactor, self._command, self._left_behind({}), self._handed_on()
        )
        if not wrong:
            wrong = await self._wait_for_signals()
        if wrong:
            self._not_upgraded(wrong)
            return
        self._notifier.reloading()
        ways = await self._offer_other_ways()
        if self._admin is not None:
            self._admin_before = self.config.relay.admin, await self._admin.hand_on()
            self._admin = None
        wrong = self._what_hinders
        if not wrong and {child.pid for child in crew.members} != ways.keys():
            wrong = "a worker has died meanwhile"
        if not wrong:
            self._keeper.pause()
            state = self._left_behind({pid: sock.fileno() for pid, sock in ways.items()})
            self.log.info("Renewing the supervisor.")
            try:
                renewal.renew(state, self._handed_on(ways.values()), self._command)
            except OSError as failed:
                wrong = f"{self._command.arguments[0]}: {failed.strerror}"
            self._keeper.resume()
        renewal.unblock()
        for sock in ways.values():
            sock.close()  # workers never come to use theirs
        self._serve_admin_again()
        self._not_upgraded(wrong)
        self._is_ready()

    @property
    def _what_hinders(self) -> str:
        """Why there can't be a next program just now; empty: nothing speaks against it."""
        if self.state != "running":
            return "the relay is stopping"
        return "" if self._crew.may_be_handed_on else "a worker has died meanwhile"

    async def _wait_for_signals(self) -> str:
        """
        From now on signals wait for the next program; what those before ask for is done first.

        @return: why there is to be no next program after all; empty: nothing speaks against it.
        """
        renewal.hold()
        self._renewing = True
        # A signal stops the reactor in the one turn, which stops us in the next.
        for _ in range(2):
            await deferLater(self._reactor, 0)
        wrong = self._what_hinders
        if wrong:
            renewal.unblock()
        else:
            self._crew.stop()
        return wrong

    async def _offer_other_ways(self) -> dict[int, socket.socket]:
        """
        What is under way in a talk is lost with this program: workers get another socket, by which they talk with
        the next one.

        @return: our ends, by the pids of workers.
        """
        ways: dict[int, socket.socket] = {}
        for child in self._crew.members:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    await child.talk.ask(Renew, way=[theirs.fileno()])
                except Gone:
                    ours.close()
                else:
                    ways[child.pid] = ours
        return ways

    def _not_upgraded(self, why: str) -> None:
        self._upgrading = self._renewing = False
        self.log.error("Not upgraded: {why}. All goes on as it was.", why=why.rstrip("."))
        self._crew.have_all()
        self._crew.want_spare()

    def _left_behind(self, ways: dict[int, int]) -> dict[str, Any]:
        """
        What the renewed supervisor goes on from, as JSON has it.

        @param ways: the descriptors by which workers will talk with it, by their pids.
        """
        now = self._reactor.seconds()
        address, admin = self._admin_before
        return {
            "called": _what_this_process_is_called(),
            "started": self.started,
            "generation": self._generation,
            "ledger": self._ledger.fileno(),
            "admin": [address, -1 if admin is None else admin.fileno()],
            "sockets": self._sockets.state(),
            "keeper": self._keeper.state(),
            "reloads": dict(self._reloads.count),
            "restarts": [self._crew.restarts, *(slot.restarts for slot in self._crew.slots)],
            "steered": [[*who, *what] for who, what in self._together.steered.items()],
            "counted": renewal.packed(self._together.told),
            "departed": renewal.packed(self._crew.departed),
            "children": [
                {
                    "pid": child.pid,
                    "talk": ways.get(child.pid, -1),
                    "worker": child.worker,
                    "generation": child.generation,
                    "version": child.version,
                    "state": child.state,
                    "seconds": now - child.started,
                    "sessions": child.sessions,
                }
                for child in self._crew.members
            ],
        }

    def _handed_on(self, ways: Iterable[socket.socket] = ()) -> list[int]:
        _, admin = self._admin_before
        return [
            self._ledger.fileno(),
            *([] if admin is None else [admin.fileno()]),
            *self._sockets.descriptors(),
            *self._keeper.descriptors(),
            *(sock.fileno() for sock in ways),
        ]

    def _go_on_from(self, before: dict[str, Any]) -> None:
        """
        @param before: see `_left_behind`.
        """
        relay = self.config.relay
        _call_this_process(before["called"])
        self._generation = before["generation"] + 1
        try:
            self._ledger = Ledger.open(before["ledger"])
        except ValueError as wrong:
            # The old workers go on counting there for as long as they last.
            self.log.warn(
                "Limits are counted anew, apart from the old workers: {wrong}.", wrong=wrong
            )
            self._ledger = Ledger.create()
        os.close(before["ledger"])
        address, admin = before["admin"]
        if admin >= 0:
            os.set_inheritable(admin, False)
            self._admin_before = address, socket.socket(fileno=admin)
        self._sockets = Sockets.restored(self._reactor, before["sockets"])
        self._keeper = Keeper.restored(
            self._reactor, before["keeper"], holds=relay.survive_crashes, lost=self._channel_lost
        )
        self._reloads.count.update(before["reloads"])
        crew = self._crew
        crew.restarts, *restarts = before["restarts"]
        for slot, count in zip(crew.slots, restarts, strict=False):
            slot.restarts = count
        crew.departed = renewal.unpacked(before["departed"]) or crew.departed
        self._together.told = renewal.unpacked(before["counted"]) or self._together.told
        for pool, target, state, weight in before["steered"]:
            self._together.steered[pool, target] = state, weight
        for each in before["children"]:
            if each["talk"] < 0:
                continue
            os.set_inheritable(each["talk"], False)
            child = crew.take_in(each["pid"], socket.socket(fileno=each["talk"]))
            child.worker, child.generation = each["worker"], each["generation"]
            child.version, child.state = each["version"], each["state"]
            child.started = self._reactor.seconds() - each["seconds"]
            child.sessions = each["sessions"]
            if child.state == "running":
                self._old.append(child)

    def _upgraded(self) -> None:
        """All of this generation relay: those of the last one may leave."""
        self._taking_over = False
        old, self._old = self._old, []
        self.log.info(
            "fwdrelay {version} is ready, upgraded in place; handing over: {who}.",
            version=__version__,
            who=some([f"worker {child.worker} ({child.pid})" for child in old]) or "nobody",
        )
        for child in old:
            self._send_away(child)
        self._close_unwanted()
        self._is_ready()

    def _upgrade_failed(self, why: str) -> None:
        """Those of the last generation go on as if nothing had been."""
        self._taking_over = False
        self.log.error("Not upgraded: {why}. The old workers go on.", why=why.rstrip("."))
        old, self._old = {child.worker: child for child in self._old}, []
        for slot in self._crew.slots:
            slot.cancel()
            new, slot.child = slot.child, old.get(slot.number)
            if new is not None and new.state == "running":
                self._send_away(new)  # somebody may have come to it already
            elif new is not None:
                new.worker = 0
                new.kill()
        self._crew.have_all()  # there may be to be more than there were
        self._crew.begun = True
        self._is_ready()

    def _upgrade_stuck(self, why: str) -> None:
        """None of the last generation is left that could go on: those of this one are tried again and again."""
        self._taking_over = False
        self.log.error(
            "Upgraded, but {why}. No old workers are left to go on.", why=why.rstrip(".")
        )
        self._crew.begun = True
        self._close_unwanted()
        self._is_ready()

    # The end.

    def cut_all(self) -> None:
        """End every session now."""
        for child in self._crew.members:
            child.talk.tell(Drain, now=True)

    def stopService(self) -> Deferred[None]:
        """
        Have all workers drain and end, then close everything.

        @return: fires when nothing is left.
        """
        maybeDeferred(super().stopService)
        self.state = "draining"
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        crew = self._crew
        self._notifier.stopping(self._status_text())
        crew.stop()
        for child in list(crew.children.values()):
            if child.state in ("running", "draining"):
                child.state = "draining"
                child.talk.tell(Drain, now=False)
            else:
                child.kill()
        limit = self.config.relay.drain_timeout
        late = self._reactor.callLater(limit + GRACE, self._kill_all) if limit else None
        await crew.all_gone()
        if late is not None and late.active():
            late.cancel()
        crew.stop_pinging()
        for loop in (self._status, self._watchdog):
            if loop.running:
                loop.stop()
        if self._admin is not None:
            await self._admin.stop()
            self._admin = None
        self._is_over = True
        self._sockets.close_all()
        self._keeper.stop()
        self._ledger.close()
        self._notifier.close()

    def _kill_all(self) -> None:
        for child in list(self._crew.children.values()):
            self.log.error(
                "Worker {worker} ({pid}) does not end: killing it.",
                worker=child.worker,
                pid=child.pid,
            )
            child.kill()


def _what_this_process_is_called() -> str:
    """
    @return: what ps(1) and killall(1) know it by: see `/proc/pid/comm` in proc(5).
    """
    try:
        with open(_COMM) as comm:
            return comm.read().rstrip("\n")
    except OSError:
        return ""


def _call_this_process(name: str) -> None:
    """An interpreter that was executed by itself is called after that, and not after its script."""
    with suppress(OSError), open(_COMM, "w") as comm:
        comm.write(name)


def _for_workers(config: Config) -> Config:
    """They serve no API, and have no workers themselves."""
    relay = attrs.evolve(config.relay, admin="off", admin_token_file="", workers=0)
    return attrs.evolve(config, relay=relay)


def _where_to(config: Config, name: str) -> str:
    """
    @return: where sessions of that listener go, in words.
    """
    listener = next(each for each in config.listeners if each.name == name)
    pools = {pool.name: pool for pool in config.pools}
    named = dict.fromkeys([listener.pool, *(route.pool for route in listener.routes)])
    known = "demo" if config.demo else "no targets yet"
    return "; ".join(
        f"pool {pool}: {some([target.label for target in pools[pool].targets]) or known}"
        for pool in named
        if pool
    )


def try_to_go_on(config: Config, before: dict[str, Any]) -> None:
    """
    Whether a supervisor of this version could go on from that: for a rehearsal, in a process that ends then, and whose
    descriptors are copies.

    @raise Exception: it could not.
    """
    from twisted.internet import reactor

    supervisor = Supervisor(
        config,
        reactor,
        notifier=Notifier(),
        give_up=print,
        read=None,
        stop=print,
        fail=print,
        command=renewal.Command((), "", None, 0),
        before=before,
    )
    supervisor._go_on_from(before)
    access_log = open_access_log(config.relay, reactor)
    if access_log is not None:
        access_log.close(patience=0.0)
