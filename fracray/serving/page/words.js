// Sentences on a row of the server and on its model. Pure functions; no element of the page.

const FEW = 20; // radiographs

/** 0.2345 as 23.5%; never 0% or 100% of what is not. */
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
  header: "The DICOM header contradicts itself or has other texts for UIDs, and was not followed in all.",
  dark: "Darker than all but 0.5% of the training's radiographs.",
  bright: "Brighter than all but 0.5% of the training's radiographs. It may be inverted.",
  small: "Smaller than all but 0.5% of the training's radiographs.",
  large: "Larger than all but 0.5% of the training's radiographs.",
  narrow: "Narrower than all but 0.5% of the training's radiographs.",
  wide: "Wider than all but 0.5% of the training's radiographs.",
  unlike: "Less like the training's radiographs than all but 5% of those of validation. It may be inverted, or no radiograph.",
};

const SEEN = {
  train: "The model was trained on this very picture, so what it says of it is worth little.",
  "train copy": "The model was trained on a copy of this picture, so what it says of it is worth little.",
  val: "This very picture was in the model's validation, so what is said of it is worth less than it seems.",
  "val copy": "A copy of this picture was in the model's validation, so what is said of it is worth less than it seems.",
};

const ALONE = "This ensemble's validation is that of its models one by one.";

/** What calls for care, as {words, look}; look: it speaks against the number. */
export function remarks(row, model) {
  const found = (row.flags || "").split("+").filter(Boolean);
  const flags = found.map((flag) => ({ words: FLAGS[flag] ?? `Flag: ${flag}.`, look: true }));
  const seen = SEEN[row.seen_in_training];
  return [...flags, ...(seen ? [{ words: seen, look: true }] : []), ...conformal(row.conformal, model)];
}

function conformal(set, model) {
  if (set === null || set === undefined || !model.conformal) return [];
  const at = `At a coverage of ${Number((100 * model.conformal.coverage).toFixed(2))}%`;
  const few = model.conformal.promised.includes(false) ? " Validation has too few groups to rule one out." : "";
  const alone = model.out_of_fold ? ` ${ALONE} So no coverage is promised.` : "";
  const said = {
    "0+1": `${at}, both answers remain: the model does not know.${few}`,
    "": `${at}, neither answer fits: the picture is unlike both kinds on validation.`,
    0: `${at}, only “${model.classes[0]}” remains.`,
    1: `${at}, only “${model.classes[1]}” remains.`,
  };
  return [{ words: (said[set] ?? `Conformal set: ${set}.`) + alone, look: set === "0+1" || set === "" }];
}

/** How often pictures of about this probability were fractured on validation. */
export function reliability(probability, model) {
  const bin = model.reliability.find(({ to }) => probability < to) ?? model.reliability.at(-1);
  if (!bin) return "The checkpoint keeps no validation, so how far this number can be trusted is not known.";
  const band = bin.low === null ? "" : `; 95% band ${percent(bin.low)} to ${percent(bin.high)}`;
  const few = bin.images < FEW ? " These are few." : "";
  const fractured = Math.round(bin.share * bin.images);
  return (
    `Of ${counted(bin.images, "validation radiograph")} with about this probability (${percent(bin.from)} to ` +
    `${percent(bin.to)}), ${counted(fractured, "was", "were")} fractured (${percent(bin.share)}${band}).${few}` +
    (model.out_of_fold ? ` ${ALONE} Their mean is nearer to the usual share of fractures.` : "")
  );
}

/** The model, and the share of fractures for which its probabilities hold. */
export function modelWords(model) {
  const on = model.validation;
  const share =
    on &&
    ` Probabilities hold where as many radiographs are fractured as on validation: ${percent(on.fractured / on.images)} of ` +
      `${on.images.toLocaleString("en")}. Where fewer are, they are too high.`;
  return `Checkpoint ${model.checkpoint} (${model.model}).${share ?? ""}`;
}

/** The thresholds to choose from, the checkpoint's own first. */
export function points(model) {
  if (model.operating_points.length) return model.operating_points;
  return [{ name: "checkpoint", rule: "the checkpoint's own", threshold: model.threshold, sensitivity: null, specificity: null }];
}

export function callOf(probability, threshold) {
  return probability >= threshold ? 1 : 0;
}

export function callWords(row, point, model) {
  const call = callOf(row.probability, point.threshold);
  return `${call ? "At or above" : "Below"} the threshold of ${percent(point.threshold)}: called “${model.classes[call]}”.`;
}

export function pointName({ name, threshold }) {
  return `${percent(threshold)}: ${name.replace("_", " of ").replace(/0\.(\d\d)$/, "$1%")}`;
}

export function pointWords({ rule, sensitivity, specificity }, model) {
  if (!sensitivity || !specificity) return "The checkpoint keeps no validation, so its sensitivity and specificity are not known.";
  const share = ({ value, low, high }) =>
    `${percent(value)}${low === null ? "" : ` (95% interval ${percent(low)} to ${percent(high)})`}`;
  const alone = model.out_of_fold ? ` ${ALONE} The ensemble's own sensitivity and specificity may differ.` : "";
  return `Rule: ${rule}. On validation: sensitivity ${share(sensitivity)}, specificity ${share(specificity)}.${alone}`;
}
