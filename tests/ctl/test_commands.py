"""The commands: what each asks for, what it writes, and what it ends with."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

from attrs import evolve

from fwdrelay import __version__
from fwdrelay.ctl import commands, waiting
from fwdrelay.ctl.asking import Asking
from fwdrelay.observe.snapshot import TargetShown
from tests.ctl.fake_relay import (
    POOL,
    SESSION,
    STATUS,
    TARGET,
    WORKER,
    CtlTestCase,
    Reply,
    document,
    refusal,
    stream,
)
from tests.ctl.test_tracing import STEP
from tests.scenarios.programs import free_port


class LookingTests(CtlTestCase):
    def test_version_and_help(self) -> None:
        self.assertEqual(self.ctl("--version").out, f"fwdrelayctl {__version__}\n")
        for line in (("-h",), ("--help",), ("target", "-h"), ("top", "--help")):
            self.assertIn("Usage: fwdrelayctl", self.ctl(*line).out)
        self.assertEqual(self.relay.asked, [])

    def test_status(self) -> None:
        out = self.ctl("status").out
        for words in ("fwdrelay 1.2.3, running", "web       listening", "1 of 1 up"):
            self.assertIn(words, out)
        self.assertEqual(self.relay.lines(), ["GET /v1/status", "GET /v1/pools"])
        self.assertEqual(json.loads(self.ctl("status", "--json").out), document(STATUS))

    def test_workers(self) -> None:
        self.assertNotIn("WORKER", self.ctl("status").out)
        ran = self.ctl("workers")
        self.assertEqual(ran.out, "")
        self.assertIn("there are no workers: the relay is one process", ran.err)
        self.assertEqual(json.loads(self.ctl("workers", "--json").out), {"workers": []})
        ended = evolve(WORKER, worker=2, pid=None, state="ended", started=None, restarts=5)
        told = evolve(STATUS, workers=(WORKER, ended), unwell="worker 2 has died 5 times")
        self.relay.replies["GET /v1/status"] = Reply(200, document(told))
        for out in (self.ctl("workers").out, self.ctl("status").out):
            self.assertIn(
                "     1  4712  running         1     1         0  2026-02-03 04:05:07Z", out
            )
            self.assertIn("     2     -  ended           1     1         5  -", out)
        self.assertIn("unwell: worker 2 has died 5 times\n", self.ctl("status").out)
        self.assertEqual(
            json.loads(self.ctl("workers", "--json").out),
            {"workers": [document(WORKER), document(ended)]},
        )

    def test_no_word_of_workers(self) -> None:
        self.relay.replies["GET /v1/status"] = refusal(403, "not you")
        self.assertEqual(self.refused("workers", status=5), "not you")
        self.assertEqual(
            json.loads(self.ctl("workers", "--json", status=5).out), {"error": "not you"}
        )

    def test_pools(self) -> None:
        self.assertIn("web   a:80    up", self.ctl("pools").out)

    def test_what_may_become_of_a_target_is_told_first(self) -> None:
        turning = "1 of 3 checks failed: refused"
        target = evolve(TARGET, cause="2 checks in a row passed", turning=turning)
        told = {"pools": [document(evolve(POOL, targets=(target,)))]}
        self.relay.replies["GET /v1/pools"] = Reply(200, told)
        self.assertIn(f"{turning}; 2 checks in a row passed", self.ctl("pools").out)

    def test_sessions(self) -> None:
        self.assertIn("s-1      web", self.ctl("sessions").out)
        self.ctl(
            *("sessions", "--listener", "a b", "--target", "x/y", "--client", "10.0.0.0/8"),
            *("--limit", "5"),
        )
        self.assertEqual(
            self.relay.lines(),
            [
                "GET /v1/sessions?limit=1000",
                "GET /v1/sessions?listener=a+b&target=x%2Fy&client=10.0.0.0%2F8&limit=5",
            ],
        )

    def test_that_there_are_more_sessions_is_told(self) -> None:
        told = {"sessions": [document(SESSION)], "count": 7}
        self.relay.replies["GET /v1/sessions"] = Reply(200, told)
        ran = self.ctl("sessions", "--limit", "1")
        self.assertIn("these are 1 of 7 sessions; --limit 0 shows all", ran.err)

    def test_sessions_are_sorted_before_they_are_cut(self) -> None:
        values: tuple[dict[str, Any], ...] = (
            {"session": "a", "bytes_up": 5, "bytes_down": 1, "idle_ms": None},
            {"session": "b", "bytes_up": 1, "bytes_down": 9, "client": "a", "target": None},
            {"session": "c", "bytes_up": 2, "bytes_down": 2, "duration_ms": 9e9, "idle_ms": 99},
        )
        sessions = [document(evolve(SESSION, **each)) for each in values]
        self.relay.replies["GET /v1/sessions"] = Reply(200, {"sessions": sessions, "count": 3})
        for sort, order in (
            ("age", "cab"),
            ("bytes", "bac"),
            ("up", "acb"),
            ("down", "bca"),
            ("idle", "cba"),
            ("client", "acb"),
            ("target", "bac"),
        ):
            told = json.loads(self.ctl("sessions", "--sort", sort, "--json").out)
            self.assertEqual("".join(each["session"] for each in told["sessions"]), order, sort)
        told = json.loads(self.ctl("sessions", "--sort", "up", "--limit", "2", "--json").out)
        self.assertEqual([each["session"] for each in told["sessions"]], ["a", "c"])
        self.assertEqual(told["count"], 3)
        self.assertEqual(set(self.relay.lines()), {"GET /v1/sessions?limit=0"})

    def test_what_the_relay_does_not_like(self) -> None:
        self.relay.replies["GET /v1/sessions"] = refusal(400, "client: 'x' is not a network")
        for more in ((), ("--sort", "up")):
            said = self.refused("sessions", "--client", "x", *more, status=1)
            self.assertEqual(said, "client: 'x' is not a network")

    def test_trace(self) -> None:
        steps = [
            evolve(STEP, session=name, step=step)
            for name, step in (("a", "accepted"), ("a", "ended"))
        ]
        events = [f"event: trace\ndata: {json.dumps(document(step))}\n\n" for step in steps]
        dropped = 'event: dropped\ndata: {"events": 3}\n\n'
        told = (": following\n\n", events[0], dropped, events[1])
        self.relay.replies["GET /v1/trace"] = lambda asked: stream(*told)
        ran = self.ctl("trace", "--client", "10.0.0.0/8", "--count", "1")
        self.assertEqual([line.split()[4] for line in ran.out.splitlines()], ["accepted", "ended"])
        self.assertEqual(
            ran.err,
            "fwdrelayctl: following new sessions, until Ctrl-C\n"
            "fwdrelayctl: 3 steps were missed: they came faster than they could be written\n",
        )
        self.assertEqual(self.relay.lines(), ["GET /v1/trace?client=10.0.0.0%2F8"])
        ran = self.ctl("trace", "--json", status=3)
        self.assertEqual(
            [json.loads(line) for line in ran.out.splitlines()], list(map(document, steps))
        )
        self.assertIn(f"the connection to {self.relay.admin} ended", ran.err)


class KillTests(CtlTestCase):
    def test_several(self) -> None:
        for name in ("s-1", "s-2"):
            session = evolve(SESSION, session=name, target=None if name == "s-2" else "a:80")
            self.relay.replies[f"DELETE /v1/sessions/{name}"] = Reply(200, document(session))
        self.assertEqual(
            self.ctl("kill", "s-1", "s-2", "s-1").out,
            "Session s-1 was ended, of 192.0.2.1:1234 to web/a:80, after 1m01s.\n"
            "Session s-2 was ended, of 192.0.2.1:1234 to no target, after 1m01s.\n",
        )
        lines = self.ctl("kill", "--json", "s-1", "s-2").out.splitlines()
        self.assertEqual([json.loads(line)["session"] for line in lines], ["s-1", "s-2"])

    def test_one_that_is_not_there_does_not_keep_the_others(self) -> None:
        self.relay.replies["DELETE /v1/sessions/s-1"] = Reply(200, document(SESSION))
        self.relay.replies["DELETE /v1/sessions/no"] = refusal(404, "there is no open session 'no'")
        ran = self.ctl("kill", "no", "s-1", status=4)
        self.assertIn("Session s-1 was ended", ran.out)
        self.assertEqual(ran.err, "fwdrelayctl: there is no open session 'no'\n")

    def test_none(self) -> None:
        self.assertIn("Missing argument 'ID...'", self.ctl("kill", status=2).err)


class TargetTests(CtlTestCase):
    PATH = "PATCH /v1/pools/web/targets/a%3A80"

    def setUp(self) -> None:
        super().setUp()
        self.patch(waiting, "PAUSE", 0.001)

    def steered(self, **values: Any) -> TargetShown:
        return evolve(TARGET, **values)

    def test_each_of_them(self) -> None:
        for words, body, told in (
            (("drain",), {"state": "drain"}, "web/a:80 is set to drain; it has 1 session.\n"),
            (("ready",), {"state": "ready"}, "web/a:80 is set to ready; it has 1 session.\n"),
            (("down",), {"state": "down"}, "web/a:80 is set to down; it has 1 session.\n"),
            (("weight",), {"weight": 5}, "web/a:80 has the weight 5; it has 1 session.\n"),
        ):
            changed = document(evolve(TARGET, **body))
            self.relay.replies[self.PATH] = Reply(200, changed)
            more = ("5",) if "weight" in body else ()
            self.assertEqual(self.ctl("target", *words, "web/a:80", *more).out, told)
            self.assertEqual(self.relay.asked[-1].body, body)
            out = self.ctl("target", *words, "a:80", *more, "--json").out
            self.assertEqual(json.loads(out), changed)

    def test_none_of_that_name(self) -> None:
        said = self.refused("target", "drain", "web/b", status=4)
        self.assertIn("there is no target 'web/b'", said)
        self.assertEqual(self.relay.lines(), ["GET /v1/pools"])
        ran = self.ctl("target", "drain", "web/b", "--json", status=4)
        self.assertEqual(json.loads(ran.out), {"error": said})
        self.assertEqual(ran.err, f"fwdrelayctl: {said}\n")

    def test_the_last_one_that_is_taken_out(self) -> None:
        told = "fwdrelayctl: pool web has no target left that is up\n"
        good, bad = evolve(TARGET, name="b"), evolve(TARGET, name="b", up=False)
        taken, full = evolve(TARGET, name="b", state="drain"), evolve(TARGET, up=False)
        for others, word, said in (
            ((), "drain", told),
            ((bad,), "drain", told),
            ((taken, bad), "down", told),
            ((taken, good), "down", ""),
            ((good,), "drain", ""),
            ((), "ready", ""),
        ):
            pool = evolve(POOL, targets=(full, *others))
            self.relay.replies["GET /v1/pools"] = Reply(200, {"pools": [document(pool)]})
            self.relay.replies[self.PATH] = Reply(200, document(self.steered(state=word)))
            self.assertEqual(self.ctl("target", word, "web/a:80").err, said, (others, word))
        self.relay.replies[self.PATH] = Reply(200, document(self.steered(weight=5)))
        self.assertEqual(self.ctl("target", "weight", "web/a:80", "5").err, "")

    def test_one_that_is_ready_and_down(self) -> None:
        down = self.steered(state="ready", up=False, cause="connection refused")
        self.relay.replies[self.PATH] = Reply(200, document(down))
        ran = self.ctl("target", "ready", "web/a:80")
        self.assertEqual(ran.out, "web/a:80 is set to ready; it has 1 session.\n")
        said = "fwdrelayctl: web/a:80 is down all the same: connection refused\n"
        self.assertEqual(ran.err, said)
        ran = self.ctl("target", "ready", "web/a:80", "--json")
        self.assertEqual((json.loads(ran.out), ran.err), (document(down), said))

    def test_one_of_several(self) -> None:
        pools = {"pools": [document(POOL), document(evolve(POOL, name="db"))]}
        self.relay.replies["GET /v1/pools"] = Reply(200, pools)
        said = self.refused("target", "ready", "a:80", status=2)
        self.assertIn("is in several pools", said)

    def test_wrong_usage(self) -> None:
        for words in (
            ("target", "weight", "a:80", "0"),
            ("target", "weight", "a:80", "x"),
            ("target", "weight", "a:80"),
            ("target", "forget", "a:80"),
            ("target", "drain"),
            ("top", "--interval", "0"),
            ("sessions", "--sort", "x"),
            ("nothing",),
        ):
            self.assertIn("Usage: fwdrelayctl", self.ctl(*words, status=2).err)
        self.assertEqual(self.relay.asked, [])

    def test_waiting_until_it_has_no_sessions(self) -> None:
        self.relay.replies[self.PATH] = Reply(200, document(self.steered(state="drain")))

        def pools(sessions: int) -> Reply:
            target = self.steered(state="drain", sessions=sessions)
            return Reply(200, {"pools": [document(evolve(POOL, targets=(target,)))]})

        counts = [2, 2, 2, 1, 0]
        self.relay.replies["GET /v1/pools"] = [pools(count) for count in counts]
        ran = self.ctl("target", "drain", "a:80", "--wait")
        self.assertEqual(ran.out, "web/a:80 is set to drain; it has no sessions.\n")
        self.assertEqual(
            ran.err.splitlines(),
            [
                "fwdrelayctl: pool web has no target left that is up",
                "fwdrelayctl: web/a:80 has 2 sessions",
                "fwdrelayctl: web/a:80 has 1 session",
            ],
        )
        self.relay.replies["GET /v1/pools"] = [pools(count) for count in counts]
        (line,) = self.ctl("target", "drain", "a:80", "--wait", "--json").out.splitlines()
        self.assertEqual(json.loads(line), document(self.steered(state="drain", sessions=0)))

    def test_waiting_for_what_does_not_come(self) -> None:
        self.relay.replies[self.PATH] = Reply(200, document(self.steered(state="drain")))
        ran = self.ctl("target", "drain", "a:80", "--wait", "--timeout", "0.01", status=1)
        self.assertIn("gave up after 0.01 seconds, with 1 session left", ran.err)
        gone = Reply(200, {"pools": [document(evolve(POOL, targets=()))]})
        self.relay.replies["GET /v1/pools"] = [self.relay.replies["GET /v1/pools"], gone]
        ran = self.ctl("target", "drain", "a:80", "--wait", status=4)
        self.assertIn("web/a:80 is no longer there", ran.err)

    def test_waiting_for_what_is_refused(self) -> None:
        self.relay.replies[self.PATH] = refusal(404, "there is no such target any more")
        said = self.refused("target", "drain", "a:80", "--wait", status=4)
        self.assertEqual(said, "there is no such target any more")


class ConfigurationTests(CtlTestCase):
    def test_reload(self) -> None:
        self.relay.replies["POST /v1/reload"] = Reply(200, {"changed": "listener web: \x1b"})
        told = "Reloaded: listener web: \\u001b.\n"
        self.assertEqual(self.ctl("reload").out, told)
        self.relay.replies["POST /v1/reload"] = Reply(200, {"changed": ""})
        self.assertEqual(self.ctl("reload").out, "Reloaded: nothing differs.\n")
        self.assertEqual(self.ctl("reload", "--json").out, '{"changed": ""}\n')

    def test_what_has_not_reloaded_is_not_said_to_have(self) -> None:
        self.relay.replies["POST /v1/reload"] = Reply(200, {"fine": True})
        self.assertIn("does not answer as", self.refused("reload", status=1))

    def test_a_reload_that_is_refused(self) -> None:
        errors = ["relay.pump: no", "pool.web: no"]
        wrong = refusal(422, "nothing was changed", errors=errors)
        self.relay.replies["POST /v1/reload"] = wrong
        self.assertEqual(
            self.refused("reload", status=78), "relay.pump: no\nfwdrelayctl: pool.web: no"
        )
        ran = self.ctl("reload", "--json", status=78)
        self.assertEqual(json.loads(ran.out), wrong.body)
        self.relay.replies["POST /v1/reload"] = refusal(409, "the relay is stopping")
        self.assertEqual(self.refused("reload", status=1), "the relay is stopping")

    def test_check(self) -> None:
        self.relay.replies["POST /v1/check"] = Reply(
            200, {"okay": True, "changed": "pool b added", "errors": []}
        )
        self.assertIn("A reload would do", self.ctl("check").out)
        self.assertEqual(
            self.ctl("check", "--json").out,
            '{"okay": true, "changed": "pool b added", "errors": []}\n',
        )
        wrong = Reply(200, {"okay": False, "changed": "", "errors": ["one", "two"]})
        self.relay.replies["POST /v1/check"] = wrong
        self.assertEqual(self.refused("check", status=78), "one\nfwdrelayctl: two")
        ran = self.ctl("check", "--json", status=78)
        self.assertEqual(json.loads(ran.out), wrong.body)

    def test_check_of_a_file(self) -> None:
        good, bad = self.folder() / "good.toml", self.folder() / "bad.toml"
        good.write_text(
            '[[listener]]\nname = "a"\nlisten = ["tcp:1"]\npool = "p"\n[pool.p]\ntargets = ["a:1"]\n'
        )
        bad.write_text('[relay]\npump = "bicycle"\n')
        ran = self.ctl("check", str(good))
        self.assertEqual(ran.out, f"fwdrelay: nothing is wrong with {good}.\n")
        self.assertEqual(
            json.loads(self.ctl("check", "--json", str(good)).out), {"okay": True, "errors": []}
        )
        ran = self.ctl("check", str(bad), status=78)
        self.assertEqual(ran.out, "")
        self.assertRegex(ran.err, r"^fwdrelay: .*relay\.pump: 'bicycle' is not one of")
        told = json.loads(self.ctl("--json", "check", str(bad), status=78).out)
        self.assertFalse(told["okay"])
        self.assertEqual([f"fwdrelay: {error}" for error in told["errors"]], ran.err.splitlines())
        self.assertIn("fwdrelay: ", self.ctl("check", "/nonexistent", status=78).err)
        self.assertEqual(self.relay.asked, [])


class DrainTests(CtlTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(waiting, "PAUSE", 0.001)
        self.relay.replies["POST /v1/drain"] = Reply(202, {"state": "draining"})

    def statuses(self, *sessions: int, **more: Any) -> list[Reply]:
        """What the relay says of itself, again and again."""
        return [
            Reply(
                200, document(evolve(STATUS, totals=evolve(STATUS.totals, sessions=each), **more))
            )
            for each in sessions
        ]

    def test_it_does_not_ask_scripts(self) -> None:
        self.assertEqual(self.ctl("drain").out, "The relay drains, and stops then.\n")
        self.assertEqual(self.ctl("drain", "--now", "--json").out, '{"state": "draining"}\n')
        self.assertEqual([asked.body for asked in self.relay.asked], [None, {"now": True}])

    def test_what_does_not_drain_is_not_said_to(self) -> None:
        self.relay.replies["POST /v1/drain"] = Reply(200, {"fine": True})
        self.assertIn("does not answer as", self.refused("drain", status=1))

    def test_it_asks_people(self) -> None:
        answers = {"y\n": 0, "n\n": 1, "\n": 1, "": 1}
        self.patch(commands, "_people", lambda: True)
        for answer, status in answers.items():
            ran = self.ctl("drain", stdin=io.StringIO(answer), status=status)
            self.assertIn(f"The relay at {self.relay.admin} will stop. Are you sure?", ran.err)
            self.assertEqual("nothing was done" in ran.err, status == 1)
        self.assertEqual(len(self.relay.asked), 1)
        self.assertEqual(self.ctl("drain", "--yes").err, "")

    def test_waiting_until_it_is_gone(self) -> None:
        self.relay.replies["GET /v1/status"] = [*self.statuses(3, 3, 3, 2), None]
        ran = self.ctl("drain", "--wait")
        self.assertEqual(ran.out, "The relay has stopped.\n")
        self.assertEqual(ran.err, "fwdrelayctl: 3 sessions left\nfwdrelayctl: 2 sessions left\n")
        self.assertEqual(
            self.relay.lines()[:3], ["GET /v1/status", "POST /v1/drain", "GET /v1/status"]
        )
        self.relay.replies["GET /v1/status"] = [*self.statuses(1), None]
        self.assertEqual(self.ctl("drain", "--wait", "--json").out, '{"state": "draining"}\n')

    def test_another_that_has_begun_in_its_place(self) -> None:
        for more in ({"pid": 1}, {"uptime": 0.5}):
            self.relay.replies["GET /v1/status"] = [*self.statuses(3, 3), *self.statuses(3, **more)]
            self.assertEqual(self.ctl("drain", "--wait").out, "The relay has stopped.\n")

    def test_waiting_no_longer_than_one_would(self) -> None:
        self.relay.replies["GET /v1/status"] = self.statuses(3)
        ran = self.ctl("drain", "--wait", "--timeout", "0.01", status=1)
        self.assertIn("gave up after 0.01 seconds, with 3 sessions left", ran.err)

    def test_one_that_does_not_want_to(self) -> None:
        self.relay.replies["POST /v1/drain"] = refusal(409, "the relay is still starting")
        for more in ((), ("--wait",)):
            self.assertEqual(self.refused("drain", *more, status=1), "the relay is still starting")


class EdgesTests(CtlTestCase):
    def test_no_relay(self) -> None:
        os.environ["FWDRELAY_ADMIN"] = admin = f"127.0.0.1:{free_port()}"
        told = f"no relay answers at {admin}: connection refused; is it running with --admin?"
        for words in (
            ("status",),
            ("pools",),
            ("sessions",),
            ("sessions", "--sort", "up"),
            ("top",),
            ("top", "--json"),
            ("kill", "1"),
            ("target", "drain", "x"),
            ("target", "weight", "x", "1"),
            ("reload",),
            ("drain",),
            ("drain", "--wait"),
            ("check",),
            ("trace",),
        ):
            self.assertEqual(self.refused(*words, status=3), told, words)

    def test_not_authorised(self) -> None:
        for path in ("GET /v1/status", "GET /v1/trace", "GET /v1/events", "POST /v1/drain"):
            self.relay.replies[path] = refusal(401, "show the token")
        for word in ("status", "trace", "top", "drain"):
            said = self.refused(word, status=5)
            self.assertEqual(said, "the relay wants a token: show a token with --token-file FILE")

    def test_what_is_no_relay(self) -> None:
        self.relay.replies["GET /v1/status"] = Reply(200, "<html>hello", "text/html")
        said = self.refused("status", status=1)
        self.assertIn("is no relay, or one of another version", said)

    def test_one_that_answers_otherwise(self) -> None:
        strange = Reply(200, {"hello": "world"})
        paths = ("GET /v1/status", "GET /v1/pools", "GET /v1/sessions", "POST /v1/check")
        self.relay.replies.update(dict.fromkeys([*paths, "DELETE /v1/sessions/1"], strange))
        for words in (
            *(("status",), ("pools",), ("sessions",), ("sessions", "--sort", "up"), ("check",)),
            *(("kill", "1"), ("target", "ready", "x")),
        ):
            said = self.refused(*words, status=1)
            self.assertIn("are their versions the same?", said, words)

    def test_a_sentence_can_do_nothing_to_a_terminal(self) -> None:
        self.relay.replies["GET /v1/pools"] = refusal(500, "\x1b[2Jevil")
        self.assertEqual(self.refused("pools", status=1), "\\u001b[2Jevil")

    def test_what_should_not_have_happened_is_a_line_too(self) -> None:
        def broken(*arguments: object) -> None:
            raise ZeroDivisionError("a bug")

        self.patch(Asking, "ask", broken)
        self.assertEqual(
            self.refused("pools", status=1),
            "this should not have happened: ZeroDivisionError: a bug",
        )

    def test_ctrl_c(self) -> None:
        def interrupted(*arguments: object) -> None:
            raise KeyboardInterrupt

        self.patch(Asking, "ask", interrupted)
        self.assertEqual(self.ctl("pools", status=130).err, "")

    def test_streams_that_were_closed(self) -> None:
        for name in ("stdin", "stdout", "stderr"):
            self.patch(sys, name, None)
        self.assertEqual(commands.run(["pools"]), 0)
        for opened in (sys.stdin, sys.stdout, sys.stderr):
            opened.close()
