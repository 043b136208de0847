// What the page says of the open radiograph, and the choice of a threshold. Asks no server.

import { callOf, callWords, modelWords, percent, pointName, points, pointWords, reliability, remarks } from "./words.js";

const element = (id) => document.getElementById(id);

export class Result {
  /** chosen(point): the user took another threshold. */
  constructor(model, chosen) {
    this.model = model;
    const all = points(model);
    this.point = all[0];
    const select = element("point");
    select.replaceChildren(...all.map((point) => new Option(pointName(point))));
    select.addEventListener("change", () => {
      this.point = all[select.selectedIndex];
      element("point-words").textContent = pointWords(this.point, model);
      chosen(this.point);
    });
    element("point-words").textContent = pointWords(this.point, model);
    element("model").textContent = modelWords(model);
  }

  /** case_: null for none; its row is missing while it is being read. */
  show(case_) {
    const row = case_?.row;
    element("result-title").textContent = case_ ? case_.path : "Result";
    element("result-none").hidden = Boolean(row);
    element("result-none").textContent = case_ ? "Reading …" : "No radiograph is open.";
    element("result-error").hidden = !row?.error;
    element("result-error").textContent = row?.error ? `No prediction: ${row.error}` : "";
    element("result-row").hidden = !row || Boolean(row.error);
    element("all").hidden = !row;
    element("threshold").hidden = !case_;
    if (!row) return;
    element("fields").replaceChildren(
      ...Object.entries(row).flatMap(([name, value]) => [
        Object.assign(document.createElement("dt"), { textContent: name }),
        Object.assign(document.createElement("dd"), { textContent: value === null || value === "" ? "–" : value }),
      ]),
    );
    if (row.error) return;
    const number = Object.assign(document.createElement("strong"), { textContent: percent(row.probability) });
    element("probability").replaceChildren(number, "probability of a fracture");
    element("call").textContent = callWords(row, this.point, this.model);
    element("call").className = `verdict ${callOf(row.probability, this.point.threshold) ? "look" : "ok"}`;
    element("reliability").textContent = reliability(row.probability, this.model);
    element("remarks").replaceChildren(
      ...remarks(row, this.model).map(({ words, look }) =>
        Object.assign(document.createElement("li"), { textContent: words, className: look ? "look" : "" }),
      ),
    );
  }

  /** The open case in a sentence, for those who do not see the page. */
  sentence(case_) {
    const { row, path } = case_;
    if (row.error) return `${path}: no prediction: ${row.error}`;
    return `${path}: probability of a fracture ${percent(row.probability)}. ${callWords(row, this.point, this.model)}`;
  }
}
