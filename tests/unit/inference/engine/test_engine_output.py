"""What llama.cpp and build tools print, read without trust."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.inference.logic import engine_output
from agentmesh.inference.logic.engine_output import (
    ListedDevice,
    flavor_of,
    progress_of,
    read_devices,
    read_flags,
    read_unix_sockets,
    read_version,
)
from agentmesh.inference.logic.hardware_output import read_cpu_model, read_nvidia_smi, read_pci_vendor, read_rocm_smi
from tests.fakes.engine_programs import HELP

MIB = 1 << 20


def test_every_spelling_of_an_option_is_a_flag() -> None:
    assert {
        "-c",
        "--ctx-size",
        "-h",
        "--help",
        "--usage",
        "--version",
        "-nkvo",
        "--no-kv-offload",
        "-fa",
    } <= read_flags(HELP)


def test_options_that_the_help_calls_removed_are_no_flags_even_when_the_sentence_is_wrapped() -> None:
    assert read_flags(HELP).isdisjoint({"--draft", "--draft-n", "--draft-max", "--draft-min", "--draft-n-min"})


def test_options_that_a_description_mentions_are_no_flags() -> None:
    assert read_flags(HELP).isdisjoint({"--not-an-option", "--spec-draft-n-max", "--spec-ngram-mod-n-max", "-----"})


def test_a_flood_of_options_is_cut() -> None:
    text = "\n".join(f"--option-{n}  something" for n in range(engine_output.MAX_FLAGS * 2))
    assert len(read_flags(text)) == engine_output.MAX_FLAGS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: 0.5.0-dev (build 12, commit 0c1e570)\nbuilt with GNU", (12, "0c1e570")),
        ("version: 0.5.0-dev (build 0, commit 0c1e570)", (None, "0c1e570")),
        ("ggml_cuda_init: found 1 device\nversion: 4567 (0c1e570a)\nbuilt with cc", (4567, "0c1e570a")),
        ("version: 0 (unknown)", (None, "")),
        ("version: 0 (xllamacpp-2026.10.11549)", (None, "xllamacpp-2026.10.11549")),
        ("build 7, commit abcdef0", (None, "")),
        ("", (None, "")),
    ],
)
def test_versions_old_and_new_are_read(text: str, expected: tuple[int | None, str]) -> None:
    assert read_version(text) == expected


def test_devices_are_read_with_their_memory_whatever_is_printed_around_them() -> None:
    text = (
        "ggml_cuda_init: found 2 CUDA devices:\n  Device 0: NVIDIA H200, compute capability 9.0\nAvailable devices:\n"
        "  CUDA0: NVIDIA H200 (143167 MiB, 142650 MiB free)\n"
        "  Vulkan1: AMD Radeon RX 7900 XTX (RADV NAVI31): x (24560 MiB, 24000 MiB free)\n"
        "  BLAS: OpenBLAS (0 MiB, 0 MiB free)\n"
    )
    assert read_devices(text) == (
        ListedDevice("CUDA0", "NVIDIA H200", 143167 * MIB, 142650 * MIB),
        ListedDevice("Vulkan1", "AMD Radeon RX 7900 XTX (RADV NAVI31): x", 24560 * MIB, 24000 * MIB),
    )


def test_no_devices_means_none() -> None:
    assert read_devices("Available devices:\n  (none)\n") == ()


@pytest.mark.parametrize(
    ("names", "flavor"),
    [
        ((), "cpu"),
        (("CUDA0",), "cuda"),
        (("ROCm0",), "rocm"),
        (("Vulkan0",), "vulkan"),
        (("MTL0",), "metal"),
        (("Metal",), "metal"),
        (("SYCL0",), "other"),
    ],
)
def test_the_flavour_is_told_by_device_names(names: tuple[str, ...], flavor: str) -> None:
    assert flavor_of(names) == flavor


def test_unix_sockets_are_known_from_the_help() -> None:
    assert read_unix_sockets(HELP)
    assert read_unix_sockets(
        "--host HOST  ip address to listen, or bind to an UNIX socket if the address ends with .sock"
    )
    assert not read_unix_sockets("--host HOST  ip address to listen (default: 127.0.0.1)")


@pytest.mark.parametrize(
    ("line", "percent"),
    [
        ("[0/215] Re-checking", 0),
        ("[43/215] Building CXX object", 20),
        ("[215/215] Linking", 100),
        ("[ 45%] Building CXX object", 45),
        ("[100%] Built target llama-server", 100),
        ("[300%] no", 100),
        ("[9/0] no", None),
        ("[9/8] no", None),
        ("warning: unused", None),
    ],
)
def test_progress_of_ninja_and_make_is_read(line: str, percent: int | None) -> None:
    assert progress_of(line) == percent


READERS = (
    read_flags,
    read_version,
    read_devices,
    read_unix_sockets,
    progress_of,
    read_cpu_model,
    read_pci_vendor,
    read_nvidia_smi,
    read_rocm_smi,
)


@given(
    st.text()
    | st.lists(st.sampled_from(["-", "--", "a", " ", ",", "\n", "(", " MiB", "1", "٣", ":", "{", '"', "[", "/"])).map(
        "".join
    )
)
def test_no_reader_fails_whatever_a_program_prints(text: str) -> None:
    for reader in READERS:
        reader(text)


def test_nvidia_smi_is_read_and_unified_memory_has_no_size() -> None:
    text = "NVIDIA H200, 143771, 143000\nNVIDIA GB10, [N/A], [N/A]\nnonsense\n"
    assert read_nvidia_smi(text) == (
        ListedDevice("CUDA0", "NVIDIA H200", 143771 * MIB, 143000 * MIB),
        ListedDevice("CUDA1", "NVIDIA GB10", 0, 0),
    )


def test_rocm_smi_is_read_after_its_warnings() -> None:
    text = (
        "WARNING: AMD GPU device(s) is/are in a low-power state.\n"
        '{"card0": {"Card Series": "Instinct MI300X", "VRAM Total Memory (B)": "1000", "VRAM Total Used Memory (B)": "400"},'
        ' "card1": {"VRAM Total Memory (B)": "many"}, "system": {"Driver version": "6"}, "card2": 3}'
    )
    assert read_rocm_smi(text) == (
        ListedDevice("ROCm0", "Instinct MI300X", 1000, 600),
        ListedDevice("ROCm1", "AMD graphics", 0, 0),
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '{"a": ' * 100_000])
def test_rocm_smi_that_prints_no_object_lists_nothing(text: str) -> None:
    assert read_rocm_smi(text) == ()


def test_the_processor_is_named_by_cpuinfo() -> None:
    assert read_cpu_model("processor\t: 0\nmodel name\t: AMD EPYC 9354\nmodel name\t: x") == "AMD EPYC 9354"
    assert read_cpu_model("processor\t: 0\nBogoMIPS\t: 50") == ""
