"""Modal's control plane on loopback, as far as the real client and the real container entrypoint (1.6.4) ask for it.

A gRPC server over the `modal_proto` that ships with the client. A call that is not played here is answered with
UNIMPLEMENTED and its name, so that a newer client says itself what it wants. What was asked is kept in `calls`.

A container is a real ``python -m modal._container_entrypoint``. It has a root directory of its own (an overlay in a
mount namespace), where its Volumes lie below ``/__modal/volumes/`` with a symlink at the mount path, as on Modal; and a
port of its own, for a commit or reload names the Volume, and not the container whose view it means.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.server import Server
from modal._serialization import deserialize_data_format, serialize, serialize_data_format
from modal_proto import api_grpc
from modal_proto import api_pb2 as pb
from multidict import CIMultiDict

from support import forbidden
from volume_model import BusyError, Switches, View, Volume

WEB_PART = 1 << 20  # bytes of a request's body in one message
BLOCK = 8 << 20  # bytes of a block in the protocol of version 2 (modal/_utils/blob_utils.py)
REPOSITORY = Path(__file__).parents[2]

# What the real runtime does before it starts the entrypoint. $1: scratch; the rest: pairs of view and mount path.
START = """
set -e
scratch=$1; shift
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
for each in proc sys dev; do mount --rbind "/$each" "$scratch/root/$each"; done
mkdir -p "$scratch/root/__modal/volumes"
while [ "$1" != -- ]; do
    inside=/__modal/volumes/$(basename "$1")
    mkdir -p "$scratch/root$inside" "$(dirname "$scratch/root$2")"
    mount --bind "$1" "$scratch/root$inside"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$scratch/root$inside"; fi
    rmdir "$scratch/root$2" 2>/dev/null || true
    ln -s "$inside" "$scratch/root$2"
    shift 3
