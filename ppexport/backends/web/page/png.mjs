// Writes a PNG file row by row: what is held does not grow with the picture, since a Blob may lie on the disk.

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const CRCS = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});
/** Bytes of compressed rows that are collected for one chunk. */
const CHUNK = 1 << 16;
/** The filter that stores every byte as its difference from the Paeth predictor: photographs shrink most with it. */
const PAETH = 4;

/** A chunk of a PNG file: length, kind, content, checksum. */
function chunk(kind, content) {
  const bytes = new Uint8Array(content.length + 12), view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(kind), 4);
  bytes.set(content, 8);
  let crc = 0xffffffff;
  for (let i = 4; i < bytes.length - 4; i++) crc = CRCS[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  view.setUint32(bytes.length - 4, ~crc >>> 0);
  return bytes;
}

/** An RGB picture of 8 bits that is being written as a PNG file. */
export class PngWriter {
  /**
   * @param {number} width
   * @param {number} height
   */
  constructor(width, height) {
    const header = new Uint8Array(13), view = new DataView(header.buffer);
    view.setUint32(0, width);
    view.setUint32(4, height);
    header.set([8, 2], 8);
    this.parts = [Uint8Array.from(SIGNATURE), chunk("IHDR", header)];
    this.above = new Uint8Array(3 * width);
    const deflate = new CompressionStream("deflate");
    this.writer = deflate.writable.getWriter();
    this.collected = this.collect(deflate.readable.getReader());
    // Its failure is that of `write` or `finish`, which come later.
    this.collected.catch(() => {});
  }

  /**
   * Appends rows.
   * @param {Uint8Array} rgba (rows, width, 4), of which the alpha is left out
   * @returns {Promise<void>} once there is room for more
   */
  async write(rgba) {
    const { above } = this, length = above.length, rows = (3 * rgba.length) / (4 * length);
    const filtered = new Uint8Array(rows * (length + 1));
    for (let row = 0, from = 0, to = 0; row < rows; row++) {
      filtered[to++] = PAETH;
      let left = [0, 0, 0], corner = [0, 0, 0];
      for (let x = 0; x < length; x += 3, from += 4) {
        for (let c = 0; c < 3; c++) {
          const value = rgba[from + c], a = left[c], b = above[x + c], d = corner[c], p = a + b - d;
          const pa = Math.abs(p - a), pb = Math.abs(p - b), pc = Math.abs(p - d);
          filtered[to++] = value - (pa <= pb && pa <= pc ? a : pb <= pc ? b : d);
          corner[c] = b;
          left[c] = above[x + c] = value;
        }
      }
    }
    await this.writer.ready;
    // Not awaited: the rows of the next tiles are computed meanwhile. `finish` reports what fails.
    this.writer.write(filtered).catch(() => {});
  }

  /**
   * Ends the file.
   * @returns {Promise<Blob>}
   */
  async finish() {
    await this.writer.close();
    await this.collected;
    return new Blob([...this.parts, chunk("IEND", new Uint8Array(0))], { type: "image/png" });
  }

  async collect(reader) {
    const pending = new Uint8Array(CHUNK);
    let filled = 0;
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
      for (let from = 0; from < value.length;) {
        const piece = value.subarray(from, from + CHUNK - filled);
        pending.set(piece, filled);
        from += piece.length;
        filled += piece.length;
        if (filled === CHUNK) {
          this.parts.push(new Blob([chunk("IDAT", pending)]));
          filled = 0;
        }
      }
    }
    if (filled) this.parts.push(chunk("IDAT", pending.subarray(0, filled)));
  }
}
