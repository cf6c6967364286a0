"""Credentials from files: what is right loads, and each thing that can be wrong names the file and the command."""

from __future__ import annotations

import base64
import errno
import logging
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from agent.credentials import PresharedKey, load_pki, load_psk
from agent.enroll import create_authority, create_psk, create_request, read_request, sign_request
from tests.harness.assertions import PSK, SALT, claims
from trireme_py.assertion import Claims
from trireme_py.errors import CredentialError, InvalidToken

ROOT = Path(__file__).parents[2]
TRUST_DOMAIN = "prod.example.org"
NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
NOW_S = NOW.timestamp()


def some_claims() -> Claims:
    return claims(trust_domain=TRUST_DOMAIN, not_before=int(NOW_S), not_after=int(NOW_S) + 3600)


def secret(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def error(path: Path, call: str, *arguments: object) -> str:
    """The text of the CredentialError, after checking that it names the file and a command."""
    function = {"psk": load_psk, "pki": load_pki}[call]
    with pytest.raises(CredentialError) as caught:
        function(*arguments)  # type: ignore[operator]
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert re.search(r"(run.*|with): \w", text)
    return text


# -- Pre-shared key ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(PSK),
        base64.b64encode(PSK) + b"\n",
        base64.encodebytes(PSK * 3),
        PSK.hex().encode(),
        PSK.hex().upper().encode() + b"\n",
    ],
    ids=["base64", "base64 with line end", "base64 in lines", "hex", "upper-case hex"],
)
def test_a_pre_shared_key_is_loaded(tmp_path: Path, text: bytes) -> None:
    authenticator = load_psk(secret(tmp_path / "psk.key", text), TRUST_DOMAIN)
    assertion = authenticator.issue(some_claims(), SALT)
    assert authenticator.verify_untrusted(assertion, NOW_S).identity.trust_domain == TRUST_DOMAIN


def test_base64_and_hexadecimal_of_one_key_are_one_key(tmp_path: Path) -> None:
    salts = {
        load_psk(secret(tmp_path / name, text), TRUST_DOMAIN).issue(some_claims(), SALT)
        for name, text in {"a": base64.b64encode(PSK), "b": PSK.hex().encode()}.items()
    }
    assert len(salts) == 1


OTHER = bytes(reversed(PSK))


@pytest.mark.parametrize("between", [b"\n\n", b"\r\n\r\n", b"\n \t\n\n"])
def test_two_keys_while_the_key_is_changed(tmp_path: Path, between: bytes) -> None:
    both = secret(tmp_path / "psk.key", base64.b64encode(PSK) + between + OTHER.hex().encode() + b"\n")
    assertions = {
        psk: load_psk(secret(tmp_path / "one", psk.hex().encode()), TRUST_DOMAIN).issue(some_claims(), SALT)
        for psk in (PSK, OTHER)
    }
    authenticator = load_psk(both, TRUST_DOMAIN)
    assert authenticator.issue(some_claims(), SALT) == assertions[PSK]
    for assertion in assertions.values():
        authenticator.verify_untrusted(assertion, NOW_S)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\n\n".join([base64.b64encode(PSK)] * 3), "holds 3 keys, and 2 are in use at most"),
        (base64.b64encode(PSK) + b"\n\nshort", "neither base64 nor hexadecimal"),
        (base64.b64encode(PSK) + b"\n\n" + base64.b64encode(PSK[:31]), "31 bytes where 32 are needed"),
    ],
)
def test_a_second_key_that_is_none(tmp_path: Path, text: bytes, message: str) -> None:
    path = secret(tmp_path / "psk.key", text)
    assert message in error(path, "psk", path, TRUST_DOMAIN)


def test_what_key_new_writes_is_loaded(tmp_path: Path) -> None:
    create_psk(tmp_path / "psk.key", os.urandom)
    load_psk(tmp_path / "psk.key", TRUST_DOMAIN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "0 bytes where 32 are needed"),
        (base64.b64encode(PSK[:31]), "31 bytes where 32 are needed"),
        (PSK.hex().encode()[:62], "31 bytes where 32 are needed"),
        (b"correct horse battery staple, and a few more words", "neither base64 nor hexadecimal"),
        (b"\xff" * 64, "neither base64 nor hexadecimal"),
        (PSK.hex().encode() + b"0", "neither base64 nor hexadecimal"),
        (base64.b64encode(bytes(32)), "is not random"),
        (b"00112233" * 8, "is not random"),
    ],
)
def test_a_pre_shared_key_that_is_none(tmp_path: Path, text: bytes, message: str) -> None:
    path = secret(tmp_path / "psk.key", text)
    shown = error(path, "psk", path, TRUST_DOMAIN)
    assert message in shown
    assert "trireme key new" in shown
    if text:
        assert text.decode("latin-1").strip() not in shown


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o610])
def test_a_pre_shared_key_that_others_can_get_at(tmp_path: Path, mode: int) -> None:
    path = secret(tmp_path / "psk.key", base64.b64encode(PSK))
    path.chmod(mode)
    shown = error(path, "psk", path, TRUST_DOMAIN)
    assert f"mode {mode:04o}" in shown
    assert f"chmod 600 {path}" in shown


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_pre_shared_key_that_belongs_to_somebody_else(tmp_path: Path) -> None:
    path = secret(tmp_path / "psk.key", base64.b64encode(PSK))
    try:
        os.chown(path, 65534, 65534)
    except OSError:
        pytest.skip("a user namespace with one user cannot give files away")
    assert "belongs to user 65534" in error(path, "psk", path, TRUST_DOMAIN)


