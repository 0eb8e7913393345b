"""Real node processes in homes of their own: killed, away, late, and still nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.fakes.node_process import NodeHome, Nodes

# A node that comes back has everything within 30 s, and a new one, too: 2 s, when this test has the machine to itself. It looks
# with commands, of which each takes seconds where a dozen others compute.
COMPLETE_S = 60.0
RAISED = ("--policy", "posts_per_minute=6000")


def texts(node: NodeHome) -> set[str]:
    """Every text on a node's board, over all pages."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = node.json("blackboard", "--limit", "200", *(("--cursor", cursor) if cursor else ()))
        found += [post["text"] for post in page["posts"]]
        cursor = page["next_cursor"]
        if cursor is None:
            assert len(found) == len(set(found)), "a post is shown twice"
            return set(found)


def eventually(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until `condition`; fails after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - began


@pytest.mark.timeout(900)
def test_a_killed_node_has_everything_soon_and_a_late_one_the_whole_window(nodes: Nodes) -> None:
    a = nodes.start("--name", "a", *RAISED)
    b = nodes.start("--name", "b", "--join", a.invite)
    c = nodes.start("--name", "c", "--join", a.invite)
    expected = set()
    for node in (a, b, c):
        text = f"STATUS: before, from {node.root.name}"
        node.json("blackboard", text)
        expected.add(text)
    eventually(lambda: texts(a) == texts(b) == texts(c) == expected, 90)

    c.signal(signal.SIGKILL)
    c.wait()
    for number in range(40):
        node = (a, b)[number % 2]
        text = f"FINDING: {number} while c was dead"
        node.json("blackboard", text)
        expected.add(text)
    c.start("--name", "c")
    took = eventually(lambda: texts(c) == expected, COMPLETE_S)
    print(f"\nkilled node complete {took:.1f} s after its restart")

    d = nodes.start("--name", "d", "--join", b.invite)
    took = eventually(lambda: texts(d) == expected, COMPLETE_S)
    print(f"late joiner has the whole window of {len(expected)} posts {took:.1f} s after it was ready")
    assert {texts(n) == expected for n in (a, b, c, d)} == {True}


@pytest.mark.timeout(600)
def test_a_post_that_was_acknowledged_survives_a_kill_at_once(nodes: Nodes) -> None:
    a = nodes.start("--name", "a", *RAISED)
    acknowledged: set[str] = set()
    for round_ in range(4):
        for number in range(5):
            text = f"NOTE {round_}.{number} acknowledged"
            posted = a.cli("blackboard", text, "--json")
            if posted.code == 0:
                acknowledged.add(text)
        a.signal(signal.SIGKILL)
        a.wait()
        a.start("--name", "a")
    assert acknowledged <= texts(a)
    assert len(acknowledged) == 20


@pytest.mark.timeout(300)
def test_a_killed_node_leaves_no_process_behind(nodes: Nodes) -> None:
    a = nodes.start("--name", "a")
    a.json("blackboard", "warm the scrub worker up")
    children = _children(a.pid)
    assert children, "the scrub worker should be running"
    a.signal(signal.SIGKILL)
    a.wait()
    eventually(lambda: not any(_is_alive(pid) for pid in children), 30)


def _children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False, timeout=60
    )
    return [int(line) for line in listed.stdout.split()]


def _is_alive(pid: int) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False, timeout=60
    )
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


@pytest.mark.timeout(300)
def test_a_secret_pasted_on_one_node_is_on_no_disk_and_on_no_other_node(nodes: Nodes) -> None:
    a = nodes.start("--name", "a")
    b = nodes.start("--name", "b", "--join", a.invite)
    secret = "gh" + "p_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    posted = a.json("blackboard", f"FINDING: CI works again with token {secret} in the header")
    assert sum(r["count"] for r in posted["redactions"]) == 1
    eventually(lambda: len(texts(b)) == 1, 90)
    assert secret not in json.dumps(b.json("blackboard"))
    for node in (a, b):
        node.stop()
        for path in node.root.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path
