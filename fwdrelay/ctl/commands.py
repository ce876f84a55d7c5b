"""
The command line: what can be asked for, how it is told, and the one place where failures become sentences and
a status.

What draws is imported by the command that needs it, so that the others, and completion, do not wait for it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from .. import __version__
from . import completion
from .api import LONG_PATIENCE, Document, segment
from .asking import Asking, asks, say, tell, write_json
from .exits import (
    DONE,
    FAILED,
    NO_RELAY,
    NOT_AUTHORISED,
    NOT_THERE,
    USAGE,
    WRONG_CONFIGURATION,
    Failure,
    NoRelay,
    NoSuchThing,
    Refused,
    WrongConfiguration,
)

INTERRUPTED = 130
SORTS = ("age", "bytes", "up", "down", "idle", "client", "target")
"""What `sessions` can be sorted by."""
LIMIT = 1000
"""Sessions that are told of where no other limit is given, as the API has it."""

_EXITS = f"""\b
Exit status:
  {DONE:>3}  done
  {FAILED:>3}  the relay refused or failed
  {USAGE:>3}  wrong usage
  {NO_RELAY:>3}  no relay there
  {NOT_THERE:>3}  no such session, target or pool
  {NOT_AUTHORISED:>3}  not authorised
  {WRONG_CONFIGURATION:>3}  the configuration is wrong"""

_SECONDS = click.FloatRange(min=0)


def run(arguments: Sequence[str]) -> int:
    """
    @param arguments: of the command line, without the program's name.
    @return: what to exit with; there is never a traceback.
    """
    _prepare_streams()
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads has had enough
        _write_no_more()
        return DONE
    except OSError as error:
        _write_no_more()
        tell(f"it cannot be written: {(error.strerror or str(error)).lower()}")
        return FAILED


def _run(arguments: Sequence[str]) -> int:
    try:
        instruction = os.environ.get(completion.VARIABLE)
        if instruction:
            return shell_complete(cli, {}, completion.PROGRAM, completion.VARIABLE, instruction)
        with cli.make_context(completion.PROGRAM, list(arguments)) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as wrong:
        wrong.show()
        return wrong.exit_code
    except Failure as failure:
        for sentence in failure.sentences:
            tell(sentence)
        return failure.status
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except OSError:
        raise
    except Exception as error:
        tell(f"this should not have happened: {type(error).__name__}: {error}")
        return FAILED
    return DONE


def _prepare_streams() -> None:
    """Make sure that there are some, and that they take whatever comes."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed by whoever started this
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _write_no_more() -> None:
    """Whatever is still to be written goes nowhere, or the interpreter would complain when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXITS,
)
@asks
@click.version_option(__version__, "--version", message=f"{completion.PROGRAM} %(version)s")
def cli() -> None:
    """See and steer a running fwdrelay, by the API that its --admin serves."""


# ------------------------------------------------------------------------------------------ seeing


@cli.command()
@asks
@click.pass_obj
def status(asking: Asking) -> None:
    """What the relay is and does, in short."""
    document = asking.ask("GET", "/v1/status")
    if asking.as_json:
        return
    pools = _document(asking, "/v1/pools")
    from . import drawing
    from .answers import PoolsShown, Status, value_of

    shown = value_of(document, Status)
    workers: tuple[drawing.Drawable, ...] = ()
    if shown.workers:
        workers = drawing.workers_table(shown.workers), ""
    drawing.show(
        drawing.status_head(shown),
        "",
        *workers,
        drawing.listeners_table(shown),
        "",
        drawing.pools_in_short(value_of(pools, PoolsShown).pools),
    )


@cli.command()
@asks
@click.pass_obj
def workers(asking: Asking) -> None:
    """
    The processes that relay, where there are several.

    With --json, an object with the one key "workers" is written.
    """
    answer = asking.api().ask("GET", "/v1/status")
    from .answers import Status, value_of

    if answer.failure():
        asking.written(answer)
    shown = value_of(answer.document, Status)
    if asking.as_json:
        write_json({"workers": answer.document["workers"]})
        return
    from . import drawing

    if shown.workers:
        drawing.show(drawing.workers_table(shown.workers))
    else:
        tell("there are no workers: the relay is one process")


@cli.command()
@asks
@click.option(
    "--interval",
    type=click.FloatRange(min=1),
    default=1,
    metavar="SECONDS",
    help="Between two frames.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Frames, and then end.")
@click.pass_obj
def top(asking: Asking, interval: float, count: int | None) -> None:
    """
    What goes through the relay, live.

    Throughput, pools, and sessions by rate. At a terminal, "s" sorts by another column and "q" quits.
    Elsewhere, one frame is written. With --json, each status that the relay tells is.
    """
    from . import drawing
    from .top import live, print_frames, samples

    with contextlib.suppress(KeyboardInterrupt):
        if asking.as_json:
            with asking.api().follow("/v1/events") as events:
                from .answers import object_of

                for number, (event, _) in enumerate(samples(events, interval), 1):
                    write_json(object_of(event))
                    if number == count:
                        return
        elif drawing.at_terminal():
            live(asking.api(), interval, count or 0)
        else:
            print_frames(asking.api(), interval, count or 1)


@cli.command()
@asks
@click.option(
    "--listener",
    metavar="NAME",
    shell_complete=completion.complete_listener,
    help="Only those of one listener.",
)
@click.option(
    "--target",
    metavar="LABEL",
    shell_complete=completion.complete_label,
    help="Only those on targets of that label.",
)
@click.option("--client", metavar="CIDR|ADDR|ADDR:PORT", help="Only those of some clients.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=LIMIT,
    show_default=True,
    metavar="N",
    help="So many at most; 0: all.",
)
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    help="Instead of the oldest first: bytes and times with the greatest first.",
)
@click.pass_obj
def sessions(
    asking: Asking,
    listener: str | None,
    target: str | None,
    client: str | None,
    limit: int,
    sort: str | None,
) -> None:
    """The open sessions."""
    from .answers import SessionsShown, value_of

    wanted = {
        "listener": listener,
        "target": target,
        "client": client,
        # The API's order is by age: another one has to begin with all of them.
        "limit": 0 if sort else limit,
    }
    answer = asking.api().ask("GET", "/v1/sessions", wanted)
    if sort and not answer.failure():
        _sort(answer.document, sort, limit)
    document = asking.written(answer)
    if asking.as_json:
        return
    from . import drawing

    shown = value_of(document, SessionsShown)
    drawing.show(drawing.sessions_table(shown.sessions))
    if shown.count > len(shown.sessions):
        tell(f"these are {len(shown.sessions)} of {shown.count} sessions; --limit 0 shows all")


def _sort(document: Document, sort: str, limit: int) -> None:
    """Sort the sessions of an answer, and leave out those above the limit."""
    from .answers import SessionsShown, value_of

    keys = {
        "age": lambda each: -each.duration_ms,
        "bytes": lambda each: -(each.bytes_up + each.bytes_down),
        "up": lambda each: -each.bytes_up,
        "down": lambda each: -each.bytes_down,
        "idle": lambda each: -(each.idle_ms or 0),
        "client": lambda each: each.client,
        "target": lambda each: (each.pool or "", each.target or ""),
    }
    known = value_of(document, SessionsShown).sessions
    order = sorted(range(len(known)), key=lambda index: keys[sort](known[index]))
    document["sessions"] = [document["sessions"][index] for index in order[: limit or None]]


@cli.command()
@asks
@click.pass_obj
def pools(asking: Asking) -> None:
    """The pools, and how their targets are."""
    document = asking.ask("GET", "/v1/pools")
    if asking.as_json:
        return
    from . import drawing
    from .answers import PoolsShown, value_of

    drawing.show(drawing.pools_table(value_of(document, PoolsShown).pools))


@cli.command()
@asks
@click.option(
    "--client", metavar="CIDR", help="Only sessions of these clients, an address or a network."
)
@click.option(
    "--count", type=click.IntRange(min=1), default=None, metavar="N", help="Sessions, and then end."
)
@click.pass_obj
def trace(asking: Asking, client: str | None, count: int | None) -> None:
    """
    Follow new sessions, step by step.

    What is decided about them, and how they end, as it happens.

    It ends with Ctrl-C, after --count sessions, or with the relay.
    """
    from .answers import Step, object_of, value_of
    from .tracing import Followed, writer

    followed, write = Followed(count or 0), writer()
    with (
        contextlib.suppress(KeyboardInterrupt),
        asking.api().follow("/v1/trace", {"client": client}, quiet=True) as events,
    ):
        tell("following new sessions, until Ctrl-C")
        for event in events:
            document = object_of(event) if event.name in ("trace", "dropped") else {}
            if event.name == "dropped":
                tell(
                    f"{document.get('events')} steps were missed: they came faster than they could be written"
                )
            if event.name != "trace":
                continue
            step = value_of(document, Step)
            if followed.wants(step):
                write_json(document) if asking.as_json else write(step)
            if followed.enough:
                return


# ---------------------------------------------------------------------------------------- steering


@cli.command()
@asks
@click.argument(
    "ids", metavar="ID...", nargs=-1, required=True, shell_complete=completion.complete_session
)
@click.pass_obj
def kill(asking: Asking, ids: tuple[str, ...]) -> None:
    """
    End sessions, at once. Their names are those of `sessions` and of the access log.

    All of them are tried; with --json, there is a line for each.
    """
    from .answers import SessionShown, value_of
    from .figures import milliseconds

    missing: list[str] = []
    for name in dict.fromkeys(ids):
        try:
            document = asking.ask("DELETE", f"/v1/sessions/{segment(name)}")
        except NoSuchThing as failure:
            missing.extend(failure.sentences)
            continue
        if not asking.as_json:
            was = value_of(document, SessionShown)
            to = "no target" if was.target is None else f"{was.pool}/{was.target}"
            age = milliseconds(was.duration_ms)
            say(f"Session {was.session} was ended, of {was.client} to {to}, after {age}.")
    if missing:
        raise NoSuchThing(*missing)


@cli.group()
@asks
def target() -> None:
    """
    Take a target out, put it back, weigh it.

    A target is named POOL/TARGET; the pool can be left out where only one has such a target.
    """


_target_argument = click.argument(
    "name", metavar="POOL/TARGET", shell_complete=completion.complete_target
)
_timeout_option = click.option(
    "--timeout",
    type=_SECONDS,
    default=0,
    metavar="SECONDS",
    help="How long --wait waits; then it ends with status 1. [default: as long as it takes]",
)


@target.command("drain")
@asks
@_target_argument
@click.option("--wait", is_flag=True, help="Until it has no sessions any more.")
@_timeout_option
@click.pass_obj
def target_drain(asking: Asking, name: str, wait: bool, timeout: float) -> None:
    """It gets no new sessions; those it has go on."""
    _steer(asking, name, {"state": "drain"}, wait=wait, timeout=timeout)


@target.command("ready")
@asks
@_target_argument
@click.pass_obj
def target_ready(asking: Asking, name: str) -> None:
    """It gets sessions, as far as health checks agree."""
    _steer(asking, name, {"state": "ready"})


@target.command("down")
@asks
@_target_argument
@click.pass_obj
def target_down(asking: Asking, name: str) -> None:
    """It counts as one that health checks have found to be down."""
    _steer(asking, name, {"state": "down"})


@target.command("weight")
@asks
@_target_argument
@click.argument("weight", metavar="N", type=click.IntRange(1, 1_000_000))
@click.pass_obj
def target_weight(asking: Asking, name: str, weight: int) -> None:
    """Its share of new sessions, beside those of the others."""
    _steer(asking, name, {"weight": weight})


def _steer(
    asking: Asking, name: str, body: Document, *, wait: bool = False, timeout: float = 0.0
) -> None:
    from .answers import PoolsShown, TargetShown, value_of
    from .names import find_target, full_name, target_path, what_may_surprise
    from .waiting import Wait

    pools = value_of(_document(asking, "/v1/pools"), PoolsShown).pools
    try:
        pool, found = find_target(name, pools)
    except Failure as failure:
        if asking.as_json:
            write_json({"error": str(failure)})
        raise
    answer = asking.api().ask("PATCH", target_path(pool, found), None, body)
    if not wait or answer.failure():
        asking.written(answer)
    document, called = answer.document, full_name(pool, found)
    if "state" in body:
        for sentence in what_may_surprise(pool, value_of(document, TargetShown)):
            tell(sentence)
    if wait:
        told = -1

        def over() -> str:
            nonlocal document, told
            document = _target_document(_document(asking, "/v1/pools"), pool.name, found.name)
            left = value_of(document, TargetShown).sessions
            if left != told and left:
                told = left
                tell(f"{called} has {_sessions_left(left)}")
            return _sessions_left(left) if left else ""

        Wait(timeout).until(over)
        if asking.as_json:
            write_json(document)
    if not asking.as_json:
        now = value_of(document, TargetShown)
        what = f"has the weight {now.weight}" if "weight" in body else f"is set to {now.state}"
        say(f"{called} {what}; it has {_sessions_left(now.sessions)}.")


def _target_document(pools: Document, pool: str, target: str) -> Document:
    """
    @return: one of the targets of what `GET /v1/pools` answers.
    """
    for each in pools["pools"]:
        for found in each["targets"]:
            if (each["name"], found["name"]) == (pool, target):
                return dict(found)
    raise NoSuchThing(f"{pool}/{target} is no longer there")


def _sessions_left(number: int) -> str:
    from ..words import counted

    return counted(number, "session") if number else "no sessions"


@cli.command()
@asks
@click.pass_obj
def reload(asking: Asking) -> None:
    """
    Read the configuration file again.

    It is what SIGHUP does. A file that is wrong changes nothing.
    """
    from .answers import Reloaded, value_of

    document = asking.ask("POST", "/v1/reload", patience=LONG_PATIENCE)
    changed = value_of(document, Reloaded).changed
    if not asking.as_json:
        say(f"Reloaded: {changed or 'nothing differs'}.")


@cli.command()
@asks
@click.option("--now", is_flag=True, help="End the sessions, too, at once.")
@click.option("--wait", is_flag=True, help="Until the relay is gone.")
@_timeout_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask, at a terminal.")
@click.pass_obj
def drain(asking: Asking, now: bool, wait: bool, timeout: float, yes: bool) -> None:
    """
    Let sessions end, and stop, as SIGTERM does.

    No client is let in any more. What is left after the relay's --drain-timeout is ended.
    """
    if not yes and _people():
        sure = f"The relay at {asking.api().admin} will stop. Are you sure?"
        try:
            confirmed = click.confirm(sure, err=True)
        except click.Abort:
            confirmed = False
        if not confirmed:
            raise Refused("nothing was done")
    before = _document(asking, "/v1/status") if wait else {}
    from .answers import Draining, value_of

    value_of(asking.ask("POST", "/v1/drain", body={"now": True} if now else None), Draining)
    if not wait:
        if not asking.as_json:
            say("The relay drains, and stops then.")
        return
    _wait_until_gone(asking, before, timeout)
    if not asking.as_json:
        say("The relay has stopped.")


def _people() -> bool:
    """Whether somebody is there who can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _wait_until_gone(asking: Asking, before: Document, timeout: float) -> None:
    """@param before: its status before."""
    from .answers import Status, value_of
    from .waiting import Wait

    last, told = value_of(before, Status), -1

    def over() -> str:
        nonlocal last, told
        try:
            now = value_of(_document(asking, "/v1/status"), Status)
        except NoRelay as lost:
            if lost.slow:
                raise
            return ""
        if now.pid != last.pid or now.uptime < last.uptime:  # another has begun in its place
            return ""
        last, left = now, now.totals.sessions
        if left != told:
            told = left
            tell(f"{_sessions_left(left)} left")
        return _sessions_left(left)

    Wait(timeout).until(over)


