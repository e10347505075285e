#!/usr/bin/env python3
"""Talks to a hub with Python's `websockets`: python chat.py http://127.0.0.1:8080 [compressed]

The hub runs with its default settings and authentication off; with `compressed`, with `compression.enabled`. Exits 0 when everything was as docs/protocol.md says,
else prints what differed and exits 1. Ids carry the process id, so that a hub may be used twice.
"""

import asyncio
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

STEP_SECONDS = 10
WHOLE_SECONDS = 60
RUN = os.getpid()
COMPRESSED = "compressed" in sys.argv[2:]

# Numbers that a double cannot hold, key order, an escaped and a raw character: all of it has to arrive as it was sent.
AWKWARD = '{"z":1.0,"a":12345678901234567890,"e":1e-7,"t":"\\u00e9 \u00e9 \U0001f600 \\ud83d\\ude00","l":[ null , {} ]}'


class Differs(Exception):
    """The hub did something else than its protocol says."""


def expect(what, got, wanted):
    if got != wanted:
        raise Differs(f"{what}: got {got!r}, wanted {wanted!r}")


class Client:
    """One connection and what was said on it."""

    def __init__(self, base, user=None, client=None, subprotocols=("wsc.v1",), **options):
        query = {"user_id": user, "client_id": client}
        query = urllib.parse.urlencode({k: v for k, v in query.items() if v is not None})
        self.url = base.replace("http", "ws", 1) + "/ws" + (f"?{query}" if query else "")
        # A browser's defaults: permessage-deflate is offered, no proxy stands between.
        self.options = {"subprotocols": list(subprotocols) or None, "proxy": None, **options}
        self.last_id = 0

    async def __aenter__(self):
        self.socket = await connect(self.url, **self.options)
        expect("compression agreed on", bool(self.socket.protocol.extensions), COMPRESSED)
        self.hello = await self.receive("connected")
        return self

    async def __aexit__(self, *_):
        await self.socket.close()

    async def raw(self):
        async with asyncio.timeout(STEP_SECONDS):
            return await self.socket.recv()

    async def receive(self, message_type):
        text = await self.raw()
        frame = json.loads(text)
        if frame.get("message_type") != message_type:
            raise Differs(f"wanted {message_type}, got {text}")
        if not isinstance(frame.get("timestamp"), int):
            raise Differs(f"no timestamp in {text}")
        return frame

    async def send(self, message_type, data=None, **envelope):
        await self.socket.send(json.dumps({"message_type": message_type, "data": data or {}, **envelope}))

    async def request(self, message_type, data, reply_type):
        """Sends a request and gives the data of its reply, which has to be the next frame."""
        self.last_id += 1
        await self.send(message_type, data, message_id=self.last_id)
        reply = await self.receive(reply_type)
        expect(f"request_id of the reply to {message_type}", reply.get("request_id"), self.last_id)
        return reply["data"]

    async def refused(self, message_type, data, code):
        error = await self.request(message_type, data, "error")
        expect(f"error code of {message_type} {data}", error["code"], code)

    async def silent(self):
        """Nothing was queued for this connection: the next frame is the answer to a ping."""
        await self.request("ping", {"ts": 1}, "pong")

    async def closed(self):
        """Waits for the close frame and gives its code and its reason."""
        try:
            while True:
                await self.raw()
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                raise Differs("the socket went without a close frame") from closed
            return closed.rcvd.code, closed.rcvd.reason


