// The page's side of offline.js: registers it, loads the page once more where that gives threads, asks for the copy.

const RELOADED = `ppexport reloaded ${location.pathname}`;
const PATIENCE_MS = 8000;
const THIS_DEVICE = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;

const INSECURE = "This address is not secure (plain http over a network), so browsers give the page one thread, no "
  + "WebGPU and no offline copy. Open it over https, or as localhost, for all three.";
const ONE_THREAD = "This page is not isolated from other origins, so the browser gives it one thread: a server that "
  + "sends Cross-Origin-Opener-Policy and Cross-Origin-Embedder-Policy gives it more.";

/**
 * Registers the service worker on a secure origin. Where the server does not send the headers that give threads, the
 * page is loaded once more, through the service worker, which adds them: once in a session, whatever comes of it.
 * @returns {Promise<{reloads: boolean, problem: string}>} a problem is a sentence, or empty
 */
export async function prepareOffline() {
  const isolated = window.crossOriginIsolated;
  const stays = (problem) => ({ reloads: false, problem: isolated ? problem : `${problem} ${ONE_THREAD}`.trim() });
  if (!window.isSecureContext) return { reloads: false, problem: INSECURE };
  // A server of this device needs no network, and would leave a copy behind for every port that it has had.
  if (isolated && THIS_DEVICE.test(location.hostname)) return stays("");
  if (!navigator.serviceWorker) return stays("This browser allows no offline copy, perhaps as the window is private.");
  try {
    if (isolated) sessionStorage.removeItem(RELOADED);
    await navigator.serviceWorker.register("offline.js", { updateViaCache: "none" });
    // Once it is active, what the page loads next is kept right away, instead of being loaded twice.
    const late = new Promise((resolve) => setTimeout(resolve, PATIENCE_MS));
    const active = await Promise.race([navigator.serviceWorker.ready, late]);
    if (isolated || !active || sessionStorage.getItem(RELOADED)) return stays("");
    sessionStorage.setItem(RELOADED, "1");
    location.reload();
    return { reloads: true, problem: "" };
  } catch (error) {
    return stays(`There is no offline copy: ${error.message}`);
  }
}

/** Calls `heard` with the number of bytes that came over the network, while the service worker loads files. */
export function onLoading(heard) {
  navigator.serviceWorker?.addEventListener("message", ({ data }) => data.type === "loading" && heard(data.bytes));
  navigator.serviceWorker?.startMessages();
}

/**
 * Has the service worker fetch what is missing for working without a network.
 * @param {string[]} spare files that are of no use here
 * @returns {Promise<string>} a sentence on what came of it, empty where there is no service worker
 */
export async function completeOffline(spare) {
  if (!navigator.serviceWorker || !(await navigator.serviceWorker.getRegistration())) return "";
  const { active } = await navigator.serviceWorker.ready;
  return new Promise((resolve) => {
    navigator.serviceWorker.addEventListener("message", ({ data }) => {
      if (data.type === "complete") resolve("This page now works without a network.");
      if (data.type === "incomplete") resolve(`There is no offline copy yet: ${data.message}.`);
    });
    active.postMessage({ type: "complete", spare });
  });
}
