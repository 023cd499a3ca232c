"""S3 with errors that the rest of the product understands, and that say what to do about them.

s3fs passes botocore's own errors on, which are no OSErrors, and says of a request that was refused only that it was.
"""

from __future__ import annotations

from typing import Any

from botocore.exceptions import BotoCoreError, NoCredentialsError
from s3fs import S3FileSystem

from pipeline.storage import StorageError

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
        except PermissionError as error:
            what = kwargs.get("Key") or kwargs.get("Prefix") or ""
            why = str(error).rstrip(".")
            raise PermissionError(
                f"s3://{kwargs.get('Bucket', '')}/{what}: refused ({why}), since the identity in use lacks the right"
                f" {_RIGHTS.get(method, method)}; infra/policies has what a job needs"
            ) from error
