// What is to be made: a shape that is painted once and moves from key frame to key frame, and the editor of it.

import { button, chips, clamp, field, h, slider, uid } from "./dom.js";
import { encodeMasks } from "./avi.js";

let hatched = null;
/** Diagonal stripes that stand for "will be made", wherever the page shows that. */
export function hatch(context) {
  if (!hatched) {
    hatched = document.createElement("canvas");
    hatched.width = hatched.height = 12;
    const brush = hatched.getContext("2d");
    brush.fillStyle = "rgba(240, 80, 150, .38)";
    brush.fillRect(0, 0, 12, 12);
    brush.strokeStyle = "rgba(255, 150, 200, .95)";
    brush.lineWidth = 2;
    for (const k of [-6, 6, 18]) { brush.beginPath(); brush.moveTo(k - 7, 13); brush.lineTo(k + 7, -1); brush.stroke(); }
  }
  return context.createPattern(hatched, "repeat");
}

/** strokes: [{points: [x, y, ...], radius, erase} or {box: [x, y, w, h]}] in pixels of the picture, at no offset. */
export class Mask {
  constructor(width, height, frames) {
    Object.assign(this, { width, height, frames, strokes: [], keys: new Map() });
    // Three times as wide and high: what is outside now may move in.
    this.shape = document.createElement("canvas");
    this.shape.width = 3 * width;
    this.shape.height = 3 * height;
    this.brush = this.shape.getContext("2d", { willReadFrequently: true });
  }

  get empty() { return this.strokes.length === 0; }
  get moves() { return this.keys.size > 1 && new Set([...this.keys.values()].map(({ x, y }) => `${x},${y}`)).size > 1; }

  /** How far the shape is moved at a frame: linear from key to key, still before the first and after the last. */
  offset(frame) {
    const keys = [...this.keys.keys()].sort((a, b) => a - b);
    if (!keys.length) return { x: 0, y: 0 };
    const after = keys.find((key) => key >= frame), before = keys.findLast((key) => key <= frame);
    if (after === undefined) return this.keys.get(before);
    if (before === undefined || before === after) return this.keys.get(after);
    const a = this.keys.get(before), b = this.keys.get(after), share = (frame - before) / (after - before);
    return { x: a.x + (b.x - a.x) * share, y: a.y + (b.y - a.y) * share };
  }

  begin(frame, x, y, radius, erase) {
    const { x: dx, y: dy } = this.offset(frame);
    this.strokes.push({ points: [x - dx, y - dy], radius, erase });
    this.render(this.strokes.at(-1));
  }

  go(frame, x, y) {
    const { x: dx, y: dy } = this.offset(frame);
    const stroke = this.strokes.at(-1);
    stroke.points.push(x - dx, y - dy);
    this.render({ ...stroke, points: stroke.points.slice(-4) });
  }

  box(frame, x, y, width, height) {
    const { x: dx, y: dy } = this.offset(frame);
    this.strokes.push({ box: [x - dx, y - dy, width, height] });
    this.render(this.strokes.at(-1));
  }

  /** Moves the shape at a frame, which becomes a key frame. */
  shift(frame, dx, dy) {
    if (!this.keys.size && frame !== 0) this.keys.set(0, { x: 0, y: 0 });
    const { x, y } = this.offset(frame);
    this.keys.set(frame, { x: x + dx, y: y + dy });
  }

  undo() {
    this.strokes.pop();
    this.redraw();
  }

  clear() {
    this.strokes = [];
    this.keys.clear();
    this.redraw();
  }

  redraw() {
    this.brush.clearRect(0, 0, this.shape.width, this.shape.height);
    for (const stroke of this.strokes) this.render(stroke);
  }

  render(stroke) {
    const { brush, width, height } = this;
    brush.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
    brush.fillStyle = brush.strokeStyle = "#fff";
    if (stroke.box) {
      const [x, y, w, h_] = stroke.box;
      brush.fillRect(x + width, y + height, w, h_);
      return;
    }
    const [x, y] = stroke.points;
    brush.lineCap = brush.lineJoin = "round";
    brush.lineWidth = 2 * stroke.radius;
    brush.beginPath();
    brush.moveTo(x + width, y + height);
    if (stroke.points.length === 2) brush.lineTo(x + width + 0.01, y + height);
    for (let k = 2; k < stroke.points.length; k += 2) brush.lineTo(stroke.points[k] + width, stroke.points[k + 1] + height);
    brush.stroke();
  }

  /** Draws the mask of a frame in a fill (white, stripes). */
  draw(context, frame, fill) {
    const { x, y } = this.offset(frame);
    const layer = new OffscreenCanvas(this.width, this.height);
    const on = layer.getContext("2d");
    on.drawImage(this.shape, Math.round(x) - this.width, Math.round(y) - this.height);
    on.globalCompositeOperation = "source-in";
    on.fillStyle = fill(on);
    on.fillRect(0, 0, this.width, this.height);
    context.drawImage(layer, 0, 0);
  }

