"""The part of Modal's control plane that plays apps, Secrets and the definitions of functions."""

from __future__ import annotations

import time
from typing import Any

from modal_proto import api_pb2 as pb


class AppCalls:
    """A part of `ControlPlane`, which has the attributes."""

    # Calls: apps, functions.

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
        answer = pb.FunctionCreateResponse(
            function_id=number, function=function, handle_metadata=self._function_metadata(function)
        )
        if "function_data" in answer.DESCRIPTOR.fields_by_name:  # since 1.6, which reads it back
            answer.function_data.CopyFrom(request.function_data)
            if not answer.function_data.ranked_functions:
                answer.function_data.ranked_functions.append(pb.FunctionData.RankedFunction(rank=0, function=function))
        return answer

    def ClassCreate(self, request: Any) -> Any:
        return pb.ClassCreateResponse(class_id=f"cs-{next(self._ids)}", handle_metadata=pb.ClassHandleMetadata())

    def FunctionBindParams(self, request: Any) -> Any:
        number = f"fu-{next(self._ids)}"
        self._functions[number] = self._functions[request.function_id]
        self._bound_arguments[number] = request.serialized_params
        return pb.FunctionBindParamsResponse(
            bound_function_id=number, handle_metadata=self._function_metadata(self._functions[number])
        )
