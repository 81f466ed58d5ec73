// The table of latents: search, sort, and filters by any number. Its state is in the address: #/?q=moon&sort=-auroc.

const memory = new Map(); // run number, "compare" or "images N" -> {hash, active, top, order}: where a table was left

/** Keep where a table is left, so that coming back to the same address finds the same row. */
function remember(name, table) {
  memory.set(name, { hash: table.hash, active: table.active, top: table.element.scrollTop, order: table.order });
}

/** Where the table of an address was left; the first row for another address. */
function remembered(name, hash) {
  const left = memory.get(name);
  return left?.hash === hash ? left : {};
}

function tableState(run, query) {
  const state = { q: query.get("q") ?? "", sort: query.get("sort") ?? "", named: query.get("named") === "1", filters: new Map() };
  for (const column of run.columns) {
    const [low, high] = [query.get(`min.${column.key}`), query.get(`max.${column.key}`)];
    if (low !== null || high !== null) state.filters.set(column.key, [number(low), number(high)]);
  }
  return state;
}

function number(text) {
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return Number.isNaN(value) ? null : value;
}

function tableHash(run, state) {
  const query = new URLSearchParams();
  if (state.q) query.set("q", state.q);
  if (state.sort) query.set("sort", state.sort);
  if (state.named) query.set("named", "1");
  for (const [key, [low, high]] of state.filters) {
    if (low !== null) query.set(`min.${key}`, low);
    if (high !== null) query.set(`max.${key}`, high);
  }
  const text = query.toString();
  return `${run.prefix}/${text ? `?${text}` : ""}`;
}

/** Latents that the search, the filters and the sort leave, in order. */
function chosenLatents(run, state) {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  run.searchable ??= run.names.map((names) => names.join("\n").toLowerCase());
  const byKey = new Map(run.columns.map((column) => [column.key, column]));
  const limits = [...state.filters].map(([key, [low, high]]) => [byKey.get(key).values, low ?? -Infinity, high ?? Infinity]);
  const isMatch = (latent, word) =>
    word.startsWith("#") ? String(latent) === word.slice(1) : String(latent).startsWith(word) || run.searchable[latent].includes(word);
  const keep = (latent) =>
    (!state.named || run.names[latent].length > 0) &&
    limits.every(([values, low, high]) => values[latent] >= low && values[latent] <= high) &&
    words.every((word) => isMatch(latent, word));
  const descending = state.sort.startsWith("-");
  const column = byKey.get(state.sort.replace(/^-/, ""));
  return sortedIndices(run.facts.nLatents, keep, column?.values, descending);
}

/** The view of the table. Returns: its element and its keys. */
function tableView(run, query) {
  const state = tableState(run, query);
  let top = null;

  const columns = [
    { key: "latent", title: "Latent", help: "Number of the latent in its dictionary", width: 98, class: "number sticky", sortable: true },
    { key: "", title: "Names", help: "", width: 210, grow: 1, class: "text" },
    ...(run.pictures ? [{ key: "", title: "Top images", help: "", width: 146, class: "pictures" }] : []),
    ...run.columns.map((column) => ({
      key: column.key, title: column.title, help: column.help, width: numberWidth(column.title), class: "number", sortable: true,
    })),
  ];
  const table = new VirtualTable({
    label: "Latents",
    columns,
    cells: (latent) => [
      [el("a", { href: `${run.prefix}/latent/${latent}`, tabindex: -1, class: "number-link" }, latent)],
      [namesOf(run, latent)],
      ...(run.pictures ? [(top?.(latent) ?? []).map((image) => tinyThumbnail(run, image))] : []),
      ...run.columns.map((column) => [format(column.values[latent], column.kind)]),
    ],
    open: (latent) => go(`${run.prefix}/latent/${latent}`),
    sort: (key) => {
      const first = key === "latent" ? key : `-${key}`;
      const second = key === "latent" ? `-${key}` : key;
      state.sort = (state.sort || "latent") === first ? second : first;
      update();
    },
  });

  const search = el("input", {
    type: "search", id: "search", placeholder: "Name or number of a latent", "aria-label": "Search latents by name or number",
    autocomplete: "off", spellcheck: "false", on: { input: () => { state.q = search.value; update(); } },
  });
  search.value = state.q;
  const named = toggle("Named only", state.named, (on) => { state.named = on; update(); });
  const panel = el("div", { class: "filters", id: "filters", role: "group", "aria-label": "Filters" });
  const filters = toggle("Filters", state.filters.size > 0, (on) => {
    if (on) fillPanel(run, panel, state, () => update());
    panel.hidden = !on;
    filters.setAttribute("aria-expanded", String(on));
    table.schedule();
  });
  filters.setAttribute("aria-controls", panel.id);
  panel.hidden = state.filters.size === 0;
  if (!panel.hidden) fillPanel(run, panel, state, () => update());
  const count = el("span", { class: "count" });
  const chips = el("span", { class: "chips" });
  const empty = el("p", { class: "state", hidden: true }, "No latent is left. Remove a filter or change the search.");

  function update(position = {}) {
    const order = chosenLatents(run, state);
    const total = run.facts.nLatents;
    count.textContent = order.length === total ? plural(total, "latent") : `${order.length.toLocaleString("en")} of ${plural(total, "latent")}`;
    announce(count.textContent);
    const key = state.sort.replace(/^-/, "") || "latent";
    table.showSort(key, state.sort.startsWith("-"));
    table.show(order, position);
    empty.hidden = order.length > 0;
    chips.replaceChildren(...filterChips(run, state, () => { showLimits(panel, state); update(); }));
    table.hash = tableHash(run, state);
    history.replaceState(null, "", table.hash);
  }

  const element = el(
    "div", { class: "view table-view" },
    runHead(run),
    el("div", { class: "tools" }, search, named, filters, chips, count),
    panel, table.element, empty,
  );
  return {
    element,
    title: run.facts.run,
    shown() {
      update(remembered(run.number, tableHash(run, state)));
      table.element.focus({ preventScroll: true });
      if (run.pictures) loadTop(run).then((found) => { top = found; table.refresh(); }, showError);
    },
    left: () => remember(run.number, table),
    key: (event) => table.key(event),
  };
}

