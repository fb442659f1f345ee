// Reads the picture that somebody chose, and says what of it can be enlarged: never more pixels than a canvas holds,
// and never fewer than there are without a choice that says so.

import { make } from "./figures.mjs";
import { planGrid } from "./tiles.mjs";

/** Pixels of the largest canvas on iPhones and iPads, which have the lowest limit: 16.7 million. */
export const MAX_PIXELS = 16_777_216;
/** With more tiles than this a choice is offered before the work begins. */
const MANY_TILES = 60;

/** What a picture cannot be used for, as a sentence for the person who chose it. */
export class PictureError extends Error {}

/**
 * Opens a picture, upright: the browser applies the orientation that EXIF names.
 * @param {Blob} file
 * @param {string} name
 * @returns {Promise<{image: HTMLImageElement, name: string, width: number, height: number, close: () => void}>}
 */
export async function openPicture(file, name) {
  const address = URL.createObjectURL(file);
  const image = new Image();
  image.src = address;
  try {
    await image.decode();
    if (!image.naturalWidth || !image.naturalHeight) throw new Error("a picture without a size");
  } catch {
    URL.revokeObjectURL(address);
    throw new PictureError(await whyUnreadable(file, name));
  }
  const close = () => URL.revokeObjectURL(address);
  return { image, name, width: image.naturalWidth, height: image.naturalHeight, close };
}

/** Why the browser could not read `file`, and the way out. */
async function whyUnreadable(file, name) {
  if (file.size === 0) return `${name} is empty: choose another picture.`;
  const start = await file.slice(0, 32).arrayBuffer().catch(() => new ArrayBuffer(0));
  const head = String.fromCharCode(...new Uint8Array(start));
  if (/^....ftyp(hei|hev|mif|msf)/s.test(head) || /\.hei[cf]$/i.test(name)) {
    return `${name} is a HEIC picture, which this browser cannot read: save it as JPEG, or open this page in Safari.`;
  }
  if (/^(\x89PNG|\xff\xd8\xff|GIF8|BM|RIFF....WEBP|....ftypavif)/s.test(head)) {
    return `${name} cannot be read: it is damaged, cut short, or too large for this browser. Choose another picture.`;
  }
  return `${name} is not a picture that this browser can read: choose a JPEG, PNG or WebP file.`;
}

/** How many tiles ([height, width]) a picture of width x height takes; NaN where it cannot be cut into such. */
export function countTiles(width, height, tile) {
  try {
    const grid = planGrid([height, width], tile);
    return grid.rows.length * grid.columns.length;
  } catch {
    return NaN;
  }
}

/**
 * What can be enlarged of a picture. One choice: the picture is small, and nobody needs to be asked.
 * @param {number} width
 * @param {number} height
 * @param {[number, number]} tile of the model, [height, width]
 * @returns {{kind: "all"|"part"|"reduced", width: number, height: number, tiles: number}[]} the best choice first
 */
export function choicesFor(width, height, tile) {
  const all = { kind: "all", width, height, tiles: countTiles(width, height, tile) };
  if (all.tiles <= MANY_TILES || Number.isNaN(all.tiles)) return [all];
  // A part of 5 x 4 tiles, or 4 x 5; all of it at 1.25 times that size.
  const side = (length, count) => length + (count - 1) * 16 * Math.floor((length - 8) / 16);
  const [columns, rows] = width >= height ? [5, 4] : [4, 5];
  const [partWidth, partHeight] = [side(tile[1], columns), side(tile[0], rows)];
  const part = { kind: "part", width: Math.min(width, partWidth), height: Math.min(height, partHeight) };
  const factor = Math.min(1, (1.25 * Math.max(partWidth, partHeight)) / Math.max(width, height));
  const smaller = (length) => Math.max(1, Math.round(length * factor));
  const reduced = { kind: "reduced", width: smaller(width), height: smaller(height) };
  const found = [part, reduced].map((choice) => ({ ...choice, tiles: countTiles(choice.width, choice.height, tile) }));
  return width * height <= MAX_PIXELS ? [...found, all] : found;
}

