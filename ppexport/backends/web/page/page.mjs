// The page: from a picture that somebody chooses to the enlarged one. The network runs in worker.mjs; this file holds
// what state the page is in and what it says.

import { Choice } from "./choice.mjs";
import { bytes, counted, figuresOf, fill, make, modelFacts, percent, roughly, size } from "./figures.mjs";
import { Network, readManifest } from "./network.mjs";
import { prepareOffline } from "./offline-client.mjs";
import { Preview, openPicture, pixelsOf, resultName } from "./picture.mjs";
import { offerSamples } from "./samples.mjs";
import { Viewer } from "./viewer.mjs";

const at = (id) => document.getElementById(id);
const page = { manifest: null, network: null, picture: null, waiting: null, job: null, turn: 0, id: 0, msPerTile: 0 };

const viewer = new Viewer({ viewer: at("viewer"), canvas: at("canvas"), knob: at("knob"), range: at("split") }, () => {
  at("zoom").textContent = `${Math.round(100 * viewer.zoom)} %`;
});
const choice = new Choice(
  {
    form: at("choice-form"), why: at("choice-why"), list: at("choices"), canvas: at("choice-picture"),
    hint: at("choice-hint"),
  },
  (box, width, height) => attempt(() => begin(box, width, height)),
);

// What the page says.

/** Shows one part of the page, and gives the focus to what comes next there. */
function show(part, focus) {
  for (const id of ["start", "choice", "result"]) at(id).hidden = id !== part;
  if (document.body.dataset.part !== part) window.scrollTo(0, 0);
  document.body.dataset.part = part;
  if (focus) at(focus).focus({ preventScroll: true });
}

function say(text) {
  at("status").textContent = text;
}

/** Shows what went wrong, with a button if there is something to try. */
function complain(text, way, action) {
  at("trouble").replaceChildren(make("span", { textContent: text }));
  at("trouble").hidden = !text;
  if (!action) return;
  const button = make("button", { type: "button", className: "button", textContent: way, onclick: action });
  at("trouble").append(make("br"), button);
}

/** Runs `action`; what it throws is said to the user, and the page waits for another picture. */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    stop();
    complain(error.message);
    say("Choose another picture.");
  }
}

// The network, in its worker.

function opened(facts) {
  fill(at("model"), modelFacts(page.manifest, facts));
  if (page.waiting) send(page.waiting);
  else if (!at("start").hidden) say("Ready for a picture.");
}

function failedToOpen(message) {
  if (page.job) stop();
  complain(message, "Try again, on any device", () => {
    complain("");
    say("");
    page.network.openAnyhow();
  });
  say("The network could not be loaded.");
}

function heard(data) {
  if (data.id === page.job?.id) ({ planned, tile, strip, done, cancelled, error: failed })[data.type]?.(data);
}

// One picture.

async function use(file, name) {
  if (page.job) return say("Cancel the picture that is being enlarged first.");
  complain("");
  say(`Reading ${name} …`);
  const turn = ++page.turn;
  const picture = await openPicture(file, name).catch((error) => {
    if (turn === page.turn) throw error;
  });
  await page.ready;
  // Another one was chosen while this one was read.
  if (turn !== page.turn) return picture?.close();
  page.picture?.close();
  page.picture = picture;
  const { width, height } = picture;
  const asks = choice.ask(page.picture, page.manifest, page.msPerTile);
  if (!asks) return begin({ x: 0, y: 0, width, height }, width, height);
  show("choice", "choice-picture");
  choice.shown();
  say(`${name} is large: choose what shall be enlarged.`);
}

function begin(box, width, height) {
  // One that is still being read would take this one's place.
  page.turn++;
  const { canvas, rgba, transparent } = pixelsOf(page.picture, box, width, height);
  const { manifest: { scale }, picture: { name } } = page;
  const preview = new Preview(width * scale, height * scale);
  const notes = [
    transparent && "The picture is transparent in places: it was put on white, and the result is opaque.",
    width < box.width && `The picture was made smaller first, from ${box.width} × ${box.height} pixels, as chosen.`,
    preview.step > 1 && `What is shown is ${preview.step} times smaller than the result, which is larger than a page `
      + "can show. The download is of full size.",
  ].filter(Boolean);
  page.job = { id: ++page.id, name, input: { width, height }, preview, notes, tiles: [], boxes: [], rows: 0 };
  show("result");
  viewer.show(canvas, width * scale, height * scale, preview.canvas);
  at("canvas").setAttribute("aria-label", `${name} while it is enlarged`);
  at("progress").removeAttribute("value");
  for (const [id, hidden] of [["work", false], ["tools", true], ["figures", true]]) at(id).hidden = hidden;
  at("work-done").textContent = "Waiting for the network";
  at("work-left").textContent = "";
  at("cancel").disabled = false;
  at("cancel").focus({ preventScroll: true });
  send({ type: "upscale", id: page.id, width, height, rgba });
}

/** Gives the picture to the network, as soon as that is loaded. */
function send(message) {
  page.waiting = page.network.facts ? null : message;
  if (page.waiting) return say("Waiting for the network to be loaded.");
  say(`Enlarging ${page.job.name}.`);
  page.network.worker.postMessage(message, [message.rgba]);
  // A phone that goes to sleep stops computing.
  navigator.wakeLock?.request("screen").then((lock) => (page.job ? (page.lock = lock) : lock.release()), () => {});
}

function planned({ tiles }) {
  at("work-done").textContent = `0 of ${counted(tiles, "tile")}`;
  at("progress").value = 0;
}

