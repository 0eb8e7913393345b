"""Downloads against a hub that fails in every way we know: what ends up in the cache is whole and verified, or nothing is there."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.core.errors import NotFound
from agentmesh.inference.logic.reference import parse_reference
from agentmesh.inference.models import transfer
from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.download import Downloaded, DownloadPlan, check_space, download, plan
from agentmesh.inference.models.errors import (
    HubBusy,
    HubError,
    HubNotFound,
    HubRefused,
    HubUnavailable,
    NoSpace,
    WrongContent,
)
from agentmesh.inference.models.hub import Hub
from agentmesh.inference.models.settings import HubSettings
from tests.fakes.hub_server import Fault, HubServer

ROOT = Path(__file__).resolve().parents[2]
REPO = "maker/Tiny-GGUF"
MODEL = random.Random(7).randbytes(3_000_000)


@pytest.fixture
def server() -> Iterator[HubServer]:
    files = {"Tiny-Q4_K_M.gguf": MODEL, "Tiny-Q8_0.gguf": b"8" * 1000, "README.md": b"small"}
    with HubServer({REPO: files}) as hub:
        yield hub


class World:
    """A hub client that does not wait, and an empty cache."""

    def __init__(self, server: HubServer, root: Path, token: str | None = None) -> None:
        self.pauses: list[float] = []
        self.hub = Hub(HubSettings(root, server.endpoint, token), pause=self.pauses.append)
        self.cache = HubCache(root)

    def plan(self, reference: str = REPO) -> DownloadPlan:
        return plan(parse_reference(reference), self.hub)

    def fetch(self, reference: str = REPO) -> Downloaded:
        return download(self.plan(reference), [self.hub], self.cache, pause=self.pauses.append)


@pytest.fixture
def world(server: HubServer, tmp_path: Path) -> World:
    return World(server, tmp_path / "hub")


def blobs(world: World) -> list[str]:
    folder = world.cache.repo(REPO) / "blobs"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_download_lies_in_the_standard_cache_layout(server: HubServer, world: World) -> None:
    result = world.fetch()
    commit = server.commit(REPO)
    file = world.cache.root / "models--maker--Tiny-GGUF" / "snapshots" / commit / "Tiny-Q4_K_M.gguf"
    assert result.files == (file,)
    assert file.read_bytes() == MODEL
    assert os.readlink(file) == f"../../blobs/{hashlib.sha256(MODEL).hexdigest()}"
    assert (world.cache.root / "models--maker--Tiny-GGUF" / "refs" / "main").read_text() == commit


def test_huggingface_hub_finds_what_we_downloaded(world: World) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    result = world.fetch()
    assert try_to_load_from_cache(REPO, "Tiny-Q4_K_M.gguf", cache_dir=world.cache.root) == str(result.files[0])
    assert [repo.repo_id for repo in scan_cache_dir(world.cache.root).repos] == [REPO]


def test_what_is_there_is_not_fetched_again(server: HubServer, world: World) -> None:
    world.fetch()
    world.fetch()
    assert len(server.body_requests()) == 1


def test_a_body_that_breaks_off_is_resumed_where_it_did(server: HubServer, world: World) -> None:
    server.file_faults.extend([Fault(truncate_after=1_000_000), Fault(truncate_after=500_000)])
    assert world.fetch().files[0].read_bytes() == MODEL
    assert [request.range for request in server.body_requests()] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_server_that_ignores_range_does_not_double_the_file(server: HubServer, world: World) -> None:
    server.ignore_range = True
    server.file_faults.append(Fault(truncate_after=1_000_000))
    assert world.fetch().files[0].read_bytes() == MODEL


def test_a_server_that_always_breaks_off_at_the_same_byte_is_given_up(server: HubServer, world: World) -> None:
    server.ignore_range = True
    server.file_faults.extend([Fault(truncate_after=1_000_000)] * 20)
    with pytest.raises(HubUnavailable):
        world.fetch()
    assert len(server.body_requests()) <= 7


def test_a_wrong_hash_leaves_nothing_behind(server: HubServer, world: World) -> None:
    server.file_faults.append(Fault(flip_byte=17))
    with pytest.raises(WrongContent, match="thrown away"):
        world.fetch()
    assert blobs(world) == []
    assert world.cache.models() == []


def test_a_listing_with_the_wrong_hash_cannot_place_a_file(server: HubServer, world: World) -> None:
    server.wrong_lfs = True
    with pytest.raises(WrongContent):
        world.fetch()
    assert blobs(world) == []


def test_a_damaged_rest_of_an_earlier_download_is_fetched_anew(server: HubServer, world: World) -> None:
    what = world.plan()
    partial = world.cache.partial(what.model[0])
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 1_000_000)
    assert world.fetch().files[0].read_bytes() == MODEL
    assert [request.range for request in server.body_requests()] == ["bytes=1000000-", None]


def test_a_rest_longer_than_the_file_is_fetched_anew(world: World) -> None:
    partial = world.cache.partial(world.plan().model[0])
    partial.parent.mkdir(parents=True)
    partial.write_bytes(MODEL + b"more")
    assert world.fetch().files[0].read_bytes() == MODEL


def test_more_bytes_than_promised_are_refused(server: HubServer, world: World) -> None:
    server.file_faults.append(Fault(extra=b"!" * 100))
    with pytest.raises(WrongContent, match="more bytes"):
        world.fetch()
    assert blobs(world) == []


def test_the_wrong_part_of_a_file_is_not_appended(server: HubServer, world: World) -> None:
    server.file_faults.extend([Fault(truncate_after=1_000_000), Fault(wrong_range=True)])
    with pytest.raises(WrongContent):
        world.fetch()
    assert blobs(world) == []


def test_too_many_requests_waits_as_long_as_the_hub_asks(server: HubServer, world: World) -> None:
    server.file_faults.append(Fault(status=429, retry_after="7"))
    server.listing_faults.append(Fault(status=429, retry_after="5"))
    assert world.fetch().files[0].read_bytes() == MODEL
    assert world.pauses == [5.0, 7.0]


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(server: HubServer, world: World) -> None:
    server.file_faults.append(Fault(status=429, retry_after="3600"))
    with pytest.raises(HubBusy, match="3601 seconds"):
        world.fetch()
    assert world.pauses == []


def test_a_hub_out_of_order_is_asked_again_and_then_given_up(server: HubServer, world: World) -> None:
    server.file_faults.extend([Fault(status=503)] * 2)
    assert world.fetch().files[0].read_bytes() == MODEL
    assert world.pauses == [1.0, 2.0]
    server.file_faults.extend([Fault(status=500)] * 10)
    with pytest.raises(HubUnavailable, match="status 500"):
        world.fetch(f"{REPO}:Q8_0")


def test_a_hub_that_is_down_is_one_sentence(tmp_path: Path) -> None:
    with HubServer({REPO: {}}) as server:
        world = World(server, tmp_path)
    with pytest.raises(HubUnavailable, match="could not be reached"):
        world.fetch()


def test_a_listing_that_is_no_json_is_one_sentence(server: HubServer, world: World) -> None:
    server.listing_faults.append(Fault(extra=b"<html>"))
    with pytest.raises(HubError, match="no model listing"):
        world.fetch()


def test_offline_asks_nobody(server: HubServer, world: World) -> None:
    world.hub.settings = HubSettings(world.cache.root, server.endpoint, offline=True)
    with pytest.raises(HubUnavailable, match="HF_HUB_OFFLINE"):
        world.fetch()
    assert server.requests == []
    assert world.pauses == []


def test_a_full_disk_is_one_sentence_and_the_rest_is_kept(
    server: HubServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = transfer._Partial.add

    def full(partial: transfer._Partial, chunk: bytes) -> None:
        if partial.size >= 1_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(partial, chunk[:1_000_000])

    monkeypatch.setattr(transfer._Partial, "add", full)
    with pytest.raises(NoSpace, match="disk is full"):
        world.fetch()
    assert [name.endswith(".incomplete") for name in blobs(world)] == [True]
    monkeypatch.undo()
    assert world.fetch().files[0].read_bytes() == MODEL
    resumed = server.body_requests()[-1].range
    assert resumed is not None
    assert int(resumed.removeprefix("bytes=").rstrip("-")) >= 1_000_000


def test_what_cannot_fit_is_refused_before_the_first_byte(server: HubServer, world: World) -> None:
    with pytest.raises(NoSpace, match=r"needs 3\.0 MB more"):
        download(world.plan(), [world.hub], world.cache, free_bytes=lambda _: 1_000_000)
    assert server.body_requests() == []


def test_what_is_already_here_needs_no_space(world: World) -> None:
    world.fetch()
    check_space(world.plan(), world.cache, lambda _: 0)


KILLED = """
import sys
from pathlib import Path
from agentmesh.inference.logic.reference import parse_reference
from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.download import download, plan
from agentmesh.inference.models.hub import Hub
from agentmesh.inference.models.settings import HubSettings
hub = Hub(HubSettings(Path(sys.argv[1]), sys.argv[2]))
def tell(file, done):
    if done >= 2_000_000:
        print(done, flush=True)
