"""The loopback Hub, as the real client of the Hub sees it: what our tools are tested against must be the real thing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile, RepoFolder

from hub import SIGNATURE, File, Hub, git_oid, isolated_client, pointer
from origin import broken
from support import blob, sha256

WEIGHTS = File(blob(300_000), lfs=True)
FILES: dict[str, bytes | File | None] = {
    "config.json": b"hello\n",
    "model.safetensors": WEIGHTS,
    "onnx/decoder/model.onnx": File(blob(1000, seed=1), lfs=True),
    "onnx/readme.md": b"two folders",
}
HELLO = "ce013625030ba8dba906f756967f9e9ca394464a"  # `printf 'hello\n' | git hash-object --stdin`
TOKEN = "hf_SeCrEtSeCrEtSeCrEt"
REPO = "acme/sam"


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings of the user, and no network: a name that is resolved fails the test, even if the error is hidden."""
    looked_up, resolve = [], socket.getaddrinfo

    def guarded(host: Any, *rest: Any, **options: Any) -> Any:
        if not str(host).startswith("127.0.0."):
            looked_up.append(host)
            raise OSError(f"{host} is not loopback")
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)
    with isolated_client(tmp_path / "hf"):
        yield
    assert not looked_up


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept before each retry; it does not."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    seconds: list[float] = []
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


def download(hub: Hub, path: str, *, repo: str = REPO, **options: Any) -> bytes:
    return Path(hf_hub_download(repo, path, endpoint=hub.url, **options)).read_bytes()


def described(hub: Hub, path: str, *, repo: str = REPO, **options: Any) -> Any:
    url = hf_hub_url(repo, path, endpoint=hub.url)
    return get_hf_file_metadata(url, endpoint=hub.url, **options)


def asked(hub: Hub, method: str, part: str) -> list[str]:
    """The paths, without host and query, that were asked for with a method and contain a part."""
    return [urlsplit(each.path).path for each in hub.seen if each.method == method and part in each.path]


# Listings


def test_an_object_has_the_name_that_git_gives_it() -> None:
    assert git_oid(b"hello\n") == HELLO
    # A published file of Git LFS, whose size, sha256 and blob the Hub lists: flax_model.msgpack of gpt2.
    published = pointer("d88b0d6a6ff9c3f8151f9d3228f57092aaea997f09af009eefd7373a77b5abb9", 497764107)
    assert (git_oid(published), len(published)) == ("8095a62ccb4d806da7666fcda07467e2d150218e", 134)


@pytest.mark.parametrize("repo", [REPO, "gpt2"])
def test_model_info_with_the_metadata_of_files(hub: Hub, repo: str) -> None:
    commit = hub.push(repo, "main", FILES)
    info = HfApi(endpoint=hub.url).model_info(repo, files_metadata=True)
    assert (info.id, info.sha, info.private, info.gated) == (repo, commit, False, False)
    assert [each.rfilename for each in info.siblings or []] == sorted(FILES)
    config, weights = (info.siblings or [])[:2]
    assert (config.size, config.blob_id, config.lfs) == (6, HELLO, None)
    assert (weights.size, weights.lfs) == (
        300_000,
        {"size": 300_000, "sha256": sha256(WEIGHTS.body), "pointer_size": 131},
    )
    assert weights.blob_id == git_oid(pointer(sha256(WEIGHTS.body), 300_000))


def test_model_info_without_it_has_names_alone(hub: Hub) -> None:
    hub.push(REPO, "main", FILES)
    config = (HfApi(endpoint=hub.url).model_info(REPO).siblings or [])[0]
    assert (config.rfilename, config.size, config.blob_id) == ("config.json", None, None)


@pytest.mark.parametrize("repo", [REPO, "gpt2"])
def test_model_info_of_a_revision(hub: Hub, repo: str) -> None:
    first = hub.push(repo, "main", FILES)
    second = hub.push(repo, "refs/pr/1", {"config.json": None})
    hub.repositories[repo].tags["v1"] = first
    api = HfApi(endpoint=hub.url)
    assert [api.model_info(repo, revision=each).sha for each in ("v1", "refs/pr/1", second)] == [first, second, second]
    names = [each.rfilename for each in api.model_info(repo, revision=second).siblings or []]
    assert names == sorted(FILES)[1:]