function tile(data) {
  const { job, manifest: { scale } } = page;
  job.tiles.push(data);
  job.first ??= performance.now();
  job.boxes.push({ x: data.x * scale, y: data.y * scale, w: data.w * scale, h: data.h * scale });
  viewer.grow(job.rows, job.boxes);
  at("progress").value = data.done / data.total;
  at("work-done").textContent = `${data.done.toLocaleString("en")} of ${counted(data.total, "tile")}`;
  // The first tile warms up: it says nothing of the others.
  const each = data.done > 1 ? (performance.now() - job.first) / (data.done - 1) : 0;
  if (each) at("work-left").textContent = `${roughly((data.total - data.done) * each)} left`;
  if (data.done === data.total) at("work-left").textContent = "writing the file";
  document.title = `${Math.round((100 * data.done) / data.total)} % of ${job.name}`;
}

function strip({ rows, width, rgba }) {
  const { job } = page;
  job.preview.add(rgba, width, rows);
  job.rows += rows;
  job.boxes = job.boxes.filter((box) => box.y + box.h > job.rows);
  viewer.grow(job.rows, job.boxes);
}

function done(data) {
  const { job, manifest } = page;
  page.msPerTile = data.msPerTile;
  finishJob();
  viewer.finish(data.pure);
  URL.revokeObjectURL(at("download").href);
  Object.assign(at("download"), {
    href: URL.createObjectURL(data.png),
    download: resultName(job.name, manifest.scale),
    textContent: `Download PNG, ${bytes(data.png.size)}`,
  });
  const { headline, details } = figuresOf(data, job.tiles, job.input, page.network.facts, manifest);
  fill(at("headline"), headline);
  fill(at("details"), details);
  at("notes").replaceChildren(...job.notes.map((text) => make("li", { textContent: text })));
  at("mask").hidden = !data.pure;
  pressMask(false);
  at("legend").textContent = `Green: ${percent(data.pureShare)} of the pixels are pure. They are flat and skip the `
    + "most expensive branch.";
  at("canvas").setAttribute("aria-label", `${job.name}: left of the divider enlarged by the browser, else the result`);
  for (const [id, hidden] of [["work", true], ["tools", false], ["figures", false]]) at(id).hidden = hidden;
  at("split").focus({ preventScroll: true });
  say(`${job.name} is done: ${size(data.width, data.height)} pixels. Move the divider and zoom in to compare.`);
}

function cancelled() {
  stop();
  say("Cancelled: nothing was kept.");
}

function failed({ message }) {
  stop();
  complain(`The picture could not be enlarged: ${message}`);
  say("Choose another picture.");
  // What failed may have left the network's memory in disorder.
  page.network.open();
}

function finishJob() {
  page.job = page.waiting = null;
  page.lock?.release();
  page.lock = null;
  document.title = "Super resolution in your browser";
}

/** Back to where a picture is chosen. */
function stop() {
  finishJob();
  show("start", "file");
}

function cancel() {
  if (page.waiting) return cancelled();
  at("cancel").disabled = true;
  at("work-left").textContent = "stopping after this tile";
  page.network.worker.postMessage({ type: "cancel", id: page.job.id });
}

function pressMask(pressed) {
  at("mask").setAttribute("aria-pressed", String(pressed));
  at("legend").hidden = !pressed;
  viewer.tint(pressed);
}

// What the user does.

function take(file, name = file?.name || "picture.png") {
  if (file) attempt(() => use(file, name));
}

for (const id of ["file", "camera"]) {
  at(id).addEventListener("change", ({ target }) => {
    take(target.files[0]);
    // Else the same file could not be chosen twice.
    target.value = "";
  });
}
document.addEventListener("paste", ({ clipboardData }) => {
  take([...clipboardData.files].find((file) => file.type.startsWith("image/")));
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}

function another() {
  show("start", "file");
  say("Ready for a picture.");
}

for (const [id, action] of Object.entries({
  cancel,
  again: another,
  "choice-cancel": another,
  fit: () => viewer.fit(),
  one: () => viewer.zoomTo(1),
  in: () => viewer.zoomTo(viewer.zoom * 1.5),
  out: () => viewer.zoomTo(viewer.zoom / 1.5),
  mask: () => pressMask(at("mask").getAttribute("aria-pressed") === "false"),
})) at(id).addEventListener("click", action);
at("settings-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (page.job && !page.waiting) return say("Cancel the picture that is being enlarged first.");
  complain("");
  page.network?.open();
});
window.addEventListener("beforeunload", (event) => page.job && event.preventDefault());

// The beginning.

async function start() {
  const { reloads, problem } = await prepareOffline();
  if (reloads) return new Promise(() => {});
  page.manifest = await readManifest();
  at("times").textContent = `×${page.manifest.scale}`;
  at("after-label").textContent = `×${page.manifest.scale} by the network`;
  fill(at("model"), modelFacts(page.manifest, null));
  offerSamples(page.manifest, (name, read) => attempt(async () => use(await read(), name)));
  Object.assign(at("warning"), { textContent: problem, hidden: !problem });
  page.network = new Network(page.manifest, problem, { opened, failed: failedToOpen, heard });
  page.network.open();
}

// Not every touch screen says that it has no mouse.
document.body.classList.toggle("touch", navigator.maxTouchPoints > 0);
say("");
page.ready = start();
page.ready.catch((error) => {
  at("engine").hidden = true;
  complain(error.message, "Reload", () => location.reload());
});
