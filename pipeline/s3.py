"""S3 with errors that the rest of the product understands, and that say what to do about them.

s3fs passes botocore's own errors on, which are no OSErrors, and says of a request that was refused only that it was.
"""

from __future__ import annotations

from typing import Any

from botocore.exceptions import BotoCoreError, NoCredentialsError
from s3fs import S3FileSystem

from pipeline.storage import StorageError, error_code

# AWS refuses even to say that an object is not there to those who may not list.
_RIGHTS = {
    "list_objects_v2": "s3:ListBucket",
    "head_bucket": "s3:ListBucket",
    "get_object": "s3:GetObject, or s3:ListBucket where the object does not exist",
    "head_object": "s3:GetObject, or s3:ListBucket where the object does not exist",
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
}
"""What IAM calls the right to each request."""

_KEYS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
}
_BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504"}
_CONDITIONS = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


class S3(S3FileSystem):
    """Raises `StorageError` where a request cannot even be made: no credentials, no such server, no answer; and
    `PermissionError` with the name of the missing right where one was refused.
    """

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._call_s3(method, *args, **kwargs)
        except NoCredentialsError as error:
            raise StorageError(
                f"s3://{kwargs.get('Bucket', '')}: no credentials found; set AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where the instance has a role"
            ) from error
        except BotoCoreError as error:
            raise StorageError(
                f"s3://{kwargs.get('Bucket', '')}: {error} (a server other than AWS is named by AWS_ENDPOINT_URL)"
            ) from error
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            code, what = error_code(error), kwargs.get("Key") or kwargs.get("Prefix") or ""
            if code in _CONDITIONS:
                raise
            kind = PermissionError if isinstance(error, PermissionError) else StorageError
            text = f"{error.strerror or error}".rstrip(".")
            raise kind(f"s3://{kwargs.get('Bucket', '')}/{what}: {_told(code, text, method)}") from error


def _told(code: str, text: str, method: str) -> str:
    """What a server's refusal means, and what to do. Answers to HEAD have a status for a code, and no text."""
    right = f"the identity in use lacks the right {_RIGHTS.get(method, method)}; infra/policies has what a job needs"
    if code in _KEYS:
        return f"refused ({text}): the keys are wrong or have expired; give new ones and start again"
    if code == "RequestTimeTooSkewed":
        return f"refused ({text}): this machine's clock is wrong; set it and start again"
    if code == "400" and method.startswith("head_"):
        return f"refused ({text}): most likely the keys have expired; give new ones and start again"
    if code == "403":
        return f"refused ({text}), since the keys or this machine's clock are wrong, the keys have expired, or {right}"
    if code == "AccessDenied":
        return f"refused ({text}), since {right}"
    if code in _BUSY:
        return f"throttled, or the server is down ({text}), after many tries; lower cluster.max_requests"
    return f"{method} failed ({text})"