/**
 * The pixels of a picture, or of a part of it, on white where it is transparent.
 * @param {{image: HTMLImageElement}} picture
 * @param {{x: number, y: number, width: number, height: number}} box what is taken, in the picture's pixels
 * @param {number} width of the result
 * @param {number} height of the result
 * @returns {{canvas: HTMLCanvasElement, rgba: ArrayBuffer, transparent: boolean}}
 */
export function pixelsOf(picture, box, width, height) {
  if (!readsWhatItDrew()) {
    throw new PictureError("This browser changes the pixels that a page reads, to make people harder to recognise. "
      + "The result would be wrong: allow it to read canvas data (Brave: the shield; Firefox: resistFingerprinting).");
  }
  const canvas = make("canvas", { width, height });
  // Read back often: kept in memory, where colours with alpha are computed alike on all devices.
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new PictureError(`This browser has no room for ${width} × ${height} pixels: take a part.`);
  context.imageSmoothingEnabled = width !== box.width || height !== box.height;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture.image, box.x, box.y, box.width, box.height, 0, 0, width, height);
  let data;
  try {
    ({ data } = context.getImageData(0, 0, width, height));
  } catch (error) {
    if (error.name !== "SecurityError") throw error;
    throw new PictureError(`This browser lets no page read ${picture.name}, as SVG files may show parts of other pages: `
      + "save it as PNG.");
  }
  let transparent = false;
  for (let at = 3; at < data.length && !transparent; at += 4) transparent = data[at] < 255;
  if (transparent) {
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    data = context.getImageData(0, 0, width, height).data;
  }
  return { canvas, rgba: data.buffer, transparent };
}

/** Whether a canvas gives back the pixels that were put into it: protections against fingerprinting add noise. */
function readsWhatItDrew() {
  const side = 16;
  const context = make("canvas", { width: side, height: side }).getContext("2d", { willReadFrequently: true });
  const drawn = new ImageData(side, side);
  for (let at = 0; at < drawn.data.length; at++) drawn.data[at] = at % 4 === 3 ? 255 : (at * 89) % 251;
  context.putImageData(drawn, 0, 0);
  const read = context.getImageData(0, 0, side, side).data;
  return read.every((value, at) => value === drawn.data[at]);
}

/** The name of the enlarged picture: "photo.jpeg" becomes "photo_x2.png". */
export function resultName(name, scale) {
  return `${name.replace(/\.[^.]*$/, "") || "picture"}_x${scale}.png`;
}

/** The result while it grows and when it is done. Beyond what a canvas holds its pixels are means of k x k. */
export class Preview {
  /** @param {number} width of the result @param {number} height */
  constructor(width, height, limit = MAX_PIXELS) {
    this.step = 1;
    while (Math.ceil(width / this.step) * Math.ceil(height / this.step) > limit) this.step++;
    this.canvas = make("canvas", { width: Math.ceil(width / this.step), height: Math.ceil(height / this.step) });
    this.context = this.canvas.getContext("2d");
    if (!this.context) throw new PictureError("This browser has no room for the result: take a smaller part.");
    this.height = height;
    this.rows = 0;
    this.sums = new Uint32Array(this.step > 1 ? 4 * this.canvas.width : 0);
  }

  /** Adds the next `rows` finished rows, RGBA of `width`. */
  add(rgba, width, rows) {
    const pixels = new Uint8ClampedArray(rgba);
    if (this.step === 1) this.context.putImageData(new ImageData(pixels, width, rows), 0, this.rows);
    else for (let row = 0; row < rows; row++) this.#average(pixels, 4 * width * row, 4 * width, this.rows + row);
    this.rows += rows;
  }

  #average(all, from, length, y) {
    const { step, sums } = this;
    const pixels = all.subarray(from, from + length);
    for (let at = 0; at < pixels.length; at += 4) {
      const to = 4 * Math.floor(at / 4 / step);
      for (let channel = 0; channel < 3; channel++) sums[to + channel] += pixels[at + channel];
      sums[to + 3]++;
    }
    if ((y + 1) % step && y + 1 < this.height) return;
    const line = new ImageData(this.canvas.width, 1);
    for (let at = 0; at < sums.length; at++) line.data[at] = at % 4 === 3 ? 255 : sums[at] / sums[at - (at % 4) + 3];
    this.context.putImageData(line, 0, Math.floor(y / step));
    sums.fill(0);
  }
}
