// The server's API: requests, errors in OpenAI's form, events of a job, files.

const base = new URL(".", document.baseURI);
export const url = (path) => new URL(path, base).href;

export class ApiError extends Error {
  constructor(status, { message = `the server answered ${status}`, param = null, code = null } = {}) {
    super(param ? `${message} (${param})` : message);
    Object.assign(this, { status, param, code });
  }
}

/** JSON of an answer; ApiError for anything but success. */
async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(url(path), { credentials: "same-origin", ...options });
  } catch {
    throw new ApiError(0, { message: "the server does not answer: is it still running?" });
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  let body = {};
  try { body = (await answer.json()).error ?? {}; } catch { /* not JSON: the status says enough */ }
  throw new ApiError(answer.status, body);
}

const json = (method, body, headers = {}) => ({
  method, body: JSON.stringify(body), headers: { "content-type": "application/json", ...headers },
});

const key = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const api = {
  health: () => call("health"),
  info: () => call("v1/info"),
  jobs: async () => (await call("v1/videos?limit=100")).data,
  job: (id) => call(`v1/videos/${id}`),
  create: (body) => call("v1/videos", json("POST", body, { "idempotency-key": key() })),
  cancel: (id) => call(`v1/videos/${id}/cancel`, { method: "POST" }),
  remove: (id) => call(`v1/videos/${id}`, { method: "DELETE" }),
  expand: (prompt, seed) => call("v1/expand", json("POST", { prompt, seed })),
  async upload(blob, name) {
    const form = new FormData();
    form.append("file", blob, name);
    return call("v1/files", { method: "POST", body: form });
  },
  fileUrl: (id) => url(`v1/files/${id}/content`),
  videoUrl: (id, format = "mp4") => url(`v1/videos/${id}/content?format=${format}`),
  thumbnailUrl: (id) => url(`v1/videos/${id}/content?variant=thumbnail`),
  async videoBlob(id, format = "mp4") {
    const answer = await fetch(api.videoUrl(id, format), { credentials: "same-origin" });
    if (!answer.ok) throw new ApiError(answer.status);
    return answer.blob();
  },
};

/** A stream of a job's events, and plain questions where the stream breaks; returns what ends it. */
export function watch(id, { progress, preview }) {
  const ended = (status) => ["completed", "failed", "cancelled"].includes(status);
  let open = true, failures = 0, timer = 0;
  const source = new EventSource(url(`v1/videos/${id}/events`));
  const stop = () => { open = false; clearTimeout(timer); source.close(); };
  const ask = async () => {
    if (!open) return;
    try {
      const job = await api.job(id);
      progress(job);
      if (ended(job.status)) return stop();
    } catch (error) {
      failures += 1;
      if (error.status === 404 || failures > 30) { progress({ status: "failed", error: { message: error.message } }); return stop(); }
    }
    timer = setTimeout(ask, 1500);
  };
  source.addEventListener("progress", (event) => {
    const data = JSON.parse(event.data);
    progress(data);
    if (ended(data.status)) stop();
  });
  source.addEventListener("preview", (event) => {
    const data = atob(JSON.parse(event.data).png);
    preview(new Blob([Uint8Array.from(data, (letter) => letter.charCodeAt(0))], { type: "image/png" }));
  });
  source.addEventListener("error", () => { source.close(); if (open) timer = setTimeout(ask, 500); });
  return stop;
}
