// The measuring page's side of the protocol with the server that served it: ppexport/backends/web/run_session.py.

import { sha256 } from "./sha256.mjs";

/** Milliseconds between two attempts to reach the server, at first and at most. */
const SOON = 500, LATE = 10_000;
/** Milliseconds after which an answer is not waited for any more; the server answers within 20 seconds. */
const PATIENCE = 60_000;

const base = new URL(".", location.href);
const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** The server does not accept what this page sends, for a reason in its own words; `answer` is all it said. */
export class Refused extends Error {
  constructor(answer) {
    super(answer.error ?? "The computer does not accept this page");
    this.answer = answer;
  }
}

/** Which client this page is. `complain` receives what is wrong with the connection, and "" once nothing is. */
export const connection = { client: "", attempt: 0, complain: () => {} };

/** The answer to a request, which is repeated until the server gives one. */
async function answerTo(path, options) {
  for (let wait = SOON; ; wait = Math.min(2 * wait, LATE)) {
    let why = "the connection failed";
    try {
      const response = await fetch(new URL(path, base), { ...options, signal: AbortSignal.timeout(PATIENCE) });
      const content = new Uint8Array(await response.arrayBuffer());
      if (response.ok || (response.status < 500 && ![404, 408, 429].includes(response.status))) {
        connection.complain("");
        return { ok: response.ok, content };
      }
      if (response.status === 404 && options.gone) return null;
      why = `it answers ${response.status}`;
    } catch { /* No connection, or none for long enough. */ }
    connection.complain(`The computer cannot be reached (${why}). Trying again for as long as this page is open: is it on, and in the same network?`);
    await sleep(wait);
  }
}

/** The JSON that a request is answered with. Raises Refused. */
async function asked(path, options) {
  const { ok, content } = await answerTo(path, { method: "POST", ...options });
  let answer = {};
  try {
    answer = JSON.parse(new TextDecoder().decode(content));
  } catch { /* An error page of something between here and there. */ }
  if (!ok) throw new Refused(answer);
  return answer;
}

/** The JSON that the server answers to `data` of this client. Raises Refused. */
export function post(path, data = {}) {
  const { client, attempt } = connection;
  return asked(path, { body: JSON.stringify({ client, attempt, ...data }) });
}

/**
 * Becomes the server's client, again if this page was loaded before: the server gave it a secret, which is kept for
 * this address. Private windows keep nothing, and are another client when they are loaded again.
 * @param {object} facts about the browser
 * @returns {Promise<{device: string, threads: number}>} what to compute with
 */
export async function begin(facts) {
  try {
    connection.client = localStorage.getItem(location.pathname) ?? "";
  } catch { /* Nothing is kept here. */ }
  const { client, attempt, device, threads } = await post("begin", { facts });
  Object.assign(connection, { client, attempt });
  try {
    localStorage.setItem(location.pathname, client);
  } catch { /* As above. */ }
  return { device, threads };
}

/** Forgets the secret, once the server is done with this client. */
export function forget() {
  try {
    localStorage.removeItem(location.pathname);
  } catch { /* As above. */ }
}

/**
 * The input of a job.
 * @param {string} name
 * @returns {Promise<?Uint8Array>} null where the job is over
 */
export async function input(name) {
  return (await answerTo(name, { headers: { "X-Client": connection.client }, gone: true }))?.content ?? null;
}

/**
 * Sends one chunk of a job's result until it has arrived whole. Raises Refused where the job is over or this page was
 * replaced.
 * @param {{id: number}} job
 * @param {number} number of the chunk
 * @param {Uint8Array} body
 * @param {boolean} last
 */
export async function sendChunk(job, number, body, last) {
  const headers = {
    "X-Client": connection.client, "X-Attempt": connection.attempt, "X-Job": job.id, "X-Number": number, "X-Last": Number(last),
    "X-Sha256": sha256(body), "Content-Type": "application/octet-stream",
  };
  for (;;) {
    try {
      await asked("chunk", { headers, body });
      return;
    } catch (error) {
      const { next, over } = error.answer ?? {};
      // The chunk had arrived, and the answer had not.
      if (next === number + 1 && !over) return;
      if (next !== number || over) throw error;
      await sleep(SOON);
    }
  }
}