  /** Uint8Array of 0 and 1. */
  pixels(frame) {
    const layer = new OffscreenCanvas(this.width, this.height);
    const on = layer.getContext("2d", { willReadFrequently: true });
    this.draw(on, frame, () => "#fff");
    const data = on.getImageData(0, 0, this.width, this.height).data;
    return Uint8Array.from({ length: this.width * this.height }, (_, k) => (data[4 * k + 3] > 127 ? 1 : 0));
  }

  share(frame) {
    const pixels = this.pixels(frame);
    return pixels.reduce((sum, on) => sum + on, 0) / pixels.length;
  }

  /** A file for the server: a PNG where all frames are alike, else a video with a picture for each. */
  async file(fps) {
    if (this.moves && this.frames > 1) {
      const frames = Array.from({ length: this.frames }, (_, frame) => this.pixels(frame));
      return new File([encodeMasks(frames, { width: this.width, height: this.height, fps: fps || 8 })], "mask.avi", { type: "video/x-msvideo" });
    }
    const canvas = new OffscreenCanvas(this.width, this.height);
    const on = canvas.getContext("2d");
    on.fillStyle = "#000";
    on.fillRect(0, 0, this.width, this.height);
    // Every pixel wholly black or white, as the server takes it.
    const pixels = this.pixels(0), image = on.getImageData(0, 0, this.width, this.height);
    for (let k = 0; k < pixels.length; k += 1) image.data.set(pixels[k] ? [255, 255, 255, 255] : [0, 0, 0, 255], 4 * k);
    on.putImageData(image, 0, 0);
    return new File([await canvas.convertToBlob({ type: "image/png" })], "mask.png", { type: "image/png" });
  }
}

/**
 * Tools that paint a Mask on a canvas element. draw(frame) repaints the canvas (the caller shows pictures and mask);
 * place(event) gives pixels of the picture. Used by the editor below and by the timeline.
 */
export class MaskTools {
  constructor(canvas, { mask, frame, draw, changed = () => {} }) {
    Object.assign(this, { canvas, mask, frame, draw, changed, cursor: { x: mask().width / 2, y: mask().height / 2 }, shown: false, drag: null });
    this.tool = chips("Tool", [
      { value: "paint", label: "Paint", icon: "brush" }, { value: "erase", label: "Erase", icon: "eraser" },
      { value: "move", label: "Move", icon: "move" }], { value: "paint", kind: "compact" });
    this.size = slider("Brush", { min: 1, max: 40, value: 12, say: (x) => `${x}%` });
    this.node = h("div", { class: "mask-tools" }, this.tool.node, this.size.node, h("div", { class: "buttons" },
      button("Add a box", { icon: "box", text: "Box", kind: "small", run: () => this.askBox() }),
      button("Undo", { icon: "undo", text: "Undo", kind: "small", run: () => { this.mask().undo(); this.done(); } }),
      button("Clear the mask", { icon: "trash", text: "Clear", kind: "small", run: () => { this.mask().clear(); this.done(); } })));
  }

  get radius() { return Math.max(0.6, (this.size.value / 100) * Math.min(this.mask().width, this.mask().height) / 2 * 1.5); }

  done() { this.draw(); this.changed(); }

  down(at, event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.drag = at;
    if (this.tool.value !== "move") this.mask().begin(this.frame(), at.x, at.y, this.radius, this.tool.value === "erase");
    this.draw();
  }

  move(at) {
    this.cursor = at;
    this.shown = true;
    if (this.drag) {
      if (this.tool.value === "move") this.mask().shift(this.frame(), at.x - this.drag.x, at.y - this.drag.y);
      else this.mask().go(this.frame(), at.x, at.y);
      this.drag = at;
    }
    this.draw();
  }

  up() {
    if (!this.drag) return;
    this.drag = null;
    this.done();
  }

