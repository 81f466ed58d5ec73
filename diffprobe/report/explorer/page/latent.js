// The page of a latent.

const MAX_BARS = 12; // bars of a group before "all"
let heatIsOn = true;

async function latentView(run, latent) {
  if (!isIndex(latent, run.facts.nLatents)) throw new Error(`Latent ${latent} does not exist: this run has 0 to ${run.facts.nLatents - 1}.`);
  const page = await loadPage(run, "latents", latent);
  const [previous, following] = besideIt(run, latent);
  const step = (to, text, key) => to === undefined
    ? el("span", { class: "step off" }, text)
    : el("a", { class: "step", href: `${run.prefix}/latent/${to}`, title: `Key ${key}` }, text);
  const element = el(
    "div", { class: "view latent-view" },
    el("div", { class: "page-head" },
      el("h1", {}, `Latent ${latent}`), el("p", { class: "headline" }, namesOf(run, latent), run.texts.map((text) => headText(run, text, latent))),
      el("nav", { class: "steps", "aria-label": "Latents" }, step(previous, "← previous", "["), step(following, "next →", "]"))),
    latentBody(run, latent, page),
  );
  return {
    element,
    title: `Latent ${latent} · ${run.facts.run}`,
    key(event) {
      const to = { "[": previous, "]": following }[event.key];
      if (to !== undefined) go(`${run.prefix}/latent/${to}`);
      else if (event.key === "m") setHeat(!heatIsOn);
      else return false;
      return true;
    },
    up: memory.get(run.number)?.hash ?? `${run.prefix}/`,
  };
}

/** A text of a latent with the number beside it: "is about style = noto (AUROC 0.98)". */
function headText(run, text, latent) {
  const value = text.of(latent);
  if (!value) return null;
  const column = run.columns.find((found) => found.key === text.beside);
  const known = column && !Number.isNaN(column.values[latent]);
  return el("span", { class: "about", title: text.help }, ` · ${text.title} `, data(value), known && ` (${column.title} ${format(column.values[latent], column.kind)})`);
}

/** The latents before and after one: in the order of the table if it was in it, else by number. */
function besideIt(run, latent) {
  const order = memory.get(run.number)?.order;
  const at = order ? order.indexOf(latent) : -1;
  if (at >= 0) return [order[at - 1], order[at + 1]];
  return [latent > 0 ? latent - 1 : undefined, latent + 1 < run.facts.nLatents ? latent + 1 : undefined];
}

/** All sections of a page of a latent; narrow ones for one of two columns. */
function latentBody(run, latent, page, { narrow = false } = {}) {
  const main = [
    topImages(run, page),
    activations(page),
    ...(page.groups.length ? [el("div", { class: "groups" }, page.groups.map((group) => groupBars(group)))] : []),
  ];
  const side = [
    numbers(run, latent),
    namesTable(page),
    neighbours(run, page),
    recurrence(page),
  ];
  return el("div", { class: narrow ? "columns narrow" : "columns" }, el("div", { class: "main" }, main), el("div", { class: "side" }, side));
}

function setHeat(on) {
  heatIsOn = on;
  document.body.classList.toggle("no-heat", !on);
  for (const button of document.querySelectorAll("button.heat-toggle")) button.setAttribute("aria-pressed", String(on));
}

function topImages(run, page) {
  if (!page.top.length) return section("Most active images", el("p", { class: "soft" }, "This latent is not active on any image."));
  const hasMaps = page.top.some((top) => top.length > 2);
  const figures = page.top.map(([image, activation, height, width, map]) => el(
    "li", {},
    el("a", { href: `${run.prefix}/image/${image}`, class: "shot" },
      thumbnail(run, image, `image ${image}, activation ${significant(activation)}`), map && heatMap(height, width, map)),
    el("span", { class: "below" }, significant(activation)),
  ));
  const head = el("div", { class: "section-head" }, el("h2", {}, "Most active images"));
  if (hasMaps) {
    const button = toggle("Heat maps", heatIsOn, setHeat);
    button.classList.add("heat-toggle");
    button.title = "Key m";
    head.append(button);
  }
  return el("section", {}, head, el("ol", { class: "shots" }, figures), !run.pictures && el("p", { class: "soft" }, "The images were not at hand when this was written. Open one for its caption."));
}

