// The viewer in a notebook: planes of layers, drawn from tiles that the kernel reads.
//
// A plain ES module for anywidget. `model` has the traits of `viewer.py`. Positions are voxels of
// mag 1. At most IN_FLIGHT tiles are asked for at a time, and what is asked for next is decided
// when one arrives: a request that is out of date is never sent.

const TILE = 256;
const IN_FLIGHT = 6;
const MOST_BYTES = 96 * 2 ** 20;
const MOST_TILES = 60;
const LOST_AFTER_MS = 30000;
const AGAIN_AFTER_MS = 5000;
const AHEAD = 3;
const AXES = ["x", "y", "z"];
// The plane across an axis: what goes to the right, and what goes down.
const PLANES = {
  xy: { across: 2, right: 0, down: 1 },
  zy: { across: 0, right: 2, down: 1 },
  xz: { across: 1, right: 0, down: 2 },
};
const COLORS = ["#e8564a", "#43b05c", "#4a90d9"];
const ARRAYS = {
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: Uint32Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: Uint32Array,
  float32: Float32Array, float64: Float64Array,
};

// --- colours ------------------------------------------------------------------------------------

const idColors = new Map();

/** Return red, green and blue of an id, by its lower 32 bits; the same as `pixels.colors_of`. */
export function colorOf(id) {
  let color = idColors.get(id);
  if (color) return color;
  const [hue, saturation, value] = [0.618034, 0.754878, 0.56984].map((step) => (id * step) % 1);
  const strength = 0.35 + 0.4 * saturation;
  const bright = 0.6 + 0.4 * value;
  color = [0, 2 / 3, 1 / 3].map((shift) => {
    const part = Math.min(1, Math.max(0, Math.abs((((hue + shift) % 1) * 6) - 3) - 1));
    return Math.floor(bright * (1 - strength * (1 - part)) * 255);
  });
  if (idColors.size > 100000) idColors.clear();
  idColors.set(id, color);
  return color;
}

function paintIds(tile, out) {
  const { values, words } = tile;
  let last = 0, r = 0, g = 0, b = 0;
  for (let i = 0; i < tile.rows * tile.columns; i++) {
    const low = values[i * words] >>> 0;
    if (low === 0 && (words === 1 || values[i * words + 1] === 0)) continue;
    if (low !== last || !r) [r, g, b] = colorOf((last = low));
    const at = i * 4;
    out[at] = r; out[at + 1] = g; out[at + 2] = b; out[at + 3] = 255;
  }
}

function paintGreys(tile, out, low, high) {
  const { values, words } = tile;
  const pixels = tile.rows * tile.columns;
  const scale = 255 / (high - low || 1);
  const channels = tile.channels >= 3 && tile.dtype === "uint8" ? [0, 1, 2] : [0, 0, 0];
  const [red, green, blue] = channels.map((channel) => channel * pixels);
  const isLong = words === 2;
  const one = (i) => {
    const value = isLong ? longOf(tile, i) : values[i];
    return value === value ? (value - low) * scale : 0;
  };
  for (let i = 0; i < pixels; i++) {
    const at = i * 4;
    out[at] = one(red + i);
    out[at + 1] = red === green ? out[at] : one(green + i);
    out[at + 2] = red === blue ? out[at] : one(blue + i);
    out[at + 3] = 255;
  }
}

function longOf(tile, i) {
  const high = tile.dtype === "int64" ? tile.values[2 * i + 1] | 0 : tile.values[2 * i + 1];
  return high * 2 ** 32 + tile.values[2 * i];
}

/** Return the exact value of a pixel as text, for 64 bits too. */
function valueText(tile, i) {
  if (tile.words === 1) return String(tile.values[i]);
  const high = BigInt(tile.values[2 * i + 1]);
  const value = (high << 32n) | BigInt(tile.values[2 * i]);
  return String(tile.dtype === "int64" ? BigInt.asIntN(64, value) : value);
}

// --- tiles --------------------------------------------------------------------------------------

/** Tiles that were read, the least recently used ones forgotten. */
class Tiles {
  constructor(send, changed) {
    this.send = send;
    this.changed = changed;
    this.known = new Map();
    this.sent = new Map();
    this.bytes = 0;
    this.wanted = [];
  }

