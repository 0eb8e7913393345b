"""Invites, joining and quotas from the command line, on real nodes."""

from __future__ import annotations

import asyncio
import json
import stat

import pytest

from agentmesh.control.client import AsyncNodeClient
from tests.fakes.node_process import NodeHome, Nodes, wait_for

pytestmark = pytest.mark.timeout(300)  # several nodes, one after the other


def texts(node: NodeHome) -> set[str]:
    return {post["text"] for post in node.json("blackboard")["posts"]}


def mesh_of(node: NodeHome) -> str:
    return node.json("status")["mesh_id"]


def mesh_if_any(node: NodeHome) -> str:
    """The same of a node that may be between two meshes."""
    status = node.cli("status", "--json")
    return status.json()["mesh_id"] if status.code == 0 else ""


def test_a_token_is_taken_from_the_command_line_a_file_and_stdin(nodes: Nodes) -> None:
    first = nodes.start("--name", "first")
    (first.root / "token").write_text(first.invite + "\n")
    by_argument = nodes.start("--join", first.invite)
    by_file = nodes.start("--join", f"@{first.root / 'token'}")
    by_stdin = nodes.home().start("--join", "-", stdin=first.invite)
    assert {mesh_of(node) for node in (first, by_argument, by_file, by_stdin)} == {mesh_of(first)}
    first.cli("blackboard", "to everybody")
    for node in (by_argument, by_file, by_stdin):
        wait_for(lambda node=node: "to everybody" in texts(node), 60.0, "the post")
        assert first.invite not in node.stderr_file.read_text()
    peers = first.json("status")["peers"]
    assert len(peers) == 3
    assert all(set(peer) == {"node_id", "name", "state", "address", "rtt_ms"} for peer in peers)


def test_joining_another_mesh_switches_says_so_and_each_mesh_keeps_its_board(nodes: Nodes) -> None:
    first = nodes.start("--name", "first")
    home = nodes.home()
    home.cli("blackboard", "on my own mesh")
    own = mesh_of(home)
    home.start("--join", first.invite)
    assert "Switched from the mesh" in home.stderr_file.read_text()
    assert mesh_of(home) == mesh_of(first) != own
    assert "on my own mesh" not in texts(home)
    home.stop()
    assert mesh_of(home.start()) == mesh_of(first)
    assert (home.root / "meshes" / own / "blackboard.db").exists()


def test_a_node_that_cannot_reach_its_mesh_yet_names_the_address_and_joins_once_it_can(nodes: Nodes) -> None:
    first = nodes.start()
    port = str(first.json("status")["bind_port"])
    token = first.invite
    first.stop()
    second = nodes.home().start("--join", token, ready=False)
    wait_for(lambda: f":{port}" in second.stderr_file.read_text(), 60.0, "the address to be named")
    first.start("--bind-port", port)
    assert second.read_line(120.0).startswith("Invite: ")
    assert mesh_of(second) == mesh_of(first)


def test_a_node_keeps_its_port_over_a_restart_so_that_its_invites_stay_good(nodes: Nodes) -> None:
    home = nodes.home()
    home.cli("blackboard", "hi")
    port = home.json("status")["bind_port"]
    home.cli("stop")
    home.cli("blackboard", "again")
    assert home.json("status")["bind_port"] == port


def test_tokens_of_two_meshes_are_refused(nodes: Nodes) -> None:
    first, second = nodes.start(), nodes.start()
    third = nodes.home().start("--join", first.invite, "--join", second.invite, ready=False)
    assert third.wait(60.0) == 2
    assert "different meshes" in third.stderr_file.read_text()


def test_a_revoked_invite_lets_nobody_in(nodes: Nodes) -> None:
    first = nodes.start()
    made = first.json("invite", "--uses", "3", "--expires", "1h")
    assert set(made) == {"token", "invite_id", "expires_at", "uses"}
    assert made["uses"] == 3
    assert first.cli("revoke", made["invite_id"][:8]).code == 0
    second = nodes.home().start("--join", made["token"], ready=False)
    assert second.wait(60.0) == 2
    assert made["token"] not in second.stderr_file.read_text()


def test_an_invite_for_one_node_is_used_up_by_it(nodes: Nodes) -> None:
    first = nodes.start()
    token = first.cli("invite", "--uses", "1").out.strip()
    nodes.start("--join", token)
    third = nodes.home().start("--join", token, ready=False)
    assert third.wait(60.0) == 2


def test_a_revoked_node_is_put_out_and_its_posts_are_gone(nodes: Nodes) -> None:
    first = nodes.start("--name", "first")
    second = nodes.start("--name", "second", "--join", first.invite)
    second.cli("blackboard", "soon gone")
    wait_for(lambda: "soon gone" in texts(first), 60.0, "the post")
    node_id = second.json("status")["node_id"]
    assert first.cli("revoke", node_id[:10]).code == 0
    wait_for(lambda: "soon gone" not in texts(first), 60.0, "the posts to go")
    wait_for(lambda: first.json("status")["state"] == "alone", 60.0, "the connection to end")


def test_revoking_what_nobody_knows_is_said_so(nodes: Nodes) -> None:
    first = nodes.start()
    assert first.cli("revoke", "zzzzzzzzzz").code == 1
    assert first.cli("revoke", "no/id").code == 2


def test_the_founders_quotas_hold_and_are_shown_to_members(nodes: Nodes) -> None:
    first = nodes.start("--policy", "posts_per_minute=240", "--policy", "author_posts_per_minute=2")
    second = nodes.start("--join", first.invite)
    expected = {"posts_per_minute": 240, "posts_per_day": 5000, "author_posts_per_minute": 2}
    assert first.json("status")["policy"] == expected
    wait_for(lambda: second.json("status")["policy"] == expected, 60.0, "the policy")
    # Two a minute: of these, all can pass only on a machine that takes a minute for two.
    codes = [0]
    while codes[-1] == 0 and len(codes) < 12:
        codes.append(second.cli("blackboard", f"post {len(codes)}", "--from", "ada").code)
    assert codes[-1] == 1


def test_a_running_node_joins_another_mesh_over_its_api_and_keeps_its_process(nodes: Nodes) -> None:
    first, second = nodes.start(), nodes.start()

    async def join(tokens: list[str]) -> str:
        answer = await AsyncNodeClient(second.root).request("POST", "/api/mesh/join", json={"tokens": tokens})
        return str(answer["message"])

    assert "Switched" in asyncio.run(join([first.invite]))
    wait_for(lambda: mesh_if_any(second) == mesh_of(first), 60.0, "the other mesh")
    assert second.node_json()["pid"] == second.pid
    assert "already" in asyncio.run(join([first.invite]))


def test_what_a_node_keeps_of_its_token_is_private(nodes: Nodes) -> None:
    node = nodes.start()
    file = node.root / "run" / "node.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(json.loads(file.read_text())) >= {"pid", "version", "token", "console_port", "bind_port", "api_port"}
