"""The part of Modal's control plane that plays Volumes, blobs, mounts and Dicts."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from control_plane_state import Container
from volume_model import BusyError, View

BLOCK = 8 << 20  # bytes of a block in the protocol of version 2 (modal/_utils/blob_utils.py)


class VolumeSession:
    """A part of `ControlPlane`, which has the attributes."""

    # Calls: Volumes.

    def VolumeGetOrCreate(self, request: Any) -> Any:
        environment = request.environment_name or "main"
        number = self._find(
            "volume", request, lambda: self.volume(request.deployment_name, max(1, int(request.version)), environment)
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

    def VolumeGetById(self, request: Any) -> Any:
        if (volume := self.volumes.get(request.volume_id)) is None:
            raise GRPCError(Status.NOT_FOUND, f"Volume {request.volume_id} not found")
        metadata = pb.VolumeMetadata(version=volume.version, name=volume.name)
        return pb.VolumeGetByIdResponse(volume_id=request.volume_id, metadata=metadata)

    def VolumeList(self, request: Any) -> Any:
        items = []
        for number in (number for key, number in self._named.items() if key[0] == "volume"):
            name = self.volumes[number].name
            metadata = pb.VolumeMetadata(name=name, creation_info=pb.CreationInfo(created_at=1.0))
            items.append(pb.VolumeListItem(label=name, volume_id=number, metadata=metadata))
        return pb.VolumeListResponse(items=items, environment_name="main")

    def VolumeDelete(self, request: Any) -> None:
        del self.volumes[request.volume_id]
        for key in [key for key, number in self._named.items() if number == request.volume_id]:
            del self._named[key]

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
