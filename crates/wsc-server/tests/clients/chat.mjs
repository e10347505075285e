// Talks to a hub with npm's `ws`: node chat.mjs http://127.0.0.1:8080 [compressed]
//
// The hub runs with its default settings and authentication off; with `compressed`, with `compression.enabled`. Exits 0
// when everything was as docs/protocol.md says, else prints what differed and exits 1. Ids carry the process id, so that a hub may be used twice.

import process from 'node:process';
import { Differs, expect, load, run } from './tools.mjs';

const WebSocket = load('ws');

const STEP_MS = 10000;
const RUN = process.pid;
const COMPRESSED = process.argv.includes('compressed');

function patiently(what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Differs(`no ${what} in ${STEP_MS} ms`)), STEP_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** One connection: what came in waits in order until somebody asks for it. */
class Client {
  static async connect(base, query, { subprotocols = ['wsc.v1'], ...options } = {}) {
    const client = new Client();
    const url = `${base.replace(/^http/, 'ws')}/ws?${new URLSearchParams(query)}`;
    // The defaults of the package offer permessage-deflate, as a browser does.
    const socket = new WebSocket(url, subprotocols, options);
    client.socket = socket;
    client.lastId = 0;
    client.inbox = [];
    client.waiting = [];
    socket.on('message', (data, binary) => client.arrived({ text: data.toString(), binary }));
    socket.on('close', (code, reason) => client.arrived({ code, reason: reason.toString() }));
    await patiently('open', new Promise((resolve, reject) => {
      socket.on('open', resolve);
      socket.on('unexpected-response', (_, response) => {
        let body = '';
        response.on('data', (chunk) => { body += chunk; });
        response.on('end', () => reject(Object.assign(new Differs(`refused with ${response.statusCode}: ${body}`),
          { status: response.statusCode, headers: response.headers, body })));
      });
      socket.on('error', reject);
    }));
    expect('compression agreed on', socket.extensions.includes('permessage-deflate'), COMPRESSED);
    client.hello = (await client.receive('connected')).data;
    return client;
  }

  arrived(item) {
    const waiter = this.waiting.shift();
    if (waiter) waiter(item); else this.inbox.push(item);
  }

  next(what) {
    if (this.inbox.length > 0) return Promise.resolve(this.inbox.shift());
    return patiently(what, new Promise((resolve) => this.waiting.push(resolve)));
  }

  async receive(type) {
    const item = await this.next(type);
    if (item.text === undefined) throw new Differs(`wanted ${type}, got close ${item.code} ${item.reason}`);
    const frame = { ...JSON.parse(item.text), text: item.text };
    if (frame.message_type !== type) throw new Differs(`wanted ${type}, got ${item.text}`);
    expect('text frames only', item.binary, false);
    return frame;
  }

  /** The close frame, which has to come before any further message. */
  async closed() {
    const item = await this.next('close');
    if (item.code === undefined) throw new Differs(`wanted a close, got ${item.text}`);
    return item;
  }

  send(type, data, envelope = {}) {
    this.socket.send(JSON.stringify({ message_type: type, ...envelope, data }));
  }

  async request(type, data, reply) {
    const id = ++this.lastId;
    this.send(type, data, { message_id: id });
    const frame = await this.receive(reply);
    expect(`request_id of the reply to ${type}`, frame.request_id, id);
    return frame.data;
  }

  async refused(type, data, code) {
    expect(`error code of ${type}`, (await this.request(type, data, 'error')).code, code);
  }

  /** Nothing was queued for this connection: the next frame is the answer to a ping. */
  async silent() {
    await this.request('ping', { ts: 1 }, 'pong');
  }

  async bye() {
    this.socket.close(1000);
    expect('answer to a close', (await this.closed()).code, 1000);
  }
}

async function api(base, method, path, body) {
  const response = await fetch(base + path, {
    method,
    headers: body === undefined ? {} : { 'content-type': 'application/json' },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(STEP_MS),
  });
  const text = await response.text();
  return { status: response.status, body: text ? JSON.parse(text) : undefined };
}

