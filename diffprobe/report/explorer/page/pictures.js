// Thumbnails out of sprite sheets, and heat maps over them.

/** Place one cell of a sheet as the background of an element. */
function placeSprite(element, file, cell, columns, nImages, perSheet) {
  const sheet = Math.floor(cell / perSheet);
  const inSheet = cell % perSheet;
  const rows = Math.ceil(Math.min(perSheet, nImages - sheet * perSheet) / columns);
  const column = inSheet % columns;
  const row = Math.floor(inSheet / columns);
  element.style.backgroundImage = `url("data/${file}/${String(sheet).padStart(4, "0")}.jpg")`;
  element.style.backgroundSize = `${columns * 100}% ${rows * 100}%`;
  element.style.backgroundPosition = `${(100 * column) / (columns - 1)}% ${rows > 1 ? (100 * row) / (rows - 1) : 0}%`;
}

/** A thumbnail that fills its box; a box with the index where the explorer has no pictures. */
function thumbnail(run, image, label = `image ${image}`) {
  if (!run.pictures) return el("span", { class: "thumb none", role: "img", "aria-label": label }, image);
  const element = el("span", { class: "thumb", role: "img", "aria-label": label });
  const n = run.sheetColumns;
  placeSprite(element, `${run.number}/sprites`, image, n, run.facts.nImages, n * n);
  return element;
}

function tinyThumbnail(run, image) {
  const element = el("span", { class: "tiny" });
  const n = run.tinyColumns;
  placeSprite(element, `${run.number}/tiny`, image, n, run.facts.nImages, n * n);
  return element;
}

/** A large thumbnail: drawn, because a scaled background would show the edge of its neighbours. */
function largePicture(run, image, label) {
  if (!run.pictures) return thumbnail(run, image, label);
  const n = run.sheetColumns;
  const sheet = Math.floor(image / (n * n));
  const side = run.sides[sheet];
  const canvas = el("canvas", { class: "thumb", role: "img", "aria-label": label, width: 4 * side, height: 4 * side });
  const picture = new Image();
  picture.onload = () => {
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    const cell = image % (n * n);
    const [left, top] = [(cell % n) * side, Math.floor(cell / n) * side];
    context.drawImage(picture, left, top, side, side, 0, 0, 4 * side, 4 * side);
  };
  picture.src = `data/${run.number}/sprites/${String(sheet).padStart(4, "0")}.jpg`;
  return canvas;
}

const HEAT = [
  [30, 26, 56],
  [178, 40, 104],
  [246, 120, 40],
  [255, 226, 110],
];

/** A map of activations as a canvas of one pixel per place: a thin shade for 0, yellow for the largest. */
function heatMap(height, width, base64) {
  const values = decode(base64, Uint8Array);
  const canvas = el("canvas", { class: "heat", width, height, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < values.length; i += 1) {
    const share = values[i] / 255;
    const place = share * (HEAT.length - 1);
    const low = Math.min(HEAT.length - 2, Math.floor(place));
    for (let c = 0; c < 3; c += 1) {
      pixels.data[4 * i + c] = HEAT[low][c] + (place - low) * (HEAT[low + 1][c] - HEAT[low][c]);
    }
    pixels.data[4 * i + 3] = 255 * (0.16 + 0.62 * share);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
