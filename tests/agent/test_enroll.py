"""Enrolment through the command line, as a user does it: real files, real keys."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from agent.cli import main
from agent.enroll import (
    COMPACT_CERTIFICATE,
    compact_certificate_of,
    create_authority,
    create_request,
    fingerprint,
    read_request,
    sign_request,
)
from trireme_py.cose import loads_untrusted
from trireme_py.errors import CredentialError

ROOT = Path(__file__).parents[2]
NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


def trireme(*arguments: str | Path, answer: str = "") -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=answer, catch_exceptions=False)


def done(*arguments: str | Path, answer: str = "") -> str:
    result = trireme(*arguments, answer=answer)
    assert result.exit_code == 0, result.output
    return result.output


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture
def enrolled(tmp_path: Path) -> Path:
    """A folder with an authority in ca/ and a node in node/, made by the commands of the documentation."""
    done("ca", "init", tmp_path / "ca", "--trust-domain", "prod.example.org")
    done("node", "request", tmp_path / "node", "--name", "worker-1")
    done("ca", "sign", tmp_path / "node/node.csr", "--ca", tmp_path / "ca", "--out", tmp_path / "node/node.crt", "-y")
    return tmp_path


# -- Pre-shared key ---------------------------------------------------------------------------------------------------


def test_key_new_writes_32_random_bytes_for_the_owner_alone(tmp_path: Path) -> None:
    files = [tmp_path / "one.key", tmp_path / "two.key"]
    output = "".join(done("key", "new", file) for file in files)
    keys = [base64.b64decode(file.read_text(), validate=False) for file in files]
    assert [len(key) for key in keys] == [32, 32]
    assert keys[0] != keys[1]
    assert {mode(file) for file in files} == {0o600}
    assert not any(file.read_text().strip() in output for file in files)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_secrets_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """In a process of its own, since the umask is the whole process's."""
    script = f"umask {umask:03o}; exec '{sys.executable}' -m agent.cli key new '{tmp_path / 'psk.key'}'"
    subprocess.run(["sh", "-c", script], check=True, capture_output=True, cwd=ROOT)
    assert mode(tmp_path / "psk.key") == 0o600


def test_no_key_is_ever_overwritten(enrolled: Path) -> None:
    done("key", "new", enrolled / "psk.key")
    kept = {path: path.read_bytes() for path in enrolled.rglob("*") if path.is_file()}
    for arguments in (
        ("key", "new", enrolled / "psk.key"),
        ("ca", "init", enrolled / "ca", "--trust-domain", "prod.example.org"),
        ("ca", "sign", enrolled / "node/node.csr", "--ca", enrolled / "ca", "--out", enrolled / "ca/ca.key", "-y"),
    ):
        result = trireme(*arguments)
        assert result.exit_code == 2
        assert "exists already" in result.output
        assert "move it away" in result.output
    done("node", "request", enrolled / "node", "--name", "worker-1")
    changed = {path.name for path, data in kept.items() if path.read_bytes() != data}
    assert changed <= {"node.csr"}


def test_a_link_is_not_followed_to_write_a_key(tmp_path: Path) -> None:
    (tmp_path / "psk.key").symlink_to(tmp_path / "elsewhere")
    assert trireme("key", "new", tmp_path / "psk.key").exit_code == 2
    assert not (tmp_path / "elsewhere").exists()


# -- Request, certificate ---------------------------------------------------------------------------------------------


def test_the_private_key_never_leaves_the_node(enrolled: Path) -> None:
    assert mode(enrolled / "node/node.key") == 0o600
    assert mode(enrolled / "ca/ca.key") == 0o600
    assert mode(enrolled / "node") == 0o700
    key_lines = (enrolled / "node/node.key").read_text().splitlines()[1:-1]
    for travels in ("node/node.csr", "node/node.crt"):
        text = (enrolled / travels).read_text()
        assert "PRIVATE" not in text
        assert not any(line in text for line in key_lines)