async function handshake(base) {
  const client = await Client.connect(base, { user_id: `js-${RUN}`, client_id: 'tab' });
  expect('subprotocol', client.socket.protocol, 'wsc.v1');
  expect('hello', [client.hello.user_id, client.hello.client_id], [`js-${RUN}`, 'tab']);
  await client.bye();

  const chosen = await Client.connect(base, { user_id: `js-${RUN}` }, { subprotocols: ['other', 'wsc.v1'] });
  expect('subprotocol out of two', chosen.socket.protocol, 'wsc.v1');
  await chosen.bye();

  for (const [options, query, status] of [
    [{ origin: 'http://evil.example' }, {}, 403],
    [{}, { user_id: 'anon:me' }, 400],
    [{}, { user_id: 'wsc.me' }, 400],
  ]) {
    const refusal = await Client.connect(base, query, options).then(
      () => { throw new Differs(`${JSON.stringify([options, query])} was let in`); },
      (error) => error,
    );
    expect(`refusal of ${JSON.stringify([options, query])}`, refusal.status, status);
    expect('a code in the refusal', typeof JSON.parse(refusal.body).error.code, 'number');
  }
  const own = await Client.connect(base, { user_id: `js-${RUN}` }, { origin: base });
  await own.bye();
}

async function rooms(base) {
  const room = `js-room-${RUN}`;
  const [alice, bob, carol] = await Promise.all(
    ['alice', 'bob', 'carol'].map((name) => Client.connect(base, { user_id: `js-${name}-${RUN}` })));
  for (const member of [alice, bob, carol]) await member.request('join_room', { room_id: room }, 'room_joined');

  const content = { text: 'grüße, 世界 🌍', numbers: [1, 2.5, -0], nothing: null };
  const accepted = await alice.request('room_message', { room_id: room, content }, 'accepted');
  expect('recipients', accepted.recipients, 2);
  for (const member of [bob, carol]) {
    const heard = await member.receive('room_message');
    expect('content', heard.data.content, content);
    expect('sender', heard.data.sender_id, `js-alice-${RUN}`);
    expect('id', heard.id, accepted.id);
  }
  await alice.silent();

  // Two talk at once, with messages of every size: each one's order holds at the third.
  const each = 100;
  for (let n = 0; n < each; n += 1) {
    for (const member of [alice, bob]) member.send('room_message', { room_id: room, content: { n, pad: '·'.repeat(n) } });
  }
  const seen = { [`js-alice-${RUN}`]: 0, [`js-bob-${RUN}`]: 0 };
  for (let n = 0; n < 2 * each; n += 1) {
    const { data } = await carol.receive('room_message');
    expect(`order of ${data.sender_id}`, data.content.n, seen[data.sender_id]);
    seen[data.sender_id] += 1;
  }
  for (const member of [alice, bob]) {
    for (let n = 0; n < each; n += 1) await member.receive('room_message');
    await member.silent();
  }

  // Who disconnects is out; the last one takes the room along.
  await bob.bye();
  carol.socket.terminate();
  await carol.closed();
  for (;;) {
    const { total } = await alice.request('room_members', { room_id: room }, 'room_members');
    if (total === 1) break;
  }
  await alice.request('leave_room', { room_id: room }, 'room_left');
  await alice.refused('room_message', { room_id: room, content: 'anyone?' }, 3000);
  await alice.bye();
}