  static key(want) {
    return [want.layer, want.mag, want.axis, want.at, want.column, want.row].join("/");
  }

  get(want) {
    const key = Tiles.key(want);
    const tile = this.known.get(key);
    if (tile) {
      this.known.delete(key);
      this.known.set(key, tile);
    }
    return tile;
  }

  has(want) {
    return this.isGood(this.known.get(Tiles.key(want)), Date.now());
  }

  /** What could not be read is asked for again when the view changes, but not at once. */
  isGood(tile, now) {
    return tile && !(tile.error && now - tile.since > AGAIN_AFTER_MS);
  }

  /** Ask for what is wanted, most urgent first; what was wanted before and was not sent is gone. */
  want(list) {
    this.wanted = list;
    this.pump();
  }

  pump() {
    const now = Date.now();
    for (const [key, since] of this.sent) if (now - since > LOST_AFTER_MS) this.sent.delete(key);
    while (this.wanted.length && this.sent.size < IN_FLIGHT) {
      const want = this.wanted.shift();
      const key = Tiles.key(want);
      if (this.isGood(this.known.get(key), now) || this.sent.has(key)) continue;
      this.sent.set(key, now);
      this.send({ kind: "tile", key, ...want });
    }
  }

  /** Forget all, and ask for it again. */
  forget() {
    this.known.clear();
    this.sent.clear();
    this.bytes = 0;
    this.changed({});
  }

  take(message, buffers) {
    if (message.kind === "refresh") this.forget();
    if (message.kind !== "tile" && message.kind !== "error") return;
    this.sent.delete(message.key);
    const tile = message.kind === "error" ? { error: message.text, bytes: 0, since: Date.now() } : decode(message, buffers);
    this.bytes += tile.bytes;
    this.known.set(message.key, tile);
    for (const [key, old] of this.known) {
      if (this.bytes <= MOST_BYTES && this.known.size <= 2000) break;
      this.known.delete(key);
      this.bytes -= old.bytes;
    }
    this.pump();
    this.changed(tile);
  }
}

function decode(message, buffers) {
  const [channels, rows, columns] = message.shape;
  const buffer = buffers[0].buffer || buffers[0];
  const offset = buffers[0].byteOffset || 0;
  const Values = ARRAYS[message.dtype];
  const words = message.dtype.endsWith("64") && message.dtype !== "float64" ? 2 : 1;
  const count = channels * rows * columns * words;
  // Copied, because a part of a message need not begin where the numbers may begin.
  const copy = buffer.slice(offset, offset + count * Values.BYTES_PER_ELEMENT);
  const values = new Values(copy);
  return {
    values, words, channels, rows, columns, dtype: message.dtype, canvas: null, look: "",
    bytes: values.byteLength + rows * columns * 4,
  };
}

/** Return a canvas with the colours of a tile. */
function canvasOf(tile, layer, state) {
  const look = layer.isIds ? "ids" : `${state.low}/${state.high}`;
  if (tile.look === look) return tile.canvas;
  tile.canvas = tile.canvas || document.createElement("canvas");
  tile.canvas.width = tile.columns;
  tile.canvas.height = tile.rows;
  const context = tile.canvas.getContext("2d");
  const image = context.createImageData(tile.columns, tile.rows);
  if (layer.isIds) paintIds(tile, image.data);
  else paintGreys(tile, image.data, state.low, state.high);
  context.putImageData(image, 0, 0);
  tile.look = look;
  return tile.canvas;
}

// --- one plane ----------------------------------------------------------------------------------

class PlaneView {
  constructor(name, viewer) {
    this.name = name;
    this.viewer = viewer;
    Object.assign(this, PLANES[name]);
    this.shownAt = [];
    this.canvas = document.createElement("canvas");
    this.canvas.className = "wkv-plane";
    this.canvas.tabIndex = 0;
    this.canvas.dataset.plane = name;
    this.canvas.setAttribute("aria-label", `plane ${name}`);
    this.layerCanvas = document.createElement("canvas");
    this.listen();
  }

  get width() { return this.canvas.clientWidth; }
  get height() { return this.canvas.clientHeight; }
  /** Screen pixels per voxel of mag 1, to the right and down. */
  get scales() { return [this.viewer.scale(this.right), this.viewer.scale(this.down)]; }

