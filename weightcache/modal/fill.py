"""Download weights while an image is built, so that the first container finds them on the Volume.

`modal.Image.run_function` runs a function in a container of its own as a step of the build. Modal runs that step again
when the function's source, its arguments or an earlier step changes. So the manifest is an argument, and a deployment
with an unchanged manifest downloads nothing and starts no container.
"""

from __future__ import annotations

import json

from weightcache.manifest.parse import parse_toml

from .image import to_toml

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import modal

    from weightcache.manifest import Manifest

CPU, MEMORY = 2.0, 2048  # cores and MiB: enough to hash as fast as the network delivers
TIMEOUT = 3600  # seconds


def add_fill_step(
    image: modal.Image,
    manifest: Manifest,
    mounts: Mapping[str, modal.Volume],
    settings: Mapping[str, object],
    *,
    only: Collection[str] | None,
    secrets: Sequence[modal.Secret],
    timeout: int,
    cpu: float,
    memory: int,
    force_build: bool,
) -> modal.Image:
    """Return ``image`` with a build step that downloads the weights to their Volume.

    Args:
        image: It has this library, and no files that are added at start: Modal allows no build step after those.
        manifest: What to download.
        mounts: The mount path and the Volume.
        settings: The keyword arguments of the `WeightVolume`, as JSON can hold them.
        only: Names of the checkpoints to download; ``None`` for all.
        secrets: Modal Secrets with the tokens.
        timeout: Seconds after which Modal stops the step.
        cpu: Cores.
        memory: MiB.
        force_build: Run the step even if nothing changed.
    """
    names = None if only is None else [checkpoint.name for checkpoint in manifest.select(only)]
    # The manifest in canonical form, so that a comment does not run the step again. One text as the only argument,
    # because the pickle of equal values can differ between two deployments.
    declared = parse_toml(to_toml(manifest).encode(), manifest.source)
    arguments = {"manifest": declared, "settings": dict(settings), "only": names, "environment": _environment()}
    return image.run_function(
        download,
        args=(json.dumps(arguments),),
        volumes={path: volume for path, volume in mounts.items()},  # noqa: C416 (another type of key)
        secrets=list(secrets),
        timeout=timeout,
        cpu=cpu,
        memory=memory,
        force_build=force_build,
        include_source=False,  # the image has the library
    )


def _environment() -> str | None:
    """Return the environment of Modal that the app is deployed to: each has Volumes of its own to fill."""
    from modal.config import config

    environment: str | None = config.get("environment")
    return environment


def download(arguments: str) -> None:
    """Download the weights and commit them, in the container of the build step; Modal calls it there.

    Raises:
        WeightCacheError: See `weightcache.ensure`. The build fails, and with it the deployment.
        VolumeError: The Volume did not take the weights. Without this error the step would never run again.
    """
    # No globals of this module: Modal would make them, as they are pickled, a part of what decides about a rebuild.
    import json

    from weightcache.errors import VolumeError
    from weightcache.modal import WeightVolume

    given = json.loads(arguments)
    report = WeightVolume(given["manifest"], **given["settings"]).ensure(only=given["only"]).report
    for name, each in report.items():
        print(f"weightcache: {name}: {each.outcome}")  # noqa: T201 (the log of the build)
    if report.committed is False:
        raise VolumeError(
            f"the Volume did not take the weights that the build downloaded: {'; '.join(report.warnings)}",
            hint="deploy again",
            operation="commit",
        )
