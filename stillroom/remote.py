"""What goes wrong between us and an object store, in one line.

The clients (`obstore`, and the one inside Lance) bury the reason under pages of debugging text, in
which a server may have quoted the access key. Only the endpoint, the kind of fault and the
server's own word for it are passed on.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from stillroom.errors import InputError, StillroomError, UnreachableError

if TYPE_CHECKING:
    from obstore.store import RetryConfig

__all__ = ["RETRIES", "ask", "check_uri", "fault_of", "reaching"]

# A server that is busy or starts anew is waited for; one that is gone is told within half a minute.
MAX_RETRIES, RETRY_S = 8, 30
RETRIES: "RetryConfig" = {
    "max_retries": MAX_RETRIES,
    "retry_timeout": timedelta(seconds=RETRY_S),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
# Lance gives up after three tries (a second), but after three minutes where nothing answers. It reads these at each use.
os.environ.setdefault("OBJECT_STORE_CLIENT_MAX_RETRIES", str(MAX_RETRIES))
os.environ.setdefault("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", str(RETRY_S))

# The clients send a request again until an answer begins; one that breaks off half way is left to us.
BROKEN_OFF = re.compile(r"body error")
ATTEMPTS = 4

SCHEMES = ("s3", "gs", "az")
# Marks of a client's error that came through Lance, as OSError, ValueError or RuntimeError.
THROUGH_LANCE = re.compile(r"Generic \S+ error: |The operation lacked |error sending request|body error|Failed to get AWS credentials|non-2xx status code")
# What the text has, what is the matter, the way out; the first that fits is told.
FAULTS = (
    (r"NoSuchBucket", "there is no bucket '{bucket}' at {endpoint}", "make it, or mend the store's name"),
    (r"169\.254\.|Failed to get AWS credentials", "no credentials for it were found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (r"PermanentRedirect|AuthorizationHeaderMalformed|configured region", "the bucket is in another region{word}", "set AWS_REGION"),
    (r"status code: 40[13]|operation lacked", "{endpoint} refuses{word}", "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do"),
    (r"BadScheme|builder error", "{endpoint} isn't https", "set AWS_ALLOW_HTTP=true if that is meant"),
    (r"status code: (?:5\d\d|429)", "{endpoint} answers with an error{word}", "try again later; what was finished stays"),
    (r"error sending request|body error|operation timed out", "{endpoint} can't be reached", "check AWS_ENDPOINT and the network"),
    (r"", "{endpoint} failed{word}", "check AWS_ENDPOINT and the bucket"),
)

T = TypeVar("T")


def check_uri(uri: str) -> None:
    """Refuse a store's uri of an unknown kind, or with a secret in it: it stands in records, runs and commands.

    Raises:
        InputError: it is one.
    """
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise InputError("the store's uri", "holds credentials", "write s3://BUCKET/PREFIX, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise InputError(uri, "is no store", "write a folder, or s3://BUCKET/PREFIX")


def fault_of(error: BaseException, uri: str) -> UnreachableError | None:
    """What an object store's client raised, in one line; None where the error is of another kind, or the store a folder."""
    text = str(error)
    of_client = type(error).__module__.startswith("obstore") or THROUGH_LANCE.search(text)
    if "://" not in uri or isinstance(error, StillroomError) or _is_missing(text) or not of_client:
        return None
    status, code = re.search(r"status code: (\d+ [A-Z][A-Za-z ]+)", text), re.search(r"<Code>(\w+)</Code>", text)
    word = (code and code[1]) or (status and status[1].strip())
    told = {"bucket": urlsplit(uri).netloc, "endpoint": _endpoint(text), "word": f" ({word})" if word else ""}
    problem, hint = next((problem, hint) for pattern, problem, hint in FAULTS if re.search(pattern, text))
    return UnreachableError(uri, problem.format(**told), hint)


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Tell what the clients of an object store raise in one line.

    Raises:
        UnreachableError: in their place.
    """
    try:
        yield
    except Exception as error:
        if (fault := fault_of(error, uri)) is None:
            raise
        raise fault from None


def ask(uri: str, request: Callable[[], T]) -> T:
    """Send a request that may be sent twice, again where its answer broke off.

    Raises:
        FileNotFoundError: what was asked for isn't there.
        UnreachableError: the store doesn't answer, or refuses.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except Exception as error:
            if (fault := fault_of(error, uri)) is None:
                # Of an object that went away while its bytes were asked for again, obstore has no error of its own.
                if type(error).__module__.startswith("obstore") and _is_missing(str(error)) and not isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(uri) from None
                raise
            if attempt == ATTEMPTS or not BROKEN_OFF.search(str(error)):
                raise fault from None
    raise AssertionError("the last attempt returns or raises")


def _is_missing(text: str) -> bool:
    return "status code: 404" in text and "NoSuchBucket" not in text


def _endpoint(text: str) -> str:
    """Where the request went: as the client says, else as the environment does."""
    found = re.search(r"https?://[^/\s?\"]+", text)
    named = found[0] if found else next((os.environ[name] for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL") if os.environ.get(name)), "its server")
    return re.sub(r"//[^/@]*@", "//", named)
