// Pure-Pass in JavaScript: ppexport/device/mask.py, centers.py and capacities.py, bit for bit.
//
// All of it is integer arithmetic below 2^53, which JavaScript's numbers hold exactly. Tests compare it with Python's.

/**
 * What of an artifact's manifest.json decides how a picture is padded and routed.
 * @typedef {{multiple: number, padding: "mirror"|"reflect", group: number, grids: number[], capacities: number[],
 *   mask: "graph"|"input"|"none", size: [number, number], scale: number, precision: string,
 *   options: {colors?: number, window?: number, csmf?: boolean, centres?: string, share?: number},
 *   files: Object<string, string>}} Manifest
 */

/** Bits of every channel by which adaptiveCentres counts colours. */
const LEVEL_BITS = 4;
/** Times that adaptiveCentres moves its centres. */
const STEPS = 8;

/** `x` rounded to an integer, halves to the even one, as Python's `round`. */
function roundHalfEven(x) {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + (floor % 2) : Math.round(x);
}

/**
 * The (K, 3) integer colour centres: hue k/K, saturation 0.9, value 0.9.
 * @param {number} colors
 * @returns {Int32Array}
 */
export function colourCentres(colors) {
  const found = new Int32Array(3 * colors);
  // The order of operations is that of Python's colorsys, so that the roundings are its own.
  const s = 0.9, v = 0.9;
  for (let k = 0; k < colors; k++) {
    const hue = (k / colors) * 6.0, i = Math.trunc(hue), f = hue - i;
    const p = v * (1.0 - s), q = v * (1.0 - s * f), t = v * (1.0 - s * (1.0 - f));
    const rgb = [[v, t, p], [q, v, p], [p, v, t], [p, q, v], [t, p, v], [v, p, q]][i % 6];
    rgb.forEach((value, channel) => { found[3 * k + channel] = roundHalfEven(255 * value); });
  }
  return found;
}

/**
 * The 8-bit levels of values in [0, 1], which are clamped: floor(255 * clamp(v, 0, 1) + 0.5) in float32.
 * @param {Float32Array} values
 * @returns {Uint8Array}
 */
export function levels(values) {
  const found = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const clamped = Math.min(Math.max(values[i], 0), 1);
    found[i] = Math.fround(Math.fround(clamped * 255) + 0.5);
  }
  return found;
}

/** Where each of `padded` positions reads along an axis of `size`: mirrored copies, the edge repeated. */
export function mirrorIndex(size, padded) {
  return Int32Array.from({ length: padded }, (_, place) => {
    const q = place % (2 * size);
    return q < size ? q : 2 * size - 1 - q;
  });
}

/** As mirrorIndex, without repeating the edge; `padded` is below twice `size`. */
function reflectIndex(size, padded) {
  if (padded >= 2 * size) {
    throw new Error(`a side of ${size} pixels is padded to ${padded} by reflection, which needs more than half as `
      + `many: use ${Math.floor(padded / 2) + 1} pixels or more`);
  }
  return Int32Array.from({ length: padded }, (_, place) => (place < size ? place : 2 * (size - 1) - place));
}

/**
 * How the network of a manifest pads its input.
 * @param {Manifest} manifest
 */
export function layout(manifest) {
  const { multiple, padding } = manifest;
  const index = { mirror: mirrorIndex, reflect: reflectIndex }[padding];
  if (!index) throw new Error(`manifest.json names the padding ${padding}, which this page does not know`);
  const padded = (side) => Math.ceil(side / multiple) * multiple;
  return {
    /** The padded size [H', W'] of a picture of h x w. */
    padded: (h, w) => [padded(h), padded(w)],
    /** `image` (h, w, channels) padded to (H', W', channels). */
    pad(image, h, w, channels) {
      const [height, width] = [padded(h), padded(w)];
      if (height === h && width === w) return image;
      const rows = index(h, height), columns = index(w, width);
      const found = new image.constructor(height * width * channels);
      for (let y = 0, to = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const from = (rows[y] * w + columns[x]) * channels;
          for (let c = 0; c < channels; c++) found[to++] = image[from + c];
        }
      }
      return found;
    },
  };
}

/** Which of the centres (K, 3) has the largest 2 P.C - |C|^2 for the colour r, g, b; of equal ones the first. */
function nearest(centres, squares, r, g, b) {
  let best = 0, most = -Infinity;
  for (let k = 0; k < squares.length; k++) {
    const score = 2 * (r * centres[3 * k] + g * centres[3 * k + 1] + b * centres[3 * k + 2]) - squares[k];
    if (score > most) {
      most = score;
      best = k;
    }
  }
  return best;
}

/** |C|^2 of all centres (K, 3). */
function squaresOf(centres) {
  return Float64Array.from({ length: centres.length / 3 }, (_, k) => (
    centres[3 * k] ** 2 + centres[3 * k + 1] ** 2 + centres[3 * k + 2] ** 2));
}

/**
 * The (K, 3) centres of the main colours of a picture: k-means in integers, as ppexport/device/centers.py explains.
 * @param {Uint8Array} rgb (pixels, 3) levels
 * @param {number} colors
 * @returns {Int32Array}
 */
