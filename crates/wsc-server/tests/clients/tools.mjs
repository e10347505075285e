// What the two Node clients share: the packages that .ci/setup installed, and how a difference is reported.

import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import path from 'node:path';
import process from 'node:process';

const repository = fileURLToPath(new URL('../../../../', import.meta.url));
const tools = process.env.WSC_CI_TOOLS ?? path.join(repository, 'target', 'ci-tools');

/** Loads a package that .ci/setup has put beside the repository's build, not into it. */
export const load = createRequire(path.join(tools, 'node', 'package.json'));

/** The hub did something else than its protocol says. */
export class Differs extends Error {}

export function expect(what, got, wanted) {
  const [g, w] = [JSON.stringify(got), JSON.stringify(wanted)];
  if (g !== w) throw new Differs(`${what}: got ${g}, wanted ${w}`);
}

/** Runs the parts one after the other against the hub that the command line names, bounded in time. */
export async function run(parts, wholeMs) {
  const base = process.argv[2]?.replace(/\/$/, '');
  if (!base) {
    console.error(`usage: ${path.basename(process.argv[1])} http://HOST:PORT [compressed]`);
    process.exit(1);
  }
  let running = 'nothing';
  setTimeout(() => {
    console.error(`differs: not done after ${wholeMs} ms, in ${running}`);
    process.exit(1);
  }, wholeMs);
  for (const part of parts) {
    running = part.name;
    try {
      await part(base);
    } catch (error) {
      const text = error instanceof Differs ? `differs: ${error.message}` : error.stack;
      console.error(`${text}\nin ${running}`);
      process.exit(1);
    }
    console.log(`ok ${running}`);
  }
  process.exit(0);
}
