"""Modal's control plane on loopback, as far as the real client and the real container entrypoint (1.6.4) ask for it.

A gRPC server over the `modal_proto` that ships with the client. A call that is not played here is answered with
UNIMPLEMENTED and its name, so that a newer client says itself what it wants. What was asked is kept in `calls`.

A container is a real ``python -m modal._container_entrypoint``. It has a root directory of its own (an overlay in a
mount namespace), where its Volumes lie below ``/__modal/volumes/`` with a symlink at the mount path, as on Modal; and a
port of its own, for a commit or reload names the Volume, and not the container whose view it means.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.server import Server
from modal_proto import api_grpc
from modal_proto import api_pb2 as pb

from control_plane_apps import AppCalls
from control_plane_builds import BuildCalls
from control_plane_functions import FunctionCalls
from control_plane_sandboxes import SandboxCalls
from control_plane_state import Container, Image, WebCall
from control_plane_volumes import VolumeSession
from support import forbidden, skip_in_gvisor
from volume_model import Switches, View, Volume

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


class ControlPlane(VolumeSession, AppCalls, BuildCalls, FunctionCalls, SandboxCalls):
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
        self._images: dict[str, Image] = {}
        self._bound_arguments: dict[str, bytes] = {}  # function id → the parameters that a class was bound to
        self._sandboxes: dict[str, Container] = {}
        self._built: dict[bytes, str] = {}  # definition of an image → its id
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
        self._building = asyncio.Lock()
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

    def recover(self, name: str) -> None:
        """Refuse no more calls of one kind."""
        self._faults[name].clear()

    def env(self, container: Container | None = None) -> dict[str, str]:
        """Return the environment of a client, or of a plain process that stands for a container."""
        port = f"http://127.0.0.1:{container.port}" if container else self.url
        common = {"MODAL_SERVER_URL": port, "MODAL_ENVIRONMENT": "main", "MODAL_CONFIG_PATH": "/nonexistent"}
        return {**common, "MODAL_TOKEN_ID": "ak-test", "MODAL_TOKEN_SECRET": "as-test"}

    def outside(self) -> dict[str, str]:
        """Return the environment of a process on this machine, which finds no Modal but this plane."""
        foreign = ("MODAL_", "WEIGHTCACHE_", "FASHION_")
        own = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        return own | self.env()

    def client(
        self, *command: str, directory: str | Path = "/", stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Python with the real client against this plane."""
        return subprocess.run(
            [sys.executable, *command],
            env=self.outside() | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=200,
            cwd=directory,
            check=False,
        )

    def web_url(self, function: str) -> str:
        """Return the URL of a web function, as the client got it at the deployment."""
        return f"{self._http}/web/{function}"

    def volume(self, name: str, version: int = 1, environment: str = "main") -> str:
        """Make a Volume and return its id."""
        number = f"vo-{next(self._ids)}"
        self.volumes[number] = Volume(self._folder / number, name, version, self._switches)
        self._named["volume", environment, name] = number
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
        container = Container(f"ta-{next(self._ids)}", {}, function, app, inputs=list(inputs), **more)
        layout = self._layouts.get(app) or self._layout(app)
        told = pb.ContainerArguments(
            task_id=container.task,
            function_id=function,
            app_id=app,
            function_def=definition,
            app_layout=layout,
            environment_name="main",
        )
        bound = self._bound_arguments.get(function)
        if bound is not None:
            told.serialized_params = bound
        if definition.checkpointing_enabled:  # as the worker does for the container that a snapshot is taken of
            told.function_def.is_checkpointing_function = True
            told.checkpoint_id = f"ch-{next(self._ids)}"
        environment = {"MODAL_IS_REMOTE": "1", "MODAL_ENVIRONMENT": "main", "PYTHONPATH": f"/root:{REPOSITORY}"}
        environment |= {"MODAL_ENABLE_SNAP_RESTORE": "1"} if definition.checkpointing_enabled else {}
        environment |= {"MODAL_CONTAINER_ARGUMENTS_PATH": "/arguments", "PYTHONUNBUFFERED": "1"}
        for secret in definition.secret_ids:
            environment |= self._secrets.get(secret, {})
        command = [sys.executable, "-m", "modal._container_entrypoint"]
        self._launch(container, definition, command, environment, {"arguments": told.SerializeToString()})
        return container

    def _launch(
        self, container: Container, definition: Any, command: list[str], environment: dict[str, str], files: Any
    ) -> None:
        """Start a command in a root of its own, with the Volumes, mounts and image of a function or Sandbox.

        Args:
            container: It gets its views, port and process.
            definition: The function or Sandbox.
            command: With its arguments.
            environment: What it finds besides what every container has.
            files: Content of more files, by path below the root.
        """
        arguments = []
        for mount in definition.volume_mounts:
            view = self.view(mount.volume_id, read_only=mount.read_only, sub_path=mount.sub_path)
            container.views[mount.volume_id] = view
            arguments += [str(view.root), mount.mount_path, "ro" if mount.read_only else "rw"]
        container.port = self._run(self._listen(container))
        scratch = self._folder / container.task
        copied = self._folder / f"{container.task}.files"
        scratch.mkdir()
        copied.mkdir()
        image = self._images.get(definition.image_id, Image())
        added = dict(image.files)  # a mount lies over the image
        for mount_id in definition.mount_ids:
            added |= {file.filename: file.sha256_hex for file in self._mounts.get(mount_id, ())}
        contents = {name: self._blobs[digest] for name, digest in added.items() if digest in self._blobs}
        for name, content in {**contents, **files}.items():
            target = copied / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        common = {key: value for key, value in os.environ.items() if not key.startswith("MODAL")} | image.env
        common |= {"MODAL_TASK_ID": container.task, "MODAL_SERVER_URL": f"http://127.0.0.1:{container.port}"}
        common |= {"FILES": str(copied), "TMPDIR": "/tmp"}
        start = ["unshare", "-m", "bash", "-c", START, "start", str(scratch), *arguments, "--"]
        container.process = subprocess.Popen(
            start + command,
            env=common | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that it can be killed with whatever it started
        )
        self.containers.append(container)
        follower = threading.Thread(target=self._follow, args=(container,), daemon=True)
        follower.start()
        self._followers.append(follower)

    def _follow(self, container: Container) -> None:
        process = container.process
        assert process is not None
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                container.log += line
                self._tell()
        process.wait()
        container.is_over = True
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
    skip_in_gvisor("a container of the tests needs an overlay of the whole root, and pivot_root")
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    if done.returncode:
        forbidden(f"no mount namespaces: {done.stderr.decode().strip()}")