export function adaptiveCentres(rgb, colors) {
  const width = 8 - LEVEL_BITS, middle = 1 << (width - 1);
  const all = new Uint32Array(1 << (3 * LEVEL_BITS));
  for (let i = 0; i < rgb.length; i += 3) {
    all[((rgb[i] >> width) << (2 * LEVEL_BITS)) | ((rgb[i + 1] >> width) << LEVEL_BITS) | (rgb[i + 2] >> width)]++;
  }
  const digit = (box, place) => (((box >> (LEVEL_BITS * place)) & ((1 << LEVEL_BITS) - 1)) << width) + middle;
  const boxes = [];
  all.forEach((count, box) => {
    if (count) boxes.push({ count, rgb: [digit(box, 2), digit(box, 1), digit(box, 0)], distance: Infinity });
  });
  // The first of the largest, since ties go to the lowest box.
  const largest = (value) => boxes.reduce((best, box) => (value(box) > value(best) ? box : best));
  const chosen = [largest((box) => box.count)];
  while (chosen.length < colors) {
    const last = chosen[chosen.length - 1];
    for (const box of boxes) {
      const distance = box.rgb.reduce((sum, v, c) => sum + (v - last.rgb[c]) ** 2, 0);
      box.distance = Math.min(box.distance, distance);
    }
    chosen.push(largest((box) => box.count * box.distance));
  }
  const centres = Int32Array.from(chosen.flatMap((box) => box.rgb));
  for (let step = 0; step < STEPS; step++) {
    const squares = squaresOf(centres), totals = new Float64Array(colors), sums = new Float64Array(3 * colors);
    for (const box of boxes) {
      const k = nearest(centres, squares, ...box.rgb);
      totals[k] += box.count;
      box.rgb.forEach((value, channel) => { sums[3 * k + channel] += box.count * value; });
    }
    for (let i = 0; i < centres.length; i++) {
      const total = totals[Math.floor(i / 3)];
      if (total > 0) centres[i] = Math.floor((2 * sums[i] + total) / (2 * total));
    }
  }
  return centres;
}

/**
 * The centres of a whole picture for all its tiles; null where they are not adaptive.
 * @param {Manifest} manifest
 * @param {Uint8Array} rgb (pixels, 3) levels
 * @returns {Int32Array|null}
 */
export function centresOf(manifest, rgb) {
  return manifest.options.centres === "adaptive" ? adaptiveCentres(rgb, manifest.options.colors) : null;
}

/**
 * The label of every pixel of a picture, padded as the manifest says.
 * @param {Uint8Array} rgb (h, w, 3) levels
 * @param {number} h
 * @param {number} w
 * @param {Manifest} manifest
 * @param {?ArrayLike<number>} centres (K, 3) integers from 0 to 255, such as those of the whole picture for a tile; if
 *   left out, those that the manifest's options name
 * @returns {{labels: Uint8Array, height: number, width: number}}
 */
export function labels(rgb, h, w, manifest, centres = null) {
  const { colors, centres: kind = "fixed" } = manifest.options, { pad, padded } = layout(manifest);
  const own = () => (kind === "adaptive" ? adaptiveCentres(pad(rgb, h, w, 3), colors) : colourCentres(colors));
  const used = centres ?? own(), squares = squaresOf(used), found = new Uint8Array(h * w);
  for (let i = 0; i < found.length; i++) found[i] = nearest(used, squares, rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]);
  const [height, width] = padded(h, w);
  return { labels: pad(found, h, w, 1), height, width };
}

/**
 * The pure pixels of a label map: those in a window of one label only. With `csmf` (cross-shift mask fusion) windows of
 * the grid shifted by half a window count as well.
 * @param {Uint8Array} map (height, width) labels, sides multiples of `window`
 * @param {number} height
 * @param {number} width
 * @param {number} window
 * @param {boolean} csmf
 * @returns {Uint8Array} (height, width), 1 = pure
 */
export function pureMask(map, height, width, window, csmf) {
  const pure = new Uint8Array(height * width);
  for (const shift of csmf ? [0, window / 2] : [0]) {
    for (let top = shift; top + window <= height; top += window) {
      for (let left = shift; left + window <= width; left += window) {
        if (isUniform(map, width, top, left, window)) {
          for (let y = top; y < top + window; y++) pure.fill(1, y * width + left, y * width + left + window);
        }
      }
    }
  }
  return pure;
}

function isUniform(map, width, top, left, window) {
  const label = map[top * width + left];
  for (let y = top; y < top + window; y++) {
    for (let i = y * width + left; i < y * width + left + window; i++) if (map[i] !== label) return false;
  }
  return true;
}

/**
 * Slots that a picture needs by its pure pixels: its other pixels, or those of its hard windows.
 * @param {Uint8Array} pure (height, width), 1 = pure
 * @param {number} height
 * @param {number} width
 * @param {Manifest} manifest
 * @returns {number}
 */
export function routed(pure, height, width, manifest) {
  const { group, grids, options } = manifest;
  if (!grids.length) return pure.reduce((count, p) => count - p, pure.length);
  // A window is easy where at least this many of its pixels are pure. Of several grids the one with more hard windows
  // counts; windows that a shift cuts at the border need no slots.
  const side = Math.sqrt(group), least = Math.ceil((options.share ?? 1) * group);
  const hard = grids.map((shift) => {
    let count = 0;
    for (let top = shift; top + side <= height - shift; top += side) {
      for (let left = shift; left + side <= width - shift; left += side) {
        let inside = 0;
        for (let y = top; y < top + side; y++) {
          for (let i = y * width + left; i < y * width + left + side; i++) inside += pure[i];
        }
        if (inside < least) count++;
      }
    }
    return count;
  });
  return Math.max(...hard) * group;
}

/**
 * The first of the ascending capacities that holds `impure` tokens, or the last where none does; 0 where there are none.
 * @param {number[]} capacities
 * @param {number} impure
 * @returns {number}
 */
export function smallestCapacity(capacities, impure) {
  return capacities.find((capacity) => capacity >= impure) ?? capacities[capacities.length - 1] ?? 0;
}
