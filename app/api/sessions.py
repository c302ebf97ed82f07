"""What browsers use in place of a key: cookies of sessions, and addresses of images that carry a signature.

Both are HMACs (RFC 2104) under a secret of the database, which all replicas share, and the digests of the keys: a key
that is removed ends its sessions, and a reader of the database alone cannot make one.
"""

import hmac
import time
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs

from starlette.requests import HTTPConnection

from app.errors import LOAD_RETRY_AFTER_S, EngineUnavailable, Forbidden, Unauthenticated

COOKIE = "vermouth_session"
SESSION_S = 8 * 3600
SIGNATURE_S = 3600
"""How long an address is valid at least; it ends on the hour, so that it stays the same and browsers cache it."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_ID_LENGTH, _MAC_LENGTH = 16, 32


class Sessions:
    """Makes and checks cookies and signatures for the keys of these SHA-256 digests.

    Attributes:
        allowed_origins: of pages that may use cookies and WebSockets beside the service's own.
        secret: of the database; empty until it is open.
    """

    def __init__(self, digests: Iterable[str], allowed_origins: Iterable[str]) -> None:
        self._digests = {digest[:_ID_LENGTH]: digest for digest in digests}
        self._all_digests = "".join(sorted(self._digests.values()))
        self.allowed_origins = frozenset(map(plain_origin, allowed_origins))
        self.secret = b""

    def require_secret(self) -> None:
        """Raises EngineUnavailable while the database is not open: nothing can be checked then."""
        if not self.secret:
            raise EngineUnavailable("The stores are not open.", retry_after_s=LOAD_RETRY_AFTER_S)

    def issue(self, digest: str) -> str:
        """The cookie of a new session of a key. Raises as `require_secret`."""
        self.require_secret()
        ends_at = int(time.time()) + SESSION_S
        return f"{digest[:_ID_LENGTH]}.{ends_at}.{self._mac(digest, f'session {ends_at}')}"

    def digest_of(self, connection: HTTPConnection) -> str | None:
        """The digest of the key that a connection's cookie stands for; None without a valid one."""
        key_id, _, rest = connection.cookies.get(COOKIE, "").partition(".")
        ends_at, _, mac = rest.partition(".")
        digest = self._digests.get(key_id)
        is_good = digest is not None and self._is_valid(digest, f"session {ends_at}", ends_at, mac)
        return digest if is_good else None

    def signature(self, path: str) -> str:
        """The query that opens a path for everyone who has it, for one to two hours."""
        ends_at = (int(time.time()) // SIGNATURE_S + 2) * SIGNATURE_S
        return f"?expires={ends_at}&signature={self._mac(self._all_digests, f'{ends_at} {path}')}"

    def check_signature(self, connection: HTTPConnection) -> None:
        """Check the signature in a connection's query. Raises Unauthenticated, and as `require_secret`."""
        self.require_secret()
        query: Mapping[str, list[str]] = parse_qs(connection.scope["query_string"].decode("latin-1"))
        ends_at, mac = (query.get(name, [""])[0] for name in ("expires", "signature"))
        if not self._is_valid(self._all_digests, f"{ends_at} {connection.scope['path']}", ends_at, mac):
            raise Unauthenticated("The address's signature is wrong or has expired: read the item's image_url again.")

    def check_origin(self, connection: HTTPConnection, *, has_cookie: bool = False) -> None:
        """Refuse pages of other sites, which could act with their visitor's rights; browsers send the origin.

        Args:
            has_cookie: whether the cookie is what authorises: `*` allows every origin, but none with a cookie.

        Raises:
            Forbidden: the origin is neither the service's own nor an allowed one; names what differs.
        """
        origin = connection.headers.get("origin")  # absent outside of browsers
        if origin is None or plain_origin(origin) in self.allowed_origins:
            return
        if "*" in self.allowed_origins and not has_cookie:
            return
        host = connection.headers.get("host", "")
        # A proxy that ends TLS hides the service's own scheme: the page's stands for it.
        if not host or plain_origin(origin) != plain_origin(f"{origin.partition('://')[0]}://{host}"):
            detail = f"The page's origin {origin[:40]!r} is neither the Host {host[:30]!r} nor allowed"
            raise Forbidden(f"{detail}: VERMOUTH_ALLOWED_ORIGINS.")

    def _is_valid(self, digest: str, message: str, ends_at: str, mac: str) -> bool:
        is_genuine = hmac.compare_digest(mac.encode(), self._mac(digest, message).encode())
        return is_genuine and bool(self.secret) and int(ends_at) > time.time()

    def _mac(self, digest: str, message: str) -> str:
        return hmac.digest(self.secret + digest.encode(), message.encode(), "sha256").hex()[:_MAC_LENGTH]


def plain_origin(origin: str) -> str:
    """An origin as browsers write it: lower case, without the port that its scheme has by default."""
    plain = origin.lower()
    return plain.removesuffix(f":{_DEFAULT_PORTS.get(plain.partition('://')[0], '')}")
