"""The part of Modal's control plane that builds images: their ENV and COPY lines, and `Image.run_function`."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator
from typing import Any

from modal_proto import api_pb2 as pb

from control_plane_state import Container, Image

SUCCESS = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
METADATA = pb.ImageMetadata(image_builder_version="2025.06")


class BuildCalls:
    """A part of `ControlPlane`, which has the attributes.

    What a build function writes outside Volumes is not kept.
    """

    async def ImageGetOrCreate(self, request: Any) -> Any:
        definition = self._definition(request)
        async with self._building:  # two functions may ask for one image at once
            number = self._built.get(definition, "")
            if request.force_build or not number or self._images[number].failed:
                number = f"im-{next(self._ids)}"
                self._built[definition] = number
                image = self._images[number] = self._image(request)
                if request.image.HasField("build_function"):
                    image.builder = await asyncio.to_thread(self._start_builder, request)
        if (builder := self._images[number].builder) and not builder.is_over:
            return pb.ImageGetOrCreateResponse(image_id=number)  # the client then follows the build
        return pb.ImageGetOrCreateResponse(image_id=number, result=SUCCESS, metadata=METADATA)

    def _definition(self, request: Any) -> bytes:
        """Return what decides whether an image is built again.

        Modal publishes no more than the docstring of `Image.run_function` (client): the source of the function, its
        arguments and its globals, here as the client sends them. The ids of Secrets and mounts are new at each
        deployment, so they are not part of it; the files of a mount are.
        """
        kept = pb.Image()
        kept.CopyFrom(request.image)
        kept.ClearField("secret_ids")
        kept.ClearField("context_mount_id")
        copied = [(file.filename, file.sha256_hex) for file in self._mounts.get(request.image.context_mount_id, ())]
        return kept.SerializeToString(deterministic=True) + repr(sorted(copied)).encode()

    def _image(self, request: Any) -> Image:
        image = Image()
        for base in request.image.base_images:
            known = self._images.get(base.image_id, Image())
            image.env |= known.env
            image.files |= known.files
        for line in request.image.dockerfile_commands:
            if line.startswith("ENV "):
                key, _, value = line.removeprefix("ENV ").partition("=")
                image.env[key] = "".join(shlex.split(value))
            elif line.startswith("COPY . "):
                to = line.removeprefix("COPY . ").strip("./")
                for file in self._mounts.get(request.image.context_mount_id, ()):
                    image.files[f"{to}/{file.filename.lstrip('/')}"] = file.sha256_hex
        return image

    def _start_builder(self, request: Any) -> Container:
        """Start the container of a build function, with its arguments as its only input."""
        given = pb.FunctionInput()
        given.CopyFrom(request.image.build_function.input)
        call = f"fc-{next(self._ids)}"
        item = pb.FunctionGetInputsItem(input_id=call, function_call_id=call, input=given)
        container: Container = self.start_container(request.build_function_id, request.app_id, [item])
        return container

    async def ImageJoinStreaming(self, request: Any) -> AsyncIterator[Any]:
        """Stream what the container of a build function prints, and then how it ended."""
        image, sent = self._images[request.image_id], 0
        builder = image.builder
        while True:
            text = builder.log[sent:]
            sent += len(text)
            if text:
                line = pb.TaskLogs(data=text, file_descriptor=pb.FILE_DESCRIPTOR_STDOUT)
                yield pb.ImageJoinStreamingResponse(task_logs=[line])
            elif builder.is_over:
                break
            async with self._changed:
                while len(builder.log) == sent and not builder.is_over:
                    await self._changed.wait()
        died = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_FAILURE, exception="the container died")
        result = builder.outputs[0].result if builder.outputs else builder.result or died
        image.failed = result.status != pb.GenericResult.GENERIC_STATUS_SUCCESS
        yield pb.ImageJoinStreamingResponse(result=result, metadata=METADATA)
