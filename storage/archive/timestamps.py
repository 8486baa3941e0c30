"""Time stamps of RFC 3161 from an authority over HTTP; it sees a hash and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import httpx
from cryptography.x509 import Certificate, load_pem_x509_certificates
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from billing.errors import Unavailable

ANSWER_BYTES_MAX = 1_000_000


class Rfc3161Timestamper:
    """An authority at a URL, believed by the certificates of its root (PEM)."""

    def __init__(self, url: str, certificates: Path, *, timeout_s: float = 10.0) -> None:
        self._url = url
        self._roots: Sequence[Certificate] = load_pem_x509_certificates(certificates.read_bytes())
        self._timeout_s = timeout_s

    def stamp(self, data: bytes) -> bytes:
        request = TimestampRequestBuilder().data(data).hash_algorithm(HashAlgorithm.SHA256).build()
        try:
            answer = httpx.post(
                self._url,
                content=request.as_bytes(),
                headers={"Content-Type": "application/timestamp-query"},
                timeout=self._timeout_s,
            )
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise Unavailable(f"the time-stamping authority gave no answer: {error}") from error
        if len(answer.content) > ANSWER_BYTES_MAX:
            raise Unavailable(f"the time-stamping authority answered {len(answer.content)} bytes")
        try:
            self.stamped_at(data, answer.content)
        except ValueError as error:  # what does not verify today would not verify later: keep nothing, ask again
            raise Unavailable(f"the time-stamping authority's answer is not right: {error}") from error
        return answer.content

    def stamped_at(self, data: bytes, response: bytes) -> datetime:
        builder = VerifierBuilder()
        for certificate in self._roots:
            builder = builder.add_root_certificate(certificate)
        found = decode_timestamp_response(response)  # ValueError if it is none
        try:
            builder.build().verify(found, hashlib.sha256(data).digest())
        except VerificationError as error:
            raise ValueError(str(error)) from error
        return found.tst_info.gen_time