@cli.command()
@asks
@click.argument("file", required=False, type=click.Path())
@click.pass_obj
def check(asking: Asking, file: str | None) -> None:
    """
    Whether a configuration is right; nothing is changed.

    Without FILE, the running relay looks whether a reload would do. With FILE, no relay is asked: that file is
    read, as by `twistd fwdrelay --config FILE --check`.
    """
    if file is not None:
        _check_file(asking, file)
        return
    from .answers import Checked, value_of

    document = asking.ask("POST", "/v1/check", patience=LONG_PATIENCE)
    checked = value_of(document, Checked)
    if not checked.okay:
        raise WrongConfiguration(*checked.errors)
    if not asking.as_json:
        say(
            f"Nothing is wrong with the configuration: {checked.changed}."
            " A reload would do, if what is new in it can be bound and opened."
        )


def _check_file(asking: Asking, file: str) -> None:
    from .checking import check_file

    said = check_file(file)
    if asking.as_json and said.judged:
        write_json({"okay": said.status == DONE, "errors": said.sentences})
    else:
        click.echo(said.good, nl=False)
    click.echo(said.bad, nl=False, err=True)
    raise click.exceptions.Exit(said.status if said.judged else FAILED)


# ----------------------------------------------------------------------------------------- the rest


@cli.command("completion")
@click.argument("shell", type=click.Choice(completion.SHELLS))
def completion_script(shell: str) -> None:
    """
    What makes a shell complete command lines.

    For bash: eval "$(fwdrelayctl completion bash)"
    """
    click.echo(completion.script(cli, shell), nl=False)


def _document(asking: Asking, path: str) -> Document:
    """Ask for what is not the answer itself."""
    answer = asking.api().ask("GET", path)
    failure = answer.failure()
    if failure is not None:
        raise failure
    return answer.document
