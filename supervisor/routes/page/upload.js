// Uploads as this page shows them. Each is a task of the server and comes there by tus 1.0.0: one request from where it
// is to its end, and another wherever that one was stopped. Nothing is kept here but a token: after a reload the server
// tells what is unfinished, and the same file, chosen again, goes on. What a file is called and what the server says is
// data: it becomes text, never markup.

const AT_ONCE = 3;
const LISTED = 200;
const TRIES = 8; // in a row, none of which brings it further
const LONGEST_WAIT_S = 15;
const LOOK_AGAIN_S = 2;
const PACE_OVER_S = 5;
const FILES = "upload/files";
const TUS = { "Tus-Resumable": "1.0.0" };
const UNFINISHED = ["paused", "pausing", "running", "failed"];
const UNHELD = ["awaiting_data", "disconnected", "no_space"]; // the reasons of a pause that bytes alone end

const STATES = {
  fresh: ["Waiting for its turn"],
  waiting: ["Waiting for its turn", "pause", "cancel"],
  going: ["Uploading", "pause", "cancel"],
  saving: ["Saving", "pause", "cancel"],
  again: ["Interrupted", "pause", "cancel"],
  paused: ["Paused", "resume", "choose", "cancel"],
  absent: ["Unfinished", "choose", "cancel"],
  elsewhere: ["Comes from elsewhere", "pause", "choose", "cancel"],
  broken: ["Interrupted", "resume", "cancel"],
  failed: ["Failed", "resume", "cancel"],
  done: ["Complete", "cancel"],
};
const GOING = ["going", "saving", "again"];
const SAID = ["paused", "broken", "failed", "done"]; // to who does not see the page

const main = document.querySelector("main");
const form = document.getElementById("token");
const picker = document.getElementById("files");
const list = document.getElementById("uploads");
const uploads = new Set(); // in the order of their turns
let wanted = null; // the upload for which the file is being chosen again
let listed = null; // settled when all that the server has is shown

class Refused extends Error {
  constructor(status, problem, after) {
    super(problem.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.slug = String(problem.type).split("/").pop();
    this.wait_s = Number(after) || 0;
  }

  get isGone() {
    return this.status === 404 || this.status === 410;
  }

  get mayPass() {
    return [0, 408, 409, 429].includes(this.status) || this.status >= 500;
  }
}

const UNREACHABLE = { detail: "The server cannot be reached." };

function authorized(headers = {}) {
  const token = sessionStorage.getItem("token");
  return token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
}

async function ask(method, address, headers) {
  const answer = await fetch(address, { method, headers: authorized(headers) }).catch(() => {
    throw new Refused(0, UNREACHABLE);
  });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw noted(new Refused(answer.status, problem, answer.headers.get("Retry-After")));
}

function noted(refused) {
  if (refused.status === 401) askForToken(refused.message);
  return refused;
}

class Upload {
  constructor(name, size, file = null) {
    this.id = null;
    this.name = name;
    this.size = size; // null: nobody knows yet
    this.file = file;
    this.modified = file?.lastModified;
    this.done = 0;
    this.seen = []; // how far it was when, in its last seconds
    this.turn = new AbortController();
    this.row = document.getElementById("row").content.firstElementChild.cloneNode(true);
    this.part("bdi").textContent = legible(name);
    this.part("progress").setAttribute("aria-label", legible(name));
    for (const button of this.row.querySelectorAll("button")) {
      button.addEventListener("click", () => this.act(button.dataset.verb));
    }
    this.part("a").addEventListener("click", (event) => this.download(event));
    uploads.add(this);
    this.show("fresh");
  }

  static listed(task) {
    const given = metadata(task.params.metadata ?? "");
    const name = given.filename ?? task.params.filename ?? "without a name";
    const upload = new Upload(name, task.params.size_bytes ?? null);
    upload.id = task.id;
    upload.modified = given.lastmodified && Number(given.lastmodified);
    upload.take(task);
    return upload;
  }

  get address() {
    return `${FILES}/${this.id}`;
  }

  fits(file) {
    const same = file.name.toWellFormed() === this.name && file.size === this.size;
    return !this.file && same && (this.modified ?? file.lastModified) === file.lastModified;
  }

  // What its user does.

