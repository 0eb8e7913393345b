"""A worker's side of terms: one host of a model at a time, and never an older one after a newer.

    effects = fence.handle(event)

Owns, for one model on one worker, which job its RPC server belongs to. Pure; starts and ends nothing itself. A worker that restarts
begins anew: its RPC server is gone, too, so nothing of an older job can be left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agentmesh.inference.logic.split_limits import MAX_TERM
from agentmesh.inference.logic.split_values import short_id_text


@dataclass(frozen=True, slots=True)
class Job:
    """Whose RPC server it is: host and term, ordered as claims are (of equal terms the smaller id goes before)."""

    term: int
    host: bytes

    def goes_before(self, other: Job) -> bool:
        return self.term > other.term or (self.term == other.term and self.host < other.host)


@dataclass(frozen=True, slots=True)
class JobAsked:
    """A host wants to use this worker."""

    job: Job


@dataclass(frozen=True, slots=True)
class JobLeft:
    """The host of this job gave it back, or its streams ended."""

    job: Job


@dataclass(frozen=True, slots=True)
class ServerEnded:
    """Nothing of this job's RPC server is left."""

    job: Job


@dataclass(frozen=True, slots=True)
class Admit:
    """Start an RPC server for it, and relay."""

    job: Job


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the host why not."""

    job: Job
    sentence: str


@dataclass(frozen=True, slots=True)
class EndServer:
    """End this job's RPC server and its streams; answer with ServerEnded."""

    job: Job


Event = JobAsked | JobLeft | ServerEnded
Effect = Admit | Refuse | EndServer


@dataclass
class WorkerFence:
    """See the module. `current` is the job whose RPC server may exist; `name_of`: what sentences call a host."""

    name_of: Callable[[bytes], str] = short_id_text
    current: Job | None = None
    highest: Job | None = None
    _ending: bool = False
    _next: Job | None = None
    _effects: list[Effect] = field(default_factory=list[Effect])

    def handle(self, event: Event) -> list[Effect]:
        """Take one event in; what is to be done, in order."""
        self._effects = []
        match event:
            case JobAsked():
                self._on_asked(event.job)
            case JobLeft():
                if event.job == self._next:
                    self._next = None
                elif event.job == self.current:
                    self._end()
            case ServerEnded():
                self._on_ended(event.job)
        effects, self._effects = self._effects, []
        return effects

    def _on_asked(self, job: Job) -> None:
        if not 0 < job.term <= MAX_TERM:
            self._refuse(job, "The term is not one that a host can have.")
        elif self.highest is not None and self.highest.goes_before(job):
            self._refuse(
                job, f"A newer host has this model: {self.name_of(self.highest.host)}, term {self.highest.term}."
            )
        elif job in (self.current, self._next):
            self._refuse(job, "This host has this worker already.")
        elif self.current is None:
            self._admit(job)
        else:
            if self._next is not None:
                self._refuse(self._next, f"A newer host has this model: {self.name_of(job.host)}, term {job.term}.")
            self._next = self.highest = job
            self._end()

    def _on_ended(self, job: Job) -> None:
        if job != self.current:
            return
        self.current, self._ending = None, False
        if self._next is not None:
            following, self._next = self._next, None
            self._admit(following)

    def _end(self) -> None:
        if self.current is not None and not self._ending:
            self._ending = True
            self._effects.append(EndServer(self.current))

    def _admit(self, job: Job) -> None:
        self.current = self.highest = job
        self._effects.append(Admit(job))

    def _refuse(self, job: Job, sentence: str) -> None:
        self._effects.append(Refuse(job, sentence))
