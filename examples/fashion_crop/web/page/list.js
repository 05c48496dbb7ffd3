// The list of photos: a row for each, with its state and what can be done about it.

import {$, announce, copyOf, plural} from "./dom.js";
import {strictEnough} from "./options.js";

const rows = new Map();  // from a photo to the elements of its row

// `actions` are select, cancel, remove and retry, each called with a photo.
export function addRow(photo, actions) {
  const item = copyOf("row");
  const part = (name) => item.querySelector(`.${name}`);
  const row = {item, pick: part("pick"), progress: part("progress"), text: part("text"), reason: part("reason"), again: part("again"), end: part("end")};
  part("name").textContent = photo.name;
  row.progress.setAttribute("aria-label", `Progress of ${photo.name}`);
  row.pick.onclick = () => actions.select(photo);
  row.again.onclick = () => {
    row.pick.focus();  // the button goes
    actions.retry(photo);
  };
  row.end.onclick = () => (photo.running ? actions.cancel(photo) : actions.remove(photo));
  rows.set(photo, row);
  $("photos").append(item);
  showRow(photo);
}

export function removeRow(photo) {
  const {item} = rows.get(photo);
  const next = item.nextElementSibling ?? item.previousElementSibling;
  if (item.contains(document.activeElement)) (next?.querySelector(".pick") ?? $("file")).focus();
  item.remove();
  rows.delete(photo);
}

export function showRow(photo) {
  const {item, pick, progress, text, reason, again, end} = rows.get(photo);
  item.className = `photo ${photo.running ? "running" : photo.state}`;
  if (photo.thumbnail && !pick.contains(photo.thumbnail)) pick.querySelector(".thumbnail").replaceChildren(photo.thumbnail);
  text.textContent = stateOf(photo);
  reason.textContent = photo.reason;
  reason.hidden = !photo.reason;
  progress.hidden = !photo.running;
  if (photo.share === undefined) {
    progress.removeAttribute("value");
  } else {
    progress.value = photo.share;
  }
  again.hidden = !["failed", "cancelled", "retrying"].includes(photo.state);
  again.textContent = photo.state === "retrying" ? "Try now" : "Try again";
  end.setAttribute("aria-label", `${photo.running ? "Cancel" : "Remove"} ${photo.name}`);
  end.title = photo.running ? "Cancel" : "Remove";
}

function stateOf(photo) {
  const {state, share, since} = photo;
  const percent = share === undefined ? "" : `, ${Math.floor(100 * share)} %`;
  const seconds = Math.floor((performance.now() - since) / 1000);
  return {
    waiting: "Waiting",
    connecting: "Waiting for the models",
    sending: `Sending${percent}`,
    looking: `Looking for garments${seconds ? `, ${seconds} s` : ""}`,
    receiving: `Receiving${percent}`,
    retrying: "Waiting for the server, tries again automatically",
    done: plural(strictEnough(photo).length, "garment"),
    failed: "Failed",
    refused: "Refused",
    cancelled: "Cancelled",
  }[state];
}

export function showSelected(photo) {
  for (const [each, {pick}] of rows) pick.setAttribute("aria-current", String(each === photo));
}

export function showTotal(photos, running) {
  const done = photos.filter(({state, running: runs}) => state !== "waiting" && !runs);
  const failed = photos.filter(({state}) => state === "failed" || state === "refused").length;
  const total = `${done.length - failed} of ${photos.length} done${failed ? `, ${failed} failed` : ""}`;
  $("queue").hidden = !photos.length;
  $("total").textContent = photos.length < 2 ? "" : total;
  $("all").hidden = photos.length < 2 || !running;
  $("all").max = photos.length || 1;
  $("all").value = done.length + photos.reduce((sum, {running: runs, share}) => sum + (runs && share ? share / 3 : 0), 0);
  $("stop").hidden = !running || photos.length < 2;
  $("clear").hidden = running || photos.length < 2;
}

// The steps of the photo that is worked on, for screen readers. Percentages would interrupt them all the time.
export function announceState(photo) {
  const text = {
    connecting: "Waiting for the models", sending: "Sending the photo", looking: "Looking for garments", receiving: "Receiving the masks",
    retrying: photo.reason, failed: `Failed: ${photo.reason}`, refused: `Refused: ${photo.reason}`, cancelled: "Cancelled",
  }[photo.state];
  if (text) announce(`${photo.name}: ${text}`);
}

// The seconds of the photo that is looked at.
setInterval(() => {
  for (const photo of rows.keys()) if (photo.state === "looking") showRow(photo);
}, 1000);
