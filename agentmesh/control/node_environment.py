"""What a node in the background gets of the environment of the process that started it. Decides; owns nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import agentmesh
from agentmesh.core.paths import Home

# Of the starter's environment: ours, who the user is (the scrubber masks it), where things are (also the engine and the
# models, which a node serves again when it starts), how text is encoded, and what the interpreter and the dynamic linker
# may need to start at all.
KEPT_VARIABLES: Final = frozenset(
    (
        *("AGENTMESH_BIND_HOST", "AGENTMESH_LOG", "HOME", "USER", "LOGNAME", "USERNAME", "SUDO_USER", "PATH", "TMPDIR"),
        *("AGENTMESH_BIN_DIR", "AGENTMESH_ENGINE_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
        *("HF_TOKEN_PATH", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("TZ", "LANG", "LANGUAGE", "VIRTUAL_ENV", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    )
)
KEPT_VARIABLE_PREFIXES: Final = ("LC_", "PYTHON", "LD_", "DYLD_")


def node_environment(own: Mapping[str, str], home: Home) -> dict[str, str]:
    """What a node in the background gets of this process's environment: names that are known to be needed, no others.

    It outlives the shell, CI job or agent that started it by days; their secrets must not, neither there nor in a core dump.
    """
    kept = {
        name: value for name, value in own.items() if name in KEPT_VARIABLES or name.startswith(KEPT_VARIABLE_PREFIXES)
    }
    kept["AGENTMESH_HOME"] = str(home.root)
    package_parent = Path(agentmesh.__file__).resolve().parent.parent
    if package_parent.name not in ("site-packages", "dist-packages"):  # run from a checkout
        inherited = own.get("PYTHONPATH")
        kept["PYTHONPATH"] = os.pathsep.join([str(package_parent), *([inherited] if inherited else [])])
    return kept
