"""Exams whose authors ask that nobody publish them in the clear, as they lie on disk.

Crawlers read whatever lies about, and what they read is learned. So the problems of such an exam
are stored veiled: neither a search for their words nor a look into their table finds them, and
whoever loads the table as training data gets nothing to learn. This is no secret, since the key
stands here, just as the authors of GPQA give the password of their archive beside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

MARK = "sealed"  # in a problem's meta; and the role of the one message that is left of it
KEY = b"exam questions: not for training"
VEILED = ("messages", "answer", "meta")


def seal(row: Mapping[str, Any]) -> dict[str, Any]:
    """A problem's row with all that it asks and knows in one message that nobody can read."""
    text = json.dumps({name: row[name] for name in VEILED}, ensure_ascii=False)
    content = base64.b64encode(_veil(text.encode(), str(row["id"]))).decode()
    return {
        **row,
        "messages": [{"role": MARK, "content": content}],
        "answer": "",
        "meta": {MARK: True},
    }


def unseal(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as it was; any other as it is. ValueError for one that was changed."""
    messages = row["messages"]
    if len(messages) != 1 or messages[0]["role"] != MARK:
        return dict(row)
    veiled = base64.b64decode(messages[0]["content"], validate=True)
    return {**row, **json.loads(_veil(veiled, str(row["id"])))}


def _veil(data: bytes, name: str) -> bytes:
    """XOR with a stream of bytes that only the key and the problem's id decide; its own inverse."""
    stream = hashlib.shake_256(KEY + name.encode()).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))
