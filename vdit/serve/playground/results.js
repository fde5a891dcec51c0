// What was made and what is being made: one result large, with all that can be done with it, and all of them as cards.

import { api } from "./api.js";
import { attempt, button, dialog, h, parseSize, seconds, snippet, toast } from "./dom.js";
import { icon } from "./icons.js";
import * as jobs from "./jobs.js";
import { Player } from "./player.js";

const NEXT = [["extend", "Extend"], ["loop", "Loop"], ["edit", "Edit"], ["inpaint", "Inpaint"], ["outpaint", "Outpaint"], ["timeline", "Timeline"]];
const FORMATS = ["mp4", "webm", "gif"];

function curl(job) {
  const body = { task: job.task, prompt: job.prompt, size: job.size, num_frames: job.frames, seed: job.seed };
  const text = JSON.stringify(body).replaceAll("'", "'\\''");
  return `curl ${new URL("v1/videos", document.baseURI)} -H 'content-type: application/json' -d '${text}'`;
}

export function downloads(job) {
  return h("div", { class: "buttons", role: "group", "aria-label": "Download" }, FORMATS.map((format) => h("a", {
    class: "button small", href: api.videoUrl(job.id, format), download: `${job.id}.${format}`, "aria-label": `Download ${format}`,
  }, icon("download"), h("span", {}, format))));
}

export function how(job) {
  const files = job.task === "canvas" && job.status === "completed" ? ["composed", "mask"].map((name) => h("a", {
    class: "button small", href: `${api.videoUrl(job.id, "mkv")}&variant=${name}`, download: `${job.id}.${name}.mkv`,
  }, icon("download"), h("span", {}, `${name}.mkv`))) : [];
  const parts = [["Command", job.command], ["Python", job.python], ...(job.task === "text" ? [["HTTP", curl(job)]] : [])];
  dialog("Make it again", [h("p", { class: "hint" }, "The same model, command and seed give the same video."),
    ...(files.length ? [h("div", { class: "buttons", role: "group", "aria-label": "Files that the command reads" }, files)] : []),
    ...parts.filter(([, text]) => text).map(([name, text]) => snippet(name, text))], { wide: true });
}

/** A canvas that shows the newest preview of a job. */
function previewCanvas(job) {
  const { width, height } = parseSize(job.size);
  const canvas = h("canvas", { width: width || 16, height: height || 16, class: "preview", role: "img", "aria-label": "Preview while it is made" });
  return Object.assign(canvas, { show() {
    const image = jobs.previewOf(job.id);
    if (!image) return;
    if (canvas.width !== image.width || canvas.height !== image.height) Object.assign(canvas, { width: image.width, height: image.height });
    canvas.getContext("2d").drawImage(image, 0, 0);
    canvas.classList.add("lit");
  } });
}

function state(job) {
  if (job.status === "queued") return "waiting";
  if (job.status === "in_progress") return job.step ? `step ${job.step} of ${job.steps}` : "starting";
  return { completed: "done", failed: "failed", cancelled: "cancelled" }[job.status];
}

export class Results {
  /** actions: reuse(job), use(job, task). */
  constructor(app, actions) {
    Object.assign(this, { app, actions, chosen: null, cards: new Map(), filter: "" });
    this.stage = h("section", { class: "stage card", "aria-label": "Result" });
    const search = h("input", { type: "search", placeholder: "Search prompts", "aria-label": "Search the history", autocomplete: "off" });
    search.addEventListener("input", () => { this.filter = search.value.toLowerCase(); this.list(); });
    this.grid = h("ul", { class: "gallery" });
    this.empty = h("p", { class: "hint" }, "What you make is kept here.");
    this.node = h("div", { class: "results" }, this.stage, h("section", { class: "history", "aria-label": "History" },
      h("div", { class: "history-head" }, h("h2", {}, "History"), search), this.empty, this.grid));
    jobs.listen((kind, job) => {
      if (kind === "list") this.list();
      else if (kind === "preview") this.preview(job);
      else this.update(job);
    });
    this.list();
  }

  select(id) {
    this.chosen = id;
    for (const [key, card] of this.cards) card.node.classList.toggle("chosen", key === id);
    this.show();
  }

  list() {
    const wanted = jobs.all().filter((job) => job.prompt.toLowerCase().includes(this.filter));
    for (const [id, card] of this.cards) if (!wanted.some((job) => job.id === id)) { card.node.remove(); this.cards.delete(id); }
    wanted.forEach((job, k) => {
      if (!this.cards.has(job.id)) this.cards.set(job.id, this.card(job));
      const { node } = this.cards.get(job.id);
      if (this.grid.children[k] !== node) this.grid.insertBefore(node, this.grid.children[k] ?? null);
    });
    this.empty.hidden = wanted.length > 0;
    if (!jobs.get(this.chosen)) this.chosen = null;
    if (!this.chosen && wanted.length && !this.filter) this.select((wanted.find(jobs.running) ?? wanted.find((job) => job.status === "completed") ?? wanted[0]).id);
    else if (!this.chosen) this.show();
  }

  card(job) {
    const media = h("div", { class: "card-media" }), label = h("span", { class: "card-state" });
    const open = h("button", { type: "button", class: "card-open", on: { click: () => { this.select(job.id); this.stage.scrollIntoView({ behavior: "smooth", block: "nearest" }); } } },
      media, h("span", { class: "card-text" }, h("span", { class: "card-prompt" }, job.prompt || "no prompt"), label));
    const card = { node: h("li", { class: "result" }, open), media, label, preview: null, status: null };
    this.fill(card, job);
    return card;
  }

