// Drives the demo page in headless Chromium: node browser.mjs http://127.0.0.1:8080
//
// The hub runs with its default settings and authentication off. Exits 0 when the page and the hub did what they
// promise, else prints what differed and exits 1. CHROMIUM names another browser than /usr/bin/chromium.

import crypto from 'node:crypto';
import http from 'node:http';
import process from 'node:process';
import { Differs, expect, load, run } from './tools.mjs';

const { chromium } = load('playwright-core');

const STEP_MS = 10000;
const RUN = process.pid;

let browser;

async function open(base, { before } = {}) {
  browser ??= await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    // Chromium's own sandbox does not start as root, as in a container.
    args: process.getuid?.() === 0 ? ['--no-sandbox'] : [],
  });
  const context = await browser.newContext();
  context.setDefaultTimeout(STEP_MS);
  const page = await context.newPage();
  const complaints = [];
  page.on('pageerror', (error) => complaints.push(`script: ${error.message}`));
  page.on('console', (message) => {
    if (message.type() === 'error') complaints.push(`console: ${message.text()}`);
  });
  await before?.(page);
  await page.goto(base);
  return { page, complaints, close: () => context.close() };
}

const at = (page, who, name) => page.locator(`#${who} [data-test="${name}"]`);
const message = (page, who, type, text) =>
  at(page, who, 'messages').locator(`li[data-type="${type}"]`, { hasText: text });
const state = (page, who, name) => page.locator(`#${who} [data-test="state"][data-state="${name}"]`).waitFor();

/** Names nobody else on this hub has, a room likewise; both in it. */
async function settle(page, suffix) {
  const names = { alice: `alice-${suffix}-${RUN}`, bob: `bob-${suffix}-${RUN}` };
  await page.locator('#room').fill(`room-${suffix}-${RUN}`);
  for (const [who, name] of Object.entries(names)) {
    await at(page, who, 'name').fill(name);
    await at(page, who, 'name').press('Enter');
  }
  for (const who of Object.keys(names)) {
    await state(page, who, 'connected');
    await page.locator(`#${who} [data-joined="room-${suffix}-${RUN}"]`).waitFor();
  }
  return names;
}

/** The page's own policy covers its one script and its one style, and the server sends a policy as well. */
async function policy(base) {
  const response = await fetch(base, { signal: AbortSignal.timeout(STEP_MS) });
  const text = await response.text();
  expect('status of the page', response.status, 200);
  const meta = /http-equiv="Content-Security-Policy" content="([^"]*)"/.exec(text)?.[1] ?? '';
  const wrong = [];
  for (const tag of ['script', 'style']) {
    const body = new RegExp(`<${tag}>([^]*?)</${tag}>`).exec(text)?.[1] ?? '';
    const hash = `'sha256-${crypto.createHash('sha256').update(body).digest('base64')}'`;
    if (!meta.includes(`${tag}-src ${hash};`)) wrong.push(`${tag}-src ${hash}`);
  }
  if (wrong.length > 0) throw new Differs(`the page was edited; its policy has to say: ${wrong.join('; ')}`);

  const header = response.headers.get('content-security-policy') ?? '';
  for (const directive of ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"]) {
    if (!header.includes(directive)) throw new Differs(`no ${directive} in the policy that is sent: "${header}"`);
  }
  expect('type', response.headers.get('content-type')?.startsWith('text/html'), true);
  expect('nosniff', response.headers.get('x-content-type-options'), 'nosniff');
}

async function chat(base) {
  const { page, complaints, close } = await open(base);
  for (const who of ['alice', 'bob']) await state(page, who, 'connected');
  const names = await settle(page, 'chat');

  // Each hears the other in the room, and what the sender sees is the hub's answer.
  await at(page, 'alice', 'text').fill('<b>hello</b> & grüße 🌍');
  await at(page, 'alice', 'send-room').click();
  await message(page, 'bob', 'room_message', `<b>hello</b> & grüße 🌍${names.alice} in room-chat-${RUN}`).waitFor();
  await message(page, 'alice', 'room_message', '1 recipient').waitFor();
  await at(page, 'bob', 'text').fill('hello yourself');
  await at(page, 'bob', 'text').press('Enter');
  await message(page, 'alice', 'room_message', 'hello yourself').waitFor();

  await at(page, 'bob', 'text').fill('between us');
  await at(page, 'bob', 'send-direct').click();
  await message(page, 'alice', 'direct_message', `between us${names.bob}`).waitFor();
  await at(page, 'bob', 'messages').locator('li[data-outcome="sent"]', { hasText: 'between us' }).waitFor();

  // The push goes through fetch, as a program's would through curl.
  expect('curl line', (await page.locator('#curl').textContent()).includes(`${base}/api/users/${names.alice}/messages`), true);
  await page.locator('#push').click();
  await message(page, 'alice', 'user_message', 'hello from a program').waitFor();
  await page.locator('#push-result', { hasText: '202' }).waitFor();

  // Errors are shown with code and text; the raw frames are there to read.
  await at(page, 'alice', 'join').click();
  await page.locator('#alice [data-test="join"][data-joined=""]').waitFor();
  await at(page, 'alice', 'text').fill('from outside');
  await at(page, 'alice', 'send-room').click();
  await message(page, 'alice', 'room_message', 'error 3003').waitFor();
  const frames = (way, type) => at(page, 'alice', 'frames').locator(`li[data-way="${way}"][data-type="${type}"]`);
  await frames('received', 'connected').first().waitFor({ state: 'attached' });
  await frames('sent', 'leave_room').first().waitFor({ state: 'attached' });
  await frames('received', 'error').first().waitFor({ state: 'attached' });

  await page.locator('#alice details > summary').first().click();
  await at(page, 'alice', 'raw').fill('no json');
  await at(page, 'alice', 'send-raw').click();
  await at(page, 'alice', 'messages').locator('li[data-kind="error"]', { hasText: 'error 1001' }).waitFor();

  await at(page, 'alice', 'connect').click();
  await state(page, 'alice', 'stopped');
  await at(page, 'alice', 'connect').click();
  await state(page, 'alice', 'connected');

  // Kicked for good: the page says why, and stays away.
  const kicked = await page.evaluate(async (name) => (await fetch(`/api/users/${name}/disconnect`, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"reason":"enough"}',
  })).status, names.bob);
  expect('kick', Math.floor(kicked / 100), 2);
  await page.locator('#bob [data-test="state"][data-state="stopped"]', { hasText: '3503' }).waitFor();

  expect('complaints of the browser', complaints, []);
  await close();
}

