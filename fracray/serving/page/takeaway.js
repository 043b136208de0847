// What the user takes away: JSON and CSV of all rows, a DICOM SR of one. Asks no server.

import { callOf } from "./words.js";

const NOTE = "For research only. Not a medical device.";
const CHOSEN = ["chosen_point", "chosen_threshold", "chosen_call"];

/** The rows with the call of the threshold that was chosen on the page. point: {name, threshold}. */
function withChoice(rows, point) {
  return rows.map((row) => ({
    ...row,
    chosen_point: point.name,
    chosen_threshold: point.threshold,
    chosen_call: row.error ? null : callOf(row.probability, point.threshold),
  }));
}

export function asJson(rows, point) {
  return `${JSON.stringify({ note: NOTE, rows: withChoice(rows, point) }, null, 2)}\n`;
}

/** A text that a spreadsheet may take for a formula: it gets an apostrophe in front, as in fracray's other CSV files. */
const FORMULA = /^'*[=+\-@\t\r\n＝＋－＠]/;

/** As fracray.predict writes it: texts in quotes, so that an empty one differs from none. */
export function asCsv(rows, point) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row))), ...CHOSEN];
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value !== "string") return String(value);
    return `"${FORMULA.test(value) ? "'" : ""}${value.replaceAll('"', '""')}"`;
  };
  const lines = withChoice(rows, point).map((row) => columns.map((name) => cell(row[name])).join(","));
  return `${[columns.map(cell).join(","), ...lines].join("\n")}\n`;
}

/** Have the browser save a file. content: text or a Blob. */
export function save(name, content, type) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // the browser reads it after the click
}
