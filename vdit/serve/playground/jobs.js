// The jobs of this server as the page knows them: loaded, made, watched, and what changed told to who listens.

import { api, watch } from "./api.js";

const jobs = new Map(); // id -> job, newest first by created_at
const previews = new Map(); // id -> ImageBitmap
const watched = new Map(); // id -> stop
const listeners = new Set();

export const running = (job) => job.status === "queued" || job.status === "in_progress";

/** Calls `run(kind, job)` with kind "list", "job" or "preview"; returns what ends it. */
export function listen(run) {
  listeners.add(run);
  return () => listeners.delete(run);
}
const tell = (kind, job) => { for (const run of listeners) run(kind, job); };

export const all = () => [...jobs.values()].sort((a, b) => b.created_at - a.created_at || b.order - a.order);
export const get = (id) => jobs.get(id) ?? null;
export const done = () => all().filter((job) => job.status === "completed");
export const previewOf = (id) => previews.get(id) ?? null;

let order = 0;
function keep(job) {
  const known = jobs.get(job.id);
  const both = { order: known?.order ?? (order += 1), ...known, ...job };
  jobs.set(job.id, both);
  if (running(both) && !watched.has(job.id)) follow(job.id);
  return both;
}

function follow(id) {
  watched.set(id, watch(id, {
    progress: async (news) => {
      if (!jobs.has(id)) return;
      keep({ id, ...Object.fromEntries(Object.entries(news).filter(([, value]) => value !== null)) });
      if (!running(jobs.get(id))) {
        watched.delete(id);
        previews.get(id)?.close();
        previews.delete(id);
        try { keep(await api.job(id)); } catch { /* the last event said enough */ }
        tell("list");
      }
      if (jobs.has(id)) tell("job", jobs.get(id));
    },
    preview: async (blob) => {
      const image = await createImageBitmap(blob).catch(() => null);
      if (!image || !watched.has(id)) return;
      previews.get(id)?.close();
      previews.set(id, image);
      tell("preview", jobs.get(id));
    },
  }));
}

export async function load() {
  for (const job of (await api.jobs()).reverse()) keep(job);
  tell("list");
}

/** One job for each of `count` seeds from the body's on: the server batches those of one shape. */
export async function make(body, count = 1) {
  const made = [];
  for (let k = 0; k < count; k += 1) made.push(keep(await api.create({ ...body, seed: body.seed + k })));
  tell("list");
  return made;
}

export async function cancel(id) {
  keep(await api.cancel(id));
  tell("job", jobs.get(id));
}

export async function remove(id) {
  if (running(jobs.get(id))) await api.cancel(id).catch(() => {});
  await api.remove(id);
  watched.get(id)?.();
  watched.delete(id);
  jobs.delete(id);
  tell("list");
}

export const framesOf = (job, fps) => Number(job.frames ?? job.num_frames ?? Math.max(1, Math.round(Number(job.seconds) * fps)));
