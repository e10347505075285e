// A page of another origin tries to reach a hub, in headless Chromium: node foreign.mjs http://127.0.0.1:8080
//
// Exits 0 when the page got nothing, in every way that a browser has to send a request. WSC_TOKEN is a token that the
// page has got hold of, where the hub wants one. CHROMIUM names another browser than /usr/bin/chromium.

import http from 'node:http';
import process from 'node:process';
import { Differs, expect, load, run } from './tools.mjs';

const { chromium } = load('playwright-core');
const TOKEN = process.env.WSC_TOKEN ?? '';

/** Serves an empty page at this name; gives its origin. A script may do there what a stranger's page may. */
async function stranger(host) {
  const server = http.createServer((_, response) => {
    response.setHeader('content-type', 'text/html');
    response.end('<!doctype html><title>stranger</title><body></body>');
  });
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
  return { origin: `http://${host}:${server.address().port}`, close: () => server.close() };
}

/** Of another site: whatever the browser sends is refused. To a browser localhost and 127.0.0.1 are two sites. */
const foreignSite = (base) => foreignPage(base, 'localhost', (line) => /^4\d\d /.test(line));

/**
 * Of another port of the same machine, which is the same site: a plain GET without an Origin is answered, since nothing
 * tells it from a link that somebody clicked. The page does not see the answer, and what changes something is refused.
 */
const foreignPort = (base) => foreignPage(base, '127.0.0.1', (line) => /^4\d\d |^200 GET /.test(line));

/** A page at this host tries everything; `isHarmless` says which answers it may have caused. */
async function foreignPage(base, host, isHarmless) {
  const { origin, close } = await stranger(host);
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    // Chromium's own sandbox does not start as root, as in a container.
    args: process.getuid?.() === 0 ? ['--no-sandbox'] : [],
  });
  const context = await browser.newContext();
  context.setDefaultTimeout(10000);

  // What the hub answered, whatever the page was allowed to see of it.
  const statuses = [];
  context.on('response', (response) => {
    if (response.url().startsWith(base)) statuses.push(`${response.status()} ${response.request().method()} ${response.url()}`);
  });

  const page = await context.newPage();
  await page.goto(origin);
  const tried = await page.evaluate(attack, { base, token: TOKEN });
  expect('what the page could do', tried.filter(({ got }) => got !== 'nothing'), []);

  // The same from a frame without an origin ("null"), and from a page that calls the hub by another name.
  await page.setContent(`<iframe sandbox="allow-scripts allow-forms" srcdoc="<p>sandboxed</p>"></iframe>`);
  const frame = await (await page.waitForSelector('iframe')).contentFrame();
  const sandboxed = await frame.evaluate(attack, { base, token: TOKEN });
  expect('what a sandboxed frame could do', sandboxed.filter(({ got }) => got !== 'nothing'), []);

  // Forms and links need no script and no permission; they are answered with a refusal.
  await page.goto(origin);
  await page.evaluate((url) => {
    const form = document.createElement('form');
    Object.assign(form, { method: 'post', action: url, enctype: 'text/plain' });
    const field = document.createElement('input');
    Object.assign(field, { name: '{"content":"', value: '"}' });
    form.append(field);
    document.body.append(form);
    form.submit();
  }, `${base}/api/broadcast`);
  await page.waitForURL(`${base}/api/broadcast`);
  if (!(await page.textContent('body')).includes('"error"')) throw new Differs('a form was taken');

  const open = statuses.filter((line) => !isHarmless(line));
  expect('requests that were not refused', open, []);
  if (statuses.length < 10) throw new Differs(`only ${statuses.length} requests reached the hub: ${statuses.join('; ')}`);

  // The hub's own page is not foreign: the sockets there work, so it was not the browser that was broken.
  await page.goto(`${base}/health/live`);
  const own = await page.evaluate(socket, { url: `${base.replace('http', 'ws')}/ws?token=${TOKEN}` });
  expect('a socket of the same origin', own, 'open');

  await browser.close();
  close();

  /** Runs in the page: opens a socket and says what became of it. */
  function socket({ url }) {
    return new Promise((done) => {
      const socket = new WebSocket(url);
      socket.onmessage = () => { done('open'); socket.close(); };
      socket.onclose = () => done('nothing');
    });
  }

  /** Runs in the page: everything that a script can send. */
  async function attack({ base, token }) {
    const tried = [];
    const note = (what, got) => tried.push({ what, got });
    const hub = base.replace('http', 'ws');
    for (const protocols of [[], ['wsc.v1']]) {
      const got = await new Promise((done) => {
        const socket = new WebSocket(`${hub}/ws?user_id=alice&token=${token}`, protocols);
        socket.onopen = () => done('an open socket');
        socket.onclose = () => done('nothing');
      });
      note(`socket ${protocols}`, got);
    }
    const json = { 'content-type': 'application/json' };
    const bearer = token ? { authorization: `Bearer ${token}` } : {};
    for (const path of ['/api/stats', '/api/clients', '/metrics', '/debug/hub/status', '/health', '/openapi.json', '/']) {
      for (const options of [{}, { mode: 'no-cors' }, { headers: bearer }, { credentials: 'include' }]) {
        try {
          const response = await fetch(base + path, { ...options, signal: AbortSignal.timeout(5000) });
          const text = await response.text();
          note(`GET ${path} ${JSON.stringify(options)}`, text === '' ? 'nothing' : text);
        } catch { note(`GET ${path}`, 'nothing'); }
      }
    }
    for (const options of [
      { body: '{"content":1}' },
      { body: '{"content":1}', mode: 'no-cors' },
      { body: '{"content":1}', headers: { ...json, ...bearer } },
      { body: new Blob(['{"content":1}'], { type: 'text/plain' }), mode: 'no-cors' },
      { body: new URLSearchParams({ content: 1 }), mode: 'no-cors' },
    ]) {
      for (const path of ['/api/broadcast', '/api/users/alice/messages', '/api/admin/config/reload', '/api/tokens/revoke']) {
        try {
          const response = await fetch(base + path, { method: 'POST', ...options, signal: AbortSignal.timeout(5000) });
          note(`POST ${path}`, response.type === 'opaque' ? 'nothing' : `${response.status}`);
        } catch { note(`POST ${path}`, 'nothing'); }
      }
    }
    navigator.sendBeacon?.(`${base}/api/broadcast`, '{"content":1}');
    for (const [tag, attribute] of [['img', 'src'], ['script', 'src'], ['iframe', 'src']]) {
      const element = document.createElement(tag);
      const got = new Promise((done) => {
        // A frame loads its error page, too; what it shows is not for the script to see.
        element.onload = () => done(tag === 'iframe' ? 'nothing' : 'loaded');
        element.onerror = () => done('nothing');
      });
      element[attribute] = `${base}/api/stats`;
      document.body.append(element);
      note(tag, await got);
    }
    return tried;
  }
}

run([foreignSite, foreignPort], 100000);