  async act(verb) {
    if (this.acting) return;
    this.acting = true;
    try {
      await this[verb]();
    } catch (error) {
      if (error.isGone) this.remove("is not there any more");
      else this.show(this.turn.signal.aborted && GOING.includes(this.state) ? "broken" : this.state, error.message);
    } finally {
      this.acting = false;
    }
  }

  async pause() {
    const answer = await ask("POST", `upload/pause?task=${this.id}`);
    this.turn.abort();
    this.take(await answer.json());
    next();
  }

  async resume() {
    if (this.id === null) return this.create();
    await ask("POST", `upload/resume?task=${this.id}`).catch((error) => {
      if (error.status !== 409) throw error; // it is not paused: so much the better
    });
    this.go();
  }

  choose() {
    wanted = this;
    picker.click();
  }

  async cancel() {
    this.turn.abort();
    if (this.id !== null) await ask("DELETE", this.address, TUS);
    this.remove(this.state === "done" ? "was deleted" : "was cancelled");
  }

  async download(event) {
    if (!sessionStorage.getItem("token")) return;
    event.preventDefault(); // a browser sends no token with a link
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await (await ask("GET", this.part("a").href)).blob());
    link.download = this.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }

  // How it comes to the server.

  async create() {
    this.show("fresh");
    try {
      const headers = { ...TUS, "Upload-Length": String(this.size), "Upload-Metadata": described(this.file) };
      const answer = await ask("POST", FILES, headers);
      this.id = answer.headers.get("Location").split("/").pop();
      this.go();
    } catch (error) {
      this.show("failed", error.message);
    }
  }

  go() {
    if (!this.file) return this.show("absent");
    this.show("waiting");
    next();
  }

  // Its turn, which ends when it is complete, paused, cancelled or given up.
  async bring() {
    this.turn = new AbortController();
    const { signal } = this.turn;
    let tries = 0;
    let reached = -1;
    for (;;) {
      try {
        this.show("going");
        const offset = await this.offset();
        signal.throwIfAborted();
        if (offset > reached) tries = 0;
        reached = offset;
        if (offset < this.size) await this.send(offset, signal);
        return this.take(await this.task());
      } catch (error) {
        if (signal.aborted) return;
        tries += 1;
        if (!(await this.mayTryAgain(error, tries, signal))) return;
      }
    }
  }

  async mayTryAgain(error, tries, signal) {
    if (error.isGone) this.remove("is not there any more");
    else if (error.status === 423) this.show("paused");
    else if (error.slug === "taken-over") this.take(await this.task());
    else if (error.name === "NotReadableError" || error.name === "NotFoundError") this.lose();
    else if (!error.mayPass) this.show(error.status === 401 ? "broken" : "failed", error.message);
    else if (tries > TRIES) this.show("broken", error.message);
    else {
      const wait_s = Math.max(error.wait_s, Math.min(2 ** tries / 4, LONGEST_WAIT_S));
      this.show("again", `${error.message} It goes on in ${Math.ceil(wait_s)} s.`);
      await delay(wait_s, signal);
      return !signal.aborted;
    }
    return false;
  }

  async offset() {
    return Number((await ask("HEAD", this.address, TUS)).headers.get("Upload-Offset"));
  }

  async task() {
    return (await ask("GET", `upload/status?task=${this.id}`)).json();
  }

  async send(offset, signal) {
    await this.file.slice(offset, offset + 1).arrayBuffer(); // a file that has changed since is said to be so only here
    signal.throwIfAborted();
    this.seen = [];
    this.move(offset);
    await new Promise((resolve, reject) => {
      const request = new XMLHttpRequest(); // fetch does not tell how far a body is
      request.open("PATCH", this.address);
      const type = "application/offset+octet-stream";
      const headers = { ...TUS, "Upload-Offset": String(offset), "Content-Type": type };
      for (const [name, value] of Object.entries(authorized(headers))) request.setRequestHeader(name, value);
      request.upload.addEventListener("progress", ({ loaded }) => this.move(offset + loaded));
      request.upload.addEventListener("load", () => this.show("saving"));
      request.addEventListener("load", () => (request.status === 204 ? resolve() : reject(refusal(request))));
      request.addEventListener("error", () => reject(new Refused(0, UNREACHABLE)));
      signal.addEventListener("abort", () => {
        request.abort();
        reject(signal.reason);
      });
      request.send(this.file.slice(offset));
    });
  }

