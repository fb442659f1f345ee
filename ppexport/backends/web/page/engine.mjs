// Opens the artifact beside this file in onnxruntime-web and runs it: what ppexport/device/runner.py is in Python.
//
// To be used in a Web Worker, since wasm blocks its thread while it computes. A worker opens one engine: the runtime
// chooses its number of threads once.

import { labels, layout, levels, pureMask, routed, smallestCapacity } from "./mask.mjs";
import { sha256 } from "./sha256.mjs";

/** @typedef {import("./mask.mjs").Manifest} Manifest */

/**
 * What an engine says of itself.
 * @typedef {{device: "wasm"|"webgpu", threads: number, cores: number, isolated: boolean, secure: boolean, ort: string,
 *   adapter: ?{vendor: string, architecture: string, device: string, description: string, fallback: boolean},
 *   fetchMs: number, loadMs: number, notes: string[]}} Facts
 *   `threads` of wasm, also where a GPU computes; `fetchMs` is for the manifest and the model; `loadMs` for the
 *   runtime's own files and the session; `notes` are sentences on why it is not as asked or not as fast as it could be.
 */

/**
 * An input that was checked, and what was decided about it: `pure` (H', W') and `impure` are null where the model
 * computes them.
 * @typedef {{lr: Float32Array, pure: ?Uint8Array, impure: ?number, capacity: number}} Prepared
 */

