// Pictures that remember their settings, read in the browser, so that nothing is uploaded; saving and linking.
const PNG_SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const MAX_KEYWORD = 80;

async function bytesOf(file, from, count) {
  return new Uint8Array(await file.slice(from, from + count).arrayBuffer());
}

// The text behind a chunk's keyword: tEXt has it at once, iTXt behind flags and two more strings.
function chunkText(kind, bytes) {
  let start = bytes.indexOf(0) + 1;
  if (kind === "iTXt") {
    if (bytes[start] !== 0) return "";
    start = bytes.indexOf(0, start + 2) + 1;
    start = bytes.indexOf(0, start) + 1;
  }
  return new TextDecoder().decode(bytes.subarray(start));
}

// Its message is a sentence for the visitor.
class Unreadable extends Error {}

// The settings text in a PNG as it stands.
async function readKept(file, { keyword, longest, chunks }) {
  const signature = await bytesOf(file, 0, PNG_SIGNATURE.length);
  if (PNG_SIGNATURE.some((byte, place) => signature[place] !== byte)) {
    throw new Unreadable("This file is no PNG: what Picture saves remembers its settings, an animation does not.");
  }
  let at = PNG_SIGNATURE.length;
  for (let count = 0; count < chunks && at + 8 <= file.size; count++) {
    const head = await bytesOf(file, at, 8 + MAX_KEYWORD);
    const length = new DataView(head.buffer).getUint32(0);
    const kind = String.fromCharCode(...head.subarray(4, 8));
    if (kind === "IDAT" || kind === "IEND") break;
    const name = new TextDecoder().decode(head.subarray(8, 8 + Math.min(length, MAX_KEYWORD))).split("\0")[0];
    if ((kind === "tEXt" || kind === "iTXt") && name === keyword) {
      if (length > longest) {
        throw new Unreadable("The settings in this picture are damaged: they are no short JSON object.");
      }
      return chunkText(kind, await bytesOf(file, at + 8, length));
    }
    at += length + 12;
  }
  throw new Unreadable("This PNG holds no NestAR settings: it was made by another program, or saved by one.");
}

function download(uri, name) {
  const link = document.createElement("a");
  link.href = uri;
  link.download = name;
  link.click();
}

// The page's address with every control in it. `names` are the link's; `address` is what they are put into: for
// others without what else stands in it, as a Space's signs the visitor in.
function linkTo(settings, names, address = new URL(location.pathname, location.href)) {
  for (const [name, setting] of Object.entries(names)) address.searchParams.set(name, settings[setting]);
  return address.href;
}

// True if the clipboard took it.
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text);
  }
}

// As browsers did before, and do without a secure connection: what is selected is copied.
function copySelected(text) {
  const before = document.activeElement;
  const box = document.createElement("textarea");
  box.value = text;
  box.className = "visually-hidden";
  box.setAttribute("aria-hidden", "true");
  document.querySelector(".gradio-container").append(box); // where that class is known
  box.select();
  const copied = document.execCommand("copy");
  box.remove();
  before?.focus({ preventScroll: true });
  return copied;
}
