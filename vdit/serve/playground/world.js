// The live world: keys go out, frames come in; what was applied, how fast, and how late.

import { url } from "./api.js";
import { button, field, h, slider, toast } from "./dom.js";
import { icon } from "./icons.js";
import { Slot } from "./media.js";

const ARROWS = { ArrowUp: "w", ArrowLeft: "a", ArrowDown: "s", ArrowRight: "d" };
const PAD = ["q", "w", "e", "a", ".", "d", "z", "s", "c"];
const SIGNS = { w: "↑", a: "←", s: "↓", d: "→", q: "↖", e: "↗", z: "↙", c: "↘", ".": "•", A: "⇇", D: "⇉" };
const WORDS = { w: "up", a: "left", s: "down", d: "right", q: "up and left", e: "up and right", z: "down and left", c: "down and right", ".": "nothing", A: "quickly left", D: "quickly right" };

/** (head, pictures, rendered pictures) of a binary message. */
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const take = (size) => { const part = new Uint8Array(buffer, at, size); at += size; return part; };
  return { head, pictures: head.pictures.map(take), rendered: head.rendered.map(take) };
}

export function mountWorld(root, app) {
  const { info } = app, keys = Object.keys(info.keys).map((key) => key.trim() || ".");
  let socket = null, sent = new Map(), next = 1, down = new Set(), queue = [], playing = 0, ready = null, recording = false, arrived = [];

  // Screens.
  const screen = (title) => {
    const canvas = h("canvas", { width: 64, height: 64, role: "img", "aria-label": title }), note = h("span", {});
    return { canvas, note, node: h("figure", { class: "world-screen" }, canvas, h("figcaption", {}, title, note)) };
  };
  const model = screen("The model"), beside = screen("The rendered world");
  const screens = h("div", { class: "world-screens" }, model.node, beside.node);
  const stat = (name) => { const value = h("dd", {}, "–"); return { value, node: h("div", { class: "stat" }, h("dt", {}, name), value) }; };
  const stats = { rate: stat("Frames a second"), late: stat("Key to frame"), step: stat("Step"), count: stat("Frames") };
  const receipts = h("ol", { class: "receipts", tabIndex: 0, "aria-label": "Keys that were applied" });

  // Controls.
  const begin = button("Play", { icon: "play", text: "Play", kind: "primary", run: () => (socket ? leave() : join()) });
  const reset = button("Reset", { icon: "reset", text: "Reset", run: () => say({ type: "reset" }), disabled: true });
  const other = button("Another world", { icon: "dice", text: "Another world", run: () => { seed.value = Number(seed.value) + 1; socket ? start() : join(); } });
  const record = button("Record", { icon: "record", text: "Record", run: () => { setRecording(!recording); say({ type: "record", on: recording }); }, disabled: true });
  const prompt = h("input", { type: "text", maxLength: 1000, placeholder: info.examples?.[0] ?? "", autocomplete: "off" });
  const seed = h("input", { type: "number", min: 0, max: 2 ** 32, step: 1 });
  seed.value = 0;
  const steps = slider("Steps of the sampler", { min: 1, max: Math.max(20, info.defaults.steps), value: Math.min(6, info.defaults.steps) });
  const rendered = info.rendered_world;
  const from = h("select", {}, rendered ? h("option", { value: "rendered" }, "A rendered first frame") : null, h("option", { value: "own" }, "What the model imagines"), h("option", { value: "image" }, "An image of yours"));
  const slot = new Slot("First frame", { info, accept: "image/*" });
  slot.node.hidden = true;
  from.addEventListener("change", () => { slot.node.hidden = from.value !== "image"; });
  const status = h("p", { class: "hint", role: "status" }, "Press Play, then steer by the keys, the arrows or the pad.");

  const grid = PAD.every((key) => keys.includes(key));
  const pad = h("div", { class: grid ? "keypad" : "keypad row", role: "group", "aria-label": "Keys" }, (grid ? PAD : keys).map((key) => {
    const node = h("button", { type: "button", class: "key", data: { key }, "aria-label": `${key === "." ? "dot" : key}: ${WORDS[key] ?? "key"}` }, SIGNS[key] ?? key);
    node.addEventListener("pointerdown", (event) => { event.preventDefault(); node.setPointerCapture(event.pointerId); press(key); });
    for (const name of ["pointerup", "pointercancel"]) node.addEventListener(name, () => lift(key));
    // By keyboard or a screen reader: a tap.
    node.addEventListener("click", (event) => { if (event.detail === 0) { press(key); lift(key); } });
    return node;
  }));

  root.append(h("div", { class: "world" },
    h("div", { class: "world-main card" }, screens,
      h("div", { class: "world-controls" }, h("div", { class: "canvas-wrap" }, h("div", { class: "buttons" }, begin, reset, other, record), status,
        h("p", { class: "hint" }, `Keyboard: ${keys.filter((key) => key !== ".").join(" ")}${grid ? " and the arrows" : ""}. The latest key wins.`)), pad),
      h("dl", { class: "stats" }, Object.values(stats).map((each) => each.node))),
    h("div", { class: "world-side card" }, h("h2", {}, "The world"),
      field("Begins with", from), slot.node, field("Prompt", prompt), field("Seed", seed), steps.node, h("h3", {}, "Applied keys"), receipts)));

  const say = (message) => { if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message)); };

  function start() {
    if (from.value === "image" && !slot.file) return void toast("Choose an image first, or let the world begin with something else.", "error");
    status.textContent = "The world is being made; the first time it is compiled…";
    say({ type: "begin", prompt: prompt.value, seed: Math.max(0, Number(seed.value) || 0), steps: steps.value, start: from.value === "rendered" ? "rendered" : from.value === "image" ? slot.file.id : null });
  }

  function join() {
    socket = new WebSocket(url("v1/world").replace(/^http/, "ws"));
    socket.binaryType = "arraybuffer";
    socket.addEventListener("open", start);
    socket.addEventListener("message", ({ data }) => {
      if (typeof data === "string") return void toast(JSON.parse(data).error.message, "error");
      const message = unpack(data);
      if (message.head.type === "recorded") return save(message);
      if (message.head.type === "ready") begun(message);
      queue.push(message);
      if (!playing) show();
    });
    socket.addEventListener("close", () => left());
    setBegin(true);
  }

  function leave() { socket?.close(); left(); }

  function left() {
    socket = null;
    ready = null;
    queue = [];
    setRecording(false);
    setBegin(false);
    status.textContent = "The world has stopped.";
  }

  function setBegin(on) {
    begin.replaceChildren(icon(on ? "stop" : "play"), h("span", {}, on ? "Stop" : "Play"));
    begin.classList.toggle("primary", !on);
    for (const node of [reset, record]) node.disabled = !on;
  }

  function setRecording(on) {
    recording = on;
    record.classList.toggle("recording", on);
    record.setAttribute("aria-pressed", String(on));
    record.querySelector("span").textContent = on ? "Stop recording" : "Record";
  }

  function begun({ head }) {
    ready = head;
    sent.clear();
    arrived = [];
    queue = [];
    receipts.replaceChildren();
    for (const each of [model, beside]) Object.assign(each.canvas, { width: head.width, height: head.height });
    for (const each of [model, beside]) each.canvas.style.aspectRatio = `${head.width} / ${head.height}`;
    beside.node.hidden = !head.rendered_too;
    status.textContent = head.prompt ? `“${head.prompt}”. Steer!` : "Steer!";
    root.dataset.playing = "true";
  }

  /** The frames of a step, one after another at the model's rate; as fast as they come where they come late. */
  async function show() {
    playing += 1;
    while (queue.length && ready) {
      const { head, pictures, rendered: other_ } = queue.shift(), wait = 1000 / ready.fps;
      for (let k = 0; k < pictures.length; k += 1) {
        const began = performance.now();
        await Promise.all([draw(model, pictures[k]), other_[k] ? draw(beside, other_[k]) : null]);
        if (k === 0) receipt(head);
        arrived.push(performance.now());
        if (k < pictures.length - 1 && !queue.length) await new Promise((resolve) => setTimeout(resolve, Math.max(0, wait - (performance.now() - began))));
      }
      if (head.number) say({ type: "seen", number: head.number });
      measure(head);
    }
    playing -= 1;
  }

  async function draw({ canvas }, bytes) {
    const image = await createImageBitmap(new Blob([bytes]));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    image.close();
  }

  function receipt(head) {
    if (head.id === null || head.id === undefined || !sent.has(head.id)) return;
    const late = performance.now() - sent.get(head.id);
    for (const id of [...sent.keys()]) if (id <= head.id) sent.delete(id);
    stats.late.value.textContent = `${late.toFixed(0)} ms`;
    root.dataset.late = late.toFixed(1);
    receipts.prepend(h("li", {}, h("span", {}, h("b", {}, SIGNS[head.key] ?? head.key), ` step ${head.number}`), h("span", {}, `${late.toFixed(0)} ms${head.skipped ? `, ${head.skipped} skipped` : ""}`)));
    while (receipts.children.length > 40) receipts.lastChild.remove();
  }

  function measure(head) {
    const now = performance.now();
    arrived = arrived.filter((time) => now - time < 2000);
    if (arrived.length > 2) stats.rate.value.textContent = (((arrived.length - 1) * 1000) / (arrived.at(-1) - arrived[0])).toFixed(1);
    if (head.step_ms) stats.step.value.textContent = `${head.step_ms.toFixed(0)} ms`;
    stats.count.value.textContent = String((ready?.number ?? 0) + head.number * (ready?.frames_per_step ?? 1) + 1);
    root.dataset.frames = stats.count.value.textContent;
    model.note.textContent = head.recorded ? `${head.recorded} recorded` : "";
  }

  function save({ pictures }) {
    setRecording(false);
    const link = h("a", { href: URL.createObjectURL(new Blob([pictures[0]], { type: "video/mp4" })), download: "played.mp4" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    toast("The recording is saved as played.mp4.", "ok");
  }

  function press(key) {
    if (!keys.includes(key) || down.has(key) || !ready) return;
    down.add(key);
    sent.set(next, performance.now());
    say({ type: "key", key, id: next, down: true });
    next += 1;
    light();
  }

  function lift(key) {
    if (!down.delete(key)) return;
    say({ type: "key", key, id: 0, down: false });
    light();
  }

  function light() { for (const node of pad.children) node.classList.toggle("down", down.has(node.dataset.key)); }

  const typing = (event) => root.hidden || event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input:not([type=range]), textarea, select, [role=tab]");
  const named = (event) => ARROWS[event.key] ?? event.key;
  addEventListener("keydown", (event) => {
    if (typing(event) || !socket || !keys.includes(named(event)) || (event.target.type === "range" && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    if (!event.repeat) press(named(event));
  });
  addEventListener("keyup", (event) => lift(named(event)));
  addEventListener("blur", () => { for (const key of [...down]) lift(key); });
  return {
    drop(file) { from.value = "image"; slot.node.hidden = false; slot.take(file); },
    shown(on) { if (!on) for (const key of [...down]) lift(key); },
  };
}
