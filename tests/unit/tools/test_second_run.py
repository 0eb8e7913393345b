"""Which tests of a failed run are run again."""

from __future__ import annotations

import pytest

from tools.second_run import MAX_TESTS, RAN_TO_ITS_END, may_run_again

REAL = "tests/integration/test_mesh.py::test_two_nodes"


@pytest.mark.parametrize(
    ("failed", "again"),
    [
        ([REAL], True),
        ([f"{REAL}[{n}]" for n in range(MAX_TESTS)], True),
        ([f"{REAL}[{n}]" for n in range(MAX_TESTS + 1)], False),
        ([REAL, "tests/unit/core/test_tasks.py::test_close"], False),
        (["tests/integration/test_mesh.py"], False),  # could not be imported
        ([], False),
    ],
)
def test_only_a_few_tests_of_real_processes_are_run_again(failed: list[str], again: bool) -> None:
    assert may_run_again(failed, RAN_TO_ITS_END) is again


@pytest.mark.parametrize("status", [*(each for each in pytest.ExitCode if each != RAN_TO_ITS_END), None])
def test_nothing_is_run_again_after_a_run_that_broke_off(status: object) -> None:
    assert RAN_TO_ITS_END == pytest.ExitCode.TESTS_FAILED
    assert not may_run_again([REAL], status)
