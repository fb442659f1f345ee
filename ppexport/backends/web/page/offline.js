// Service worker of the page: keeps a copy of its files, so that it works without a network, and adds the headers with
// which a browser gives threads, so that any static server will do.
//
// Files are kept by their hash in manifest.json, which the page's exporter wrote, so that a new version of the page
// takes over what has not changed. Two manifests are remembered:
//
//   adopted    of the page as it was last opened: the server's, or without a network the complete one
//   complete   the last one of which every file is here; what only older ones name is deleted when there is a new one

const SCOPE = new URL("./", self.location).href;
const NAME = `ppexport ${SCOPE}`;
const MANIFEST = "manifest.json";
/** How long a slow network may keep somebody from the copy that is here. */
const PATIENCE_MS = 4000;
/** How often pages hear how much of a file has come. */
const TELL_MS = 200;
const NO_ROOM = "this browser has no room for one";
/** Without these a page has one thread: they say that it loads nothing from elsewhere. */
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

const kept = (cache, name, mark) => cache.match(`${SCOPE}${name}?${mark}`, { ignoreVary: true });
const keep = (cache, name, mark, response) => cache.put(`${SCOPE}${name}?${mark}`, response);

/** What the server has now: where it says nothing of that, a browser holds on to an old file for a while. */
const fresh = ({ url, redirect }) => fetch(url, { cache: "no-cache", redirect });

/** An answer of the network with the headers of an isolated page, and no others that would make a cache refuse it. */
function answer(body, from) {
  const headers = new Headers(ISOLATED);
  for (const name of ["Content-Type", "Content-Security-Policy", "Referrer-Policy", "X-Content-Type-Options"]) {
    if (from.headers.has(name)) headers.set(name, from.headers.get(name));
  }
  return new Response(body, { status: from.status, statusText: from.statusText, headers });
}

/** The content of a manifest, or null for anything else, such as the page of a hotel's network. */
function parse(text) {
  try {
    const found = JSON.parse(text);
    return found.format === "ppexport-artifact" && typeof found.files === "object" ? found : null;
  } catch {
    return null;
  }
}

/** What the page consists of as it was last opened, or null. */
async function adopted(cache) {
  const found = await kept(cache, MANIFEST, "adopted");
  return found ? parse(await found.text()) : null;
}

/** Whether the manifest that is remembered as `mark` is `text`: what need not be written needs no room. */
const says = async (cache, mark, text) => (await (await kept(cache, MANIFEST, mark))?.text()) === text;

/**
 * Remembers what the page consists of from here on. "full" where there is no room for that: the copy is given up, and
 * everything comes from the network.
 */
async function remember(cache, text, response) {
  if (await says(cache, "adopted", text)) return "new";
  try {
    await keep(cache, MANIFEST, "adopted", response);
    return "new";
  } catch {
    await caches.delete(NAME);
    return "full";
  }
}

/**
 * Takes the server's manifest, or without an answer that of the copy. "gone" where the server has no page any more,
 * "full" as `remember`.
 */
async function adopt(cache) {
  const copy = await kept(cache, MANIFEST, "complete");
  try {
    const signal = copy && AbortSignal.timeout(PATIENCE_MS);
    const found = await fetch(SCOPE + MANIFEST, { cache: "no-cache", signal });
    if (found.status === 404 || found.status === 410) return "gone";
    const text = await found.text();
    if (found.ok && parse(text)) return await remember(cache, text, answer(text, found));
  } catch {
    // No network, or none that answers in time: the copy is for that.
  }
  if (copy) await keep(cache, MANIFEST, "adopted", copy).catch(() => {});
  return copy ? "copy" : "none";
}

