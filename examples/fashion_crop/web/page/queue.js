// The photos: what each one waits for, and the requests, one photo at a time. Nothing here knows the page's elements.

import {decode, inspect} from "./files.js";
import {Refusal, post, sleep, tooManyBytes} from "./server.js";

const RUNNING = ["connecting", "sending", "looking", "receiving", "retrying"];
const THUMBNAIL = 96;  // pixels of the longer side

export class Photo {
  state = "waiting";  // or one of RUNNING, "done", "failed", "refused", "cancelled"
  since = 0;          // of the state, as performance.now() has it
  share = undefined;  // of the state that is done, if that is known
  reason = "";        // of a state that is no success
  thumbnail = null;   // a canvas, if this browser can read the file
  size = null;        // {width, height}, as this browser sees it
  serverRenders = ""; // why the server makes the crops, if it must
  answer = null;      // of the server
  asked = null;       // the options of that answer
  inspected = null;   // a promise: the file was read once

  constructor(file, credit = "") {
    Object.assign(this, {file, credit, name: file.name});
  }

  get running() {
    return RUNNING.includes(this.state);
  }
}

export class Queue {
  photos = [];
  first = null;       // the photo that comes before the others
  #paused = null;     // the photo with an error that all photos would have, until something is done about it
  #current = null;    // {photo, asked, controller}
  #inspections = Promise.resolve();

  // `connect` returns what /v1/info says, once the server is ready; `options` what is asked for; `changed` is called
  // with a photo after its state has changed, and `refused` with a photo and a `Refusal`.
  constructor({connect, options, changed, refused}) {
    Object.assign(this, {connect, options, changed, refused});
  }

  get running() {
    return this.photos.some(({state}) => state === "waiting" || RUNNING.includes(state));
  }

  add(files, credit) {
    const photos = files.map((file) => new Photo(file, credit));
    this.photos.push(...photos);
    for (const photo of photos) {
      // One after the other: each is decoded, and takes its pixels' memory.
      photo.inspected = this.#inspections = this.#inspections.then(() => this.#inspect(photo));
    }
    this.resume();
    return photos;
  }

  remove(photo) {
    this.photos = this.photos.filter((each) => each !== photo);
    this.#abort(photo);
    // Nothing to click is left. Without a key, the form for it is.
    if (this.#paused === photo && photo.state !== "waiting") this.resume();
  }

  cancel(photo) {
    this.#set(photo, "cancelled");
    this.#abort(photo);
  }

  stop() {
    for (const photo of this.photos) {
      if (photo.state === "waiting" || photo.running) this.cancel(photo);
    }
  }

  retry(photo) {
    this.#abort(photo);
    this.#set(photo, "waiting");
    this.resume();
  }

  // Goes on after a pause, such as one for the API key.
  resume() {
    this.#paused = null;
    this.#run();
  }

  // Asks again for each photo whose answer does not have what the options want.
  refresh() {
    const options = this.options();
    for (const photo of this.photos) {
      const {asked, controller} = this.#current?.photo === photo ? this.#current : {asked: photo.asked};
      const unlike = asked && !covers(photo, asked, options);
      const mended = photo.state === "failed" && photo.ofOptions;
      if (photo.state === "done" ? unlike : mended || (photo.running && unlike)) {
        this.#set(photo, "waiting");
        controller?.abort();
      }
    }
    this.resume();
  }

  #abort(photo) {
    if (this.#current?.photo === photo) this.#current.controller.abort();
  }

  #set(photo, state, {share, reason = ""} = {}) {
    if (photo.state !== state) photo.since = performance.now();
    Object.assign(photo, {state, share, reason});
    this.changed(photo);
  }

