// The network in its worker, and what the page says of it: loading, ready, not loaded, and on which device.

import { bytes, counted, deviceWords } from "./figures.mjs";
import { completeOffline, onLoading } from "./offline-client.mjs";

const at = (id) => document.getElementById(id);

/** What manifest.json beside this file says. */
export async function readManifest() {
  const answer = await fetch("manifest.json").catch(() => null);
  const manifest = await answer?.json().catch(() => null);
  if (answer?.ok && manifest?.format === "ppexport-artifact") return manifest;
  throw new Error("The server does not send the page's manifest.json.");
}

/** The worker with the network. `facts` are the engine's, null until it is open. */
export class Network {
  /**
   * @param {object} manifest
   * @param {string} problem why this page cannot do what others can, a sentence, or empty
   * @param {{opened: (facts: object) => void, failed: (message: string) => void, heard: (data: object) => void}} calls
   *   `failed`: it cannot be opened. `heard`: a message on a picture
   */
  constructor(manifest, problem, calls) {
    Object.assign(this, { manifest, problem, calls, facts: null });
    this.#offerDevices();
    onLoading((size) => {
      this.loaded += size;
      if (this.facts) at("offline").textContent = `Keeping a copy for use without a network: ${bytes(this.loaded)} …`;
      else this.#chip("busy", `Loading the network: ${bytes(this.loaded)} …`);
    });
  }

  /** Opens it, anew if it was open, on the device and with the threads that the settings say. */
  open() {
    this.worker?.terminate();
    Object.assign(this, { facts: null, loaded: 0, worker: new Worker("worker.mjs", { type: "module" }) });
    this.#chip("busy", "Loading the network …");
    this.worker.addEventListener("message", ({ data }) => this.#heard(data));
    this.worker.addEventListener("error", ({ message }) => {
      const why = message ? ` (${message})` : "";
      this.#failed(`The network's program could not be started${why}: reload the page while you are online.`);
    });
    this.worker.postMessage({ type: "open", device: at("device").value, threads: Number(at("threads").value) });
  }

  /** Opens it as it is opened by default. */
  openAnyhow() {
    at("device").value = "auto";
    at("threads").value = "0";
    this.open();
  }

  #heard(data) {
    if (this.facts) this.calls.heard(data);
    else if (data.type === "opened") this.#opened(data.facts);
    else if (data.type === "error") this.#failed(data.message);
  }

  async #opened(facts) {
    Object.assign(this, { facts, loaded: 0 });
    this.#chip("ready", `Ready: ${deviceWords(facts)}`);
    // The problem says in other words why there is one thread.
    const notes = facts.notes.filter((note) => !(this.problem && note.startsWith("one thread")));
    const sentences = notes.map((note) => `${note[0].toUpperCase()}${note.slice(1)}.`);
    at("settings-note").textContent = [this.problem, ...sentences].filter(Boolean).join(" ");
    this.calls.opened(facts);
    // Without an adapter the GPU's 27 MB would be kept for nothing. A device that was named was not looked for.
    const useless = at("device").value === "auto" && facts.adapter === null;
    const spare = Object.keys(this.manifest.files).filter((name) => useless && /webgpu|asyncify/.test(name));
    at("offline").textContent = await completeOffline(spare);
  }

  #failed(message) {
    this.#chip("bad", "The network is not loaded");
    this.worker.terminate();
    at("settings").open = true;
    this.calls.failed(message);
  }

  #chip(kind, text) {
    at("engine").dataset.kind = kind;
    at("engine-text").textContent = text;
  }

  #offerDevices() {
    const { webgpu } = this.manifest.build;
    const option = at("device").querySelector("[value=webgpu]");
    option.disabled = !webgpu || !navigator.gpu;
    if (option.disabled) option.textContent = `WebGPU (not ${webgpu ? "in this browser" : "part of this page"})`;
    const cores = window.crossOriginIsolated ? navigator.hardwareConcurrency || 1 : 1;
    for (let n = 1; n <= cores; n++) at("threads").append(new Option(counted(n, "thread"), String(n)));
  }
}
