"""A node that is killed at its worst moments, and programs of the machine that wish it ill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from agentmesh.node.listeners import MAX_CONNECTIONS
from tests.fakes.node_process import ROOT, NodeHome, Nodes, wait_for

# Spread over a start of about a second: imports, lock, key, membership, database, network, doors.
MOMENTS_S = (0.1, 0.4, 0.6, 0.9)


@pytest.mark.timeout(300)
def test_killed_at_any_moment_of_its_start_a_node_starts_the_next_time(nodes: Nodes) -> None:
    home = nodes.home()
    for moment in MOMENTS_S:
        home.start(ready=False)
        time.sleep(moment)
        home.kill()
    home.start()
    assert home.cli("blackboard", "still here").code == 0


@pytest.mark.timeout(300)
def test_told_to_end_at_any_moment_of_its_start_a_node_ends_in_time_without_a_traceback(nodes: Nodes) -> None:
    home = nodes.home()
    for moment in MOMENTS_S[1:]:  # before, Python itself has not come up
        home.start(ready=False)
        time.sleep(moment)
        home.signal(signal.SIGTERM)
        assert home.wait() in (0, -signal.SIGTERM)
    assert "Traceback" not in home.stderr_file.read_text()
    assert home.start().cli("status").code == 0


def test_what_a_dead_node_left_misleads_nobody_though_its_process_id_is_taken_again(nodes: Nodes) -> None:
    home = nodes.home()
    run = home.root / "run"
    run.mkdir(mode=0o700)
    (run / "node.json").write_text(f'{{"pid": {os.getpid()}, "version": "99"}}')
    (run / "lock").write_text(str(os.getpid()))
    with closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(run / "node.sock"))
    assert home.cli("status").code == 3
    assert home.cli("blackboard", "hi").code == 0
    assert home.node_json()["pid"] != os.getpid()


def test_a_home_with_spaces_and_other_alphabets_is_a_home(nodes: Nodes) -> None:
    home = nodes.home(root=nodes.home().root / "ünï code ☃ home")
    assert home.cli("blackboard", "hi").code == 0
    assert [post["text"] for post in home.json("blackboard")["posts"]] == ["hi"]


def test_a_home_that_lost_its_key_says_so_instead_of_posting_to_nobody(nodes: Nodes) -> None:
    home = nodes.start()
    home.stop()
    (home.root / "identity.key").unlink()
    done = home.cli("blackboard", "hi")
    assert done.code == 3
    assert "agentmesh leave" in done.err
    assert home.cli("leave").code == 0
    assert home.cli("blackboard", "hi").code == 0


@pytest.mark.parametrize("where", ["logs", "run/start.lock", "run/lock", "run/node.sock", "logs/node.log"])
def test_whatever_stands_in_the_way_in_the_home_is_named_and_the_exit_code_is_3(nodes: Nodes, where: str) -> None:
    home = nodes.home()
    (home.root / where).parent.mkdir(mode=0o700, exist_ok=True)
    if where == "logs":
        (home.root / where).write_text("in the way")
    else:
        (home.root / where).mkdir()
    done = home.cli("blackboard", "hi")
    assert (done.code, done.out) == (3, "")
    assert str(home.root / where) in done.err
    assert len(done.err.splitlines()) == 1


# ------------------------------------------------------------------ the doors


@pytest.fixture(scope="module")
def node() -> Iterator[NodeHome]:
    with Nodes() as made:
        yield made.start()


def ask(node: NodeHome, request: bytes) -> bytes:
    """Everything the console port answers to these bytes, until it closes the connection."""
    answer = b""
    address = ("127.0.0.1", node.node_json()["console_port"])
    with socket.create_connection(address, timeout=60) as connection, suppress(OSError):
        connection.sendall(request)
        while data := connection.recv(65536):
            answer += data
    return answer


def statuses(answer: bytes) -> list[bytes]:
    return [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("another name for this address", "Host: evil.example\r\nAuthorization: Bearer {token}\r\n"),
        ("two hosts", "Host: localhost\r\nHost: evil.example\r\nAuthorization: Bearer {token}\r\n"),
        ("another page", "Host: localhost\r\nOrigin: https://evil.example\r\nAuthorization: Bearer {token}\r\n"),
        ("a page in a sandbox", "Host: localhost\r\nOrigin: null\r\nAuthorization: Bearer {token}\r\n"),
        ("no token", "Host: localhost\r\n"),
        ("a token of another case", "Host: localhost\r\nAuthorization: Bearer {upper}\r\n"),
        ("two tokens", "Host: localhost\r\nAuthorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n"),
    ],
)
def test_the_console_answers_programs_of_this_user_only(node: NodeHome, name: str, head: str) -> None:
    token = node.node_json()["token"]
    lines = head.format(token=token, upper=token.swapcase())
    answer = ask(node, f"GET /api/status HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
    assert statuses(answer)[0] in (b"400", b"401", b"403"), name
    assert node.invite.encode() not in answer
    assert b"access-control-allow" not in answer.lower()
    assert b"node_id" not in answer


def test_a_page_that_asks_whether_it_may_is_told_no(node: NodeHome) -> None:
    answer = ask(
        node,
        b"OPTIONS /api/node/stop HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n"
        b"Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n",
    )
    assert statuses(answer) == [b"403"]
    assert b"access-control-allow" not in answer.lower()


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 6\r\nContent-Length: 7\r\n",
        "Content-Length: 6\r\nTransfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Content-Length: +6\r\n",
        "Content-Length : 6\r\n",
        "X: " + "x" * 2_000_000 + "\r\n",
    ],
)
def test_a_request_of_two_meanings_or_without_end_gets_one_refusal_and_no_more(node: NodeHome, framing: str) -> None:
    smuggled = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = ask(node, f"POST /healthz HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n0\r\n\r\n{smuggled}".encode())
    assert len(statuses(answer)) <= 1
    assert b'"ok"' not in answer
    assert node.cli("status").code == 0


def test_a_thousand_silent_connections_at_each_door_keep_nobody_out(node: NodeHome) -> None:
    process = Path(f"/proc/{node.pid}/fd")
    with ExitStack() as held:
        for address in (("127.0.0.1", node.node_json()["console_port"]), str(node.root / "run" / "node.sock")):
            family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
            for number in range(1000 if family is socket.AF_INET else MAX_CONNECTIONS - 10):
                connection = held.enter_context(socket.socket(family))
                connection.settimeout(60)
                if family is socket.AF_UNIX:
                    connection.setblocking(True)
                connection.connect(address)
                with suppress(OSError):
                    connection.sendall(b"GET /healthz HT" if number % 2 else b"")
        assert node.cli("status").code == 0
        assert node.cli("blackboard", "hi").code == 0
        if process.is_dir():
            assert len(list(process.iterdir())) < 2 * MAX_CONNECTIONS + 100
    wait_for(
        lambda: statuses(ask(node, b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")) == [b"200"], 60, "the door"
    )


def test_the_node_may_open_as_many_files_as_its_doors_hold(node: NodeHome) -> None:
    limits = Path(f"/proc/{node.pid}/limits")
    if not limits.exists():
        pytest.skip("no /proc here")
    soft = next(line.split()[3] for line in limits.read_text().splitlines() if line.startswith("Max open files"))
    assert soft == "unlimited" or int(soft) > 2 * MAX_CONNECTIONS


@pytest.mark.timeout(400)
def test_twenty_commands_interrupted_while_a_node_starts_leave_one_node_that_works(nodes: Nodes) -> None:
    home = nodes.home()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "agentmesh", "blackboard", f"post {number}", "--from", f"author {number}", "--json"],
            env=home.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for number in range(20)
    ]  # fmt: skip
    time.sleep(1.0)
    for process in started[:10]:
        process.send_signal(signal.SIGINT)
    results = [process.communicate(timeout=250) for process in started]
    failed = [
        errors
        for process, (_, errors) in zip(started, results, strict=True)
        if process.returncode not in (0, 130, 1, -signal.SIGINT)
    ]
    assert not failed, failed
    assert {process.returncode for process in started[10:]} == {0}, results
    assert {process.returncode for process in started[:10]} <= {0, 130, 1, -signal.SIGINT}
    kept = {post["text"] for post in home.json("blackboard", "--limit", "200")["posts"]}
    assert kept >= {f"post {number}" for number in range(10, 20)}
    assert sum("started a node" in errors for _, errors in results) <= 1


def test_a_board_whose_database_is_damaged_is_put_aside_said_and_begun_anew(nodes: Nodes) -> None:
    home = nodes.home()
    home.cli("blackboard", "before")
    home.cli("stop")
    (database,) = home.root.glob("meshes/*/blackboard.db")
    database.write_bytes(os.urandom(64 * 1024))
    done = home.cli("blackboard", "after")
    assert done.code == 0
    assert "damaged" in done.err
    assert len(list(database.parent.glob("blackboard.db.damaged-*"))) == 1
    assert [post["text"] for post in home.json("blackboard")["posts"]] == ["after"]