  /** Return the position under a point of the canvas. */
  positionAt(left, top) {
    const position = [...this.viewer.position];
    const [right, down] = this.scales;
    position[this.right] += (left - this.width / 2) / right;
    position[this.down] += (top - this.height / 2) / down;
    return position;
  }

  /** Return where a position lies on the canvas, along the axis to the right or down. */
  left(at) { return this.width / 2 + (at - this.viewer.position[this.right]) * this.scales[0]; }
  top(at) { return this.height / 2 + (at - this.viewer.position[this.down]) * this.scales[1]; }

  /** Return the number of the coarsest mag that is fine enough. */
  magOf(layer) {
    const [right, down] = this.scales;
    let found = 0;
    layer.mags.forEach((mag, i) => {
      const edge = Math.max(right * mag.factors[this.right], down * mag.factors[this.down]);
      if (edge <= 1.001 || this.countOf(layer, found) > MOST_TILES) found = i;
    });
    return found;
  }

  countOf(layer, mag) {
    const [columns, rows] = this.spans(layer.mags[mag]);
    return Math.max(0, columns[1] - columns[0]) * Math.max(0, rows[1] - rows[0]);
  }

  /** Return the tiles that are visible, as first and last column and row. */
  spans(mag) {
    const sizes = [this.width, this.height];
    return [this.right, this.down].map((axis, i) => {
      const half = sizes[i] / 2 / this.scales[i];
      const middle = this.viewer.position[axis];
      const edge = mag.factors[axis] * TILE;
      const [first, last] = [mag.corner[axis], mag.corner[axis] + mag.size[axis]];
      const from = Math.max(Math.floor((middle - half) / edge), Math.floor(first / TILE));
      const to = Math.min(Math.ceil((middle + half) / edge), Math.ceil(last / TILE));
      return [from, Math.max(from, to)];
    });
  }

  /** Return the tiles of a mag that are visible, those in the middle first. */
  visible(layer, mag, ahead = 0) {
    const entry = layer.mags[mag];
    const at = Math.floor(this.viewer.position[this.across] / entry.factors[this.across]) + ahead;
    const first = entry.corner[this.across];
    if (at < first || at >= first + entry.size[this.across]) return [];
    const [columns, rows] = this.spans(entry);
    const list = [];
    for (let row = rows[0]; row < rows[1]; row++) {
      for (let column = columns[0]; column < columns[1]; column++) {
        list.push({ layer: layer.number, mag, axis: AXES[this.across], at, column, row });
      }
    }
    const middle = [this.right, this.down].map(
      (axis) => this.viewer.position[axis] / entry.factors[axis] / TILE - 0.5);
    const distance = (want) => (want.column - middle[0]) ** 2 + (want.row - middle[1]) ** 2;
    return list.sort((a, b) => distance(a) - distance(b)).slice(0, 4 * MOST_TILES);
  }

  /** Return what should be asked for: a coarse picture first, then the mag that is fine enough. */
  wanted() {
    const list = [];
    if (!this.width) return list;
    for (const layer of this.viewer.shownLayers()) {
      const tiles = this.viewer.tiles;
      const mag = this.magOf(layer);
      const fine = this.visible(layer, mag).filter((want) => !tiles.has(want));
      const coarsest = layer.mags.length - 1;
      if (fine.length > 2 && coarsest > mag) {
        const coarse = this.visible(layer, coarsest);
        if (coarse.length <= 4) list.push(...coarse.filter((want) => !tiles.has(want)));
      }
      list.push(...fine);
    }
    return list;
  }