@pytest.mark.parametrize(("page", "requests"), [(1000, 1), (4, 2), (2, 3)])
def test_the_tree_in_pages(page: int, requests: int) -> None:
    with Hub(page=page) as hub:
        hub.push(REPO, "main", FILES)
        listed = list(HfApi(endpoint=hub.url).list_repo_tree(REPO, recursive=True))
        assert len(asked(hub, "GET", "/tree/")) == requests
    assert [each.path for each in listed] == sorted([*FILES, "onnx", "onnx/decoder"])
    files = {each.path: each for each in listed if isinstance(each, RepoFile)}
    assert sorted(files) == sorted(FILES)
    assert (files["config.json"].blob_id, files["config.json"].lfs) == (HELLO, None)
    weights = files["model.safetensors"]
    assert (weights.size, weights.lfs) == (
        300_000,
        {"size": 300_000, "sha256": sha256(WEIGHTS.body), "pointer_size": 131},
    )
    assert weights.xet_hash == WEIGHTS.xet_hash


def test_the_tree_of_one_folder(hub: Hub) -> None:
    commit = hub.push(REPO, "main", FILES)
    api = HfApi(endpoint=hub.url)
    assert [each.path for each in api.list_repo_tree(REPO)] == ["config.json", "model.safetensors", "onnx"]
    folder, file = api.list_repo_tree(REPO, "onnx", revision=commit, expand=True)
    assert isinstance(folder, RepoFolder)
    assert (folder.path, file.path) == ("onnx/decoder", "onnx/readme.md")
    assert file.last_commit is not None
    assert file.last_commit.oid == commit
    assert [each.path for each in api.list_repo_tree(REPO, "onnx/decoder", recursive=True)] == [
        "onnx/decoder/model.onnx"
    ]


def test_the_refs(hub: Hub) -> None:
    first = hub.push(REPO, "main", FILES)
    second = hub.push(REPO, "dev", {"config.json": b"{}"})
    hub.repositories[REPO].tags["v1"] = first
    refs = HfApi(endpoint=hub.url).list_repo_refs(REPO)
    assert [(each.name, each.ref, each.target_commit) for each in [*refs.branches, *refs.tags]] == [
        ("dev", "refs/heads/dev", second),
        ("main", "refs/heads/main", first),
        ("v1", "refs/tags/v1", first),
    ]


def test_information_on_some_paths(hub: Hub) -> None:
    hub.push(REPO, "main", FILES)
    folder, weights = HfApi(endpoint=hub.url).get_paths_info(REPO, ["onnx", "model.safetensors", "nothing"])
    assert isinstance(folder, RepoFolder)
    assert isinstance(weights, RepoFile)
    assert weights.lfs is not None
    assert weights.lfs.sha256 == sha256(WEIGHTS.body)


# Files


def test_a_large_file_is_described_by_the_redirect(hub: Hub) -> None:
    commit = hub.push(REPO, "main", FILES)
    found = described(hub, "model.safetensors")
    assert (found.commit_hash, found.etag, found.size) == (commit, sha256(WEIGHTS.body), 300_000)
    assert urlsplit(found.location).hostname == "127.0.0.2"
    assert SIGNATURE in found.location


@pytest.mark.parametrize("resolve_cache", [False, True])
def test_a_small_file_is_described_by_the_hub(resolve_cache: bool) -> None:
    with Hub(resolve_cache=resolve_cache) as hub:
        commit = hub.push(REPO, "main", FILES)
        found = described(hub, "config.json")
        assert (found.commit_hash, found.etag, found.size) == (commit, HELLO, 6)
        cached = f"/api/resolve-cache/models/{REPO}/{commit}/config.json"
        assert urlsplit(found.location).path == (cached if resolve_cache else f"/{REPO}/resolve/main/config.json")
        assert download(hub, "config.json") == b"hello\n"


@pytest.mark.parametrize("repo", [REPO, "gpt2"])
def test_files_are_downloaded(hub: Hub, repo: str) -> None:
    hub.push(repo, "main", {**FILES, "a b/100%?#.txt": b"odd"})
    assert download(hub, "model.safetensors", repo=repo) == WEIGHTS.body
    assert download(hub, "onnx/readme.md", repo=repo) == b"two folders"
    assert download(hub, "a b/100%?#.txt", repo=repo) == b"odd"
    assert [each.path for each in hub.seen if each.host == "cdn"] == [
        f"{hub.at_cdn(WEIGHTS)}?Expires=4102444800&Signature={SIGNATURE}"
    ]


