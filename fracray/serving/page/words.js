// Sentences on a row of the server and on its model. Pure functions; no element of the page.

/** 0.2345 as 23.4%; never 0% or 100% of what is not. */
export function percent(share) {
  const tenths = Math.min(share < 1 ? 999 : 1000, Math.max(share > 0 ? 1 : 0, Math.round(1000 * share)));
  return `${(tenths / 10).toFixed(1)}%`;
}

export function counted(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

const FLAGS = {
  blank: "The picture shows nothing.",
  refilled: "The last rows of the picture repeat one block: the file was cut short and saved again.",
  header: "The DICOM header contradicts itself, and was not followed in all.",
  dark: "Darker than all but 0.5% of the training's radiographs.",
  bright: "Brighter than all but 0.5% of the training's radiographs. It may be inverted.",
  small: "Smaller than all but 0.5% of the training's radiographs.",
  large: "Larger than all but 0.5% of the training's radiographs.",
  narrow: "Narrower than all but 0.5% of the training's radiographs.",
  wide: "Wider than all but 0.5% of the training's radiographs.",
};

const SEEN = {
  train: "The model was trained on this very picture, so what it says of it is worth little.",
  "train copy": "The model was trained on a copy of this picture, so what it says of it is worth little.",
  val: "This very picture was in the model's validation, so what is said of it is worth less than it seems.",
  "val copy": "A copy of this picture was in the model's validation, so what is said of it is worth less than it seems.",
};

/** What calls for care, as {words, look}; look: it speaks against the number. */
export function remarks(row, model) {
  const found = (row.flags || "").split("+").filter(Boolean);
  const flags = found.map((flag) => ({ words: FLAGS[flag] ?? `Flag: ${flag}.`, look: true }));
  const seen = SEEN[row.seen_in_training];
  return [...flags, ...(seen ? [{ words: seen, look: true }] : []), ...conformal(row.conformal, model)];
}

function conformal(set, model) {
  if (set === null || set === undefined) return [];
  const coverage = percent(model.coverage).replace(".0%", "%");
  const said = {
    "0+1": `Both answers remain possible at a coverage of ${coverage}: the model does not know.`,
    "": `Neither answer fits at a coverage of ${coverage}: the picture is unlike both kinds on validation.`,
    0: `At a coverage of ${coverage}, only “${model.classes[0]}” remains.`,
    1: `At a coverage of ${coverage}, only “${model.classes[1]}” remains.`,
  };
  return [{ words: said[set] ?? `Conformal set: ${set}.`, look: set === "0+1" || set === "" }];
}

/** How often pictures of this probability were fractured on validation. */
export function reliability(probability, model) {
  const bins = model.reliability ?? [];
  const bin = bins.find(({ low, high }) => probability >= low && probability < high) ?? bins.at(-1);
  if (!bin || probability < bin.low) return "The checkpoint keeps no validation of this range, so nothing is known of how reliable this number is.";
  if (!bin.images) return `No validation radiograph has a probability from ${percent(bin.low)} to ${percent(bin.high)}: how reliable this number is, is not known.`;
  const share = bin.fractured / bin.images;
  const few = bin.images < 20 ? " These are few, so take it with care." : "";
  return (
    `Of the ${counted(bin.images, "validation radiograph")} with a probability from ${percent(bin.low)} to ` +
    `${percent(bin.high)}, ${bin.fractured} ${bin.fractured === 1 ? "was" : "were"} fractured (${percent(share)}).${few}`
  );
}

export function callOf(probability, threshold) {
  return probability >= threshold ? 1 : 0;
}

export function callWords(row, point, model) {
  const call = callOf(row.probability, point.threshold);
  return `${call ? "At or above" : "Below"} the threshold of ${percent(point.threshold)}: called “${model.classes[call]}”.`;
}

export function pointWords(point) {
  const known = (share) => share !== null && share !== undefined;
  if (!known(point.sensitivity) || !known(point.specificity)) return "Its sensitivity and specificity are not known.";
  return (
    `On validation it finds ${percent(point.sensitivity)} of the fractured radiographs (sensitivity) and leaves ` +
    `${percent(point.specificity)} of the others alone (specificity).`
  );
}
