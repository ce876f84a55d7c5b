"""The alerts and the scrape example of `etc/prometheus/`, and the dashboard of `etc/grafana/`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

from tests.admin.test_metrics import COUNTERS, exposed
from tests.case import SynchronousTestCase
from tests.scenarios.programs import folder, run, skip_unless_installed
from tests.test_docs import ROOT, blocks, read, rows, section, spans

PROMETHEUS = ROOT / "etc" / "prometheus"
DASHBOARD = ROOT / "etc" / "grafana" / "fwdrelay.json"
DOCUMENTED = ROOT / "docs" / "metrics.md"
_OF_ALL_TARGETS = {"up"}
_OF_PROCESSES = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
}
_METRIC = re.compile(r"\b(?:fwdrelay|process)_\w+|\bup\b(?=\{)")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_NOT_METRICS = re.compile(r'"[^"]*"|\b(?:by|group_left|on) \([^)]*\)')


def given() -> set[str]:
    """The names of all series that there can be."""
    named = re.findall(r"^(fwdrelay_\w+)", exposed(COUNTERS), re.MULTILINE)
    return {*named, *_OF_ALL_TARGETS, *_OF_PROCESSES}


def metrics(expression: str) -> set[str]:
    """The names of metrics in it."""
    return set(_METRIC.findall(_NOT_METRICS.sub(" ", expression)))


def check_expressions(expressions: Iterable[str]) -> None:
    """Have promtool read each as the rule of a file."""
    rules = [
        {"record": f"tried:{number}", "expr": expression}
        for number, expression in enumerate(expressions)
    ]
    with folder() as place:
        file = place / "tried.yml"
        file.write_text(json.dumps({"groups": [{"name": "tried", "rules": rules}]}))  # JSON is YAML
        said = run("promtool", "check", "rules", str(file))
    assert f"SUCCESS: {len(rules)} rules found" in said, said


class AlertsTests(SynchronousTestCase):
    rules = read(PROMETHEUS / "fwdrelay.rules.yml")
    tried = read(PROMETHEUS / "fwdrelay.test.yml")

    def alerts(self) -> Iterator[tuple[str, str]]:
        """Each alert's name, and what stands there of it."""
        _, *texts = re.split(r"^ +- alert: ", self.rules, flags=re.MULTILINE)
        for text in texts:
            name, _, rest = text.partition("\n")
            yield name, rest

    def test_promtool_finds_nothing_wrong_with_the_rules(self) -> None:
        skip_unless_installed("promtool")
        said = run("promtool", "check", "rules", str(PROMETHEUS / "fwdrelay.rules.yml"))
        self.assertIn(f"SUCCESS: {len(list(self.alerts()))} rules found", said)

    def test_promtool_tries_them(self) -> None:
        skip_unless_installed("promtool")
        said = run("promtool", "test", "rules", str(PROMETHEUS / "fwdrelay.test.yml"))
        self.assertIn("SUCCESS", said)

    def test_each_is_seen_to_fire(self) -> None:
        for name, _ in self.alerts():
            tried = re.findall(
                rf"alertname: {name}\n +eval_time: \w+\n +exp_alerts:(.*)\n", self.tried
            )
            self.assertIn("", tried, f"{name} never fires")

    def test_none_fires_where_all_that_they_ask_for_is_well(self) -> None:
        well = re.search(r"- name: all is well\n(.*?)\n\n", self.tried, re.DOTALL)
        assert well is not None
        self.assertIn("count_over_time(ALERTS[1h])", well[1])
        self.assertEqual(metrics(well[1]), self.asked())

    def test_each_says_how_bad_it_is_and_what_to_do(self) -> None:
        severities = {}
        for name, text in self.alerts():
            self.assertRegex(name, r"\AFwdrelay[A-Za-z]+\Z")
            self.assertRegex(text, r'\n          summary: ".+"\n')
            self.assertRegex(text, r"\n          description: >-\n {12}[A-Z{](.|\n)+\.\n")
            (severities[name],) = re.findall(r"\n          severity: (critical|warning)\n", text)
        documented = {
            spans(alert)[0]: severity
            for alert, severity, _ in rows(section(read(DOCUMENTED), "Alerts"))
        }
        self.assertEqual(documented, severities)

    def asked(self) -> set[str]:
        """The metrics in their expressions."""
        asked: set[str] = set()
        for name, text in self.alerts():
            expression = re.search(r"expr: (.*?)\n        \w", text, re.DOTALL)
            assert expression is not None, name
            found = metrics(expression[1])
            self.assertNotEqual(found, set(), name)
            asked |= found
        return asked

    def test_they_ask_for_metrics_that_there_are(self) -> None:
        self.assertEqual(self.asked() - given(), set())
        self.assertEqual(metrics(self.tried) - given(), set())


