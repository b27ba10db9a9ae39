"""Close what the S3 server of a local stack opens beside its S3 port.

SeaweedFS is several servers in one process, and only the S3 port asks for keys: over the others any
user of the machine could read, replace and delete every object. Their gRPC asks for a certificate
that is drawn at each start, the HTTP ports of master and filer answer nothing (``-disableHttp``),
and the volume server's asks for a token under a key that is drawn likewise. ``docker/serve-s3``
does the same for gRPC; in a container the other ports are reached by nobody.
"""

import secrets
from pathlib import Path

from tasks.certificates import make_certificate

_COMPONENTS = ("master", "volume", "filer", "s3", "client")
_SIGNED = ("signing", "signing.read", "filer_signing", "filer_signing.read")
# Go asks each side for the usage that it plays, so a server needs two certificates.
_CLIENT = "weed-client"


def write_security(folder: Path, *, host: str) -> None:
    """Draw keys and certificates for one start into the server's working folder.

    Args:
        folder: Where the server looks for ``security.toml`` first: its working folder.
        host: The address that the server listens on.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    server = make_certificate(
        folder / "server.crt", folder / "server.key", common_name="weed-server", hosts=[host]
    )
    client = make_certificate(folder / "client.crt", folder / "client.key", common_name=_CLIENT)
    (folder / "known.crt").write_text(server + client, encoding="ascii")
    lines = [f'[grpc]\nca = "{folder}/known.crt"']
    lines += [_grpc(name, folder) for name in _COMPONENTS]
    lines += [f'[jwt.{name}]\nkey = "{secrets.token_hex(32)}"' for name in _SIGNED]
    settings = folder / "security.toml"
    settings.touch(mode=0o600)
    settings.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _grpc(name: str, folder: Path) -> str:
    used = "client" if name == "client" else "server"
    return (
        f'[grpc.{name}]\ncert = "{folder}/{used}.crt"\nkey = "{folder}/{used}.key"\n'
        f'client_cert = "{folder}/client.crt"\nclient_key = "{folder}/client.key"\n'
        f'allowed_commonNames = "{_CLIENT}"'
    )