  async #inspect(photo) {
    if (!this.photos.includes(photo)) return;
    const {problem, turned} = await inspect(photo.file);
    if (problem) return this.#set(photo, "refused", {reason: problem});
    const image = await decode(photo.file);
    if (!image) {
      photo.serverRenders = "This browser cannot read the photo, so the server makes its crops: each change of an option asks it again.";
    } else {
      const {naturalWidth: width, naturalHeight: height} = image;
      photo.size = {width, height};
      if (turned) this.#leaveToServer(photo);
      photo.thumbnail = thumbnail(image);
    }
    this.changed(photo);
  }

  #leaveToServer(photo) {
    photo.size = null;
    photo.serverRenders = "The file says that the photo must be turned, and browsers do that differently, so the server makes its crops: each change of an option asks it again.";
  }

  async #run() {
    if (this.#current) return;
    for (let photo; (photo = this.#next());) {
      const controller = new AbortController();
      this.#current = {photo, asked: null, controller};
      await this.#work(photo, controller.signal);
      this.#current = null;
    }
  }

  #next() {
    if (this.#paused) return undefined;
    const waiting = this.photos.filter(({state}) => state === "waiting");
    return waiting.find((photo) => photo === this.first) ?? waiting[0];
  }

  async #work(photo, signal) {
    for (;;) {
      try {
        return await this.#ask(photo, signal);
      } catch (refusal) {
        if (signal.aborted) return undefined;
        if (!(refusal instanceof Refusal) || !refusal.seconds) return this.#fail(photo, refusal);
        this.#set(photo, "retrying", {reason: refusal.message});
        this.refused(photo, refusal);
        await sleep(1000 * refusal.seconds, signal);
        if (signal.aborted) return undefined;
      }
    }
  }

  async #ask(photo, signal) {
    await photo.inspected;
    if (signal.aborted || photo.state === "refused") return;
    this.#set(photo, "connecting");
    const {limits} = await this.connect();
    if (signal.aborted) return;
    // The server closes the connection during a large upload, and the browser would not read the reason.
    if (photo.file.size > limits.max_bytes) throw tooManyBytes(photo.file.size, limits.max_bytes);
    const asked = this.#current.asked = this.options();
    const {rendering, ...find} = asked;
    const onStep = (step, share) => signal.aborted || this.#set(photo, step, {share});
    const form = {...find, ...(photo.serverRenders ? rendering : {}), image: photo.file};
    const answer = await post(photo.serverRenders ? "v1/crops" : "v1/masks", form, signal, onStep);
    if (signal.aborted) return;
    if (!photo.serverRenders && !isSameSize(answer.image, photo.size)) {
      this.#leaveToServer(photo);
      await this.#ask(photo, signal);
      return;
    }
    Object.assign(photo, {answer, asked});
    this.#set(photo, "done");  // refresh() asks again if the options have changed, once they have settled
  }

  #fail(photo, error) {
    const {status, fields = []} = error;
    const ofPhoto = fields.some(({field}) => field === "image");
    photo.ofOptions = fields.length > 0 && !ofPhoto;
    // All other photos would have the same error.
    this.#paused = photo.ofOptions || [0, 401, 502, 503, 504].includes(status) ? photo : null;
    if (status === 401) {
      this.#set(photo, "waiting");
    } else {
      this.#set(photo, ofPhoto ? "refused" : "failed", {reason: error.message});
    }
    this.refused(photo, error);
    if (!(error instanceof Refusal)) reportError(error);  // a mistake of this page
  }
}

// Whether an answer has all that the options want. A stricter one is made of it: it is a part of the answer.
function covers(photo, asked, options) {
  const same = (name) => JSON.stringify(asked[name]) === JSON.stringify(options[name]);
  return ["prompts", "text_threshold", "nms_threshold"].every(same)
    && asked.box_threshold <= options.box_threshold
    && (!photo.serverRenders || same("rendering"));
}

function isSameSize(one, other) {
  return one.width === other.width && one.height === other.height;
}

function thumbnail(image) {
  const scale = Math.min(1, THUMBNAIL / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * image.naturalWidth));
  canvas.height = Math.max(1, Math.round(scale * image.naturalHeight));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}
