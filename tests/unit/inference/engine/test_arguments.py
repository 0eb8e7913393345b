"""The engine's command line: only what it named, nothing secret, and what it gets of the environment."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from agentmesh.inference.engine.arguments import ServerPlan, engine_environment, server_arguments
from agentmesh.inference.engine.engine import Device, Engine
from agentmesh.inference.engine.errors import EngineTooOld
from agentmesh.inference.logic.target import EngineAddress
from tests.fakes.fake_engine import fake_engine, parser

SOCKET = EngineAddress(socket="/h/run/e.sock")
PORT = EngineAddress(port=4711, api_key="very-secret")
GPU = Device("CUDA0", "a GPU", 80 << 30, 70 << 30)


def plan(**changes: object) -> ServerPlan:
    return dataclasses.replace(ServerPlan(Path("/m/model.gguf"), "model", 8192, 4), **changes)  # pyright: ignore


def without(engine: Engine, *flags: str) -> Engine:
    return dataclasses.replace(engine, flags=engine.flags - frozenset(flags))


def value_of(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_the_plan_is_said_in_options() -> None:
    words = server_arguments(fake_engine(), plan(), SOCKET)
    assert value_of(words, "--model") == "/m/model.gguf"
    assert value_of(words, "--alias") == "model"
    assert value_of(words, "--ctx-size") == "8192"
    assert value_of(words, "--parallel") == "4"
    assert value_of(words, "--host") == "/h/run/e.sock"
    assert value_of(words, "--fit") == "off"
    assert {"--no-ui", "--jinja", "--metrics", "--slots", "--offline"} <= set(words)
    assert "--port" not in words
    assert "--embeddings" not in words


def test_an_engine_accepts_its_own_command_line() -> None:
    whole = plan(embeddings=True, projector=Path("/m/p.gguf"), device="CUDA0")
    words = server_arguments(fake_engine(devices=[GPU]), whole, PORT)
    _, unknown = parser().parse_known_args(words)
    assert unknown == []


def test_a_port_is_on_loopback_and_its_key_not_on_the_command_line() -> None:
    words = server_arguments(fake_engine(), plan(), PORT)
    assert value_of(words, "--host") == "127.0.0.1"
    assert value_of(words, "--port") == "4711"
    assert "very-secret" not in " ".join(words)
    assert engine_environment({}, PORT) == {"LLAMA_API_KEY": "very-secret", "GGML_NO_BACKTRACE": "1"}


def test_older_spellings_are_used_where_the_engine_has_no_others() -> None:
    engine = without(fake_engine(), "--no-ui", "--model", "--parallel", "--embeddings", "--fit")
    words = server_arguments(engine, plan(embeddings=True), SOCKET)
    assert {"--no-webui", "-m", "-np", "--embedding", "-fit"} <= set(words)
    assert not {"--no-ui", "--model", "--parallel", "--embeddings", "--fit"} & set(words)


def test_what_an_old_engine_does_not_know_is_left_out_if_it_can_be() -> None:
    optional = (
        "--jinja",
        "--metrics",
        "--slots",
        "--offline",
        "--fit",
        "-fit",
        "--no-ui",
        "--no-webui",
        "--log-colors",
    )
    words = server_arguments(without(fake_engine(), *optional), plan(), SOCKET)
    assert not set(optional) & set(words)


@pytest.mark.parametrize("names", [("--alias", "-a"), ("--ctx-size", "-c"), ("--host",), ("--parallel", "-np")])
def test_an_engine_without_a_needed_option_is_too_old(names: tuple[str, ...]) -> None:
    with pytest.raises(EngineTooOld, match=names[0]):
        server_arguments(without(fake_engine(), *names), plan(), SOCKET)


def test_embeddings_take_the_last_token_unless_the_model_has_its_own_way() -> None:
    words = server_arguments(fake_engine(), plan(embeddings=True), SOCKET)
    assert value_of(words, "--pooling") == "last"
    assert "--pooling" not in server_arguments(fake_engine(), plan(embeddings=True, pooling=None), SOCKET)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (None, ["--n-gpu-layers", "999"]),
        ("CUDA0", ["--device", "CUDA0", "--n-gpu-layers", "999"]),
        ("none", ["--device", "none"]),
    ],
)
def test_all_layers_go_to_the_device_or_none(device: str | None, expected: list[str]) -> None:
    words = server_arguments(fake_engine(devices=[GPU]), plan(device=device), SOCKET)
    where = [i for i, word in enumerate(words) if word in ("--device", "--n-gpu-layers")]
    assert [word for i in where for word in words[i : i + 2]] == expected


def test_nothing_is_said_of_devices_where_there_are_none() -> None:
    assert not {"--device", "--n-gpu-layers"} & set(server_arguments(fake_engine(), plan(), SOCKET))


def test_extra_options_come_last() -> None:
    assert server_arguments(fake_engine(), plan(extra=("--cache-reuse", "256")), SOCKET)[-2:] == [
        "--cache-reuse",
        "256",
    ]


def test_the_environment_holds_what_drivers_read_and_none_of_the_users_secrets() -> None:
    own = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "LD_LIBRARY_PATH": "/opt/lib",
        "LC_ALL": "C",
        "LLAMA_ARG_PORT": "80",
        "LLAMA_API_KEY": "other",
        "AIP_HTTP_PORT": "80",
        "HF_TOKEN": "hf_x",
        "OPENAI_API_KEY": "sk-x",
        "AGENTMESH_JOIN": "amesh1.x",
    }
    kept = engine_environment(own, SOCKET)
    assert sorted(kept) == ["CUDA_VISIBLE_DEVICES", "GGML_NO_BACKTRACE", "LC_ALL", "LD_LIBRARY_PATH", "PATH"]