done
shift
cp -r "$FILES/." "$scratch/root/"
exec chroot "$scratch/root" "$@"
"""


@dataclass(eq=False)
class Container:
    """What the plane knows of one container: who it is, what it is to do, and what came of it."""

    task: str
    views: dict[str, View]  # by Volume id
    function: str = ""
    app: str = ""
    port: int = 0
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    result: Any = None
    process: subprocess.Popen[str] | None = None
    log: str = ""
    calls: list[str] = field(default_factory=list)
    is_waited_for: bool = False  # whether a caller waits for its output: then it is stopped after it
    is_serving: bool = False  # whether it waits for requests from the web, until `ControlPlane.stop`


@dataclass(eq=False)
class WebCall:
    """A request to a web function, and its answer as messages of ASGI."""

    body: bytes
    answer: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False


class ControlPlane:
    """Use as a context manager.

    Attributes:
        calls: Name and request of every call, in order.
        volumes: By id.
        dicts: Entries by Dict id.
        containers: All that were started, or stand for a plain process.
    """

    def __init__(self, folder: Path, switches: Switches | None = None) -> None:
        self._folder, self._switches = folder, switches
        folder.mkdir(parents=True)
        self.calls: list[tuple[str, Any]] = []
        self.volumes: dict[str, Volume] = {}
        self.dicts: dict[str, dict[bytes, bytes]] = {}
        self.containers: list[Container] = []
        self.on_call: Callable[[str, Container | None], None] = lambda name, container: None
        self._named: dict[tuple[str, str, str], str] = {}
        self._faults: dict[str, list[GRPCError | None]] = defaultdict(list)
        self._ids = itertools.count(1)
        self._blobs: dict[str, bytes] = {}
        self._functions: dict[str, Any] = {}
        self._app_functions: dict[str, dict[str, str]] = defaultdict(dict)
        self._layouts: dict[str, Any] = {}
        self._secrets: dict[str, dict[str, str]] = {}
        self._mounts: dict[str, list[Any]] = {}
        self._images: dict[str, dict[str, str]] = {}  # what their ENV lines say
        self._call_containers: dict[str, Container] = {}
        self._web_calls: dict[str, WebCall] = {}
        self._servers: list[Server] = []
        self._followers: list[threading.Thread] = []
        self.url = self._http = ""

    # The server.

    def __enter__(self) -> ControlPlane:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="control-plane", daemon=True)
        self._thread.start()
        self._run(self._serve())
        return self

    def __exit__(self, *_: object) -> None:
        for container in self.containers:
            self.kill(container)
        for follower in self._followers:
            follower.join(10)
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _serve(self) -> None:
        self._changed = asyncio.Condition()
        files = web.Application(client_max_size=1 << 30)
        files.router.add_route("*", "/web/{function}/{path:.*}", self._http_web)
        files.router.add_put("/{key}", self._http_put)
        files.router.add_get("/{volume}/{block}", self._http_get)
        self._runner = web.AppRunner(files)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._http = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.url = f"http://127.0.0.1:{await self._listen(None)}"

    async def _listen(self, container: Container | None) -> int:
        server = Server([_Service(self, container)])
        await server.start("127.0.0.1", 0)
        self._servers.append(server)
        port: int = server._server.sockets[0].getsockname()[1]
        return port

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()
        await self._runner.cleanup()
        waiting = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def answer(self, name: str, request: Any, container: Container | None) -> Any:
        """Return what the plane says to one call.

        Raises:
            GRPCError: It refuses.
        """
        self.calls.append((name, request))
        if container:
            container.calls.append(name)
        await asyncio.to_thread(self.on_call, name, container)
        if self._faults[name] and (fault := self._faults[name].pop(0)):
            raise fault
        method = getattr(self, name, None)
        if method is None:
            raise GRPCError(Status.UNIMPLEMENTED, f"the control plane of the tests does not play {name}")
        wants_container = len(inspect.signature(method).parameters) == 2
        result = method(request, container) if wants_container else method(request)
        return await result if inspect.isawaitable(result) else result

    # What a test asks.

    def requests(self, name: str) -> list[Any]:
        """Return every request of one kind."""
        return [request for each, request in self.calls if each == name]

    def fail(self, name: str, status: Status, text: str = "", *, times: int = 1, after: int = 0) -> None:
        """Refuse the next calls of one kind, after letting some pass."""
        self._faults[name] += [None] * after + [GRPCError(status, text)] * times

    def env(self, container: Container | None = None) -> dict[str, str]:
        """Return the environment of a client, or of a plain process that stands for a container."""
        port = f"http://127.0.0.1:{container.port}" if container else self.url
        common = {"MODAL_SERVER_URL": port, "MODAL_ENVIRONMENT": "main", "MODAL_CONFIG_PATH": "/nonexistent"}
        return {**common, "MODAL_TOKEN_ID": "ak-test", "MODAL_TOKEN_SECRET": "as-test"}

    def web_url(self, function: str) -> str:
        """Return where a web function is found, as the client was told when it was deployed."""
        return f"{self._http}/web/{function}"

    def volume(self, name: str, version: int = 1) -> str:
        """Make a Volume and return its id."""
        number = f"vo-{next(self._ids)}"
        self.volumes[number] = Volume(self._folder / number, name, version, self._switches)
        self._named["volume", "main", name] = number
        return number

    def view(self, volume: str, *, read_only: bool = False, sub_path: str = "") -> View:
        """Mount a Volume for a new container, on a directory of this machine."""
        root = self._folder / f"view-{next(self._ids)}" / volume
        return View(self.volumes[volume], root, read_only=read_only, sub_path=sub_path)

    def plain_container(self, volume: str) -> Container:
        """Return a container without an entrypoint, for a process that a test starts with its `env`."""
        container = Container(f"ta-{next(self._ids)}", {volume: self.view(volume)})
        container.port = self._run(self._listen(container))
        self.containers.append(container)
        return container

    # Containers.

    def start_container(self, function: str, app: str, inputs: list[Any], **more: Any) -> Container:
        """Start the real entrypoint for a function, with a root of its own."""
        definition = self._functions[function]
        views, arguments = {}, []
        for mount in definition.volume_mounts:
            view = self.view(mount.volume_id, read_only=mount.read_only, sub_path=mount.sub_path)
            views[mount.volume_id] = view
            arguments += [str(view.root), mount.mount_path, "ro" if mount.read_only else "rw"]
        container = Container(f"ta-{next(self._ids)}", views, function, app, inputs=list(inputs), **more)
        container.port = self._run(self._listen(container))
        scratch = self._folder / container.task
        files = self._folder / f"{container.task}.files"
        scratch.mkdir()
        files.mkdir()
        layout = self._layouts.get(app) or self._layout(app)
        told = pb.ContainerArguments(
            task_id=container.task,
            function_id=function,
            app_id=app,
            function_def=definition,
            app_layout=layout,
            environment_name="main",
        )
        if definition.checkpointing_enabled:  # as the worker does for the container that a snapshot is taken of
            told.function_def.is_checkpointing_function = True
            told.checkpoint_id = f"ch-{next(self._ids)}"
        (files / "arguments").write_bytes(told.SerializeToString())
        for mount_id in definition.mount_ids:
            for file in self._mounts.get(mount_id, ()):
                if file.sha256_hex in self._blobs:
                    target = files / file.filename.lstrip("/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(self._blobs[file.sha256_hex])
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MODAL")}
        environment |= self._images.get(definition.image_id, {})
        environment |= {"MODAL_IS_REMOTE": "1", "MODAL_TASK_ID": container.task, "MODAL_ENVIRONMENT": "main"}
        environment |= {"MODAL_ENABLE_SNAP_RESTORE": "1"} if definition.checkpointing_enabled else {}
        environment |= {"MODAL_SERVER_URL": f"http://127.0.0.1:{container.port}", "FILES": str(files)}
        environment |= {"MODAL_CONTAINER_ARGUMENTS_PATH": "/arguments", "TMPDIR": "/tmp", "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = f"/root:{REPOSITORY}"
        for secret in definition.secret_ids:
            environment |= self._secrets.get(secret, {})
        command = ["unshare", "-m", "bash", "-c", START, "start", str(scratch), *arguments, "--"]
        command += [sys.executable, "-m", "modal._container_entrypoint"]
        container.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that it can be killed with whatever it started
        )
        self.containers.append(container)
        follower = threading.Thread(target=self._follow, args=(container,), daemon=True)
        follower.start()
        self._followers.append(follower)
        return container

    def _follow(self, container: Container) -> None:
        process = container.process
        assert process is not None
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                container.log += line
                self._tell()
        process.wait()
        self._tell()

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        with suppress(RuntimeError):  # the plane is closed
            asyncio.run_coroutine_threadsafe(tell(), self._loop)

    def kill(self, container: Container) -> None:
        """SIGKILL for everything in a container."""
        if container.process:
            with suppress(ProcessLookupError):
                os.killpg(container.process.pid, signal.SIGKILL)
            container.process.wait(10)

    def stop(self, container: Container) -> int:
        """Let a container that serves the web end as when it scales down, and return its exit code."""
        container.is_serving = False
        self._tell()
        return self.finish(container)

    def finish(self, container: Container, timeout: float = 60.0) -> int:
        """Wait for the end of a container and return its exit code."""
        assert container.process is not None
        return container.process.wait(timeout)

    # Calls: the client.

    def ClientHello(self, request: Any) -> Any:
        return pb.ClientHelloResponse()

    def AuthTokenGet(self, request: Any) -> Any:
        # A JWT that says nothing but when it expires; the client reads that and checks no signature.
        return pb.AuthTokenGetResponse(token="eyJhbGciOiJub25lIn0.eyJleHAiOjk5OTk5OTk5OTl9.x")

    def EnvironmentGetOrCreate(self, request: Any) -> Any:
        settings = pb.EnvironmentSettings(image_builder_version="2025.06", webhook_suffix="")
        return pb.EnvironmentGetOrCreateResponse(
            environment_id="en-1", metadata=pb.EnvironmentMetadata(name="main", settings=settings)
        )

    def _find(self, kind: str, request: Any, make: Callable[[], str]) -> str:
        """Return the id of a named object, as its creation type wants it."""
        name = request.deployment_name
        key = (kind, request.environment_name or "main", name)
        creation = request.object_creation_type
        if creation == pb.OBJECT_CREATION_TYPE_EPHEMERAL:
            return make()
        if key not in self._named:
            if creation == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise GRPCError(Status.NOT_FOUND, f"{kind.capitalize()} '{name}' not found in environment 'main'")
            self._named[key] = make()
        elif creation == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"{kind.capitalize()} '{name}' exists")
        return self._named[key]

    # Calls: Volumes.

    def VolumeGetOrCreate(self, request: Any) -> Any:
        number = self._find(
            "volume", request, lambda: self.volume(request.deployment_name, max(1, int(request.version)))
        )
        volume = self.volumes.get(number)
        if volume is None:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{request.deployment_name}' was deleted")
        if request.version and request.version != volume.version:
            raise GRPCError(
                Status.INVALID_ARGUMENT,
                f"Volume '{volume.name}' exists but has version v{volume.version}, not v{request.version} as requested",
            )
        return pb.VolumeGetOrCreateResponse(
            volume_id=number, metadata=pb.VolumeMetadata(version=volume.version, name=volume.name)
        )

    def VolumeHeartbeat(self, request: Any) -> None:
        pass

    def _view(self, request: Any, container: Container | None) -> View | None:
        if request.volume_id not in self.volumes:
            raise GRPCError(Status.NOT_FOUND, f"Volume {request.volume_id} not found")
        return container.views.get(request.volume_id) if container else None

    async def VolumeCommit(self, request: Any, container: Container | None) -> Any:
        if view := self._view(request, container):
            await asyncio.to_thread(view.commit)
        return pb.VolumeCommitResponse(skip_reload=False)

    async def VolumeReload(self, request: Any, container: Container | None) -> None:
        if view := self._view(request, container):
            try:
                await asyncio.to_thread(view.reload)
            except BusyError as error:
                raise GRPCError(Status.FAILED_PRECONDITION, str(error)) from None

    def _entries(self, request: Any) -> Iterator[Any]:
        wanted = request.path.strip("/")
        found = not wanted
        volume = self.volumes[request.volume_id]
        for path, content in sorted(volume.files.items()):
            inner = path.removeprefix(f"{wanted}/") if wanted else path
            below = not wanted or path.startswith(f"{wanted}/")
            found |= below or path == wanted
            if path == wanted or (below and (request.recursive or "/" not in inner)):
                size = content.stat().st_size if isinstance(content, Path) else 0
                kind = pb.FileEntry.FILE if isinstance(content, Path) else pb.FileEntry.SYMLINK
                yield pb.FileEntry(path=path, type=kind, size=size, mtime=int(time.time()))
        if not found:
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {request.path}")

    async def VolumeListFiles(self, request: Any) -> AsyncIterator[Any]:
        for entry in self._entries(request):
            yield pb.VolumeListFilesResponse(entries=[entry])

    async def VolumeListFiles2(self, request: Any) -> AsyncIterator[Any]:
        for entry in self._entries(request):
            yield pb.VolumeListFiles2Response(entries=[entry])

    def VolumeGetFile2(self, request: Any) -> Any:
        path = request.path.strip("/")
        content = self.volumes[request.volume_id].files.get(path)
        if not isinstance(content, Path):
            raise GRPCError(Status.NOT_FOUND, "File not found")
        size = content.stat().st_size
        urls = [f"{self._http}/{request.volume_id}/{block}?path={path}" for block in range(-(-size // BLOCK))]
        return pb.VolumeGetFile2Response(get_urls=urls, size=size, start=0, len=size)

    def _refuse_existing(self, request: Any, paths: list[str]) -> None:
        held = self.volumes[request.volume_id].files
        if request.disallow_overwrite_existing_files and (there := [path for path in paths if path in held]):
            raise GRPCError(Status.ALREADY_EXISTS, f"{there[0]}: already exists")

    def VolumePutFiles2(self, request: Any) -> Any:
        self._refuse_existing(request, [file.path.strip("/") for file in request.files])
        missing = [
            pb.VolumePutFiles2Response.MissingBlock(
                file_index=number, block_index=index, put_url=f"{self._http}/{block.contents_sha256.hex()}"
            )
            for number, file in enumerate(request.files)
            for index, block in enumerate(file.blocks)
            if block.contents_sha256.hex() not in self._blobs
        ]
        if not missing:
            for file in request.files:
                # The client leaves out the zeros at the end of each block.
                content = b"".join(
                    self._blobs[block.contents_sha256.hex()].ljust(BLOCK, b"\0") for block in file.blocks
                )
                self.volumes[request.volume_id].put(file.path.strip("/"), content[: file.size])
        return pb.VolumePutFiles2Response(missing_blocks=missing)

    def VolumePutFiles(self, request: Any) -> None:
        self._refuse_existing(request, [file.filename.strip("/") for file in request.files])
        for file in request.files:
            self.volumes[request.volume_id].put(file.filename.strip("/"), self._blobs[file.sha256_hex])

    def VolumeRemoveFile(self, request: Any) -> None:
        files, path = self.volumes[request.volume_id].files, request.path.strip("/")
        doomed = [each for each in files if each == path or (request.recursive and each.startswith(f"{path}/"))]
        if not doomed:
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {request.path}")
        for each in doomed:
            del files[each]

    VolumeRemoveFile2 = VolumeRemoveFile

    # Calls: blobs and mounts (files that go with an image).

    async def _http_put(self, request: web.Request) -> web.Response:
        body = await request.read()
        self._blobs[request.match_info["key"]] = body
        return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})  # the client compares it

    async def _http_get(self, request: web.Request) -> web.Response:
        content = self.volumes[request.match_info["volume"]].read(request.query["path"])
        start = int(request.match_info["block"]) * BLOCK
        return web.Response(body=content[start : start + BLOCK])

    def BlobCreate(self, request: Any) -> Any:
        number = f"bl-{next(self._ids)}"
        url = f"{self._http}/{number}"
        return pb.BlobCreateResponse(
            blob_id=number, upload_url=url, blob_ids=[number], upload_urls=pb.UploadUrlList(items=[url])
        )

    def MountPutFile(self, request: Any) -> Any:
        given = request.WhichOneof("data_oneof")
        if given == "data":
            self._blobs[request.sha256_hex] = request.data
        elif given == "data_blob_id":
            self._blobs[request.sha256_hex] = self._blobs[request.data_blob_id]
        return pb.MountPutFileResponse(exists=request.sha256_hex in self._blobs)

    def MountBatchedCheckExistence(self, request: Any) -> Any:
        lacking = [digest for digest in request.sha256_hex_hashes if digest not in self._blobs]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=lacking)

    def MountGetOrCreate(self, request: Any) -> Any:
        number = f"mo-{next(self._ids)}"
        self._mounts[number] = list(request.files)
        return pb.MountGetOrCreateResponse(mount_id=number, handle_metadata=pb.MountHandleMetadata())

    # Calls: Dicts.

    def DictGetOrCreate(self, request: Any) -> Any:
        def make() -> str:
            number = f"di-{next(self._ids)}"
            self.dicts[number] = {}
            return number

        number = self._find("dict", request, make)
        metadata = pb.DictMetadata(name=request.deployment_name)
        return pb.DictGetOrCreateResponse(dict_id=number, metadata=metadata)

    def DictUpdate(self, request: Any) -> Any:
        entries, created = self.dicts[request.dict_id], False
        for each in request.updates:
            if not (request.if_not_exists and each.key in entries):
                entries[each.key], created = each.value, True
        return pb.DictUpdateResponse(created=created)

    def DictGet(self, request: Any) -> Any:
        entries = self.dicts[request.dict_id]
        return pb.DictGetResponse(found=request.key in entries, value=entries.get(request.key))

    def DictPop(self, request: Any) -> Any:
        entries = self.dicts[request.dict_id]
        return pb.DictPopResponse(found=request.key in entries, value=entries.pop(request.key, None))

    def DictContains(self, request: Any) -> Any:
        return pb.DictContainsResponse(found=request.key in self.dicts[request.dict_id])

    # Calls: apps, images, functions.

    def AppCreate(self, request: Any) -> Any:
        return pb.AppCreateResponse(app_id=f"ap-{next(self._ids)}", app_page_url="http://x", app_logs_url="http://x")

    def AppGetOrCreate(self, request: Any) -> Any:
        return pb.AppGetOrCreateResponse(app_id=f"ap-{next(self._ids)}")

    def AppGetByDeploymentName(self, request: Any) -> Any:
        return pb.AppGetByDeploymentNameResponse(app_id="")

    def AppGetLayout(self, request: Any) -> Any:
        return pb.AppGetLayoutResponse(app_layout=self._layouts.get(request.app_id, pb.AppLayout()))

    def AppHeartbeat(self, request: Any) -> None:
        pass

    def AppClientDisconnect(self, request: Any) -> None:
        for container in self.containers:
            if container.app == request.app_id:
                container.is_waited_for = False
        self._tell()

    def AppSetObjects(self, request: Any) -> None:
        pass

    def _layout(self, app: str, function_ids: Any = None, class_ids: Any = None) -> Any:
        layout = pb.AppLayout(function_ids=function_ids or self._app_functions[app], class_ids=class_ids or {})
        known = set()

        def add(number: str, **metadata: Any) -> None:
            if number not in known:
                known.add(number)
                layout.objects.append(pb.Object(object_id=number, **metadata))

        for number, function in self._functions.items():
            add(number, function_handle_metadata=self._function_metadata(function))
        for number in (class_ids or {}).values():
            add(number, class_handle_metadata=pb.ClassHandleMetadata())
        for number, volume in self.volumes.items():
            add(number, volume_metadata=pb.VolumeMetadata(version=volume.version, name=volume.name))
        for function in self._functions.values():  # the entrypoint looks for every one of them
            for dependency in function.object_dependencies:
                add(dependency.object_id)
        return layout

    def AppPublish(self, request: Any) -> Any:
        self._layouts[request.app_id] = self._layout(request.app_id, request.function_ids, request.class_ids)
        return pb.AppPublishResponse(url="http://x/app", deployed_at=time.time())

    def ImageGetOrCreate(self, request: Any) -> Any:
        number = f"im-{next(self._ids)}"
        done = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
        metadata = pb.ImageMetadata(image_builder_version="2025.06")
        set_here = self._images[number] = {}
        for base in request.image.base_images:
            set_here |= self._images.get(base.image_id, {})
        for line in request.image.dockerfile_commands:
            if line.startswith("ENV "):
                key, _, value = line.removeprefix("ENV ").partition("=")
                set_here[key] = "".join(shlex.split(value))
        return pb.ImageGetOrCreateResponse(image_id=number, result=done, metadata=metadata)

    def SecretGetOrCreate(self, request: Any) -> Any:
        def make() -> str:
            number = f"st-{next(self._ids)}"
            self._secrets[number] = dict(request.env_dict)
            return number

        number = self._find("secret", request, make) if request.deployment_name else make()
        return pb.SecretGetOrCreateResponse(secret_id=number)

    def secret(self, name: str, **values: str) -> None:
        """Make a named Secret."""
        number = f"st-{next(self._ids)}"
        self._secrets[number] = values
        self._named["secret", "main", name] = number

    def _function_metadata(self, function: Any) -> Any:
        methods = {
            name: pb.FunctionHandleMetadata(
                function_name=method.function_name,
                function_type=method.function_type,
                web_url=method.web_url,
                is_method=True,
                use_method_name=name,
            )
            for name, method in function.method_definitions.items()
        }
        return pb.FunctionHandleMetadata(
            function_name=function.function_name,
            function_type=function.function_type,
            definition_id="de-1",
            method_handle_metadata=methods,
            class_parameter_info=function.class_parameter_info,
        )

    def FunctionPrecreate(self, request: Any) -> Any:
        number = f"fu-{next(self._ids)}"
        metadata = pb.FunctionHandleMetadata(function_name=request.function_name)
        return pb.FunctionPrecreateResponse(function_id=number, handle_metadata=metadata)

    def FunctionCreate(self, request: Any) -> Any:
        number = request.existing_function_id or f"fu-{next(self._ids)}"
        function = pb.Function()
        function.CopyFrom(request.function)
        for each in (function, *function.method_definitions.values()):
            if each.webhook_config.type:
                each.web_url = self.web_url(number)
        self._functions[number] = function
        self._app_functions[request.app_id][function.function_name] = number
        data = pb.FunctionData()
        data.CopyFrom(request.function_data)
        if not data.ranked_functions:  # 1.6.4 reads it back
            data.ranked_functions.append(pb.FunctionData.RankedFunction(rank=0, function=function))
        return pb.FunctionCreateResponse(
            function_id=number,
            function=function,
            function_data=data,
            handle_metadata=self._function_metadata(function),
        )

    def ClassCreate(self, request: Any) -> Any:
        return pb.ClassCreateResponse(class_id=f"cs-{next(self._ids)}", handle_metadata=pb.ClassHandleMetadata())

    def FunctionBindParams(self, request: Any) -> Any:
        number = f"fu-{next(self._ids)}"
        self._functions[number] = self._functions[request.function_id]
        return pb.FunctionBindParamsResponse(
            bound_function_id=number, handle_metadata=self._function_metadata(self._functions[number])
        )

    # Calls: a function is called.

    async def FunctionMap(self, request: Any) -> Any:
        call, given = f"fc-{next(self._ids)}", f"in-{next(self._ids)}"
        [item] = request.pipelined_inputs
        asked = pb.FunctionGetInputsItem(input_id=given, function_call_id=call, input=item.input)
        app = next(app for app, names in self._app_functions.items() if names)
        for each, names in self._app_functions.items():
            if request.function_id in names.values():
                app = each
        self._call_containers[call] = await asyncio.to_thread(
            self.start_container, request.function_id, app, [asked], is_waited_for=True
        )
        return pb.FunctionMapResponse(
            function_call_id=call,
            function_call_jwt="x",
            pipelined_inputs=[pb.FunctionPutInputsResponseItem(idx=0, input_id=given, input_jwt="x")],
        )

    async def FunctionGetOutputs(self, request: Any) -> Any:
        container = self._call_containers[request.function_call_id]
        process = container.process
        assert process is not None
        async with self._changed:
            while not container.outputs and process.poll() is None:
                await self._changed.wait()
        if container.outputs:
            given = container.outputs[0]
            return pb.FunctionGetOutputsResponse(
                outputs=[
                    pb.FunctionGetOutputsItem(
                        result=given.result, idx=0, input_id=given.input_id, data_format=given.data_format
                    )
                ]
            )
        failed = container.result or pb.GenericResult(
            status=pb.GenericResult.GENERIC_STATUS_FAILURE, exception=f"the container died: {container.log[-2000:]}"
        )
        return pb.FunctionGetOutputsResponse(outputs=[pb.FunctionGetOutputsItem(result=failed, idx=0)])

    # Calls: somebody on the web asks a web function.

    async def _http_web(self, request: web.Request) -> web.Response:
        """Hand a request to a container of the function, and start one if there is none, as Modal's proxy does."""
        function, path = request.match_info["function"], request.match_info["path"]
        if function not in self._functions:
            return web.Response(status=404, text="no such function")
        container = next((each for each in self.containers if each.function == function and each.is_serving), None)
        if container is None:
            app = next(app for app, names in self._app_functions.items() if function in names.values())
            container = await asyncio.to_thread(self.start_container, function, app, [], is_serving=True)
        call = f"fc-{next(self._ids)}"  # the id of its only input too
        asked = self._web_calls[call] = WebCall(await request.read())
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": f"/{path}",
            "query_string": request.query_string.encode(),
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "client": ("127.0.0.1", 1),
        }
        # In which format Modal's own proxy sends the scope is not published; its client takes this one.
        given = pb.FunctionInput(
            args=serialize(((scope,), {})),
            data_format=pb.DATA_FORMAT_PICKLE,
            method_name=next(iter(self._functions[function].method_definitions), ""),
        )
        container.inputs.append(pb.FunctionGetInputsItem(input_id=call, function_call_id=call, input=given))
        process = container.process
        assert process is not None
        async with self._changed:
            self._changed.notify_all()
            await self._changed.wait_for(lambda: asked.is_done or process.poll() is not None)
        if not asked.answer:
            return web.Response(status=502, text=f"the container has no answer: {container.log[-2000:]}")
        start, *rest = asked.answer
        return web.Response(
            status=start["status"],
            headers=CIMultiDict((name.decode(), value.decode()) for name, value in start.get("headers", ())),
            body=b"".join(each.get("body", b"") for each in rest),
        )

    async def FunctionCallGetDataIn(self, request: Any) -> AsyncIterator[Any]:
        """Stream the body of a request, in several messages; without an end while the request is worked on."""
        asked = self._web_calls[request.function_call_id]
        parts = [asked.body[start : start + WEB_PART] for start in range(0, len(asked.body), WEB_PART)] or [b""]
        for number, part in enumerate(parts, 1):
            message = {"type": "http.request", "body": part, "more_body": number < len(parts)}
            data = serialize_data_format(message, pb.DATA_FORMAT_ASGI)
            yield pb.DataChunk(data_format=pb.DATA_FORMAT_ASGI, data=data, index=number)
        async with self._changed:
            await self._changed.wait_for(lambda: asked.is_done)

    def FunctionCallPutDataOut(self, request: Any) -> None:
        answer = self._web_calls[request.function_call_id].answer
        answer += [deserialize_data_format(each.data, each.data_format, None) for each in request.data_chunks]

    async def AppGetLogs(self, request: Any) -> AsyncIterator[Any]:
        """Stream what the containers of an app print, until the client has disconnected and they have ended."""
        sent: dict[Container, int] = defaultdict(int)
        while True:
            mine = [each for each in self.containers if each.app == request.app_id]
            for each in mine:
                text = each.log[sent[each] :]
                sent[each] += len(text)
                if text:
                    line = pb.TaskLogs(data=text, file_descriptor=pb.FILE_DESCRIPTOR_STDERR)
                    yield pb.TaskLogsBatch(task_id=each.task, items=[line], entry_id="1", function_id=each.function)
            done = [name for name, asked in self.calls if name == "AppClientDisconnect"]
            if done and all(each.process and each.process.poll() is not None for each in mine):
                yield pb.TaskLogsBatch(app_done=True)
                return
            async with self._changed:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.2)

    # Calls: the container.

    def ContainerHello(self, request: Any) -> None:
        pass

    def ContainerHeartbeat(self, request: Any) -> Any:
        return pb.ContainerHeartbeatResponse()

    def ContainerLog(self, request: Any) -> None:
        pass

    def TaskCurrentInputs(self, request: Any) -> Any:
        return pb.TaskCurrentInputsResponse()

    def ContainerCheckpoint(self, request: Any, container: Container) -> None:
        """Take no snapshot; go on as another container that is restored from it: what it waits for is this file."""
        assert container.process is not None
        told = {"task_id": f"ta-{next(self._ids)}"}
        Path(f"/proc/{container.process.pid}/root/__modal/restore-state.json").write_text(json.dumps(told))

    def FunctionGetDynamicConcurrency(self, request: Any) -> Any:
        return pb.FunctionGetDynamicConcurrencyResponse(concurrency=max(1, request.target_concurrency))

    async def FunctionGetInputs(self, request: Any, container: Container) -> Any:
        async with self._changed:
            await self._changed.wait_for(lambda: container.inputs or not container.is_serving)
        if container.inputs:
            return pb.FunctionGetInputsResponse(inputs=[container.inputs.pop(0)])
        return pb.FunctionGetInputsResponse(inputs=[pb.FunctionGetInputsItem(kill_switch=True)])

    def FunctionPutOutputs(self, request: Any, container: Container) -> None:
        container.outputs.extend(request.outputs)
        for each in request.outputs:
            if each.input_id in self._web_calls:
                self._web_calls[each.input_id].is_done = True
        self._tell()

    def TaskResult(self, request: Any, container: Container) -> None:
        container.result = request.result
        self._tell()


class _Service:
    """The service definition as one listener serves it: for the client, or for one container."""

    def __init__(self, plane: ControlPlane, container: Container | None) -> None:
        self._plane, self._container = plane, container

    def __mapping__(self) -> dict[str, Handler]:
        class Base(api_grpc.ModalClientBase):
            pass

        Base.__abstractmethods__ = frozenset()  # only its table of calls is wanted
        return {
            path: Handler(self._handler(path, each), each.cardinality, each.request_type, each.reply_type)
            for path, each in Base().__mapping__().items()
        }

    def _handler(self, path: str, each: Handler) -> Callable[[Any], Any]:
        name = path.rpartition("/")[2]
        streams = each.cardinality in (Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM)

        async def handle(stream: Any) -> None:
            request = await stream.recv_message()
            answer = await self._plane.answer(name, request, self._container)
            if streams:
                async for message in answer:
                    await stream.send_message(message)
            else:
                await stream.send_message(each.reply_type() if answer is None else answer)

        return handle


def needs_namespaces() -> None:
    """Skip (in CI: fail) where a container cannot be given a root of its own."""
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    if done.returncode:
        forbidden(f"no mount namespaces: {done.stderr.decode().strip()}")
