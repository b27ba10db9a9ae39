"""The gateway of a local stack: its certificate stays, its invite says how it is reached."""

import ipaddress
import stat

import pytest
from cryptography import x509

from fl_core.errors import CampaignError
from flows.local_gateway import (
    GatewayFiles,
    gateway_answers,
    gateway_environment,
    local_invite,
    local_url,
    prepare_gateway,
)
from flows.stack_file import Stated, prepared_stack_file, write_stack_file
from tasks.invite import read_invite


def prepared(home, **stated):
    file = write_stack_file(home, prepared_stack_file(home, Stated(**stated)))
    return file, prepare_gateway(home, file)


def names(home) -> set[str]:
    certificate = x509.load_pem_x509_certificate(GatewayFiles(home).certificate.read_bytes())
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = alternatives.get_values_for_type(x509.IPAddress)
    return {*alternatives.get_values_for_type(x509.DNSName), *map(str, addresses)}


def test_certificate_and_address_stay_between_two_starts(tmp_path):
    _, first = prepared(tmp_path)
    key = GatewayFiles(tmp_path).key.read_bytes()

    file, second = prepared(tmp_path)

    assert second == first == read_invite(GatewayFiles(tmp_path).invite)
    assert first.url == local_url(file) == f"https://127.0.0.1:{file.gateway_port}"
    assert GatewayFiles(tmp_path).key.read_bytes() == key
    assert stat.S_IMODE(GatewayFiles(tmp_path).key.stat().st_mode) == 0o600


def test_invite_names_the_stated_host_and_this_machine_needs_no_name(tmp_path):
    hosts = ("fedloom.example.org", "10.1.2.3")

    file, invite = prepared(tmp_path, gateway_listen="0.0.0.0", gateway_hosts=hosts)  # noqa: S104

    port = file.gateway_port
    assert invite.urls() == tuple(
        f"https://{host}:{port}"
        for host in ("fedloom.example.org", "10.1.2.3", "127.0.0.1", "localhost")
    )
    assert names(tmp_path) == {"fedloom.example.org", "10.1.2.3", "127.0.0.1", "localhost"}
    local = local_invite(tmp_path, file)
    assert (local.url, local.certificate) == (f"https://127.0.0.1:{port}", invite.certificate)


def test_address_of_the_sixth_version_is_written_in_brackets(tmp_path):
    file, invite = prepared(tmp_path, gateway_listen="::1")

    assert invite.url == f"https://[::1]:{file.gateway_port}"
    assert str(ipaddress.ip_address("::1")) in names(tmp_path)
    assert prepared(tmp_path)[1] == invite


def test_name_that_comes_later_is_in_the_invite_and_the_pinned_certificate_stays(tmp_path):
    _, first = prepared(tmp_path)

    file, invite = prepared(tmp_path, gateway_hosts=("fedloom.example.org",))

    assert invite.url == f"https://fedloom.example.org:{file.gateway_port}"
    assert set(first.urls()) < set(invite.urls())
    assert invite.certificate == first.certificate


@pytest.mark.parametrize(
    "host", ["https://host", "host:8443", "host:8443/x", "a b", "", "-x", "a\nb", "x" * 300]
)
def test_host_that_is_none_is_refused(tmp_path, host):
    with pytest.raises(CampaignError, match="gateway host"):
        prepared(tmp_path, gateway_hosts=(host,))

    assert not GatewayFiles(tmp_path).certificate.exists()


def test_listening_everywhere_needs_a_name_for_the_sites(tmp_path):
    with pytest.raises(CampaignError, match="--gateway-host"):
        prepared(tmp_path, gateway_listen="0.0.0.0")  # noqa: S104


def test_gateway_is_given_keys_of_its_own_and_no_way_to_mlflow(tmp_path):
    file, _ = prepared(tmp_path)

    settings = gateway_environment(tmp_path, file)

    assert settings["FEDLOOM_S3_SECRET_KEY"] == file.gateway.secret_key
    assert file.coordinator.secret_key not in settings.values()
    assert not any(name.startswith("MLFLOW") for name in settings)


def test_gateway_that_is_not_there_does_not_answer(tmp_path):
    file, _ = prepared(tmp_path)

    assert not gateway_answers(tmp_path, file)
