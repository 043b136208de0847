// The files that were dropped or chosen, folders included. Opens no picture, and asks no server.

const HEAD = 132; // bytes that tell pictures from other files
const MARKS = ["\xff\xd8", "\x89PNG", "II*\0", "MM\0*", "II+\0", "MM\0+", "BM", "GIF8", "RIFF"];
const DICOM_PLAIN = ["\x08\0", "\x02\0"]; // the first group of a DICOM file without a preamble

/** Give each picture of a drop to take({file, path}); skip() counts the files of folders that hold no picture. A file
 *  that was dropped itself is always taken, so that the server says what is wrong with it. Ends once signal is aborted. */
export async function dropped(transfer, { take, skip, signal }) {
  // The entries are gone once this function waits, so they are taken first.
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const tops = items.map((item) => ({ entry: item.webkitGetAsEntry?.(), file: item.getAsFile() }));
  for (const { entry, file } of tops) {
    if (entry?.isDirectory) {
      for await (const inside of walk(entry)) {
        await sort(inside, take, skip, signal);
        if (signal.aborted) return;
      }
    } else if (file) take({ file, path: file.name });
  }
}

/** Of a file input, as `dropped`. */
export async function chosen(list, { take, skip, signal }) {
  for (const file of list) {
    if (signal.aborted) return;
    if (file.webkitRelativePath) await sort({ file, path: file.webkitRelativePath }, take, skip, signal);
    else take({ file, path: file.name });
  }
}

async function sort(inside, take, skip, signal) {
  const picture = await isPicture(inside.file);
  if (signal.aborted) return;
  if (picture) take(inside);
  else skip();
}

export async function isDicom(file) {
  const head = await headOf(file);
  return head.slice(128, 132) === "DICM" || DICOM_PLAIN.some((mark) => head.startsWith(mark));
}

async function isPicture(file) {
  const head = await headOf(file);
  return head.slice(128, 132) === "DICM" || [...MARKS, ...DICOM_PLAIN].some((mark) => head.startsWith(mark));
}

async function headOf(file) {
  return String.fromCharCode(...new Uint8Array(await file.slice(0, HEAD).arrayBuffer()));
}

async function* walk(folder) {
  const reader = folder.createReader();
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return; // it gives some hundred at a time
    entries.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
    for (const entry of entries) {
      if (entry.isDirectory) yield* walk(entry);
      else {
        const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
        yield { file, path: entry.fullPath.replace(/^\//, "") };
      }
    }
  }
}
