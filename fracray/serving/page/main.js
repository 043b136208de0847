// Puts the parts of the page together: what the user does, and what follows from it.

import { Server } from "./api.js";
import { CaseList } from "./cases.js";
import { chosen, dropped, isDicom } from "./files.js";
import { decodeHeatmap } from "./heatmap.js";
import { Reading } from "./reading.js";
import { Result } from "./result.js";
import { asCsv, asJson, save } from "./takeaway.js";
import { Tools } from "./tools.js";
import { Viewer } from "./viewer.js";
import { counted } from "./words.js";

const LARGE = 25e6; // pixels from which the page says how a picture is drawn
const NARROW = matchMedia("(max-width: 50rem)"); // the list stands above the picture

const element = (id) => document.getElementById(id);
const on = (id, name, action) => element(id).addEventListener(name, action);

// ---- the parts

const server = new Server(askToken, (seconds) => {
  element("busy").textContent = seconds ? `The server is busy. Trying again in ${counted(seconds, "second")}.` : "";
});
const viewer = new Viewer(element("canvas"), () => tools.show(), (point) => {
  element("pixel").textContent = point ? `${point.x}, ${point.y}: ${point.value}` : "";
});
const tools = new Tools(viewer, showHeatmap, step);
const list = new CaseList(element("list"), (case_) => {
  open(case_);
  if (NARROW.matches) element("view").scrollIntoView();
});
const reading = new Reading(predict, done, showReading);
let result = null; // once the model is known
let current = null; // the open case
let opening = new AbortController(); // of the picture and the heatmap of the open case

async function askToken(wrong) {
  const dialog = element("token-dialog");
  if (wrong) element("token-words").textContent = "That token is wrong. Try again.";
  element("token").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  const given = dialog.returnValue === "give" ? element("token").value.trim() : null;
  element("token").value = "";
  return given;
}

// ---- reading

let card = null;

/** The parts that need the model; asked for once, and again after an error. */
async function ready() {
  card ??= server.model().catch((error) => {
    card = null;
    throw error;
  });
  const model = await card;
  result ??= new Result(model, chooseThreshold);
}

async function predict(case_, signal) {
  await ready();
  return rowOf(case_, await server.predict(case_.file, false, signal));
}

/** The server knows a file by its name only. */
function rowOf(case_, { heatmap, ...row }) {
  return { ...row, path: case_.path };
}

/** What takes the files of one drop or choice, and opens the first. */
function intake() {
  let first = true;
  const take = (found) => {
    const case_ = { ...found, row: null, button: null };
    reading.add(case_);
    if (first) open(case_);
    first = false;
  };
  return { take, skip: () => reading.skip(), signal: reading.gathering.signal };
}

function done(case_) {
  list.add(case_);
  if (result) list.write(case_, result.point.threshold, result.model.classes);
  else list.write(case_, 1, ["", ""]); // an error, as there is no row without the model
  if (case_ === current) {
    list.mark(case_);
    tell(case_);
  }
}

function tell(case_) {
  result?.show(case_);
  showTake();
  if (case_.row && result) element("said").textContent = result.sentence(case_);
}

function showReading() {
  const { asked, read, failed, skipped, stopped, busy } = reading;
  element("reading").hidden = !busy;
  element("progress-words").textContent = `Read ${read.toLocaleString("en")} of ${counted(asked, "radiograph")}`;
  element("progress").value = asked ? read / asked : 0;
  const parts = [
    failed ? `${counted(failed, "file")} without a prediction` : "",
    skipped ? `${counted(skipped, "other file")} skipped` : "",
    stopped ? "stopped, and the rest left out" : "",
  ].filter(Boolean);
  const all = busy || !asked ? "" : `${counted(read - failed, "radiograph")} read`;
  element("counts").textContent = [all, ...parts].filter(Boolean).join("; ");
  showTake();
}

function showTake() {
  element("take").hidden = !reading.asked;
  const rows = Boolean(result && list.shown.length);
  element("take-csv").disabled = element("take-json").disabled = !rows;
  element("take-sr").disabled = !current?.dicom || !current.row || Boolean(current.row.error);
}

// ---- the open case

async function open(case_) {
  opening.abort();
  opening = new AbortController();
  const { signal } = opening;
  current = case_;
  list.mark(case_);
  viewer.show(null);
  tell(case_);
  element("heat-words").textContent = "";
  element("canvas").setAttribute("aria-label", `Radiograph ${case_.path}`);
  say(case_.file.size < 2 * LARGE ? "Reading the picture …" : `Sending ${megabytes(case_.file.size)} MB …`);
  try {
    case_.dicom ??= await isDicom(case_.file);
    showTake();
    const picture = await server.picture(case_.file, (bytes, of) => say(arriving(bytes, of)), signal);
    const { width, height } = picture;
    picture.levels = await halved(picture, signal);
    viewer.show(picture);
    element("canvas").setAttribute("aria-label", `Radiograph ${case_.path}, ${width} by ${height} pixels`);
    say(width * height < LARGE ? "" : large(width, height));
    if (tools.heatmapOn) await showHeatmap();
  } catch (error) {
    if (signal.aborted) return;
    say(`No picture: ${error instanceof RangeError ? "it is too large for the memory of this browser." : error.message}`, true);
  }
}

