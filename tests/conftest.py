"""What every test gets: a home of its own, no environment of the developer, and skips that CI does not accept."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No example of a property fails because the machine stood still for a second while it ran or was made.
settings.register_profile(
    "agentmesh", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("agentmesh")

pytest_plugins = ("tests.fakes.engines",)


def pytest_configure() -> None:
    """Ctrl-C is tested also where a shell has it ignored: for what it starts with `&` in a script."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the developer's node, agents or names."""
    for name in [n for n in os.environ if n.startswith("AGENTMESH_") and n != "AGENTMESH_REQUIRE_ALL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTMESH_HOME", str(tmp_path / "agentmesh-home"))
    monkeypatch.setenv("AGENTMESH_BIND_HOST", "127.0.0.1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take minutes each are for CI, and for whoever sets AGENTMESH_SLOW=1."""
    if os.environ.get("AGENTMESH_REQUIRE_ALL") or os.environ.get("AGENTMESH_SLOW"):
        return
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.skip(reason="takes minutes; AGENTMESH_SLOW=1 runs it, as .ci/run does"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """How the run ended, for tools/second_run.py: `make` tells only whether it went well."""
    cache = getattr(session.config, "cache", None)  # absent with -p no:cacheprovider
    if cache is not None:
        cache.set("agentmesh/exitstatus", int(exitstatus))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """In CI (`AGENTMESH_REQUIRE_ALL`) a skipped test is a failed one: everything it needs must be there."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("AGENTMESH_REQUIRE_ALL") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but nothing may be skipped here: {report.longrepr}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What foreign agents were asked and said is shown, also when their tests pass."""
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and ("transcript", True) in report.user_properties:
            terminalreporter.section(report.nodeid, sep="-")
            terminalreporter.write_line(report.capstdout.rstrip())
