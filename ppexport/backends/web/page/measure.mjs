// The measuring page: asks the server that served it for work, has a worker do it, and sends the results back.

import { explained } from "./engine.mjs";
import { Refused, begin, connection, forget, input, post, sendChunk } from "./measure-server.mjs";

/** Bytes of a part of a picture. */
const PART = 1 << 20;

const $ = (id) => document.getElementById(id);

// What people see.

let saying = "";
function say(text) {
  if (text !== saying) $("status").textContent = saying = text;
}

function showTrouble(text) {
  $("trouble").hidden = !text;
  $("trouble").textContent = text;
}

function end(text, failed = false) {
  say(failed ? "The measurement has ended." : text);
  showTrouble(failed ? text : "");
  for (const id of ["progress", "advice", "left"]) $(id).hidden = true;
  wakeLock.wanted = false;
  wakeLock.held?.release().catch(() => {});
}

function showFacts(entries) {
  for (const [name, text] of Object.entries(entries)) {
    const row = document.createElement("div"), term = document.createElement("dt"), value = document.createElement("dd");
    [term.textContent, value.textContent] = [name, text];
    row.append(term, value);
    $("facts").append(row);
  }
}

/** How long something takes, in words. */
function duration(seconds) {
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} minutes`;
}

// The screen stays on while this page measures, where the browser can do that.

const wakeLock = {
  wanted: true,
  held: null,
  async take() {
    if (!this.wanted || document.hidden) return;
    try {
      this.held = await navigator.wakeLock.request("screen");
    } catch {
      // It needs a secure page, a charged battery, and a browser that has it.
      $("screen").hidden = false;
    }
  },
};

// The worker.

const crew = { worker: null, used: false, device: "auto", threads: 0 };

/** A worker whose engine is open; returns the engine's facts. */
function hire() {
  crew.worker?.terminate();
  crew.worker = new Worker(new URL("measure-worker.mjs", import.meta.url), { type: "module" });
  crew.used = false;
  tellHidden();
  return ordered({ type: "open", device: crew.device, threads: crew.threads }, ({ facts }) => facts);
}

/**
 * What `done` makes of the first message of the worker for which it returns anything, after the order `message`.
 * Raises an error where the worker fails.
 */
function ordered(message, done, transfer = []) {
  return new Promise((resolve, reject) => {
    crew.worker.onerror = (event) => reject(new Error(event.message || "the page's worker cannot be loaded"));
    crew.worker.onmessage = ({ data }) => {
      if (data.type === "error") reject(new Error(data.message));
      const found = data.type === "error" ? undefined : done(data);
      if (found !== undefined) resolve(found);
    };
    crew.worker.postMessage(message, transfer);
  });
}

/** Tells the worker whether the page is not in front, which slows it. */
function tellHidden() {
  crew.worker?.postMessage({ type: "hidden", value: document.hidden });
  wakeLock.take();
}

// The jobs.

/** The bits of a mask, eight to a byte, the first one highest, in base64. */
function packed(mask) {
  const bytes = new Uint8Array(Math.ceil(mask.length / 8));
  mask.forEach((bit, i) => { bytes[i >> 3] |= bit << (7 - (i & 7)); });
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

async function run(job) {
  const content = await input(job.lr);
  if (!content) return;
  const centres = job.centres?.flat() ?? null, lr = new Float32Array(content.buffer);
  say("Enlarging a test picture.");
  if (!crew.worker) await hire();
  crew.used = true;
  const { found, pure } = await ordered({ type: "run", lr, centres }, (data) => data, [lr.buffer]);
  const { sr, impure, capacity, ms } = found;
  const line = `${JSON.stringify({ impure, capacity, ms, pure: pure && packed(pure) })}\n`;
  const body = new Uint8Array(await new Blob([line, sr]).arrayBuffer());
  for (let at = 0, number = 0; at < body.length; at += PART, number++) {
    await sendChunk(job, number, body.subarray(at, at + PART), at + PART >= body.length);
  }
}

/** Shows how far a measurement is, and how long it still takes. */
function showProgress(plan, { warm, queries, ns }) {
  const seconds = ns / 1e9, share = Math.min(queries / plan.queries, seconds / plan.seconds || 1, 1);
  $("progress").hidden = false;
  if (queries) $("progress").value = share;
  else $("progress").removeAttribute("value");
  // Only what changes seldom is in the line that screen readers read aloud.
  say(queries ? "Measuring." : "Warming up.");
  const each = seconds / queries, left = Math.max((plan.queries - queries) * each, plan.seconds - seconds);
  $("left").textContent = queries
    ? `${queries.toLocaleString("en")} runs so far, of at least ${plan.queries.toLocaleString("en")}; ${(1000 * each).toFixed(1)} ms each${left > 0 ? `; about ${duration(left)} left` : ""}.`
    : `${warm} runs so far.`;
}

async function latency(job) {
  const content = await input(job.images);
  if (!content) return;
  // The load and the first run are those of a worker that has run nothing.
  if (!crew.worker || crew.used) await hire();
  crew.used = true;
  const encoder = new TextEncoder(), waiting = [];
  let number = job.next, sending = Promise.resolve(), ended = false;
  const sendWaiting = async () => {
    while (waiting.length) {
      let text = "";
      while (waiting.length && text.length < PART) text += waiting.shift();
      await sendChunk(job, number++, encoder.encode(text), ended && !waiting.length);
    }
  };
  const order = { type: "latency", images: content, count: job.count, plan: job.plan, past: job.past };
  try {
    await new Promise((resolve, reject) => {
      // The worker goes on measuring meanwhile: what cannot be sent now is sent later.
      ordered(order, (data) => {
        showProgress(job.plan, data);
        if (data.text) waiting.push(data.text);
        ended = data.last;
        sending = sending.then(sendWaiting);
        sending.then(data.last ? resolve : () => {}, reject);
        return data.last || undefined;
      }, [content.buffer]).catch(reject);
    });
  } catch (error) {
    crew.worker.terminate();
    crew.worker = null;
    throw error;
  }
}

// The order of things.

/** What this browser says of itself. */
async function describe() {
  const data = navigator.userAgentData, more = await data?.getHighEntropyValues?.(["model", "platformVersion"]).catch(() => null);
  return {
    userAgent: navigator.userAgent, brands: data?.brands ?? [], mobile: data?.mobile ?? /Mobi|Android/.test(navigator.userAgent),
    platform: [data?.platform || navigator.platform, more?.platformVersion].filter(Boolean).join(" "), model: more?.model ?? "",
    cores: navigator.hardwareConcurrency ?? null, memoryGB: navigator.deviceMemory ?? null,
    isolated: self.crossOriginIsolated, secure: self.isSecureContext, timerStepMs: timerStep(),
  };
}

/** The smallest step of the browser's clock, in milliseconds. */
function timerStep() {
  const begin = performance.now();
  let least = Infinity;
  for (let last = begin, time; last - begin < 30; last = time) {
    time = performance.now();
    if (time > last) least = Math.min(least, time - last);
  }
  return least;
}

async function work() {
  say("Connecting to the computer that measures.");
  const facts = await describe();
  Object.assign(crew, await begin(facts));
  showFacts({ Browser: facts.userAgent, Clock: `steps of ${Number(facts.timerStepMs.toPrecision(2))} ms` });
  try {
    say("Loading the network.");
    const engine = await hire(), { adapter } = engine;
    const gpu = engine.device === "webgpu" && ` on ${adapter.vendor} ${adapter.architecture}${adapter.fallback ? " (computed on the CPU)" : ""}`;
    showFacts({
      "Computes with": gpu ? `WebGPU${gpu}` : `WebAssembly, ${engine.threads} of ${engine.cores} threads`,
      ...(engine.notes.length ? { Notes: engine.notes.join("; ") } : {}),
    });
    await post("facts", { engine });
    for (;;) {
      say("Ready: waiting for the computer.");
      $("left").textContent = "";
      $("progress").hidden = true;
      const job = await post("next");
      if (job.kind === "done" || job.kind === "failed") {
        forget();
        return end(job.message, job.kind === "failed");
      }
      try {
        if (job.kind === "run") await run(job);
        else if (job.kind === "latency") await latency(job);
      } catch (error) {
        // A job that is over, or whose parts have another order at the server: it says what is next.
        if (error.answer?.next === undefined) throw error;
      }
    }
  } catch (error) {
    if (!(error instanceof Refused)) await post("trouble", { message: explained(error) });
    throw error;
  }
}

connection.complain = showTrouble;
document.addEventListener("visibilitychange", tellHidden);
wakeLock.take();
work().catch((error) => end(explained(error), true));
