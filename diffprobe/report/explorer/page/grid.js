// A table of any number of rows, of which only those in view are in the document.

const ROW = 36; // height of a row in pixels, as in app.css
const MARGIN = 8; // rows before and after those in view

/** Width in pixels of a column of numbers that shows its title on two lines. */
function numberWidth(title) {
  const longest = Math.max(...title.split(/\s+/).map((word) => word.length), title.length / 2);
  return Math.max(96, Math.min(180, 46 + 7.4 * longest));
}

class VirtualTable {
  /**
   * columns: {key, title, help, width, grow, class, sortable}, widths in pixels; cells(id): contents of the cells of a row, in order;
   * open(id): called on Enter or a click; sort(key): called on a click on a head.
   */
  constructor({ label, columns, cells, open, sort }) {
    Object.assign(this, { columns, cells, open, sort });
    this.order = new Uint32Array(0);
    this.active = 0;
    this.rows = new Map(); // position -> element
    this.head = el("div", { role: "row", class: "row head", "aria-rowindex": 1 }, columns.map((column) => this.headCell(column)));
    this.body = el("div", { role: "rowgroup", class: "body" });
    this.element = el(
      "div",
      { role: "grid", class: "grid", tabindex: 0, "aria-label": label, "aria-colcount": columns.length, on: { scroll: () => this.schedule(), focus: () => this.mark() } },
      el("div", { role: "rowgroup", class: "head-group" }, this.head),
      this.body,
    );
    const widths = columns.map((column) => (column.grow ? `minmax(${column.width}px, ${column.grow}fr)` : `${column.width}px`));
    this.element.style.setProperty("--columns", widths.join(" "));
    this.element.style.setProperty("--width", `${columns.reduce((sum, column) => sum + column.width, 24)}px`);
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("[data-position]");
      if (!row || event.target.closest("a")) return;
      this.active = Number(row.dataset.position);
      this.open(this.order[this.active]);
    });
    new ResizeObserver(() => this.schedule()).observe(this.element);
  }

  headCell(column) {
    const text = el("span", { class: "title" }, column.title);
    const content = column.sortable
      ? el("button", { type: "button", title: column.help, on: { click: () => this.sort(column.key) } }, text)
      : text;
    return el("div", { role: "columnheader", class: `cell ${column.class ?? ""}`, "data-key": column.key }, content);
  }

  showSort(key, descending) {
    for (const cell of this.head.children) {
      if (cell.dataset.key === key) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
  }

  /** Show these rows, in this order, from the first on. */
  show(order, { active = 0, top = 0 } = {}) {
    this.order = order;
    this.active = Math.max(0, Math.min(active, order.length - 1));
    this.element.setAttribute("aria-rowcount", order.length + 1);
    this.body.style.height = `${order.length * ROW}px`;
    this.element.scrollTop = top;
    this.refresh();
  }

  /** Make the rows in view again. */
  refresh() {
    this.body.replaceChildren();
    this.rows.clear();
    this.render();
  }

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.render();
    });
  }

  render() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / ROW) - MARGIN);
    const last = Math.min(this.order.length, first + Math.ceil((this.element.clientHeight || 900) / ROW) + 2 * MARGIN);
    for (const [position, row] of this.rows) {
      if (position < first || position >= last) {
        row.remove();
        this.rows.delete(position);
      }
    }
    for (let position = first; position < last; position += 1) {
      if (this.rows.has(position)) continue;
      const cells = this.cells(this.order[position]);
      const row = el(
        "div",
        { role: "row", class: "row", id: `row-${position}`, "data-position": position, "aria-rowindex": position + 2, style: { top: `${position * ROW}px` } },
        cells.map((content, i) => el("div", { role: "gridcell", class: `cell ${this.columns[i].class ?? ""}` }, content)),
      );
      this.rows.set(position, row);
      this.body.append(row);
    }
    this.mark();
  }

  mark() {
    for (const [position, row] of this.rows) row.classList.toggle("active", position === this.active);
    if (this.rows.has(this.active)) this.element.setAttribute("aria-activedescendant", `row-${this.active}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  /** Move the active row and keep it in view. */
  move(by) {
    this.active = Math.max(0, Math.min(this.order.length - 1, this.active + by));
    const room = this.element.clientHeight - this.head.offsetHeight - ROW;
    const top = this.active * ROW;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top > this.element.scrollTop + room) this.element.scrollTop = top - room;
    this.render();
  }

  /** Handle a key. Returns: whether it was one of the table's. */
  key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / ROW) - 2);
    const moves = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in moves && this.order.length) this.move(moves[event.key]);
    else if (event.key === "Enter" && this.order.length && !event.target.closest("a, button")) this.open(this.order[this.active]);
    else return false;
    return true;
  }
}

/** Indices 0 to n - 1 for which `keep` is true, sorted by a typed column; missing values come last in both directions. */
function sortedIndices(n, keep, values, descending) {
  const kept = new Uint32Array(n);
  let size = 0;
  for (let i = 0; i < n; i += 1) if (keep(i)) kept[size++] = i;
  const order = kept.subarray(0, size);
  if (!values) return descending ? order.reverse() : order;
  const sign = descending ? -1 : 1;
  return order.sort((a, b) => {
    const [x, y] = [values[a], values[b]];
    if (x === y) return a - b;
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) ? (Number.isNaN(y) ? a - b : 1) : -1;
    return sign * (x - y);
  });
}
