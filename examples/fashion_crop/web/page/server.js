// Requests to the server: errors as `Refusal`, and progress while a photo is sent and its answer received.

let key = null;
try { key = sessionStorage.getItem("key"); } catch { /* storage is switched off: the key lives as long as the page */ }

export function keepKey(text) {
  key = text.trim();
  try { sessionStorage.setItem("key", key); } catch { /* see above */ }
}

export class Refusal extends Error {
  constructor(status, {code, message, fields = []}, retryAfter) {
    super(message);
    Object.assign(this, {status, code, fields, seconds: Number.parseFloat(retryAfter) || 0});
  }
}

export function tooManyBytes(size, most) {
  const message = `the photo has ${size.toLocaleString("en")} bytes, and at most ${most.toLocaleString("en")} are taken: send a smaller one`;
  return new Refusal(413, {code: "image-too-large", message, fields: [{field: "image", message}]});
}

export async function get(path, signal) {
  const response = await fetch(path, {cache: "no-store", signal}).catch(() => { throw unreachable(); });
  return parse(response.status, await response.text(), response.headers.get("Retry-After"));
}

// Sends a form with a photo. `onStep` gets "sending", "looking" or "receiving", and the share of it that is done.
export function post(path, fields, signal, onStep) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) data.set(name, value);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();  // fetch() does not report upload progress
    request.open("POST", path);
    request.setRequestHeader("Accept", "application/json");
    if (key) request.setRequestHeader("Authorization", `Bearer ${asHeader(key)}`);
    request.upload.onprogress = ({loaded, total}) => onStep("sending", loaded / total);
    request.upload.onload = () => onStep("looking");
    request.onprogress = ({loaded, total, lengthComputable}) => {
      if (request.status === 200) onStep("receiving", lengthComputable ? loaded / total : undefined);
    };
    request.onload = () => resolve(request);
    request.onerror = () => reject(unreachable(", or the file has changed since you chose it"));
    signal.addEventListener("abort", () => {
      request.abort();
      reject(unreachable());  // which nobody reads: the caller sees the signal
    });
    onStep("sending", 0);
    request.send(data);
  }).then((request) => parse(request.status, request.responseText, request.getResponseHeader("Retry-After")));
}

// A header is bytes, which the browser wants as characters below 256.
function asHeader(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

function parse(status, text, retryAfter) {
  let body = null;
  try { body = JSON.parse(text); } catch { /* a proxy may answer in HTML */ }
  if (status === 200 && body) return body;
  const error = body?.error ?? {code: "unknown", message: `the server answered with status ${status}`};
  throw new Refusal(status, error, retryAfter);
}

function unreachable(why = "") {
  return new Refusal(0, {code: "away", message: `the server cannot be reached${why}`});
}

// Ends early, and without an error, when the signal is aborted.
export function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener("abort", end);
  });
}
