"""What a client is told when it does not get what it asked for, in OpenAI's words."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not served: an HTTP status and a sentence that names the way out.

    `field` is the part of the request's body that is to blame, `retry_s` when to ask again.
    """

    def __init__(
        self, status: int, message: str, field: str | None = None, retry_s: int | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.field, self.retry_s = status, message, field, retry_s

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's shape of an error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, kind),
                "param": self.field,
                "code": HTTPStatus(self.status).name.lower(),
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_s is None else {"Retry-After": str(self.retry_s)}
