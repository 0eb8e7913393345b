"""The embedded engine: llama-server's code from the xllamacpp package, run as a process that takes llama-server's options.

    python -m agentmesh.inference.engine.embedded --model m.gguf --host PATH.sock --parallel 4 …

Owns the translation of options into xllamacpp's parameters, and the answers to --help, --version and --list-devices in llama-server's
form. HTTP is the library's: the same endpoints and streams as llama-server's. It has no RPC backend.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

PACKAGE: Final = "xllamacpp"
HELP_COLUMN: Final = 40
ON_OFF: Final = {"on": True, "off": False, "1": True, "0": False, "true": True, "false": False}
GPU_TYPES: Final = ("GGML_BACKEND_DEVICE_TYPE_GPU", "GGML_BACKEND_DEVICE_TYPE_IGPU")
MIB: Final = 1024 * 1024

# The package has no types; what is used of it: CommonParams with plain attributes, Server(params), get_device_info(), BUILD_INFO.
Library = Any
Params = Any


class BadOption(Exception):
    """An option or its value cannot be used; the text is llama-server's."""


@dataclass(frozen=True)
class Option:
    """One option: its spellings, what its value is called ("" if it takes none), its line in --help, and what it does."""

    names: tuple[str, ...]
    value: str
    help: str
    apply: Callable[[Params, str, Library], None]


def _set(name: str, convert: Callable[[str], object] = str) -> Callable[[Params, str, Library], None]:
    def apply(params: Params, text: str, _library: Library) -> None:
        setattr(params, name, convert(text))

    return apply


def _to(name: str, value: object) -> Callable[[Params, str, Library], None]:
    return lambda params, _text, _library: setattr(params, name, value)


def _on_off(text: str) -> bool:
    try:
        return ON_OFF[text]
    except KeyError as error:
        raise ValueError(text) from error


def _member(name: str, kind: str, prefix: str, words: Mapping[str, str] | None = None) -> Callable[..., None]:
    """Set a parameter to a member of one of the library's enumerations."""

    def apply(params: Params, text: str, library: Library) -> None:
        word = (words or {}).get(text, text).upper()
        setattr(params, name, getattr(library, kind)[prefix + word])

    return apply


def _both(*names: str) -> Callable[[Params, str, Library], None]:
    def apply(params: Params, text: str, _library: Library) -> None:
        for name in names:
            setattr(params, name, int(text))

    return apply


def _model(params: Params, text: str, _library: Library) -> None:
    params.model.path = text


def _projector(params: Params, text: str, _library: Library) -> None:
    params.mmproj.path = text


def _threads(params: Params, text: str, _library: Library) -> None:
    params.cpuparams.n_threads = int(text)


def _threads_batch(params: Params, text: str, _library: Library) -> None:
    params.cpuparams_batch.n_threads = int(text)


def _layers(params: Params, text: str, _library: Library) -> None:
    params.n_gpu_layers = {"auto": -1, "all": 999}.get(text) or int(text)


def _aliases(params: Params, text: str, _library: Library) -> None:
    params.model_alias = set(text.split(","))


def _device(params: Params, text: str, library: Library) -> None:
    """One device, all of them, or none: the library cannot choose some of several."""
    wanted = text.split(",")
    names = [device["name"] for device in _devices(library)]
    if wanted == ["none"]:
        params.n_gpu_layers = 0
        params.no_kv_offload = params.no_op_offload = True
    elif len(wanted) == 1 and wanted[0] in names:
        params.split_mode = library.llama_split_mode.LLAMA_SPLIT_MODE_NONE
        params.main_gpu = names.index(wanted[0])
    elif sorted(wanted) != sorted(names):
        raise ValueError(text)


_TYPES: Final = "allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1"
_FLASH: Final = {"on": "ENABLED", "off": "DISABLED", "1": "ENABLED", "0": "DISABLED"}
_LOAD: Final = {"mmap+mlock": "MMAP_MLOCK", "dio": "DIRECT_IO"}

