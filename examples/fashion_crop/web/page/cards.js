// The crops: small ones on the page, and full ones when they are downloaded.

import {TYPES, cropBox, encode, fileName, fileNames, fromBase64, opacityOf, render, stemOf} from "./crops.js";
import {$, announce, copyOf, element, plural, save, showError} from "./dom.js";
import {decode} from "./files.js";
import {read, strictEnough} from "./options.js";
import {zip} from "./zip.js";

const PREVIEW = 2048;  // pixels of the longer side of the photo that the small crops are cut from
const CARD = 480;      // of a small crop

// What is needed to render the crops of a photo. `source` is null where the server renders them.
//
// `photo` is a copy, so that the answer is the one that all else was made of when the photo has another already.
class Opened {
  opacities = new Map();

  constructor(photo, {source = null, small = null} = {}) {
    Object.assign(this, {photo: {...photo}, answer: photo.answer, source, small});
  }

  async load() {
    const {photo, answer} = this;
    const image = photo.thumbnail && !this.source && await decode(photo.file);
    if (image) {
      const {naturalWidth: width, naturalHeight: height} = image;
      this.source = {picture: image, width, height};
      this.small = {picture: smaller(image), width, height};
    }
    if (answer && !photo.serverRenders) {
      await Promise.all(answer.garments.map(async (garment) => this.opacities.set(garment.id, await opacityOf(garment))));
    }
    return this;
  }

  with(garment) {
    return {...garment, opacity: this.opacities.get(garment.id)};
  }

  // Returns the crop as a file, and the box of what it shows.
  async full(garment, rendering) {
    if (this.photo.serverRenders) {
      return {blob: new Blob([fromBase64(garment.picture)], {type: TYPES[rendering.format]}), box: garment.crop_box};
    }
    const canvas = element("canvas");
    render(canvas, this.source, this.with(garment), rendering);
    const {width, height} = this.source;
    return {blob: await encode(canvas, rendering.format), box: cropBox(garment.box_xyxy, rendering, width, height)};
  }
}

// How the crops of a photo are rendered: as the options are now, or as they were when the server rendered them.
function renderingOf({serverRenders, asked}, now = read().rendering) {
  return serverRenders ? asked.rendering : now;
}

// `earlier` is what was opened of the same photo, if anything was: its file is not decoded again.
export function open(photo, earlier) {
  return new Opened(photo, earlier).load();
}

function smaller(image) {
  const scale = Math.min(1, PREVIEW / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = element("canvas", {
    width: Math.max(1, Math.round(scale * image.naturalWidth)), height: Math.max(1, Math.round(scale * image.naturalHeight)),
  });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}


// The cards of the selected photo

let shown = null;  // an Opened with an answer
let made = null;   // the answer that the cards were made of

export function showCards(opened) {
  shown = opened;
  drawCards();
}

// Draws the crops again, as the options are now.
export function drawCards() {
  const garments = shown ? strictEnough(shown.photo) : [];
  const names = [...$("list").querySelectorAll(".card")].map(({dataset}) => dataset.garment).join();
  if (names !== garments.map(({id}) => id).join() || made !== (shown?.answer ?? null)) makeCards(garments);
  if (!shown) return;
  const rendering = renderingOf(shown.photo);
  $("list").classList.toggle("opaque", rendering.background !== "transparent");
  garments.forEach((garment, number) => {
    const item = $("list").querySelector(`[data-garment="${garment.id}"]`);
    const name = nameOf(shown, garment, number, rendering);
    const button = item.querySelector("button");
    button.title = `Download ${name}`;
    button.setAttribute("aria-label", `Download ${name}`);
    button.onclick = () => download(garment, number);
    drawCrop(item.querySelector(".checks").firstElementChild, garment, rendering);
  });
}

function nameOf({photo}, {label}, number, {format}) {
  return fileName(stemOf(photo.name), number + 1, label, format);
}

function makeCards(garments) {
  const focused = $("list").contains(document.activeElement);
  const persons = [...new Set(garments.map(({person}) => person))];
  made = shown?.answer ?? null;
  $("list").replaceChildren(...persons.flatMap((person) => {
    const grid = element("ul", {className: "grid"});
    grid.append(...garments.filter((garment) => garment.person === person).map(card));
    const heading = element("h3", {textContent: person === null ? "No person found" : `Person ${person + 1}`});
    return persons.length > 1 ? [heading, grid] : [grid];
  }));
  if (focused) $("garments-heading").focus();  // the focused element was removed
}

function card({id, label, score}) {
  const item = copyOf("card");
  item.dataset.garment = id;
  item.querySelector(".label").textContent = label;
  item.querySelector(".number").textContent = score.toFixed(2);
  const picture = element(shown.photo.serverRenders ? "img" : "canvas");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `${label}, cut out`);
  item.querySelector(".checks").append(picture);
  return item;
}

function drawCrop(picture, garment, rendering) {
  if (shown.photo.serverRenders) {
    picture.src = `data:${TYPES[rendering.format]};base64,${garment.picture}`;
  } else {
    render(picture, shown.small, shown.with(garment), rendering, CARD);
  }
}

async function download(garment, number) {
  const rendering = renderingOf(shown.photo);  // the options may have changed since the card was drawn
  const name = nameOf(shown, garment, number, rendering);
  try {
    const {blob} = await shown.full(garment, rendering);
    save(blob, name);
  } catch (error) {
    showError(`${name}: ${error.message}`);
  }
}


// A zip of the crops of all photos

export async function downloadZip(photos) {
  // As all is now: an option or an answer can change while the zip is made.
  const now = read().rendering;
  const full = photos.map((photo) => ({...photo, found: strictEnough(photo)})).filter(({found}) => found.length);
  const total = full.reduce((sum, {found}) => sum + found.length, 0);
  const files = [], listed = [], taken = new Set();
  $("zip").disabled = true;
  try {
    for (const photo of full) {
      const opened = shown?.answer === photo.answer ? shown : await open(photo);
      const rendering = renderingOf(photo, now);
      const names = fileNames(photo.name, photo.found.map(({label}) => label), rendering.format, taken);
      const garments = [];
      for (const [index, garment] of photo.found.entries()) {
        $("zip-text").textContent = `Making ${files.length + 1} of ${total}`;
        const {blob, box} = await opened.full(garment, rendering);
        const name = names[index];
        const {mask, mask_box, picture, ...facts} = garment;
        garments.push({...facts, crop_box: box, file: name});
        files.push({name, blob});
      }
      const {image, model, timings_ms} = photo.answer;
      listed.push({photo: photo.name, image, model, timings_ms, rendering, garments});
    }
    const manifest = JSON.stringify({photos: listed}, null, 2);
    const archive = await zip([{name: "manifest.json", blob: new Blob([manifest])}, ...files]);
    save(archive, full.length === 1 ? `${stemOf(full[0].name)}_garments.zip` : "garments.zip");
    announce(`The zip has ${plural(total, "crop")} of ${plural(full.length, "photo")}`);
  } catch (error) {
    showError(`The zip cannot be made: ${error.message}`);
  } finally {
    $("zip").disabled = false;
    $("zip-text").textContent = "Download zip";
  }
}