  fill(card, job) {
    card.label.textContent = `${state(job)} · ${job.task} · seed ${job.seed}`;
    card.node.dataset.status = job.status;
    card.node.classList.toggle("chosen", job.id === this.chosen);
    if (card.status === job.status) {
      card.bar && (card.bar.value = job.progress ?? 0);
      return;
    }
    card.status = job.status;
    card.preview = card.bar = null;
    if (jobs.running(job)) {
      card.preview = previewCanvas(job);
      card.bar = h("progress", { max: 100, value: job.progress ?? 0, "aria-label": `Progress of ${job.prompt || "a video"}` });
      card.media.replaceChildren(card.preview, card.bar);
      card.preview.show();
    } else if (job.status === "completed") {
      const video = h("video", { src: api.videoUrl(job.id), poster: api.thumbnailUrl(job.id), muted: true, loop: true, playsInline: true, preload: "none", tabIndex: -1, "aria-hidden": "true" });
      card.node.addEventListener("mouseenter", () => video.play().catch(() => {}));
      card.node.addEventListener("mouseleave", () => video.pause());
      card.media.replaceChildren(video);
    } else {
      card.media.replaceChildren(h("span", { class: "no-video" }, icon(job.status === "failed" ? "close" : "stop")));
    }
  }

  update(job) {
    const card = this.cards.get(job.id);
    if (card) this.fill(card, job);
    if (job.id !== this.chosen) return;
    if (jobs.running(job) && this.status) this.tell(job);
    else this.show();
  }

  preview(job) {
    this.cards.get(job.id)?.preview?.show();
    if (job.id === this.chosen) this.big?.show();
  }

  tell(job) {
    this.status.textContent = state(job);
    this.bar.value = job.progress ?? 0;
  }

  show() {
    const job = jobs.get(this.chosen);
    this.big = this.bar = this.status = null;
    if (!job) {
      this.stage.classList.add("empty");
      return void this.stage.replaceChildren(h("div", { class: "welcome" }, icon("film"), h("h2", {}, "Your first video is a sentence away"),
        h("p", {}, "Describe it, or drop a video or an image here to animate, extend or edit it.")));
    }
    this.stage.classList.remove("empty");
    const facts = h("p", { class: "facts" }, `${job.size.replace("x", "×")} · ${seconds(jobs.framesOf(job, this.app.info.fps), job.fps ?? this.app.info.fps)} · seed ${job.seed} · ${job.task}`);
    const words = [h("h2", { class: "stage-prompt" }, job.prompt || "no prompt"),
      job.prompt_used && job.prompt_used !== job.prompt ? h("details", { class: "used" }, h("summary", {}, icon("next"), "Expanded prompt"), h("p", {}, job.prompt_used)) : null,
      facts, job.note ? h("p", { class: "hint" }, job.note) : null];
    this.stage.replaceChildren(...(jobs.running(job) ? this.waiting(job, words) : job.status === "completed" ? this.finished(job, words) : this.ended(job, words)));
  }

  waiting(job, words) {
    this.big = previewCanvas(job);
    this.bar = h("progress", { max: 100, "aria-label": "Progress" });
    this.status = h("span", { class: "step" });
    this.tell(job);
    queueMicrotask(() => this.big?.show());
    return [h("div", { class: "screen making" }, this.big), h("div", { class: "stage-bar" }, this.bar, this.status,
      button("Cancel", { icon: "stop", text: "Cancel", kind: "small", run: () => attempt(() => jobs.cancel(job.id)) })), h("div", { class: "stage-about" }, words)];
  }

  finished(job, words) {
    const video = h("video", { src: api.videoUrl(job.id), poster: api.thumbnailUrl(job.id), autoplay: true, "aria-label": job.prompt || "the video" });
    const { width } = parseSize(job.size);
    const player = new Player([video], { fps: job.fps ?? this.app.info.fps, frames: jobs.framesOf(job, this.app.info.fps), label: "the video" });
    const next = NEXT.filter(([name]) => (name === "timeline" ? this.app.has("timeline") : this.app.info.tasks.includes(name)));
    return [h("div", { class: width <= 160 ? "screen small" : "screen" }, video), player.node,
      h("div", { class: "stage-about" }, words,
        h("div", { class: "actions" }, downloads(job), h("div", { class: "buttons" },
          button("Command", { icon: "code", text: "Command", kind: "small", run: () => how(job) }),
          button("Settings", { icon: "reset", text: "Settings", kind: "small", run: () => this.actions.reuse(job) }),
          button("Compare", { icon: "compare", text: "Compare", kind: "small", run: () => this.app.go("compare", (view) => view.add(job.id)) }),
          this.removal(job))),
        h("div", { class: "buttons next", role: "group", "aria-label": "Go on with this video" }, h("span", { class: "label" }, "Go on"),
          next.map(([name, label]) => button(label, { icon: name === "timeline" ? "canvas" : name === "inpaint" ? "brush" : name, text: label, kind: "small", run: () => this.actions.use(job, name) }))))];
  }

  ended(job, words) {
    const why = job.status === "cancelled" ? "This one was cancelled." : job.error?.message ?? "It failed.";
    return [h("div", { class: "screen no-result" }, icon(job.status === "failed" ? "close" : "stop"), h("p", { role: job.status === "failed" ? "alert" : null }, why)),
      h("div", { class: "stage-about" }, words, h("div", { class: "buttons" },
        button("Settings", { icon: "reset", text: "Try again with these settings", kind: "small", run: () => this.actions.reuse(job) }), this.removal(job)))];
  }

  removal(job) {
    return button("Delete", { icon: "trash", text: "Delete", kind: "small danger", run: async () => {
      if (await attempt(() => jobs.remove(job.id).then(() => true))) toast("Deleted.");
    } });
  }
}
