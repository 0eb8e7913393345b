"""How a node in the background tells its starter that it is there, or why it is not: JSON lines on an inherited pipe."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence

from agentmesh.core.errors import AgentMeshError

_log = logging.getLogger(__name__)


class ReadyPipe:
    """Does nothing without a pipe, and nothing more once something final was said."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)  # a worker process that kept it open would keep the starter waiting
            self._write({"pid": os.getpid()})

    def ready(self, notes: Sequence[str] = ()) -> None:
        self._finish({"ready": True, "notes": list(notes)})

    def failed(self, error: AgentMeshError) -> None:
        report = {"code": error.code, "message": error.message, "retryable": error.retryable}
        self._finish({"error": report})

    def _finish(self, message: object) -> None:
        if self._descriptor is None:
            return
        self._write(message)
        os.close(self._descriptor)
        self._descriptor = None

    def _write(self, message: object) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(message).encode("utf-8") + b"\n")
        except OSError as error:
            _log.info("whoever started this node is gone: %s", error)
