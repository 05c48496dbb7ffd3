// The page: what happens when somebody does something, and what is shown for the selected photo.

import {downloadZip, drawCards, open, showCards} from "./cards.js";
import {$, announce, hideError, plural, showError} from "./dom.js";
import {connect, forgetServer} from "./facts.js";
import {addRow, announceState, removeRow, showRow, showSelected, showTotal} from "./list.js";
import * as options from "./options.js";
import {Queue} from "./queue.js";
import {keepKey} from "./server.js";
import {showBoxes, showNoPhoto, showPhoto} from "./stage.js";

const OPTIONS_DELAY = 500;  // milliseconds after the last change of an option until a new request

let selected = null;  // a Photo
let opened = null;    // of it, with what is needed to render its crops
let opening = null;   // what is being opened: {photo, answer, thumbnail}
let timer = 0;        // of options that have not settled

const queue = new Queue({connect: connectHere, options: options.toAsk, changed, refused});

function connectHere() {
  return connect((info) => {
    if ($("fields").disabled) options.enable(info);
    $("made").textContent = madeText(info);
  });
}

function madeText({crops}) {
  const share = crops?.part_share ?? 0.1, longest = crops?.longest_side ?? 2048;
  return `Crops are cut from all pixels of the photo. The models see it with at most ${longest.toLocaleString("en")} pixels on the longer `
    + `side. Of a garment, parts with less than ${Math.round(100 * share)} % of its largest part's area are left out.`;
}


// Photos come in, and go

function choose(files, credit) {
  if (!files.length) return;
  hideError();
  const photos = queue.add([...files], credit);
  for (const photo of photos) addRow(photo, {select, cancel, remove, retry});
  showTotals();
  select(photos[0]);
}

function cancel(photo) {
  queue.cancel(photo);
}

function retry(photo) {
  forgetServer();
  hideError();
  queue.retry(photo);
}

function remove(photo) {
  const place = queue.photos.indexOf(photo);
  queue.remove(photo);
  removeRow(photo);
  if (photo === selected) select(queue.photos[place] ?? queue.photos.at(-1) ?? null);
  showTotals();
}

async function trySample() {
  $("sample").disabled = true;
  try {
    const response = await fetch("page/sample.jpg");
    if (!response.ok) throw new Error(`status ${response.status}`);
    choose([new File([await response.blob()], "astronaut.jpg", {type: "image/jpeg"})], "Eileen Collins, astronaut. Photo: NASA, public domain");
    $("photos").querySelector(".pick").focus();  // the button is gone
  } catch {
    showError("The sample cannot be loaded: the server cannot be reached", ["Try again", trySample]);
  } finally {
    $("sample").disabled = false;
  }
}

function changed(photo) {
  if (!queue.photos.includes(photo)) return;
  showRow(photo);
  showTotals();
  announceState(photo);
  if (photo === selected) openSelected();
}

function showTotals() {
  showTotal(queue.photos, queue.running);
  $("zip").hidden = !queue.photos.some((photo) => options.strictEnough(photo).length);
}

function refused(photo, refusal) {
  for (const {field, message} of refusal.fields ?? []) options.showProblem(field, message);
  if (refusal.code === "loading") forgetServer();
  if (refusal.status === 401) askForKey(refusal.code === "key-wrong");
}


// The selected photo

function select(photo) {
  selected = queue.first = photo;
  opened = opening = null;
  showSelected(photo);
  showCards(null);
  if (photo) {
    showPhoto(photo, null, photo.size ?? photo.answer?.image);
    openSelected();
  } else {
    showNoPhoto();
    showSummary();
  }
}

// Reads the file of the selected photo, unless that is done, and shows what is there of it.
async function openSelected() {
  showSummary();
  const photo = selected, {answer, thumbnail} = photo;
  if (opening?.photo === photo && opening.answer === answer && opening.thumbnail === thumbnail) return;
  const mine = opening = {photo, answer, thumbnail};
  const result = await open(photo, opened ?? undefined);
  if (opening !== mine) return;
  // A photo that the browser does not turn as the server does would lie beside its boxes: it is not shown.
  const picture = photo.size && result.small?.picture;
  if (!opened?.source || !picture) showPhoto(photo, picture, photo.size ?? answer?.image);
  opened = result;
  if (answer) {
    showCards(opened);
    announceFound();
    showSelectedBoxes();
  }
  showSummary();
}

