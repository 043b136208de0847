// The buttons, fields and keys of the viewer. Asks no server.

const MOVE = 60; // canvas pixels by an arrow key
const ARROWS = { ArrowLeft: [MOVE, 0], ArrowRight: [-MOVE, 0], ArrowUp: [0, MOVE], ArrowDown: [0, -MOVE] };
const STEPS = { j: 1, k: -1 };

const element = (id) => document.getElementById(id);
const on = (id, name, action) => element(id).addEventListener(name, action);

export class Tools {
  /** heatmap(): the user switched it on or off; step(by): so many radiographs on. */
  constructor(viewer, heatmap, step) {
    this.viewer = viewer;
    this.step = step;
    this.actions = {
      w: () => viewer.widen(1.1),
      n: () => viewer.widen(1 / 1.1),
      b: () => viewer.brighten(0.05),
      d: () => viewer.brighten(-0.05),
      x: () => viewer.resetWindow(),
      i: () => viewer.invert(),
      h: () => element("heat").click(),
      "+": () => viewer.zoomIn(),
      "=": () => viewer.zoomIn(), // the same key without Shift
      "-": () => viewer.zoomOut(),
      f: () => viewer.fit(),
      1: () => viewer.actual(),
      r: () => viewer.turn(1),
      R: () => viewer.turn(-1),
    };
    const buttons = { reset: "x", invert: "i", "zoom-in": "+", "zoom-out": "-", fit: "f", actual: 1, "turn-right": "r", "turn-left": "R" };
    for (const [id, key] of Object.entries(buttons)) on(id, "click", this.actions[key]);
    for (const tool of ["window", "move"]) on(`tool-${tool}`, "click", () => this.press(tool));
    for (const id of ["center", "width"]) {
      on(id, "input", () => this.type());
      on(id, "blur", () => this.show());
    }
    on("heat", "click", () => {
      element("heat").setAttribute("aria-pressed", !this.heatmapOn);
      heatmap();
    });
    on("opacity", "input", () => viewer.setOpacity(element("opacity").value / 100));
    for (const id of ["view", "list"]) on(id, "keydown", (event) => this.key(event));
  }

  get heatmapOn() {
    return element("heat").getAttribute("aria-pressed") === "true";
  }

  /** What the viewer shows now. */
  show() {
    const { viewer } = this;
    for (const control of element("tools").querySelectorAll("button, input")) control.disabled = !viewer.picture;
    if (!viewer.picture) return;
    for (const [id, value] of [["center", viewer.center], ["width", viewer.width]]) {
      if (document.activeElement !== element(id)) element(id).value = Number(value.toFixed(1));
    }
    element("invert").setAttribute("aria-pressed", viewer.inverted);
  }

  press(tool) {
    this.viewer.tool = tool;
    for (const name of ["window", "move"]) element(`tool-${name}`).setAttribute("aria-pressed", name === tool);
  }

  /** The window of the number fields, once both hold one. */
  type() {
    const fields = [element("center"), element("width")];
    if (fields.every((field) => field.value && field.validity.valid)) this.viewer.setWindow(...fields.map(({ value }) => Number(value)));
  }

  /** Only while the picture, its tools or the list have the focus, as single letters are also typed. */
  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input")) return;
    const { viewer } = this;
    const move = event.target === viewer.canvas && ARROWS[event.key];
    if (Object.hasOwn(STEPS, event.key)) this.step(STEPS[event.key]);
    else if (viewer.picture && move) viewer.pan(...move);
    else if (viewer.picture && Object.hasOwn(this.actions, event.key)) this.actions[event.key]();
    else return;
    event.preventDefault();
  }
}
