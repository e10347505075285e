// A receiver of webhooks with nothing but Node: node receiver.mjs SECRET
//
// Prints the port that it listens on, then one line for each event whose request is signed with the secret
// (Standard Webhooks): its type and its user. A request that is not is answered with 401 and said as `refused`.

import { createHmac, timingSafeEqual } from 'node:crypto';
import http from 'node:http';
import process from 'node:process';

const key = Buffer.from(process.argv[2].replace(/^whsec_/, ''), 'base64');

function isGenuine(headers, body) {
  const age = Math.abs(Date.now() / 1000 - Number(headers['webhook-timestamp']));
  const signed = `${headers['webhook-id']}.${headers['webhook-timestamp']}.${body}`;
  const mine = createHmac('sha256', key).update(signed).digest();
  const theirs = headers['webhook-signature'].split(' ').map((one) => Buffer.from(one.replace(/^v1,/, ''), 'base64'));
  return age < 300 && theirs.some((one) => one.length === mine.length && timingSafeEqual(one, mine));
}

const server = http.createServer((request, response) => {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    const body = Buffer.concat(parts).toString('utf8');
    const genuine = isGenuine(request.headers, body);
    response.writeHead(genuine ? 204 : 401).end();
    if (!genuine) return console.log('refused');
    for (const event of JSON.parse(body).events) console.log(`${event.type} ${event.data.user_id ?? '-'}`);
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
