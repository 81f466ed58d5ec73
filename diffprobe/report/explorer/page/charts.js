// Small charts, drawn as SVG or as boxes.

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.flat().map((child) => (child instanceof Node ? child : visible(String(child)))));
  return element;
}

const summaries = new WeakMap();

/** Bins of a column over all latents, between its 0.5 and 99.5 per cent points, and those ends. */
function summary(column, bins = 36) {
  if (summaries.has(column)) return summaries.get(column);
  const values = column.values.filter((value) => !Number.isNaN(value)).sort();
  const at = (share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
  const [low, high] = values.length ? [at(0.005), at(0.995)] : [0, 1];
  const counts = new Array(bins).fill(0);
  for (const value of values) counts[binOf(value, low, high, bins)] += 1;
  const found = { values, low, high, counts, min: values[0], max: values[values.length - 1] };
  summaries.set(column, found);
  return found;
}

function binOf(value, low, high, bins) {
  if (high <= low) return 0;
  return Math.max(0, Math.min(bins - 1, Math.floor(((value - low) / (high - low)) * bins)));
}

/** Share of the latents with a smaller value. */
function rank(column, value) {
  const { values } = summary(column);
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low / Math.max(1, values.length);
}

/** The distribution of a column as bars, with a mark at `value` and thin marks at its controls. */
function distribution(column, value = NaN) {
  const { low, high, counts } = summary(column);
  const [width, height] = [180, 26];
  const step = width / counts.length;
  const most = Math.max(1, ...counts);
  const x = (v) => (high > low ? Math.max(0, Math.min(1, (v - low) / (high - low))) : 0) * width;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "distribution", preserveAspectRatio: "none", "aria-hidden": "true" });
  counts.forEach((count, i) => {
    const tall = count ? Math.max(1, Math.sqrt(count / most) * height) : 0;
    chart.append(svg("rect", { x: i * step, y: height - tall, width: step - 0.8, height: tall }));
  });
  for (const [, control] of column.controls) {
    chart.append(svg("line", { class: "control", x1: x(control), x2: x(control), y1: 0, y2: height }));
  }
  if (!Number.isNaN(value)) chart.append(svg("line", { class: "mark", x1: x(value), x2: x(value), y1: 0, y2: height }));
  return chart;
}

/** A number on an axis: short. */
function axisText(value) {
  return value && Math.abs(value) < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(2)));
}

/** Positive activations of a latent on a logarithmic scale of counts. */
function activationHistogram(counts, end) {
  const [width, height, left, bottom] = [300, 128, 40, 22];
  const most = Math.max(1, ...counts);
  const top = Math.max(1, Math.ceil(Math.log10(most)));
  const y = (count) => (height - bottom) * (1 - Math.log10(count) / top) * 0.94 + 6;
  const base = height - bottom;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img" });
  chart.append(svg("title", {}, `Histogram of ${plural(counts.reduce((a, b) => a + b, 0), "positive activation")} from 0 to ${significant(end)}`));
  for (let power = 0; power <= top; power += Math.max(1, Math.ceil(top / 4))) {
    const at = y(10 ** power);
    chart.append(svg("line", { class: "rule", x1: left, x2: width, y1: at, y2: at }));
    chart.append(svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, (10 ** power).toLocaleString("en")));
  }
  const step = (width - left) / counts.length;
  counts.forEach((count, i) => {
    if (!count) return;
    const at = Math.min(y(count), base - 3);
    const bar = svg("rect", { x: left + i * step + 0.5, y: at, width: Math.max(0.5, step - 1), height: base - at });
    bar.append(svg("title", {}, `${significant((i * end) / counts.length)} to ${significant(((i + 1) * end) / counts.length)}: ${count.toLocaleString("en")}`));
    chart.append(bar);
  });
  chart.append(svg("line", { class: "axis", x1: left, x2: width, y1: base, y2: base }));
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    chart.append(svg("text", { x: left + share * (width - left), y: height - 5, "text-anchor": anchor }, axisText(share * end)));
  }
  return chart;
}

/** One number by timestep. */
function curveChart(points, kind, title) {
  const [width, height, left, bottom] = [300, 128, 44, 22];
  const steps = points.map(([t]) => t);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const top = Math.max(...points.map(([, value]) => value)) || 1;
  const x = (t) => left + 6 + ((t - first) / (last - first || 1)) * (width - left - 14);
  const y = (value) => 8 + (1 - value / top) * (height - bottom - 12);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img" });
  chart.append(svg("title", {}, title));
  for (const share of [0, 0.5, 1]) {
    const at = y(share * top);
    chart.append(svg("line", { class: share ? "rule" : "axis", x1: left, x2: width, y1: at, y2: at }));
    chart.append(svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, kind === "share" ? `${axisText(100 * share * top)} %` : axisText(share * top)));
  }
  chart.append(svg("polyline", { class: "line", points: points.map(([t, value]) => `${x(t)},${y(value)}`).join(" ") }));
  points.forEach(([t, value]) => {
    const dot = svg("circle", { cx: x(t), cy: y(value), r: 3 });
    dot.append(svg("title", {}, `t = ${t}: ${format(value, kind)}`));
    chart.append(dot);
  });
  const labels = points.length > 6 ? [first, steps[Math.floor(points.length / 2)], last] : steps;
  for (const t of labels) chart.append(svg("text", { x: x(t), y: height - 5, "text-anchor": t === last && points.length > 1 ? "end" : "middle" }, t));
  return chart;
}

/** A bar of the size of a share from -1 to 1. */
function track(share) {
  const bar = el("i", { style: { width: `${(100 * Math.min(1, Math.abs(share))).toFixed(1)}%` } });
  return el("span", { class: share < 0 ? "track negative" : "track", "aria-hidden": "true" }, bar);
}