def post(base, path, body):
    request = urllib.request.Request(
        base + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=STEP_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.load(refusal)


async def handshake(base):
    user = f"py-hello-{RUN}"
    async with Client(base, user, "laptop") as client:
        expect("subprotocol", client.socket.subprotocol, "wsc.v1")
        hello = client.hello["data"]
        expect("user_id", hello["user_id"], user)
        expect("client_id", hello["client_id"], "laptop")
        for field in ("session", "node_id", "ping_interval_ms"):
            if not hello.get(field):
                raise Differs(f"no {field} in connected: {hello}")

    async with Client(base, user, subprotocols=()) as client:
        expect("subprotocol when none is offered", client.socket.subprotocol, None)

    async with Client(base, additional_headers={"X-User-ID": user, "X-Client-ID": "by header"}) as client:
        expect("user_id by header", client.hello["data"]["user_id"], user)
        expect("client_id by header", client.hello["data"]["client_id"], "by header")

    # GoHub's clients name the connection only, and are addressed by that name.
    async with Client(base, client=f"py-gohub-{RUN}", subprotocols=()) as client:
        expect("user_id of a client without one", client.hello["data"]["user_id"], f"py-gohub-{RUN}")


async def refusals(base):
    for what, options, status in (
        ("a reserved user id", {"user": "__hub"}, 400),
        ("a control character", {"user": "a\x07b"}, 400),
        ("an overlong id", {"user": "x" * 129}, 400),
        ("another origin", {"user": "py", "origin": "http://evil.example"}, 403),
        ("a null origin", {"user": "py", "origin": "null"}, 403),
    ):
        try:
            async with Client(base, **options):
                raise Differs(f"{what} was let in")
        except InvalidStatus as refusal:
            expect(f"status of {what}", refusal.response.status_code, status)
            error = json.loads(refusal.response.body)["error"]
            if not (isinstance(error["code"], int) and error["message"]):
                raise Differs(f"no code and message for {what}: {error}") from refusal


async def replies(base):
    async with Client(base, f"py-replies-{RUN}") as client:
        for message_id in (7, "seven"):
            await client.send("ping", {"ts": 1000}, message_id=message_id)
            pong = await client.receive("pong")
            expect("request_id", pong["request_id"], message_id)
            expect("rtt", pong["data"]["rtt"], pong["data"]["server_ts"] - 1000)
        await client.send("heartbeat")
        expect("request_id of a reply to no message_id", (await client.receive("pong")).get("request_id"), None)

        # The same JSON in a binary frame, and cut into fragments with a ping between them.
        ping = json.dumps({"message_type": "ping", "message_id": 1, "data": {"ts": 1}})
        await client.socket.send(ping.encode())
        expect("reply to a binary frame", (await client.receive("pong"))["request_id"], 1)
        await client.socket.send([ping[:5], ping[5:9], ping[9:]])
        expect("reply to fragments", (await client.receive("pong"))["request_id"], 1)

        async with asyncio.timeout(STEP_SECONDS):
            await (await client.socket.ping("are you there"))


async def rooms(base):
    room = f"py-room-{RUN}"
    alice_id, bob_id = f"py-alice-{RUN}", f"py-bob-{RUN}"
    async with Client(base, alice_id) as alice, Client(base, bob_id) as bob:
        await alice.refused("room_message", {"room_id": room, "content": "early"}, 3000)
        expect("join", await alice.request("join_room", {"room_id": room}, "room_joined"),
               {"room_id": room, "status": "joined"})
        await bob.refused("room_message", {"room_id": room, "content": "outside"}, 3003)
        await bob.request("join_room", {"room_id": room}, "room_joined")
        await bob.refused("join_room", {"room_id": room}, 3004)
        members = await bob.request("room_members", {"room_id": room}, "room_members")
        expect("members", sorted(m["user_id"] for m in members["members"]), sorted([alice_id, bob_id]))
        expect("total of members", members["total"], 2)

        # A sender cannot say who it is, and gets no copy of what it says.
        await alice.socket.send(
            f'{{"message_type":"room_message","message_id":"m","sender":"eve","sender_id":"eve",'
            f'"data":{{"room_id":"{room}","sender_id":"eve","content":{AWKWARD}}}}}'
        )
        accepted = await alice.receive("accepted")
        expect("recipients", accepted["data"]["recipients"], 1)
        text = await bob.raw()
        if f'"content":{AWKWARD}' not in text:
            raise Differs(f"the content is not byte for byte what was sent: {text}")
        heard = json.loads(text)
        expect("room of the delivery", heard["data"]["room_id"], room)
        expect("sender of the delivery", heard["data"]["sender_id"], alice_id)
        expect("id of the delivery", heard["id"], accepted["data"]["id"])
        expect("the two timestamps", heard["timestamp"], heard["data"]["timestamp"])
        await alice.silent()

        # Without a message_id nothing is answered; the order holds.
        for n in range(200):
            await alice.send("room_message", {"room_id": room, "content": n})
        for n in range(200):
            expect("order", (await bob.receive("room_message"))["data"]["content"], n)
        await alice.silent()

        await bob.request("leave_room", {"room_id": room}, "room_left")
        expect("recipients without bob",
               (await alice.request("room_message", {"room_id": room, "content": "gone?"}, "accepted"))["recipients"], 0)
        await bob.silent()

        await alice.request("create_room", {"room_id": f"{room}-made", "max_clients": 1}, "room_created")
        await alice.refused("create_room", {"room_id": f"{room}-made"}, 3001)
        await alice.request("join_room", {"room_id": f"{room}-made"}, "room_joined")
        await bob.refused("join_room", {"room_id": f"{room}-made"}, 3002)
        await alice.refused("leave_room", {"room_id": f"{room}-nowhere"}, 3000)


async def direct_messages(base):
    alice_id, bob_id = f"py-dm-alice-{RUN}", f"py-dm-bob-{RUN}"
    async with (
        Client(base, alice_id, "phone") as phone,
        Client(base, alice_id, "laptop") as laptop,
        Client(base, bob_id, "one") as one,
        Client(base, bob_id, "two") as two,
    ):
        sent = await phone.request("direct_message", {"target_id": bob_id, "content": {"text": "hi"}}, "accepted")
        # Whoever writes it may not be done when the answer is made.
        expect("outcome", sent["outcome"] in ("sent", "pending"), True)
        for device in (one, two):
            heard = await device.receive("direct_message")
            expect("direct message", heard["data"]["content"], {"text": "hi"})
            expect("its sender", heard["data"]["sender_id"], alice_id)
            expect("its id", heard["id"], sent["id"])
        echo = await laptop.receive("direct_message")
        expect("echo", (echo["data"]["echo"], echo["data"]["target_id"]), (True, bob_id))
        await phone.silent()

        await phone.request(
            "direct_message", {"target_id": bob_id, "target_client": "two", "content": "you only"}, "accepted"
        )
        expect("to one client", (await two.receive("direct_message"))["data"]["content"], "you only")
        await one.silent()

        away_id = f"py-away-{RUN}"
        stored = await one.request("direct_message", {"target_id": away_id, "content": "later"}, "accepted")
        expect("to somebody who is away", stored["outcome"], "stored")
        async with Client(base, away_id) as back:
            late = await back.receive("direct_message")
            expect("replay", (late["id"], late["source"], late["data"]["content"]), (stored["id"], "offline", "later"))
            await one.send("direct_message", {"target_id": away_id, "content": "sign"}, require_ack=True, receipt=True)
            heard = await back.receive("direct_message")
            expect("it wants to be acknowledged", heard["require_ack"], True)
            await back.send("ack", {"id": heard["id"]})
            outcome = await one.receive("message_outcome")
            expect("receipt", [r["outcome"] for r in outcome["data"]["recipients"]], ["acked"])
        await one.refused(
            "direct_message", {"target_id": alice_id, "target_client": "toaster", "content": 1}, 4000
        )


async def pushes(base):
    user = f"py-push/{RUN} é"
    path = f"/api/users/{urllib.parse.quote(user, safe='')}/messages"
    async with Client(base, user) as client:
        status, answer = await asyncio.to_thread(post, base, path, {"content": {"n": 1}})
        expect("push", (status, answer["outcome"] in ("sent", "pending")), (202, True))
        heard = await client.receive("user_message")
        expect("pushed content", heard["data"]["content"], {"n": 1})
        expect("sender of a push", heard["data"]["sender_id"], "system")
        expect("id of a push", heard["id"], answer["id"])

        status, answer = await asyncio.to_thread(post, base, "/api/broadcast", {"message": "to everybody"})
        expect("broadcast", status // 100, 2)
        expect("broadcast content", (await client.receive("broadcast"))["data"]["content"], "to everybody")
        status, answer = await asyncio.to_thread(post, base, path, {"contents": 1})
        expect("an unknown field", (status, "contents" in answer["error"]["message"]), (400, True))
    status, answer = await asyncio.to_thread(post, base, f"/api/users/py-gone-{RUN}/messages", {"content": 1})
    expect("push to nobody", (status, answer["outcome"]), (202, "stored"))


async def replacement(base):
    user = f"py-replace-{RUN}"
    async with Client(base, user, "only") as old:
        async with Client(base, user, "only") as new:
            code, reason = await old.closed()
            expect("close code of the replaced", code, 3502)
            expect("its advice", json.loads(reason)["reconnect"], False)
            await new.silent()
        async with Client(base, f"{user}-other", "only") as other, Client(base, user, "only") as again:
            # Equal client ids of two users have nothing to do with each other.
            await other.silent()
            await again.silent()


async def bad_frames(base):
    async with Client(base, f"py-bad-{RUN}") as client:
        for text in ("{", "[]", "null", '"text"', '{"message_type":1}', '{"message_type":"ping","data":{"a":"\\ud800"}}',
                     '{"message_type":"ping","data":' + "[" * 70 + "]" * 70 + "}"):
            await client.socket.send(text)
            expect(f"answer to {text[:40]}", (await client.receive("error"))["data"]["code"], 1001)
        await client.silent()
        # Well formed but unheard of: an error, though not one of the bad frames that end a connection.
        for _ in range(12):
            await client.refused("no_such_type", {}, 1001)
        for n in range(10):
            await client.socket.send("bad")
            expect(f"answer to bad frame {n}", (await client.receive("error"))["data"]["code"], 1001)
        expect("close after ten bad frames", (await client.closed())[0], 3509)

    async with Client(base, f"py-long-{RUN}") as client:
        await client.socket.send(json.dumps({"message_type": "ping", "data": {"pad": "x" * 70_000}}))
        expect("close after an oversize frame", (await client.closed())[0], 1009)

    async with Client(base, f"py-bye-{RUN}") as client:
        await client.socket.close(1000, "bye")
        expect("answer to a close", client.socket.close_code, 1000)


async def main(base):
    async with asyncio.timeout(WHOLE_SECONDS):
        for part in (handshake, refusals, replies, rooms, direct_messages, pushes, replacement, bad_frames):
            try:
                await part(base)
            except Exception as difference:
                difference.add_note(f"in {part.__name__}")
                raise
            print(f"ok {part.__name__}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: chat.py http://HOST:PORT [compressed]")
    try:
        asyncio.run(main(sys.argv[1].rstrip("/")))
    except Differs as difference:
        sys.exit("\n".join([f"differs: {difference}", *getattr(difference, "__notes__", [])]))