  /** Return the tiles of the next planes in the direction of the last scroll. */
  ahead() {
    const list = [];
    if (!this.viewer.direction || this.viewer.lastPlane !== this) return list;
    for (let step = 1; step <= AHEAD; step++) {
      for (const layer of this.viewer.shownLayers()) {
        list.push(...this.visible(layer, this.magOf(layer), step * this.viewer.direction));
      }
    }
    return list.filter((want) => !this.viewer.tiles.has(want));
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.width, this.height].map((n) => Math.round(n * ratio));
    if (!width || !height) return;
    for (const canvas of [this.canvas, this.layerCanvas]) {
      if (canvas.width !== width) canvas.width = width;
      if (canvas.height !== height) canvas.height = height;
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "black";
    context.fillRect(0, 0, width, height);
    for (const layer of this.viewer.shownLayers()) {
      this.drawLayer(layer, ratio);
      context.globalAlpha = this.viewer.stateOf(layer).opacity;
      context.drawImage(this.layerCanvas, 0, 0);
      context.globalAlpha = 1;
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawLines(context);
    this.drawBar(context);
  }

  drawLayer(layer, ratio) {
    const context = this.layerCanvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.layerCanvas.width, this.layerCanvas.height);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.imageSmoothingEnabled = false;
    const target = this.magOf(layer);
    let drawn = false;
    for (let mag = layer.mags.length - 1; mag >= target; mag--) {
      for (const want of this.visible(layer, mag)) drawn = this.drawTile(context, layer, want) || drawn;
    }
    const [was, position] = [this.shownAt[layer.number], this.viewer.position[this.across]];
    if (drawn || was === undefined) {
      if (drawn) this.shownAt[layer.number] = position;
    } else if (this.visible(layer, target).length) {
      // Until a tile of the new plane is there, the plane before it stays in sight.
      const shift = (want) => ({
        ...want, at: Math.floor(was / layer.mags[want.mag].factors[this.across]),
      });
      for (let mag = layer.mags.length - 1; mag >= target; mag--) {
        for (const want of this.visible(layer, mag)) this.drawTile(context, layer, shift(want));
      }
    }
  }

  drawTile(context, layer, want) {
    const tile = this.viewer.tiles.get(want);
    if (!tile) return false;
    const mag = layer.mags[want.mag];
    const [right, down] = [mag.factors[this.right], mag.factors[this.down]];
    const column = Math.max(want.column * TILE, mag.corner[this.right]);
    const row = Math.max(want.row * TILE, mag.corner[this.down]);
    const [x0, y0] = [this.left(column * right), this.top(row * down)];
    if (tile.error) {
      context.fillStyle = "#7a2020";
      context.fillRect(x0, y0, TILE * right * this.scales[0], TILE * down * this.scales[1]);
      return true;
    }
    const x1 = this.left((column + tile.columns) * right);
    const y1 = this.top((row + tile.rows) * down);
    context.clearRect(x0, y0, x1 - x0, y1 - y0);
    context.drawImage(canvasOf(tile, layer, this.viewer.stateOf(layer)), x0, y0, x1 - x0, y1 - y0);
    return true;
  }

  drawLines(context) {
    context.lineWidth = 1;
    context.globalAlpha = 0.6;
    for (const [axis, vertical] of [[this.right, true], [this.down, false]]) {
      context.strokeStyle = COLORS[axis];
      context.beginPath();
      const at = Math.round(vertical ? this.width / 2 : this.height / 2) + 0.5;
      const gap = 12;
      if (vertical) {
        context.moveTo(at, 0); context.lineTo(at, this.height / 2 - gap);
        context.moveTo(at, this.height / 2 + gap); context.lineTo(at, this.height);
      } else {
        context.moveTo(0, at); context.lineTo(this.width / 2 - gap, at);
        context.moveTo(this.width / 2 + gap, at); context.lineTo(this.width, at);
      }
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  drawBar(context) {
    const nm = this.viewer.nm ? this.viewer.nm[this.right] : 1;
    const perPixel = nm / this.scales[0];
    const most = perPixel * Math.min(this.width / 3, 160);
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [1, 2, 5, 10].filter((n) => n * power <= most).pop() * power;
    const pixels = length / perPixel;
    const [left, top] = [12, this.height - 14];
    context.fillStyle = "rgba(0,0,0,.55)";
    context.fillRect(left - 6, top - 20, Math.max(pixels, 46) + 12, 28);
    context.fillStyle = "white";
    context.fillRect(left, top, pixels, 3);
    context.font = "12px sans-serif";
    context.fillText(this.viewer.nm ? lengthText(length) : `${length} voxels`, left, top - 6);
    context.fillStyle = "rgba(0,0,0,.55)";
    context.fillRect(0, 0, 28, 20);
    context.fillStyle = "white";
    context.fillText(this.name, 7, 14);
  }

  // --- what a user does ---

  listen() {
    const canvas = this.canvas;
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = { x: event.clientX, y: event.clientY, position: [...this.viewer.position], moved: false };
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return this.viewer.hover(this, event.offsetX, event.offsetY);
      const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
      from.moved ||= Math.abs(dx) + Math.abs(dy) > 3;
      if (!from.moved) return undefined;
      const position = [...from.position];
      position[this.right] -= dx / this.scales[0];
      position[this.down] -= dy / this.scales[1];
      return this.viewer.moveTo(position);
    });
    const end = (event) => {
      if (from && !from.moved && event.type === "pointerup") {
        this.viewer.moveTo(this.positionAt(event.offsetX, event.offsetY));
      }
      from = null;
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => this.viewer.hover(null));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey || event.altKey || event.metaKey) {
        this.viewer.zoomBy(Math.exp(-event.deltaY / 300), this, event.offsetX, event.offsetY);
      } else if (event.deltaY) {
        this.viewer.scroll(this, Math.sign(event.deltaY) * (event.shiftKey ? 5 : 1));
      }
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.viewer.key(this, event));
  }
}

