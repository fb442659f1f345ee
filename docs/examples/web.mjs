// Super-resolves a picture of any size in the browser, with an artifact of the backend web in the folder `model` beside
// this file. Run in a headless Chromium by tests/test_examples.py.
//
//   cp web.html web.mjs site/ && ppexport export pp_atd_light_x2 --backend web --size 64x64 -o site/model
//   python -m http.server --directory site        # and open http://127.0.0.1:8000/web.html
//
// The folder holds onnxruntime-web and the worker of its own page, which cuts tiles, computes the mask, chooses slots,
// blends, and writes a PNG: an app needs no more than its messages. `worker.mjs` lists all of them.

/** Opens the artifact in `folder`; `device` is "auto", "webgpu" or "wasm". Everything heavy happens in its worker. */
export function openUpscaler(folder, device = "auto") {
  const worker = new Worker(new URL("worker.mjs", folder), { type: "module" });
  const waiting = new Map();
  let number = 0, opened, ended = null;
  const ready = new Promise((resolve, reject) => (opened = { resolve, reject }));
  worker.onmessage = ({ data }) => {
    const request = data.id === undefined || data.id === null ? opened : waiting.get(data.id);
    if (data.type === "opened") opened.resolve(data.facts);
    if (data.type === "tile") request?.progress(data.done, data.total);
    if (data.type === "done") request?.resolve(data);
    // The message is a sentence for people: a missing file, a lost GPU, too little memory.
    if (data.type === "error") request?.reject(new Error(data.message));
    if (data.type === "done" || data.type === "error") waiting.delete(data.id);
  };
  // No answer will come any more.
  const end = (sentence) => {
    worker.terminate();
    ended = new Error(sentence);
    for (const request of [opened, ...waiting.values()]) request.reject(ended);
    waiting.clear();
  };
  // Failures have answers; this one had none. Without a message the worker's files could not be loaded.
  worker.onerror = ({ message }) => end(
    message ? `the worker has ended: ${message}` : `${folder} is no artifact of the backend web, or cannot be reached`);
  worker.onmessageerror = () => end("the worker has ended: its answer cannot be read");
  worker.postMessage({ type: "open", device, threads: 0 });

  return {
    ready,
    /**
     * @param {ImageData} pixels opaque; their alpha is not read
     * @param {(done: number, total: number) => void} progress called after every tile
     * @returns {Promise<{png: Blob, width: number, height: number, pureShare: ?number, ms: number}>}
     */
    async upscale(pixels, progress = () => {}) {
      await ready;
      if (ended) throw ended;
      const id = ++number, rgba = pixels.data.slice().buffer;
      return new Promise((resolve, reject) => {
        waiting.set(id, { resolve, reject, progress });
        // The buffer is handed over and not copied.
        worker.postMessage({ type: "upscale", id, width: pixels.width, height: pixels.height, rgba }, [rgba]);
      });
    },
  };
}

/** The pixels of a file that the browser can decode, on white where it is transparent. */
async function pixelsOf(file) {
  const bitmap = await createImageBitmap(file);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

const upscaler = openUpscaler(new URL("model/", import.meta.url));
const [file, state, result] = ["file", "state", "result"].map((id) => document.getElementById(id));
const failed = (error) => (state.textContent = error.message);
upscaler.ready.then(({ device }) => (state.textContent = `ready, on ${device}`), failed);
file.addEventListener("change", async () => {
  try {
    const pixels = await pixelsOf(file.files[0]);
    const found = await upscaler.upscale(pixels, (done, total) => (state.textContent = `${done} of ${total} tiles`));
    URL.revokeObjectURL(result.src);
    result.src = URL.createObjectURL(found.png);
    state.textContent = `${found.width}x${found.height}, ${Math.round(100 * (found.pureShare ?? 0))} % pure`;
  } catch (error) {
    failed(error);
  }
});