def test_the_certificate_is_x509_with_the_compact_one_inside(enrolled: Path) -> None:
    leaf, authority = x509.load_pem_x509_certificates((enrolled / "node/node.crt").read_bytes())
    leaf.verify_directly_issued_by(authority)
    assert authority == x509.load_pem_x509_certificate((enrolled / "ca/ca.crt").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://prod.example.org/node/worker-1"]
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    compact = compact_certificate_of(Path("node.crt"), leaf)
    assert len(compact) <= 200
    loads_untrusted(compact, 200)
    assert all(int(arc) < 2**31 for arc in COMPACT_CERTIFICATE.dotted_string.split("."))  # what Go can read


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed")
def test_openssl_agrees(enrolled: Path) -> None:
    verify = ["openssl", "verify", "-CAfile", str(enrolled / "ca/ca.crt"), str(enrolled / "node/node.crt")]
    assert b"OK" in subprocess.run(verify, check=True, capture_output=True).stdout
    request = ["openssl", "req", "-in", str(enrolled / "node/node.csr"), "-verify", "-noout", "-subject"]
    assert b"worker-1" in subprocess.run(request, check=True, capture_output=True).stdout


def test_sign_shows_what_it_signs_and_asks(enrolled: Path) -> None:
    key = read_request(enrolled / "node/node.csr").key
    out = enrolled / "again.crt"
    arguments = ("ca", "sign", enrolled / "node/node.csr", "--ca", enrolled / "ca", "--out", out)
    refused = trireme(*arguments, answer="n\n")
    assert refused.exit_code == 1
    assert not out.exists()
    for shown in ("worker-1", fingerprint(key), "prod.example.org", "365 days"):
        assert shown in refused.output
    done(*arguments, answer="y\n")
    assert out.exists()


def test_the_fingerprint_is_the_same_on_both_sides(tmp_path: Path) -> None:
    shown = done("node", "request", tmp_path, "--name", "worker-1")
    assert fingerprint(read_request(tmp_path / "node.csr").key) in shown


def test_a_request_again_keeps_the_key(tmp_path: Path) -> None:
    assert create_request(tmp_path, "worker-1")
    key = (tmp_path / "node.key").read_bytes()
    assert not create_request(tmp_path, "worker-2")
    assert (tmp_path / "node.key").read_bytes() == key
    assert read_request(tmp_path / "node.csr").node == "worker-2"


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    create_authority(tmp_path / "ca", "td", NOW, days=10)
    create_request(tmp_path / "node", "worker-1")
    request = read_request(tmp_path / "node/node.csr")
    leaf = x509.load_pem_x509_certificates(sign_request(tmp_path / "ca", request, NOW, days=365))[0]
    assert leaf.not_valid_after_utc == NOW + timedelta(days=10)
    with pytest.raises(CredentialError, match=r"ca\.crt: ended at 2027-01-25 .* run: trireme ca init"):
        sign_request(tmp_path / "ca", request, NOW + timedelta(days=11), days=365)


def csr(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, *names: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in names])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return request.public_bytes(Encoding.PEM)


