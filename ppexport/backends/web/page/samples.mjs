// The pictures that the page brings along.

import { make } from "./figures.mjs";

/**
 * Offers them, if there are any.
 * @param {object} manifest
 * @param {(name: string, read: () => Promise<Blob>) => void} chosen
 */
export function offerSamples(manifest, chosen) {
  const { samples = [] } = manifest.build;
  for (const name of samples) {
    const title = name.replace(/\.[^.]*$/, "").replace(/[-_]/g, " ");
    const button = make("button", { type: "button" });
    button.append(make("img", { src: name, alt: "" }), title[0].toUpperCase() + title.slice(1));
    button.addEventListener("click", () => chosen(name, () => read(name)));
    document.getElementById("samples").append(button);
  }
  document.getElementById("samples-part").hidden = !samples.length;
}

async function read(name) {
  const answer = await fetch(name).catch(() => null);
  if (!answer?.ok) throw new Error(`${name} could not be loaded: the server does not answer.`);
  return answer.blob();
}