  lose() {
    this.file = null;
    this.show("absent", "The file has been changed or moved since it was chosen.");
  }

  // What the server says of it.

  take(task) {
    this.done = task.progress?.done ?? 0;
    if (task.status === "completed") this.complete(task);
    else if (task.status === "failed") this.show("failed", task.error?.message);
    else if (task.status !== "paused") this.watch();
    else if (!UNHELD.includes(task.reason)) this.show("paused");
    else if (this.file) this.show("broken");
    else this.show("absent", task.due_at ? `It is kept until ${new Date(task.due_at).toLocaleString()}.` : "");
  }

  // Somebody else brings it: how far it is has to be asked for.
  watch() {
    this.show("elsewhere");
    setTimeout(async () => {
      if (this.state !== "elsewhere" || !uploads.has(this)) return;
      try {
        this.take(await this.task());
      } catch (error) {
        if (error.isGone) this.remove("is not there any more");
        else this.show("broken", error.message);
      }
    }, LOOK_AGAIN_S * 1000);
  }

  complete(task) {
    this.size = this.done = task.result.size_bytes;
    const link = this.part("a");
    link.href = `tasks/${this.id}/files/content`;
    link.download = this.name;
    link.hidden = false;
    this.part(".digest code").textContent = task.result.sha256 ?? "";
    this.part(".digest").hidden = !task.result.sha256;
    this.part("[data-verb=cancel]").textContent = "Delete";
    this.show("done");
  }

  remove(what) {
    this.turn.abort();
    const after = this.row.contains(document.activeElement) && (this.row.nextElementSibling ?? this.row.previousElementSibling);
    uploads.delete(this);
    this.row.remove();
    say(`${legible(this.name)} ${what}.`);
    if (after !== false) (after?.querySelector("button:not([hidden])") ?? picker).focus();
    next();
  }

  // How it looks.

  part(selector) {
    return this.row.querySelector(selector);
  }

  move(done) {
    const now = performance.now() / 1000;
    this.done = done;
    this.seen = [...this.seen.filter(([at]) => now - at < PACE_OVER_S), [now, done]];
    this.figures();
  }

  show(state, note = "") {
    if (this.row.isConnected && state !== this.state && SAID.includes(state)) {
      say(`${legible(this.name)}: ${STATES[state][0].toLowerCase()}.`);
    }
    const [text, ...verbs] = STATES[state];
    this.state = this.row.dataset.state = state;
    this.part(".state").textContent = text;
    this.part(".note").textContent = note;
    for (const button of this.row.querySelectorAll("button")) {
      const { verb } = button.dataset;
      const hadFocus = button === document.activeElement;
      button.hidden = !verbs.includes(verb) || (verb === "choose" && this.file !== null);
      button.setAttribute("aria-label", `${button.textContent}: ${legible(this.name)}`);
      if (hadFocus && button.hidden) this.refocus = true; // pause becomes resume: who works by keyboard stays here
    }
    if (this.refocus) this.part("button:not([hidden])")?.focus();
    this.refocus = false;
    this.figures();
  }

  figures() {
    const share = this.size ? this.done / this.size : Number(this.state === "done");
    const bar = this.part("progress");
    bar.value = share;
    bar.hidden = this.state === "done";
    const whole = this.size === null ? "?" : bytes(this.size);
    const amount = this.state === "done" ? whole : `${bytes(this.done)} of ${whole} · ${Math.floor(share * 100)} %`;
    this.part(".amount").textContent = amount;
    this.part(".pace").textContent = this.state === "going" ? this.pace() : "";
  }

  pace() {
    if (this.seen.length < 2) return "";
    const [[from, before], [to, now]] = [this.seen[0], this.seen.at(-1)];
    const perSecond = (now - before) / (to - from);
    return perSecond > 0 ? `${bytes(perSecond)}/s · ${duration((this.size - now) / perSecond)} left` : "";
  }
}

function refusal(request) {
  let problem = {};
  try {
    problem = JSON.parse(request.responseText);
  } catch {
    // Not this server's own answer: that of something between.
  }
  return noted(new Refused(request.status, problem, request.getResponseHeader("Retry-After")));
}

