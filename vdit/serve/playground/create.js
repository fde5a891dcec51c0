// Text to video, and what is made around or of a file: the form, its editors, the results.

import { attempt, button, chips, h, seconds, slider, toast } from "./dom.js";
import { frameChoices, promptFields, samplingFields, shapeOf } from "./fields.js";
import { icon } from "./icons.js";
import * as jobs from "./jobs.js";
import { MaskEditor } from "./mask.js";
import { resultFile, send, Slot, sourceOf, thumbnail } from "./media.js";
import { FrameEditor } from "./outpaint.js";
import { decodeFrames } from "./player.js";
import { Results } from "./results.js";

// inputs: names of slots, "?" where a slot may stay empty. length: what the slider of frames means; null: as the input.
export const TASKS = {
  text: { label: "Text", icon: "text", inputs: [], length: "Length", about: "A video of a text." },
  animate: { label: "Animate", icon: "image", inputs: ["First frame", "Last frame?"], length: "Length", about: "An image becomes the first frame of a video." },
  extend: { label: "Extend", icon: "extend", inputs: ["Video"], length: "New frames", about: "A video goes on, after its end or before its start." },
  loop: { label: "Loop", icon: "loop", inputs: ["Video?"], length: "Frames of the passage", about: "A passage from the end back to the start: it plays without a seam." },
  connect: { label: "Connect", icon: "connect", inputs: ["First video", "Second video"], length: "Frames of the passage", about: "A passage from one video to another." },
  edit: { label: "Edit", icon: "edit", inputs: ["Video"], length: null, about: "A video is changed as the prompt says." },
  inpaint: { label: "Inpaint", icon: "brush", inputs: ["Video or image"], length: null, about: "What you paint is made again, the rest stays." },
  outpaint: { label: "Outpaint", icon: "outpaint", inputs: ["Video or image"], length: null, about: "The picture grows beyond its frame." },
  rollout: { label: "Long", icon: "rollout", inputs: [], length: "Length", about: "A long video, window by window." },
};

