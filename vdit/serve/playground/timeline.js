// The timeline canvas: images and videos lie somewhere on a picture for some frames; all the rest is made.

import { attempt, button, chips, clamp, field, h, seconds, slider, toast, uid } from "./dom.js";
import { frameChoices, promptFields, samplingFields, shapeOf } from "./fields.js";
import { icon } from "./icons.js";
import * as jobs from "./jobs.js";
import { hatch, Mask, MaskTools } from "./mask.js";
import { resultFile, send, sourceOf } from "./media.js";
import { decodeFrames } from "./player.js";

const HANDLE = 7; // pixels of the screen around a corner

export function mountTimeline(root, app) {
  const { info } = app, rule = frameChoices(info), multiple = info.size_multiple ?? 8;
  const usual = info.defaults.frames ?? rule.round(info.defaults.seconds * info.fps);
  const most = rule.round(Math.min(rule.most, info.window ?? rule.most));
  let [width, height] = (info.defaults.size ?? info.sizes[0]).split("x").map(Number), frames = Math.min(usual, most), at = 0, chosen = null, timer = 0;
  const items = []; // {file, pictures, at, count, x, y, width, height}
  let mask = new Mask(width, height, frames);

  // The form.
  const prompt = promptFields(info, { rows: 2, submit: () => form.requestSubmit() });
  const sampling = samplingFields(info);
  prompt.seed = () => sampling.seed();
  const sizes = chips("Size of the canvas", info.sizes.map((size) => ({ value: size, label: size.replace("x", "×"), shape: shapeOf(size) })),
    { value: `${width}x${height}`, run: (size) => resize(...size.split("x").map(Number), frames) });
  const length = slider("Length", { min: rule.first, max: most, step: rule.step, value: frames, say: (count) => `${count} frames · ${seconds(count, info.fps)}`, run: (count) => resize(width, height, count) });
  const input = h("input", { type: "file", accept: "video/*,image/*", multiple: true, class: "visually-hidden", id: uid("files"), "aria-label": "Add images and videos" });
  input.addEventListener("change", async () => { for (const file of [...input.files]) await drop(file); input.value = ""; });
  const go = h("button", { type: "submit", class: "button primary go" }, icon("play"), h("span", {}, "Make what is missing"));
  const form = h("form", { class: "composer card", "aria-label": "Canvas" },
    h("div", {}, h("h2", {}, "Timeline canvas"), h("p", { class: "hint" }, "Place what you have; the model makes the rest around it.")),
    h("div", { class: "slot" }, input, h("div", { class: "slot-box" }, h("label", { class: "slot-empty", for: input.id }, icon("upload"),
      h("span", {}, h("strong", {}, "Add images and videos"), h("small", {}, "at the frame that is shown"))))),
    prompt.node, sizes.node, length.node, sampling.node, h("div", { class: "go-row" }, go));
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });

  // The board: picture, frames, tools.
  const screen = h("canvas", { tabIndex: 0, role: "img", "aria-label": "The canvas. Arrow keys move what is chosen; with a brush they move the brush and space paints." });
  const play = button("Play", { icon: "play", run: () => (timer ? stop() : start()) });
  const head = slider("Frame", { min: 1, max: frames, value: 1, say: (x) => `${x} of ${frames}`, run: (x) => { stop(); show(x - 1); } });
  const lanes = h("div", { class: "lanes", role: "list", "aria-label": "What lies on the canvas" });
  const coverage = h("canvas", { height: 16, width: 640, role: "img" });
  const mode = chips("Edit", [{ value: "place", label: "Place", icon: "move" }, { value: "mask", label: "Mask", icon: "brush" }], { value: "place", kind: "compact", run: () => tools_shown() });
  const tools = new MaskTools(screen, { mask: () => mask, frame: () => at, draw: () => draw(), changed: () => covered() });
  const place = h("div", { class: "item-tools" });
  const empty = h("p", { class: "hint" }, "Nothing is placed yet: add a file, or send a result here from its page.");
  const board = h("div", { class: "timeline-board card" },
    h("div", { class: "legend" }, h("span", {}, h("i", { class: "swatch known" }), "known"), h("span", {}, h("i", { class: "swatch made" }), "will be made")),
    h("div", { class: "timeline-screen" }, screen), h("div", { class: "player-bar" }, play, h("div", { class: "grow" }, head.node)), lanes,
    h("div", { class: "timeline-tools" }, h("div", { class: "canvas-wrap" }, mode.node, empty, place), tools.node));
  const recent = h("div", { class: "examples", role: "group", "aria-label": "Results to place" });
  root.append(form, h("div", { class: "main-column" }, board, h("section", { class: "card canvas-wrap", "aria-label": "Results" }, h("h2", {}, "Place a result"), recent)));

  const scale = () => screen.width / width;
  const known = (item, frame) => frame >= item.at && frame < item.at + item.count;
  const picture = (item, frame) => item.pictures[clamp(frame - item.at, 0, item.pictures.length - 1)];

  function resize(w, h_, count) {
    const old = mask;
    [width, height, frames] = [w, h_, count];
    mask = Object.assign(new Mask(width, height, frames), { strokes: old.strokes, keys: old.keys });
    mask.redraw();
    at = Math.min(at, frames - 1);
    head.input.max = frames;
    for (const item of items) item.at = clamp(item.at, 0, frames - 1);
    const zoom = Math.max(1, Math.round(720 / Math.max(width, height)));
    Object.assign(screen, { width: width * zoom, height: height * zoom });
    redraw();
  }

  function show(frame) {
    at = (frame + frames) % frames;
    head.value = at + 1;
    draw();
  }

  function start() {
    play.replaceChildren(icon("pause"));
    play.setAttribute("aria-label", "Pause");
    timer = setInterval(() => show(at + 1), 1000 / info.fps);
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.replaceChildren(icon("play"));
    play.setAttribute("aria-label", "Play");
  }

  /** What is known of a frame, on a context in pixels of the canvas. */
  function compose(on, frame) {
    for (const item of items) if (known(item, frame)) on.drawImage(picture(item, frame), item.x, item.y, item.width, item.height);
    on.globalCompositeOperation = "destination-out";
    mask.draw(on, frame, () => "#fff");
    on.globalCompositeOperation = "source-over";
  }

  function draw() {
    const on = screen.getContext("2d"), zoom = scale();
    on.fillStyle = "#14161d";
    on.fillRect(0, 0, screen.width, screen.height);
    on.fillStyle = hatch(on);
    on.fillRect(0, 0, screen.width, screen.height);
    const layer = new OffscreenCanvas(width, height);
    compose(layer.getContext("2d"), at);
    on.drawImage(layer, 0, 0, screen.width, screen.height);
    if (chosen && mode.value === "place") {
      const inside = known(chosen, at);
      on.setLineDash(inside ? [] : [6, 6]);
      on.lineWidth = 2;
      on.strokeStyle = "#2ec4b6";
      on.strokeRect(chosen.x * zoom, chosen.y * zoom, chosen.width * zoom, chosen.height * zoom);
      on.setLineDash([]);
      on.fillStyle = "#fff";
      for (const [x, y] of corners(chosen)) { on.fillRect(x * zoom - 5, y * zoom - 5, 10, 10); on.strokeRect(x * zoom - 5, y * zoom - 5, 10, 10); }
    }
    if (mode.value === "mask") tools.ring(on, zoom);
    for (const needle of lanes.querySelectorAll(".needle")) needle.style.left = `${((at + 0.5) / frames) * 100}%`;
  }

  const corners = (item) => [[item.x, item.y], [item.x + item.width, item.y], [item.x, item.y + item.height], [item.x + item.width, item.y + item.height]];

  /** The strip that shows how much of each frame is known. */
  function covered() {
    const on = coverage.getContext("2d"), step = coverage.width / frames, small = 48;
    const layer = new OffscreenCanvas(small, small), paint = layer.getContext("2d", { willReadFrequently: true });
    let sum = 0;
    on.fillStyle = "#14161d";
    on.fillRect(0, 0, coverage.width, coverage.height);
    on.fillStyle = hatch(on);
    on.fillRect(0, 0, coverage.width, coverage.height);
    on.fillStyle = "#2ec4b6";
    for (let frame = 0; frame < frames; frame += 1) {
      paint.setTransform(1, 0, 0, 1, 0, 0);
      paint.clearRect(0, 0, small, small);
      paint.setTransform(small / width, 0, 0, small / height, 0, 0);
      if (items.some((item) => known(item, frame))) compose(paint, frame);
      const data = paint.getImageData(0, 0, small, small).data;
      let count = 0;
      for (let k = 3; k < data.length; k += 4) count += data[k] > 127;
      const share = count / small ** 2;
      sum += share;
      on.fillRect(frame * step, coverage.height * (1 - share), Math.ceil(step), coverage.height * share);
    }
    const percent = Math.round((100 * sum) / frames);
    coverage.setAttribute("aria-label", `${percent}% is known, ${100 - percent}% will be made`);
    coverage.title = coverage.getAttribute("aria-label");
  }

  /** Lanes, fields of what is chosen, picture. */
  function redraw() {
    empty.hidden = items.length > 0;
    lanes.replaceChildren(...items.map(lane), h("div", { class: "lane coverage", role: "listitem" }, coverage, h("span", { class: "needle" })));
    fields();
    tools_shown();
    covered();
    draw();
  }

  function tools_shown() {
    tools.node.hidden = mode.value !== "mask";
    place.hidden = mode.value !== "place";
    screen.style.cursor = mode.value === "mask" ? "crosshair" : "default";
    draw();
  }

  function lane(item) {
    const small = h("canvas", { width: 60, height: 46, "aria-hidden": "true" });
    small.getContext("2d").drawImage(item.pictures[0], 0, 0, 60, 46);
    const bar = h("button", { type: "button", class: `bar ${item === chosen ? "chosen" : ""}` }, small, h("span", {}, item.file.name ?? item.file.kind));
    const say = () => bar.setAttribute("aria-label", `${item.file.name ?? item.file.kind}, frames ${item.at + 1} to ${item.at + item.count}. Arrow keys move it in time.`);
    const put = () => {
      bar.style.left = `${(item.at / frames) * 100}%`;
      bar.style.width = `${(Math.min(item.count, frames - item.at) / frames) * 100}%`;
      say();
    };
    put();
    const to = (frame) => { item.at = clamp(frame, 0, frames - 1); put(); fields(); covered(); draw(); };
    bar.addEventListener("click", () => choose(item));
    bar.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); to(item.at + by * (event.shiftKey ? rule.step : 1)); }
      if (event.key === "Delete" || event.key === "Backspace") remove(item);
    });
    bar.addEventListener("pointerdown", (event) => {
      const x = event.clientX, begin = item.at, wide = bar.parentElement.getBoundingClientRect().width;
      bar.setPointerCapture(event.pointerId);
      const move = (now) => to(begin + Math.round(((now.clientX - x) / wide) * frames));
      bar.addEventListener("pointermove", move);
      bar.addEventListener("pointerup", () => bar.removeEventListener("pointermove", move), { once: true });
    });
    return h("div", { class: "lane", role: "listitem" }, bar, h("span", { class: "needle" }));
  }

  function choose(item) {
    chosen = item;
    mode.value = "place";
    if (!known(item, at)) show(item.at);
    for (const [k, each] of items.entries()) lanes.children[k].firstChild.classList.toggle("chosen", each === item);
    fields();
    tools_shown();
  }

  function remove(item) {
    items.splice(items.indexOf(item), 1);
    for (const image of item.pictures) image.close();
    if (chosen === item) chosen = items.at(-1) ?? null;
    redraw();
  }

  function fields() {
    if (!chosen) return void place.replaceChildren();
    const number = (name, label, low, high) => {
      const box = h("input", { type: "number", min: low, max: high, step: 1 });
      box.value = name === "at" ? chosen.at + 1 : Math.round(chosen[name]);
      box.addEventListener("change", () => {
        const value = clamp(Number(box.value) || 0, low, high);
        chosen[name] = name === "at" ? value - 1 : value;
        redraw();
      });
      return field(label, box);
    };
    const hold = chosen.file.kind === "image" ? number("count", "Frames", 1, frames) : null;
    place.replaceChildren(h("div", { class: "item-fields", role: "group", "aria-label": `Place of ${chosen.file.name ?? "the file"}` },
      number("at", "From frame", 1, frames), hold, number("x", "Left", -width, width), number("y", "Top", -height, height),
      number("width", "Width", 1, 4 * width), number("height", "Height", 1, 4 * height),
      button("Fill the canvas", { icon: "outpaint", text: "Fill", kind: "small", run: () => { Object.assign(chosen, { x: 0, y: 0, width, height }); redraw(); } }),
      button("Take it away", { icon: "trash", text: "Remove", kind: "small danger", run: () => remove(chosen) })));
  }

  // Pointers on the picture.
  const spot = (event) => { const box = screen.getBoundingClientRect(); return { x: ((event.clientX - box.left) / box.width) * width, y: ((event.clientY - box.top) / box.height) * height, px: width / box.width }; };
  let held = null;
  screen.addEventListener("pointerdown", (event) => {
    const point = spot(event);
    if (mode.value === "mask") return tools.down(point, event);
    const near = chosen && corners(chosen).findIndex(([x, y]) => Math.hypot(x - point.x, y - point.y) < HANDLE * 1.6 * point.px);
    const hit = items.findLast((item) => known(item, at) && point.x >= item.x && point.x <= item.x + item.width && point.y >= item.y && point.y <= item.y + item.height);
    if (near >= 0 && near !== null) held = { corner: near, begin: { ...chosen }, point };
    else if (hit) { choose(hit); held = { corner: null, begin: { ...hit }, point }; }
    else { chosen = null; redraw(); return; }
    event.preventDefault();
    screen.setPointerCapture(event.pointerId);
  });
  screen.addEventListener("pointermove", (event) => {
    const point = spot(event);
    if (mode.value === "mask") return tools.move(point);
    if (!held) return;
    const dx = Math.round(point.x - held.point.x), dy = Math.round(point.y - held.point.y), { begin, corner } = held;
    if (corner === null) Object.assign(chosen, { x: begin.x + dx, y: begin.y + dy });
    else {
      const left = corner % 2 === 0, up = corner < 2, ratio = begin.width / begin.height;
      const wide = Math.max(4, begin.width + (left ? -dx : dx)), high = Math.max(4, Math.round(wide / ratio));
      Object.assign(chosen, { width: wide, height: high, x: left ? begin.x + begin.width - wide : begin.x, y: up ? begin.y + begin.height - high : begin.y });
    }
    draw();
  });
  for (const name of ["pointerup", "pointercancel"]) screen.addEventListener(name, () => {
    if (mode.value === "mask") return tools.up();
    if (held) { held = null; fields(); covered(); }
  });
  screen.addEventListener("pointerleave", () => { tools.shown = false; draw(); });
  screen.addEventListener("keydown", (event) => {
    if (mode.value === "mask") return tools.key(event);
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way || !chosen) return;
    event.preventDefault();
    const by = event.shiftKey ? multiple : 1;
    Object.assign(chosen, { x: chosen.x + way[0] * by, y: chosen.y + way[1] * by });
    fields();
    covered();
    draw();
  });

  /** A file of the server lies on the canvas from the frame that is shown, as large as fits. */
  async function add(file) {
    const pictures = await attempt(async () => {
      if (file.kind !== "image") return decodeFrames(sourceOf(file), { frames: file.frames, fps: file.fps, most: frames });
      const answer = await fetch(sourceOf(file), { credentials: "same-origin" });
      return [await createImageBitmap(await answer.blob())];
    });
    if (!pictures) return;
    const zoom = Math.min(width / file.width, height / file.height);
    const w = Math.max(1, Math.round(file.width * zoom)), h_ = Math.max(1, Math.round(file.height * zoom));
    const item = { file, pictures, at: file.kind === "image" ? at : Math.min(at, Math.max(0, frames - pictures.length)), count: pictures.length,
      x: Math.floor((width - w) / 2), y: Math.floor((height - h_) / 2), width: w, height: h_ };
    items.push(item);
    chosen = item;
    redraw();
  }

  async function drop(file) {
    const sent = await send(file, info);
    if (sent) await add(sent);
  }

  async function submit() {
    if (!items.length) return void toast("Place an image or a video first; of a text alone the page Create makes videos.", "error");
    go.disabled = true;
    await attempt(async () => {
      // A still image that is held for some frames is placed at each of them.
      const canvas = items.flatMap((item) => Array.from({ length: item.file.kind === "image" ? Math.min(item.count, frames - item.at) : 1 }, (_, k) => ({
        file: item.file.id, at_frame: item.at + k, x: Math.round(item.x), y: Math.round(item.y), width: Math.round(item.width), height: Math.round(item.height) })));
      const body = { task: "canvas", ...prompt.body(), ...sampling.body(), size: `${width}x${height}`, num_frames: frames, canvas };
      if (!mask.empty) {
        const sent = await send(await mask.file(info.fps), info);
        if (!sent) return;
        body.mask = sent.id;
      }
      const made = await jobs.make(body, sampling.count());
      app.go("create", (view) => view.select(made[0].id));
    });
    go.disabled = false;
  }

  function results() {
    const done = jobs.done().slice(0, 6);
    recent.replaceChildren(...(done.length ? done.map((job) => h("button", { type: "button", class: "example", on: { click: () => add(resultFile(job)) } },
      `${job.prompt.slice(0, 40) || "no prompt"} · ${job.task} · seed ${job.seed}`)) : [h("span", { class: "hint" }, "Results that are done appear here.")]));
  }
  jobs.listen((kind) => { if (kind === "list") results(); });
  results();
  resize(width, height, frames);
  return { add, drop, shown: (on) => { if (!on) stop(); } };
}
