// Words and figures for what the page shows.

/** A new element with these properties. */
export const make = (tag, properties) => Object.assign(document.createElement(tag), properties);

/** @param {number} count */
export const counted = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** A size of a file or of memory, in decimal units. */
export function bytes(size) {
  if (size < 1e3) return counted(size, "byte");
  if (size < 1e6) return `${(size / 1e3).toFixed(0)} kB`;
  return size < 1e9 ? `${(size / 1e6).toFixed(size < 1e8 ? 1 : 0)} MB` : `${(size / 1e9).toFixed(2)} GB`;
}

/** A time, with three digits at most below a minute. */
export function duration(ms) {
  if (ms < 999.5) return `${ms.toFixed(ms < 9.995 ? 2 : ms < 99.95 ? 1 : 0)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(ms < 9995 ? 2 : 1)} s`;
  const seconds = Math.round(ms / 1000);
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${seconds % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A time that is an estimate. */
export function roughly(ms) {
  const seconds = Math.max(1, Math.round(ms / 1000));
  if (seconds < 60) return `about ${counted(seconds < 10 ? seconds : 5 * Math.round(seconds / 5), "second")}`;
  const [unit, name] = seconds < 5400 ? [60, "minute"] : [3600, "hour"];
  return `about ${counted(Math.round(seconds / unit), name)}`;
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
const whole = (value) => Math.round(value).toLocaleString("en");
export const size = (width, height) => `${width.toLocaleString("en")} × ${height.toLocaleString("en")}`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** What computes, by the engine's facts: "WebAssembly, 4 threads". */
export function deviceWords({ device, threads, adapter }) {
  if (device !== "webgpu") return `WebAssembly, ${counted(threads, "thread")}`;
  const { vendor, architecture, device: part, description, fallback } = adapter;
  const name = description || [vendor, architecture, part].filter(Boolean).join(" ") || "an adapter without a name";
  return `WebGPU, ${name}${fallback ? " (a fallback adapter: computed in software, slow)" : ""}`;
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
  const headline = [
    ["per tile", duration(done.msPerTile)],
    ["per output megapixel", duration(done.msPerMegapixel)],
    ["in all", duration(done.ms)],
  ];
  const details = [];
  if (done.pure) {
    headline.unshift(["pure pixels", percent(done.pureShare)]);
    const [used, ran] = ["impure", "capacity"].map((field) => whole(mean(tiles.map((tile) => tile[field]))));
    const { capacities } = manifest;
    const most = capacities.length > 1 ? ` that were computed; ${whole(Math.max(...capacities))} at most` : "";
    details.push([tiles.length > 1 ? "Slots, mean of tiles" : "Slots", `${used} used of ${ran}${most}`]);
    const over = tiles.filter((tile) => tile.impure > tile.capacity).length;
    const words = `${counted(over, "tile")} with more impure pixels than slots: the result there is not the network's`;
    if (over) details.push(["Over capacity", words]);
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
  const { capacities } = manifest;
  if (capacities.length > 1) {
    const words = `${counted(capacities.length, "capacity", "capacities")}, at most ${whole(Math.max(...capacities))}`;
    pairs.splice(4, 0, ["Slots", words]);
  }
  if (facts) pairs.push(["Runtime", `onnxruntime-web ${facts.ort}`]);
  return pairs;
}

/** Fills a list of definitions with [term, definition] pairs. */
export function fill(list, pairs) {
  list.replaceChildren(...pairs.map(([term, definition]) => {
    const pair = make("div", {});
    pair.append(make("dt", { textContent: term }), make("dd", { textContent: definition }));
    return pair;
  }));
}