def test_a_pre_shared_key_that_is_no_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing.key"
    shown = error(missing, "psk", missing, TRUST_DOMAIN)
    assert f"no such file; copy it from another node (for the first node, run: trireme key new {missing})" in shown
    assert "is not a file" in error(tmp_path, "psk", tmp_path, TRUST_DOMAIN)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    assert "is not a file" in error(pipe, "psk", pipe, TRUST_DOMAIN)


@pytest.mark.parametrize("text", [None, b"short"], ids=["missing", "no key"])
def test_in_a_cluster_it_is_the_secret_that_has_to_be_looked_at(tmp_path: Path, text: bytes | None) -> None:
    path = Volume(tmp_path / "volume").write(text or b"")
    if text is None:
        path.resolve().unlink()
    shown = error(path, "psk", path, TRUST_DOMAIN)
    assert "look at the Secret, run: kubectl -n trireme-system describe secret trireme-psk" in shown
    assert "key new" not in shown


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = secret(tmp_path / "psk.key", b"")
    os.truncate(path, 1 << 40)
    with pytest.raises(CredentialError, match="too large"):
        load_psk(path, TRUST_DOMAIN)


def test_a_link_to_a_secret_is_judged_by_the_secret(tmp_path: Path) -> None:
    """Kubernetes mounts secrets as links."""
    (tmp_path / "psk.key").symlink_to(secret(tmp_path / "..data", base64.b64encode(PSK)))
    load_psk(tmp_path / "psk.key", TRUST_DOMAIN)
    (tmp_path / "..data").chmod(0o644)
    with pytest.raises(CredentialError, match="mode 0644"):
        load_psk(tmp_path / "psk.key", TRUST_DOMAIN)


class Volume:
    """A Secret as the kubelet mounts it: a link to a link into a folder that is swapped as a whole."""

    def __init__(self, folder: Path, mode: int = 0o400) -> None:
        self.folder, self.mode = folder, mode
        folder.mkdir()
        (folder / "psk.key").symlink_to("..data/psk.key")

    def write(self, text: bytes) -> Path:
        """Swap in ``text``; return the file's path, always the same."""
        version = self.folder / f"..{len(list(self.folder.iterdir()))}"
        version.mkdir()
        secret(version / "psk.key", text).chmod(self.mode)
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(version.name)
        fresh.replace(self.folder / "..data")
        return self.folder / "psk.key"


def test_a_mounted_secret_is_loaded(tmp_path: Path) -> None:
    load_psk(Volume(tmp_path / "volume").write(base64.b64encode(PSK)), TRUST_DOMAIN)


def test_a_mounted_secret_that_is_open_says_where_that_is_set(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="mode 0644 lets others at a secret; set defaultMode: 0400 on the volume"):
        load_psk(Volume(tmp_path / "volume", 0o644).write(base64.b64encode(PSK)), TRUST_DOMAIN)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away, and become somebody else")
@pytest.mark.parametrize(
    ("mode", "owner", "group", "loaded"),
    [
        (0o440, 0, 4242, True),  # as with fsGroup
        (0o440, 0, 4343, False),
        (0o440, 4343, 4242, False),
        (0o460, 0, 4242, False),
        (0o444, 0, 4242, False),
    ],
)
def test_a_secret_for_the_group_of_who_is_not_root(
    tmp_path: Path, mode: int, owner: int, group: int, loaded: bool
) -> None:
    path = secret(tmp_path / "psk.key", base64.b64encode(PSK))
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    try:
        os.chown(path, owner, group)
    except OSError:
        pytest.skip("a user namespace with one user cannot give files away")
    path.chmod(mode)
    script = (
        f"from pathlib import Path; from agent.secretfile import read_secret; read_secret(Path({str(path)!r}), '-')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        user=4242,
        group=4242,
        extra_groups=[],
        capture_output=True,
        check=False,
    )
    assert (done.returncode == 0) is loaded, done.stderr
    assert loaded or re.search(rb"CredentialError: .*(lets others at a secret|cannot be read|belongs to)", done.stderr)


