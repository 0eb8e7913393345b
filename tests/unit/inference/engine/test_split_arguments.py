"""The options of a split's host, by what the engine knows and in the order that it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.inference.engine.arguments import ServerPlan, server_arguments
from agentmesh.inference.engine.engine import ORIGIN_EMBEDDED, Device, Engine
from agentmesh.inference.engine.errors import EngineTooOld
from agentmesh.inference.engine.split_arguments import Endpoint, check_engine, devices_of, split_words
from agentmesh.inference.logic.plan import make_plan
from agentmesh.inference.logic.split_values import NodeFacts, Split, Wish
from agentmesh.inference.logic.target import EngineAddress
from tests.fakes.split_world import a_model, a_node, near, node_id

NEW = (
    *("--rpc", "--device", "-dev", "--split-mode", "-sm", "--tensor-split", "-ts", "--n-gpu-layers", "-ngl"),
    *("--override-tensor", "-ot", "--load-mode", "-lm", "--mmproj", "--mmproj-device", "-mmdev", "--no-mmproj-offload"),
    *("--cache-type-k", "-ctk", "--cache-type-v", "-ctv", "--fit", "-fit"),
    *("--model", "--alias", "--ctx-size", "--parallel", "--host", "--port"),
)
MACHINE = ("",)


def an_engine(*flags: str, devices: tuple[Device, ...] = ()) -> Engine:
    return Engine(("s",), Path("rpc"), None, None, "cpu", "PATH", 1, "c", frozenset(flags), devices, True)


def a_plan(*nodes: NodeFacts, workers: int = 2) -> Split:
    outcome = make_plan(a_model(), Wish(min_peers=workers), nodes)
    assert isinstance(outcome, Split), outcome
    return outcome


def cpu_plan() -> Split:
    """40 layers of 0.5 GB on a host and two workers without accelerators."""
    return a_plan(*(a_node(n, gb, rtts=near(1, 2, 3)) for n, gb in ((1, 12), (2, 9), (3, 9))))


def value_of(words: tuple[str, ...] | list[str], option: str) -> str:
    assert words.count(option) == 1, words
    return words[words.index(option) + 1]


def test_a_host_without_accelerators_and_two_workers() -> None:
    plan = cpu_plan()
    first, second = plan.workers
    words = split_words(an_engine(*NEW), plan, [Endpoint(first, 4001, MACHINE), Endpoint(second, 4002, MACHINE)])
    assert words.devices == ("RPC0", "RPC1")
    assert words.device is None
    assert value_of(words.extra, "--rpc") == "127.0.0.1:4001,127.0.0.1:4002"
    assert value_of(words.extra, "--device") == "RPC0,RPC1"
    assert value_of(words.extra, "--split-mode") == "layer"
    layers = [share.layers for share in plan.shares]
    assert value_of(words.extra, "--tensor-split") == f"{layers[1]},{layers[2] + 1}"
    assert value_of(words.extra, "--n-gpu-layers") == str(layers[1] + layers[2] + 1)
    assert value_of(words.extra, "--override-tensor") == r"^(output|token_embd)\.weight$=CPU"
    assert value_of(words.extra, "--load-mode") == "none"
    assert value_of(words.extra, "--cache-type-k") == value_of(words.extra, "--cache-type-v") == "f16"
    assert value_of(words.extra, "--mmproj-device") == "none"


def test_numbers_follow_the_endpoints_and_the_devices_of_each_and_the_plan_says_the_order() -> None:
    plan = a_plan(
        a_node(1, 20, gpus=(12,), rtts=near(1, 2, 3)),
        a_node(2, 4, gpus=(5, 5), rtts=near(1, 2, 3)),
        a_node(3, 9, rtts=near(1, 2, 3)),
    )
    assert [(s.place.node, s.place.device) for s in plan.shares][-1] == (node_id(1), "CUDA0")
    assert set(devices_of(plan, node_id(2))) == {"CUDA0", "CUDA1"}
    # The endpoints in another order than the plan's, the worker's devices in another than the plan's.
    ends = [Endpoint(node_id(3), 4003, MACHINE), Endpoint(node_id(2), 4002, ("CUDA1", "CUDA0"))]
    words = split_words(an_engine(*NEW), plan, ends)
    numbers = {(node_id(3), None): "RPC0", (node_id(2), "CUDA1"): "RPC1", (node_id(2), "CUDA0"): "RPC2"}
    wanted = [numbers.get((s.place.node, s.place.device), "CUDA0") for s in plan.shares]
    assert list(words.devices) == wanted
    assert wanted[-1] == "CUDA0"
    assert len(set(wanted)) == 4
    assert "--override-tensor" not in words.extra  # the output is with the host's own device


def test_a_device_that_the_plan_leaves_out_still_counts() -> None:
    plan = cpu_plan()
    ends = [Endpoint(plan.workers[0], 1, ("CUDA0", "")), Endpoint(plan.workers[1], 2, MACHINE)]
    assert split_words(an_engine(*NEW), plan, ends).devices == ("RPC1", "RPC2")
    with pytest.raises(ValueError, match="no endpoint"):
        split_words(an_engine(*NEW), plan, ends[:1])


def test_workers_are_named_before_devices_and_nothing_contradicts_it() -> None:
    """llama-server reads its options in order: `--device RPC0` before `--rpc` is an invalid device."""
    plan = cpu_plan()
    gpu = Device("CUDA0", "a GPU", 8 << 30, 8 << 30)
    for engine in (an_engine(*NEW), an_engine(*NEW, devices=(gpu,))):
        words = split_words(engine, plan, [Endpoint(worker, 1, MACHINE) for worker in plan.workers])
        server = ServerPlan(Path("/m.gguf"), "m", 4096, 1, device=words.device, extra=words.extra)
        line = server_arguments(engine, server, EngineAddress(socket="/e.sock"))
        assert line.count("--device") == 1
        assert line.index("--rpc") < line.index("--device")
        last = len(line) - 1 - line[::-1].index("--n-gpu-layers")
        assert line[last + 1] == str(plan.gpu_layers)
        assert value_of(line, "--fit") == "off"


def test_of_an_engine_of_last_year() -> None:
    plan = cpu_plan()
    old = an_engine("--rpc", "-dev", "-sm", "-ts", "-ngl", "-ot", "--no-mmap", "--mmproj", "--no-mmproj-offload")
    words = split_words(old, plan, [Endpoint(worker, 1, MACHINE) for worker in plan.workers]).extra
    assert words[-2:] == ("--no-mmap", "--no-mmproj-offload")
    assert value_of(words, "-dev") == "RPC0,RPC1"
    without_any = an_engine("--rpc", "-dev", "-sm", "-ts", "-ngl", "-ot", "--no-mmap", "-ctk")
    assert (
        split_words(without_any, plan, [Endpoint(worker, 1, MACHINE) for worker in plan.workers]).extra[-1]
        == "--no-mmap"
    )


@pytest.mark.parametrize(
    "missing",
    [
        "--rpc",
        "--device -dev",
        "--split-mode -sm",
        "--tensor-split -ts",
        "--n-gpu-layers -ngl",
        "--override-tensor -ot",
        "--load-mode -lm",
        "--mmproj-device -mmdev --no-mmproj-offload",
    ],
)
def test_an_engine_that_cannot_is_refused_with_the_option(missing: str) -> None:
    engine = an_engine(*(flag for flag in NEW if flag not in missing.split()))
    named = {"--load-mode": "--no-mmap", "--mmproj-device": "--no-mmproj-offload"}
    first = missing.split(maxsplit=1)[0]
    with pytest.raises(EngineTooOld, match=named.get(first, first)):
        check_engine(engine, cpu_plan())


def test_the_embedded_engine_is_refused_in_words_of_its_own() -> None:
    with pytest.raises(EngineTooOld, match="cannot share a model"):
        check_engine(replace(an_engine(*NEW), origin=ORIGIN_EMBEDDED), cpu_plan())