function lengthText(nm) {
  const [scale, unit] = [[1e9, "m"], [1e6, "mm"], [1e3, "µm"], [1, "nm"]].find(([s]) => nm >= s) || [1, "nm"];
  return `${Number((nm / scale).toPrecision(4))} ${unit}`;
}

// --- the viewer ---------------------------------------------------------------------------------

class Viewer {
  constructor(model, element) {
    this.model = model;
    this.element = element;
    const described = model.get("_described");
    this.layers = described.layers.map((layer, number) => ({
      ...layer, number, isIds: layer.category === "segmentation",
    }));
    this.box = described.box;
    this.nm = described.voxel_size_nm;
    const least = this.nm ? Math.min(...this.nm) : 1;
    this.ratios = this.nm ? this.nm.map((edge) => edge / least) : [1, 1, 1];
    this.tiles = new Tiles((message) => model.send(message), (tile) => this.arrived(tile));
    this.direction = 0;
    this.isDirty = false;
    this.planes = {};
    this.build();
    this.listen();
    this.redraw();
  }

  get position() { return this.model.get("position"); }
  get zoom() { return this.model.get("zoom"); }
  get states() { return this.model.get("layers"); }

  scale(axis) { return this.zoom * this.ratios[axis]; }
  stateOf(layer) { return this.states[layer.number] || {}; }
  shownLayers() { return this.layers.filter((layer) => this.stateOf(layer).visible); }
  shownPlanes() { return Object.values(this.planes).filter((plane) => plane.canvas.isConnected); }

  // --- building ---

  build() {
    const make = (tag, className, parent) => {
      const made = document.createElement(tag);
      made.className = className;
      parent.append(made);
      return made;
    };
    this.root = make("div", "wkv", this.element);
    this.grid = make("div", "wkv-planes", this.root);
    for (const name of Object.keys(PLANES)) this.planes[name] = new PlaneView(name, this);
    const panel = make("div", "wkv-panel", this.root);
    this.status = make("div", "wkv-status", this.root);
    this.sliders = AXES.map((axis, i) => {
      const row = make("label", "wkv-row", panel);
      const name = make("span", "wkv-axis", row);
      name.textContent = axis;
      name.style.color = COLORS[i];
      const slider = make("input", "wkv-slider", row);
      Object.assign(slider, { type: "range", min: this.box.corner[i], step: 1,
        max: Math.max(this.box.corner[i], this.box.corner[i] + this.box.size[i] - 1) });
      slider.dataset.axis = axis;
      const number = make("output", "", row);
      slider.addEventListener("input", () => {
        const position = [...this.position];
        const plane = Object.values(this.planes).find((each) => each.across === i);
        this.direction = Math.sign(slider.value - position[i]);
        this.lastPlane = plane;
        position[i] = Number(slider.value) + 0.5;
        this.moveTo(position);
      });
      return { slider, number };
    });
    this.buildLayers(make, panel);
    this.arrange();
  }

