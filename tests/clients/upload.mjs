// Uploads a file with tus-js-client: node upload.mjs ENDPOINT FILE OPTIONS. Prints where it is and how it ended.

import { createReadStream, readFileSync } from "node:fs";
import { basename } from "node:path";
import { Upload } from "tus-js-client";

const [endpoint, path, given] = process.argv.slice(2);
const options = JSON.parse(given);
// Of a stream that it resumed tus-js-client 4.3.1 never says in its IETF modes that it is complete; of a buffer it does.
const file = options.protocol ? readFileSync(path) : createReadStream(path);
const say = (said) => console.log(JSON.stringify(said));

const upload = new Upload(file, {
  endpoint,
  metadata: { filename: basename(path) },
  retryDelays: new Array(200).fill(100),
  onSuccess: () => say({ url: upload.url }),
  onError: (error) => {
    say({ error: error.message });
    process.exitCode = 1;
  },
  ...options,
});
upload.start();
