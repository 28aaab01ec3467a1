// Uploads a file with tus-js-client: node upload.mjs ENDPOINT FILE OPTIONS. Prints where it is and how it ended.

import { createReadStream } from "node:fs";
import { basename } from "node:path";
import { Upload } from "tus-js-client";

const [endpoint, path, options] = process.argv.slice(2);
const say = (said) => console.log(JSON.stringify(said));

const upload = new Upload(createReadStream(path), {
  endpoint,
  metadata: { filename: basename(path) },
  retryDelays: new Array(200).fill(100),
  onSuccess: () => say({ url: upload.url }),
  onError: (error) => {
    say({ error: error.message });
    process.exitCode = 1;
  },
  ...JSON.parse(options),
});
upload.start();
