"""Which tests of a failed run get another one."""

from __future__ import annotations

import pytest

from tools.second_run import MAX_TESTS, may_run_again

REAL = "tests/integration/test_mesh.py::test_two_nodes"


@pytest.mark.parametrize(
    ("failed", "again"),
    [
        ([REAL], True),
        ([f"{REAL}[{n}]" for n in range(MAX_TESTS)], True),
        ([f"{REAL}[{n}]" for n in range(MAX_TESTS + 1)], False),
        ([REAL, "tests/unit/core/test_tasks.py::test_close"], False),
        (["tests/integration/test_mesh.py"], False),  # could not be imported
        ([], False),  # pytest itself ended
    ],
)
def test_only_a_few_tests_of_real_processes_are_run_again(failed: list[str], again: bool) -> None:
    assert may_run_again(failed) is again