async function frames(base) {
  const client = await Client.connect(base, { user_id: `js-frames-${RUN}` });
  const ping = JSON.stringify({ message_type: 'ping', message_id: 'f', data: { ts: 1, pad: 'é'.repeat(9) } });
  const bytes = Buffer.from(ping);

  // Fragments may cut a character in two; a control frame may stand between them.
  const half = bytes.indexOf(Buffer.from('é')) + 1;
  client.socket.send(bytes.subarray(0, half), { fin: false, binary: false });
  client.socket.ping('between');
  client.socket.send(bytes.subarray(half), { fin: true, binary: false });
  await patiently('pong', new Promise((resolve) => client.socket.once('pong', resolve)));
  expect('reply to fragments', (await client.receive('pong')).request_id, 'f');

  client.socket.send(bytes, { binary: true });
  expect('reply to a binary frame', (await client.receive('pong')).request_id, 'f');

  const big = 'é'.repeat(30000);
  const other = await Client.connect(base, { user_id: `js-frames-other-${RUN}` });
  await client.request('direct_message', { target_id: other.hello.user_id, content: big }, 'accepted');
  expect('a long message', (await other.receive('direct_message')).data.content === big, true);
  await other.bye();
  await client.bye();

  for (const [what, code, send] of [
    ['invalid UTF-8', 1007, (socket) => socket.send(Buffer.from([0x22, 0xff, 0x22]), { binary: false })],
    ['an unmasked frame', 1002, (socket) => socket.send('{}', { mask: false })],
    ['an oversize frame', 1009, (socket) => socket.send(JSON.stringify({ message_type: 'x'.repeat(70000) }))],
  ]) {
    const rude = await Client.connect(base, { user_id: `js-rude-${RUN}` });
    send(rude.socket);
    expect(`close after ${what}`, (await rude.closed()).code, code);
  }
}

async function devices(base) {
  const user = `js-devices-${RUN}`;
  const phone = await Client.connect(base, { user_id: user, client_id: 'phone' });
  const laptop = await Client.connect(base, { user_id: user, client_id: 'laptop' });
  const other = await Client.connect(base, { user_id: `${user}-other` });

  const sent = await other.request('direct_message', { target_id: user, content: [1] }, 'accepted');
  // Whoever writes it may not be done when the answer is made.
  expect('outcome', ['sent', 'pending'].includes(sent.outcome), true);
  for (const device of [phone, laptop]) {
    const heard = await device.receive('direct_message');
    expect('direct message', [heard.id, heard.data.content, heard.data.sender_id], [sent.id, [1], `${user}-other`]);
  }

  const again = await Client.connect(base, { user_id: user, client_id: 'phone' });
  const { code, reason } = await phone.closed();
  expect('close of the replaced', [code, JSON.parse(reason).reconnect], [3502, false]);

  const path = `/api/users/${encodeURIComponent(user)}`;
  const { status, body } = await api(base, 'GET', path);
  expect('the user', [status, body.online], [200, true]);
  const kicked = await api(base, 'POST', `${path}/disconnect`, { reason: 'enough', notify: true });
  expect('kick', Math.floor(kicked.status / 100), 2);
  for (const device of [again, laptop]) {
    expect('kick_out', (await device.receive('kick_out')).data.reason, 'enough');
    expect('close of the kicked', (await device.closed()).code, 3503);
  }
  await other.silent();
  await other.bye();
}

async function pushes(base) {
  const user = `js-push-${RUN}`;
  const room = `js-push-room-${RUN}`;
  const modern = await Client.connect(base, { user_id: user });
  const plain = await Client.connect(base, { user_id: `${user}-plain` }, { subprotocols: [] });
  await modern.request('join_room', { room_id: room }, 'room_joined');

  const pushed = await api(base, 'POST', `/api/rooms/${room}/messages`, { content: 'to the room' });
  expect('room push', [pushed.status, pushed.body.recipients], [202, 1]);
  const heard = await modern.receive('room_message');
  expect('room push content', [heard.data.content, heard.data.room_id, heard.id], ['to the room', room, pushed.body.id]);

  // GoHub's broadcast: raw text to those who offered no subprotocol.
  const broadcast = await api(base, 'POST', '/api/broadcast', { message: 'noon' });
  expect('broadcast', Math.floor(broadcast.status / 100), 2);
  expect('broadcast with wsc.v1', (await modern.receive('broadcast')).data.content, 'noon');
  expect('broadcast without', (await plain.next('raw text')).text, 'noon');

  const stats = await api(base, 'GET', '/api/stats');
  expect('stats', [stats.status, stats.body.clients >= 2, stats.body.rooms >= 1], [200, true, true]);
  await modern.bye();
  await plain.bye();
}

run([handshake, rooms, frames, devices, pushes], 60000);
