"""Ends with 0 while the service answers at the address that its settings name; no proxy is asked."""

import http.client
import os
import sys

ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # addresses to listen on, not to connect to
host = os.environ.get("VERMOUTH_HOST", "")
# `http.client` knows nothing of `http_proxy`, which `urllib` follows.
connection = http.client.HTTPConnection(ANY.get(host, host), int(os.environ.get("VERMOUTH_PORT", "8000")), timeout=2)
connection.request("GET", "/livez")
sys.exit(connection.getresponse().status != 200)
