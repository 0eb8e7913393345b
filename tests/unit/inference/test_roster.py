"""Which model a name means, and who its hosts are."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic import roster as roster_module
from agentmesh.inference.logic.roster import Roster, same_name
from agentmesh.inference.logic.target import Target
from tests.fakes.routing import ME, at, model, own, peer


def _roster(*targets: Target) -> Roster:
    roster = Roster(ME)
    for node in dict.fromkeys(target.node for target in targets):
        assert roster.put(node, [target for target in targets if target.node == node])
    return roster


def test_the_exact_id_is_preferred_to_other_cases_and_aliases() -> None:
    roster = _roster(at(1, model("Qwen")), at(2, model("qwen")), at(3, model("other", aliases=("Qwen",))))
    assert roster.resolve("Qwen") == ("Qwen",)
    assert roster.resolve("qwen") == ("qwen",)


def test_ids_match_in_any_case_and_before_aliases() -> None:
    roster = _roster(at(1, model("Qwen2.5-7B-Q4_K_M")), at(2, model("x", aliases=("qwen2.5-7b-q4_k_m",))))
    assert roster.resolve("QWEN2.5-7b-q4_k_m") == ("Qwen2.5-7B-Q4_K_M",)


def test_aliases_match_in_any_case() -> None:
    assert _roster(at(1, model("file-Q4", aliases=("Qwen2.5-7B",)))).resolve("qwen2.5-7b") == ("file-Q4",)


@pytest.mark.parametrize("name", ["", "tin", "tiny2", "tiny ", "ti*", "tiny/tiny", "t-i-n-y", "tiny\x00"])
def test_a_similar_name_is_no_name(name: str) -> None:
    assert _roster(at(1, model("tiny", aliases=("small",)))).resolve(name) == ()


def test_an_alias_of_several_models_means_ready_ones_first_then_own_then_large() -> None:
    roster = _roster(
        own(model("d", aliases=("a",), parameters=1)),
        at(1, model("c", aliases=("a",), parameters=7)),
        at(2, model("b", aliases=("A",), parameters=9)),
        at(3, model("e", aliases=("a",), parameters=99, ready=False)),
    )
    assert roster.resolve("a") == ("d", "b", "c", "e")


def test_a_nodes_several_models_are_several_targets() -> None:
    roster = _roster(own(model("one"), 1), own(model("two"), 2))
    assert [target.engine.port for target in roster.targets("one") if target.engine] == [1]
    assert [target.engine.port for target in roster.targets("two") if target.engine] == [2]


def test_this_node_comes_first_and_peers_in_an_order_of_its_own() -> None:
    targets = [at(number) for number in range(1, 20)]
    mine = _roster(*targets, own())
    theirs = Roster(peer(77))
    for target in targets:
        theirs.put(target.node, [target])
    assert mine.targets("tiny")[0].node == ME
    order = [target.node for target in mine.targets("tiny")[1:]]
    assert order == [t.node for t in _roster(own(), *reversed(targets)).targets("tiny")[1:]]
    assert order != [target.node for target in theirs.targets("tiny")]


def test_hosts_with_another_file_by_the_same_name_are_left_out() -> None:
    roster = _roster(at(1, model(sha256="aa")), at(2, model(sha256="bb")), at(3, model(sha256="bb")), at(4, model()))
    assert {target.node for target in roster.targets("tiny")} == {peer(2), peer(3), peer(4)}
    roster.put(ME, [own(model(sha256="aa"))])
    assert {target.node for target in roster.targets("tiny")} == {ME, peer(1), peer(4)}
    roster.remove(ME)
    assert {target.node for target in roster.targets("tiny")} == {peer(2), peer(3), peer(4)}


def test_what_a_node_offered_is_replaced_and_forgotten_with_its_names() -> None:
    roster = _roster(at(1, model("one", aliases=("a", "A"))))
    roster.put(peer(1), [at(1, model("two"))])
    assert (roster.resolve("one"), roster.resolve("a"), roster.resolve("two")) == ((), (), ("two",))
    roster.remove(peer(1))
    roster.remove(peer(1))
    assert roster.models() == []
    assert roster.targets("two") == ()


def test_models_are_listed_once_ready_ones_first_as_the_best_host_describes_them() -> None:
    roster = _roster(
        at(1, model("b", ready=False, context=99)), at(2, model("b", context=8)), at(3, model("a", ready=False))
    )
    entries = roster.models()
    assert [(entry.id, entry.ready) for entry, _ in entries] == [("b", True), ("a", False)]
    assert entries[0][0].context_tokens == 8
    assert entries[0][1] == (peer(2),), "whoever is not ready yet answers nothing"
    assert entries[1][1] == (peer(3),)


def test_beyond_the_bounds_peers_offer_nothing_but_this_node_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "MAX_TARGETS", 3)
    monkeypatch.setattr(roster_module, "MAX_SERVING_NODES", 2)
    roster = _roster(at(1, model("a")), at(2, model("b")))
    assert not roster.put(peer(3), [at(3, model("c"))])
    assert not roster.put(peer(2), [at(2, model(name)) for name in "bcd"])
    assert roster.resolve("b") == ()
    assert roster.put(peer(2), [at(2, model(name)) for name in "bc"])
    assert roster.put(ME, [own(model("mine"))])
    assert roster.resolve("mine") == ("mine",)


def test_a_list_of_models_is_searched_by_the_same_rules() -> None:
    models = [model("x", aliases=("Qwen",)), model("QWEN"), model("tiny")]
    assert same_name("qwen", models) == "QWEN"
    assert same_name("tiny", models) == "tiny"
    assert same_name("Tin", models) is None


def test_a_name_of_this_node_is_not_taken_over_by_a_peer_that_calls_a_model_so() -> None:
    roster = _roster(own(model("Qwen2.5-3B-Q4_K_M", aliases=("3b",))), at(1, model("3b")), at(2, model("3B")))
    assert roster.resolve("3b")[0] == "Qwen2.5-3B-Q4_K_M"
    assert roster.resolve("3B")[0] == "Qwen2.5-3B-Q4_K_M"


def test_a_name_of_this_node_means_a_peers_model_while_it_is_not_ready_here() -> None:
    assert _roster(own(model("file", ready=False, aliases=("3b",))), at(1, model("3b"))).resolve("3b") == ("3b",)


def test_hosts_that_are_not_ready_do_not_decide_which_file_a_name_means() -> None:
    roster = _roster(
        at(1, model("m", sha256="0" * 64, ready=False)),
        at(2, model("m", sha256="0" * 64, ready=False)),
        at(3, model("m", sha256="f" * 64)),
    )
    assert [target.node for target in roster.targets("m")] == [peer(3)]


def test_models_with_hosts_of_parts_are_known_until_the_last_such_host_leaves() -> None:
    roster = _roster(at(1, model("a", shard="8/16 -")), at(2, model("a", shard="8/16 -")), at(3, model("b")))
    followed = roster.sharded()
    assert list(followed) == ["a"]
    roster.put(peer(1), [at(1, model("a"))])
    assert "a" in followed
    roster.remove(peer(2))
    assert not followed


def test_a_model_is_described_by_a_host_of_the_whole_before_one_of_a_part() -> None:
    roster = _roster(own(model("a", shard="8/16 -", context=9000)), at(1, model("a", context=100)))
    assert roster.describe("a").shard == ""
    assert roster.describe("a").context_tokens == 100


def test_parts_of_another_file_than_most_are_left_out_like_other_models() -> None:
    hosts = (
        at(1, model(sha256="x", shard="8/16 -")),
        at(2, model(sha256="x", shard="8/16 -")),
        at(3, model(sha256="y")),
    )
    assert {target.node for target in _roster(*hosts).targets("tiny")} == {peer(1), peer(2)}
