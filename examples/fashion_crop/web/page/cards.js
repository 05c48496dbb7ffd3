// The crops: small ones on the page, and full ones when they are downloaded.

import {TYPES, cropBox, encode, fileName, fromBase64, opacityOf, render, stemOf, unique} from "./crops.js";
import {$, announce, copyOf, element, plural, save, showError} from "./dom.js";
import {decode} from "./files.js";
import {read, strictEnough} from "./options.js";
import {zip} from "./zip.js";

const PREVIEW = 2048;  // pixels of the longer side of the photo that the small crops are cut from
const CARD = 480;      // of a small crop

// What is needed to render the crops of a photo. `source` is null where the server renders them.
class Opened {
  opacities = new Map();

  constructor(photo, {source = null, small = null} = {}) {
    Object.assign(this, {photo, answer: photo.answer, source, small});
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

  // How its crops are rendered: as the options are now, or as they were when the server rendered them.
  get rendering() {
    return this.photo.serverRenders ? this.photo.asked.rendering : read().rendering;
  }

  // Returns the crop as a file, and the box of what it shows.
  async full(garment) {
    const {rendering} = this;
    if (this.photo.serverRenders) {
      return {blob: new Blob([fromBase64(garment.picture)], {type: TYPES[rendering.format]}), box: garment.crop_box};
    }
    const canvas = element("canvas");
    render(canvas, this.source, this.with(garment), rendering);
    const {width, height} = this.source;
    return {blob: await encode(canvas, rendering.format), box: cropBox(garment.box_xyxy, rendering, width, height)};
  }
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

export function showCards(opened) {
  shown = opened;
  drawCards();
}

// Draws the crops again, as the options are now.
export function drawCards() {
  const garments = shown ? strictEnough(shown.photo) : [];
  const names = [...$("list").querySelectorAll(".card")].map(({dataset}) => dataset.garment).join();
  if (names !== garments.map(({id}) => id).join() || $("list").dataset.photo !== shown?.photo.name) makeCards(garments);
  $("list").classList.toggle("opaque", shown?.rendering.background !== "transparent");
  garments.forEach((garment, number) => {
    const item = $("list").querySelector(`[data-garment="${garment.id}"]`);
    const name = fileName(stemOf(shown.photo.name), number + 1, garment.label, shown.rendering.format);
    const button = item.querySelector("button");
    button.title = `Download ${name}`;
    button.setAttribute("aria-label", `Download ${name}`);
    button.onclick = () => download(garment, name);
    drawCrop(item.querySelector(".checks").firstElementChild, garment);
  });
}

function makeCards(garments) {
  const focused = $("list").contains(document.activeElement);
  const persons = [...new Set(garments.map(({person}) => person))];
  $("list").dataset.photo = shown?.photo.name ?? "";
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

function drawCrop(picture, garment) {
  if (shown.photo.serverRenders) {
    picture.src = `data:${TYPES[shown.rendering.format]};base64,${garment.picture}`;
  } else {
    render(picture, shown.small, shown.with(garment), shown.rendering, CARD);
  }
}

async function download(garment, name) {
  try {
    const {blob} = await shown.full(garment);
    save(blob, name);
  } catch (error) {
    showError(`${name}: ${error.message}`);
  }
}


// A zip of the crops of all photos

export async function downloadZip(photos) {
  const full = photos.filter((photo) => strictEnough(photo).length);
  const total = full.reduce((sum, photo) => sum + strictEnough(photo).length, 0);
  const files = [], listed = [], stems = new Set();
  $("zip").disabled = true;
  try {
    for (const photo of full) {
      const opened = shown?.photo === photo ? shown : await open(photo);
      const stem = unique(stemOf(photo.name), stems);
      const garments = [];
      for (const [index, garment] of strictEnough(photo).entries()) {
        $("zip-text").textContent = `Making ${files.length + 1} of ${total}`;
        const {blob, box} = await opened.full(garment);
        const name = fileName(stem, index + 1, garment.label, opened.rendering.format);
        const {mask, mask_box, picture, ...facts} = garment;
        garments.push({...facts, crop_box: box, file: name});
        files.push({name, blob});
      }
      const {image, model, timings_ms} = photo.answer;
      listed.push({photo: photo.name, image, model, timings_ms, rendering: opened.rendering, garments});
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