def test_root_is_let_in_by_no_group(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("about root")
    path = secret(tmp_path / "psk.key", base64.b64encode(PSK))
    path.chmod(0o440)
    with pytest.raises(CredentialError, match="mode 0440"):
        load_psk(path, TRUST_DOMAIN)


# -- A key that is replaced while it is in use ------------------------------------------------------------------------


def test_a_mounted_key_is_changed_without_a_refusal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two nodes, of which each is a step ahead of the other in turn."""
    old, new = base64.b64encode(PSK), base64.b64encode(OTHER)
    volumes = [Volume(tmp_path / name) for name in ("one", "two")]
    keys = [PresharedKey(volume.write(old), TRUST_DOMAIN) for volume in volumes]
    told: list[int] = []
    for number, key in enumerate(keys):
        key.on_replaced = partial(told.append, number)

    def believe_each_other() -> None:
        for issuer, verifier in (keys, keys[::-1]):
            assertion = issuer.authenticator.issue(some_claims(), SALT)
            verifier.authenticator.verify_untrusted(assertion, NOW_S)
            assert verifier.authenticator.pair_salt(assertion) == issuer.authenticator.pair_salt(assertion)

    for text in (old + b"\n\n" + new, new + b"\n\n" + old, new):
        for volume, key in zip(volumes, keys, strict=True):
            volume.write(text)
            key.step()
            key.step()
            believe_each_other()
    assert told == [0, 1] * 3
    assert [key.changes for key in keys] == [3, 3]
    with pytest.raises(InvalidToken):
        keys[0].authenticator.verify_untrusted(
            load_psk(secret(tmp_path / "old", old), TRUST_DOMAIN).issue(some_claims(), SALT), NOW_S
        )


def test_a_changed_key_that_cannot_be_used_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume = Volume(tmp_path / "volume")
    key = PresharedKey(volume.write(base64.b64encode(PSK)), TRUST_DOMAIN)
    key.on_replaced = lambda: pytest.fail("nothing was replaced")
    assertion = key.authenticator.issue(some_claims(), SALT)
    volume.write(b"short")
    for _ in range(3):
        key.step()
    assert key.authenticator.issue(some_claims(), SALT) == assertion
    (record,) = caplog.records  # said once, though looked at three times
    assert "neither base64 nor hexadecimal" in str(record.__dict__)
    assert "short" not in str(record.__dict__)


def in_use(path: Path) -> PresharedKey:
    """A key whose file is ``path``, and which is not to be replaced."""
    key = PresharedKey(secret(path, base64.b64encode(PSK)), TRUST_DOMAIN)
    key.on_replaced = lambda: pytest.fail("nothing was replaced")
    return key


def test_a_file_that_others_can_read_is_a_problem_until_its_mode_is_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What has to be done about it changes neither its content nor its time of modification."""
    path = tmp_path / "psk.key"
    key = in_use(path)
    path.chmod(0o644)
    for _ in range(3):
        key.step()
    assert f"{path}: mode 0644 lets others at a secret; run: chmod 600 {path}; until then" in key.problem
    assert len(caplog.records) == 1, "said once, though looked at three times"
    path.chmod(0o600)
    with caplog.at_level(logging.INFO):
        key.step()
    assert key.problem == ""
    assert caplog.messages[1:] == ["the file of the pre-shared key can be used again"]
    assert key.changes == 0, "the same key is no other one"


def test_a_file_that_is_gone_is_a_problem_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "psk.key"
    key = in_use(path)
    path.rename(tmp_path / "away")
    key.step()
    assert f"{path}: no such file; copy it from another node" in key.problem
    (tmp_path / "away").rename(path)
    key.step()
    assert key.problem == ""


def test_what_failed_for_a_reason_outside_the_file_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "psk.key"
    key = in_use(path)
    os.utime(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_descriptor)
        key.step()
    assert "Too many open files" in key.problem
    key.step()
    assert key.problem == ""


def no_descriptor(*_: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


# -- Node key and certificate -----------------------------------------------------------------------------------------


class Site:
    """An authority and a node's three files."""

    def __init__(self, folder: Path, node: str = "worker-1", trust_domain: str = TRUST_DOMAIN) -> None:
        self.ca, self.node = folder / "ca", folder / node
        if not self.ca.exists():
            create_authority(self.ca, trust_domain, NOW, days=3650)
        create_request(self.node, node)
        request = read_request(self.node / "node.csr")
        self.key, self.certificate, self.authority = (
            self.node / "node.key",
            self.node / "node.crt",
            self.ca / "ca.crt",
        )
        self.certificate.write_bytes(sign_request(self.ca, request, NOW, days=30))

    def arguments(self, wall_s: float = NOW_S, trust_domain: str = TRUST_DOMAIN) -> tuple[object, ...]:
        return self.key, self.certificate, self.authority, trust_domain, wall_s


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_node_s_credentials_are_loaded_and_two_nodes_believe_each_other(site: Site, tmp_path: Path) -> None:
    other = Site(tmp_path, "worker-2")
    one = load_pki(site.key, site.certificate, site.authority, TRUST_DOMAIN, NOW_S)
    two = load_pki(other.key, other.certificate, other.authority, TRUST_DOMAIN, NOW_S)
    verified = two.verify_untrusted(one.issue(some_claims(), SALT), NOW_S)
    assert verified.issuer == "node"
    assert one.certificate.node == "worker-1"


def test_the_certificate_s_own_file_can_name_the_authority(site: Site) -> None:
    load_pki(site.key, site.certificate, site.certificate, TRUST_DOMAIN, NOW_S)


def test_authorities_of_a_rotation_are_all_trusted(site: Site, tmp_path: Path) -> None:
    new = Site(tmp_path / "new", "worker-2")
    both = tmp_path / "both.crt"
    both.write_bytes(new.authority.read_bytes() + site.authority.read_bytes())
    old_node = load_pki(site.key, site.certificate, both, TRUST_DOMAIN, NOW_S)
    new_node = load_pki(new.key, new.certificate, both, TRUST_DOMAIN, NOW_S)
    old_node.verify_untrusted(new_node.issue(some_claims(), SALT), NOW_S)
    new_node.verify_untrusted(old_node.issue(some_claims(), SALT), NOW_S)


def test_a_node_key_that_others_can_read(site: Site) -> None:
    site.key.chmod(0o640)
    assert f"run: chmod 600 {site.key}" in error(site.key, "pki", *site.arguments())


@pytest.mark.parametrize("data", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_node_key_that_is_none(site: Site, data: bytes) -> None:
    secret(site.key, data)
    assert "is not an unencrypted private key" in error(site.key, "pki", *site.arguments())


def test_files_that_are_missing(site: Site) -> None:
    for path in (site.authority, site.certificate, site.key):
        path.unlink()
        assert "no such file" in error(path, "pki", *site.arguments())


def test_a_key_that_is_not_the_certificate_s(site: Site, tmp_path: Path) -> None:
    secret(site.key, Site(tmp_path, "worker-2").key.read_bytes())
    shown = error(site.certificate, "pki", *site.arguments())
    assert f"is not for the key in {site.key}" in shown
    assert f"trireme node request {site.node}" in shown


def test_a_certificate_of_another_authority(site: Site, tmp_path: Path) -> None:
    site.authority.write_bytes(Site(tmp_path / "other").authority.read_bytes())
    shown = error(site.certificate, "pki", *site.arguments())
    assert f"is not signed by the authority in {site.authority}" in shown
    assert "SHA256:" in shown


def test_a_certificate_that_ran_out_or_has_not_begun(site: Site) -> None:
    later = (NOW + timedelta(days=30)).timestamp()
    assert "ended at 2027-02-14 08:00 UTC" in error(site.certificate, "pki", *site.arguments(later))
    assert "begins at 2027-01-15 08:00 UTC" in error(site.certificate, "pki", *site.arguments(NOW_S - 1))


def test_a_certificate_of_another_trust_domain(site: Site) -> None:
    shown = error(site.certificate, "pki", *site.arguments(trust_domain="other.example"))
    assert "is for trust domain prod.example.org, not other.example" in shown


def test_an_authority_file_without_an_authority(site: Site, tmp_path: Path) -> None:
    leaf_only = tmp_path / "leaf.crt"
    leaf_only.write_text(
        site.certificate.read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    )
    site.authority = leaf_only
    assert "holds no authority's certificate" in error(leaf_only, "pki", *site.arguments())
    leaf_only.write_bytes(b"nothing")
    assert "holds no certificate" in error(leaf_only, "pki", *site.arguments())


def test_authorities_of_two_trust_domains(site: Site, tmp_path: Path) -> None:
    other = Site(tmp_path / "other", trust_domain="other.example")
    site.authority.write_bytes(site.authority.read_bytes() + other.authority.read_bytes())
    with pytest.raises(CredentialError, match=r"several trust domains: other\.example, prod\.example\.org"):
        load_pki(site.key, site.certificate, site.authority, TRUST_DOMAIN, NOW_S)


def test_a_certificate_that_was_not_signed_for_us(site: Site) -> None:
    site.certificate.write_bytes(site.authority.read_bytes())
    assert "holds no node's certificate" in error(site.certificate, "pki", *site.arguments())
