// Computes what the measuring page is asked for. One worker opens one engine.
//
// In:  {type: "open", device, threads}
//      {type: "run", lr, centres}                       lr: Float32Array (3, h, w)
//      {type: "latency", images, count, plan, past}     images: Uint8Array (count, h, w, 3); plan and past as the server sends them
//      {type: "hidden", value}                          whether the page is not in front
// Out: {type: "opened", facts}
//      {type: "result", found, pure}                    what `Engine.run` returns; pure: null where the model computes it
//      {type: "lines", text, warm, queries, ns, last}   whole lines of the journal, and how far it is
//      {type: "error", message}

import { explained, openEngine, turn } from "./engine.mjs";
import { cut } from "./tiles.mjs";

const SECOND = 1e9;
/** Queries of a warm-up window, at least; always whole cycles of the images, since cost may follow content. */
const WINDOW = 8;
/** Characters of the journal that are sent at once, at most about. */
const MOST_LINES = 1 << 16;

let engine = null;
/** Whether the page is not in front, and whether it was not at any time since the last reading. */
const hidden = { now: false, since: false };

/** Nanoseconds since this worker began. */
const now = () => Math.round(performance.now() * 1e6);

function median(values) {
  const sorted = [...values].sort((a, b) => a - b), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** One measurement, as `Loop` of ppexport/device/measure.py, whose journal (ppexport/device/journal.py) it writes. */
class Latency {
  constructor({ images, count, plan, past }) {
    const { size } = engine.manifest, length = images.length / count;
    this.inputs = Array.from({ length: count }, (_, i) => (
      cut(images.subarray(i * length, (i + 1) * length), size, [0, 0], size)));
    Object.assign(this, { plan, past, queries: past.queries, ns: past.ns, lines: [], size: 0, warm: 0 });
    // t continues where the last page ended, so that an interruption takes no time.
    this.zero = now() - past.end;
    this.sent = this.ended = now();
    this.gap = 0;
  }

  write(...record) {
    const line = `${JSON.stringify(record)}\n`;
    this.lines.push(line);
    this.size += line.length;
  }

  send(last = false) {
    const { warm, queries, ns } = this;
    postMessage({ type: "lines", text: this.lines.join(""), warm, queries, ns, last });
    Object.assign(this, { lines: [], size: 0, sent: now() });
  }

  /** The readings of what a browser shows. */
  read() {
    const t = now() - this.zero;
    const reading = {
      "page.hidden": Number(hidden.since), "longest.gap.ms": this.gap / 1e6, "heap.mb": engine.memory / 1e6,
      wall: Date.now() * 1e6,
    };
    this.write("c", t, reading);
    hidden.since = hidden.now;
    this.gap = 0;
    this.nextReading = now() + this.plan.sensor_seconds * SECOND;
  }

  /** One query, from host memory to host memory. */
  async query(image) {
    await turn();
    const begin = now();
    this.gap = Math.max(this.gap, begin - this.ended);
    const prepared = engine.prepare(this.inputs[image]), host = now() - begin;
    const { capacity, impure } = await engine.run(prepared);
    this.ended = now();
    return { begin, ns: Math.max(1, this.ended - begin), host, capacity, impure: engine.manifest.mask === "none" ? -1 : impure };
  }

  /** Queries until the median of a window moves less than the plan's share. */
  async warmUp() {
    const cycles = Math.ceil(WINDOW / this.inputs.length);
    let previous = null, done = false;
    for (let window = 0; window < this.plan.warm_windows && !done; window++) {
      const times = [];
      for (let i = 0; i < cycles * this.inputs.length; i++) {
        times.push((await this.query(i % this.inputs.length)).ns);
        this.warm++;
        if (now() - this.sent > SECOND) this.send();
      }
      const middle = median(times);
      done = previous !== null && Math.abs(middle - previous) <= this.plan.warm_change * previous;
      previous = middle;
    }
    this.write("warm", 0, this.warm, done);
  }

  async measure() {
    const { plan, past } = this, { memory, facts } = engine;
    this.write("begin", { t: past.end, now: now(), wall: Date.now() * 1e6, boot: null, memory });
    this.read();
    const first = (await this.query(0)).ns;
    // In a run that continues after an interruption the first page has written it.
    if (!past.loaded) {
      this.write("load", 0, Math.max(1, Math.round(facts.loadMs * 1e6)));
      this.write("first", 0, first);
    }
    await this.warmUp();
    while (this.queries < plan.queries || this.ns < plan.seconds * SECOND) {
      const image = this.queries % this.inputs.length, { begin, ns, host, capacity, impure } = await this.query(image);
      this.write("q", 0, image, begin - this.zero, ns, ns, host, capacity, impure);
      this.queries++;
      this.ns += ns;
      if (now() >= this.nextReading) this.read();
      if (now() - this.sent > SECOND || this.size > MOST_LINES) this.send();
    }
    this.read();
    this.write("end", { t: now() - this.zero, memory: engine.memory });
    this.send(true);
  }
}

const ANSWERS = {
  async open({ device, threads }) {
    engine = await openEngine({ device, threads });
    postMessage({ type: "opened", facts: engine.facts });
  },
  async run({ lr, centres }) {
    const prepared = engine.prepare(lr, centres), found = await engine.runUnchecked(prepared);
    postMessage({ type: "result", found, pure: prepared.pure });
  },
  latency: (data) => new Latency(data).measure(),
  hidden({ value }) {
    hidden.now = value;
    hidden.since ||= value;
  },
};

addEventListener("message", async ({ data }) => {
  try {
    await ANSWERS[data.type](data);
  } catch (error) {
    postMessage({ type: "error", message: explained(error) });
  }
});