/** The page obeys the number of a close frame; here the frames come from a stand-in between page and hub. */
async function closeCodes(base) {
  const attempts = [];
  let script = [];
  const { page, complaints, close } = await open(base, {
    before: (target) => target.routeWebSocket(/\/ws\?/, (socket) => {
      const who = new URL(socket.url()).searchParams.get('user_id');
      attempts.push({ who, at: Date.now() });
      const next = who === 'bob' ? undefined : script.shift();
      if (next) socket.close(next); else socket.connectToServer();
    }),
  });
  await state(page, 'alice', 'connected');
  const count = () => attempts.filter(({ who }) => who === 'alice').length;

  async function again(codes) {
    await at(page, 'alice', 'connect').click();
    await state(page, 'alice', 'stopped');
    script = codes;
    const before = count();
    await at(page, 'alice', 'connect').click();
    return before;
  }

  let before = await again([
    { code: 3001, reason: '{"reason":"shutting down","reconnect":true,"retry_after_ms":1200}' },
    { code: 1013, reason: '' },
    { code: 4000, reason: 'not json' },
  ]);
  await state(page, 'alice', 'connected');
  expect('attempts after 3001, 1013 and 4000', count() - before, 4);
  const [first, second] = attempts.filter(({ who }) => who === 'alice').slice(before);
  if (second.at - first.at < 1200) throw new Differs(`came back after ${second.at - first.at} ms of retry_after_ms 1200`);

  for (const code of [1009, 3500, 3509, 4500]) {
    before = await again([{ code, reason: '{"reason":"the reason","reconnect":false}' }]);
    await page.locator('#alice [data-test="state"][data-state="stopped"]', { hasText: `${code} the reason` }).waitFor();
    expect(`attempts after ${code}`, count() - before, 1);
    await at(page, 'alice', 'connect').click();
    await state(page, 'alice', 'connected');
  }
  expect('complaints of the browser', complaints, []);
  await close();
}

/** A page from another port of the same machine gets neither a socket nor an answer. */
async function otherOrigin(base) {
  const elsewhere = http.createServer((_, response) => {
    response.writeHead(200, { 'content-type': 'text/html' });
    response.end('<!doctype html><title>elsewhere</title>');
  });
  await new Promise((resolve) => elsewhere.listen(0, '127.0.0.1', resolve));
  const { page, close } = await open(`http://127.0.0.1:${elsewhere.address().port}/`);
  const statuses = [];
  page.on('response', (response) => statuses.push(response.status()));

  for (const protocols of [['wsc.v1'], []]) {
    const outcome = await page.evaluate(([url, offered]) => new Promise((resolve) => {
      const socket = new WebSocket(url, offered);
      socket.onopen = () => resolve('open');
      socket.onclose = (event) => resolve(event.code);
    }), [`${base.replace('http', 'ws')}/ws?user_id=evil`, protocols]);
    expect(`socket from another origin, offering ${JSON.stringify(protocols)}`, outcome, 1006);
  }

  const fetched = (path, options) => page.evaluate(
    ([url, given]) => fetch(url, given).then((response) => response.type, () => 'refused'), [base + path, options]);
  expect('fetch of /api/stats', await fetched('/api/stats', {}), 'refused');
  // What a script may send without asking first, a form could send as well: the hub has to refuse it by itself.
  expect('opaque post', await fetched(`/api/users/bob-${RUN}/messages`,
    { method: 'POST', mode: 'no-cors', body: '{"content":"forged"}' }), 'opaque');
  if (statuses.length === 0 || statuses.some((status) => status !== 403)) {
    throw new Differs(`the hub answered another origin with ${JSON.stringify(statuses)}`);
  }
  await close();
  elsewhere.closeAllConnections();
  elsewhere.close();
}

async function phone(base) {
  const { page, complaints, close } = await open(base, {
    before: (target) => target.setViewportSize({ width: 360, height: 740 }),
  });
  await state(page, 'bob', 'connected');
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  expect('sideways overflow on a phone', overflow, 0);
  expect('complaints of the browser', complaints, []);
  await close();
  await browser.close();
}

run([policy, chat, closeCodes, otherOrigin, phone], 90000);
