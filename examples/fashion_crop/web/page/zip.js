// A zip of files that are stored as they are: pictures do not become smaller.

const MOST_BYTES = 0xffffffff, MOST_FILES = 0xffff;  // what the format can count

// `files` are {name, blob}. Each blob is read once, for its checksum, and is otherwise left where the browser keeps it.
export async function zip(files) {
  const parts = [], directory = [];
  let offset = 0;
  for (const file of files) {
    const name = new TextEncoder().encode(file.name);
    const crc = crc32(new Uint8Array(await file.blob.arrayBuffer()));
    const size = u32(file.blob.size);
    // Version 2.0, names in UTF-8, stored as it is, midnight of 1980-01-01.
    const common = [u16(20), u16(0x800), u16(0), u16(0), u16(33), u32(crc), size, size, u16(name.length), u16(0)];
    const local = [u32(0x04034b50), ...common, name];
    directory.push(u32(0x02014b50), u16(20), ...common, u16(0), u16(0), u16(0), u32(0), u32(offset), name);
    parts.push(...local, file.blob);
    offset += length(local) + file.blob.size;
  }
  if (offset + length(directory) > MOST_BYTES || files.length > MOST_FILES) {
    throw new Error("the crops are over 4 GB or 65,535 files, which is more than a zip holds: remove some photos");
  }
  const number = u16(files.length);
  const end = [u32(0x06054b50), u16(0), u16(0), number, number, u32(length(directory)), u32(offset), u16(0)];
  return new Blob([...parts, ...directory, ...end], {type: "application/zip"});
}

const u16 = (value) => Uint8Array.of(value, value >> 8);
const u32 = (value) => Uint8Array.of(value, value >> 8, value >> 16, value >> 24);
const length = (parts) => parts.reduce((sum, part) => sum + part.length, 0);

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc;
}

const CRC = Int32Array.from({length: 256}, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  return value;
});
