"""Stays with a hub over its restarts, by the means of Python's `websockets` alone: python stay.py WS_URL

Prints `connected`, each content that comes, and how each connection ended: code, reason, and how long the hub asks to wait.
The library's own loop connects again after every end.
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main():
    async for hub in connect(sys.argv[1], subprotocols=["wsc.v1"], proxy=None):
        try:
            async for text in hub:
                frame = json.loads(text)
                if frame["message_type"] == "connected":
                    print("connected", flush=True)
                elif frame.get("require_ack"):
                    await hub.send(json.dumps({"message_type": "ack", "data": {"id": frame["id"]}}))
                    print("content", json.dumps(frame["data"]["content"]), flush=True)
        except ConnectionClosed:
            pass
        reason = json.loads(hub.close_reason or "{}")
        print("closed", hub.close_code, reason.get("reconnect"), "retry_after_ms" in reason, flush=True)


asyncio.run(main())
