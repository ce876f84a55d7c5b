"""The dashboard and its policy."""

from __future__ import annotations

import base64
import hashlib

from fwdrelay.admin.page import policy, read_page
from tests.case import SynchronousTestCase


def allowed(text: str) -> str:
    """How a policy allows an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class PolicyTests(SynchronousTestCase):
    def test_what_is_inline_may_run_and_nothing_else(self) -> None:
        html = "<STYLE media=print>a{}</STYLE><script>\n1</script ><script type=module>2</script>"
        rules = dict(rule.split(" ", 1) for rule in policy(html).split("; "))
        self.assertEqual(rules["default-src"], "'none'")
        self.assertEqual(rules["script-src"], f"{allowed(chr(10) + '1')} {allowed('2')}")
        self.assertEqual(rules["style-src"], allowed("a{}"))
        self.assertEqual(rules["connect-src"], "'self'")
        self.assertEqual(rules["frame-ancestors"], "'none'")

    def test_without_any_nothing_may(self) -> None:
        self.assertNotIn("script-src", policy("<p>"))

    def test_the_dashboard_is_a_part_of_the_package(self) -> None:
        page = read_page()
        self.assertEqual(page.content_type, "text/html; charset=utf-8")
        assert isinstance(page.body, bytes)
        self.assertTrue(page.body.startswith(b"<!doctype html>"))
        self.assertIn("script-src 'sha256-", page.headers["Content-Security-Policy"])
        self.assertNotIn("unsafe", page.headers["Content-Security-Policy"])
