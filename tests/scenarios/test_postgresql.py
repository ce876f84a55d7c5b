"""PostgreSQL through the relay: a cluster of the test's own, pgbench's sums, large COPYs both ways."""

from __future__ import annotations

import hashlib
import os
import pwd
import random
import signal
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from tests.scenarios.programs import folder, free_port, run, running, skip_unless_installed
from tests.scenarios.relay_process import RelayProcess
from tests.scenarios.scenario import Scenario

CLIENTS = 10
TRANSACTIONS = 60
ROWS = 100_000


@frozen
class Cluster:
    """
    A running PostgreSQL.

    @ivar port: its TCP port on 127.0.0.1.
    @ivar socket: the path of its Unix socket.
    """

    port: int
    socket: Path


@contextmanager
def cluster(place: Path) -> Iterator[Cluster]:
    """A new PostgreSQL in that folder. Its programs refuse to run as root: root becomes `postgres`."""
    become: tuple[str, ...] = ()
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(place, account.pw_uid, account.pw_gid)
        become = ("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}")
        become += ("--clear-groups", "--pdeathsig", "TERM", "--")
    port = free_port()
    data = str(place / "data")
    run(
        *(*become, "initdb", "--pgdata", data, "--username", "relay", "--auth", "trust"),
        *("--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
    )
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": place,
        "fsync": "off",
        "autovacuum": "off",
        "max_wal_size": "4GB",
    }
    with running(
        *(*become, "postgres", "-D", data),
        *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ready="ready to accept connections",
        end=signal.SIGINT,  # a fast shutdown; SIGTERM waits for clients
    ):
        yield Cluster(port, place / f".s.PGSQL.{port}")


def through(relay: RelayProcess) -> tuple[str, ...]:
    """Options of PostgreSQL's clients for a connection through `relay`."""
    return ("--host", "127.0.0.1", "--port", str(relay.port), "--username", "relay")


def psql(relay: RelayProcess, command: str, **files: Path) -> str:
    """
    Run one command.

    @return: what it answered, fields separated by `|`.
    """
    options = ("--no-psqlrc", "--no-align", "--tuples-only", "--quiet", *through(relay))
    return run("psql", *options, "--dbname", "postgres", "--command", command, **files).strip()


def make_rows(path: Path) -> str:
    """
    Write a file as COPY takes and gives it.

    @return: its SHA-256.
    """
    source = random.Random(5432)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(ROWS):
            row = b"%d\t%s\n" % (number, source.randbytes(source.randrange(120)).hex().encode())
            file.write(row)
            digest.update(row)
    return digest.hexdigest()


class PostgreSQLTests(Scenario):
    pump = "auto"

    def setUp(self) -> None:
        skip_unless_installed("initdb", "postgres", "pgbench", "psql", "setpriv")
        if os.geteuid() == 0 and "postgres" not in {each.pw_name for each in pwd.getpwall()}:
            raise unittest.SkipTest("root needs an account postgres to run PostgreSQL as")

    def assert_all_done(self, relay: RelayProcess, count: int) -> None:
        """The sessions that have ended are that many at least, and ended well."""
        for entry in relay.ended(count):
            self.assertEqual((entry["reason"], entry["code"]), ("done", "--"), entry)

    def bench(self, relay: RelayProcess) -> None:
        """Run pgbench's transactions: in sessions that last, and in one for each; compare its sums."""
        to = (*through(relay), "postgres")
        run("pgbench", "--initialize", "--scale", "2", "--quiet", *to)
        work = ("--client", str(CLIENTS), "--jobs", "2", "--no-vacuum")
        run("pgbench", *work, "--transactions", str(TRANSACTIONS), *to)
        run("pgbench", *work, "--transactions", "10", "--connect", *to)
        count, wanted, *sums = psql(
            relay,
            "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(delta) FROM pgbench_history),"
            " (SELECT sum(abalance) FROM pgbench_accounts),"
            " (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches)",
        ).split("|")
        self.assertEqual(int(count), CLIENTS * (TRANSACTIONS + 10))
        self.assertEqual(sums, [wanted] * 3)
        self.assert_all_done(relay, 1 + CLIENTS + CLIENTS * 10 + 1)

    def test_every_transaction_of_pgbench_is_made_over_tcp(self) -> None:
        with (
            folder() as place,
            cluster(place) as server,
            self.relaying("--target", f"127.0.0.1:{server.port}") as relay,
        ):
            self.bench(relay)

    def test_every_transaction_of_pgbench_is_made_over_the_unix_socket(self) -> None:
        with (
            folder() as place,
            cluster(place) as server,
            self.relaying("--target", f"unix:{server.socket}") as relay,
        ):
            self.bench(relay)

    def test_a_large_table_is_the_same_after_a_copy_in_and_a_copy_out(self) -> None:
        with (
            folder() as place,
            cluster(place) as server,
            self.relaying("--target", f"127.0.0.1:{server.port}") as relay,
        ):
            wanted = make_rows(place / "in")
            psql(relay, "CREATE TABLE rows (number integer PRIMARY KEY, text text)")
            psql(relay, "COPY rows FROM STDIN", stdin=place / "in")
            self.assertEqual(psql(relay, "SELECT count(*) FROM rows"), str(ROWS))
            psql(relay, "COPY (TABLE rows ORDER BY number) TO STDOUT", stdout=place / "out")
            with (place / "out").open("rb") as out:
                self.assertEqual(hashlib.file_digest(out, "sha256").hexdigest(), wanted)
            self.assert_all_done(relay, 4)
