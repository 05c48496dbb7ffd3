"""`pin` from Python: what it returns, and what a URL from a request cannot make it do."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import weightcache
from hub import File, Hub
from origin import Origin, redirect, status
from support import blob, sha256
from weightcache import DownloadError, IntegrityError, Manifest, ManifestError, ensure, pin

DATA = blob(300_001)
LORA: dict[str, Any] = {
    "adapter_config.json": b"{}\n",
    "adapter_model.safetensors": File(DATA, lfs=True),
    "README.md": b"# LoRA\n",
}


def host(origin: Origin) -> str:
    return origin.url("").removeprefix("http://").rstrip("/")


def quiet(urls: Any, **options: Any) -> weightcache.Checkpoint:
    return pin(urls, progress=False, **options)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "weightcache")
    return caplog


def test_a_repository_becomes_a_checkpoint_that_ensure_takes(hub: Hub, root: Path, tmp_path: Path) -> None:
    commit = hub.push("acme/lora", "main", LORA)
    lora = quiet("hf://acme/lora@main", exclude=["*.md"])
    assert (lora.name, lora.urls) == ("acme--lora", (f"hf://acme/lora@{commit}",))
    assert {file.path: (file.sha256, file.size) for file in lora.files} == {
        "adapter_config.json": (sha256(b"{}\n"), 3),
        "adapter_model.safetensors": (sha256(DATA), len(DATA)),
    }
    assert not [each for each in hub.seen if each.host == "cdn"]  # what the Hub publishes is not downloaded
    hub.push("acme/lora", "main", {"adapter_config.json": b"[]"})  # the branch moves, and the pin does not
    (tmp_path / "weights.toml").write_text(str(lora))
    forms: list[Any] = [Manifest([lora]), {"checkpoints": {"acme--lora": lora}}, tmp_path / "weights.toml"]
    for number, manifest in enumerate(forms):
        weights = ensure(manifest, root=root / str(number), progress=False)
        assert (weights["acme--lora"] / "adapter_config.json").read_bytes() == b"{}\n"
    with pytest.raises(ManifestError, match=r"checkpoints\.other: is the checkpoint acme--lora; declare it by that"):
        Manifest.load({"checkpoints": {"other": lora}})


def test_it_finds_what_the_command_finds(run: Any, hub: Hub) -> None:
    hub.push("acme/lora", "main", {**LORA, "sub/x.safetensors": b"x", "sub/y.json": b"y"})
    for url in ("hf://acme/lora", "hf://acme/lora@main/sub", "hf://acme/lora@main/adapter_model.safetensors"):
        assert run("add", "lora", url, "--print")[1] == f"{quiet(url, name='lora')}\n"
    assert quiet("hf://acme/lora@main/sub").name == "acme--lora--sub"


def test_a_file_of_a_host(origin: Origin, mirror: Origin, root: Path) -> None:
    named = {"Content-Disposition": 'attachment; filename="Bod V1.safetensors"'}
    origin.put("/models/138296", DATA, always=status(200, named, DATA))
    mirror.put("/v1.safetensors", DATA)
    urls = [origin.url("/models/138296"), mirror.url("/v1.safetensors")]
    found = quiet(urls, hosts=[host(origin), host(mirror)])
    assert (found.name, [(file.path, file.size) for file in found.files]) == (
        "138296",
        [("Bod V1.safetensors", len(DATA))],
    )
    assert ensure(Manifest([found]), root=root, progress=False)["138296"].read_bytes() == DATA
    assert quiet(urls[1], hosts=None, name="v", file="x.pt").files[0].path == "x.pt"
    mirror.put("/v1.safetensors", DATA[1:])
    with pytest.raises(IntegrityError, match="is not the file that was expected"):
        quiet(urls, hosts=None)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("acme/lora", "want hf, https or http"),
        ("", "want hf, https or http"),
        ("file:///etc/passwd", "want hf, https or http"),
        ("hf://../../api/whoami", "'../..' is not the name of a repository"),
        ("hf://acme/..", "'acme/..' is not the name of a repository"),
        ("hf://acme/a--b", "is not the name of a repository"),
        ("hf://acme/.hidden", "is not the name of a repository"),
        ("hf://acme/lora@..", "'..' is not a revision"),
        ("hf://acme/lora@main/../../x", "has an empty, `.` or `..` segment"),
        ("hf://acme/lora\n", "holds a control or unprintable character"),
        ("hf:acme/lora", "want hf, https or http"),
        ("https://huggingface.co.evil.example/x.pt", "its host is not allowed"),
        ("https://good.example@evil.example/x.pt", "the user and password before the @"),
        ("https://good.example:81/x.pt", "its host is not allowed: hosts is good.example"),
        ("http://169.254.169.254/latest/meta-data", "its host is not allowed"),
        ("http://[/x", "its host is not allowed"),
        ("https://good.example/x.pt?key=${AWS_SECRET_ACCESS_KEY}", "${VARIABLE} is not allowed here"),
        ("https://good.example/x.pt?token=SeCrEt", "the query's token would be written"),
        ("https://good.example\\@evil.example/x.pt", "the user and password before the @"),
    ],
)
def test_urls_from_requests_that_are_refused_before_any_request(url: str, said: str, hub: Hub) -> None:
    hub.push("acme/lora", "main", LORA)
    with pytest.raises(ManifestError) as caught:
        quiet(url, hosts=["Good.example"])
    assert said in str(caught.value)
    assert "SeCrEt" not in str(caught.value)
    assert hub.seen == []


def test_a_redirect_leads_to_allowed_hosts_only(origin: Origin, mirror: Origin) -> None:
    mirror.put("/real.pt", DATA)
    origin.put("/x.pt", b"", always=redirect(mirror.url("/real.pt")))
    with pytest.raises(DownloadError, match=r"redirects to http://.*/real\.pt, whose host is not allowed"):
        quiet(origin.url("/x.pt"), hosts=[host(origin)])
    assert mirror.requests == []
    assert quiet(origin.url("/x.pt"), hosts=[host(origin), host(mirror)]).digest == sha256(DATA)


def test_the_bytes_of_a_repository_are_bounded_before_a_download(hub: Hub) -> None:
    hub.push("acme/lora", "main", LORA)
    with pytest.raises(ManifestError, match=r"its files: 300,011 bytes or more, and max_bytes is 300,010") as caught:
        quiet("hf://acme/lora", max_bytes=300_010)
    assert "raise max_bytes" in caught.value.hint
    assert not [each for each in hub.seen if "/resolve/" in each.path]
    assert quiet("hf://acme/lora", max_bytes=300_011).size == 300_011
    assert quiet("hf://acme/lora", max_bytes=10, exclude=["*.safetensors"]).size == 10


@pytest.mark.parametrize("announced", [True, False])
def test_the_bytes_of_a_host_are_bounded_while_they_arrive(announced: bool, origin: Origin) -> None:
    sent: list[int] = []

    def endless(exchange: Any) -> None:
        exchange.head(200, {"Content-Length": 1 << 40} if announced else {"Connection": "close"})
        for _ in range(1 << 10):
            exchange.body(b"w" * (1 << 20))
            sent.append(1)

    origin.put("/x.safetensors", DATA, always=endless)
    counted = "1,099,511,627,776" if announced else r"[2-9],\d{3},\d{3}"
    with pytest.raises(ManifestError, match=f"{counted} bytes or more, and max_bytes is 2,000,000"):
        quiet(origin.url("/x.safetensors"), hosts=None, max_bytes=2_000_000)
    assert len(sent) < 1 << 10
    assert len(origin.requests) == 1  # it is refused, and not tried again


def test_a_size_that_the_hub_understates_is_not_exceeded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.push("acme/lora", "main", {"config.json": b"x" * 5000})
    hub.repositories["acme/lora"].commits[commit]["config.json"].size = 0
    with pytest.raises(ManifestError, match=r"config\.json: 5,000 bytes or more, and max_bytes is 4,999"):
        quiet("hf://acme/lora", max_bytes=4999)


def test_files_are_bounded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.page = 100
    hub.push("acme/many", "main", {f"{number:04}.json": b"{}" for number in range(900)})
    with pytest.raises(ManifestError, match="900 files are selected, and max_files is 899"):
        quiet("hf://acme/many", max_files=899)
    assert len(quiet("hf://acme/many", include=["000?.json"], max_files=10).files) == 10
    before = len(hub.seen)
    monkeypatch.setattr("weightcache._pinning.api.MAX_LISTED", 250)
    with pytest.raises(ManifestError, match="the repository has more than 250 files and directories"):
        quiet("hf://acme/many", include=["0000.json"])
    assert len([each for each in hub.seen[before:] if "/tree/" in each.path]) == 3  # pages, of nine


def test_files_that_may_run_code_are_named(hub: Hub, warned: pytest.LogCaptureFixture) -> None:
    code = {f"modeling_{number}.py": b"x = 1\n" for number in range(5)}
    hub.push("acme/code", "main", {**LORA, **code, "pytorch_model.bin": File(b"PK", lfs=True)})
    assert len(quiet("hf://acme/code", exclude=["*.py", "*.bin"]).files) == 3
    assert len(quiet("hf://acme/code", allow_code=True).files) == 9
    assert warned.messages == []
    quiet("hf://acme/code")
    [text] = warned.messages
    named = ", ".join(f"modeling_{number}.py" for number in range(5))
    assert text.startswith(f"acme--code: may run code when a program loads it: {named} and 1 more; leave these out")


def test_what_the_hub_does_not_have(hub: Hub) -> None:
    hub.push("acme/lora", "main", LORA)
    for url, said in (
        ("hf://acme/none", "/acme/none does not exist, or is private"),
        ("hf://acme/lora@v9", "has no revision 'v9'"),
        ("hf://acme/lora@main/none.pt", "has no none.pt at"),
    ):
        with pytest.raises(DownloadError, match=said):
            quiet(url)


def test_arguments_of_the_wrong_kind(hub: Hub) -> None:
    hub.push("acme/lora", "main", LORA)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "at least one URL"),
        (7, {}, "int"),
        ([None], {}, "got NoneType"),
        ("hf://acme/lora", {"include": "*.json"}, "not a string"),
        ("hf://acme/lora", {"hosts": "huggingface.co"}, "not a string"),
        ("hf://acme/lora", {"max_bytes": -1}, "max_bytes must be a number"),
        ("hf://acme/lora", {"max_files": True}, "max_files must be a number"),
        ("hf://acme/lora", {"auth": "hf_" + "x" * 20}, "auth: looks like a token itself"),
        ("hf://acme/lora", {"include": ["*.none"]}, "is selected by"),
        ("hf://acme/lora@main/README.md", {"include": ["*"]}, "is one file"),
    ]
    for urls, options, said in wrong:
        with pytest.raises((TypeError, ValueError), match=said) as caught:
            quiet(urls, **options)
        assert not isinstance(caught.value, ManifestError)
    with pytest.raises(ManifestError, match="a name is 1 to 100"):
        quiet("hf://acme/lora", name="../x")
    with pytest.raises(ManifestError, match="no name can be made"):
        quiet(f"hf://{'a' * 60}/{'b' * 60}")


def test_the_package_imports_nothing_of_it_early() -> None:
    code = "import sys, weightcache; print([m for m in sys.modules if '_pinning' in m], weightcache.pin.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] weightcache._pinning.api\n"