download(plan(parse_reference(sys.argv[3]), hub), [hub], HubCache(Path(sys.argv[1])), tell)
"""


def test_a_killed_download_goes_on_where_it_was(server: HubServer, world: World) -> None:
    server.file_faults.append(Fault(stall_after=2_200_000))
    command = [sys.executable, "-c", KILLED, str(world.cache.root), server.endpoint, REPO]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert server.stalled.wait(50)
        process.send_signal(signal.SIGKILL)
        process.wait(50)
    assert blobs(world)[0].endswith(".incomplete")
    assert world.fetch().files[0].read_bytes() == MODEL
    assert server.body_requests()[-1].range is not None


def test_parts_and_projector_come_along(server: HubServer, world: World) -> None:
    names = [f"Q4_K_M/Big-Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    server.repos["maker/Big-GGUF"] = {
        name: name.encode() * 10 for name in (*names, "mmproj-F16.gguf", "mmproj-F32.gguf")
    }
    result = world.fetch("maker/Big-GGUF:Q4_K_M")
    assert [file.name for file in result.files] == [name.rpartition("/")[2] for name in names]
    assert result.projector is not None
    assert result.projector.name == "mmproj-F16.gguf"
    assert result.id == "Big-Q4_K_M"


def test_a_set_that_lacks_a_part_is_not_begun(server: HubServer, world: World) -> None:
    server.repos["maker/Big-GGUF"] = {f"Big-Q4_K_M-0000{n}-of-00003.gguf": b"x" * 99 for n in (1, 3)}
    with pytest.raises(HubNotFound, match="00002-of-00003"):
        world.fetch("maker/Big-GGUF:Q4_K_M")
    assert server.body_requests() == []


def test_an_unknown_quantisation_names_the_ones_there_are(world: World) -> None:
    with pytest.raises(NotFound, match="Q4_K_M, Q8_0"):
        world.fetch(f"{REPO}:Q2_K")


@pytest.mark.parametrize(
    "path", ["../../../evil.gguf", "/etc/evil.gguf", "a/../../b.gguf", "C:\\evil.gguf", "x\n.gguf"]
)
def test_a_listing_cannot_name_files_outside(server: HubServer, world: World, path: str) -> None:
    server.extra_siblings.append({"rfilename": path, "size": 5, "blobId": "0" * 40})
    assert path not in world.hub.listing(REPO).files


def test_a_listing_cannot_name_blobs_outside(server: HubServer, world: World) -> None:
    lfs = {"sha256": "../../../../" + "a" * 52, "size": 5}
    server.extra_siblings.append({"rfilename": "a.gguf", "size": 5, "lfs": lfs})
    assert "a.gguf" not in world.hub.listing(REPO).files


def test_a_gated_model_asks_for_a_token_and_takes_it(server: HubServer, tmp_path: Path) -> None:
    server.gated.add(REPO)
    server.token = "hf_secret"
    with pytest.raises(HubRefused, match="HF_TOKEN"):
        World(server, tmp_path / "a").fetch()
    assert World(server, tmp_path / "b", token="hf_secret").fetch().files[0].read_bytes() == MODEL


def test_the_token_is_not_sent_to_whom_the_hub_redirects(server: HubServer, tmp_path: Path) -> None:
    server.gated.add(REPO)
    server.token = "hf_secret"
    with HubServer(server.repos) as cdn:
        server.redirect_to = cdn.endpoint
        assert World(server, tmp_path / "a", token="hf_secret").fetch().files[0].read_bytes() == MODEL
    assert {request.authorization for request in server.requests} == {"Bearer hf_secret"}
    assert {request.authorization for request in cdn.requests} == {None}


def test_a_hub_that_redirects_in_circles_is_one_sentence(server: HubServer, world: World) -> None:
    server.redirect_to = server.endpoint
    with pytest.raises(HubError, match="in circles"):
        world.fetch()


def test_a_second_source_is_asked_when_the_first_has_nothing(server: HubServer, world: World, tmp_path: Path) -> None:
    with HubServer({}) as empty:
        first = Hub(HubSettings(tmp_path, empty.endpoint))
        result = download(world.plan(), [first, world.hub], world.cache)
    assert result.files[0].read_bytes() == MODEL


def test_two_downloads_of_one_file_do_not_mix(world: World) -> None:
    what = world.plan()
    lock = world.cache.lock(what.model[0], 0)
    assert lock is not None
    with lock, pytest.raises(Exception, match="Another process"):
        transfer.fetch(what.model[0], [world.hub], world.cache)