  buildLayers(make, panel) {
    this.controls = this.layers.map((layer) => {
      const row = make("div", "wkv-row", panel);
      const label = make("label", "wkv-name", row);
      const box = make("input", "", label);
      box.type = "checkbox";
      box.dataset.layer = layer.name;
      label.append(layer.name);
      box.addEventListener("change", () => this.setState(layer, { visible: box.checked }));
      const range = (key, title, low, high) => {
        const label = make("label", "wkv-help", row);
        label.textContent = title;
        const slider = make("input", "wkv-slider", label);
        Object.assign(slider, { type: "range", min: low, max: high, step: (high - low) / 255, title });
        slider.setAttribute("aria-label", `${title} of ${layer.name}`);
        slider.addEventListener("input", () => this.setState(layer, { [key]: Number(slider.value) }));
        return slider;
      };
      const sliders = { opacity: range("opacity", "opacity", 0, 1) };
      if (!layer.isIds) {
        sliders.low = range("low", "black", ...layer.range);
        sliders.high = range("high", "white", ...layer.range);
      }
      return { box, sliders };
    });
    const row = make("div", "wkv-row", panel);
    const choice = make("select", "", row);
    choice.setAttribute("aria-label", "planes");
    for (const name of ["three", ...Object.keys(PLANES)]) choice.append(new Option(name === "three" ? "three planes" : name, name));
    choice.addEventListener("change", () => this.set("planes", choice.value));
    this.choice = choice;
    const help = make("span", "wkv-help", row);
    help.textContent = "wheel, D F: planes · Ctrl+wheel, I O: zoom · drag: move · click: centre · 3: segments";
  }

  arrange() {
    const name = this.model.get("planes");
    const shown = name === "three" ? Object.keys(PLANES) : [name];
    this.grid.dataset.planes = name;
    this.grid.style.height = `${this.model.get("height")}px`;
    this.grid.replaceChildren(...shown.map((each) => this.planes[each].canvas));
    this.choice.value = name;
    this.redraw();
  }

  listen() {
    const redraw = () => this.redraw();
    this.handlers = [
      ["change:position", redraw], ["change:zoom", redraw], ["change:layers", redraw],
      ["change:planes", () => this.arrange()], ["change:height", () => this.arrange()],
      ["msg:custom", (message, buffers) => this.tiles.take(message, buffers)],
    ];
    for (const [event, handler] of this.handlers) this.model.on(event, handler);
    this.observer = new ResizeObserver(redraw);
    this.observer.observe(this.grid);
  }

  close() {
    for (const [event, handler] of this.handlers) this.model.off(event, handler);
    this.observer.disconnect();
    this.tiles.wanted = [];
    this.isClosed = true;
  }

  // --- what changes ---

  set(name, value) {
    this.model.set(name, value);
    if (this.saving) return;
    // Traits are told to the kernel a few times a second, or tiles would wait behind them.
    this.saving = setTimeout(() => { this.saving = null; if (!this.isClosed) this.model.save_changes(); }, 120);
  }

  setState(layer, changes) {
    this.set("layers", this.states.map((state, i) => (i === layer.number ? { ...state, ...changes } : state)));
    this.redraw();
  }

  moveTo(position) {
    const inside = position.map((at, i) => Math.min(Math.max(at, this.box.corner[i]), this.box.corner[i] + this.box.size[i] - 1e-6));
    this.set("position", inside);
    this.redraw();
  }

  scroll(plane, steps) {
    const layer = this.shownLayers()[0];
    const factor = layer ? layer.mags[plane.magOf(layer)].factors[plane.across] : 1;
    const position = [...this.position];
    position[plane.across] += steps * factor;
    this.direction = Math.sign(steps);
    this.lastPlane = plane;
    this.moveTo(position);
  }

  zoomBy(factor, plane, left, top) {
    const before = plane ? plane.positionAt(left, top) : null;
    const coarsest = this.layers.map((layer) => layer.mags[layer.mags.length - 1].factors);
    const least = 0.25 / Math.min(...coarsest.map((factors) => Math.max(...factors)));
    this.set("zoom", Math.min(64, Math.max(least, this.zoom * factor)));
    if (plane) {
      const after = plane.positionAt(left, top);
      this.moveTo(this.position.map((at, i) => at + before[i] - after[i]));
    }
    this.redraw();
  }

