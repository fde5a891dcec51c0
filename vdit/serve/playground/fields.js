// Fields that every view which makes a video has: prompt and its expansion, seed, how many, how it is sampled.

import { api } from "./api.js";
import { attempt, button, clamp, field, h, slider, toast, uid } from "./dom.js";
import { icon } from "./icons.js";

const STORE = "vdit-fields";

/** The prompt, and beside it what the server's language model makes of it, to be edited before it is used. */
export function promptFields(info, { rows = 3, submit }) {
  const prompt = h("textarea", { rows, placeholder: info.examples?.[0] ? `For example: ${info.examples[0]}` : "Describe the video", spellcheck: false, maxLength: 4000 });
  const expanded = h("textarea", { rows: 4, spellcheck: false, maxLength: 4000 });
  const expandedField = h("div", { class: "expanded", hidden: true },
    field("Expanded prompt (yours to edit)", expanded, { hint: "This text is what the model reads." }),
    button("Discard the expansion", { icon: "close", text: "Discard", kind: "small quiet", run: () => { expandedField.hidden = true; expanded.value = ""; prompt.focus(); } }));
  const expand = button("Expand", { icon: "sparkle", text: "Expand", kind: "small", run: async () => {
    if (!prompt.value.trim()) return void toast("Write a prompt first: an expansion begins with one.");
    expand.disabled = true;
    expand.classList.add("working");
    const made = await attempt(() => api.expand(prompt.value, out.seed()));
    expand.disabled = false;
    expand.classList.remove("working");
    if (!made) return;
    expanded.value = made.text;
    expandedField.hidden = false;
    if (made.note && made.text.trim() === prompt.value.trim()) toast(`The prompt stays as it is: ${made.note}`);
    expanded.focus();
  } });
  const examples = (info.examples ?? []).slice(0, 3).map((text) => h("button", { type: "button", class: "example", on: { click: () => { prompt.value = text; prompt.focus(); } } }, text));
  for (const area of [prompt, expanded]) {
    area.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) { event.preventDefault(); submit(); } });
  }
  const out = {
    node: h("div", { class: "prompt-block" },
      field("Prompt", prompt, { value: info.expand ? expand : null }), expandedField,
      examples.length ? h("div", { class: "examples", role: "group", "aria-label": "Example prompts" }, examples) : null),
    seed: () => 0,
    prompt, expanded,
    /** {prompt, and what the user wrote, if the prompt was expanded} */
    body() {
      const wide = !expandedField.hidden && expanded.value.trim();
      return { prompt: wide ? expanded.value.trim() : prompt.value.trim() };
    },
    set(text) { prompt.value = text; expandedField.hidden = true; expanded.value = ""; },
  };
  return out;
}

/** Seed, how many, and under "More" what few people change. */
export function samplingFields(info, { more = [] } = {}) {
  const defaults = info.defaults;
  const saved = (() => { try { return JSON.parse(localStorage.getItem(STORE)) ?? {}; } catch { return {}; } })();
  const seed = h("input", { type: "number", min: 0, max: 2 ** 32 - 1, step: 1, inputMode: "numeric" });
  seed.value = defaults.seed ?? 0;
  const roll = button("Another seed", { icon: "dice", run: () => { seed.value = crypto.getRandomValues(new Uint32Array(1))[0] % 1e6; } });
  let count = 1;
  const shown = h("output", { class: "count", "aria-live": "polite" }, "1");
  const change = (by) => { count = clamp(count + by, 1, 8); shown.textContent = String(count); };
  const many = h("div", { class: "stepper", role: "group", "aria-label": "How many videos" },
    button("Fewer", { icon: "minus", run: () => change(-1) }), shown, button("More", { icon: "plus", run: () => change(1) }));
  const steps = slider("Steps", { min: 1, max: Math.max(60, defaults.steps), value: saved.steps ?? defaults.steps });
  const guidance = slider("Guidance", { min: 1, max: 12, step: 0.5, value: saved.guidance ?? defaults.guidance, say: (x) => (x === 1 ? "off" : x.toFixed(1)) });
  const negative = h("input", { type: "text", maxLength: 1000, autocomplete: "off" });
  const preview = h("input", { type: "checkbox", id: uid("preview"), checked: true });
  const keep = () => localStorage.setItem(STORE, JSON.stringify({ steps: steps.value, guidance: guidance.value }));
  steps.input.addEventListener("change", keep);
  guidance.input.addEventListener("change", keep);
  const node = h("div", { class: "sampling" },
    h("div", { class: "pair" },
      field("Seed", h("div", { class: "joined" }, seed, roll)),
      h("div", { class: "field" }, h("div", { class: "field-head" }, h("span", { class: "label", "aria-hidden": "true" }, "How many")), many)),
    h("details", { class: "more" }, h("summary", {}, icon("next"), "More settings"),
      h("div", { class: "more-body" }, more, steps.node, guidance.node,
        field("Keep away from", negative, { hint: "A negative prompt; it works with guidance above 1." }),
        h("div", { class: "check" }, preview, h("label", { for: preview.id }, "Show a preview at every step")))));
  // The label names the number, not the box around it and its die.
  const label = node.querySelector("label");
  seed.id = uid("seed");
  label.setAttribute("for", seed.id);
  return {
    node, seed: () => Math.max(0, Math.floor(Number(seed.value) || 0)), count: () => count,
    body() {
      const body = { seed: this.seed(), num_inference_steps: steps.value, guidance_scale: guidance.value, preview: preview.checked };
      if (negative.value.trim() && guidance.value > 1) body.negative_prompt = negative.value.trim();
      return body;
    },
    set(job) { if (job.seed !== undefined && job.seed !== null) seed.value = job.seed; },
  };
}

/** Sizes as chips, each drawn with its shape; {node, value "WxH"}. */
export function shapeOf(size) {
  const [width, height] = size.split("x").map(Number);
  const box = h("span", { class: "shape", "aria-hidden": "true" });
  const scale = 16 / Math.max(width, height);
  box.style.width = `${Math.max(6, width * scale)}px`;
  box.style.height = `${Math.max(6, height * scale)}px`;
  return box;
}

/** Numbers of frames that the model makes: 1 and whole steps from there. */
export function frameChoices(info) {
  const { step, first } = info.frames ?? { step: 1, first: 1 };
  return { step, first, most: info.max_frames, round: (frames) => Math.max(first, first + Math.round((frames - first) / step) * step) };
}