function next() {
  let going = [...uploads].filter(({ state }) => GOING.includes(state)).length;
  for (const upload of uploads) {
    if (upload.state === "waiting" && going++ < AT_ONCE) upload.bring().finally(next);
  }
}

function delay(seconds, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", resolve);
  });
}

function base64(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

function described(file) {
  const values = { filename: file.name, filetype: file.type, lastmodified: String(file.lastModified) };
  return Object.entries(values).filter(([, value]) => value).map(([key, value]) => `${key} ${base64(value)}`).join(",");
}

function metadata(text) {
  const pairs = text.split(",").map((pair) => pair.trim().split(" "));
  const decoded = (packed) => new TextDecoder().decode(Uint8Array.from(atob(packed), (one) => one.charCodeAt(0)));
  return Object.fromEntries(pairs.map(([key, packed = ""]) => [key, decoded(packed)]));
}

// A name as one can read it: without what moves the letters around it.
function legible(name) {
  return name.replace(/[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu, "\ufffd");
}

function bytes(count) {
  const unit = Math.min(Math.floor(Math.log10(Math.max(count, 1)) / 3), 4);
  const digits = { maximumFractionDigits: unit ? 1 : 0, minimumFractionDigits: unit ? 1 : 0 };
  return `${(count / 1000 ** unit).toLocaleString(undefined, digits)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

function duration(seconds) {
  const s = Math.ceil(seconds);
  if (s < 60) return `${s} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

function say(text) {
  document.getElementById("said").textContent = text;
}

// Files, chosen or dropped. One that is awaited goes on; any other is a new upload.

async function take(files) {
  const again = wanted;
  wanted = null;
  await listed;
  if (again && !files.some((file) => again.fits(file))) {
    again.show(again.state, "This is not the file that was begun: its name, its size or its date is another.");
    return;
  }
  const fresh = [];
  for (const file of files) {
    const known = again ?? [...uploads].find((upload) => upload.fits(file));
    if (!known) fresh.push(new Upload(file.name.toWellFormed(), file.size, file));
    else if (known.fits(file)) resumeWith(known, file);
  }
  list.prepend(...fresh.map(({ row }) => row));
  for (const upload of fresh) await upload.create();
}

function resumeWith(upload, file) {
  upload.file = file;
  if (upload.state === "paused") upload.show("paused");
  else upload.go();
}

picker.addEventListener("change", () => {
  take([...picker.files]);
  picker.value = ""; // so that the same file can be chosen again
});
picker.addEventListener("cancel", () => {
  wanted = null;
});

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const isFolder = (item) => item.webkitGetAsEntry?.()?.isDirectory;
  const items = [...event.dataTransfer.items].filter((item) => item.kind === "file" && !isFolder(item));
  const files = items.map((item) => item.getAsFile());
  wanted = null;
  listed.then(() => main.hidden || take(files)); // before the list is there, nobody knows yet whether a token is missing
});

// What the server has.

async function load() {
  let cursor = "";
  do {
    const status = UNFINISHED.map((name) => `&status=${name}`).join("");
    const page = await (await ask("GET", `upload/status?limit=${LISTED}${status}${cursor}`)).json();
    form.hidden = true;
    main.hidden = false;
    for (const { id } of page.items) {
      try {
        const task = await (await ask("GET", `upload/status?task=${id}`)).json();
        list.append(Upload.listed(task).row);
      } catch (error) {
        if (!error.isGone) throw error;
      }
    }
    cursor = page.next ? `&cursor=${page.next}` : "";
  } while (cursor && list.childElementCount < LISTED);
  if (cursor) say(`These are the ${LISTED} newest of the unfinished.`);
}

function askForToken(message) {
  form.hidden = false;
  form.querySelector("output").value = sessionStorage.getItem("token") ? message : "";
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", form.elements.text.value.trim());
  open();
});

function open() {
  listed = main.hidden ? load() : ask("GET", "upload/status?limit=1").then(() => (form.hidden = true));
  listed = listed.catch((error) => {
    main.hidden = main.hidden && error.status === 401;
    if (error.status !== 401) say(error.message);
  });
}

open();
