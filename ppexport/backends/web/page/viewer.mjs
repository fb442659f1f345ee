// Shows a picture before and after: a divider between both, zoom, panning, pure pixels tinted. On one canvas of the
// size that it has on the screen, because a phone has no room for several of the result's size.

import { make } from "./figures.mjs";

const LARGEST_ZOOM = 16;
/** How close to the divider a finger or a mouse takes hold of it, in CSS pixels. */
const REACH = 30;
const STEP = 60;
const TINT = [0, 200, 120, 140];

/** A view of one picture. Coordinates are CSS pixels of the view; `zoom` is CSS pixels for one pixel of the result. */
export class Viewer {
  /**
   * @param {{viewer: HTMLElement, canvas: HTMLCanvasElement, knob: HTMLElement, range: HTMLInputElement}} parts
   * @param {() => void} changed is called when the zoom or the divider has changed
   */
  constructor({ viewer, canvas, knob, range }, changed) {
    Object.assign(this, { viewer, canvas, knob, range, changed });
    this.context = canvas.getContext("2d");
    this.pointers = new Map();
    this.tiles = [];
    new ResizeObserver(() => this.picture && this.#resized()).observe(viewer);
    range.addEventListener("input", () => this.draw());
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => this.#up(event));
    canvas.addEventListener("dblclick", (event) => this.#toggle(event));
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    viewer.addEventListener("keydown", (event) => this.#key(event));
  }

  /**
   * Shows another picture, as a whole.
   * @param {HTMLCanvasElement} before the picture as it was
   * @param {number} width of the result, whatever size its preview has
   * @param {number} height
   * @param {HTMLCanvasElement} after the result, or what there is of it
   */
  show(before, width, height, after) {
    this.picture = { before, after, width, height };
    Object.assign(this, { pure: null, showsPure: false, compares: false, rows: 0, tiles: [], fits: true });
    this.range.value = "50";
    this.viewer.style.aspectRatio = `${width} / ${height}`;
    this.viewer.style.maxWidth = `calc(68svh * ${width / height})`;
    this.#resized();
  }

  /** While it works: `rows` of the result are done, and beside them the tiles at `boxes` (pixels of the result). */
  grow(rows, boxes) {
    this.rows = rows;
    this.tiles = boxes;
    this.draw();
  }

  /** The work is done: compares, and can tint the pure pixels (0/1 for every pixel of the picture before), if any. */
  finish(pure) {
    this.compares = true;
    this.tiles = [];
    if (pure) {
      this.pure = make("canvas", { width: pure.width, height: pure.height });
      const tinted = new ImageData(pure.width, pure.height);
      pure.bits.forEach((bit, at) => bit && tinted.data.set(TINT, 4 * at));
      this.pure.getContext("2d").putImageData(tinted, 0, 0);
    }
    this.draw();
  }

  /** Tints the pure pixels, or no longer does. */
  tint(shown) {
    this.showsPure = shown;
    this.draw();
  }

  /** Zooms to the whole picture. */
  fit() {
    this.fits = true;
    this.#resized();
  }

  /** Zooms to `zoom` CSS pixels for one of the result; (x, y) of the view, by default its middle, stays in place. */
  zoomTo(zoom, x = this.width / 2, y = this.height / 2) {
    const wanted = Math.min(Math.max(zoom, Math.min(1, this.#fitting())), LARGEST_ZOOM);
    this.left = x - ((x - this.left) * wanted) / this.zoom;
    this.top = y - ((y - this.top) * wanted) / this.zoom;
    this.zoom = wanted;
    this.fits = wanted === this.#fitting();
    this.draw();
  }

  /** Whether the picture is larger than the view. */
  get pans() {
    return this.picture.width * this.zoom > this.width + 1 || this.picture.height * this.zoom > this.height + 1;
  }

  #fitting() {
    return Math.min(this.width / this.picture.width, this.height / this.picture.height, LARGEST_ZOOM);
  }

  #resized() {
    const { clientWidth, clientHeight } = this.viewer;
    if (!clientWidth || !clientHeight) return;
    const [x, y] = [(this.width / 2 - this.left) / this.zoom, (this.height / 2 - this.top) / this.zoom];
    Object.assign(this, { width: clientWidth, height: clientHeight });
    const sharp = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(clientWidth * sharp);
    this.canvas.height = Math.round(clientHeight * sharp);
    if (this.fits) Object.assign(this, { zoom: this.#fitting(), left: 0, top: 0 });
    else [this.left, this.top] = [clientWidth / 2 - x * this.zoom, clientHeight / 2 - y * this.zoom];
    this.draw();
  }

  /** Keeps the picture in the view: in its middle where it is smaller, at the edge at most where it is larger. */
  #hold() {
    const place = (at, size, view) => (size <= view ? (view - size) / 2 : Math.min(0, Math.max(view - size, at)));
    this.left = place(this.left, this.picture.width * this.zoom, this.width);
    this.top = place(this.top, this.picture.height * this.zoom, this.height);
  }

  /** Left and right edge of what is seen of the picture. */
  #seen() {
    return [Math.max(0, this.left), Math.min(this.width, this.left + this.picture.width * this.zoom)];
  }

  get #divider() {
    const [from, to] = this.#seen();
    return from + ((to - from) * Number(this.range.value)) / 100;
  }

  draw() {
    if (!this.picture || this.frame) return;
    // At most once for a frame of the screen, however many events there are.
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.#paint();
    });
  }

  #paint() {
    this.#hold();
    const { context, canvas, picture, zoom, left, top } = this;
    const [width, height] = [picture.width * zoom, picture.height * zoom];
    const sharp = canvas.width / this.width;
    const divider = this.#divider;
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture.before, left, top, width, height);
    const bottom = this.compares ? this.height : top + this.rows * zoom;
    const from = this.compares ? divider : 0;
    if (!this.compares) this.#paintTiles();
    this.#drawIn([[from, 0, this.width - from, bottom]], picture.after, [left, top, width, height]);
    if (this.showsPure && this.pure) {
      context.imageSmoothingEnabled = false;
      context.drawImage(this.pure, left, top, width, height);
      context.imageSmoothingEnabled = true;
    }
    if (this.compares) this.#paintDivider(divider);
    else this.#outline(this.tiles.at(-1));
    this.viewer.classList.toggle("split", this.compares);
    this.viewer.classList.toggle("pans", this.pans);
    const share = Number(this.range.value);
    this.range.setAttribute("aria-valuetext", `${share} % enlarged by the browser, ${100 - share} % result`);
    this.changed();
  }

  #paintDivider(at) {
    const { context } = this;
    context.fillStyle = "rgb(0 0 0 / .45)";
    context.fillRect(at - 2, 0, 4, this.height);
    context.fillStyle = "#fff";
    context.fillRect(at - 1, 0, 2, this.height);
    this.knob.style.left = `${at}px`;
  }

  #boxOnScreen({ x, y, w, h }) {
    return [this.left + x * this.zoom, this.top + y * this.zoom, w * this.zoom, h * this.zoom];
  }

  /** Dims what no tile has reached yet. */
  #paintTiles() {
    const { context, picture } = this;
    const all = this.#boxOnScreen({ x: 0, y: 0, w: picture.width, h: picture.height });
    context.fillStyle = "rgb(18 22 29 / .6)";
    context.fillRect(...all);
    this.#drawIn(this.tiles.map((box) => this.#boxOnScreen(box)), picture.before, all);
  }

  /** Draws an image at a place, but only inside some boxes: once, since without a GPU each time takes long. */
  #drawIn(boxes, image, place) {
    const { context } = this;
    context.save();
    context.beginPath();
    for (const box of boxes) context.rect(...box);
    context.clip();
    context.drawImage(image, ...place);
    context.restore();
  }

  /** Draws a frame around the tile that was done last. */
  #outline(box) {
    if (!box) return;
    this.context.lineWidth = 2;
    this.context.strokeStyle = "#fff";
    this.context.strokeRect(...this.#boxOnScreen(box));
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  #down(event) {
    if (!this.picture || event.button > 0) return;
    const place = this.#place(event);
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, place);
    const splits = this.compares && (!this.pans || Math.abs(place.x - this.#divider) < REACH);
    this.doing = this.pointers.size > 1 ? "pinch" : splits ? "split" : "pan";
    if (this.doing === "split" && event.pointerType === "mouse") this.#splitAt(place.x);
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const place = this.#place(event);
    if (this.doing === "pinch") {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const apart = (point) => Math.max(20, Math.hypot(point.x - other.x, point.y - other.y));
        this.zoomTo((this.zoom * apart(place)) / apart(before), (place.x + other.x) / 2, (place.y + other.y) / 2);
      }
    }
    // A finger moves the divider by as much as itself, so that scrolling the page moves it by next to nothing.
    const moved = event.pointerType === "mouse" ? place.x : this.#divider + place.x - before.x;
    if (this.doing === "split") this.#splitAt(moved);
    else this.#pan((place.x - before.x) / this.pointers.size, (place.y - before.y) / this.pointers.size);
    this.pointers.set(event.pointerId, place);
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
    this.doing = this.pointers.size ? "pan" : "";
  }

  #pan(x, y) {
    this.left += x;
    this.top += y;
    this.draw();
  }

  #splitAt(x) {
    const [from, to] = this.#seen();
    this.range.value = String((100 * (x - from)) / (to - from));
    this.draw();
  }

  #toggle(event) {
    const place = this.#place(event);
    if (this.pans) this.fit();
    else this.zoomTo(Math.max(1, 2.5 * this.#fitting()), place.x, place.y);
  }

  #wheel(event) {
    // A wheel alone scrolls the page; with Ctrl, which is also what a trackpad's pinch sends, it zooms the picture.
    if (!event.ctrlKey || !this.picture) return;
    event.preventDefault();
    const place = this.#place(event);
    this.zoomTo(this.zoom * Math.exp(-event.deltaY / 200), place.x, place.y);
  }

  #key(event) {
    if (!this.picture || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };
    if (event.key in moves && this.pans) this.#pan(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoomTo(this.zoom * 1.5);
    else if (event.key === "-") this.zoomTo(this.zoom / 1.5);
    else if (event.key === "0") this.fit();
    else if (event.key === "1") this.zoomTo(1);
    else return;
    event.preventDefault();
  }
}
