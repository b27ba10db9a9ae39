"""The handshake: what fits is what this fedloom's own metadata asks for."""

from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement

from tasks.hello import LIBRARIES, PROTOCOL, Hello, own_hello, welcome

OWN = version("fedloom")
ASKED = {
    found.name: found.specifier
    for found in map(Requirement, requires("fedloom") or ())
    if found.name in LIBRARIES
}


def hello(**versions):
    base = own_hello("north")
    return base.model_copy(update={"versions": base.versions | versions})


def test_this_installation_is_welcome_at_itself():
    own = own_hello("north")

    answer = welcome(own)

    assert answer.complaints == ()
    assert answer.fedloom == own.versions["fedloom"] == OWN
    assert set(own.versions) == {"fedloom", "python", *LIBRARIES}


def test_metadata_asks_for_every_library_that_is_compared():
    assert set(ASKED) == set(LIBRARIES)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("stated", ["0.0.1", "", "nonsense"])
def test_library_of_a_version_that_does_not_fit_is_named_with_what_is_expected(library, stated):
    (complaint,) = welcome(hello(**{library: stated})).complaints

    assert f"site north has {library} {stated or 'not installed'}, expected" in complaint
    assert str(ASKED[library]) in complaint
    assert complaint.endswith("install it at the site")


def test_build_of_another_kind_of_the_same_version_fits():
    torch = own_hello("north").versions["torch"].partition("+")[0]

    # PEP 440: what follows the plus says how it was built, not which version it is.
    assert welcome(hello(torch=f"{torch}+cu124")).complaints == ()


def test_later_patch_of_fedloom_fits_and_another_series_does_not():
    major, minor = OWN.split(".")[:2]
    series = f"{major}.{minor}"

    assert welcome(hello(fedloom=f"{series}.99")).complaints == ()
    (complaint,) = welcome(hello(fedloom=f"{int(major) + 1}.0.0")).complaints
    assert f"runs fedloom {int(major) + 1}.0.0, expected {OWN}" in complaint


def test_other_protocol_is_refused_first():
    other = hello(fedloom="").model_copy(update={"protocol": PROTOCOL + 1})

    first, second = welcome(other).complaints

    assert f"speaks protocol {PROTOCOL + 1}, expected {PROTOCOL}" in first
    assert "runs fedloom unknown" in second


@pytest.mark.parametrize(
    "versions",
    [{"torch": "2\n.0"}, {"torch": "x" * 65}, {"<b>": "1"}, {"torch": "{0}"}],
    ids=["line", "long", "name", "braces"],
)
def test_hello_has_no_room_for_anything_but_versions(versions):
    with pytest.raises(ValueError, match="versions"):
        Hello(site="north", protocol=PROTOCOL, versions=versions)
