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

// Browsers turn a JPEG as its Exif data say. Some ignore those of a PNG or WebP, and all ignore what only XMP says;
// the server does what each of them says, and two photos of the same size can be upside down to each other.
function isTurned(kind, bytes) {
  const all = new TextDecoder("latin1").decode(bytes);
  const xmp = /tiff:Orientation(?:="|>)([0-9])/.exec(all);
  if (xmp && xmp[1] !== "1") return true;
  if (kind === "PNG") return all.includes("Raw profile type exif") || orientation(chunk(bytes, 8, false, "eXIf")) > 1;
  return kind === "WebP" && orientation(chunk(bytes, 12, true, "EXIF")) > 1;
}

// The data of a chunk of a PNG (length, name, data, checksum) or WebP (name, length, data, filled up to two bytes).
function chunk(bytes, at, little, name) {
  while (at + 8 <= bytes.length) {
    const length = view(bytes).getUint32(little ? at + 4 : at, little);
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (text(bytes, little ? at : at + 4, 4) === name) return data;
    at += 8 + length + (little ? length % 2 : 4);
  }
  return new Uint8Array();
}

function orientation(exif) {
  if (text(exif, 0, 6) === "Exif\0\0") exif = exif.subarray(6);
  const data = view(exif), little = text(exif, 0, 2) === "II";
  try {
    const first = data.getUint32(4, little);
    for (let entry = 0; entry < data.getUint16(first, little); entry++) {
      const at = first + 2 + 12 * entry;
      if (data.getUint16(at, little) === 0x0112) return data.getUint16(at + 8, little);
    }
  } catch { /* data that end early say nothing */ }
  return 1;
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
