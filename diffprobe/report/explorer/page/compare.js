// Two runs side by side: the table of matched latents, and a pair of pages.

async function loadMatches() {
  const [matches, one, other] = await Promise.all([load("matches"), loadRun(0), loadRun(1)]);
  return { matches, runs: [one, other] };
}

async function compareView(query) {
  const { matches, runs } = await loadMatches();
  const [one, other] = runs;
  const shared = one.columns.filter((column) => other.columns.some((found) => found.key === column.key)).slice(0, 2);
  const twin = new Map(shared.map((column) => [column.key, other.columns.find((found) => found.key === column.key)]));
  const similarity = Float64Array.from(matches, (match) => match[2]);
  const sortable = new Map([["similarity", similarity], ["latent", Float64Array.from(matches, (match) => match[0])], ["other", Float64Array.from(matches, (match) => match[1])]]);
  for (const column of shared) {
    sortable.set(`0.${column.key}`, Float64Array.from(matches, (match) => column.values[match[0]]));
    sortable.set(`1.${column.key}`, Float64Array.from(matches, (match) => twin.get(column.key).values[match[1]]));
  }
  let sort = query.get("sort") ?? "-similarity";
  let tops = [null, null];
  const half = (run, i, key) => [
    { key, title: i ? "Second" : "First", help: `Latent of ${run.facts.run}`, width: 92, class: i ? "number divide" : "number", sortable: true },
    { key: "", title: "Names", width: 150, grow: 1, class: "text" },
    ...(run.pictures ? [{ key: "", title: "Top images", width: 146, class: "pictures" }] : []),
    ...shared.map((column) => ({ key: `${i}.${column.key}`, title: column.title, help: column.help, width: numberWidth(column.title), class: "number", sortable: true })),
  ];
  const halfCells = (run, i, latent) => [
    [latentLink(run, latent)],
    [namesOf(run, latent)],
    ...(run.pictures ? [(tops[i]?.(latent) ?? []).map((image) => tinyThumbnail(run, image))] : []),
    ...shared.map((column) => [format((i ? twin.get(column.key) : column).values[latent], column.kind)]),
  ];
  const table = new VirtualTable({
    label: "Matched latents of two runs",
    columns: [
      { key: "similarity", title: "Similarity", help: "Cosine of decoder vectors, or correlation of activations on shared images where the runs read different cells", width: 136, class: "similarity", sortable: true },
      ...half(one, 0, "latent"), ...half(other, 1, "other"),
    ],
    cells: (at) => {
      const [latent, match, value] = matches[at];
      return [[track(value), el("span", { class: "value" }, significant(value))], ...halfCells(one, 0, latent), ...halfCells(other, 1, match)];
    },
    open: (at) => go(`#/compare/${matches[at][0]}`),
    sort: (key) => {
      sort = sort === `-${key}` ? key : `-${key}`;
      update();
    },
  });
  const search = el("input", { type: "search", id: "search", placeholder: "Name or number of a latent", "aria-label": "Search matched latents", autocomplete: "off", spellcheck: "false", on: { input: () => update() } });
  search.value = query.get("q") ?? "";
  const count = el("span", { class: "count" });
  const hashNow = () => `#/compare?${new URLSearchParams({ sort, ...(search.value ? { q: search.value } : {}) })}`;
  function update(position = {}) {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (at) => [...one.names[matches[at][0]], ...other.names[matches[at][1]]].join("\n").toLowerCase();
    const isMatch = (at, word) => String(matches[at][0]) === word || String(matches[at][1]) === word || text(at).includes(word);
    const key = sort.replace(/^-/, "");
    table.showSort(key, sort.startsWith("-"));
    table.show(sortedIndices(matches.length, (at) => words.every((word) => isMatch(at, word)), sortable.get(key), sort.startsWith("-")), position);
    count.textContent = `${plural(table.order.length, "match", "matches")}, of ${plural(one.facts.nLatents, "latent")} and ${other.facts.nLatents.toLocaleString("en")}`;
    table.hash = hashNow();
    history.replaceState(null, "", table.hash);
  }
  return {
    element: el("div", { class: "view table-view compare" },
      el("div", { class: "run-head" }, el("h1", {}, data(one.facts.run), el("span", { class: "soft" }, " and "), data(other.facts.run)),
        el("p", { class: "facts" }, "Latents of the first run, each next to the most similar one of the second. Enter opens both pages.")),
      el("div", { class: "tools" }, search, count), table.element),
    title: `${one.facts.run} and ${other.facts.run}`,
    up: "#/",
    shown() {
      update(remembered("compare", hashNow()));
      table.element.focus({ preventScroll: true });
      Promise.all(runs.map((run) => (run.pictures ? loadTop(run) : null))).then((found) => { tops = found; table.refresh(); }, showError);
    },
    left: () => remember("compare", table),
    key: (event) => table.key(event),
  };
}

function compareHash() {
  return memory.get("compare")?.hash ?? "#/compare";
}

async function pairView(latent) {
  const { matches, runs } = await loadMatches();
  const found = matches.find((match) => match[0] === latent);
  if (!found) throw new Error(`Latent ${latent} of the first run has no match.`);
  const ids = [found[0], found[1]];
  const pages = await Promise.all(runs.map((run, i) => loadPage(run, "latents", ids[i])));
  const at = matches.indexOf(found);
  return {
    element: el("div", { class: "view latent-view pair" },
      el("div", { class: "page-head" }, el("h1", {}, "Matched latents"), el("p", { class: "headline" }, `Similarity ${significant(found[2])}`)),
      el("div", { class: "halves" }, runs.map((run, i) => el("article", {},
        el("p", { class: "soft run-name" }, data(run.facts.run)),
        el("h2", { class: "title" }, latentLink(run, ids[i], `Latent ${ids[i]}`), " ", namesOf(run, ids[i])),
        latentBody(run, ids[i], pages[i], { narrow: true }))))),
    title: `Latents ${ids[0]} and ${ids[1]}`,
    up: compareHash(),
    key(event) {
      const to = { "[": matches[at - 1], "]": matches[at + 1] }[event.key];
      if (to) go(`#/compare/${to[0]}`);
      else if (event.key === "m") setHeat(!heatIsOn);
      else return false;
      return true;
    },
  };
}