def test_the_client_goes_on_after_a_break(hub: Hub, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(REPO, "main", FILES)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # it forgets what does not fill one
    hub.cdn.files[hub.at_cdn(WEIGHTS)].faults = [broken(at=100_000)]
    assert download(hub, "model.safetensors") == WEIGHTS.body
    assert [each.headers.get("Range") for each in hub.cdn.requests] == [None, "bytes=100000-"]


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_ranges_of_both_hosts(hub: Hub, path: str) -> None:
    hub.push(REPO, "main", FILES)
    url, whole = hf_hub_url(REPO, path, endpoint=hub.url), download(hub, path)
    part = get_session().get(url, headers={"Range": "bytes=2-3"})
    assert (part.status_code, part.content) == (206, whole[2:4])
    assert part.headers["Content-Range"] == f"bytes 2-3/{len(whole)}"
    stream = BytesIO(whole[:4])
    stream.seek(4)
    http_get(url, stream, resume_size=4, expected_size=len(whole))
    assert stream.getvalue() == whole
    with pytest.raises(HfHubHTTPError, match=rf"Content-Range: bytes \*/{len(whole)}"):
        http_get(url, BytesIO(), resume_size=len(whole))


def test_a_snapshot_of_some_files(hub: Hub) -> None:
    commit = hub.push(REPO, "main", FILES)
    folder = Path(snapshot_download(REPO, allow_patterns=["*.safetensors", "onnx/*.md"], endpoint=hub.url))
    assert folder.name == commit
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"model.safetensors": WEIGHTS.body, "onnx/readme.md": b"two folders"}


def test_a_branch_moves(hub: Hub) -> None:
    first = hub.push(REPO, "main", FILES)
    second = hub.push(REPO, "main", {"config.json": b"moved"})
    assert first != second
    assert download(hub, "config.json") == b"moved"
    assert download(hub, "config.json", revision=first) == b"hello\n"
    assert download(hub, "model.safetensors", revision=second) == WEIGHTS.body


def test_a_renamed_repository_redirects(hub: Hub) -> None:
    commit = hub.push("gpt2", "main", FILES)
    hub.rename("gpt2", "openai-community/gpt2")
    api = HfApi(endpoint=hub.url)
    info = api.model_info("gpt2", files_metadata=True)
    assert (info.id, info.sha) == ("openai-community/gpt2", commit)
    assert info.siblings is not None
    assert info.siblings[0].blob_id == HELLO  # the query came along
    assert [each.path for each in api.get_paths_info("gpt2", "config.json")] == ["config.json"]
    assert described(hub, "config.json", repo="gpt2").location == hf_hub_url(
        "openai-community/gpt2", "config.json", endpoint=hub.url
    )
    assert download(hub, "model.safetensors", repo="gpt2") == WEIGHTS.body


def test_a_client_with_xet_asks_for_its_storage_and_not_the_cdn(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    commit = hub.push(REPO, "main", FILES)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(HfHubHTTPError, match="404"):
        download(hub, "model.safetensors")
    assert asked(hub, "GET", "") == [f"/api/models/{REPO}/xet-read-token/{commit}"]


# Secrets


def test_the_token_reaches_the_hub_and_not_the_cdn(hub: Hub) -> None:
    hub.push(REPO, "main", FILES)
    hub.grant(TOKEN)
    assert download(hub, "model.safetensors", token=TOKEN) == WEIGHTS.body
    assert [(each.method, each.host, each.authorization) for each in hub.seen] == [
        ("HEAD", "hub", f"Bearer {TOKEN}"),
        ("GET", "hub", f"Bearer {TOKEN}"),
        ("GET", "cdn", None),
    ]


def test_the_token_of_a_client_that_leaks_is_seen(hub: Hub) -> None:
    hub.push(REPO, "main", FILES)
    http_get(hub.cdn.url(hub.at_cdn(WEIGHTS)), BytesIO(), headers={"authorization": f"Bearer {TOKEN}"})
    assert [(each.host, each.authorization) for each in hub.seen] == [("cdn", f"Bearer {TOKEN}")]


# Errors


@pytest.fixture
def closed(hub: Hub) -> HfApi:
    """A client of a Hub with a private and a gated repository, each open to ``TOKEN`` and to nobody else."""
    for name, options in (("acme/private", {"private": True}), ("acme/gated", {"gated": True})):
        hub.create(name, **options)
        hub.push(name, "main", FILES)
    hub.grant(TOKEN, "acme/private", "acme/gated")
    hub.grant("hf_other")
    return HfApi(endpoint=hub.url, token=False)


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("repo", "token", "error", "status"),
    [
        ("acme/private", False, RepositoryNotFoundError, 401),
        ("acme/private", "hf_other", RepositoryNotFoundError, 404),
        ("acme/nothing", False, RepositoryNotFoundError, 401),
        ("acme/nothing", TOKEN, RepositoryNotFoundError, 404),
        ("acme/gated", False, GatedRepoError, 401),
        ("acme/gated", "hf_other", GatedRepoError, 403),
        ("acme/gated", "hf_unknown", HfHubHTTPError, 401),
    ],
)
def test_who_may_not_read(
    hub: Hub, closed: HfApi, repo: str, token: str | bool, error: type[HfHubHTTPError], status: int, path: str
) -> None:
    with pytest.raises(HfHubHTTPError) as raised:
        described(hub, path, repo=repo, token=token)
    assert type(raised.value) is error
    assert raised.value.response.status_code == status
    with pytest.raises(error):
        download(hub, path, repo=repo, token=token)
    assert not asked(hub, "GET", "")


