"""The embedded engine's options: llama-server's words, put into the library's parameters."""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentmesh.inference.engine import embedded
from agentmesh.inference.engine.arguments import ServerPlan, server_arguments
from agentmesh.inference.engine.embedded import BadOption, devices_text, fill_params, help_text, version_text
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.logic.engine_output import read_devices, read_flags, read_unix_sockets, read_version
from agentmesh.inference.logic.target import EngineAddress


class DeviceType(enum.Enum):
    GGML_BACKEND_DEVICE_TYPE_CPU = 0
    GGML_BACKEND_DEVICE_TYPE_GPU = 1


def device(name: str, kind: DeviceType) -> dict[str, Any]:
    return {"name": name, "description": "of tests", "memory_total": 8 << 30, "memory_free": 4 << 30, "type": kind}


LIBRARY = SimpleNamespace(
    __version__="2026.10",
    BUILD_INFO={"build_number": 77, "commit": "0c1e570", "compiler": "cc", "build_target": "a machine"},
    get_device_info=lambda: [
        device("CPU", DeviceType.GGML_BACKEND_DEVICE_TYPE_CPU),
        device("CUDA0", DeviceType.GGML_BACKEND_DEVICE_TYPE_GPU),
        device("CUDA1", DeviceType.GGML_BACKEND_DEVICE_TYPE_GPU),
    ],
    llama_pooling_type={"LLAMA_POOLING_TYPE_LAST": "last"},
    llama_flash_attn_type={"LLAMA_FLASH_ATTN_TYPE_ENABLED": "fa on"},
    llama_split_mode=SimpleNamespace(LLAMA_SPLIT_MODE_NONE="no split"),
    ggml_type={"GGML_TYPE_Q8_0": "q8"},
    llama_load_mode={"LLAMA_LOAD_MODE_DIRECT_IO": "dio"},
)


def filled(*words: str, **environ: str) -> Any:
    params = SimpleNamespace(
        model=SimpleNamespace(),
        mmproj=SimpleNamespace(),
        cpuparams=SimpleNamespace(),
        cpuparams_batch=SimpleNamespace(),
    )
    fill_params(params, words, environ, LIBRARY)
    return params


def test_the_help_is_read_as_llama_servers_is() -> None:
    flags = read_flags(help_text())
    assert {name for option in embedded.OPTIONS for name in option.names} <= flags
    assert {"--help", "--version", "--list-devices"} <= flags
    assert "--rpc" not in flags
    assert read_unix_sockets(help_text())


def test_version_and_devices_are_read_as_llama_servers_are() -> None:
    assert read_version(version_text(LIBRARY)) == (77, "0c1e570")
    assert [tuple(each) for each in read_devices(devices_text(LIBRARY))] == [
        ("CUDA0", "of tests", 8 << 30, 4 << 30),
        ("CUDA1", "of tests", 8 << 30, 4 << 30),
    ]


def test_it_takes_every_command_line_that_we_make_for_it() -> None:
    command = ("python", "-m", "agentmesh.inference.engine.embedded")
    flags = read_flags(help_text())
    engine = Engine(command, None, None, None, "cpu", "embedded", None, "", flags, (), True)
    plan = ServerPlan(Path("/m.gguf"), "m", 4096, 2, projector=Path("/p.gguf"), embeddings=True, device="CUDA1")
    for address in (EngineAddress(socket="/e.sock"), EngineAddress(port=1234, api_key="k")):
        filled(*server_arguments(engine, plan, address))


def test_options_become_parameters() -> None:
    params = filled(
        *("--model", "/m.gguf", "--alias", "a,b", "-c", "4096", "-np", "3", "--host", "/x/e.sock", "-ngl", "all"),
        *(
            "--embeddings",
            "--pooling",
            "last",
            "-fa",
            "on",
            "-ctk",
            "q8_0",
            "-lm",
            "dio",
            "--no-ui",
            "-t",
            "6",
            "-fit",
            "off",
        ),
    )
    assert params.model.path == "/m.gguf"
    assert params.model_alias == {"a", "b"}
    assert (params.n_ctx, params.n_parallel, params.n_gpu_layers) == (4096, 3, 999)
    assert params.hostnames == ["/x/e.sock"]
    assert (params.embedding, params.ui, params.fit_params) == (True, False, False)
    assert (params.pooling_type, params.flash_attn_type, params.cache_type_k, params.load_mode) == (
        "last",
        "fa on",
        "q8",
        "dio",
    )
    assert params.cpuparams.n_threads == 6


def test_the_key_comes_from_the_environment() -> None:
    assert filled("--port", "1", LLAMA_API_KEY="secret").api_keys == ["secret"]


def test_one_device_all_of_them_or_none_can_be_chosen() -> None:
    one = filled("--device", "CUDA1")
    assert (one.split_mode, one.main_gpu) == ("no split", 1)
    assert filled("--device", "none").n_gpu_layers == 0
    assert not hasattr(filled("--device", "CUDA1,CUDA0"), "main_gpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nonsense"], "invalid argument: --nonsense"),
        (["--model"], "expected value for argument: --model"),
        (["--ctx-size", "many"], '"--ctx-size": many'),
        (["--pooling", "tea"], '"--pooling": tea'),
        (["-fit", "maybe"], '"-fit": maybe'),
        (["--device", "CUDA7"], '"--device": CUDA7'),
    ],
)
def test_bad_options_are_refused_in_llama_servers_words(words: list[str], said: str) -> None:
    with pytest.raises(BadOption) as refused:
        filled(*words)
    assert said in str(refused.value)


def test_a_missing_library_is_said_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package_at_all")
    assert embedded.main(["--version"]) == 1
    assert "agentmesh[embedded]" in capsys.readouterr().err