function activations(page) {
  const total = page.histogram.reduce((a, b) => a + b, 0);
  const blocks = [];
  if (total) blocks.push(section("Activations", activationHistogram(page.histogram, page.histogramEnd), el("p", { class: "under" }, "Counts on a logarithmic scale")));
  if (page.curve.length === 1) {
    const [[t, frequency, mean]] = page.curve;
    blocks.push(section("Timestep", el("p", {}, `Read at t = ${t}: active on ${format(frequency, "share")} of the rows, ${significant(mean)} on average where it is.`)));
  } else if (page.curve.length) {
    blocks.push(section("Frequency by timestep", curveChart(page.curve.map(([t, f]) => [t, f]), "share", "Share of rows on which the latent is active, by timestep"), el("p", { class: "under" }, "Share of rows on which it is active")));
    blocks.push(section("Strength by timestep", curveChart(page.curve.map(([t, , m]) => [t, m]), "number", "Mean activation by timestep"), el("p", { class: "under" }, "Mean activation where it is active")));
  }
  return el("div", { class: "charts" }, blocks);
}

function groupBars({ group, bars }) {
  const sorted = [...bars].sort((a, b) => b[3] - a[3]);
  const most = sorted.length ? sorted[0][3] : 0;
  const row = ([value, nImages, nActive, mean]) => el(
    "tr", {},
    el("th", { scope: "row" }, data(value)),
    el("td", { class: "bar" }, track(most > 0 ? mean / most : 0)),
    el("td", {}, significant(mean)),
    el("td", { class: "soft" }, nImages ? `${format(nActive / nImages, "share")}` : MISSING),
    el("td", { class: "soft" }, nImages.toLocaleString("en")),
  );
  const body = el("tbody", {}, sorted.slice(0, MAX_BARS).map(row));
  const all = sorted.length > MAX_BARS && el("button", { type: "button", class: "plain", on: { click: (event) => {
    body.append(...sorted.slice(MAX_BARS).map(row));
    event.target.remove();
  } } }, `All ${sorted.length}`);
  const head = ["", "", "Mean", "Active", "Images"].map((text) => el("th", { scope: "col" }, text));
  const title = group === "class" ? "By class" : ["By ", data(group)];
  return el("section", {}, el("h2", {}, title), el("table", { class: "bars" }, el("thead", {}, el("tr", {}, head)), body), all);
}

function numbers(run, latent) {
  if (!run.columns.length && !run.texts.length) return null;
  const texts = run.texts.map((text) => el("div", { class: "text", title: text.help }, el("dt", {}, text.title), el("dd", {}, text.of(latent) ? data(text.of(latent)) : MISSING)));
  return section("Numbers", el("dl", { class: "numbers" }, texts, run.columns.map((column) => {
    const value = column.values[latent];
    const isMissing = Number.isNaN(value);
    const controls = column.controls.map(([name, control]) => `${name} ${format(control, column.kind)}`).join(", ");
    return el("div", { title: column.help },
      el("dt", {}, column.title, controls && el("span", { class: "controls" }, data(controls))),
      el("dd", { class: "strip" }, distribution(column, value)),
      el("dd", {}, el("b", {}, format(value, column.kind)), el("span", { class: "rank" }, isMissing ? "" : `above ${Math.floor(100 * rank(column, value))} %`)));
  })));
}

function namesTable(page) {
  if (!page.names.length) return section("Names", el("p", { class: "soft" }, "No word was tested: there are no captions, or too few."));
  const rows = page.names.map(([text, score, auroc, q, isShown]) => el(
    "tr", { class: isShown ? "" : "failed" },
    el("th", { scope: "row" }, data(text)),
    el("td", {}, significant(score)), el("td", {}, format(auroc)), el("td", {}, format(q, "p")),
    el("td", { class: "verdict" }, isShown ? "passed" : "not passed"),
  ));
  const head = [["Word", ""], ["Log odds", "How much oftener images with the word activate the latent, on train"], ["AUROC", "How well the word predicts the activity on held-out images"], ["q", "Corrected over all latents and words"], ["Held out", ""]];
  return section("Names and their tests", el("table", { class: "tests" }, el("thead", {}, el("tr", {}, head.map(([text, help]) => el("th", { scope: "col", title: help || null }, text)))), el("tbody", {}, rows)));
}

function cosineRow(label, cosine, ...extra) {
  return el("li", {}, el("span", { class: "who" }, label), el("span", { class: "names-cell" }, extra), track(cosine), el("span", { class: "value" }, format(cosine)));
}

function neighbours(run, page) {
  if (!page.neighbours.length) return null;
  return section("Nearest latents", el("ol", { class: "others" }, page.neighbours.map(([latent, cosine]) => cosineRow(latentLink(run, latent), cosine, namesOf(run, latent)))), el("p", { class: "under" }, "Cosine of decoder vectors"));
}

function recurrence(page) {
  if (!page.recurrence.length) return section("In other seeds", el("p", { class: "soft" }, "This run has one seed."));
  return section("In other seeds", el("ol", { class: "others" }, page.recurrence.map(([latent, cosine, name]) => cosineRow(latent, cosine, data(name)))), el("p", { class: "under" }, "Cosine of decoder vectors of the matched latent"));
}
