// A larger frame around a video: dragged by its edges, or typed.

import { button, clamp, field, h } from "./dom.js";

const SIDES = ["left", "top", "right", "bottom"];

/** margins in pixels, multiples of `multiple`. body() gives what the request says of the frame. */
export class FrameEditor {
  constructor(file, picture, { multiple, most, changed = () => {} }) {
    const round = (side) => Math.max(multiple, Math.round(side / multiple) * multiple);
    Object.assign(this, { file, multiple, most, changed, width: round(file.width), height: round(file.height) });
    this.margins = { left: 0, top: 0, right: 0, bottom: 0 };
    this.picture = picture;
    picture.classList.add("outpaint-picture");
    this.frame = h("div", { class: "outpaint-frame" }, picture);
    this.inputs = {};
    for (const side of SIDES) {
      const handle = h("div", { class: `handle ${side}`, "aria-hidden": "true" });
      handle.addEventListener("pointerdown", (event) => this.drag(event, handle, [side]));
      this.frame.append(handle);
      const input = this.inputs[side] = h("input", { type: "number", min: 0, max: most, step: multiple, value: 0 });
      input.addEventListener("change", () => this.set({ [side]: Number(input.value) }));
    }
    picture.addEventListener("pointerdown", (event) => this.drag(event, picture, null));
    this.stage = h("div", { class: "outpaint-stage" }, this.frame);
    this.status = h("p", { class: "hint", role: "status" });
    const aspect = (label, ratio) => button(label, { text: label, kind: "small", run: () => this.aspect(ratio) });
    this.node = h("section", { class: "editor card", "aria-label": "Frame" },
      h("div", { class: "editor-head" }, h("h2", {}, "Drag the frame"), h("p", { class: "hint" }, "What is striped will be made. Drag an edge, or the video within the frame.")),
      h("div", { class: "editor-body" }, this.stage, h("div", { class: "editor-side" },
        h("div", { class: "quad", role: "group", "aria-label": "Margins in pixels" }, SIDES.map((side) => field(side[0].toUpperCase() + side.slice(1), this.inputs[side]))),
        h("div", { class: "buttons", role: "group", "aria-label": "Shapes" }, aspect("16:9", 16 / 9), aspect("1:1", 1), aspect("9:16", 9 / 16)), this.status)));
    new ResizeObserver(() => this.draw()).observe(this.stage);
    this.set({ left: 2 * multiple, right: 2 * multiple });
  }

  get size() {
    const { left, top, right, bottom } = this.margins;
    return { width: this.width + left + right, height: this.height + top + bottom };
  }

  set(margins) {
    for (const [side, value] of Object.entries(margins)) {
      const most = Math.max(0, this.most - (side === "left" || side === "right" ? this.width : this.height));
      this.margins[side] = clamp(Math.round(value / this.multiple) * this.multiple, 0, Math.floor(most / this.multiple) * this.multiple);
    }
    for (const [first, second, own] of [["left", "right", this.width], ["top", "bottom", this.height]]) {
      const over = own + this.margins[first] + this.margins[second] - Math.max(this.most, own);
      if (over > 0) {
        const other = second in margins && !(first in margins) ? first : second;
        this.margins[other] = Math.max(0, this.margins[other] - Math.ceil(over / this.multiple) * this.multiple);
      }
    }
    for (const side of SIDES) this.inputs[side].value = this.margins[side];
    const { width, height } = this.size;
    const made = 1 - (this.width * this.height) / (width * height);
    this.status.textContent = made > 0 ? `${width}×${height}; ${Math.round(100 * made)}% of it is made.` : "Nothing is to be made yet: drag an edge outward.";
    this.draw();
    this.changed(this);
  }

  /** The least frame of this shape that holds the video, the video in its middle. */
  aspect(ratio) {
    const up = (value) => Math.ceil(value / this.multiple - 1e-6) * this.multiple;
    const width = up(Math.max(this.width, this.height * ratio)), height = up(Math.max(this.height, this.width / ratio));
    const half = (whole) => Math.floor(whole / 2 / this.multiple) * this.multiple;
    const x = half(width - this.width), y = half(height - this.height);
    this.set({ left: x, right: width - this.width - x, top: y, bottom: height - this.height - y });
  }

  draw() {
    const { width, height } = this.size, box = this.stage.getBoundingClientRect();
    if (!box.width) return;
    if (!this.dragging) this.zoom = Math.min((box.width - 40) / width, 340 / height, 8);
    const px = (value) => `${value * this.zoom}px`;
    this.frame.style.width = px(width);
    this.frame.style.height = px(height);
    Object.assign(this.picture.style, { left: px(this.margins.left), top: px(this.margins.top), width: px(this.width), height: px(this.height) });
  }

  /** sides: those whose margin grows outward; null: the video moves within the frame. */
  drag(event, node, sides) {
    event.preventDefault();
    node.setPointerCapture(event.pointerId);
    const begin = { ...this.margins }, { width, height } = this.size, x0 = event.clientX, y0 = event.clientY;
    this.dragging = true;
    const move = (now) => {
      const dx = (now.clientX - x0) / this.zoom, dy = (now.clientY - y0) / this.zoom;
      if (sides) {
        const by = { left: -dx, right: dx, top: -dy, bottom: dy };
        this.set(Object.fromEntries(sides.map((side) => [side, begin[side] + by[side]])));
      } else {
        const left = clamp(begin.left + Math.round(dx / this.multiple) * this.multiple, 0, width - this.width);
        const top = clamp(begin.top + Math.round(dy / this.multiple) * this.multiple, 0, height - this.height);
        this.set({ left, top, right: width - this.width - left, bottom: height - this.height - top });
      }
    };
    const up = () => {
      node.removeEventListener("pointermove", move);
      this.dragging = false;
      this.draw();
    };
    node.addEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) node.addEventListener(name, up, { once: true });
  }

  body() {
    const { width, height } = this.size, { left, top } = this.margins;
    return { size: `${width}x${height}`, canvas: [{ file: this.file.id, at_frame: 0, x: left, y: top, width: this.width, height: this.height }] };
  }
}