  key(plane, event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const many = event.shiftKey ? 5 : 1;
    const pan = (axis, sign) => {
      const position = [...this.position];
      position[axis] += (sign * many * 20) / this.scale(axis);
      this.moveTo(position);
    };
    const actions = {
      f: () => this.scroll(plane, many), d: () => this.scroll(plane, -many),
      i: () => this.zoomBy(1.25), o: () => this.zoomBy(0.8),
      arrowleft: () => pan(plane.right, -1), arrowright: () => pan(plane.right, 1),
      arrowup: () => pan(plane.down, -1), arrowdown: () => pan(plane.down, 1),
      3: () => this.layers.filter((layer) => layer.isIds).forEach(
        (layer) => this.setState(layer, { visible: !this.stateOf(layer).visible })),
    };
    const action = actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  // --- drawing ---

  arrived(tile) {
    // All was forgotten, and so is what was wrong.
    if (!("bytes" in tile)) this.error = "";
    if (tile.error) this.error = tile.error;
    this.redraw();
  }

  redraw() {
    if (this.isDirty || this.isClosed) return;
    this.isDirty = true;
    requestAnimationFrame(() => {
      this.isDirty = false;
      if (this.isClosed) return;
      this.ask();
      for (const plane of this.shownPlanes()) plane.draw();
      this.tell();
    });
  }

  /** Ask for the tiles of all planes in turn, and for those ahead if nothing else is missing. */
  ask() {
    const lists = this.shownPlanes().map((plane) => plane.wanted());
    const wanted = [];
    for (let i = 0; lists.some((list) => i < list.length); i++) {
      for (const list of lists) if (i < list.length) wanted.push(list[i]);
    }
    if (!wanted.length) wanted.push(...this.shownPlanes().flatMap((plane) => plane.ahead()));
    this.tiles.want(wanted);
  }

  tell() {
    this.sliders.forEach(({ slider, number }, i) => {
      slider.value = Math.floor(this.position[i]);
      number.textContent = Math.floor(this.position[i]);
    });
    this.controls.forEach(({ box, sliders }, i) => {
      const state = this.states[i] || {};
      box.checked = Boolean(state.visible);
      for (const [key, slider] of Object.entries(sliders)) slider.value = state[key];
    });
    if (this.hovered && this.hovered.plane.canvas.isConnected) this.hover(this.hovered.plane, this.hovered.left, this.hovered.top);
    else this.status.textContent = this.error || "";
  }

  /** Show position and values under the pointer. */
  hover(plane, left, top) {
    this.hovered = plane ? { plane, left, top } : null;
    if (!plane) {
      this.status.textContent = this.error || "";
      return;
    }
    const position = plane.positionAt(left, top);
    const voxel = position.map(Math.floor);
    const parts = [`(${voxel.join(", ")})`];
    if (this.nm) parts.push(`${position.map((at, i) => Math.round(at * this.nm[i])).join(", ")} nm`);
    for (const layer of this.shownLayers()) {
      const value = this.valueAt(plane, layer, position);
      if (value !== null) parts.push(`${layer.name} ${value}`);
    }
    this.status.textContent = parts.join("   ") + (this.error ? `   ${this.error}` : "");
  }

  valueAt(plane, layer, position) {
    for (let mag = plane.magOf(layer); mag < layer.mags.length; mag++) {
      const entry = layer.mags[mag];
      const [at, u, v] = [plane.across, plane.right, plane.down].map((axis) => Math.floor(position[axis] / entry.factors[axis]));
      const [column, row] = [Math.floor(u / TILE), Math.floor(v / TILE)];
      const tile = this.tiles.get({ layer: layer.number, mag, axis: AXES[plane.across], at, column, row });
      if (!tile || tile.error) continue;
      const x = u - Math.max(column * TILE, entry.corner[plane.right]);
      const y = v - Math.max(row * TILE, entry.corner[plane.down]);
      if (x < 0 || y < 0 || x >= tile.columns || y >= tile.rows) return null;
      const pixels = tile.rows * tile.columns;
      const channels = layer.isIds ? 1 : tile.channels;
      return Array.from({ length: channels }, (_, c) => valueText(tile, c * pixels + y * tile.columns + x)).join(", ");
    }
    return null;
  }
}

function hideStatic(key) {
  // The picture beside the viewer is for pages without a kernel.
  const style = document.createElement("style");
  style.textContent = `[data-wkdask-viewer="${key}"]{display:none}`;
  document.head.append(style);
}

export default {
  render({ model, el }) {
    const viewer = new Viewer(model, el);
    el.wkdaskViewer = viewer;
    hideStatic(model.get("_key"));
    return () => viewer.close();
  },
};
