// The crop of a garment, from the photo's own pixels and the mask that the server sent.
//
// The service has the same arithmetic for /v1/crops, in models/crops.py. A crop that is made here has the same pixels.

const RATIOS = {"1:1": 1, "4:5": 4 / 5};  // width to height
export const TYPES = {png: "image/png", webp: "image/webp", jpeg: "image/jpeg"};
const EXTENSIONS = {png: "png", webp: "webp", jpeg: "jpg"};
const QUALITIES = {png: undefined, webp: 0.9, jpeg: 0.92};

// Returns left, top, right and bottom of a crop, in whole pixels of the photo. It can reach beyond the photo.
export function cropBox([left, top, right, bottom], {padding, aspect}, width, height) {
  right = Math.max(right, left + 1);
  bottom = Math.max(bottom, top + 1);
  const side = padding * Math.max(right - left, bottom - top);
  left -= side;
  top -= side;
  right += side;
  bottom += side;
  const ratio = RATIOS[aspect];
  if (!ratio) {
    left = Math.min(Math.max(Math.floor(left), 0), width - 1);
    top = Math.min(Math.max(Math.floor(top), 0), height - 1);
    return [left, top, Math.min(Math.max(Math.ceil(right), left + 1), width), Math.min(Math.max(Math.ceil(bottom), top + 1), height)];
  }
  const wide = right - left, high = bottom - top;
  if (wide < ratio * high) {
    [left, right] = [(left + right - high * ratio) / 2, (left + right + high * ratio) / 2];
  } else {
    [top, bottom] = [(top + bottom - wide / ratio) / 2, (top + bottom + wide / ratio) / 2];
  }
  return [Math.floor(left), Math.floor(top), Math.ceil(right), Math.ceil(bottom)];
}

// Draws a crop on a canvas; with `longest`, a smaller one of at most so many pixels on the longer side.
//
// `picture` is the photo in any size, `width` by `height` are its pixels, and boxes are in these.
export function render(canvas, {picture, width, height}, {box_xyxy, mask_box, opacity}, rendering, longest = Infinity) {
  const [left, top, right, bottom] = cropBox(box_xyxy, rendering, width, height);
  const scale = Math.min(1, longest / Math.max(right - left, bottom - top));
  canvas.width = Math.max(1, Math.round(scale * (right - left)));
  canvas.height = Math.max(1, Math.round(scale * (bottom - top)));
  const context = canvas.getContext("2d");
  context.setTransform(canvas.width / (right - left), 0, 0, canvas.height / (bottom - top), 0, 0);
  context.imageSmoothingQuality = "high";  // cubic, as the service scales masks
  context.translate(-left, -top);  // from here on, all is in pixels of the photo
  const {background} = rendering;
  const fill = (colour) => {
    context.fillStyle = colour;
    context.fillRect(left, top, right - left, bottom - top);
  };
  const drawPhoto = () => context.drawImage(picture, 0, 0, width, height);
  if (background === "original") {
    fill("#fff");
    drawPhoto();
    return;
  }
  context.drawImage(opacity, mask_box[0], mask_box[1], mask_box[2] - mask_box[0], mask_box[3] - mask_box[1]);
  context.globalCompositeOperation = "source-in";
  fill("#fff");  // what is transparent in the photo is white
  context.globalCompositeOperation = "source-atop";
  drawPhoto();
  if (background !== "transparent") {
    context.globalCompositeOperation = "destination-over";
    fill(background === "white" ? "#fff" : background);
  }
}

// Returns the mask of a garment as a canvas whose opacity is that of the mask.
export async function opacityOf({mask}) {
  const bitmap = await createImageBitmap(new Blob([fromBase64(mask)], {type: "image/png"}));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < image.data.length; at += 4) image.data[at + 3] = image.data[at];
  context.putImageData(image, 0, 0);
  return canvas;
}

export async function encode(canvas, format) {
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve, TYPES[format], QUALITIES[format]); });
  if (blob?.type === TYPES[format]) return blob;
  throw new Error(`this browser cannot make a picture of ${canvas.width} × ${canvas.height} pixels: choose less padding`);
}

export const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));


// Names of files: letters, digits and marks of any script, and nothing that a path is made of.

export function fileName(stem, number, label, format) {
  return `${stem}_${String(number).padStart(2, "0")}_${safe(label) || "garment"}.${EXTENSIONS[format]}`;
}

export function stemOf(name) {
  return safe(name.replace(/(?<=.)\.[^.]*$/, "")) || "photo";
}

function safe(text) {
  return [...text.normalize("NFC").replace(/[^\p{L}\p{N}\p{M}_-]+/gu, "_").replace(/^_+|_+$/g, "")].slice(0, 40).join("");
}

// Returns the names of the crops of a photo, and notes them and their stem in `taken`, of which it uses none: two photos
// can have one name. Some systems ignore case in names.
export function fileNames(photoName, labels, format, taken) {
  const stem = [...stemOf(photoName)];
  for (let count = 1; ; count++) {
    const end = count > 1 ? `-${count}` : "";
    const own = stem.slice(0, 40 - end.length).join("") + end;
    const names = labels.map((label, index) => fileName(own, index + 1, label, format));
    const lower = [own, ...names].map((name) => name.toLowerCase());
    if (lower.some((name) => taken.has(name))) continue;
    for (const name of lower) taken.add(name);
    return names;
  }
}
