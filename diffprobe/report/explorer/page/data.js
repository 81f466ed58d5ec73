// Data on demand. A page opened from disk may not fetch files, but it may load scripts: each data file is one call of
// explorer.put(name, value).

const MAX_AT_ONCE = 6;
const MAX_CHUNKS = 96; // chunks of pages that stay in memory

const arrived = new Map(); // name -> value, of scripts that were loaded before anybody asked
const promises = new Map(); // name -> promise of its value; chunks in the order of their last use
const waiting = []; // names that are not requested yet
let underway = 0;

window.explorer = Object.freeze({
  put(name, value) {
    arrived.set(name, value);
  },
});

/** Return a promise of the value of data/NAME.js, which is loaded once. */
function load(name) {
  const known = promises.get(name);
  if (known) {
    promises.delete(name);
    promises.set(name, known);
    return known;
  }
  const promise = arrived.has(name)
    ? Promise.resolve(taken(name))
    : new Promise((resolve, reject) => {
        waiting.push({ name, resolve, reject });
        next();
      });
  promises.set(name, promise);
  promise.catch(() => promises.delete(name));
  forgetOldest();
  return promise;
}

function taken(name) {
  const value = arrived.get(name);
  arrived.delete(name);
  return value;
}

function forgetOldest() {
  const chunks = [...promises.keys()].filter((name) => /^\d\/(latents|images)\/\d+$/.test(name));
  for (const name of chunks.slice(0, Math.max(0, chunks.length - MAX_CHUNKS))) promises.delete(name);
}

function next() {
  while (underway < MAX_AT_ONCE && waiting.length) {
    const { name, resolve, reject } = waiting.shift();
    const script = document.createElement("script");
    const failed = (why) => reject(new Error(`data/${name}.js ${why}. Write the explorer again.`));
    const done = () => {
      script.remove();
      underway -= 1;
      next();
    };
    script.onload = () => {
      if (arrived.has(name)) resolve(taken(name));
      else failed("is incomplete");
      done();
    };
    script.onerror = () => {
      failed("is missing");
      done();
    };
    script.src = `data/${name}.js`;
    underway += 1;
    document.head.append(script);
  }
}

/** Return the little-endian numbers of a base64 text as a typed array. */
function decode(base64, Type) {
  if (Uint8Array.fromBase64) return new Type(Uint8Array.fromBase64(base64).buffer);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return new Type(bytes.buffer);
}

/** Return a promise of a run: its facts, its columns with typed values, and the names of its latents. */
function loadRun(number) {
  const name = `${number}/decoded`;
  if (!promises.has(name)) {
    promises.set(
      name,
      load(`${number}/run`).then((run) => {
        for (const column of run.columns) column.values = decode(column.values, column.double ? Float64Array : Float32Array);
        for (const text of run.texts) decodeTexts(text);
        return { ...run, number, prefix: number ? `#/run/${number}` : "#" };
      }),
    );
  }
  return promises.get(name);
}

/** Give a column of texts its functions: of(latent), the text or "", and `order`, by which it is sorted. */
function decodeTexts(text) {
  const numbers = decode(text.numbers, Int32Array);
  text.of = (latent) => text.values[numbers[latent]] ?? "";
  text.order = Float64Array.from(numbers, (i) => (i < 0 ? NaN : i));
}

function isIndex(value, n) {
  return Number.isInteger(value) && value >= 0 && value < n;
}

/** Return a promise of one page of a run, of a latent or an image. */
async function loadPage(run, kind, index) {
  const chunk = await load(`${run.number}/${kind}/${String(Math.floor(index / run.chunk)).padStart(4, "0")}`);
  return chunk[index % run.chunk];
}

/** Return a promise of the top images that the table shows: (latent) -> indices of images. */
async function loadTop(run) {
  const { perLatent, images } = await load(`${run.number}/top`);
  const indices = typeof images === "string" ? decode(images, Int32Array) : images;
  return (latent) => Array.from(indices.subarray(latent * perLatent, (latent + 1) * perLatent)).filter((i) => i >= 0);
}