function toggle(text, isOn, change) {
  const button = el("button", { type: "button", class: "toggle", "aria-pressed": String(isOn), on: { click: () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    change(on);
  } } }, text);
  return button;
}

/** Facts of a run above its views. */
function runHead(run) {
  const facts = run.facts;
  const parts = [
    data(facts.model), data(facts.data), ...facts.cells.map((cell) => data(cell, { class: "code" })),
    `${plural(facts.nLatents, "latent")}, k = ${facts.k}`, plural(facts.nImages, "image"),
  ];
  if (!run.pictures && facts.nImages) parts.push("pictures are not at hand, so pages have none");
  return el(
    "div", { class: "run-head" },
    el("h1", {}, data(facts.run)),
    el("p", { class: "facts" }, parts.map((part, i) => [i ? el("span", { class: "dot" }, " · ") : "", part]).flat()),
    facts.notes.length > 0 && el("details", { class: "notes" }, el("summary", {}, plural(facts.notes.length, "note")), el("ul", {}, facts.notes.map((note) => el("li", {}, data(note))))),
  );
}

/** Fill the panel, when it is first shown: least and largest value for each column, below its distribution. */
function fillPanel(run, panel, state, changed) {
  if (panel.childElementCount) return;
  for (const column of run.columns) {
    const field = (i, name) => el("input", {
      type: "text", inputmode: "decimal", "data-key": column.key, "data-end": i, placeholder: name, "aria-label": `${name} of ${column.title}`,
      on: { input: (event) => {
        const value = number(event.target.value);
        event.target.setAttribute("aria-invalid", String(value === null && event.target.value.trim() !== ""));
        const limits = state.filters.get(column.key) ?? [null, null];
        limits[i] = value;
        if (limits[0] === null && limits[1] === null) state.filters.delete(column.key);
        else state.filters.set(column.key, limits);
        changed();
      } },
    });
    panel.append(el(
      "div", { class: "filter", title: column.help },
      el("span", { class: "title" }, column.title, el("span", { class: "range" }, rangeText(column))),
      distribution(column), el("span", { class: "fields" }, field(0, "min"), field(1, "max")),
    ));
  }
  showLimits(panel, state);
}

function rangeText(column) {
  const { min, max } = summary(column);
  return min === undefined ? "not measured" : `${significant(min, 2)} to ${significant(max, 2)}`;
}

function showLimits(panel, state) {
  for (const field of panel.querySelectorAll("input")) {
    field.value = state.filters.get(field.dataset.key)?.[field.dataset.end] ?? "";
  }
}

function filterChips(run, state, changed) {
  return [...state.filters].map(([key, [low, high]]) => {
    const { title } = run.columns.find((column) => column.key === key);
    const text = low === null ? `${title} ≤ ${high}` : high === null ? `${title} ≥ ${low}` : `${title} ${low} to ${high}`;
    return el("button", { type: "button", class: "chip", "aria-label": `Remove the filter ${text}`, on: { click: () => { state.filters.delete(key); changed(); } } }, text, el("span", { "aria-hidden": "true" }, " ×"));
  });
}
