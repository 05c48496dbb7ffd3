// What the server says of itself: whether it is ready, its limits, how its cold start went.

import {$, element} from "./dom.js";
import {Refusal, get, sleep} from "./server.js";

let server = null;  // a promise of what /v1/info says, kept once the models are loaded
let controller = new AbortController();  // of what waits for the server

// Waits until the models are loaded. `onInfo` is called with what /v1/info says, before the promise ends.
export function connect(onInfo) {
  if (server) return server;
  const mine = server = untilReady(onInfo, controller.signal).catch((refusal) => {
    if (server === mine) server = null;
    throw refusal;
  });
  return mine;
}

// Asks the server anew at the next connect(). Who waits for it already gets that answer.
export function forgetServer() {
  server = null;
  controller.abort();
  controller = new AbortController();
}

async function untilReady(onInfo, signal) {
  for (;;) {
    try {
      await get("readyz", signal);
      const info = await get("v1/info", signal);
      showServer(info);
      onInfo(info);
      return info;
    } catch (refusal) {
      if (signal.aborted) return connect(onInfo);
      if (!(refusal instanceof Refusal)) throw refusal;
      if (refusal.code === "loading-failed") {
        showState("failed", "Not ready");
        throw refusal;
      }
      showState("loading", refusal.code === "loading" ? "The models are being loaded" : "The server cannot be reached");
      await sleep(1000 * (refusal.seconds || 2), signal);
    }
  }
}

function showState(kind, text) {
  $("state").className = `state small ${kind}`;
  $("state-text").textContent = text;
  if (kind === "loading") $("limits").textContent = `${text}. You can already choose photos.`;
}

function showServer(info) {
  showState("ready", `Ready, on ${info.device}`);
  $("stand-ins").hidden = !info.stand_ins;
  $("limits").textContent = `JPEG, PNG or WebP, up to ${info.limits.max_bytes / 1e6} MB each. The server does not store them.`;
  $("prompts-hint").textContent = `Words or short phrases, separated by commas; up to ${info.limits.max_prompts}`;
  showColdStart(info);
}

function showColdStart({phases, weights, versions}) {
  const {ready, other = 0, prefetch = 0, ...parts} = phases;
  const whole = Math.max(ready, prefetch);
  const rest = whole - Object.values(parts).reduce((sum, each) => sum + each, 0);
  $("phases").replaceChildren(...Object.entries({...parts, rest}).map(bar));
  $("beside").replaceChildren(...Object.entries({prefetch, rest: whole - prefetch}).map(bar));
  $("phase-rows").replaceChildren(...Object.entries(phases).map(([name, seconds]) => {
    const row = line(name, `${seconds.toFixed(2)} s`);
    if (name !== "ready") row.firstChild.prepend(element("i", {className: name}));
    return row;
  }));
  const digests = Object.entries(weights).map(([name, digest]) => line(name, `sha256 ${digest.slice(0, 12)}…`));
  $("version-rows").replaceChildren(...digests, ...Object.entries(versions).map(([name, version]) => line(name, version)));
  $("server-summary").textContent = `This server was ready after ${ready.toFixed(1)} s`;
  $("server").hidden = false;
}

function bar([name, seconds]) {
  const part = element("i", {className: name});
  part.style.flex = `${Math.max(seconds, 0)} 1 0`;
  return part;
}

function line(name, value) {
  const row = element("tr");
  row.append(element("th", {scope: "row", textContent: name}), element("td", {textContent: value}));
  return row;
}
