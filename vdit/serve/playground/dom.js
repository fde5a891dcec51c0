// Elements, toasts and small widgets. Text goes in as text nodes: nothing a user or a server says becomes HTML.

import { icon } from "./icons.js";

let unique = 0;
export const uid = (name = "id") => `${name}-${(unique += 1)}`;

/** An element. Props: `class`, `on` ({event: handler}), `data`, anything else is a property or an attribute. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name.includes("-") || ["role", "for", "list"].includes(name)) node.setAttribute(name, String(value));
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A button with an icon; without `text` its label is read aloud and shown as a tooltip. */
export function button(label, { icon: name, run, text = null, kind = "", pressed = null, disabled = false } = {}) {
  return h("button", {
    type: "button", class: `button ${text === null ? "icon-only" : ""} ${kind}`, disabled,
    "aria-label": text === label ? null : label, title: text === null ? label : null,
    "aria-pressed": pressed === null ? null : String(pressed), on: { click: run },
  }, name ? icon(name) : null, text === null ? null : h("span", {}, text));
}

/** A label above a control, with a hint or the value beside it. */
export function field(label, control, { hint = null, value = null } = {}) {
  const id = control.id || (control.id = uid("field"));
  const about = hint ? h("p", { class: "hint", id: uid("hint") }, hint) : null;
  if (about) control.setAttribute("aria-describedby", about.id);
  return h("div", { class: "field" }, h("div", { class: "field-head" }, h("label", { for: id }, label), value), control, about);
}

/** Colours a slider's track up to its thumb. */
export function fill(input) {
  const share = (Number(input.value) - Number(input.min)) / Math.max(1e-9, Number(input.max) - Number(input.min));
  input.style.setProperty("--fill", `${100 * share}%`);
}

/** A slider whose value is shown in words beside its label. */
export function slider(label, { min, max, step = 1, value, say = String, run = () => {} }) {
  const shown = h("output", { class: "value" });
  const input = h("input", { type: "range", min, max, step });
  const tell = () => {
    shown.textContent = say(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
    fill(input);
  };
  input.value = value;
  input.addEventListener("input", () => { tell(); run(Number(input.value)); });
  tell();
  const node = field(label, input, { value: shown });
  return { node, input, get value() { return Number(input.value); }, set value(to) { input.value = to; tell(); } };
}

/** Radio buttons that look like chips. Options: [{value, label, icon, shape}]. */
export function chips(legend, options, { value, run = () => {}, kind = "" } = {}) {
  const name = uid("chips");
  const node = h("fieldset", { class: `chips ${kind}` }, h("legend", {}, legend), h("div", { class: "chip-row" }, options.map((option) => {
    const input = h("input", { type: "radio", name, value: option.value, checked: option.value === value });
    input.addEventListener("change", () => run(option.value));
    return h("label", { class: "chip" }, input, option.icon ? icon(option.icon) : null, option.shape ?? null, h("span", {}, option.label));
  })));
  return {
    node,
    get value() { return node.querySelector("input:checked")?.value ?? null; },
    set value(to) { for (const input of node.querySelectorAll("input")) input.checked = input.value === to; },
  };
}

export function toast(message, kind = "info") {
  const node = h("div", { class: `toast ${kind}` }, h("span", {}, message),
    button("Dismiss", { icon: "close", run: () => node.remove(), kind: "quiet" }));
  document.getElementById("toasts").append(node);
  if (kind !== "error") setTimeout(() => node.remove(), 6000);
  else setTimeout(() => node.remove(), 20000);
}

/** Runs something that may fail: the error is shown, and null is what it gave. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    toast(error.message || String(error), "error");
    return null;
  }
}

/** A dialog with a title; closed by Escape, by its button and by a click beside it. */
export function dialog(title, content, { wide = false } = {}) {
  const id = uid("title");
  const node = h("dialog", { class: wide ? "wide" : "", "aria-labelledby": id },
    h("div", { class: "dialog-head" }, h("h2", { id }, title), button("Close", { icon: "close", run: () => node.close(), kind: "quiet" })),
    h("div", { class: "dialog-body" }, content));
  node.addEventListener("click", (event) => { if (event.target === node) node.close(); });
  node.addEventListener("close", () => node.remove());
  document.body.append(node);
  node.showModal();
  return node;
}

/** Text to copy: a command, a call. */
export function snippet(label, text) {
  const copy = button(`Copy ${label}`, { icon: "copy", text: "Copy", kind: "small", run: async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.querySelector("span").textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      copy.querySelector("span").textContent = "Selected";
    }
    setTimeout(() => { copy.querySelector("span").textContent = "Copy"; }, 1500);
  } });
  const code = h("code", {}, text);
  return h("div", { class: "snippet" }, h("div", { class: "snippet-head" }, h("h3", {}, label), copy),
    h("pre", { tabIndex: 0, role: "region", "aria-label": label }, code));
}

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
export const seconds = (frames, fps) => `${(frames / fps).toFixed(frames / fps < 10 ? 1 : 0)} s`;
export const parseSize = (text) => { const [width, height] = String(text).split("x").map(Number); return { width, height }; };
export function bytes(count) {
  return count < 1e6 ? `${Math.max(1, Math.round(count / 1e3))} kB` : `${(count / 1e6).toFixed(1)} MB`;
}