class ScrapeTests(SynchronousTestCase):
    """The example, and the one in the documentation."""

    example = read(PROMETHEUS / "prometheus.yml")

    def check(self, text: str) -> None:
        skip_unless_installed("promtool")
        with folder() as place:
            shutil.copy(PROMETHEUS / "fwdrelay.rules.yml", place)
            (place / "token").touch()
            self.assertNotIn("token", text.replace("/etc/prometheus/fwdrelay.token", ""))
            (place / "prometheus.yml").write_text(
                text.replace("/etc/prometheus/fwdrelay.token", str(place / "token"))
            )
            said = run("promtool", "check", "config", str(place / "prometheus.yml"))
        self.assertIn("SUCCESS", said)

    def test_without_a_token(self) -> None:
        self.check(re.sub(r"^ *#.*\n", "", self.example, flags=re.MULTILINE))

    def test_with_one(self) -> None:
        uncommented, count = re.subn(
            r"^    # (authorization:|  credentials_file:)",
            r"    \1",
            self.example,
            flags=re.MULTILINE,
        )
        self.assertEqual(count, 2)
        self.check(re.sub(r"^ *#.*\n", "", uncommented, flags=re.MULTILINE))

    def test_documented(self) -> None:
        (text,) = blocks(read(DOCUMENTED), "yaml")
        self.assertIn("authorization:", text)
        self.check(text)

    def test_the_job_is_the_one_that_alerts_go_by(self) -> None:
        for text in (self.example, *blocks(read(DOCUMENTED), "yaml")):
            self.assertIn("job_name: fwdrelay\n", text)
        named = re.findall(r'job="([^"]*)"', AlertsTests.rules)
        self.assertEqual(set(named), {"fwdrelay"})


class QueriesTests(SynchronousTestCase):
    """Those in the documentation."""

    def queries(self) -> list[str]:
        page = read(DOCUMENTED)
        tables = section(page, "Queries"), section(page, "Ended and refused")
        return [spans(cells[1])[0].replace(r"\|", "|") for table in tables for cells in rows(table)]

    def test_they_ask_for_metrics_that_there_are(self) -> None:
        for query in self.queries():
            self.assertNotEqual(metrics(query), set(), query)
            self.assertLessEqual(metrics(query), given(), query)

    def test_promtool_reads_them(self) -> None:
        skip_unless_installed("promtool")
        check_expressions(self.queries())