function megabytes(bytes) {
  return Math.round(bytes / 1e6);
}

function arriving(bytes, of) {
  return of < 2 * LARGE ? "Reading the picture …" : `Reading the picture: ${megabytes(bytes)} of ${megabytes(of)} MB`;
}

function large(width, height) {
  return (
    `${Math.round((width * height) / 1e6)} megapixels: shown from copies of half its size and less while it is small; ` +
    "1:1 shows each pixel."
  );
}

/** The levels of a picture, made beside the page so that it does not freeze. */
function halved({ buffer, width, height }, signal) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL("levels.js", import.meta.url), { type: "module" });
    const end = (settle, value) => {
      worker.terminate();
      settle(value);
    };
    worker.onmessage = ({ data }) => end(resolve, data);
    worker.onerror = (event) => end(reject, new RangeError(event.message));
    signal.addEventListener("abort", () => end(reject, signal.reason));
    worker.postMessage({ buffer, width, height }, [buffer]);
  });
}

function say(words, wrong = false) {
  element("stage").classList.toggle("empty", !viewer.picture);
  element("stage-words").classList.toggle("stop", wrong);
  element("stage-words").textContent = words;
}

// ---- the heatmap

async function showHeatmap() {
  const [case_, { signal }] = [current, opening];
  if (!tools.heatmapOn || !viewer.picture) {
    viewer.setOverlay(null, null);
    element("heat-words").textContent = "";
    return;
  }
  element("heat-words").textContent = "Reading the heatmap …";
  try {
    const row = await server.predict(case_.file, true, signal);
    const overlay = row.heatmap && (await decodeHeatmap(row.heatmap));
    if (signal.aborted || !tools.heatmapOn) return;
    viewer.setOverlay(overlay, row.peak_x === null ? null : { x: row.peak_x, y: row.peak_y });
    element("heat-words").textContent = overlay
      ? "Red is where the picture speaks most for a fracture, from its own lowest to its own highest place. A strong red " +
        `does not mean a high probability.${row.peak_x === null ? "" : " The ring marks the highest place."}`
      : `There is no heatmap${row.error ? `: ${row.error}` : " of this picture"}.`;
  } catch (error) {
    if (!signal.aborted) element("heat-words").textContent = `No heatmap: ${error.message}`;
  }
}

// ---- from one radiograph or threshold to another

function chooseThreshold(point) {
  for (const case_ of list.shown) list.write(case_, point.threshold, result.model.classes);
  if (current) tell(current);
}

function step(by) {
  const next = list.neighbour(by);
  if (!next) return;
  open(next);
  if (list.element.contains(document.activeElement)) next.button.focus();
}

// ---- files in, results out

for (const [button, input] of [["add-files", "files"], ["add-folder", "folder"]]) {
  on(button, "click", () => element(input).click());
  on(input, "change", async () => {
    const found = [...element(input).files];
    element(input).value = ""; // so that the same file can be chosen again
    await chosen(found, intake()).catch(unreadable);
  });
}
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragover");
    if (name === "drop") dropped(event.dataTransfer, intake()).catch(unreadable);
  });
}

function unreadable(error) {
  element("busy").textContent = `A file or folder cannot be read any more: ${error.message}`;
}

on("stop", "click", () => reading.stop());
on("take-csv", "click", () => save("predictions.csv", asCsv(rows(), result.point), "text/csv"));
on("take-json", "click", () => save("predictions.json", asJson(rows(), result.point), "application/json"));
on("take-sr", "click", async () => {
  element("sr-words").textContent = "Writing the DICOM SR …";
  try {
    save(`${current.path.split("/").at(-1).replace(/\.dcm$/i, "")}-sr.dcm`, await server.report(current.file), "application/dicom");
    element("sr-words").textContent = "The DICOM SR of the open radiograph is saved.";
  } catch (error) {
    element("sr-words").textContent = `No DICOM SR: ${error.message}`;
  }
});
on("clear", "click", () => {
  opening.abort();
  reading.clear();
  list.clear();
  current = null;
  viewer.show(null);
  result?.show(null);
  say("Drop radiographs here: JPEG, PNG or DICOM.");
  showReading();
  element("add-files").focus();
});

function rows() {
  return list.shown.map(({ row }) => row);
}

say("Drop radiographs here: JPEG, PNG or DICOM.");
tools.show();
ready().catch((error) => {
  element("busy").textContent = error.message;
});