  /** Arrow keys move the brush (or, with the tool Move, the mask); space paints. */
  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const { width, height } = this.mask();
    if (way) {
      const by = (event.shiftKey ? 0.1 : 0.025) * Math.min(width, height);
      if (this.tool.value === "move") this.mask().shift(this.frame(), way[0] * by, way[1] * by);
      else this.cursor = { x: clamp(this.cursor.x + way[0] * by, 0, width), y: clamp(this.cursor.y + way[1] * by, 0, height) };
      this.shown = true;
    } else if (event.key === " " || event.key === "Enter") {
      this.mask().begin(this.frame(), this.cursor.x, this.cursor.y, this.radius, this.tool.value === "erase");
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.mask().undo();
    } else return;
    event.preventDefault();
    this.done();
  }

  /** The brush's ring. */
  ring(context, scale) {
    if (!this.shown || this.tool.value === "move") return;
    context.beginPath();
    context.arc(this.cursor.x * scale, this.cursor.y * scale, this.radius * scale, 0, 2 * Math.PI);
    context.lineWidth = 3;
    context.strokeStyle = "rgba(0, 0, 0, .6)";
    context.stroke();
    context.lineWidth = 1.5;
    context.strokeStyle = "#fff";
    context.stroke();
  }

  askBox() {
    if (this.form) return void (this.form.remove(), this.form = null);
    const { width, height } = this.mask();
    const number = (value, most) => { const input = h("input", { type: "number", min: 0, max: most, step: 1 }); input.value = value; return input; };
    const inputs = { Left: number(Math.round(width / 4), width), Top: number(Math.round(height / 4), height),
      Width: number(Math.round(width / 2), width), Height: number(Math.round(height / 2), height) };
    this.form = h("div", { class: "box-form", role: "group", "aria-label": "A box in pixels" },
      Object.entries(inputs).map(([name, input]) => field(name, input)),
      button("Add", { text: "Add", kind: "small primary", run: () => {
        this.mask().box(this.frame(), ...Object.values(inputs).map((input) => Number(input.value) || 0));
        this.form.remove();
        this.form = null;
        this.done();
      } }));
    this.node.append(this.form);
    inputs.Left.focus();
  }
}

/** Paints a mask on a file: frames are its pictures (ImageBitmaps, one for an image). */
export class MaskEditor {
  constructor(file, frames, { optional = false } = {}) {
    this.mask = new Mask(file.width, file.height, frames.length);
    this.frames = frames;
    this.at = 0;
    // The canvas has the pixels of the screen, so that stripes and the ring are fine on small pictures too.
    this.scale = Math.max(1, Math.round(640 / file.width));
    this.canvas = h("canvas", { width: file.width * this.scale, height: file.height * this.scale, tabIndex: 0, role: "img", class: "paint",
      "aria-label": "Mask on the picture. Arrow keys move the brush, space paints, with the tool Move the arrows move the mask." });
    this.tools = new MaskTools(this.canvas, { mask: () => this.mask, frame: () => this.at, draw: () => this.draw(), changed: () => this.tell() });
    this.status = h("p", { class: "hint", role: "status" });
    this.place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return { x: ((event.clientX - box.left) / box.width) * file.width, y: ((event.clientY - box.top) / box.height) * file.height };
    };
    this.canvas.addEventListener("pointerdown", (event) => this.tools.down(this.place(event), event));
    this.canvas.addEventListener("pointermove", (event) => this.tools.move(this.place(event)));
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => this.tools.up());
    this.canvas.addEventListener("pointerleave", () => { this.tools.shown = false; this.draw(); });
    this.canvas.addEventListener("keydown", (event) => this.tools.key(event));
    this.scrub = frames.length > 1 ? slider("Frame", { min: 1, max: frames.length, value: 1, say: (x) => `${x} of ${frames.length}`, run: (x) => { this.at = x - 1; this.draw(); } }) : null;
    this.node = h("section", { class: "editor card", "aria-label": "Mask" },
      h("div", { class: "editor-head" }, h("h2", {}, "Paint what is to be made"),
        h("p", { class: "hint" }, optional ? "Without a mask all of the video is edited." : "Striped parts are made again, all others stay as they are.",
          frames.length > 1 ? " To let the mask move: go to another frame, choose Move and drag it there." : "")),
      h("div", { class: "editor-body" }, h("div", { class: "canvas-wrap" }, this.canvas, this.scrub?.node),
        h("div", { class: "editor-side" }, this.tools.node, this.status)));
    this.draw();
    this.tell();
  }

  draw() {
    const { canvas, scale } = this, context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(this.frames[this.at], 0, 0, canvas.width, canvas.height);
    const layer = new OffscreenCanvas(this.mask.width, this.mask.height);
    this.mask.draw(layer.getContext("2d"), this.at, () => "#fff");
    const striped = new OffscreenCanvas(canvas.width, canvas.height), on = striped.getContext("2d");
    on.imageSmoothingEnabled = false;
    on.drawImage(layer, 0, 0, canvas.width, canvas.height);
    on.globalCompositeOperation = "source-in";
    on.fillStyle = hatch(on);
    on.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(striped, 0, 0);
    this.tools.ring(context, scale);
  }

  tell() {
    const share = this.mask.empty ? 0 : this.mask.share(this.at);
    const keys = [...this.mask.keys.keys()].sort((a, b) => a - b).map((key) => key + 1);
    this.status.textContent = this.mask.empty ? "Nothing is painted yet."
      : `${Math.max(1, Math.round(100 * share))}% of this frame is made again.` + (this.mask.moves ? ` The mask moves; key frames: ${keys.join(", ")}.` : "");
  }
}