OPTIONS: Final = (
    Option(("-m", "--model"), "FNAME", "model path to load", _model),
    Option(("-mm", "--mmproj"), "FILE", "path to a multimodal projector file", _projector),
    Option(("-a", "--alias"), "STRING", "model name aliases, comma-separated (to be used by API)", _aliases),
    Option(("-c", "--ctx-size"), "N", "size of the prompt context (default: from the model)", _set("n_ctx", int)),
    Option(("-np", "--parallel"), "N", "number of server slots", _set("n_parallel", int)),
    Option(("-b", "--batch-size"), "N", "logical maximum batch size", _set("n_batch", int)),
    Option(("-ub", "--ubatch-size"), "N", "physical maximum batch size", _set("n_ubatch", int)),
    Option(("-n", "--predict", "--n-predict"), "N", "number of tokens to predict", _set("n_predict", int)),
    Option(("-t", "--threads"), "N", "number of CPU threads to use during generation", _threads),
    Option(("-tb", "--threads-batch"), "N", "number of threads to use during prompt processing", _threads_batch),
    Option(("-ngl", "--gpu-layers", "--n-gpu-layers"), "N", "layers to store in VRAM, 'auto', or 'all'", _layers),
    Option(("-dev", "--device"), "<dev>", "one device, all of them, or none", _device),
    Option(("-fit", "--fit"), "[on|off]", "adjust unset arguments to fit in memory", _set("fit_params", _on_off)),
    Option(
        ("-fa", "--flash-attn"),
        "[on|off|auto]",
        "Flash Attention use",
        _member("flash_attn_type", "llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_", _FLASH),
    ),
    Option(("-ctk", "--cache-type-k"), "TYPE", _TYPES, _member("cache_type_k", "ggml_type", "GGML_TYPE_")),
    Option(("-ctv", "--cache-type-v"), "TYPE", _TYPES, _member("cache_type_v", "ggml_type", "GGML_TYPE_")),
    Option(
        ("-lm", "--load-mode"),
        "MODE",
        "auto, none, mmap, mlock, mmap+mlock, dio",
        _member("load_mode", "llama_load_mode", "LLAMA_LOAD_MODE_", _LOAD),
    ),
    Option(("-kvu", "--kv-unified"), "", "one KV buffer for all sequences", _to("kv_unified", True)),
    Option(("-no-kvu", "--no-kv-unified"), "", "one KV buffer for each slot", _to("kv_unified", False)),
    Option(("--cache-reuse",), "N", "smallest chunk to reuse from the cache", _set("n_cache_reuse", int)),
    Option(("-cram", "--cache-ram"), "N", "maximum cache size in MiB", _set("cache_ram_mib", int)),
    Option(("--no-warmup",), "", "skip the warmup run", _to("warmup", False)),
    Option(("--embedding", "--embeddings"), "", "enable the embedding endpoint", _to("embedding", True)),
    Option(
        ("--pooling",),
        "{none,mean,cls,last,rank}",
        "pooling type for embeddings",
        _member("pooling_type", "llama_pooling_type", "LLAMA_POOLING_TYPE_"),
    ),
    Option(("--jinja",), "", "use the model's own template for chat", _to("use_jinja", True)),
    Option(("--no-jinja",), "", "use built-in templates for chat", _to("use_jinja", False)),
    Option(("--chat-template",), "JINJA_TEMPLATE", "custom chat template", _set("chat_template")),
    Option(
        ("--host",),
        "HOST",
        "IP address to listen on, or UNIX socket path ending in .sock",
        lambda params, text, _library: setattr(params, "hostnames", [text]),
    ),
    Option(("--port",), "PORT", "port to listen", _set("port", int)),
    Option(
        ("--api-key",),
        "KEY",
        "API key to use for authentication (env: LLAMA_API_KEY)",
        lambda params, text, _library: setattr(params, "api_keys", [key for key in text.split(",") if key]),
    ),
    Option(("--threads-http",), "N", "threads used to process HTTP requests", _set("n_threads_http", int)),
    Option(("-to", "--timeout"), "N", "read and write timeout in seconds", _both("timeout_read", "timeout_write")),
    Option(("--no-ui", "--no-webui"), "", "disable the Web UI", _to("ui", False)),
    Option(("--metrics",), "", "enable the metrics endpoint", _to("endpoint_metrics", True)),
    Option(("--slots",), "", "expose the slots endpoint (default)", _to("endpoint_slots", True)),
    Option(("--no-slots",), "", "do not expose the slots endpoint", _to("endpoint_slots", False)),
    Option(("--offline",), "", "prevent network access", _to("offline", True)),
    Option(("-lv", "--verbosity", "--log-verbosity"), "N", "verbosity threshold", _set("verbosity", int)),
)
_BY_NAME: Final = {name: option for option in OPTIONS for name in option.names}