@pytest.mark.parametrize("repo", ["acme/private", "acme/gated"])
def test_who_may_read(hub: Hub, closed: HfApi, repo: str) -> None:
    assert download(hub, "config.json", repo=repo, token=TOKEN) == b"hello\n"
    assert download(hub, "model.safetensors", repo=repo, token=TOKEN) == WEIGHTS.body


def test_what_is_gated_is_listed_and_what_is_private_is_not(closed: HfApi) -> None:
    info = closed.model_info("acme/gated", files_metadata=True)
    assert (info.gated, len(info.siblings or [])) == ("auto", 4)
    assert len(list(closed.list_repo_tree("acme/gated"))) == 3
    for call in (closed.model_info, closed.list_repo_refs, lambda repo: list(closed.list_repo_tree(repo))):
        with pytest.raises(RepositoryNotFoundError):
            call("acme/private")
    assert closed.model_info("acme/private", token=TOKEN).private


def test_a_token_that_is_not_valid_is_refused_even_where_none_is_needed(hub: Hub) -> None:
    hub.push(REPO, "main", FILES)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as raised:
        HfApi(endpoint=hub.url, token="hf_old").model_info(REPO)
    assert not isinstance(raised.value, RepositoryNotFoundError)


def test_what_a_repository_does_not_have(hub: Hub) -> None:
    commit = hub.push(REPO, "main", FILES)
    api = HfApi(endpoint=hub.url)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="no-branch")
    with pytest.raises(RevisionNotFoundError):
        download(hub, "config.json", revision="0" * 40)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "no-folder"))
    with pytest.raises(EntryNotFoundError) as raised:
        download(hub, "no-file")
    assert isinstance(raised.value, HfHubHTTPError)
    assert raised.value.response.headers["X-Repo-Commit"] == commit


# Limits


def test_too_many_requests_tell_how_long_to_wait(hub: Hub) -> None:
    hub.push(REPO, "main", FILES)
    api = HfApi(endpoint=hub.url)
    hub.fail(wait=55)
    with pytest.raises(HfHubHTTPError, match=r"Retry after 55 seconds \(0/3000 requests") as raised:
        api.model_info(REPO)
    assert raised.value.response.headers["Retry-After"] == "55"
    assert api.model_info(REPO).id == REPO


def test_the_client_waits_and_asks_again(hub: Hub, slept: list[float]) -> None:
    hub.push(REPO, "main", FILES)
    hub.fail(1, status=503, path="/resolve/")  # tried again at once
    hub.fail(2, wait=7, path="/resolve/")
    assert HfApi(endpoint=hub.url).model_info(REPO).id == REPO  # has another path
    assert download(hub, "config.json") == b"hello\n"
    assert slept == [8, 8]  # the client adds a second
    assert len(asked(hub, "HEAD", "/resolve/")) == 4


# Isolation


def test_nothing_of_the_user_is_seen(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(REPO, "main", FILES)
    for name in ("HF_TOKEN", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("hf_of_the_user")
    before = get_session()  # a client that has the proxies, and would keep them
    with isolated_client(tmp_path / "clean"):
        assert before.is_closed
        assert hf_hub_download(REPO, "config.json", endpoint=hub.url).startswith(str(tmp_path / "clean"))
        assert [name for name in os.environ if name.startswith("HF_")] == ["HF_HOME"]
        assert os.environ["HF_HOME"] == str(tmp_path / "clean")
        session = get_session()
    assert session.is_closed
    assert {each.authorization for each in hub.seen} == {None}
    assert os.environ["HF_TOKEN"] == "http://127.0.0.1:9"
    assert constants.HF_HUB_OFFLINE


def test_a_child_process_takes_it_for_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.push(REPO, "main", FILES)
    code = f"import huggingface_hub; print(huggingface_hub.hf_hub_download({REPO!r}, 'model.safetensors'))"
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path / "home")
    assert path.read_bytes() == WEIGHTS.body
    assert [(each.method, each.host) for each in hub.seen] == [("HEAD", "hub"), ("GET", "hub"), ("GET", "cdn")]
