"""Measures what an idle, registered connection costs the server, and what one broadcast costs.

    python3 docs/bench/idle.py 127.0.0.1:8080 PID-OF-THE-SERVER

Needs nothing but Python. Opens 2,000, then 15,000 connections from several loopback addresses; each has a user, a client
and a device id and joins one room. Then each sends a message of 2 KB, and one of them writes to the room.
"""

import socket
import sys
import time
import urllib.request

FEW, MANY = 2_000, 15_000
SETTLE = 3.0


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    raise SystemExit("no VmRSS: is that the server's process id?")


def frame(payload):
    """A masked text frame; a mask of zeros leaves the payload as it is."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return b"\x81" + length + b"\0\0\0\0" + payload


def read_until(connection, text):
    data = b""
    while text not in data:
        more = connection.recv(8192)
        if not more:
            raise SystemExit(f"closed while waiting for {text!r}: {data!r}")
        data += more


def connect(host, port, n):
    connection = socket.socket()
    # Several addresses, so that the range of local ports is no limit.
    connection.bind((f"127.0.0.{2 + n % 5}", 0))
    connection.connect((host, port))
    connection.sendall(
        f"GET /ws?user_id=user-{n}&client_id=client-{n}&device_id=device-{n} HTTP/1.1\r\n"
        f"Host: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: wsc.v1\r\n\r\n".encode()
    )
    return connection


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    port, pid = int(port), int(sys.argv[2])
    connections, memory = [], {}
    while len(connections) < MANY:
        batch = [connect(host, port, len(connections) + n) for n in range(100)]
        for connection in batch:
            connection.sendall(frame(b'{"message_type":"join_room","data":{"room_id":"lobby"}}'))
        for connection in batch:
            read_until(connection, b"room_joined")
        connections += batch
        if len(connections) in (FEW, MANY):
            time.sleep(SETTLE)
            memory[len(connections)] = resident(pid)
            print(f"{len(connections):6} connections: {memory[len(connections)]:,} bytes resident")
    print(f"slope: {(memory[MANY] - memory[FEW]) / (MANY - FEW):.0f} bytes for each connection")

    padded = frame(b'{"message_type":"ping","pad":"%s"}' % (b"x" * 2_000))
    for connection in connections:
        connection.sendall(padded)
    for connection in connections:
        read_until(connection, b"pong")
    time.sleep(SETTLE)
    print(f"after 2 KB each: {(resident(pid) - memory[FEW]) / (MANY - FEW):.0f} bytes for each connection")

    connections[0].sendall(frame(b'{"message_type":"room_message","data":{"room_id":"lobby","content":"hi"}}'))
    for connection in connections[1:]:
        read_until(connection, b"room_message")
    with urllib.request.urlopen(f"http://{host}:{port}/metrics") as response:
        for line in response.read().decode().splitlines():
            if line.startswith(("wsc_fanout_frames", "wsc_fanout_duration_seconds_sum", "wsc_deliveries")):
                print(line)

    for connection in connections:
        connection.close()
    time.sleep(SETTLE)
    print(f"after all have gone: {resident(pid):,} bytes resident")


main()
