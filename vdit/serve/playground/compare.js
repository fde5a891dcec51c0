// Two results side by side, or one over the other behind a line, always at the same frame.

import { api } from "./api.js";
import { chips, field, h, slider } from "./dom.js";
import * as jobs from "./jobs.js";
import { Player } from "./player.js";

export function mountCompare(root, app) {
  const pick = ["A", "B"].map((name) => {
    const select = h("select", { id: `compare-${name}` });
    select.addEventListener("change", () => draw());
    return { name, select, node: field(`Result ${name}`, select) };
  });
  const way = chips("View", [{ value: "beside", label: "Side by side" }, { value: "wipe", label: "Wipe" }, { value: "difference", label: "Difference" }],
    { value: "beside", kind: "compact", run: () => layout() });
  const screens = h("div", { class: "compare-screens" }), bar = h("div", {});
  const wipe = slider("Line", { min: 0, max: 100, value: 50, say: (x) => `${x}%`, run: () => layout() });
  const empty = h("p", { class: "card hint" }, "Make two videos first: here they play in step, frame by frame.");
  const body = h("div", { class: "compare card" }, h("div", { class: "compare-head" }, pick.map((each) => each.node), way.node), screens, wipe.node, bar);
  root.append(empty, body);
  let videos = [], player = null;

  function options() {
    const done = jobs.done();
    empty.hidden = done.length > 1;
    body.hidden = done.length < 2;
    for (const [k, { select }] of pick.entries()) {
      const now = select.value;
      select.replaceChildren(...done.map((job) => h("option", { value: job.id }, `seed ${job.seed} · ${job.task} · ${job.size} · ${job.prompt.slice(0, 60) || "no prompt"}`)));
      select.value = done.some((job) => job.id === now) ? now : other(pick[1 - k].select.value);
    }
    if (done.length > 1) draw();
  }

  /** The newest result but this one. */
  function other(id) {
    return jobs.done().find((job) => job.id !== id)?.id ?? "";
  }

  function draw() {
    const chosen = pick.map(({ select }) => jobs.get(select.value));
    if (chosen.some((job) => !job)) return;
    const same = videos.length === 2 && chosen.every((job, k) => videos[k].dataset.id === job.id);
    if (same) return;
    player?.pause();
    videos = chosen.map((job, k) => h("video", { src: api.videoUrl(job.id), data: { id: job.id }, "aria-label": `Result ${pick[k].name}: ${job.prompt}` }));
    const frames = Math.min(...chosen.map((job) => jobs.framesOf(job, app.info.fps)));
    player = new Player(videos, { fps: chosen[0].fps ?? app.info.fps, frames, label: "both results" });
    screens.replaceChildren(...videos.map((video, k) => h("figure", { class: "compare-screen" }, video,
      h("figcaption", {}, h("b", {}, pick[k].name), ` ${chosen[k].prompt || "no prompt"} · ${chosen[k].task} · seed ${chosen[k].seed}`))));
    bar.replaceChildren(player.node);
    layout();
  }

  function layout() {
    screens.dataset.way = way.value;
    wipe.node.hidden = way.value !== "wipe";
    const over = screens.querySelectorAll("video")[1];
    if (over) over.style.clipPath = way.value === "wipe" ? `inset(0 0 0 ${wipe.value}%)` : "none";
  }

  jobs.listen((kind) => { if (kind === "list") options(); });
  options();
  return {
    shown(on) { if (!on) player?.pause(); },
    /** A result takes the place of A; what was A becomes B. */
    add(id) {
      options();
      const [a, b] = pick;
      if (a.select.value !== id) { b.select.value = a.select.value; a.select.value = id; }
      if (b.select.value === id) b.select.value = other(id);
      draw();
    },
  };
}
