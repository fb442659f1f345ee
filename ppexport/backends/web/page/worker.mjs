// The page's Web Worker: upscales pictures tile by tile, so that the page stays usable. page.mjs has its messages.
//
// In:  {type: "open", device, threads}                  once
//      {type: "upscale", id, width, height, rgba}       rgba: an ArrayBuffer of opaque pixels; one after the other
//      {type: "cancel", id}
// Out: {type: "opened", facts, manifest}
//      {type: "planned", id, tiles, scale}
//      {type: "tile", id, done, total, x, y, w, h, impure, tokens, capacity, slots, ms}   a box of LR pixels
//      {type: "strip", id, y, rows, width, rgba}        finished rows of the result
//      {type: "done", id, width, height, png, pure, pureShare, ms, msPerTile, msPerMegapixel, memory}
//      {type: "cancelled", id}
//      {type: "error", id, message}                     id is null before the engine is open

import { explained, openEngine, turn } from "./engine.mjs";
import { centresOf, labels, pureMask } from "./mask.mjs";
import { PngWriter } from "./png.mjs";
import { Blender, cut, planGrid } from "./tiles.mjs";

let engine = null;
let queue = Promise.resolve();
const cancelled = new Set();

/** The Pure-Pass mask of the whole picture, for people: null where the network has none. */
function wholeMask(rgb, height, width) {
  const { manifest } = engine, { window, csmf } = manifest.options;
  if (manifest.mask === "none") return null;
  let map;
  try {
    map = labels(rgb, height, width, manifest);
  } catch {
    return null; // Too small to be padded by reflection: only its one tile has a mask.
  }
  const pure = pureMask(map.labels, map.height, map.width, window, csmf), bits = new Uint8Array(height * width);
  for (let y = 0; y < height; y++) bits.set(pure.subarray(y * map.width, y * map.width + width), y * width);
  return { pure: { width, height, bits }, share: pure.reduce((sum, bit) => sum + bit, 0) / pure.length };
}

/** The pixels of a picture without their alpha. */
function withoutAlpha(rgba) {
  const rgb = new Uint8Array((3 * rgba.length) / 4);
  for (let from = 0, to = 0; to < rgb.length; from++) if (from % 4 < 3) rgb[to++] = rgba[from];
  return rgb;
}

async function upscale(request) {
  const { id, width, height } = request, { manifest } = engine;
  const { scale, size: [tileHeight, tileWidth], tokens } = manifest, rgb = withoutAlpha(new Uint8Array(request.rgba));
  // A large picture is held once.
  request.rgba = null;
  const grid = planGrid([height, width], manifest.size), blender = new Blender(grid, scale);
  const origins = grid.rows.flatMap((y) => grid.columns.map((x) => [y, x])), total = origins.length;
  const png = new PngWriter(width * scale, height * scale);
  postMessage({ type: "planned", id, tiles: total, scale });
  // All tiles have the centres of the picture: a tile's own would split its few colours further.
  const centres = centresOf(manifest, rgb);
  const prepare = (origin) => engine.prepare(cut(rgb, [height, width], origin, manifest.size), centres);
  let ms = 0, next = prepare(origins[0]);
  for (let i = 0; i < total; i++) {
    // Reads a "cancel" that has arrived meanwhile.
    await turn();
    if (cancelled.delete(id)) return postMessage({ type: "cancelled", id });
    // The next tile is prepared while a GPU computes this one.
    const running = engine.run(next), [y, x] = origins[i];
    next = i + 1 < total && prepare(origins[i + 1]);
    const found = await running, strip = blender.add(found.sr);
    ms += found.ms;
    postMessage({
      type: "tile", id, done: i + 1, total, x, y, w: Math.min(tileWidth, width - x), h: Math.min(tileHeight, height - y),
      impure: found.impure, tokens, capacity: found.capacity, slots: found.capacity, ms: found.ms,
    });
    if (strip) {
      await png.write(strip.rgba);
      const { buffer } = strip.rgba;
      postMessage({ type: "strip", id, y: strip.y, rows: strip.rows, width: strip.width, rgba: buffer }, [buffer]);
    }
  }
  const blob = await png.finish(), mask = wholeMask(rgb, height, width), area = width * height * scale * scale;
  postMessage({
    type: "done", id, width: width * scale, height: height * scale, png: blob, pure: mask?.pure ?? null,
    pureShare: mask?.share ?? null, ms, msPerTile: ms / total, msPerMegapixel: (1e6 * ms) / area, memory: engine.memory,
  });
}

/** Runs a request and posts its failure. */
async function answered(id, request) {
  try {
    await request();
  } catch (error) {
    postMessage({ type: "error", id, message: explained(error) });
  }
}

addEventListener("message", ({ data }) => {
  if (data.type === "cancel") {
    cancelled.add(data.id);
  } else if (data.type === "open") {
    queue = queue.then(() => answered(null, async () => {
      engine = await openEngine({ device: data.device, threads: data.threads });
      postMessage({ type: "opened", facts: engine.facts, manifest: engine.manifest });
    }));
  } else {
    queue = queue.then(() => answered(data.id, () => upscale(data)));
  }
});