const RUNTIMES = { wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs" };
/** More threads wait for a phone's small cores, since the runtime gives all of them equal parts. */
const MOST_THREADS = 4;
const INSECURE = "it was not loaded over https or from this device itself";

/** The memories of the runtime, which does not tell how large they are. */
const memories = [];
WebAssembly.Memory = new Proxy(WebAssembly.Memory, {
  construct(target, settings) {
    const memory = new target(...settings);
    memories.push(memory);
    return memory;
  },
});

/** An error's text, in words for people where it is one that everybody may meet. */
export function explained(error) {
  const text = String(error?.message ?? error).split("\n")[0];
  // What the runtime throws in wasm and does not catch is a number.
  return typeof error === "number" || /out of memory|bad_alloc|allocation failed|failed to allocate|\bOOM\b/i.test(text)
    ? `The browser gives this page no more memory: close other tabs, or use a page with a smaller --size (${text})`
    : text;
}

/** Lets the messages that have arrived meanwhile be read. */
export function turn() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** The content of a file beside this one. */
async function fetched(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error(`${url.pathname.split("/").pop()} cannot be loaded: the connection failed`);
  }
  if (!response.ok) throw new Error(`${url.pathname.split("/").pop()} cannot be loaded: the server says ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

/**
 * The manifest of the artifact in a folder.
 * @param {URL} base the folder's address
 * @returns {Promise<Manifest>}
 */
export async function readManifest(base) {
  const text = new TextDecoder().decode(await fetched(new URL("manifest.json", base)));
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch {
    throw new Error("manifest.json is not JSON: export the page again");
  }
  if (manifest.format !== "ppexport-artifact" || manifest.version !== 5 || manifest.backend !== "web") {
    throw new Error("manifest.json is not that of a page of this version of ppexport: export it again");
  }
  return manifest;
}

/** What the best GPU adapter says of itself, or the reason why there is none. */
async function findAdapter(manifest) {
  if (!(RUNTIMES.webgpu in manifest.files)) return { why: "the page was built without it (-O webgpu=no)" };
  if (!self.isSecureContext) return { why: `the browser offers it to secure pages only, and ${INSECURE}` };
  if (!navigator.gpu) return { why: "this browser does not have it" };
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) return { why: "the browser finds no adapter" };
  // The runtime would wait for ever for a GPU that does not start.
  try {
    (await adapter.requestDevice()).destroy();
  } catch (error) {
    return { why: `the GPU does not start (${explained(error)})` };
  }
  const { vendor = "", architecture = "", device = "", description = "", isFallbackAdapter } = adapter.info ?? {};
  // Not every browser says so of an adapter that is computed on the CPU.
  const fallback = (isFallbackAdapter ?? adapter.isFallbackAdapter ?? false)
    || /swiftshader|llvmpipe|lavapipe|basic render/i.test(`${architecture} ${device} ${description}`);
  return { adapter: { vendor, architecture, device, description, fallback } };
}

/** Where to compute, and why not elsewhere. */
async function choose(manifest, asked) {
  if (asked === "wasm") return { device: "wasm", adapter: null };
  const { adapter = null, why } = await findAdapter(manifest);
  if (asked === "webgpu" && !adapter) throw new Error(`WebGPU is not available: ${why}`);
  if (asked === "webgpu" || (adapter && !adapter.fallback)) return { device: "webgpu", adapter };
  return { device: "wasm", adapter, note: `no WebGPU: ${why ?? "its adapter is computed on the CPU"}` };
}

/** The number of threads, and why not as many as asked. */
function chooseThreads(asked) {
  const cores = navigator.hardwareConcurrency || 1, wanted = asked || Math.min(cores, MOST_THREADS);
  if (self.crossOriginIsolated || wanted === 1) return { cores, threads: wanted };
  const why = self.isSecureContext ? "its server does not isolate it (COOP and COEP headers)" : INSECURE;
  return { cores, threads: 1, note: `one thread: the browser gives this page no more, because ${why}` };
}

/** Raises an error unless the session's inputs and outputs are those of the manifest. */
function checkPorts(session, manifest, padded) {
  const [h, w] = manifest.size, s = manifest.scale;
  const wanted = { lr: [1, 3, h, w], sr: [1, 3, h * s, w * s], impure_tokens: [1] };
  if (manifest.capacities.length > 1) wanted.slots = [1, "slots"];
  if (manifest.mask === "input") wanted.mask = [1, 1, ...padded];
  const found = [...session.inputMetadata, ...session.outputMetadata].map(({ name, shape }) => [name, shape]);
  const text = (entries) => JSON.stringify([...entries].sort(([a], [b]) => (a < b ? -1 : 1)));
  if (text(found) !== text(Object.entries(wanted))) {
    throw new Error(`the model has ${text(found)}, but manifest.json says ${text(Object.entries(wanted))}`);
  }
}

/**
 * Opens the artifact in a folder. Every failure is an error whose message is a sentence for people.
 * @param {{base?: URL, device?: "auto"|"webgpu"|"wasm", threads?: number, manifest?: Manifest}} settings `base` is the
 *   folder's address, this file's if left out. "auto" is WebGPU where there is a real adapter, and wasm elsewhere; a
 *   device that is named and missing is an error. `threads` 0 lets the engine choose.
 * @returns {Promise<Engine>}
 */
export async function openEngine({ base = new URL(".", import.meta.url), device = "auto", threads = 0, manifest } = {}) {
  const begin = performance.now();
  manifest ??= await readManifest(base);
  const choice = await choose(manifest, device), counted = chooseThreads(threads);
  const [name, hash] = Object.entries(manifest.files)[0], model = await fetched(new URL(name, base));
  if (sha256(model) !== hash) throw new Error(`${name} is not the file that manifest.json names: load the page again`);
  const loading = performance.now();
  const ort = await import(new URL(RUNTIMES[choice.device], base).href);
  ort.env.wasm.wasmPaths = base.href;
  ort.env.wasm.numThreads = counted.threads;
  ort.env.logLevel = "error";
  // With one shape for every run, the GPU's commands are recorded once, and telling them again takes a third of the time.
  const recorded = () => choice.device === "webgpu" && manifest.capacities.length < 2;
  const create = () => ort.InferenceSession.create(model, {
    executionProviders: [choice.device], graphOptimizationLevel: "all", logSeverityLevel: 3,
    ...(recorded() && { enableGraphCapture: true, preferredOutputLocation: "gpu-buffer" }),
  });
  let session;
  try {
    session = await create();
  } catch (error) {
    // A GPU that cannot run the model is no reason to compute nothing, where nobody asked for it.
    if (device !== "auto" || choice.device === "wasm") throw error;
    Object.assign(choice, { device: "wasm", note: `no WebGPU: it does not take the model (${explained(error)})` });
    session = await create();
  }
  const facts = {
    device: choice.device, threads: counted.threads, cores: counted.cores, adapter: choice.adapter,
    isolated: self.crossOriginIsolated, secure: self.isSecureContext, ort: ort.env.versions.web,
    fetchMs: loading - begin, loadMs: performance.now() - loading,
    notes: [choice.note, counted.note].filter(Boolean),
  };
  // A GPU that is lost would leave a run without an end.
  const gpu = choice.device === "webgpu" ? await ort.env.webgpu.device : null;
  const lost = gpu?.lost.then(({ message, reason }) => {
    throw new Error(`The browser lost the GPU: load the page again, or choose wasm (${message || reason})`);
  });
  if (lost) lost.catch(() => {});
  return new Engine(ort, session, manifest, facts, lost, recorded() ? gpu : null);
}

/** An opened artifact. `run(prepare(lr))` in two steps, so that one tile can be prepared while another runs. */
export class Engine {
  constructor(ort, session, manifest, facts, lost, gpu) {
    Object.assign(this, { ort, session, manifest, facts, lost, gpu, fixed: {} });
    this.padded = layout(manifest).padded(...manifest.size);
    checkPorts(session, manifest, this.padded);
  }

  /** Bytes of the runtime's memory in wasm, which never shrinks: the most that it has had. */
  get memory() {
    return memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
  }

  /**
   * Checks an input, and computes the mask where the model takes one or has several capacities.
   * @param {Float32Array} lr (3, h, w) in [0, 1]
   * @param {?ArrayLike<number>} centres (K, 3), for adaptive colour centres: those of the picture that `lr` is a tile
   *   of; if left out, `lr` chooses its own
   * @returns {Prepared}
   */
  prepare(lr, centres = null) {
    const { manifest } = this, [h, w] = manifest.size, { capacities, options } = manifest, pixels = h * w;
    if (lr.length !== 3 * pixels) throw new Error(`the model takes ${w}x${h} pixels in three channels, not ${lr.length} values`);
    if (!finite(lr)) throw new Error("the picture holds NaN or infinite values");
    if (manifest.mask !== "input" && capacities.length < 2) {
      return { lr, pure: null, impure: null, capacity: smallestCapacity(capacities, Infinity) };
    }
    const planes = levels(lr), rgb = new Uint8Array(3 * pixels);
    for (let i = 0; i < planes.length; i++) rgb[3 * (i % pixels) + Math.floor(i / pixels)] = planes[i];
    const { labels: map, height, width } = labels(rgb, h, w, manifest, centres);
    const pure = pureMask(map, height, width, options.window, options.csmf);
    const impure = routed(pure, height, width, manifest);
    return { lr, pure, impure, capacity: smallestCapacity(capacities, impure) };
  }

  /**
   * Super-resolves a prepared input. A result that is not finite is an error.
   * @param {Prepared} prepared
   * @returns {Promise<{sr: Float32Array, impure: number, capacity: number, ms: number}>} `sr` is (3, h * scale,
   *   w * scale), not clipped; `impure` the tokens that took slots; `ms` from float32 here to float32 here
   */
  async run(prepared) {
    const found = await this.runUnchecked(prepared);
    // As 8-bit levels NaN would become an ordinary colour.
    if (!finite(found.sr)) throw new Error(`The model returned NaN or infinite values: ${this.wayOut()}`);
    return found;
  }

  /** As `run`, for whoever checks the picture. */
  async runUnchecked(prepared) {
    const { ort: { Tensor }, manifest: { size, capacities, mask } } = this;
    const begin = performance.now();
    const inputs = { lr: new Tensor("float32", prepared.lr, [1, 3, ...size]) };
    // Only the length counts.
    if (capacities.length > 1) inputs.slots = new Tensor("int32", new Int32Array(prepared.capacity), [1, prepared.capacity]);
    if (mask === "input") inputs.mask = new Tensor("float32", Float32Array.from(prepared.pure), [1, 1, ...this.padded]);
    const running = this.session.run(this.gpu ? this.inFixedBuffers(inputs) : inputs);
    const outputs = await (this.lost ? Promise.race([running, this.lost]) : running);
    const [sr, count] = await Promise.all([outputs.sr.getData(true), outputs.impure_tokens.getData(true)]);
    const ms = performance.now() - begin;
    return { sr, impure: Number(count[0]), capacity: prepared.capacity, ms };
  }

  /** The inputs in buffers of the GPU, which are the same in every run, as recorded commands need them. */
  inFixedBuffers(inputs) {
    for (const [name, { data, dims, type }] of Object.entries(inputs)) {
      if (!this.fixed[name]) {
        const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
        const buffer = this.gpu.createBuffer({ size: data.byteLength, usage });
        this.fixed[name] = this.ort.Tensor.fromGpuBuffer(buffer, { dataType: type, dims });
      }
      this.gpu.queue.writeBuffer(this.fixed[name].gpuBuffer, 0, data);
    }
    return this.fixed;
  }

  wayOut() {
    const { precision } = this.manifest;
    if (this.facts.device === "webgpu") return "choose wasm instead of WebGPU";
    return ["fp32", "int8"].includes(precision)
      ? "the weights are damaged or too large for fp32"
      : "numbers inside it exceed 65504, the largest of fp16: export it as fp32, or calibrate the model "
        + "(`ppexport calibrate`, `--calibration`)";
  }
}

/** Whether no value is NaN or infinite. */
function finite(values) {
  for (let i = 0; i < values.length; i++) if (!(Math.abs(values[i]) < Infinity)) return false;
  return true;
}
