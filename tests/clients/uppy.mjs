// A page that uploads what is chosen with Uppy. `window.ended` is what became of it.

import Uppy from "@uppy/core";
import Tus from "@uppy/tus";

const endpoint = new URLSearchParams(location.search).get("endpoint");
const uppy = new Uppy().use(Tus, { endpoint, retryDelays: new Array(200).fill(100) });

document.querySelector("input").addEventListener("change", async ({ target }) => {
  for (const file of target.files) uppy.addFile({ name: file.name, type: file.type, data: file });
  const { successful, failed } = await uppy.upload();
  window.ended = { successful: successful.length, failed: failed.map(({ error }) => String(error)) };
});
