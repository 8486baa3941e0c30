"""Signed roots: what each tenant's chain ended with before the first entry of a day, signed with the archive's own key.

The register could be written anew by somebody who owns the database, links and all; not so that the roots still agree.
A root names the one before (its hash), and can be stamped by a time-stamping authority of RFC 3161, who never sees more
than a hash. A root that could not be stamped (authority away) is stamped later.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from billing.errors import Unavailable
from storage.archive.entries import Finding
from storage.object_store import ObjectStore

LOG = logging.getLogger("cloudbilling.archive")
STAMP_LATER_MAX = 31  # roots without a stamp that are tried again at a time


class Timestamper(Protocol):
    """A time-stamping authority."""

    def stamp(self, data: bytes) -> bytes:
        """An RFC 3161 response for the hash of `data`. Raises Unavailable."""
        ...

    def stamped_at(self, data: bytes, response: bytes) -> datetime:
        """When the authority says that it saw the hash of `data`. Raises ValueError if it does not say so."""
        ...


@dataclass(frozen=True)
class Root:
    """A signed root as it is stored; `body` is what was signed."""

    day: str
    position: int
    chain: str
    previous: str  # SHA-256 of the root before; "" for the first
    made_at: str
    signer: str  # public key, hexadecimal
    signature: str
    key: str  # where it lies
    body: bytes
    stamp: bytes | None = None


class SigningKey:
    """An Ed25519 key in a file that only the platform reads."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    @classmethod
    def of_file(cls, path: Path) -> SigningKey:
        """The key of this file; made at the first start, by one of several processes."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            text = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            draft = path.with_name(f".{path.name}.{uuid4().hex}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(descriptor, text)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.link(draft, path)
            except FileExistsError:
                LOG.debug("another process made the signing key")
            finally:
                draft.unlink()
        private = load_pem_private_key(path.read_bytes(), None)
        assert isinstance(private, Ed25519PrivateKey), f"{path} holds no Ed25519 key"
        return cls(private)

    def sign(self, body: bytes) -> str:
        return self._private.sign(body).hex()


class Roots:
    """The roots of all tenants; one object a tenant and day, created if absent."""

    def __init__(
        self,
        store: ObjectStore,
        key: SigningKey,
        *,
        trusted: Sequence[str] = (),
        timestamper: Timestamper | None = None,
    ) -> None:
        self._store = store
        self._key = key
        self._trusted = frozenset({key.public, *trusted})
        self._timestamper = timestamper

    @property
    def public_key(self) -> str:
        """The key that signs now, hexadecimal: hand it to whoever shall check the roots."""
        return self._key.public

    def sign(self, tenant_id: str, day: date, position: int, chain: bytes, now: datetime) -> None:
        """The root of a day: the chain as it stands before the day's first entry. The first one to sign has decided."""
        key = _root_key(tenant_id, day)
        if self._store.exists(key):
            return
        earlier = self.all(tenant_id)
        previous = hashlib.sha256(_stored(earlier[-1])).hexdigest() if earlier else ""
        body = _body(tenant_id, day.isoformat(), position, chain.hex(), previous, now, self._key.public)
        root = json.dumps({"body": body.decode(), "signature": self._key.sign(body)}).encode()
        self._store.create(key, root)
        self.stamp_missing(tenant_id)

    def stamp_missing(self, tenant_id: str) -> int:
        """Ask the authority for the stamps that are missing; how many came. One that is away is asked again later."""
        if self._timestamper is None:
            return 0
        made = 0
        for root in [one for one in self.all(tenant_id) if one.stamp is None][:STAMP_LATER_MAX]:
            try:
                made += self._store.create(_stamp_key(root.key), self._timestamper.stamp(_stored(root)))
            except Unavailable as error:
                LOG.warning("the root of %s waits for its time stamp: %s", root.day, error.detail)
                break
        return made

    def all(self, tenant_id: str) -> list[Root]:
        """A tenant's roots by day, with their stamps."""
        found: list[Root] = []
        for key in self._store.list(f"archive-roots/{tenant_id}/"):
            if key.endswith(".json") and (data := self._store.get(key)) is not None:
                found.append(_root(key, data, self._store.get(_stamp_key(key))))
        return found

    def findings(self, signed: Sequence[Root], entries: int) -> Iterable[Finding]:
        """What is wrong with the roots themselves, and those beyond the end of the chain."""
        before: Root | None = None
        for root in signed:
            if root.signer not in self._trusted:
                yield Finding(
                    "root", f"the root of {root.day} is signed with an unknown key {root.signer[:16]}", root.key
                )
            elif not _signed(root):
                yield Finding("root", f"the signature of the root of {root.day} is not right", root.key)
            expected = hashlib.sha256(_stored(before)).hexdigest() if before is not None else ""
            if root.previous != expected:
                yield Finding("root", f"the root of {root.day} does not follow the one before it", root.key)
            if root.position > entries:
                detail = f"the signed root of {root.day} has {root.position} entries, the chain ends at {entries}"
                yield Finding("root", detail, root.key, root.position)
            yield from self._stamp_findings(root)
            before = root

    def _stamp_findings(self, root: Root) -> Iterable[Finding]:
        if root.stamp is None or self._timestamper is None:
            return
        try:
            self._timestamper.stamped_at(_stored(root), root.stamp)
        except ValueError as error:
            yield Finding("root", f"the time stamp of the root of {root.day} is not right: {error}", root.key)

    def stamped_at(self, root: Root) -> datetime | None:
        """When the authority saw this root; None without a stamp or an authority to check it by."""
        if root.stamp is None or self._timestamper is None:
            return None
        return self._timestamper.stamped_at(_stored(root), root.stamp)


def _root_key(tenant_id: str, day: date) -> str:
    return f"archive-roots/{tenant_id}/{day.isoformat()}.json"


def _stamp_key(root_key: str) -> str:
    return root_key.removesuffix(".json") + ".tsr"


def _body(tenant_id: str, day: str, position: int, chain: str, previous: str, now: datetime, signer: str) -> bytes:
    said: dict[str, Any] = {
        "format": 1, "tenant": tenant_id, "day": day, "position": position, "chain": chain, "previous": previous,
        "made_at": now.astimezone(UTC).isoformat(), "signer": signer,
    }  # fmt: skip
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def _stored(root: Root) -> bytes:
    return json.dumps({"body": root.body.decode(), "signature": root.signature}).encode()


def _root(key: str, data: bytes, stamp: bytes | None) -> Root:
    held = json.loads(data)
    body = held["body"].encode()
    said = json.loads(body)
    return Root(
        day=said["day"],
        position=int(said["position"]),
        chain=said["chain"],
        previous=said["previous"],
        made_at=said["made_at"],
        signer=said["signer"],
        signature=held["signature"],
        key=key,
        body=body,
        stamp=stamp,
    )


def _signed(root: Root) -> bool:
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(root.signer))
        public.verify(bytes.fromhex(root.signature), root.body)
    except (InvalidSignature, ValueError):
        return False
    return True
