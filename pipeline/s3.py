"""S3 with errors that the rest of the product understands: s3fs passes botocore's own on, which are no OSErrors."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import BotoCoreError, NoCredentialsError
from s3fs import S3FileSystem

from pipeline.storage import StorageError


class S3(S3FileSystem):
    """Raises `StorageError` where a request cannot even be made: no credentials, no such server, no answer."""

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
