"""The transport of the service's commands: JSON-RPC 2.0, one JSON object a line (docs/SOCKET.md).

codec        bytes <-> requests, answers, events; pure
peers        who is on the other end, and whether that may read or command
limits       the numbers that bound what clients can take
seats        who may connect when there are too many
lines        the bytes of one connection, bounded both ways
connection   what one client is given: answers and events
unix_socket  the file that the service listens on
activation   the same when systemd has made it
tls          the same over TCP, for clients with a certificate
server       all of it together
"""
