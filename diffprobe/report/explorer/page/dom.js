// Elements and numbers. Text of the data becomes text nodes only: nothing here parses markup.

/** Make an element. Properties: class, on (listeners), style (set one by one), any attribute. Children: text or nodes. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") element.className = value;
    else if (key === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (key === "style") for (const [name, text] of Object.entries(value)) element.style.setProperty(name, text);
    else element.setAttribute(key, value === true ? "" : typeof value === "string" ? visible(value) : value);
  }
  for (const child of children.flat()) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : visible(String(child)));
  }
  return element;
}

/** Replace control characters by their pictures, so that no text hides what it holds. */
function visible(text) {
  return text.replace(/[\u0000-\u001f\u007f]/g, (c) =>
    c === "\n" || c === "\t" ? " " : String.fromCharCode(c === "\u007f" ? 0x2421 : 0x2400 + c.charCodeAt(0)),
  );
}

/** Text of the data: isolated, so that its direction does not reorder what is around it. */
function data(text, properties = {}) {
  return el("bdi", properties, text);
}

function section(title, ...children) {
  return el("section", {}, el("h2", {}, title), ...children);
}

const MISSING = "–";

/** Write a number as its column states: "number", "share", "count" or "p". */
function format(value, kind = "number") {
  if (value === null || Number.isNaN(value)) return MISSING;
  if (kind === "count") return Math.round(value).toLocaleString("en");
  if (kind === "share") return `${significant(100 * value)} %`;
  if (kind === "p") return value > 0 && value < 1e-3 ? value.toExponential(0) : significant(value);
  return significant(value);
}

/** Write a number with three significant digits, large ones as integers, tiny ones with an exponent. */
function significant(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 100 ? Math.round(size).toLocaleString("en") : size < 1e-4 ? size.toExponential(digits - 2) : size.toPrecision(digits);
  return value < 0 ? `−${text}` : text;
}

function plural(n, one, many = `${one}s`) {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

/** Announce a change to screen readers. */
function announce(text) {
  document.getElementById("status").textContent = visible(text);
}

function latentLink(run, latent, ...children) {
  return el("a", { href: `${run.prefix}/latent/${latent}`, class: "number-link" }, ...(children.length ? children : [latent]));
}

/** The names of a latent as text, or that it has none. */
function namesOf(run, latent) {
  const names = run.names[latent] ?? [];
  if (!names.length) return el("span", { class: "unnamed" }, "unnamed");
  return el("span", { class: "names", title: names.join(", ") }, names.map((name, i) => [i ? ", " : "", data(name)]).flat());
}