def forged_csr() -> bytes:
    """A request whose signature is not by its key: what somebody sends who wants another node's key certified."""
    good = x509.load_pem_x509_csr(csr(ec.generate_private_key(ec.SECP256R1()), "worker-1"))
    der = bytearray(good.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize(
    ("request_pem", "message"),
    [
        (b"not a request", "is not a certificate request"),
        (csr(ec.generate_private_key(ec.SECP384R1()), "worker-1"), "not P-256"),
        (csr(ed25519.Ed25519PrivateKey.generate(), "worker-1"), "not P-256"),
        (csr(ec.generate_private_key(ec.SECP256R1())), "does not name one node"),
        (csr(ec.generate_private_key(ec.SECP256R1()), "a", "b"), "does not name one node"),
        (csr(ec.generate_private_key(ec.SECP256R1()), "Worker_1"), "does not name one node"),
        (csr(ec.generate_private_key(ec.SECP256R1()), "a\x1b[2Ktrusted"), "does not name one node"),
        (csr(ec.generate_private_key(ec.SECP256R1()), "a\nkey SHA256:x"), "does not name one node"),
        (forged_csr(), "signature is wrong"),
    ],
)
def test_a_request_that_is_not_signed(enrolled: Path, request_pem: bytes, message: str) -> None:
    request, out = enrolled / "bad.csr", enrolled / "bad.crt"
    request.write_bytes(request_pem)
    result = trireme("ca", "sign", request, "--ca", enrolled / "ca", "--out", out, "-y")
    assert result.exit_code == 2
    assert f"{request}: " in result.output
    assert message in result.output
    assert "trireme node request" in result.output
    assert "\x1b" not in result.output
    assert not out.exists()


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    done("ca", "init", tmp_path / "ca", "--trust-domain", "a-rather-long-trust-domain.example.org")
    done("node", "request", tmp_path / "node", "--name", "ip-10-0-12-34.eu-central-1.compute.internal")
    result = trireme("ca", "sign", tmp_path / "node/node.csr", "--ca", tmp_path / "ca", "--out", tmp_path / "x", "-y")
    assert result.exit_code == 2
    assert "characters shorter" in result.output
    assert "--name" in result.output


@pytest.mark.parametrize("name", ["Worker", "a b", "", "-a", "a" * 65])
def test_a_node_name_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(CredentialError, match="--name"):
        create_request(tmp_path / "node", name)
    assert not (tmp_path / "node").exists()


def test_a_trust_domain_that_is_none(tmp_path: Path) -> None:
    result = trireme("ca", "init", tmp_path / "ca", "--trust-domain", "Prod Example")
    assert result.exit_code == 2
    assert result.stderr.startswith("trireme ca init: --trust-domain 'Prod Example': trust domain must be 1 to 255 of")
    assert "prod.example.org" in result.stderr
    assert not (tmp_path / "ca").exists()


@pytest.mark.parametrize("missing", ["ca.key", "ca.crt", ""])
def test_signing_without_an_authority_does_not_advise_to_make_another(enrolled: Path, missing: str) -> None:
    folder = enrolled / "ca" if missing else enrolled / "nope"
    if missing:
        (folder / missing).unlink()
    result = trireme("ca", "sign", enrolled / "node/node.csr", "--ca", folder, "--out", enrolled / "x", "-y")
    said = f"trireme ca sign: {folder}: holds no {missing or 'ca.crt'}; name the authority's folder: --ca DIR\n"
    assert (result.exit_code, result.stderr) == (2, said)


def test_an_authority_whose_files_do_not_belong_together(enrolled: Path) -> None:
    done("ca", "init", enrolled / "other", "--trust-domain", "prod.example.org")
    (enrolled / "ca/ca.crt").write_bytes((enrolled / "other/ca.crt").read_bytes())
    result = trireme("ca", "sign", enrolled / "node/node.csr", "--ca", enrolled / "ca", "--out", enrolled / "x", "-y")
    assert result.exit_code == 2
    assert "is not the certificate of" in result.output


# -- Show -------------------------------------------------------------------------------------------------------------


def test_show_says_what_the_node_has(enrolled: Path) -> None:
    facts = json.loads(done("node", "show", enrolled / "node", "-o", "json"))
    assert facts["node"] == "worker-1"
    assert facts["trust_domain"] == "prod.example.org"
    assert facts["state"] == "valid"
    assert facts["compact_octets"] <= 200
    lines = done("node", "show", enrolled / "node", "--ca", enrolled / "ca/ca.crt").splitlines()
    assert any(line.split() == ["node", "worker-1"] for line in lines)
    assert max(len(line) for line in lines) <= 80


def test_show_finds_a_certificate_that_ran_out(tmp_path: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=100)
    create_authority(tmp_path / "ca", "td", past, days=365)
    create_request(tmp_path / "node", "worker-1")
    request = read_request(tmp_path / "node/node.csr")
    (tmp_path / "node/node.crt").write_bytes(sign_request(tmp_path / "ca", request, past, days=30))
    result = trireme("node", "show", tmp_path / "node")
    assert result.exit_code == 1
    assert "expired; run: trireme node request" in result.output


def test_show_without_a_certificate(tmp_path: Path) -> None:
    done("node", "request", tmp_path, "--name", "worker-1")
    result = trireme("node", "show", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path / 'node.crt'}: no such file; run: trireme" in result.output
