// The choice that a large picture needs: a part of it, all of it made smaller, or all of it. Which part is shown by a
// frame over the picture, moved by touch, mouse or keyboard.

import { counted, make, roughly } from "./figures.mjs";
import { MAX_PIXELS, choicesFor } from "./picture.mjs";

const THUMBNAIL = 900;
const size = ({ width, height }) => `${width.toLocaleString("en")} × ${height.toLocaleString("en")} pixels`;
const TITLES = { part: "A part of it", reduced: "All of it, made smaller first", all: "All of it, as it is" };

/** The form that asks. */
export class Choice {
  /**
   * @param {{form: HTMLFormElement, why: HTMLElement, list: HTMLElement, canvas: HTMLCanvasElement,
   *   hint: HTMLElement}} parts
   * @param {(box: {x: number, y: number, width: number, height: number}, width: number, height: number) => void} chosen
   */
  constructor(parts, chosen) {
    Object.assign(this, parts);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const { kind, width, height } = this.choice;
      const all = { x: 0, y: 0, width: this.picture.width, height: this.picture.height };
      chosen(kind === "part" ? this.box : all, width, height);
    });
    this.form.addEventListener("change", () => this.#draw());
    this.canvas.addEventListener("pointerdown", (event) => this.#drag(event));
    this.canvas.addEventListener("pointermove", (event) => event.buttons && this.#drag(event));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /**
   * Asks, if there is something to ask.
   * @param {object} picture as `openPicture` returns it
   * @param {object} manifest
   * @param {number} msPerTile of what was enlarged before, 0 where that is not known
   * @returns {boolean} false where all of the picture is small enough
   */
  ask(picture, manifest, msPerTile) {
    this.choices = choicesFor(picture.width, picture.height, manifest.size);
    if (this.choices.length === 1) return false;
    Object.assign(this, { picture });
    const { width, height } = this.choices[0];
    const [x, y] = [picture.width - width, picture.height - height].map((rest) => Math.floor(rest / 2));
    this.box = { x, y, width, height };
    this.why.textContent = `It has ${size(picture)}. `
      + (this.choices.some(({ kind }) => kind === "all") ? "All of it would take long."
        : `That is more than the ${MAX_PIXELS.toLocaleString("en")} that this page takes at once.`);
    this.list.replaceChildren(...this.choices.map((choice, i) => this.#option(choice, i, manifest.scale, msPerTile)));
    return true;
  }

  /** Draws the picture, once there is room for it on the page. */
  shown() {
    const factor = Math.min(1, THUMBNAIL / Math.max(this.picture.width, this.picture.height));
    this.canvas.width = Math.max(1, Math.round(this.picture.width * factor));
    this.canvas.height = Math.max(1, Math.round(this.picture.height * factor));
    this.#draw();
  }

  get choice() {
    return this.choices[Number(new FormData(this.form).get("choice"))];
  }

  #option(choice, i, scale, msPerTile) {
    const label = make("label", { className: "option" });
    const input = make("input", { type: "radio", name: "choice", value: String(i), defaultChecked: i === 0 });
    const result = { width: choice.width * scale, height: choice.height * scale };
    const time = msPerTile ? `, ${roughly(choice.tiles * msPerTile)}` : "";
    const text = `${size(choice)} become ${size(result)}: ${counted(choice.tiles, "tile")}${time}`;
    label.append(input, make("span", { textContent: TITLES[choice.kind] }), make("small", { textContent: text }));
    return label;
  }

  #draw() {
    const { canvas, box, picture } = this;
    const context = canvas.getContext("2d");
    const factor = canvas.width / picture.width;
    context.imageSmoothingQuality = "high";
    context.drawImage(picture.image, 0, 0, canvas.width, canvas.height);
    const moves = this.choice.kind === "part";
    canvas.classList.toggle("moves", moves);
    this.hint.hidden = !moves;
    if (!moves) return;
    const frame = [box.x, box.y, box.width, box.height].map((value) => value * factor);
    context.fillStyle = "rgb(0 0 0 / .55)";
    context.beginPath();
    context.rect(0, 0, canvas.width, canvas.height);
    context.rect(...frame);
    context.fill("evenodd");
    context.lineWidth = Math.max(2, canvas.width / 250);
    context.strokeStyle = "#fff";
    context.strokeRect(...frame);
  }

  /** Moves the frame's upper left corner, as far as the picture reaches. */
  #moveTo(x, y) {
    this.box.x = Math.round(Math.min(Math.max(0, x), this.picture.width - this.box.width));
    this.box.y = Math.round(Math.min(Math.max(0, y), this.picture.height - this.box.height));
    this.#draw();
  }

  #drag(event) {
    if (this.choice.kind !== "part") return;
    this.canvas.setPointerCapture(event.pointerId);
    const place = this.canvas.getBoundingClientRect();
    const factor = this.picture.width / place.width;
    const [x, y] = [(event.clientX - place.left) * factor, (event.clientY - place.top) * factor];
    this.#moveTo(x - this.box.width / 2, y - this.box.height / 2);
  }

  #key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in moves) || this.choice.kind !== "part") return;
    event.preventDefault();
    const [x, y] = moves[event.key].map((value) => (value * Math.max(this.picture.width, this.picture.height)) / 50);
    this.#moveTo(this.box.x + x, this.box.y + y);
  }
}
