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
  const state = { q: query.get("q") ?? "", sort: query.get("sort") ?? "", named: query.get("named") === "1", filters: new Map(), texts: new Map() };
  for (const text of run.texts) if (query.get(`has.${text.key}`)) state.texts.set(text.key, query.get(`has.${text.key}`));
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
  for (const [key, words] of state.texts) query.set(`has.${key}`, words);
  const text = query.toString();
  return `${run.prefix}/${text ? `?${text}` : ""}`;
}

/** Latents that the search, the filters and the sort leave, in order. */
function chosenLatents(run, state) {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  run.searchable ??= run.names.map((names, latent) => [...names, ...run.texts.flatMap((text) => forms(text.of(latent)))].join("\n").toLowerCase());
  const byKey = new Map([...run.columns, ...run.texts.map((text) => ({ key: text.key, values: text.order, of: text.of }))].map((column) => [column.key, column]));
  const wanted = [...state.texts].map(([key, part]) => [byKey.get(key).of, part.toLowerCase()]);
  const limits = [...state.filters].map(([key, [low, high]]) => [byKey.get(key).values, low ?? -Infinity, high ?? Infinity]);
  const isMatch = (latent, word) =>
    word.startsWith("#") ? String(latent) === word.slice(1) : String(latent).startsWith(word) || run.searchable[latent].includes(word);
  const keep = (latent) =>
    (!state.named || run.names[latent].length > 0) &&
    limits.every(([values, low, high]) => values[latent] >= low && values[latent] <= high) &&
    wanted.every(([of, part]) => forms(of(latent)).some((form) => form.toLowerCase().includes(part))) &&
    words.every((word) => isMatch(latent, word));
  const descending = state.sort.startsWith("-");
  const column = byKey.get(state.sort.replace(/^-/, ""));
  return sortedIndices(run.facts.nLatents, keep, column?.values, descending);
}

/** A text as it is shown, and without the spaces around "=", as people type it. */
function forms(text) {
  return text.includes(" = ") ? [text, text.replaceAll(" = ", "=")] : [text];
}

/** The columns of a run's table: each text before its number. Each has a function that makes the content of a cell. */
function tableColumns(run) {
  const ofText = (text) => ({
    key: text.key, title: text.title, help: text.help, width: 170, class: "text about", sortable: true,
    cell: (latent) => { const found = text.of(latent); return found ? el("span", { title: found }, data(found)) : MISSING; },
  });
  const texts = (beside) => run.texts.filter((text) => text.beside === beside).map(ofText);
  const keys = new Set(run.columns.map((column) => column.key));
  const first = run.texts.filter((text) => !keys.has(text.beside)).map(ofText);
  return [...first, ...run.columns.flatMap((column) => [...texts(column.key), {
    key: column.key, title: column.title, help: column.help, width: numberWidth(column.title), class: "number", sortable: true,
    cell: (latent) => format(column.values[latent], column.kind),
  }])];
}

/** The view of the table. Returns: its element and its keys. */
function tableView(run, query) {
  const state = tableState(run, query);
  let top = null;

  const columns = [
    { key: "latent", title: "Latent", help: "Number of the latent in its dictionary", width: 98, class: "number sticky", sortable: true },
    { key: "", title: "Names", help: "", width: 210, grow: 1, class: "text" },
    ...(run.pictures ? [{ key: "", title: "Top images", help: "", width: 146, class: "pictures" }] : []),
    ...tableColumns(run),
  ];
  const table = new VirtualTable({
    label: "Latents",
    columns,
    cells: (latent) => [
      [el("a", { href: `${run.prefix}/latent/${latent}`, tabindex: -1, class: "number-link" }, latent)],
      [namesOf(run, latent)],
      ...(run.pictures ? [(top?.(latent) ?? []).map((image) => tinyThumbnail(run, image))] : []),
      ...columns.filter((column) => column.cell).map((column) => [column.cell(latent)]),
    ],
    open: (latent) => go(`${run.prefix}/latent/${latent}`),
    sort: (key) => {
      const isAscending = key === "latent" || run.texts.some((text) => text.key === key);
      const first = isAscending ? key : `-${key}`;
      const second = isAscending ? `-${key}` : key;
      state.sort = (state.sort || "latent") === first ? second : first;
      update();
    },
  });

  const search = el("input", {
    type: "search", id: "search", placeholder: "Name, value or number of a latent", "aria-label": "Search latents by name, value or number",
    autocomplete: "off", spellcheck: "false", on: { input: () => { state.q = search.value; update(); } },
  });
  search.value = state.q;
  const named = toggle("Named only", state.named, (on) => { state.named = on; update(); });
  const panel = el("div", { class: "filters", id: "filters", role: "group", "aria-label": "Filters" });
  const filters = toggle("Filters", state.filters.size + state.texts.size > 0, (on) => {
    if (on) fillPanel(run, panel, state, () => update());
    panel.hidden = !on;
    filters.setAttribute("aria-expanded", String(on));
    table.schedule();
  });
  filters.setAttribute("aria-controls", panel.id);
  panel.hidden = state.filters.size + state.texts.size === 0;
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
  for (const text of run.texts) panel.append(textFilter(text, state, changed));
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

/** A field for a part of a text, with its values as suggestions. */
function textFilter(text, state, changed) {
  const list = `values-${text.key}`;
  const field = el("input", {
    type: "text", list, "data-text": text.key, placeholder: "contains", "aria-label": `${text.title} contains`, autocomplete: "off", spellcheck: "false",
    on: { input: (event) => {
      if (event.target.value.trim()) state.texts.set(text.key, event.target.value.trim());
      else state.texts.delete(text.key);
      changed();
    } },
  });
  return el(
    "div", { class: "filter", title: text.help },
    el("span", { class: "title" }, text.title, el("span", { class: "range" }, plural(text.values.length, "value"))),
    el("span", { class: "fields" }, field), el("datalist", { id: list }, text.values.slice(0, 500).map((value) => el("option", { value }))),
  );
}

function rangeText(column) {
  const { min, max } = summary(column);
  return min === undefined ? "not measured" : `${significant(min, 2)} to ${significant(max, 2)}`;
}

function showLimits(panel, state) {
  for (const field of panel.querySelectorAll("input")) {
    field.value = field.dataset.text ? (state.texts.get(field.dataset.text) ?? "") : state.filters.get(field.dataset.key)?.[field.dataset.end] ?? "";
  }
}

function filterChips(run, state, changed) {
  const ofTexts = [...state.texts].map(([key, part]) => {
    const text = `${run.texts.find((found) => found.key === key).title}: ${part}`;
    return el("button", { type: "button", class: "chip", "aria-label": `Remove the filter ${text}`, on: { click: () => { state.texts.delete(key); changed(); } } }, data(text), el("span", { "aria-hidden": "true" }, " ×"));
  });
  return [...ofTexts, ...[...state.filters].map(([key, [low, high]]) => {
    const { title } = run.columns.find((column) => column.key === key);
    const text = low === null ? `${title} ≤ ${high}` : high === null ? `${title} ≥ ${low}` : `${title} ${low} to ${high}`;
    return el("button", { type: "button", class: "chip", "aria-label": `Remove the filter ${text}`, on: { click: () => { state.filters.delete(key); changed(); } } }, text, el("span", { "aria-hidden": "true" }, " ×"));
  })];
}
