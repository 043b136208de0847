// The canvas: a picture under a window, zoomed, moved and turned, with the heatmap over it. Asks no server.

import { draw, toPicture, windowTable } from "./raster.js";

const AROUND = 0xff000000; // black
const SLOW = 40; // milliseconds; a drawing that takes longer is coarser while something moves
const STILL = 150; // milliseconds after which nothing moves
const MOST_ZOOM = 32; // canvas pixels a picture pixel
const STEP = 1.25; // of a zoom by key, button or notch of the wheel
const PEAK = "#ffd54a";

export class Viewer {
  /** changed(): the view, the window or the overlay is another; hover(point): the picture position under the pointer,
   *  null for none. */
  constructor(canvas, changed, hover) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.changed = changed;
    this.picture = null;
    this.overlay = null;
    this.opacity = 0.6;
    this.peak = null;
    this.tool = "window";
    this.coarse = 1;
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => {
      this.move(event);
      hover(this.picture && this.pointAt(event));
    });
    canvas.addEventListener("pointerleave", () => hover(null));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("dblclick", () => this.fit());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  /** picture: {levels, width, height, bits, center, window, inverted}; null for none. */
  show(picture) {
    this.picture = picture;
    this.overlay = null;
    this.peak = null;
    if (picture) {
      this.view = { x: 0, y: 0, scale: 1, turn: 0 };
      this.resetWindow();
      this.fit();
    } else this.redraw();
  }

  // ---- window

  /** Within limits, so that the picture is not lost by dragging; its own window may lie beyond them. */
  setWindow(center, width, inverted = this.inverted) {
    const { bits, center: ownCenter, window: ownWidth } = this.picture;
    const top = 2 ** bits;
    this.center = Math.min(Math.max(2 * top, ownCenter), Math.max(Math.min(-top, ownCenter), center));
    this.width = Math.min(Math.max(4 * top, ownWidth), Math.max(Math.min(1, ownWidth), width));
    this.inverted = inverted;
    this.table = windowTable(this.center, this.width, inverted);
    this.redraw();
  }

  resetWindow() {
    const { center, window, inverted } = this.picture;
    this.setWindow(center, window, inverted);
  }

  invert() {
    this.setWindow(this.center, this.width, !this.inverted);
  }

  widen(factor) {
    this.setWindow(this.center, this.width * factor);
  }

  brighten(share) {
    this.setWindow(this.center + (this.inverted ? share : -share) * this.width, this.width);
  }

  // ---- view

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight].map((side) => Math.round(side * ratio));
    if (!width || !height || (width === this.canvas.width && height === this.canvas.height)) return;
    this.canvas.width = width;
    this.canvas.height = height;
    if (this.picture && this.fitted) this.fit();
    else this.redraw(true);
  }

  fit() {
    const { width, height } = this.picture;
    const [across, down] = this.view.turn % 2 ? [height, width] : [width, height];
    const scale = Math.min(this.canvas.width / across, this.canvas.height / down);
    Object.assign(this.view, { x: width / 2, y: height / 2, scale: Math.min(scale, MOST_ZOOM) });
    this.fitted = true;
    this.redraw();
  }

  /** One canvas pixel for each picture pixel. */
  actual() {
    this.view.scale = 1;
    this.centre(this.picture.width / 2, this.picture.height / 2);
  }

  /** at: the canvas position that stays where it is; the middle by default. */
  zoom(factor, at = { left: this.canvas.width / 2, top: this.canvas.height / 2 }) {
    const before = toPicture(this.view, this.canvas, at.left, at.top);
    const least = 16 / Math.max(this.picture.width, this.picture.height);
    this.view.scale = Math.min(MOST_ZOOM, Math.max(least, this.view.scale * factor));
    const after = toPicture(this.view, this.canvas, at.left, at.top);
    this.centre(this.view.x + before.x - after.x, this.view.y + before.y - after.y);
  }

  zoomIn() {
    this.zoom(STEP);
  }

  zoomOut() {
    this.zoom(1 / STEP);
  }

  /** Move the picture by canvas pixels. */
  pan(across, down) {
    const { canvas, view } = this;
    const { x, y } = toPicture(view, canvas, canvas.width / 2 - across, canvas.height / 2 - down);
    this.centre(x, y);
  }

  centre(x, y) {
    this.view.x = Math.min(this.picture.width, Math.max(0, x)); // the middle of the canvas stays on the picture
    this.view.y = Math.min(this.picture.height, Math.max(0, y));
    this.fitted = false;
    this.redraw();
  }

  /** By quarter turns clockwise. */
  turn(quarters) {
    this.view.turn = (this.view.turn + quarters + 4) % 4;
    if (this.fitted) this.fit();
    else this.redraw();
  }

  // ---- overlay

  /** overlay: an image of the picture's frame, of any size, null for none; peak: {x, y} in picture pixels, or null. */
  setOverlay(overlay, peak) {
    this.overlay = overlay;
    this.peak = overlay && peak;
    this.redraw();
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    this.redraw();
  }

  // ---- pointer

  position(event) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    return { left: (event.clientX - box.left) * ratio, top: (event.clientY - box.top) * ratio };
  }

  /** The picture pixel under the pointer, {x, y, value}; null beside the picture. */
  pointAt(event) {
    const { left, top } = this.position(event);
    const [x, y] = Object.values(toPicture(this.view, this.canvas, left, top)).map(Math.floor);
    const { width, height, levels } = this.picture;
    return x >= 0 && y >= 0 && x < width && y < height ? { x, y, value: levels[0].data[y * width + x] } : null;
  }

  press(event) {
    if (!this.picture) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus({ preventScroll: true });
    this.pointers.set(event.pointerId, this.position(event));
    event.preventDefault();
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.picture) return;
    const now = this.position(event);
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    this.pointers.set(event.pointerId, now);
    const [across, down] = [now.left - before.left, now.top - before.top];
    if (others.length) {
      const away = (at) => Math.hypot(at.left - others[0].left, at.top - others[0].top);
      this.pan(across / 2, down / 2);
      this.zoom(away(now) / Math.max(1, away(before)), {
        left: (now.left + others[0].left) / 2,
        top: (now.top + others[0].top) / 2,
      });
    } else if (this.tool === "move" || event.shiftKey || event.buttons !== 1) this.pan(across, down);
    else {
      // The whole canvas across doubles or halves the width twice; the whole way down moves by one width.
      this.setWindow(
        this.center + ((this.inverted ? -1 : 1) * down * this.width) / this.canvas.height,
        this.width * 2 ** ((2 * across) / this.canvas.width),
      );
    }
  }

  wheel(event) {
    if (!this.picture) return;
    event.preventDefault();
    this.zoom(STEP ** Math.max(-2, Math.min(2, -event.deltaY / 100)), this.position(event));
  }

  // ---- drawing

  /** now: before the next frame, where the canvas has been emptied. */
  redraw(now = false) {
    this.changed();
    if (now) this.paint();
    else this.waiting ??= requestAnimationFrame(() => this.paint());
  }

  paint() {
    cancelAnimationFrame(this.waiting);
    this.waiting = null;
    clearTimeout(this.still);
    const started = performance.now();
    this.paintAll(this.coarse);
    const took = performance.now() - started;
    if (this.coarse > 1) this.still = setTimeout(() => this.paintAll(1), STILL);
    else if (took > SLOW) this.coarse = 2;
  }

  paintAll(coarse) {
    const view = this.aligned();
    this.paintPicture(view, coarse);
    this.paintOverlay(view);
    this.canvas.setAttribute("aria-busy", coarse > 1);
  }

  /** The view to draw: one to one from whole pixels on, as it would be blurred in between. */
  aligned() {
    const { view, canvas } = this;
    if (!this.picture || view.scale !== 1) return view;
    const snapped = (at, side) => (side % 2 ? Math.floor(at) + 0.5 : Math.round(at));
    const [across, down] = view.turn % 2 ? [canvas.height, canvas.width] : [canvas.width, canvas.height];
    return { ...view, x: snapped(view.x, across), y: snapped(view.y, down) };
  }

  paintPicture(shown, coarse) {
    const { canvas, context, picture } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (!picture || !canvas.width) {
      context.fillRect(0, 0, canvas.width, canvas.height);
      return;
    }
    const size = { width: Math.ceil(canvas.width / coarse), height: Math.ceil(canvas.height / coarse) };
    const image = new ImageData(size.width, size.height);
    const view = { ...shown, scale: shown.scale / coarse };
    draw(picture.levels, view, size, this.table, new Uint32Array(image.data.buffer), AROUND);
    if (coarse === 1) context.putImageData(image, 0, 0);
    else {
      const small = new OffscreenCanvas(size.width, size.height);
      small.getContext("2d").putImageData(image, 0, 0);
      context.drawImage(small, 0, 0, size.width * coarse, size.height * coarse);
    }
  }

  paintOverlay(view) {
    const { canvas, context, picture } = this;
    if (!picture || !this.overlay) return;
    context.translate(canvas.width / 2, canvas.height / 2);
    context.rotate((view.turn * Math.PI) / 2);
    context.scale(view.scale, view.scale);
    context.translate(-view.x, -view.y);
    context.globalAlpha = this.opacity;
    context.drawImage(this.overlay, 0, 0, picture.width, picture.height);
    context.globalAlpha = 1;
    if (!this.peak) return;
    const ratio = (window.devicePixelRatio || 1) / view.scale;
    context.strokeStyle = PEAK;
    context.lineWidth = 2 * ratio;
    context.beginPath();
    context.arc(this.peak.x, this.peak.y, 18 * ratio, 0, 2 * Math.PI);
    context.stroke();
  }
}
