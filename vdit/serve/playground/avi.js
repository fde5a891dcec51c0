// A lossless video of black and white pictures with an exact rate: how a mask that moves goes to the server.
// AVI with run-length codes of 8 bits (BI_RLE8), which every reader of video files knows.

const WHITE = 1, MOST_RUN = 255;

/** Runs of each row, from the lowest row up: count, colour; 0 0 ends a row, 0 1 the picture. */
function encodeRuns(pixels, width, height) {
  const out = [];
  for (let y = height - 1; y >= 0; y -= 1) {
    for (let x = 0; x < width;) {
      const colour = pixels[y * width + x];
      let run = 1;
      while (run < MOST_RUN && x + run < width && pixels[y * width + x + run] === colour) run += 1;
      out.push(run, colour ? WHITE : 0);
      x += run;
    }
    out.push(0, 0);
  }
  out.push(0, 1);
  return Uint8Array.from(out);
}

function words(...values) {
  const out = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, k) => out.setUint32(4 * k, value, true));
  return new Uint8Array(out.buffer);
}

const text = (letters) => new TextEncoder().encode(letters);

function joined(parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { out.set(part, at); at += part.length; }
  return out;
}

function chunk(name, data) {
  return joined([text(name), words(data.length), data, ...(data.length % 2 ? [Uint8Array.of(0)] : [])]);
}

const list = (kind, parts) => chunk("LIST", joined([text(kind), ...parts]));

/** frames: Uint8Array of 0 and 1 each, width * height -> Blob. */
export function encodeMasks(frames, { width, height, fps }) {
  const runs = frames.map((pixels) => encodeRuns(pixels, width, height)), largest = Math.max(...runs.map((run) => run.length));
  const scale = 1000, rate = Math.round(fps * scale);
  const main = words(Math.round(1e6 / fps), 0, 0, 0x10, frames.length, 0, 1, largest, width, height, 0, 0, 0, 0);
  const stream = joined([text("vidsRLE "), words(0, 0, 0, scale, rate, 0, frames.length, largest, 0xffffffff, 0, 0, (height << 16) | width)]);
  const picture = joined([words(40, width, height, 1 | (8 << 16), 1, width * height, 0, 0, 2, 0), Uint8Array.of(0, 0, 0, 0, 255, 255, 255, 0)]);
  const movie = [], index = [];
  let at = 4;
  for (const run of runs) {
    const one = chunk("00db", run);
    movie.push(one);
    index.push(text("00db"), words(0x10, at, run.length));
    at += one.length;
  }
  const header = list("hdrl", [chunk("avih", main), list("strl", [chunk("strh", stream), chunk("strf", picture)])]);
  const body = joined([text("AVI "), header, list("movi", movie), chunk("idx1", joined(index))]);
  return new Blob([chunk("RIFF", body)], { type: "video/x-msvideo" });
}
