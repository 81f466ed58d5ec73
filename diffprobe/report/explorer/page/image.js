// The page of an image, and the list of images.

async function imageView(run, image) {
  if (!isIndex(image, run.facts.nImages)) throw new Error(`Image ${image} does not exist: this run has ${plural(run.facts.nImages, "image")}.`);
  const page = await loadPage(run, "images", image);
  const label = page.caption || page.label || page.key;
  const picture = page.picture ? largePicture(run, image, label) : el("span", { class: "thumb none", role: "img", "aria-label": label }, "no picture");
  const stage = el("div", { class: "shot large" }, picture);
  const hint = el("p", { class: "under" });
  const hasMaps = page.latents.some((latent) => latent.length > 2);
  const help = hasMaps ? "Point at a latent, or move to it with the arrow keys, to see where it fires" : "Features are pooled over places: there are no maps";
  hint.textContent = help;
  const rows = page.latents.map(([latent, activation, height, width, map]) => {
    const link = el("a", { href: `${run.prefix}/latent/${latent}`, class: "fires" },
      el("span", { class: "who" }, latent), el("span", { class: "names-cell" }, namesOf(run, latent)),
      track(page.latents[0][1] > 0 ? activation / page.latents[0][1] : 0), el("span", { class: "value" }, significant(activation)));
    const showMap = () => {
      stage.querySelector(".heat")?.remove();
      for (const other of rows) other.firstChild.classList.toggle("shown", other.firstChild === link);
      if (map) stage.append(heatMap(height, width, map));
      hint.textContent = map ? `Latent ${latent}: where it fires, ${height} × ${width} places` : help;
    };
    link.addEventListener("mouseenter", showMap);
    link.addEventListener("focus", showMap);
    return el("li", {}, link);
  });
  const facts = [["Key", page.key], ["Class", page.label], ...page.attributes].filter(([, value]) => value !== "");
  const element = el(
    "div", { class: "view image-view" },
    el("div", { class: "page-head" }, el("h1", {}, `Image ${image}`), el("p", { class: "headline" }, page.label && data(page.label)),
      el("nav", { class: "steps", "aria-label": "Images" },
        image > 0 ? el("a", { class: "step", href: `${run.prefix}/image/${image - 1}` }, "← previous") : el("span", { class: "step off" }, "← previous"),
        image + 1 < run.facts.nImages ? el("a", { class: "step", href: `${run.prefix}/image/${image + 1}` }, "next →") : el("span", { class: "step off" }, "next →"))),
    el("div", { class: "columns image" },
      el("div", { class: "main" }, stage, page.picture && hint,
        page.caption ? el("p", { class: "caption", dir: "auto" }, page.caption) : el("p", { class: "soft" }, "No caption."),
        el("dl", { class: "pairs" }, facts.map(([name, value]) => [el("dt", {}, data(name)), el("dd", {}, data(value))]).flat())),
      el("div", { class: "side" }, section("What fires here", rows.length ? el("ol", { class: "others firing" }, rows) : el("p", { class: "soft" }, "No latent is active.")))),
  );
  return {
    element,
    title: `Image ${image} · ${run.facts.run}`,
    up: memory.get(`images ${run.number}`)?.hash ?? `${run.prefix}/images`,
    key(event) {
      const links = rows.map((row) => row.firstChild);
      const at = links.indexOf(document.activeElement);
      const by = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
      const to = { "[": image - 1, "]": image + 1 }[event.key];
      if (by && links.length) links[Math.max(0, Math.min(links.length - 1, at < 0 ? 0 : at + by))].focus();
      else if (to !== undefined && to >= 0 && to < run.facts.nImages) go(`${run.prefix}/image/${to}`);
      else return false;
      return true;
    },
  };
}

/** The list of images: found by key, caption or class. */
async function imagesView(run, query) {
  const images = await load(`${run.number}/images`);
  run.imageText ??= images.map((row) => row.join("\n").toLowerCase());
  const table = new VirtualTable({
    label: "Images",
    columns: [
      { key: "", title: "Image", width: 84, class: "number sticky" },
      ...(run.pictures ? [{ key: "", title: "", width: 54, class: "pictures" }] : []),
      { key: "", title: "Caption", width: 260, grow: 3, class: "text" },
      { key: "", title: "Class", width: 120, grow: 1, class: "text" },
      { key: "", title: "Key", width: 150, grow: 1, class: "text code" },
    ],
    cells: (image) => {
      const [key, caption, label] = images[image];
      return [
        [el("a", { href: `${run.prefix}/image/${image}`, tabindex: -1, class: "number-link" }, image)],
        ...(run.pictures ? [[tinyThumbnail(run, image)]] : []),
        [caption ? data(caption, { title: caption }) : el("span", { class: "unnamed" }, "no caption")], [data(label)], [data(key)],
      ];
    },
    open: (image) => go(`${run.prefix}/image/${image}`),
  });
  const count = el("span", { class: "count" });
  const search = el("input", {
    type: "search", id: "search", placeholder: "Caption, class or key", "aria-label": "Search images by caption, class or key",
    autocomplete: "off", spellcheck: "false", on: { input: () => update() },
  });
  search.value = query.get("q") ?? "";
  const hashNow = () => `${run.prefix}/images${search.value ? `?${new URLSearchParams({ q: search.value })}` : ""}`;
  function update(position = {}) {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const order = sortedIndices(images.length, (image) => words.every((word) => run.imageText[image].includes(word)));
    table.show(order, position);
    count.textContent = words.length ? `${order.length.toLocaleString("en")} of ${plural(images.length, "image")}` : plural(images.length, "image");
    announce(count.textContent);
    table.hash = hashNow();
    history.replaceState(null, "", table.hash);
  }
  return {
    element: el("div", { class: "view table-view" }, runHead(run), el("div", { class: "tools" }, search, count), table.element),
    title: `Images · ${run.facts.run}`,
    up: `${run.prefix}/`,
    shown() {
      update(remembered(`images ${run.number}`, hashNow()));
      table.element.focus({ preventScroll: true });
    },
    left: () => remember(`images ${run.number}`, table),
    key: (event) => table.key(event),
  };
}