def help_text() -> str:
    """All options, in llama-server's columns."""
    questions = (
        Option(("-h", "--help", "--usage"), "", "print usage and exit", _model),
        Option(("--version",), "", "show version and build info", _model),
        Option(("--list-devices",), "", "print list of available devices and exit", _model),
    )
    lines = ["----- embedded engine -----", ""]
    for option in (*questions, *OPTIONS):
        left = f"{', '.join(option.names)} {option.value}".rstrip()
        if len(left) >= HELP_COLUMN:
            lines.append(left)
            left = ""
        lines.append(left.ljust(HELP_COLUMN) + option.help)
    return "\n".join(lines) + "\n"


def version_text(library: Library) -> str:
    """Version and build, as llama-server prints them. The package's version stands in for the commit, which wheels do not have."""
    info: dict[str, Any] = library.BUILD_INFO
    commit = info["commit"] if info["commit"] != "unknown" else f"{PACKAGE}-{library.__version__}"
    return f"version: {info['build_number']} ({commit})\nbuilt with {info['compiler']} for {info['build_target']}\n"


def devices_text(library: Library) -> str:
    """The devices beside the CPU, as llama-server prints them."""
    lines = [
        f"  {device['name']}: {device['description']} "
        f"({device['memory_total'] // MIB} MiB, {device['memory_free'] // MIB} MiB free)"
        for device in _devices(library)
    ]
    return "\n".join(["Available devices:", *(lines or ["  (none)"])]) + "\n"


def _devices(library: Library) -> list[dict[str, Any]]:
    return [device for device in library.get_device_info() if device["type"].name in GPU_TYPES]


def fill_params(params: Params, words: Sequence[str], environ: Mapping[str, str], library: Library) -> None:
    """Set what the options say.

    Raises:
        BadOption: one is not known, lacks its value, or its value is none.
    """
    if key := environ.get("LLAMA_API_KEY"):
        _BY_NAME["--api-key"].apply(params, key, library)
    rest = list(words)
    while rest:
        name = rest.pop(0)
        option = _BY_NAME.get(name)
        if option is None:
            raise BadOption(f"error: invalid argument: {name}")
        if option.value and not rest:
            raise BadOption(f"error: expected value for argument: {name}")
        value = rest.pop(0) if option.value else ""
        try:
            option.apply(params, value, library)
        except (ValueError, KeyError, OverflowError) as error:
            raise BadOption(f'error while handling argument "{name}": {value}') from error


def main(words: Sequence[str]) -> int:
    if {"-h", "--help", "--usage"} & set(words):
        sys.stdout.write(help_text())
        return 0
    try:
        library = importlib.import_module(PACKAGE)
    except ImportError as error:
        sys.stderr.write(f"error: {PACKAGE} cannot be loaded: {error}. Install it: pip install 'agentmesh[embedded]'\n")
        return 1
    if "--version" in words:
        sys.stdout.write(version_text(library))
        return 0
    if "--list-devices" in words:
        sys.stdout.write(devices_text(library))
        return 0
    return serve(words, library)


def serve(words: Sequence[str], library: Library) -> int:
    """Load the model and answer requests until a signal ends the process: nothing of it needs saving."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # also while the library loads, which no Python handler could interrupt
    params = library.CommonParams()
    try:
        fill_params(params, words, os.environ, library)
        server = library.Server(params)
    except (BadOption, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    while server is not None:
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
