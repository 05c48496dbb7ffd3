// What a file is, by its bytes: a photo that the server takes or not, and one that this browser shows upright or not.

const BRANDS = {  // of a file of boxes
  "HEIC": ["heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs"],
  "AVIF": ["avif", "avis"],
  "HEIF": ["mif1", "msf1", "mif2"],
  "a QuickTime film": ["qt  "],
  "an MP4 film": ["isom", "iso2", "mp41", "mp42", "avc1"],
  "a Canon raw photo": ["crx "],
};
const BEGINNINGS = {
  "a GIF": ["GIF8"],
  "a TIFF or a camera's raw photo": ["II*\0", "MM\0*"],
  "a BMP": ["BM"],
  "JPEG XL": ["\xff\x0a", "\0\0\0\x0cJXL "],
  "JPEG 2000": ["\0\0\0\x0cjP  ", "\xff\x4f\xff\x51"],
  "a PDF": ["%PDF-"],
  "a Photoshop file": ["8BPS"],
  "an SVG": ["<svg"],
};
const WANTED = "only JPEG, PNG and WebP are taken";
const IPHONE = "Export it as JPEG. On an iPhone, choose Settings > Camera > Formats > Most Compatible for the next photos.";
const SHORT = 3;  // a type of Exif
const XMP = "XML:com.adobe.xmp";
const READ = 100_000_000;  // bytes; a larger file is never sent, and is not read into memory

// Returns {problem}, a text, if the server does not take such a file; else {turned}, whether the file says that the
// photo must be turned in a way that browsers ignore.
export async function inspect(file) {
  let bytes;
  try {
    bytes = new Uint8Array(await file.slice(0, READ).arrayBuffer());
  } catch {
    return {problem: "The file cannot be read, or it has changed since you chose it. Choose it again."};
  }
  const kind = photoKind(bytes);
  return kind ? {turned: isTurned(kind, bytes)} : {problem: problemOf(bytes)};
}

function photoKind(bytes) {
  const start = text(bytes, 0, 12);
  if (start.startsWith("\xff\xd8\xff")) return "JPEG";
  if (start.startsWith("\x89PNG\r\n\x1a\n")) return "PNG";
  return start.startsWith("RIFF") && start.endsWith("WEBP") ? "WebP" : "";
}

function problemOf(bytes) {
  if (!bytes.length) return "The file is empty. Choose a JPEG, PNG or WebP.";
  const start = text(bytes, 0, 256);
  if (start.slice(4, 8) === "ftyp") {
    const length = Math.min(view(bytes).getUint32(0), 256);
    const brands = [start.slice(8, 12)];
    for (let at = 16; at < length; at += 4) brands.push(start.slice(at, at + 4));
    for (const [kind, own] of Object.entries(BRANDS)) {
      if (!brands.some((brand) => own.includes(brand))) continue;
      return `The file is ${kind}, and ${WANTED}. ${kind === "HEIC" || kind === "HEIF" ? IPHONE : "Export it as JPEG."}`;
    }
  }
  for (const [kind, starts] of Object.entries(BEGINNINGS)) {
    if (starts.some((each) => start.startsWith(each))) return `The file is ${kind}, and ${WANTED}. Save it as one of these.`;
  }
  return `The file is no JPEG, PNG or WebP, whatever its name says, and ${WANTED}. Save it as one of these.`;
}

// Browsers turn a JPEG as its Exif data say, if these have 16 bits for it. Some ignore those of a PNG or WebP, and all
// ignore what only XMP says; the server does what each of them says, and two photos of the same size can be upside down
// to each other. Nothing is unpacked here: XMP that a PNG has compressed may say so, and the server knows.
function isTurned(kind, bytes) {
  const all = new TextDecoder("latin1").decode(bytes);
  const xmp = /tiff:Orientation(?:="|>)([0-9])/.exec(all);
  if (xmp && xmp[1] !== "1") return true;
  if (kind === "JPEG") return exifOfJpeg(bytes).some((exif) => exifTurns(exif, SHORT));
  if (kind === "WebP") return chunks(bytes, 12, true, "EXIF").some((exif) => exifTurns(exif));
  return all.includes("Raw profile type exif") || chunks(bytes, 8, false, "eXIf").some((exif) => exifTurns(exif))
    || chunks(bytes, 8, false, "iTXt").some((data) => text(data, 0, XMP.length + 2) === `${XMP}\0\x01`)
    || chunks(bytes, 8, false, "zTXt").some((data) => text(data, 0, XMP.length + 1) === `${XMP}\0`);
}

// The data of the chunks of a PNG (length, name, data, checksum) or WebP (name, length, data, filled up to two bytes).
function chunks(bytes, at, little, name) {
  const found = [];
  while (at + 8 <= bytes.length) {
    const length = view(bytes).getUint32(little ? at + 4 : at, little);
    if (text(bytes, little ? at : at + 4, 4) === name) found.push(bytes.subarray(at + 8, at + 8 + length));
    at += 8 + length + (little ? length % 2 : 4);
  }
  return found;
}

function exifOfJpeg(bytes) {
  const found = [];
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda;) {
    if (bytes[at + 1] === 0xff) {  // before a marker there may be more of these
      at++;
      continue;
    }
    const end = at + 2 + view(bytes).getUint16(at + 2);
    if (bytes[at + 1] === 0xe1 && text(bytes, at + 4, 6) === "Exif\0\0") found.push(bytes.subarray(at + 4, end));
    at = end;
  }
  return found;
}

// Whether Exif data say that the photo must be turned, in another type than `honoured`.
function exifTurns(exif, honoured) {
  if (text(exif, 0, 6) === "Exif\0\0") exif = exif.subarray(6);
  const data = view(exif), little = text(exif, 0, 2) === "II";
  try {
    const first = data.getUint32(4, little);
    for (let entry = 0; entry < data.getUint16(first, little); entry++) {
      const at = first + 2 + 12 * entry;
      const type = data.getUint16(at + 2, little);
      if (data.getUint16(at, little) !== 0x0112 || type === honoured) continue;
      if (type === SHORT ? data.getUint16(at + 8, little) > 1 : data.getUint32(at + 8, little) !== 1) return true;
    }
  } catch { /* data that end early say nothing */ }
  return false;
}

const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
const text = (bytes, at, length) => String.fromCharCode(...bytes.subarray(at, at + length));


// Returns the photo as an image, upright and decoded, or null if this browser cannot read it.
export async function decode(file) {
  const image = new Image();
  const url = image.src = URL.createObjectURL(file);
  const readable = await image.decode().then(() => true, () => false);
  URL.revokeObjectURL(url);
  return readable ? image : null;
}
