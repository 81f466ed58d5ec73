// Addresses, keys and the bar above all views.

const KEYS = [
  ["/", "Search"],
  ["j, ↓ and k, ↑", "Move in a table, or through what fires on an image"],
  ["Page Up, Page Down, Home, End", "Move further"],
  ["Enter", "Open the row"],
  ["Escape", "Back to the table"],
  ["[ and ]", "Previous and next latent, in the order of the table; previous and next image"],
  ["m", "Heat maps on or off"],
  ["g then l, i, c", "Go to latents, images, the comparison"],
  ["?", "This help"],
];

let contents = null;
let view = null;
let turn = 0; // counts changes of the address, so that a page that arrives late is not shown
let isGoing = false; // whether "g" was the last key
let help = null;

function go(hash) {
  location.hash = hash;
}

function route(hash) {
  const [path, text = ""] = hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean);
  const query = new URLSearchParams(text);
  let number = 0;
  if (parts[0] === "run") number = Number(parts.splice(0, 2)[1]);
  return { parts, query, number };
}

async function makeView({ parts: [name, index], query, number }) {
  if (!contents.runs[number]) throw new Error(`There is no run ${number} in this explorer.`);
  if (name === "compare") {
    if (!contents.compared) throw new Error("This explorer has one run: there is nothing to compare.");
    return index === undefined ? compareView(query) : pairView(Number(index));
  }
  const run = await loadRun(number);
  if (name === undefined) return tableView(run, query);
  if (name === "latent") return latentView(run, Number(index));
  if (name === "image") return imageView(run, Number(index));
  if (name === "images") return imagesView(run, query);
  throw new Error(`There is no page '${name}'.`);
}

async function show() {
  const mine = (turn += 1);
  const address = route(location.hash);
  view?.left?.();
  let found;
  try {
    contents ??= await load("contents");
    found = await makeView(address);
  } catch (error) {
    found = { element: el("div", { class: "view" }, el("p", { class: "state", role: "alert" }, error.message)), title: "Explorer", up: "#/" };
  }
  if (mine !== turn) return;
  view = found;
  const main = document.getElementById("main");
  document.title = visible(found.title);
  drawBar(address);
  main.replaceChildren(found.element);
  main.scrollTop = 0;
  if (found.shown) found.shown();
  else main.focus({ preventScroll: true });
  requestAnimationFrame(() => setTimeout(() => {
    const root = document.documentElement;
    root.dataset.firstView ??= performance.now().toFixed(0);
    root.dataset.view = location.hash || "#/";
  }));
}

function showError(error) {
  announce(error.message);
  document.getElementById("main").prepend(el("p", { class: "state", role: "alert" }, error.message));
}

function drawBar({ parts: [name], number }) {
  const prefix = number ? `#/run/${number}` : "#";
  const link = (href, text, isHere) => el("a", { href, "aria-current": isHere ? "page" : null }, text);
  const isCompare = name === "compare";
  const runs = contents?.runs ?? [];
  const up = { images: "images", image: "images" }[name] ?? "";
  const runLink = (run, i) =>
    el("a", { href: i ? `#/run/${i}/${up}` : `#/${up}`, "aria-current": !isCompare && i === number ? "true" : null }, data(run.run));
  const parts = [
    el("span", { class: "brand" }, "diffprobe", el("span", {}, " explorer")),
    el("nav", { "aria-label": "Views" },
      link(memory.get(number)?.hash ?? `${prefix}/`, "Latents", !isCompare && !up), link(`${prefix}/images`, "Images", Boolean(up)),
      contents?.compared && link(compareHash(), "Compare", isCompare)),
    runs.length > 1 && el("nav", { "aria-label": "Runs", class: "runs" }, runs.map(runLink)),
    el("button", { type: "button", class: "plain help", "aria-label": "Keys", title: "Key ?", on: { click: openHelp } }, "?"),
  ];
  document.getElementById("bar").replaceChildren(...parts.filter(Boolean));
}

function openHelp() {
  help ??= el("dialog", { class: "help", "aria-label": "Keys" }, el("h2", {}, "Keys"),
    el("dl", {}, KEYS.map(([keys, text]) => [el("dt", {}, el("kbd", {}, keys)), el("dd", {}, text)]).flat()),
    el("button", { type: "button", class: "toggle", autofocus: true, on: { click: () => help.close() } }, "Close"));
  if (!help.isConnected) document.body.append(help);
  if (!help.open) help.showModal();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || help?.open) return;
  const isField = event.target.matches("input");
  if (isField) {
    if (event.key === "Escape" || event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      document.querySelector(".grid")?.focus({ preventScroll: true });
    }
    return;
  }
  const places = { l: "#/", i: "#/images", c: contents?.compared ? "#/compare" : null };
  const search = document.getElementById("search");
  if (isGoing && places[event.key]) go(places[event.key]);
  else if (event.key === "/" && search) {
    search.focus();
    search.select();
  } else if (event.key === "?") openHelp();
  else if (event.key === "Escape" && view?.up) go(view.up);
  else if (event.key === "g") {
    isGoing = true;
    return;
  } else if (!view?.key?.(event)) {
    isGoing = false;
    return;
  }
  isGoing = false;
  event.preventDefault();
}

window.addEventListener("hashchange", show);
document.addEventListener("keydown", pressed);
document.addEventListener("DOMContentLoaded", () => {
  // The address holds the view, so the link to the content may not change it.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
  show();
});
