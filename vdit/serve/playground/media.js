// Files that a user gives: chosen, dropped or pasted, sent to the server, shown.

import { api } from "./api.js";
import { attempt, button, bytes, h, toast, uid } from "./dom.js";
import { icon } from "./icons.js";

/** Sends a file; null (and a message) where the server does not take it. */
export async function send(file, info) {
  const most = info.limits?.upload_bytes;
  if (most && file.size > most) {
    toast(`${file.name}: has ${bytes(file.size)}, this server takes ${bytes(most)}: give a smaller one`, "error");
    return null;
  }
  return attempt(async () => ({ ...(await api.upload(file, file.name || "pasted.png")), name: file.name || "pasted image" }));
}

/** A result of this server as a file that the next job may take: jobs read results by their id, without loss. */
export function resultFile(job) {
  const [width, height] = job.size.split("x").map(Number);
  return { id: job.id, kind: "video", width, height, frames: job.frames, fps: job.fps, name: job.prompt || "a result" };
}

/** Where the browser finds what a file shows. */
export const sourceOf = (file) => (file.id.startsWith("video_") ? api.videoUrl(file.id) : api.fileUrl(file.id));

export function thumbnail(file) {
  const src = sourceOf(file);
  if (file.kind === "image") return h("img", { src, alt: `${file.name ?? "image"}, ${file.width} by ${file.height}` });
  return h("video", { src, muted: true, loop: true, playsInline: true, preload: "auto", autoplay: true, "aria-label": `${file.name ?? "video"}, ${file.frames} frames` });
}

/** A place for one file. `change(file or null)`; file is what the server said of it. */
export class Slot {
  constructor(label, { info, accept = "video/*,image/*", change = () => {}, optional = false }) {
    Object.assign(this, { label, info, change, file: null });
    this.input = h("input", { type: "file", accept, class: "visually-hidden", id: uid("file"), "aria-label": label });
    this.input.addEventListener("change", () => { if (this.input.files[0]) this.take(this.input.files[0]); this.input.value = ""; });
    this.box = h("div", { class: "slot-box" });
    this.node = h("div", { class: "slot" }, this.input, this.box);
    this.hint = optional ? `${label} (may be left out)` : label;
    this.draw();
  }

  draw() {
    if (this.file) {
      const { width, height, frames, kind } = this.file;
      this.box.replaceChildren(h("div", { class: "slot-file" }, thumbnail(this.file),
        h("div", { class: "slot-about" }, h("strong", {}, this.file.name ?? this.label),
          h("span", {}, `${width}×${height}${kind === "image" ? "" : `, ${frames} frames`}`)),
        button(`Remove ${this.label.toLowerCase()}`, { icon: "close", kind: "quiet", run: () => this.set(null) })));
    } else {
      this.box.replaceChildren(h("label", { class: "slot-empty", for: this.input.id }, icon("upload"),
        h("span", {}, h("strong", {}, this.hint), h("small", {}, "drop, paste or choose a file"))));
    }
  }

  async take(file) {
    this.box.replaceChildren(h("div", { class: "slot-empty working" }, icon("upload"), h("span", {}, "Sending…")));
    const sent = await send(file, this.info);
    if (sent) this.set(sent);
    else this.draw();
  }

  set(file) {
    this.file = file;
    this.draw();
    this.change(file);
  }
}
