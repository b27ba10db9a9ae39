"""The handshake: a site says which versions it runs, and is told readably if they do not fit.

What fits is what fedloom's own package metadata asks for, so there is no second table to keep. A
site that would train with another torch or peft learns it here, before a round begins, and not as
an update that is refused after an hour.
"""

import platform
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated

from packaging.requirements import Requirement
from packaging.version import Version
from pydantic import Field, StringConstraints

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Line, Name

PROTOCOL = 1
"""Number of the documents and of the gateway's paths; another one cannot be talked to."""

HELLO = "/hello"
"""Where a site's worker says its hello."""

CHECK = "check"
HELLO_CHECK = f"{HELLO}?{CHECK}=1"
"""Where a hello is answered and not kept."""

LIBRARIES = ("torch", "transformers", "peft")
Words = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9.+!_-]*$")]
# They go into the site's log and onto its terminal, where a line break or an escape would forge.
Complaint = Annotated[Line, Field(max_length=300)]


class Hello(Document):
    """What a site says of itself when it connects.

    Attributes:
        site: Its name.
        protocol: Number of its protocol.
        versions: Versions of ``fedloom``, ``python`` and of ``LIBRARIES``, by name.
    """

    site: Name
    protocol: Annotated[int, Field(ge=0, le=1 << 20)]
    versions: dict[Words, Words]


class Welcome(Document):
    """What the coordinator answers.

    Attributes:
        fedloom: Version of fedloom at the coordinator.
        complaints: What does not fit, a sentence each with its remedy; empty means welcome.
    """

    fedloom: Words
    complaints: Annotated[tuple[Complaint, ...], Field(max_length=16)] = ()


def own_hello(site: str) -> Hello:
    """Return what this machine says, from package metadata; nothing is imported."""
    found = {"fedloom": version("fedloom"), "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = ""
    return Hello(site=site, protocol=PROTOCOL, versions=found)


def welcome(hello: Hello) -> Welcome:
    """Compare a site's versions with what this fedloom asks for."""
    own = version("fedloom")
    complaints = []
    if hello.protocol != PROTOCOL:
        complaints.append(
            f"site {hello.site} speaks protocol {hello.protocol}, expected {PROTOCOL}; "
            f"install fedloom {own} at the site"
        )
    stated = hello.versions.get("fedloom", "")
    if _series(stated) != _series(own):
        complaints.append(
            f"site {hello.site} runs fedloom {stated or 'unknown'}, expected {own} or a later "
            f"patch of it; install fedloom {own} at the site"
        )
    for library, asked in _asked().items():
        found = hello.versions.get(library, "")
        if not found or not asked.specifier.contains(found.partition("+")[0], prereleases=True):
            complaints.append(
                f"site {hello.site} has {library} {found or 'not installed'}, expected "
                f"{library}{asked.specifier}; install it at the site"
            )
    return Welcome(fedloom=own, complaints=tuple(complaints))


def _series(text: str) -> tuple[int, ...] | None:
    try:
        return Version(text).release[:2]
    except ValueError:
        return None


def _asked() -> dict[str, Requirement]:
    found = (Requirement(line) for line in requires("fedloom") or ())
    return {each.name: each for each in found if each.name in LIBRARIES}