class DashboardTests(SynchronousTestCase):
    """What Grafana would complain of, or would show nothing for."""

    dashboard: dict[str, Any] = json.loads(read(DASHBOARD))

    def panels(self) -> list[dict[str, Any]]:
        return [panel for panel in self.dashboard["panels"] if panel["type"] != "row"]

    def variables(self) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in self.dashboard["templating"]["list"]}

    def expressions(self) -> dict[str, str]:
        """By where they stand."""
        found = {
            f"{panel['title']} {target['refId']}": target["expr"]
            for panel in self.panels()
            for target in panel["targets"]
        }
        for each in self.dashboard["annotations"]["list"]:
            if "expr" in each:
                found[each["name"]] = each["expr"]
        return found

    def test_it_is_one_that_can_be_imported(self) -> None:
        self.assertGreaterEqual(self.dashboard["schemaVersion"], 36)  # Grafana 9's first
        self.assertEqual(self.dashboard["title"], "fwdrelay")
        self.assertEqual(self.dashboard["uid"], "fwdrelay")
        self.assertNotIn("id", self.dashboard)  # else it is taken for one that Grafana has
        self.assertNotIn("__inputs", self.dashboard)

    def test_what_one_chooses(self) -> None:
        variables = self.variables()
        self.assertEqual(list(variables), ["datasource", "job", "instance", "listener", "pool"])
        source = variables.pop("datasource")
        self.assertEqual((source["type"], source["query"]), ("datasource", "prometheus"))
        for name, variable in variables.items():
            query = variable["query"]["query"]
            self.assertEqual(variable["definition"], query)
            asked = re.fullmatch(rf"label_values\((.+), {name}\)", query)
            assert asked is not None, query
            (metric,) = metrics(asked[1])
            found = re.search(rf"^{metric}\{{(.*)\}}", exposed(COUNTERS), re.MULTILINE)
            assert found is not None, metric
            if name not in ("job", "instance"):  # which Prometheus adds
                self.assertIn(f'{name}="', found[1])
            # All: a session without a pool has none to be chosen.
            self.assertEqual((variable["includeAll"], variable["allValue"]), (True, ".*"))

    def test_all_is_asked_of_the_chosen_source(self) -> None:
        chosen = {"type": "prometheus", "uid": "${datasource}"}
        for panel in self.panels():
            self.assertEqual(panel["datasource"], chosen, panel["title"])
            self.assertGreater(len(panel["targets"]), 0, panel["title"])
            for target in panel["targets"]:
                self.assertEqual(target["datasource"], chosen, panel["title"])
        for name, variable in self.variables().items():
            if name != "datasource":
                self.assertEqual(variable["datasource"], chosen)

    def test_variables_are_there(self) -> None:
        known = {*self.variables(), "__rate_interval"}
        for where, expression in self.expressions().items():
            used = {one or other for one, other in _VARIABLE.findall(expression)}
            self.assertLessEqual(used, known, where)
            for name in ("job", "instance"):
                self.assertIn(f'{name}=~"${name}"', expression, where)

    def test_panels_can_be_told_apart(self) -> None:
        identities = [panel["id"] for panel in self.dashboard["panels"]]
        self.assertEqual(len(set(identities)), len(identities))
        for panel in self.panels():
            self.assertNotEqual(panel["title"], "")
            self.assertTrue(panel["description"].endswith("."), panel["title"])
            letters = [target["refId"] for target in panel["targets"]]
            self.assertEqual(len(set(letters)), len(letters), panel["title"])

    def test_no_panel_lies_on_another(self) -> None:
        taken: dict[tuple[int, int], str] = {}
        for panel in self.dashboard["panels"]:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), taken, panel["title"])
                    taken[x, y] = panel["title"]

    def test_every_metric_of_ours_is_on_it(self) -> None:
        asked = set().union(*map(metrics, self.expressions().values()))
        self.assertEqual(asked - given(), set())
        families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
        ours = re.findall(r"^# TYPE (fwdrelay_\w+)", exposed(COUNTERS), re.MULTILINE)
        self.assertEqual(set(ours) - families, set())

    def test_labels_that_lines_are_named_by_are_left_by_their_query(self) -> None:
        for panel in self.panels():
            for target in panel["targets"]:
                kept = re.findall(r"\bby \(([^)]*)\)", target["expr"])
                if not kept:
                    continue
                named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                self.assertLessEqual(named, set(kept[0].split(", ")), panel["title"])

    def test_promtool_reads_every_expression(self) -> None:
        skip_unless_installed("promtool")
        check_expressions(
            expression.replace("$__rate_interval", "1m")
            for expression in self.expressions().values()
        )


class CheckingTests(SynchronousTestCase):
    """That what checks expressions can fail."""

    def test_metrics_are_found(self) -> None:
        self.assertEqual(
            metrics('sum by (job, up) (rate(fwdrelay_x_total{a="fwdrelay_y"}[5m])) / up{job="b"}'),
            {"fwdrelay_x_total", "up"},
        )

    def test_what_is_no_expression(self) -> None:
        skip_unless_installed("promtool")
        self.assertRaises(AssertionError, check_expressions, ["sum(", "up"])
