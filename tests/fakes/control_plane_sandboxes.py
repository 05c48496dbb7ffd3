"""The part of Modal's control plane that plays Sandboxes: they start, run a command and end. No `exec` or tunnels."""

from __future__ import annotations

import asyncio
from typing import Any

from modal_proto import api_pb2 as pb

from control_plane_state import Container

STATUS = pb.GenericResult


class SandboxCalls:
    """A part of `ControlPlane`, which has the attributes.

    Modal's runtime commits the Volumes of a Sandbox when it ends, as it does for a Function.
    """

    async def SandboxCreate(self, request: Any) -> Any:
        sandbox, _ = await self._start_sandbox(request, [self._secrets[each] for each in request.definition.secret_ids])
        return pb.SandboxCreateResponse(sandbox_id=sandbox)

    async def SandboxCreateV2(self, request: Any) -> Any:  # since 1.5; the default of 1.6.4
        secrets = [self._secrets[each] for each in request.definition.secret_ids]
        if "secret_sources" in request.DESCRIPTOR.fields_by_name:
            sent = [each.env.contents for each in request.secret_sources if each.HasField("env")]
        else:
            sent = [each.contents for each in request.ephemeral_secrets]
        sandbox, container = await self._start_sandbox(request, [*secrets, *map(dict, sent)])
        return pb.SandboxCreateV2Response(sandbox_id=sandbox, task_id=container.task)

    async def _start_sandbox(self, request: Any, secrets: list[dict[str, str]]) -> tuple[str, Container]:
        sandbox = f"sb-{next(self._ids)}"
        container = Container(f"ta-{next(self._ids)}", {}, app=request.app_id)
        environment = {name: value for secret in secrets for name, value in secret.items()}
        command = list(request.definition.entrypoint_args) or ["sleep", "infinity"]
        await asyncio.to_thread(self._launch, container, request.definition, command, environment, {})
        self._sandboxes[sandbox] = container
        return sandbox, container

    def SandboxGetTaskId(self, request: Any) -> Any:
        return pb.SandboxGetTaskIdResponse(task_id=self._sandboxes[request.sandbox_id].task)

    async def SandboxWait(self, request: Any) -> Any:
        container = self._sandboxes[request.sandbox_id]
        if request.timeout:
            async with self._changed:
                await self._changed.wait_for(lambda: container.is_over)
        if not container.is_over:
            return pb.SandboxWaitResponse()
        for view in container.views.values():
            await asyncio.to_thread(view.commit)
        code = container.process.returncode if container.process else 0
        status = STATUS.GENERIC_STATUS_FAILURE if code else STATUS.GENERIC_STATUS_SUCCESS
        return pb.SandboxWaitResponse(result=pb.GenericResult(status=status, exitcode=max(code, 0)))

    async def SandboxTerminate(self, request: Any) -> Any:
        await asyncio.to_thread(self.kill, self._sandboxes[request.sandbox_id])
        return pb.SandboxTerminateResponse()

    SandboxGetTaskIdV2 = SandboxGetTaskId
    SandboxWaitV2 = SandboxWait
    SandboxTerminateV2 = SandboxTerminate
