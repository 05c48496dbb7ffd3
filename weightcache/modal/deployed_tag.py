"""The tag of a `WeightVolume`: it is on the Volume, so an image needs nothing of it."""

from __future__ import annotations

from weightcache.manifest import Tag

from .deployed_manifest import DeployedManifest

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    import modal

    from weightcache.manifest import Manifest, WeightSource


class DeployedTag:
    """Stands in for a `DeployedManifest` where a `WeightVolume` is made with a `Tag`."""

    path = ""  # no file of an image is read

    def __init__(self, tag: Tag) -> None:
        self._tag = tag

    def declared(self) -> Tag:
        """Return what `weightcache.ensure` takes."""
        return self._tag

    def load(self) -> Manifest:
        """Raise `TypeError`: a tag has no manifest."""
        raise TypeError(
            f"this WeightVolume has the {self._tag} and no manifest, so fill has nothing to download: "
            "publish(..., tag=...) puts the weights on the Volume, and ensure() serves them"
        )

    def add_to(self, image: modal.Image, *, copy: bool = False) -> modal.Image:  # noqa: ARG002 (as DeployedManifest)
        """Return ``image``."""
        return image


def deployed(given: WeightSource, caller: str | None, volume: str) -> DeployedManifest | DeployedTag:
    """Return the tag or the manifest of a `WeightVolume`; see `DeployedManifest` for the arguments and errors."""
    return DeployedTag(given) if isinstance(given, Tag) else DeployedManifest(given, caller, volume)
