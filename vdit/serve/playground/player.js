// A player that counts frames: one video, or two that are always at the same frame.

import { button, clamp, fill, h } from "./dom.js";
import { icon } from "./icons.js";

/**
 * videos: <video> elements, all shown by who calls. One plays by itself; of two, each frame is sought in both, and the
 * next one waits until both show it, so that they are in step whatever the machine's speed.
 */
export class Player {
  constructor(videos, { fps, frames, label }) {
    Object.assign(this, { videos, fps, frames, timer: 0, at: 0, playing: false });
    for (const video of videos) Object.assign(video, { muted: true, loop: true, playsInline: true, preload: "auto" });
    this.playButton = button("Play", { icon: "play", run: () => (this.playing ? this.pause() : this.play()) });
    this.range = h("input", { type: "range", min: 0, max: Math.max(0, frames - 1), step: 1, "aria-label": `Frame of ${label}` });
    this.range.value = 0;
    this.range.addEventListener("input", () => { this.pause(); this.seek(Number(this.range.value)); });
    this.count = h("span", { class: "frame-count" });
    this.node = h("div", { class: "player-bar", role: "group", "aria-label": `Playback of ${label}` }, this.playButton,
      button("Frame back", { icon: "back", run: () => this.step(-1) }), button("Next frame", { icon: "next", run: () => this.step(1) }),
      this.range, this.count);
    const first = videos[0];
    first.addEventListener("loadedmetadata", () => this.measure());
    if (videos.length === 1) {
      first.addEventListener("play", () => this.state(true));
      first.addEventListener("pause", () => this.state(false));
      const follow = () => {
        if (this.playing) this.show(Math.floor(first.currentTime * this.fps + 1e-3));
        if (first.isConnected) requestAnimationFrame(follow);
      };
      first.addEventListener("loadeddata", follow, { once: true });
    }
    this.show(0);
  }

  /** The file itself says how many frames there are. */
  measure() {
    const frames = Math.round(Math.min(...this.videos.map((video) => video.duration || Infinity)) * this.fps);
    if (!Number.isFinite(frames) || frames < 1) return;
    this.frames = frames;
    this.range.max = frames - 1;
    this.show(this.at);
  }

  state(playing) {
    this.playing = playing;
    const name = playing ? "Pause" : "Play";
    this.playButton.replaceChildren(icon(playing ? "pause" : "play"));
    this.playButton.setAttribute("aria-label", name);
    this.playButton.title = name;
  }

  show(frame) {
    this.at = clamp(frame, 0, this.frames - 1);
    this.range.value = this.at;
    fill(this.range);
    this.count.textContent = `${this.at + 1} / ${this.frames}`;
    this.range.setAttribute("aria-valuetext", `frame ${this.at + 1} of ${this.frames}`);
    this.onframe?.(this.at);
  }

  seek(frame) {
    this.show(frame);
    const time = (this.at + 0.5) / this.fps;
    return Promise.all(this.videos.map((video) => new Promise((resolve) => {
      if (Math.abs(video.currentTime - time) < 1e-4) return resolve();
      video.addEventListener("seeked", resolve, { once: true });
      setTimeout(resolve, 1000);
      video.currentTime = time;
    })));
  }

  step(by) {
    this.pause();
    return this.seek((this.at + by + this.frames) % this.frames);
  }

  play() {
    if (this.videos.length === 1) return void this.videos[0].play().catch(() => this.state(false));
    this.state(true);
    const turn = async () => {
      if (!this.playing || !this.videos[0].isConnected) return;
      const began = performance.now();
      await this.seek((this.at + 1) % this.frames);
      this.timer = setTimeout(turn, Math.max(0, 1000 / this.fps - (performance.now() - began)));
    };
    turn();
  }

  pause() {
    clearTimeout(this.timer);
    if (this.videos.length === 1) this.videos[0].pause();
    this.state(false);
  }
}

/** Frames of a video file as ImageBitmaps, `most` at most. The caller closes them. */
export async function decodeFrames(src, { frames, fps, most = 129 }) {
  const video = h("video", { muted: true, playsInline: true, preload: "auto" });
  const ready = new Promise((resolve, reject) => {
    video.addEventListener("loadeddata", resolve, { once: true });
    video.addEventListener("error", () => reject(new Error("this browser cannot play that video: give an mp4 or a webm")), { once: true });
  });
  video.src = src;
  await ready;
  const out = [];
  for (let k = 0; k < Math.min(frames, most); k += 1) {
    await new Promise((resolve) => {
      video.addEventListener("seeked", resolve, { once: true });
      setTimeout(resolve, 1500);
      video.currentTime = Math.min((k + 0.5) / fps, video.duration || Infinity);
    });
    out.push(await createImageBitmap(video));
  }
  video.removeAttribute("src");
  video.load();
  return out;
}
