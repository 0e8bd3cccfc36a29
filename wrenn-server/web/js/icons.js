// Icons: outlines on a grid of 24, drawn for this page.

const PATHS = {
  activity: "M3 12h4l3-8 4 16 3-8h4",
  box: "M12 3 20 7.5v9L12 21l-8-4.5v-9zM4.3 7.6 12 12l7.7-4.4M12 12v8.8",
  branch:
    "M7 8v8M7 8a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zM7 21a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zM17 10.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zM17 10.5c0 4-10 2-10 5.5",
  camera: "M4 8h3.5L9 5.5h6L16.5 8H20v11H4zM12 16.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7z",
  check: "M5 12.5 10 17.5 19 7",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  download: "M12 4v11M7.5 11 12 15.5 16.5 11M4.5 20h15",
  edit: "M4 20l1-4L16 5l3 3L8 19zM13.5 7.5l3 3",
  external: "M14 4h6v6M20 4 11 13M18 14v6H4V6h6",
  file: "M6 3h8l4 4v14H6zM14 3v4h4",
  folder: "M3 6h6.5l2 2.5H21V19H3z",
  folderPlus: "M3 6h6.5l2 2.5H21V19H3zM12 11v5M9.5 13.5h5",
  key: "M14.5 13.5a4.5 4.5 0 1 0-4.2-3L4 17v3h3v-2h2v-2h2l1.3-1.3a4.5 4.5 0 0 0 2.2-1.2zM16 8h.01",
  link: "M10 14a4 4 0 0 0 6 .5l3-3a4 4 0 0 0-5.7-5.7L12 7M14 10a4 4 0 0 0-6-.5l-3 3a4 4 0 0 0 5.7 5.7L12 17",
  logout: "M10 4H5v16h5M15 8l4 4-4 4M19 12H9",
  pause: "M8.5 5.5v13M15.5 5.5v13",
  play: "M8 5.5v13l10.5-6.5z",
  plus: "M12 5v14M5 12h14",
  refresh: "M19 8a8 8 0 1 0 1 5M20 4v5h-5",
  search: "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM15.5 15.5 20 20",
  server: "M4 5h16v6H4zM4 13h16v6H4zM7.5 8h.01M7.5 16h.01",
  terminal: "M4 5h16v14H4zM7.5 9.5 10 12l-2.5 2.5M12.5 15h4",
  trash: "M4 7h16M9 7V4h6v3M6.5 7l1 13h9l1-13M10 11v5M14 11v5",
  up: "M12 19V6M6.5 11 12 5.5 17.5 11",
  upload: "M12 16V5M7.5 9 12 4.5 16.5 9M4.5 20h15",
  user: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.5 20c.8-4 4-5.5 7.5-5.5s6.7 1.5 7.5 5.5",
  users:
    "M9 12a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM2.5 19c.6-3.4 3.2-4.7 6.5-4.7s5.9 1.3 6.5 4.7M16 5.3a3.5 3.5 0 0 1 0 6.4M18 14.6c2 .6 3.2 2 3.5 4.4",
  book: "M5 4h6a2 2 0 0 1 1 1 2 2 0 0 1 1-1h6v15h-6a2 2 0 0 0-1 1 2 2 0 0 0-1-1H5zM12 5v15",
};

const SVG = "http://www.w3.org/2000/svg";

/** An icon. It says nothing to screen readers: what is beside it does. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** The mark of Wrenn. */
export function mark() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 32 32");
  svg.setAttribute("class", "mark");
  svg.setAttribute("aria-hidden", "true");
  for (const [tag, attributes] of [
    ["rect", { width: 32, height: 32, rx: 8 }],
    ["path", { d: "M5.5 10.5 11 22l5-9.5L21 22l5.5-11.5" }],
    ["circle", { cx: 16, cy: 7.6, r: 1.9 }],
  ]) {
    const part = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
    svg.append(part);
  }
  return svg;
}

/** The values of a measurement over time, as a line. */
export function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 28");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "sparkline");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "polyline");
  svg.append(line);
  const update = (values, most) => {
    const step = 100 / Math.max(1, values.length - 1);
    const height = (value) => 27 - 26 * Math.min(1, most > 0 ? value / most : 0);
    line.setAttribute(
      "points",
      values.map((value, i) => `${(i * step).toFixed(1)},${height(value).toFixed(1)}`).join(" "),
    );
  };
  return { element: svg, update };
}