async function hashOf(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** All bytes of an answer. The pages hear how many there are so far. */
async function bytesOf(found) {
  const parts = [];
  let heard = performance.now();
  let news = 0;
  const tell = async () => {
    const message = { type: "loading", bytes: news };
    [news, heard] = [0, performance.now()];
    for (const client of await self.clients.matchAll()) client.postMessage(message);
  };
  for (let reader = found.body.getReader(), part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    news += part.value.length;
    if (performance.now() - heard > TELL_MS) await tell();
  }
  return new Blob(parts).arrayBuffer();
}

/** The file `name` from the network, kept if it is what the manifest says. */
async function load(cache, name, hash) {
  const found = await fetch(SCOPE + name, { cache: "no-cache" });
  const bytes = await bytesOf(found);
  const right = found.ok && (await hashOf(bytes)) === hash;
  if (right) await keep(cache, name, hash, answer(bytes, found)).catch(() => {});
  return { response: answer(bytes, found), right };
}

async function respond(request, name) {
  const cache = await caches.open(NAME);
  if (name === "index.html" && request.mode === "navigate") {
    const found = await adopt(cache);
    // Something else lives at this address now: leave it alone from here on.
    if (found === "gone") await Promise.all([caches.delete(NAME), self.registration.unregister()]);
    if (["gone", "full"].includes(found)) return fresh(request);
  }
  if (name === MANIFEST) return (await kept(cache, MANIFEST, "adopted")) ?? fresh(request);
  const hash = (await adopted(cache))?.files[name];
  if (!hash) return fresh(request);
  return (await kept(cache, name, hash)) ?? (await load(cache, name, hash)).response;
}

/**
 * Fetches what is missing of the adopted page, except the files `spare`, then forgets what only older pages had.
 * Throws if a file cannot be had.
 */
async function complete(spare) {
  const cache = await caches.open(NAME);
  if (!(await adopted(cache)) && (await adopt(cache)) === "full") throw new Error(NO_ROOM);
  const manifest = await adopted(cache);
  if (!manifest) throw new Error("the server does not answer");
  // What only our own measuring server can serve is of no use without it.
  const files = Object.entries(manifest.files).filter(([name]) => !name.startsWith("measure"));
  for (const [name, hash] of files) {
    if (spare.includes(name) || (await kept(cache, name, hash))) continue;
    if (!(await load(cache, name, hash)).right) throw new Error(`${name} is not what the page's manifest says`);
    if (!(await kept(cache, name, hash))) throw new Error(NO_ROOM);
  }
  const now = await kept(cache, MANIFEST, "adopted"), text = await now.clone().text();
  // Opened anew meanwhile, of a newer version: that one asks for itself.
  if (JSON.stringify(parse(text)) !== JSON.stringify(manifest)) return;
  if (!(await says(cache, "complete", text))) await keep(cache, MANIFEST, "complete", now);
  const wanted = new Set(files.map(([name, hash]) => `${name}?${hash}`));
  for (const mark of ["adopted", "complete"]) wanted.add(`${MANIFEST}?${mark}`);
  for (const { url } of await cache.keys()) {
    if (!wanted.has(url.slice(SCOPE.length))) await cache.delete(url);
  }
}

self.addEventListener("install", (event) => {
  // What is kept is checked by its hash, so that a new version of this file can take over at once.
  event.waitUntil(caches.open(NAME).then(adopt).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  const [address] = url.split(/[?#]/);
  // The page's own files lie right in its folder: nothing else, and no other origin, is any business of ours.
  if (method !== "GET" || !address.startsWith(SCOPE)) return;
  const name = address.slice(SCOPE.length) || "index.html";
  if (name.includes("/") || name.startsWith("measure")) return;
  // A browser whose storage fails shows the page as well.
  event.respondWith(respond(event.request, name).catch(() => fetch(event.request)));
});

self.addEventListener("message", (event) => {
  if (event.data?.type !== "complete") return;
  const told = complete(event.data.spare).then(
    () => ({ type: "complete" }),
    ({ message }) => ({ type: "incomplete", message }),
  );
  event.waitUntil(told.then((message) => event.source.postMessage(message)));
});
