"""What a host and a worker say on a `job` stream: one stream is one RPC server lent for one run of one model. Pure.

    host                                   worker
    JobAsk ------------------------------>
           <------------------------------ JobSaid(WAIT, "fetching … 40 %")    any number, at least every JOB_BEAT_S
           <------------------------------ JobSaid(READY, job=…)               its RPC server listens
           <------------------------------ JobSaid(BEAT)                       every JOB_BEAT_S from then on
           <------------------------------ JobSaid(REFUSED or ENDED, sentence) and the stream ends

The stream is the lease: when it ends, whoever ended it, the RPC server is ended, and with it the host's llama-server. A peer that
says nothing for JOB_SILENCE_S is gone. A stream that begins with JobPing is answered by one JobPong and ends: a round trip is measured.
All frames: mesh/streams.py's, msgpack arrays.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

import msgspec

from agentmesh.core.units import KIB
from agentmesh.inference.logic.model_files import MAX_SET_PARTS
from agentmesh.inference.logic.split_limits import MAX_DEVICES_OF_A_NODE
from agentmesh.inference.logic.split_offer import content_of

JOB_FORMAT: Final = 1
JOB_BEAT_S: Final = 2.0
JOB_SILENCE_S: Final = 10.0
MAX_SENTENCE_CHARS: Final = 500
MAX_ASK_BYTES: Final = 512 * KIB  # MAX_SET_PARTS files with the longest names take 310 kB
SHOWN_NAME_CHARS: Final = 80
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Unsigned = Annotated[int, msgspec.Meta(ge=0)]


class JobFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of the model that the host reads. The name helps a worker that has to ask others for it; it proves nothing."""

    sha256: _Digest
    size_bytes: _Unsigned
    name: _Name


class JobAsk(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """The host wants an RPC server.

    Attributes:
        content: split_offer.content_of the files.
        term: of the host's claim.
        needs: (device, bytes) of the plan's shares here; "" is the machine's memory. Also the most that it may allocate.
        engine_commit, rpc_version: of the host's engine; the worker refuses another.
    """

    content: _Name
    model: _Name
    term: _Unsigned
    files: Annotated[tuple[JobFile, ...], msgspec.Meta(min_length=1, max_length=MAX_SET_PARTS)]
    needs: Annotated[tuple[tuple[str, _Unsigned], ...], msgspec.Meta(min_length=1, max_length=MAX_DEVICES_OF_A_NODE)]
    engine_commit: str
    rpc_version: tuple[int, int, int]
    format: int = JOB_FORMAT


class JobPing(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """Answered at once."""


class JobPong(msgspec.Struct, frozen=True, array_like=True):
    """The answer."""


class JobState(IntEnum):
    """Of a job, as the worker says it."""

    WAIT = 0
    READY = 1
    BEAT = 2
    REFUSED = 3
    ENDED = 4


class JobSaid(msgspec.Struct, frozen=True, array_like=True):
    """From the worker.

    Attributes:
        sentence: for status; why, if it was refused or has ended.
        job: READY: what `rpc` streams name to reach the RPC server (rpc_stream.Open.job).
        devices: READY: the RPC server's devices in its order, as `needs` named them.
        seen_term: REFUSED since a newer host was served: that term, else 0.
        same_files: READY: whether it has the files, so that weights need not travel.
    """

    state: JobState
    sentence: str = ""
    job: str = ""
    devices: tuple[str, ...] = ()
    seen_term: int = 0
    same_files: bool = False


ask_decoder: msgspec.msgpack.Decoder[JobAsk | JobPing] = msgspec.msgpack.Decoder(JobAsk | JobPing)
"""Of a host's first frame."""


def wrong_in(ask: JobAsk) -> str:
    """Why nobody could serve this, in a sentence; empty if it is sound."""
    if ask.format != JOB_FORMAT:
        return "The host runs another version of agentmesh."
    if ask.content != content_of([file.sha256 for file in ask.files]):
        return "The host names another model than its files are."
    devices = [device for device, _ in ask.needs]
    if len(set(devices)) < len(devices):
        return "The host names a device twice."
    if not sum(need for _, need in ask.needs):
        return "The host asks for no memory."
    return ""


def said(state: JobState, sentence: str = "", seen_term: int = 0) -> JobSaid:
    """What a worker says, other than READY; a sentence that is too long is cut."""
    return JobSaid(state, shown(sentence, MAX_SENTENCE_CHARS), seen_term=seen_term)


def shown(text: str, limit: int = SHOWN_NAME_CHARS) -> str:
    """What a peer wrote, as it may stand in a log or on a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:limit])
