"""Why an engine ended, said so that a user knows what to do."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.engine_end import SHOWN_LINES, ProcessEnd, end_message, explain_end

FAILED = ProcessEnd(1, None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1 MiB on device 0: cudaMalloc failed: out of memory",
            "not enough memory",
        ),
        ("alloc_tensor_range: failed to allocate CUDA0 buffer of size 21474836480", "not enough memory"),
        ("ggml_vulkan: Device memory allocation failed: ErrorOutOfDeviceMemory", "not enough memory"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "not enough memory"),
        ("llama_model_load: error loading model: unknown model architecture: 'qwen9'", "architecture, qwen9"),
        ("E gguf_init_from_file: failed to open GGUF file 'x.gguf' (No such file or directory)", "missing, damaged"),
        ("gguf_init_from_file_impl: invalid magic characters: 'PK', expected 'GGUF'", "missing, damaged"),
        ("error: invalid argument: --jinja", "does not know the option --jinja"),
        ('error while handling argument "--ctx-size": stoi', "value of the option --ctx-size"),
        ("E srv llama_server: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 80", "could not listen"),
        (
            "llama-server: error while loading shared libraries: libcudart.so.12: cannot open",
            "library libcudart.so.12.",
        ),
        ("common_init_from_params: failed to create context with model 'x'", "could not set up"),
    ],
)
def test_words_of_the_log_are_explained(line: str, said: str) -> None:
    assert said in explain_end(FAILED, ["something else", line, "exiting"])


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (ProcessEnd(None, 9), "ran out of memory"),
        (ProcessEnd(None, 4), "another processor"),
        (ProcessEnd(None, 11), "crashed (signal 11)"),
        (ProcessEnd(None, 15), "ended by signal 15"),
        (ProcessEnd(3, None), "status 3"),
        (ProcessEnd(None, None), "guard"),
    ],
)
def test_an_end_without_telling_words_is_explained_by_how_it_ended(end: ProcessEnd, said: str) -> None:
    assert said in explain_end(end, ["llama_server: listening"])


def test_a_kill_that_we_sent_is_no_lack_of_memory() -> None:
    assert "memory" not in explain_end(ProcessEnd(None, 9, asked=True), [])


def test_the_message_ends_with_the_last_lines_of_the_log() -> None:
    lines = [f"line {n}" for n in range(20)]
    said = end_message(FAILED, lines, "/h/logs/e.log").splitlines()
    assert said[0] == "The engine ended with status 1. Its log, /h/logs/e.log, ends with:"
    assert said[1:] == lines[-SHOWN_LINES:]


def test_an_empty_log_is_said_to_be_empty() -> None:
    assert end_message(FAILED, [], "/h/e.log") == "The engine ended with status 1. Its log, /h/e.log, is empty."
