"""The part of Modal's control plane that plays calls of functions: from a client, and from the web."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from aiohttp import web
from modal._serialization import deserialize_data_format, serialize, serialize_data_format
from modal_proto import api_pb2 as pb
from multidict import CIMultiDict

from control_plane_state import Container, WebCall

WEB_PART = 1 << 20  # bytes of a request's body in one message


class FunctionCalls:
    """A part of `ControlPlane`, which has the attributes."""

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
        methods = self._functions[function].method_definitions.items()
        given = pb.FunctionInput(
            args=serialize(((scope,), {})),
            data_format=pb.DATA_FORMAT_PICKLE,
            method_name=next((name for name, method in methods if method.webhook_config.type), ""),
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

    def ContainerServerLifecycleReady(self, request: Any) -> None:
        """The `enter` methods of a class with ``@app.server`` have returned."""

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
            left = any(name == "AppClientDisconnect" and asked.app_id == request.app_id for name, asked in self.calls)
            if left and all(each.is_over and sent[each] == len(each.log) for each in mine):
                yield pb.TaskLogsBatch(app_done=True)
                return
            async with self._changed:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.2)
