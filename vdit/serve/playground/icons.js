// Icons: paths in a box of 24, drawn with the colour of the text around them.

const PATHS = {
  play: "M8 5v14l11-7z",
  pause: "M7 5h4v14H7zM13 5h4v14h-4z",
  back: "M15 6l-6 6 6 6",
  next: "M9 6l6 6-6 6",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  stop: "M7 7h10v10H7z",
  dice: "M5 5h14v14H5zM9 9h.01M15 15h.01M12 12h.01M15 9h.01M9 15h.01",
  sparkle: "M12 3l1.8 5.2L19 10l-5.2 1.8L12 17l-1.8-5.2L5 10l5.2-1.8zM19 16v4M17 18h4",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  code: "M9 8l-5 4 5 4M15 8l5 4-5 4",
  copy: "M9 9h10v11H9zM5 15V4h10",
  compare: "M12 4v16M5 7h4M5 12h4M5 17h4M15 7h4M15 12h4M15 17h4",
  upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
  film: "M4 5h16v14H4zM8 5v14M16 5v14M4 9.5h4M4 14.5h4M16 9.5h4M16 14.5h4",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9h.01",
  text: "M5 6h14M12 6v13",
  extend: "M4 6h7v12H4zM14 12h6M17 9l3 3-3 3",
  loop: "M6 9a6 6 0 0 1 11-2M18 4v4h-4M18 15a6 6 0 0 1-11 2M6 20v-4h4",
  connect: "M3 7h6v10H3zM15 7h6v10h-6zM10 12h4",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  brush: "M14 4l6 6-8 6-4-4zM8 13c-3 0-3 5-5 6 4 1 8 0 8-3",
  outpaint: "M9 9h6v6H9zM4 8V4h4M20 8V4h-4M4 16v4h4M20 16v4h-4",
  rollout: "M3 8h4v8H3zM9 8h4v8H9zM15 8h3v8h-3M20 12h1",
  canvas: "M4 6h10v4H4zM9 12h11v4H9zM4 18h7v2H4z",
  game: "M7 8h10a4 4 0 0 1 4 4v2a3 3 0 0 1-5.5 1.6L14.500 14h-5L8.500 15.600A3 3 0 0 1 3 14v-2a4 4 0 0 1 4-4zM8 10.500v3M6.500 12h3M16 11h.01M17.500 13h.01",
  record: "M12 7a5 5 0 1 0 0 10 5 5 0 0 0 0-10z",
  reset: "M5 12a7 7 0 1 0 2-5M5 4v4h4",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 3v2M12 19v2M3 12h2M19 12h2M5.600 5.600l1.400 1.400M17 17l1.400 1.400M5.600 18.400L7 17M17 7l1.400-1.400",
  moon: "M19 14.500A8 8 0 0 1 9.500 5 8 8 0 1 0 19 14.500z",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  move: "M12 4v16M4 12h16M9.500 6.500L12 4l2.500 2.500M9.500 17.500L12 20l2.500-2.500M6.500 9.500L4 12l2.500 2.500M17.500 9.500L20 12l-2.500 2.500",
  eraser: "M9 19l-5-5 9-9 6 6-8 8zM9 19h11",
  undo: "M9 7L5 11l4 4M5 11h9a5 5 0 0 1 0 10",
  invert: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  box: "M5 5h14v14H5z",
};
const SOLID = new Set(["play", "pause", "stop", "record"]);

export function icon(name) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", SOLID.has(name) ? "icon solid" : "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(ns, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
