"""What went wrong with a request: one of this package's errors for each answer and for each way to get none."""

from __future__ import annotations

from typing import Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from botocore.parsers import ResponseParserError

from storage_backends.base import (
    AccessDenied,
    InvalidUrl,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    TargetFull,
    TargetUnavailable,
)

FAILURES = (BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError, OSError, TimeoutError)
"""All that a request raises when it fails. TimeoutError is that of our own watch."""

PERMISSIONS = (
    "s3:PutObject", "s3:GetObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
    "s3:ListBucket", "s3:ListBucketMultipartUploads",
)  # fmt: skip
"""What the credentials must be allowed to do."""
_BAD_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidSecurity", "NotSignedUp",
    "AuthorizationHeaderMalformed", "InvalidClientTokenId", "TokenRefreshRequired",
}  # fmt: skip
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "InsufficientCapacity", "QuotaExceededException"}
_TOO_LARGE = {"EntityTooLarge", "MaxMessageLengthExceeded"}
_TRY_AGAIN = {
    "SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException",
    "TooManyRequests", "RequestLimitExceeded", "BandwidthLimitExceeded", "OperationAborted", "BadDigest",
    "IncompleteBody", "ConditionalRequestConflict", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_BAD_BUCKET = {"NoSuchBucket", "InvalidBucketName", "PermanentRedirect", "AllAccessDisabled"}
_NEVER_TRANSIENT = (
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    NoRegionError,
    ParamValidationError,
)
_NO_COMMON_TLS = (
    "CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL", "PROTOCOL_VERSION",
    "HANDSHAKE_FAILURE", "NO_SHARED_CIPHER", "CERTIFICATE_REQUIRED", "UNKNOWN_CA",
)  # fmt: skip
"""What OpenSSL calls that which is the same at the next try; a connection that broke is not."""


def error_code(exc: BaseException) -> str:
    """Return S3's code of an error, such as NoSuchKey; empty when the server did not answer."""
    return str(exc.response.get("Error", {}).get("Code", "")) if isinstance(exc, ClientError) else ""


def error_status(exc: BaseException) -> int:
    """Return the HTTP status of an error; 0 when the server did not answer."""
    return int(_metadata(exc).get("HTTPStatusCode", 0))


def is_retriable(exc: BaseException) -> bool:
    """Say whether the same request may succeed a little later."""
    if isinstance(exc, ClientError):
        status = error_status(exc)
        return error_code(exc) in _TRY_AGAIN or status == 429 or (status >= 500 and status not in {501, 507})
    if isinstance(exc, SSLError):
        return not any(reason in str(exc) for reason in _NO_COMMON_TLS)
    return not isinstance(exc, _NEVER_TRANSIENT)


def is_refused_condition(exc: BaseException) -> bool:
    """Say whether the server did not write because of If-None-Match, or did not read because of If-Match."""
    return error_status(exc) == 412 or error_code(exc) in {"PreconditionFailed", "ConditionalRequestConflict"}


def no_s3(where: str) -> TargetUnavailable:
    """Return the error for an answer that S3 would not give: a proxy or a login page in between, perhaps."""
    return TargetUnavailable(
        f"{where}: what answers does not speak S3",
        hint="See whether endpoint_url is right, and whether a proxy or a login page answers in its place.",
    )


def mapped(exc: BaseException, where: str) -> StorageError:
    """Return the error to raise in place of `exc`; `where` is the URL of the target or of an object."""
    if isinstance(exc, ClientError):
        return _answered(exc, where)
    if isinstance(exc, TimeoutError):
        return TargetUnavailable(
            f"{where}: the server does not answer, or takes no more bytes",
            hint="See whether the endpoint and the network are well; storage_options: timeout sets how long to wait.",
        )
    if isinstance(exc, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound)):
        return AccessDenied(
            f"{where}: no credentials ({exc})",
            hint="Give key and secret in storage_options, or a profile or role that the AWS libraries find.",
        )
    if isinstance(exc, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(exc):
        return InvalidUrl(
            f"{where}: the server's certificate is not trusted",
            hint="Name the file of its certificate authority in storage_options: verify.",
        )
    if isinstance(exc, (NoRegionError, ParamValidationError)):
        return InvalidUrl(f"{where}: {exc}", hint="See the S3 options in docs/CONFIGURATION.md.")
    return TargetUnavailable(
        f"{where}: {_cause(exc)}",
        hint="See whether the endpoint can be reached from here: address, port, proxy and firewall.",
    )


def _answered(exc: ClientError, where: str) -> StorageError:
    code, status = error_code(exc), error_status(exc)
    kind, hint = _kind(code, status, may_try_again=is_retriable(exc))
    if kind is ObjectNotFound:
        return ObjectNotFound(f"{where} does not exist")
    return kind(f"{where}: {_said(exc)}", hint=hint)


def _kind(code: str, status: int, *, may_try_again: bool) -> tuple[type[StorageError], str]:
    found: tuple[type[StorageError], str]
    if code in _BAD_BUCKET:
        found = InvalidUrl, "Create the bucket, or correct the target's URL, endpoint_url and region."
    elif code in _FULL or status == 507:
        found = TargetFull, "Raise the quota, or keep fewer archives. Nothing half-made is visible."
    elif code in _TOO_LARGE or status == 413:
        found = TargetFull, "The endpoint takes no object, or no part, of this size."
    elif status == 412:
        found = ObjectChanged, ""
    elif status == 404:
        found = ObjectNotFound, ""
    elif may_try_again:
        found = TargetUnavailable, "The endpoint is busy or broken: run it again later."
    elif code == "RequestTimeTooSkewed":
        found = AccessDenied, "Set this machine's clock."
    elif code in _BAD_CREDENTIALS or code == "400":
        found = AccessDenied, "Correct key, secret, token and region in storage_options."
    elif status in {401, 403}:
        found = AccessDenied, f"Give these credentials {', '.join(PERMISSIONS)}."
    else:
        found = InvalidUrl, "The endpoint does not know this request or one of its options: see docs/CONFIGURATION.md."
    return found


def _said(exc: ClientError) -> str:
    """Return code and message of the server; HEAD requests have no message but their status."""
    code, message = error_code(exc), exc.response.get("Error", {}).get("Message")  # Ceph gives an empty one
    return f"{message or 'refused'} ({code or error_status(exc)})"


def _cause(exc: BaseException) -> str:
    """Return what a library's error is about, without the request's address, which names upload ids."""
    inner = getattr(exc, "kwargs", {}).get("error") if isinstance(exc, BotoCoreError) else None
    cause = inner if isinstance(inner, BaseException) else exc
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return f"the connection failed ({type(cause).__name__})"


def _metadata(exc: BaseException) -> dict[str, Any]:
    metadata: dict[str, Any] = exc.response.get("ResponseMetadata", {}) if isinstance(exc, ClientError) else {}
    return metadata


def exists_error(where: str) -> ObjectExists:
    """Return the error for a key that is taken."""
    return ObjectExists(f"{where} exists already", hint="Nothing was replaced. Choose another name.")