export function mountCreate(root, app) {
  const { info } = app;
  const frames = frameChoices(info), defaults = info.defaults, usual = defaults.frames ?? frames.round(defaults.seconds * info.fps);
  const names = Object.keys(TASKS).filter((name) => info.tasks.includes(name));
  let task = names[0], slots = [], editor = null, stale = 0;

  const prompt = promptFields(info, { submit: () => form.requestSubmit() });
  const strength = slider("Strength", { min: 0.1, max: 1, step: 0.05, value: 0.6, say: (x) => (x < 0.4 ? `${x}: close to the video` : x < 0.8 ? `${x}: changed` : `${x}: mostly new`) });
  const direction = chips("Direction", [{ value: "forward", label: "After" }, { value: "backward", label: "Before" }, { value: "both", label: "Both" }], { value: "forward", kind: "compact" });
  const sampling = samplingFields(info);
  prompt.seed = () => sampling.seed();
  const sizes = chips("Size", info.sizes.map((size) => ({ value: size, label: size.replace("x", "×"), shape: shapeOf(size) })), { value: defaults.size ?? info.sizes[0] });
  const say = (count) => (count === 1 ? "one image" : `${count} frames · ${seconds(count, info.fps)}`);
  let length = null;
  const lengthBox = h("div", {}), slotBox = h("div", { class: "slots" }), about = h("p", { class: "hint task-about" });
  const picker = chips("What to make", names.map((name) => ({ value: name, label: TASKS[name].label, icon: TASKS[name].icon })), { value: task, run: (name) => choose(name), kind: "tasks" });
  const go = h("button", { type: "submit", class: "button primary go" }, icon("play"), h("span", {}, "Make"));
  const form = h("form", { class: "composer card", "aria-label": "What to make" }, picker.node, about, slotBox, prompt.node, direction.node, strength.node,
    sizes.node, lengthBox, sampling.node, h("div", { class: "go-row" }, go));
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  const editors = h("div", { class: "editors" });
  const results = new Results(app, { reuse, use });
  root.append(form, h("div", { class: "main-column" }, editors, results.node));

  function drawLength() {
    const rule = TASKS[task];
    if (!rule.length) return void (length = null, lengthBox.replaceChildren());
    const whole = rule.length === "Length" || (task === "loop" && !slots[0].file), added = !whole;
    const most = task === "text" || task === "animate" ? Math.min(frames.most, info.window ?? frames.most) : frames.most;
    const least = added ? frames.step : frames.first, first = task === "rollout" ? Math.min(frames.most, frames.round(4 * (info.window ?? usual))) : usual;
    length = slider(whole ? "Length" : rule.length, { min: least, max: Math.max(least, most - ((most - least) % frames.step)), step: frames.step,
      value: added ? Math.max(frames.step, Math.round((usual - 1) / 2 / frames.step) * frames.step) : first, say });
    lengthBox.replaceChildren(length.node);
  }

  function choose(name, files = []) {
    task = name;
    picker.value = name;
    about.textContent = TASKS[name].about;
    slots = TASKS[name].inputs.map((text, k) => {
      const optional = text.endsWith("?"), label = text.replace("?", "");
      const slot = new Slot(label, { info, optional, accept: label.includes("frame") ? "image/*" : label.includes("image") ? "video/*,image/*" : "video/*", change: () => changed() });
      if (files[k]) slot.file = files[k];
      slot.draw();
      return slot;
    });
    slotBox.replaceChildren(...slots.map((slot) => slot.node));
    direction.node.hidden = name !== "extend";
    strength.node.hidden = name !== "edit";
    go.querySelector("span").textContent = TASKS[name].label === "Text" || name === "rollout" ? "Make" : TASKS[name].label;
    changed();
  }

  /** The editor that belongs to the task and its file. */
  async function changed() {
    const file = slots[0]?.file ?? null, turn = (stale += 1);
    editors.replaceChildren();
    editor = null;
    sizes.node.hidden = !(["text", "animate", "rollout"].includes(task) || (task === "loop" && !file));
    drawLength();
    if (!file || !["edit", "inpaint", "outpaint"].includes(task)) return;
    if (task === "outpaint") {
      editor = new FrameEditor(file, thumbnail(file), { multiple: info.size_multiple ?? 8, most: 4 * Math.max(file.width, file.height) });
    } else {
      editors.replaceChildren(h("p", { class: "card hint" }, "Reading the frames…"));
      const pictures = await attempt(() => pictures_of(file));
      if (!pictures || turn !== stale) return;
      editor = new MaskEditor(file, pictures, { optional: task === "edit" });
    }
    editors.replaceChildren(editor.node);
  }

  async function pictures_of(file) {
    if (file.kind !== "image") return decodeFrames(sourceOf(file), { frames: file.frames, fps: file.fps });
    const answer = await fetch(sourceOf(file), { credentials: "same-origin" });
    return [await createImageBitmap(await answer.blob())];
  }

  async function submit() {
    const missing = slots.find((slot, k) => !slot.file && !TASKS[task].inputs[k].endsWith("?"));
    if (missing) {
      toast(`${TASKS[task].label} needs a file: ${missing.label.toLowerCase()}`, "error");
      return void missing.input.focus();
    }
    const files = slots.filter((slot) => slot.file).map((slot) => slot.file.id);
    const body = { task, ...prompt.body(), ...sampling.body(), ...(files.length ? { files } : {}) };
    if (length) body.num_frames = length.value;
    if (!sizes.node.hidden) body.size = sizes.value;
    if (task === "extend") body.direction = direction.value;
    if (task === "edit") body.strength = strength.value;
    if (editor instanceof FrameEditor) Object.assign(body, editor.body());
    if (editor instanceof MaskEditor && editor.mask.empty && task === "inpaint") return void toast("Paint what is to be made first.", "error");
    go.disabled = true;
    await attempt(async () => {
      if (editor instanceof MaskEditor && !editor.mask.empty) {
        const mask = await send(await editor.mask.file(slots[0].file.fps ?? info.fps), info);
        if (!mask) return;
        body.mask = mask.id;
      }
      const made = await jobs.make(body, sampling.count());
      results.select(made[0].id);
      if (innerWidth < 860) results.node.scrollIntoView({ behavior: "smooth" });
    });
    go.disabled = false;
  }

  /** A result's own settings in the form. */
  function reuse(job) {
    choose(TASKS[job.task] ? job.task : "text");
    prompt.set(job.prompt);
    sampling.set(job);
    if (info.sizes.includes(job.size)) sizes.value = job.size;
    if (length && job.frames && TASKS[task].length === "Length") length.value = job.frames;
    prompt.prompt.focus();
  }

  /** A result as the input of a task, or on the timeline. */
  function use(job, name) {
    const file = resultFile(job);
    if (name === "timeline") return void app.go("timeline", (view) => view.add(file));
    choose(name, [file]);
    if (!prompt.prompt.value) prompt.set(job.prompt);
    form.scrollIntoView({ behavior: "smooth", block: "start" });
  }

  choose(task);
  return {
    async drop(file) {
      const empty = slots.find((slot) => !slot.file);
      if (empty) return void empty.take(file);
      const sent = await send(file, info);
      if (!sent) return;
      const name = (sent.kind === "image" ? ["animate"] : ["extend", "edit"]).find((each) => names.includes(each));
      if (slots.length) slots[0].set(sent);
      else if (name) choose(name, [sent]);
    },
    use,
    select: (id) => results.select(id),
  };
}
