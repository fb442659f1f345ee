// Words and figures for what the page shows.

/** @param {number} count */
export const counted = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** A size of a file or of memory, in decimal units. */
export function bytes(size) {
  return size < 1e6 ? `${(size / 1e3).toFixed(0)} kB` : size < 1e9 ? `${(size / 1e6).toFixed(size < 1e8 ? 1 : 0)} MB` : `${(size / 1e9).toFixed(2)} GB`;
}

/** A time, with three digits at most below a minute. */
export function duration(ms) {
  if (ms < 999.5) return `${ms.toFixed(ms < 9.995 ? 2 : ms < 99.95 ? 1 : 0)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(ms < 9995 ? 2 : 1)} s`;
  const seconds = Math.round(ms / 1000);
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min ${seconds % 60} s` : `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

/** A time that is an estimate. */
export function roughly(ms) {
  const seconds = Math.max(1, Math.round(ms / 1000));
  if (seconds < 60) return `about ${counted(seconds < 10 ? seconds : 5 * Math.round(seconds / 5), "second")}`;
  return seconds < 5400 ? `about ${counted(Math.round(seconds / 60), "minute")}` : `about ${counted(Math.round(seconds / 3600), "hour")}`;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const size = (width, height) => `${width.toLocaleString("en")} × ${height.toLocaleString("en")}`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** What computes, by the engine's facts: "WebAssembly, 4 threads". */
export function deviceWords({ device, threads, adapter }) {
  if (device !== "webgpu") return `WebAssembly, ${counted(threads, "thread")}`;
  const name = adapter && (adapter.description || [adapter.vendor, adapter.architecture, adapter.device].filter(Boolean).join(" "));
  return `WebGPU, ${name || "an adapter without a name"}${adapter?.fallback ? " (a fallback adapter: computed in software, slow)" : ""}`;
}

/**
 * The figures of a picture that is done.
 * @param {object} done the worker's message
 * @param {object[]} tiles its messages of tiles
 * @param {{width: number, height: number}} input
 * @param {object} facts the engine's
 * @param {object} manifest
 * @returns {{headline: [string, string][], details: [string, string][]}}
 */
export function figuresOf(done, tiles, input, facts, manifest) {
  const headline = [["per tile", duration(done.msPerTile)], ["per output megapixel", duration(done.msPerMegapixel)], ["in all", duration(done.ms)]];
  const details = [];
  if (done.pure) {
    headline.unshift(["pure pixels", percent(done.pureShare)]);
    const [used, ran, all] = [mean(tiles.map((tile) => tile.impure)), mean(tiles.map((tile) => tile.capacity)), Math.max(...manifest.capacities)];
    const whole = (value) => Math.round(value).toLocaleString("en");
    details.push([tiles.length > 1 ? "Slots, mean of tiles" : "Slots", `${whole(used)} used of ${whole(ran)}${manifest.capacities.length > 1 ? ` that were computed; ${whole(all)} at most` : ""}`]);
    const over = tiles.filter((tile) => tile.impure > tile.capacity).length;
    if (over) details.push(["Over capacity", `${counted(over, "tile")} with more impure pixels than slots: there the result is not quite the network's`]);
  }
  details.push(
    ["Computed by", deviceWords(facts)],
    ["Size", `${size(input.width, input.height)} → ${size(done.width, done.height)} pixels`],
    ["Tiles", `${tiles.length.toLocaleString("en")} of ${size(manifest.size[1], manifest.size[0])}`],
    ["Loading took", duration(facts.loadMs)],
    ["Peak memory of WebAssembly", done.memory ? bytes(done.memory) : "not told by this browser"],
    ["File", bytes(done.png.size)],
  );
  return { headline, details };
}

/** What the manifest says of the model, and the engine of the runtime, as pairs. */
export function modelFacts(manifest, facts) {
  const pairs = [
    ["Name", manifest.name],
    ["Network", manifest.arch],
    ["Scale", `×${manifest.scale}`],
    ["Tiles", `${size(manifest.size[1], manifest.size[0])} pixels`],
    ["Precision", manifest.precision],
    ["Licence of the weights", manifest.licence],
    ["Exported", manifest.created.slice(0, 10)],
  ];
  if (manifest.capacities.length > 1) pairs.splice(4, 0, ["Slots", `${counted(manifest.capacities.length, "capacity", "capacities")}, at most ${Math.max(...manifest.capacities).toLocaleString("en")}`]);
  if (facts) pairs.push(["Runtime", `onnxruntime-web ${facts.ort}`]);
  return pairs;
}

/** Fills a list of definitions with [term, definition] pairs. */
export function fill(list, pairs) {
  list.replaceChildren(...pairs.map(([term, definition]) => {
    const pair = document.createElement("div");
    for (const [kind, text] of [["dt", term], ["dd", definition]]) pair.append(Object.assign(document.createElement(kind), { textContent: text }));
    return pair;
  }));
}