function showSelectedBoxes() {
  if (opened?.answer) showBoxes(selected, options.strictEnough(opened), opened.answer.image);
}

function announceFound() {
  if (selected.state !== "done") return;
  const garments = options.strictEnough(selected);
  const labels = garments.map(({label}) => label).join(", ");
  announce(garments.length ? `${selected.name}: ${plural(garments.length, "garment")} found: ${labels}` : `${selected.name}: Nothing found`);
}

function showSummary() {
  const garments = selected ? options.strictEnough(selected) : [];
  const busy = Boolean(selected) && (selected.running || selected.state === "waiting");
  $("garments").setAttribute("aria-busy", String(busy));
  $("summary").textContent = summaryText(garments);
  $("server-renders").textContent = selected?.answer ? selected.serverRenders : "";
  $("facts").textContent = selected?.answer ? `${selected.answer.image.width} × ${selected.answer.image.height} pixels` : "";
  $("empty").hidden = garments.length > 0;
  const [title, text] = emptyTexts(busy);
  $("empty-title").textContent = title;
  $("empty-text").textContent = text;
}

function summaryText(garments) {
  if (!selected?.answer) return "";
  const seconds = Object.values(selected.answer.timings_ms).reduce((sum, each) => sum + each, 0) / 1000;
  const hidden = selected.answer.garments.length - garments.length;
  return `${garments.length} in ${seconds.toFixed(1)} s${hidden ? `, ${hidden} below the strictness` : ""}`;
}

function emptyTexts(busy) {
  if (busy) return ["Looking for garments", "The crops appear here."];
  if (["failed", "refused"].includes(selected?.state)) return [`No crops of ${selected.name}`, selected.reason];
  if (selected?.answer) return ["Nothing found", "Lower the strictness, or change what to look for."];
  return ["Crops appear here", "One image for each garment, ready to download."];
}


// Events

$("file").onchange = ({target}) => {
  choose([...target.files]);
  target.value = "";  // so that the same file can be chosen again
};

document.onpaste = (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  choose(event.clipboardData.files);
};

document.ondragover = (event) => {
  event.preventDefault();  // else the browser leaves the page for the file
  document.body.classList.add("dragging");
};

document.ondragleave = ({relatedTarget}) => {
  if (!relatedTarget) document.body.classList.remove("dragging");
};

document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files.length) {
    choose(event.dataTransfer.files);
  } else {
    showError("This is not a file: save the picture first, or copy and paste it");
  }
};

$("sample").onclick = trySample;
$("zip").onclick = () => downloadZip(queue.photos);

$("stop").onclick = () => {
  queue.stop();
  $("photos").querySelector(".pick").focus();  // the button is gone
};

$("clear").onclick = () => {
  for (const photo of queue.photos) {
    queue.remove(photo);
    removeRow(photo);
  }
  select(null);
  showTotals();
  $("file").focus();  // the button is gone
};

let frame = 0;  // a request to draw, of which there is one at most

$("options").oninput = () => {
  options.showValues();
  $("reset").hidden = false;
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(showOptions);
  clearTimeout(timer);
  timer = setTimeout(refresh, OPTIONS_DELAY);
};

// What is changed at once, without the server.
function showOptions() {
  if (opened?.answer) drawCards();
  showSelectedBoxes();
  showSummary();
  queue.photos.forEach(showRow);
  showTotals();
}

function refresh() {
  clearTimeout(timer);
  options.hideProblems();
  announceIfShown();
  queue.refresh();
}

function announceIfShown() {
  if (opened?.answer) announceFound();
}

$("prompts").onkeydown = (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  refresh();
};

$("reset").onclick = async () => {
  options.setDefaults(await connectHere());
  $("reset").hidden = true;
  $("box_threshold").focus();  // the button is gone
  showOptions();
  refresh();
};

$("options").onsubmit = (event) => event.preventDefault();

function askForKey(wrong) {
  $("key-text").textContent = wrong
    ? "The server does not accept this key."
    : "This server needs an API key. The browser keeps it until you close this tab.";
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
}

$("key-form").onsubmit = (event) => {
  event.preventDefault();
  keepKey($("key").value);
  ($("photos").querySelector(".pick") ?? $("file")).focus();  // the form goes
  $("key-form").hidden = true;
  queue.resume();
};

$("options-open").open = matchMedia("(min-width: 800px)").matches;
options.offerWritableFormats();

function start() {
  hideError();
  connectHere().catch((refusal) => showError(refusal.message, ["Try again", start]));
}
start();
