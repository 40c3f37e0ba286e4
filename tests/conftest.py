"""What every suite shares: each suite's time, and KVCOMMONS_NO_SKIP, which turns a skipped test or suite into a failure."""

import os
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NO_SKIP = bool(os.environ.get("KVCOMMONS_NO_SKIP"))
WHY = "skipped, and KVCOMMONS_NO_SKIP is set: "

os.environ.setdefault("KVCOMMONS_CACHE", str(ROOT / ".cache"))

_seconds: defaultdict[str, float] = defaultdict(float)
_tests: Counter[str] = Counter()


def suite_of(nodeid: str) -> str:
    """tests/unit of tests/unit/test_keys.py::test_one."""
    return "/".join(nodeid.split("::")[0].split("/")[:2])


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (NO_SKIP and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = WHY + reason


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    suite = suite_of(report.nodeid)
    _seconds[suite] += report.duration
    _tests[suite] += report.when == "call"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With KVCOMMONS_NO_SKIP a suite that was asked for and ran nothing is a failure."""
    if NO_SKIP and exitstatus == pytest.ExitCode.OK and _idle_suites(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _idle_suites(config: pytest.Config) -> list[str]:
    asked = {argument.rstrip("/") for argument in config.args if "::" not in argument}
    return sorted(suite for suite in asked if Path(suite).is_dir() and suite != "tests" and not _tests[suite])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_sep("=", "suites")
    for suite, seconds in sorted(_seconds.items()):
        terminalreporter.write_line(f"{suite}: {_tests[suite]} tests in {seconds:.1f} s")
    if NO_SKIP:
        for suite in _idle_suites(terminalreporter.config):
            terminalreporter.write_line(f"{suite}: FAILED, no test of it ran")
