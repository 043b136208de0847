// The list of the session's radiographs, the highest probability first, those with an error last.

import { callOf, percent } from "./words.js";

export class CaseList {
  /** open(case_): the user chose it. */
  constructor(element, open) {
    this.element = element;
    this.open = open;
    this.shown = []; // in the order of the list
    this.current = null;
    element.addEventListener("keydown", (event) => this.key(event));
  }

  /** Put a case that has been read, or could not be, into its place. */
  add(case_) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...["number", "name", "mark"].map((name) => Object.assign(document.createElement("span"), { className: name })));
    button.addEventListener("click", () => this.open(case_));
    case_.button = button;
    const item = document.createElement("li");
    item.append(button);
    let [low, high] = [0, this.shown.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rank(this.shown[middle]) >= rank(case_)) low = middle + 1;
      else high = middle;
    }
    this.element.insertBefore(item, this.element.children[low] ?? null);
    this.shown.splice(low, 0, case_);
  }

  /** Write what the list says of a case under a threshold. */
  write(case_, threshold, classes) {
    const [number, name, mark] = case_.button.children;
    const { row } = case_;
    const failed = Boolean(row.error);
    const call = failed ? null : callOf(row.probability, threshold);
    case_.button.parentElement.className = failed ? "failed" : call ? "fractured" : "";
    number.textContent = failed ? "–" : percent(row.probability);
    name.textContent = case_.path.split("/").at(-1);
    mark.textContent = failed ? "error" : `${row.flags ? "⚠ " : ""}${call ? classes[1] : ""}`;
    const words = failed ? `error: ${row.error}` : `${percent(row.probability)}, ${classes[call]}${row.flags ? `, ${row.flags}` : ""}`;
    case_.button.setAttribute("aria-label", `${case_.path}: ${words}`);
    case_.button.title = failed ? row.error : case_.path;
  }

  mark(case_) {
    this.current?.button?.removeAttribute("aria-current");
    this.current = case_;
    case_?.button?.setAttribute("aria-current", "true");
    case_?.button?.scrollIntoView({ block: "nearest" });
  }

  /** The case so many places below the open one; null beyond the ends. */
  neighbour(steps) {
    const at = this.shown.indexOf(this.current);
    return this.shown[at < 0 ? 0 : at + steps] ?? null;
  }

  clear() {
    this.element.replaceChildren();
    this.shown = [];
    this.current = null;
  }

  key(event) {
    const at = this.shown.findIndex(({ button }) => button === document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: this.shown.length - 1 }[event.key];
    if (to === undefined || !this.shown[to]) return;
    event.preventDefault();
    this.shown[to].button.focus();
  }
}

function rank({ row }) {
  return row.error ? -1 : row.probability;
}
