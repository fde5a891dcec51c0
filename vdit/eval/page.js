/* Plays all videos of a report page in step.

   One clock counts frames. The longest video sets the length of a round; shorter videos repeat within it. Only videos in
   sight are decoded. Between two ticks of the clock a video runs by itself; it is moved when it is off by more than half
   a frame, so all videos show the same frame in every browser. When paused, each stands in the middle of a frame, where
   rounding cannot show its neighbour. */
(() => {
  const all = [...document.querySelectorAll("video")], seen = new Set(all);
  const [play, back, next, at, shown, speed] = ["play", "back", "next", "at", "shown", "speed"]
    .map(id => document.getElementById(id));
  for (const link of document.querySelectorAll(".save")) {
    const media = link.closest(".one").querySelector("video, img");
    link.href = media.src;
    link.download += media.tagName == "VIDEO" ? ".mp4" : ".png";
  }
  document.body.classList.add("scripted");
  const bar = document.querySelector(".player");
  if (!all.length) { bar.remove(); return; }
  const frames = video => Number(video.dataset.frames), fps = video => Number(video.dataset.fps);
  const longest = all.reduce((a, b) => frames(a) / fps(a) >= frames(b) / fps(b) ? a : b);
  const count = frames(longest), rate = fps(longest);
  at.max = count - 1;
  let running = true, now = 0, last = null;  /* now: frames of the longest video, with a fraction */
  const wanted = video => (now / rate * fps(video)) % frames(video) / fps(video);
  const put = (video, slack) => {
    const length = frames(video) / fps(video), time = wanted(video);
    let off = Math.abs(video.currentTime - time);
    off = Math.min(off, length - off);
    if (off > slack) video.currentTime = Math.min(time, length - 0.1 / fps(video));
  };
  const show = () => {
    const frame = Math.min(Math.floor(now), count - 1);
    at.value = frame;
    shown.value = `${frame + 1} / ${count}`;
    play.textContent = running ? "pause" : "play";
  };
  const stand = frame => {
    running = false;
    now = (frame + count) % count + 0.5;
    for (const video of all) { video.pause(); put(video, 0); }
    show();
  };
  const tick = time => {
    if (running) {
      now = (now + (last === null ? 0 : (time - last) / 1000 * rate * speed.value)) % count;
      for (const video of seen) {
        video.playbackRate = speed.value;
        if (video.readyState < 2 || video.seeking) continue;
        put(video, 0.5 / fps(video));
        if (video.paused) video.play().catch(() => {});
      }
      show();
    }
    last = time;
    requestAnimationFrame(tick);
  };
  const toggle = () => { if (running) stand(Math.floor(now)); else running = true; };
  const watch = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) { seen.add(target); if (!running) put(target, 0); }
      else { seen.delete(target); target.pause(); }
    }
  }, { rootMargin: "200px" });
  for (const video of all) {
    video.controls = false;
    video.addEventListener("click", toggle);
    watch.observe(video);
  }
  play.onclick = toggle;
  back.onclick = () => stand(Math.floor(now) - 1);
  next.onclick = () => stand(Math.floor(now) + 1);
  at.oninput = () => stand(Number(at.value));
  document.addEventListener("keydown", event => {
    if (event.target.closest("button, select, input")) return;
    const act = { " ": toggle, ArrowLeft: back.onclick, ArrowRight: next.onclick }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  requestAnimationFrame(tick);
})();
