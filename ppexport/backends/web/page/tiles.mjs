// Cuts a picture into overlapping tiles of one fixed size, and blends the upscaled tiles: ppexport/imaging/tiles.py,
// whose text says why origins, overlaps and weights are what they are.

import { levels, mirrorIndex } from "./mask.mjs";

/** Origins are multiples of this. */
const MULTIPLE = 16;
/** Pixels (LR) that neighbouring tiles share at least. */
const OVERLAP = 8;

/**
 * Where the tiles of a picture lie, in LR pixels: sizes are [height, width].
 * @typedef {{size: [number, number], tile: [number, number], rows: number[], columns: number[]}} Grid
 */

/** Ascending origins of the tiles that cover [0, length): multiples of 16, the first 0; one if `length` fits. */
function plan(length, tile) {
  if (length <= tile) return [0];
  if (tile < MULTIPLE + OVERLAP) {
    throw new Error(`a side of ${length} pixels does not fit in one tile of ${tile}, and tiles below `
      + `${MULTIPLE + OVERLAP} pixels cannot overlap: export the page with a larger --size, or choose a smaller picture`);
  }
  const stride = Math.floor((tile - OVERLAP) / MULTIPLE);
  const last = Math.ceil((length - tile) / MULTIPLE);
  const gaps = Math.ceil(last / stride);
  return Array.from({ length: gaps + 1 }, (_, i) => MULTIPLE * Math.floor((i * last) / gaps));
}

/**
 * Covers a picture with tiles.
 * @param {[number, number]} size of the picture
 * @param {[number, number]} tile
 * @returns {Grid}
 */
export function planGrid(size, tile) {
  return { size, tile, rows: plan(size[0], tile[0]), columns: plan(size[1], tile[1]) };
}

/**
 * A tile of a picture; past the picture it holds mirrored copies.
 * @param {Uint8Array} rgb (H, W, 3) levels
 * @param {[number, number]} size of the picture
 * @param {[number, number]} origin [top, left]
 * @param {[number, number]} tile
 * @returns {Float32Array} (3, h, w), the levels / 255
 */
export function cut(rgb, size, origin, tile) {
  const rows = mirrorIndex(size[0], origin[0] + tile[0]).subarray(origin[0]);
  const columns = mirrorIndex(size[1], origin[1] + tile[1]).subarray(origin[1]);
  const found = new Float32Array(3 * tile[0] * tile[1]);
  let to = 0;
  for (let channel = 0; channel < 3; channel++) {
    for (const y of rows) {
      for (const x of columns) found[to++] = rgb[3 * (y * size[1] + x) + channel] / 255;
    }
  }
  return found;
}

/** Raised cosine from 0 at `position` 0 to 1 at 1 and beyond; rise(t) + rise(1 - t) = 1. */
function rise(position) {
  return Math.sin(Math.min(position, 1) * (Math.PI / 2)) ** 2;
}

/** The weight of every tile along one axis, its part inside [0, length): at each position they sum to one. */
function axisWeights(origins, tile, length) {
  const total = new Float64Array(length);
  const ramps = origins.map((origin, i) => {
    const ramp = new Float64Array(Math.min(tile, length - origin)).fill(1);
    for (let place = 0; place < ramp.length; place++) {
      const centre = place + 0.5;
      if (i > 0) ramp[place] *= rise(centre / (origins[i - 1] + tile - origin));
      if (i + 1 < origins.length) ramp[place] *= rise((tile - centre) / (origin + tile - origins[i + 1]));
      total[origin + place] += ramp[place];
    }
    return ramp;
  });
  return ramps.map((ramp, i) => Float32Array.from(ramp, (value, place) => value / total[origins[i] + place]));
}

/**
 * Blends the upscaled tiles of a grid, added one at a time and in its order: row by row.
 *
 * Only a band as high as a tile and as wide as the picture is held.
 */
export class Blender {
  /**
   * @param {Grid} grid
   * @param {number} scale
   */
  constructor(grid, scale) {
    const [height, width] = grid.size.map((side) => side * scale);
    this.tile = grid.tile.map((side) => side * scale);
    const [tops, lefts] = [grid.rows, grid.columns].map((origins) => origins.map((origin) => origin * scale));
    Object.assign(this, { width, lefts, edges: [...tops, height], added: 0 });
    this.rowWeights = axisWeights(tops, this.tile[0], height);
    this.columnWeights = axisWeights(lefts, this.tile[1], width);
    // Row r of the band is row edges[i] + r of the picture.
    this.rows = Math.min(this.tile[0], height);
    this.band = Array.from({ length: 3 }, () => new Float32Array(this.rows * width));
  }

  /**
   * Adds the next tile. After the last one of a row of tiles the rows above the next row of tiles are complete.
   * @param {Float32Array} sr (3, h * scale, w * scale)
   * @returns {?{y: number, rows: number, width: number, rgba: Uint8Array}} the complete rows, opaque
   */
  add(sr) {
    const row = Math.floor(this.added / this.lefts.length), column = this.added % this.lefts.length;
    if (row === this.rowWeights.length) throw new Error(`more than ${this.added} tiles`);
    const down = this.rowWeights[row], across = this.columnWeights[column], left = this.lefts[column];
    const [tileHeight, tileWidth] = this.tile;
    this.band.forEach((band, channel) => {
      for (let y = 0; y < down.length; y++) {
        let from = (channel * tileHeight + y) * tileWidth, to = y * this.width + left;
        // Rounded to float32 where NumPy does, so that the picture is that of Python.
        for (const weight of across) band[to++] += Math.fround(sr[from++] * Math.fround(down[y] * weight));
      }
    });
    this.added++;
    return column === this.lefts.length - 1 ? this.complete(this.edges[row], this.edges[row + 1]) : null;
  }

  /** Takes the rows from `top` to `bottom` out of the band. */
  complete(top, bottom) {
    const count = (bottom - top) * this.width, rgba = new Uint8Array(4 * count).fill(255);
    this.band.forEach((band, channel) => {
      levels(band.subarray(0, count)).forEach((level, i) => { rgba[4 * i + channel] = level; });
      band.copyWithin(0, count);
      band.fill(0, band.length - count);
    });
    return { y: top, rows: bottom - top, width: this.width, rgba };
  }
}
