// The page: what the server can do, tabs, theme, files that are dropped anywhere.

import { api, ApiError } from "./api.js";
import { mountCompare } from "./compare.js";
import { mountCreate } from "./create.js";
import { attempt, button, h, toast } from "./dom.js";
import { icon } from "./icons.js";
import * as jobs from "./jobs.js";
import { mountTimeline } from "./timeline.js";
import { mountWorld } from "./world.js";

const VIEWS = [
  { id: "create", label: "Create", icon: "sparkle", mount: mountCreate, when: () => true },
  { id: "timeline", label: "Timeline", icon: "canvas", mount: mountTimeline, when: (info) => info.tasks.includes("canvas") },
  { id: "compare", label: "Compare", icon: "compare", mount: mountCompare, when: () => true },
  { id: "world", label: "World", icon: "game", mount: mountWorld, when: (info) => info.keys !== null && info.keys !== undefined },
];
const THEMES = [["system", "system"], ["light", "sun"], ["dark", "moon"]];

function theme() {
  const node = document.getElementById("theme");
  let now = localStorage.getItem("vdit-theme") ?? "system";
  const set = (name) => {
    now = name;
    document.documentElement.dataset.theme = name;
    localStorage.setItem("vdit-theme", name);
    node.replaceChildren(icon(THEMES.find(([each]) => each === name)[1]));
    node.setAttribute("aria-label", `Theme: ${name}`);
    node.title = `Theme: ${name}`;
  };
  node.addEventListener("click", () => {
    const at = THEMES.findIndex(([each]) => each === now);
    set(THEMES[(at + 1) % THEMES.length][0]);
  });
  set(THEMES.some(([each]) => each === now) ? now : "system");
}

async function health() {
  const node = document.getElementById("health");
  const say = (text, kind) => { if (node.textContent !== text) node.textContent = text; node.dataset.kind = kind; };
  try {
    await api.health();
    const waiting = jobs.all().filter(jobs.running).length;
    say(waiting ? `${waiting} in work` : "ready", waiting ? "busy" : "ok");
  } catch {
    say("offline", "down");
  }
  setTimeout(health, 4000);
}

/** Tabs by mouse, touch and arrow keys; the address's #fragment names the open one. */
function tabs(views, main) {
  const list = document.getElementById("tabs");
  const open = (id, focus = false) => {
    for (const view of views) {
      const on = view.id === id;
      view.tab.setAttribute("aria-selected", String(on));
      view.tab.tabIndex = on ? 0 : -1;
      view.panel.hidden = !on;
      view.api?.shown?.(on);
      if (on && focus) view.tab.focus();
    }
    history.replaceState(null, "", `#${id}`);
  };
  for (const view of views) {
    view.panel = h("section", { class: `view view-${view.id}`, id: `panel-${view.id}`, role: "tabpanel", "aria-labelledby": `tab-${view.id}`, hidden: true });
    view.tab = h("button", { type: "button", id: `tab-${view.id}`, role: "tab", "aria-controls": `panel-${view.id}`, class: "tab", on: { click: () => open(view.id) } },
      icon(view.icon), h("span", {}, view.label));
    list.append(view.tab);
    main.append(view.panel);
  }
  list.addEventListener("keydown", (event) => {
    const at = views.findIndex((view) => view.tab === document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: views.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    open(views[(to + views.length) % views.length].id, true);
  });
  return open;
}

/** Files dropped on the page go to the view that is open. */
function dropping(views) {
  let depth = 0;
  const files = (event) => event.dataTransfer?.types.includes("Files");
  const over = h("div", { class: "drop-over", "aria-hidden": "true" }, icon("upload"), h("span", {}, "Drop a video or an image"));
  document.body.append(over);
  addEventListener("dragenter", (event) => { if (files(event)) { depth += 1; over.classList.add("on"); } });
  addEventListener("dragleave", (event) => { if (files(event) && (depth -= 1) <= 0) over.classList.remove("on"); });
  addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    depth = 0;
    over.classList.remove("on");
    const view = views.find((each) => !each.panel.hidden && each.api?.drop) ?? views[0];
    for (const file of event.dataTransfer.files) view.api.drop(file);
  });
  addEventListener("paste", (event) => {
    const view = views.find((each) => !each.panel.hidden && each.api?.drop);
    for (const file of event.clipboardData?.files ?? []) view?.api.drop(file);
  });
}

async function begin() {
  theme();
  const main = document.getElementById("main");
  let info;
  try {
    info = await api.info();
  } catch (error) {
    main.append(h("p", { class: "notice", role: "alert" }, error instanceof ApiError && error.status === 401
      ? "This server wants its token: open the address that it printed when it started."
      : error.message, " ", button("Try again", { text: "Try again", run: () => location.reload() })));
    return;
  }
  document.getElementById("model").textContent = info.model;
  const views = VIEWS.filter((view) => view.when(info));
  const open = tabs(views, main);
  const app = {
    info,
    /** Opens another view and hands it something: (view) => ... */
    go: (id, run = () => {}) => { open(id); run(views.find((view) => view.id === id)?.api); },
    has: (id) => views.some((view) => view.id === id),
  };
  for (const view of views) view.api = view.mount(view.panel, app);
  const asked = location.hash.slice(1);
  open(views.some((view) => view.id === asked) ? asked : "create");
  dropping(views);
  await attempt(() => jobs.load());
  document.body.dataset.ready = "true";
  health();
  jobs.listen((kind, job) => {
    // Where the results are not in sight.
    if (kind === "job" && job.status === "completed" && views[0].panel.hidden) toast(`Done: ${job.prompt.slice(0, 60) || "a video"}`, "ok");
  });
}

begin();
