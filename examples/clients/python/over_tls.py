"""One call over TCP: python3 over_tls.py HOST PORT CERTIFICATE KEY AUTHORITY. Standard library only."""

import json
import socket
import ssl
import sys

host, port, certificate, key, authority = sys.argv[1:6]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_verify_locations(authority)  # who signed the service's certificate
context.load_cert_chain(certificate, key)  # who we are

with (
    socket.create_connection((host, int(port)), timeout=30) as plain,
    context.wrap_socket(plain, server_hostname=host) as connection,
    connection.makefile("rwb") as lines,
):
    request = {"jsonrpc": "2.0", "id": 1, "method": "archive.list", "params": {"limit": 5}}
    lines.write(json.dumps(request).encode() + b"\n")
    lines.flush()
    answer = json.loads(lines.readline())  # a certificate that is not listed is told so here
    if "error" in answer:
        sys.exit(f"{answer['error']['data']['code']}: {answer['error']['message']}")
    for archive in answer["result"]["archives"]:
        print(archive["name"], archive["evidence"])
