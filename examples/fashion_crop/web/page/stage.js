// The selected photo, with the boxes of its garments.

import {$, element} from "./dom.js";

let shown = null;  // {photo, garments, image: {width, height}}

// Show a photo. `picture` is a canvas that has its pixels, or null before the photo is decoded.
export function showPhoto(photo, picture, size) {
  const canvas = picture ?? element("canvas", {width: 1, height: 1});
  canvas.id = "photo";
  if (picture) {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `The photo ${photo.name}`);
  }
  $("photo").replaceWith(canvas);
  $("frame").style.setProperty("--ratio", size ? size.width / size.height : 1);
  $("unseen").hidden = Boolean(picture) || !(photo.serverRenders || photo.state === "refused");
  $("frame").hidden = false;
  $("drop").hidden = true;
  $("credit").textContent = photo.credit;
  showBoxes(photo, [], size);
}

export function showNoPhoto() {
  shown = null;
  $("frame").hidden = true;
  $("drop").hidden = false;
  $("credit").textContent = "";
}

// `garments` are those that are strict enough; `image` has the width and height in which their boxes are.
export function showBoxes(photo, garments, image) {
  shown = {photo, garments, image};
  const share = (part, whole) => `${100 * part / whole}%`;
  const boxes = garments.map(({id, box_xyxy: [left, top, right, bottom]}) => {
    const box = element("div", {className: "box"});
    Object.assign(box.style, {
      left: share(left, image.width), top: share(top, image.height),
      width: share(right - left, image.width), height: share(bottom - top, image.height),
    });
    box.dataset.garment = id;
    box.onclick = () => $("list").querySelector(`[data-garment="${id}"] button`).focus();
    return {box, area: (right - left) * (bottom - top)};
  });
  boxes.sort((one, other) => other.area - one.area);  // the smallest on top, so that each can be pointed at
  const tags = garments.map(({id, label, score}) => {
    const tag = element("div", {className: "tag", textContent: `${label} ${score.toFixed(2)}`});
    tag.dataset.garment = id;
    return tag;
  });
  $("boxes").replaceChildren(...boxes.map(({box}) => box), ...tags);
  placeTags();
}

// Each tag above its box or within it, on the photo, and on no other tag; else it is shown when its box is pointed at.
function placeTags() {
  if (!shown?.garments.length) return;
  const {clientWidth: width, clientHeight: height} = $("boxes");
  const {garments, image} = shown;
  const taken = [];
  for (const {id, box_xyxy: box} of [...garments].sort((one, other) => other.score - one.score)) {
    const tag = $("boxes").querySelector(`.tag[data-garment="${id}"]`);
    const [tagWidth, tagHeight] = [tag.offsetWidth + 1, tag.offsetHeight];  // whole pixels, which may be rounded down
    const top = box[1] * height / image.height, bottom = box[3] * height / image.height;
    const x = Math.max(0, Math.min(box[0] * width / image.width, width - tagWidth));
    const spots = [top - tagHeight - 2, top + 4, bottom - tagHeight - 4].map((y) => ({
      x, y: Math.max(0, Math.min(y, height - tagHeight)), right: x + tagWidth,
    }));
    const free = spots.find((spot) => taken.every((other) =>
      spot.x >= other.right || other.x >= spot.right || Math.abs(spot.y - other.y) >= tagHeight));
    if (free) taken.push(free);
    tag.classList.toggle("crowded", !free);
    tag.style.transform = `translate(${x}px, ${(free ?? spots[0]).y}px)`;
  }
}

function highlight(id) {
  $("boxes").classList.toggle("some-lit", id !== undefined);
  for (const each of document.querySelectorAll("[data-garment]")) {
    each.classList.toggle("lit", each.dataset.garment === id);
  }
}

for (const type of ["pointerover", "focusin"]) {
  document.addEventListener(type, ({target}) => highlight(target.closest("[data-garment]")?.dataset.garment));
}
document.documentElement.addEventListener("pointerleave", () => highlight());
new ResizeObserver(placeTags).observe($("frame"));
