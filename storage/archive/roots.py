"""Signed roots: what each tenant's chain ended with before the first entry of a day, signed with the archive's own key.

A day on which nothing was added has none: the root before it says the same.

The register could be written anew by somebody who owns the database, links and all; not so that the roots still agree.
A root names the one before (its hash), and can be stamped by a time-stamping authority of RFC 3161, who never sees more
than a hash. A root that could not be stamped (authority away) is stamped later. The register knows the newest root: if
it is gone from the store, this alone tells, and the next one names it all the same.
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
from storage.sql.database import Connection

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
class NewestRoot:
    """What the register knows of a tenant's newest root."""

    day: date
    position: int
    hash: bytes


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

    def sign(
        self,
        tenant_id: str,
        day: date,
        position: int,
        chain: bytes,
        now: datetime,
        known: NewestRoot | None = None,
    ) -> NewestRoot:
        """The root of a day: the chain as it stands before the day's first entry. The first one to sign has decided.

        `known` is the newest one by the register: the new one names it, although somebody took it out of the store.
        """
        key = _root_key(tenant_id, day)
        stored = self._store.get(key)
        if stored is None:
            earlier = self.all(tenant_id)
            previous = hashlib.sha256(_stored(earlier[-1])).hexdigest() if earlier else ""
            # Whoever signed last may have died before the register heard of it: then the store knows more.
            if known is not None and not (earlier and earlier[-1].day > known.day.isoformat()):
                previous = known.hash.hex()
            body = _body(tenant_id, day.isoformat(), position, chain.hex(), previous, now, self._key.public)
            self._store.create(key, json.dumps({"body": body.decode(), "signature": self._key.sign(body)}).encode())
            stored = self._store.get(key)
            if stored is None:
                raise Unavailable(f"the signed root {key} was just stored and is not there")
        self.stamp_missing(tenant_id)
        root = _root(key, stored, None)
        return NewestRoot(day, root.position, hashlib.sha256(_stored(root)).digest())

    def stamp_missing(self, tenant_id: str) -> int:
        """Ask the authority for the stamps that are missing; how many came. One that is away is asked again later."""
        if self._timestamper is None:
            return 0
        made = 0
        keys = set(self._store.list(f"archive-roots/{tenant_id}/"))
        missing = sorted(key for key in keys if key.endswith(".json") and _stamp_key(key) not in keys)
        for key in missing[:STAMP_LATER_MAX]:
            data = self._store.get(key)
            if data is None:  # taken away meanwhile, with the tenant
                continue
            root = _root(key, data, None)
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

    def findings(self, signed: Sequence[Root], entries: int, newest: NewestRoot | None = None) -> Iterable[Finding]:
        """What is wrong with the roots themselves, and those beyond the end of the chain. `newest` is the one that the
        register knew before `signed` were listed."""
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
        if newest is not None:
            day = newest.day.isoformat()
            found = next((root for root in signed if root.day == day), None)
            if found is None:
                detail = f"the root of {day} was signed and is gone, and with it maybe earlier ones"
                yield Finding("root", detail, "", newest.position)
            elif hashlib.sha256(_stored(found)).digest() != newest.hash:
                yield Finding("root", f"the root of {day} is another one than was signed", found.key, newest.position)

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


def newest_root(connection: Connection, tenant_id: str) -> NewestRoot | None:
    """The newest root that the register knows; None before the first one."""
    row = connection.execute(
        "SELECT root_day, root_position, root_hash FROM archive_heads WHERE tenant_id = %s AND root_day IS NOT NULL",
        (tenant_id,),
    ).fetchone()
    return None if row is None else NewestRoot(row["root_day"], int(row["root_position"]), bytes(row["root_hash"]))


def note_root(connection: Connection, tenant_id: str, newest: NewestRoot) -> None:
    """Let the register know a root that is signed and stored."""
    connection.execute(
        "UPDATE archive_heads SET root_day = %s, root_position = %s, root_hash = %s"
        " WHERE tenant_id = %s AND (root_day IS NULL OR root_day < %s)",
        (newest.day, newest.position, newest.hash, tenant_id, newest.day),
    )


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
