"use strict";
// The moving parts of a report. Numbers come from the page itself; text is only ever set as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("values").textContent);
  const [height, width, channels] = data.shape;
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") made.className = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  // ------------------------------------------------------------------------------------------------ numbers, colours

  const short = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1000 || size < 0.001 ? value.toExponential(1) : value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3);
  };
  const cell = (value) => (Math.abs(value) < 0.005 ? "0" : value.toFixed(Math.abs(value) < 10 ? 2 : 1)).replace("-", "\u2212");
  const signed = (value) => short(value).replace("-", "\u2212");
  const percent = (value) => (100 * value).toFixed(1) + "\u2009%";
  const largest = (values) => values.indexOf(Math.max(...values));
  const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

  function table256(stops) {
    const rgb = stops.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
    return Array.from({ length: 256 }, (_, level) => {
      const place = (level / 255) * (rgb.length - 1);
      const low = Math.min(Math.floor(place), rgb.length - 2);
      return rgb[low].map((start, c) => Math.round(start + (place - low) * (rgb[low + 1][c] - start)));
    });
  }
  const sequential = table256(data.colors.sequential);
  const diverging = table256(data.colors.diverging);
  const gray = Array.from({ length: 256 }, (_, level) => [level, level, level]);
  const css = (rgb) => `rgb(${rgb.join(" ")})`;
  const ink = (rgb) => (0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] > 140 ? "#14181f" : "#fff");
  const level = (value, limit) => Math.max(0, Math.min(255, Math.round(127.5 + (127.5 * value) / (limit || 1))));

  function paint(canvas, columns, rows, color) {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    for (let at = 0; at < columns * rows; at++) {
      const [r, g, b, a = 255] = color(at);
      pixels.data.set([r, g, b, a], 4 * at);
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  // ------------------------------------------------------------------------------------------------ bytes of an image

  const decoded = new Map();
  async function bytesOf(number) {
    if (!decoded.has(number)) {
      const packed = Uint8Array.from(atob(data.images[number].bytes), (letter) => letter.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
      decoded.set(number, new Uint8Array(await new Response(stream).arrayBuffer()));
    }
    return decoded.get(number);
  }

  let offset = height * width * channels;
  for (const step of data.steps) {
    step.offset = offset;
    offset += step.height * step.width * step.channels.length;
  }
  const camOffset = offset;

  const valueAt = (step, byte) => (step.signed ? ((byte - 128) / 127) * step.limit : (byte / 255) * step.limit);
  // Brighter than in proportion, so that what is faint can be seen; the legend is drawn with the same colours.
  const bent = (share) => Math.sign(share) * Math.abs(share) ** 0.6;
  const brightSequential = sequential.map((_, at) => sequential[Math.round(255 * bent(at / 255))]);
  const brightDiverging = diverging.map((_, at) => diverging[Math.round(127.5 + 127.5 * bent((at - 127.5) / 127.5))]);
  const colorsOf = (step) => (step.signed ? brightDiverging : brightSequential);

  function paintMap(canvas, step, bytes, map) {
    const start = step.offset + map * step.height * step.width;
    const colors = colorsOf(step);
    return paint(canvas, step.width, step.height, (at) => colors[bytes[start + at]]);
  }

  function paintImage(canvas, bytes) {
    const mean = (at) => {
      let sum = 0;
      for (let c = 0; c < channels; c++) sum += bytes[at * channels + c];
      return Math.round(sum / channels);
    };
    return paint(canvas, width, height, (at) =>
      channels === 3 ? [bytes[3 * at], bytes[3 * at + 1], bytes[3 * at + 2]] : gray[mean(at)]);
  }

  // ------------------------------------------------------------------------------------------------------- keyboard

  // Buttons of which one is chosen and one can be reached by tab: arrows, Home and End move among them.
  function roving(group, buttons, choose) {
    const inRow = () => buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length || 1;
    group.onkeydown = (event) => {
      const at = buttons.indexOf(document.activeElement);
      if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
      const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -inRow(), ArrowDown: inRow() };
      let to;
      if (event.key in moves) to = at + moves[event.key];
      else if (event.key === "Home") to = 0;
      else if (event.key === "End") to = buttons.length - 1;
      else return;
      event.preventDefault();
      if (to < 0 || to >= buttons.length) return;
      buttons[to].focus({ preventScroll: true });
      buttons[to].scrollIntoView({ block: "nearest", inline: "nearest" });
      choose(to);
    };
    buttons.forEach((button, at) => button.addEventListener("click", () => choose(at)));
  }

  function markChosen(buttons, chosen, attribute) {
    buttons.forEach((button, at) => {
      button.setAttribute(attribute, String(at === chosen));
      button.tabIndex = at === chosen ? 0 : -1;
    });
  }

  // ---------------------------------------------------------------------------------------------------- the strip

  const MOST_BARS = 20;
  const state = { image: 0, step: 0, map: 0, filter: 0, row: 0, column: 0 };

  function bars(values, chosen, limit) {
    const order = values.map((_, k) => k).sort((a, b) => values[b] - values[a]).slice(0, limit);
    const image = data.images[state.image];
    return element("ol", { class: "bars" }, ...order.map((k) => {
      const right = k === image.y;
      const name = element("span", { class: "name" }, data.classes[k]);
      if (right) name.append(element("em", {}, "right class"));
      return element("li", { class: (k === chosen ? "top " : "") + (right ? "right" : "") },
        name,
        element("span", { class: "bar", style: `--p:${values[k].toFixed(4)}`, "aria-hidden": "true" }),
        element("span", { class: "n" }, percent(values[k])));
    }));
  }

  function vectorBars(step, bytes) {
    const n = step.width;
    const canvas = element("canvas", { class: "vector" });
    const rows = 48;
    const zero = step.signed ? rows / 2 : rows;
    const tops = Array.from({ length: n }, (_, at) =>
      zero - (valueAt(step, bytes[step.offset + at]) / step.limit) * (step.signed ? rows / 2 : rows));
    return paint(canvas, n, rows, (at) => {
      const [x, y] = [at % n, Math.floor(at / n) + 0.5];
      const inside = tops[x] < zero ? y > tops[x] && y < zero : y < tops[x] && y > zero;
      return inside ? (tops[x] < zero ? diverging[222] : diverging[44]) : [0, 0, 0, 0];
    });
  }

  const sizeText = (step) => (step.shape.length === 3
    ? `${plural(step.shape[2], "map")} of ${step.shape[0]}\u00a0×\u00a0${step.shape[1]}`
    : plural(step.shape[0], "number"));

  function drawStrip(bytes) {
    const image = data.images[state.image];
    const cards = [element("figure", {}, paintImage(element("canvas", { class: "image" }), bytes),
      element("figcaption", {}, element("b", {}, "image"), `${height} × ${width}${channels > 1 ? ` × ${channels}` : ""}`))];
    data.steps.forEach((step, at) => {
      const next = data.steps[at + 1];
      if (next && String(next.shape) === String(step.shape)) return;
      const picture = step.shape.length === 3
        ? element("div", { class: "mosaic" }, ...step.channels.slice(0, 9).map((_, map) =>
          paintMap(element("canvas"), step, bytes, map)))
        : vectorBars(step, bytes);
      cards.push(element("figure", {}, picture, element("figcaption", {}, element("b", {}, step.kind), sizeText(step))));
    });
    cards.push(element("figure", { class: "result" }, bars(image.proba, largest(image.proba), 5)));
    const strip = $(".strip");
    strip.replaceChildren(...cards.flatMap((card, at) =>
      (at ? [element("span", { class: "arrow", "aria-hidden": "true" }, "→"), card] : [card])));
    const said = largest(image.proba);
    const verdict = [`Image ${image.n} is `, element("b", {}, data.classes[image.y]), ". The network says ",
      element("b", {}, data.classes[said]), ` (${percent(image.proba[said])}), which is `,
      element("b", {}, said === image.y ? "right" : "wrong"), "."];
    if (image.predicted !== said) verdict.push(` The mean over its views says: ${data.classes[image.predicted]}.`);
    $(".verdict").replaceChildren(...verdict);
  }

  // ------------------------------------------------------------------------------------------------------ the steps

  const TEXTS = {
    Conv2D: "Each filter slides over what came before, and answers strongly where it finds its pattern.",
    ReLU: "What is below zero becomes zero. What remains is where a pattern was found.",
    LeakyReLU: "What is below zero is made small.",
    ELU: "What is below zero is bent towards a small negative number.",
    SiLU: "What is below zero is brought smoothly to zero.",
    Tanh: "Values are bent into the range from −1 to 1.",
    BatchNorm: "Each map is shifted and scaled by what was learnt of its mean and spread.",
    MaxPool2D: "Of each window the largest value goes on: the maps shrink, and small shifts matter less.",
    AvgPool2D: "Of each window the mean goes on: the maps shrink.",
    AdaptiveMaxPool2D: "Of each window the largest value goes on; the windows are as large as the image needs.",
    GlobalAvgPool2D: "Of each map only the mean goes on.",
    Dense: "Each unit adds up all that came before it, each value with a weight of its own.",
    Residual: "A chain of layers whose result is added to what went in.",
  };
  const steps = [
    { label: "Image", draw: drawInput },
    ...data.steps.map((step) => ({
      label: step.kind, place: step.place, size: step.shape.join("×"),
      draw: (panel, bytes) => (step.shape.length === 3 ? drawMaps : drawVector)(panel, bytes, step),
    })),
    { label: "Dense", place: "last", size: String(data.classes.length), draw: drawLogits },
    { label: "Softmax", size: String(data.classes.length), draw: drawSoftmax },
  ];
  if (data.cam) steps.push({ label: "Where it looks", size: "Grad-CAM", draw: drawCam });

  function title(panel, text, note, explanation) {
    panel.append(element("h3", {}, text, element("small", {}, note)), element("p", {}, explanation));
  }

  function legend(step) {
    const colors = colorsOf(step);
    const stops = Array.from({ length: 18 }, (_, at) => css(colors[15 * at])).join(",");
    return element("div", { class: "legend" }, element("span", {}, step.signed ? signed(-step.limit) : "0"),
      element("i", { style: `background:linear-gradient(90deg,${stops})` }), element("span", {}, signed(step.limit)));
  }

  function drawInput(panel, bytes) {
    title(panel, "Image", `${height} × ${width} × ${channels}`,
      "What the network gets. Before the first layer each pixel is shifted and scaled: minus "
      + `${data.scaling.offset.map(short).join(", ")}, divided by ${data.scaling.scale.map(short).join(", ")}.`);
    panel.append(element("div", { class: "large" }, paintImage(element("canvas", { class: "image" }), bytes)));
  }

  function drawMaps(panel, bytes, step) {
    const n = step.channels.length;
    state.map = Math.min(state.map, n - 1);
    const note = n < step.shape[2] ? `${sizeText(step)}, the ${n} strongest shown` : sizeText(step);
    title(panel, `${step.kind}`, note, TEXTS[step.kind] || "");
    const large = element("canvas", { class: "image" });
    const marker = element("span", { class: "marker", "aria-hidden": "true" });
    const output = element("output", { class: "readout" });
    const viewer = element("div", {
      class: "viewer", tabindex: "0", role: "group", "aria-label": "The chosen map, large. Arrow keys read its numbers.",
    }, large, marker);
    let at = [Math.floor(step.height / 2), Math.floor(step.width / 2)];
    const buttons = step.channels.map((channel, map) => element("button", {
      type: "button", role: "radio", "aria-label": `map ${channel}`, title: `map ${channel}`,
    }, paintMap(element("canvas"), step, bytes, map), element("span", { "aria-hidden": "true" }, String(channel))));
    const group = element("div", { class: "maps", role: "radiogroup", "aria-label": "Maps" }, ...buttons);
    const read = () => {
      const byte = bytes[step.offset + state.map * step.height * step.width + at[0] * step.width + at[1]];
      output.textContent = `map ${step.channels[state.map]}, row ${at[0]}, column ${at[1]}: ${signed(valueAt(step, byte))}`;
      marker.style.cssText = `left:${(100 * at[1]) / step.width}%;top:${(100 * at[0]) / step.height}%;`
        + `width:${100 / step.width}%;height:${100 / step.height}%`;
    };
    const choose = (map) => {
      state.map = map;
      markChosen(buttons, map, "aria-checked");
      paintMap(large, step, bytes, map);
      read();
    };
    const moveTo = (row, column) => {
      at = [Math.max(0, Math.min(step.height - 1, row)), Math.max(0, Math.min(step.width - 1, column))];
      read();
    };
    onCells(viewer, large, step.height, step.width, () => at, moveTo);
    roving(group, buttons, choose);
    panel.append(element("div", { class: "two" }, element("div", {}, group),
      element("div", { class: "large" }, viewer, legend(step), output)));
    choose(state.map);
  }

  // Mouse and arrow keys over the cells of a canvas.
  function onCells(box, canvas, rows, columns, where, moveTo) {
    box.addEventListener("pointermove", (event) => {
      const frame = canvas.getBoundingClientRect();
      moveTo(Math.floor(((event.clientY - frame.top) / frame.height) * rows),
        Math.floor(((event.clientX - frame.left) / frame.width) * columns));
    });
    box.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      moveTo(where()[0] + move[0], where()[1] + move[1]);
    });
  }

  function drawVector(panel, bytes, step) {
    const shown = step.width < step.shape[0] ? `, the first ${step.width} shown` : "";
    title(panel, step.kind, sizeText(step) + shown, TEXTS[step.kind] || "");
    panel.append(vectorBars(step, bytes), element("p", { class: "hint" },
      `The largest bar is ${signed(step.limit)} long: that of the strongest unit among all images here.`));
  }

  function drawLogits(panel) {
    const image = data.images[state.image];
    title(panel, "Dense", plural(data.classes.length, "score"),
      "One score for each class: the larger, the more speaks for it. They have no fixed range.");
    const limit = Math.max(...image.logits.map(Math.abs)) || 1;
    let shown = image.logits.map((_, k) => k);
    if (shown.length > MOST_BARS) shown = shown.sort((a, b) => image.logits[b] - image.logits[a]).slice(0, MOST_BARS);
    panel.append(element("ol", { class: "bars scores" }, ...shown.map((k) => {
      const value = image.logits[k];
      const style = `--p:${(Math.abs(value) / limit).toFixed(4)}`;
      return element("li", { class: k === image.y ? "right" : "" },
        element("span", { class: "name" }, data.classes[k]),
        element("span", { class: `bar${value < 0 ? " negative" : ""}`, style, "aria-hidden": "true" }),
        element("span", { class: "n" }, signed(value)));
    })));
  }

  function drawSoftmax(panel) {
    const image = data.images[state.image];
    title(panel, "Softmax", plural(data.classes.length, "probability").replace("ys", "ies"),
      "Each score becomes e to its power, divided by the sum of all: numbers from 0 to 1 that add up to 1.");
    panel.append(bars(image.proba, largest(image.proba), MOST_BARS));
  }

  function drawCam(panel, bytes) {
    const image = data.images[state.image];
    const [rows, columns] = data.cam;
    title(panel, "Where it looks", "Grad-CAM",
      "Which parts of the last maps speak for a class: bright ones do. Enlarged to the image.");
    const views = [[0, "for", data.classes[image.predicted]]];
    if (image.y !== image.predicted) views.push([1, "for the right class,", data.classes[image.y]]);
    panel.append(element("div", { class: "cams" },
      element("figure", {}, paintImage(element("canvas", { class: "image" }), bytes), element("figcaption", {}, "image")),
      ...views.map(([which, text, name]) => {
        const start = camOffset + which * rows * columns;
        const heat = paint(element("canvas", { class: "heat" }), columns, rows, (at) =>
          [...sequential[bytes[start + at]], 70 + Math.round(0.6 * bytes[start + at])]);
        return element("figure", {}, element("div", { class: "overlay" },
          paintImage(element("canvas", { class: "image" }), bytes), heat),
        element("figcaption", {}, `${text} `, element("b", {}, name)));
      })));
  }

  const tabs = steps.map((step, at) => element("button", {
    type: "button", role: "tab", id: `step-${at}`, "aria-controls": "panel",
  }, element("span", {}, step.label), element("small", {}, step.size || "")));
  $(".steps").append(...tabs);
  roving($(".steps"), tabs, (at) => { state.step = at; drawStep(); });
  // A list that stands or lies: both pairs of arrows go through it.
  $(".steps").addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const to = tabs.indexOf(document.activeElement) + (move || 0);
    if (!move || !tabs[to]) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    tabs[to].focus({ preventScroll: true });
    tabs[to].scrollIntoView({ block: "nearest", inline: "nearest" });
    state.step = to;
    drawStep();
  }, true);

  async function drawStep() {
    const number = state.image;
    const bytes = await bytesOf(number);
    if (number !== state.image) return;
    markChosen(tabs, state.step, "aria-selected");
    const panel = $("#panel");
    panel.setAttribute("aria-labelledby", `step-${state.step}`);
    panel.replaceChildren();
    steps[state.step].draw(panel, bytes);
  }

  // --------------------------------------------------------------------------------------------------- the convolution

  const conv = data.convolution;
  const near = $(".near");

  const AFTER = {
    BatchNorm: (v, after, k) => [v * after.scale[k] + after.shift[k], "normalised"],
    relu: (v) => [Math.max(v, 0), "ReLU"],
    leaky_relu: (v, after) => [v > 0 ? v : after.alpha * v, "leaky ReLU"],
    elu: (v, after) => [v > 0 ? v : after.alpha * Math.expm1(v), "ELU"],
    silu: (v) => [v / (1 + Math.exp(-v)), "SiLU"],
    tanh: (v) => [Math.tanh(v), "tanh"],
  };

  function pixel(bytes, row, column, channel) {
    if (row < 0 || row >= height || column < 0 || column >= width) return 0;
    const value = data.pixels.low + data.pixels.step * bytes[(row * width + column) * channels + channel];
    return (value - data.scaling.offset[channel]) / data.scaling.scale[channel];
  }

  // The window's pixels [channel][r][s] for the output at (row, column).
  function patch(bytes, filter, row, column) {
    const first = Math.floor(filter / conv.per_group) * conv.channels;
    return Array.from({ length: conv.channels }, (_, c) => Array.from({ length: conv.window[0] }, (_, r) =>
      Array.from({ length: conv.window[1] }, (_, s) => pixel(bytes,
        row * conv.stride[0] - conv.padding[0] + r * conv.dilation[0],
        column * conv.stride[1] - conv.padding[1] + s * conv.dilation[1], first + c))));
  }

  const weightAt = (filter, c, r, s) => conv.weight[filter][(r * conv.window[1] + s) * conv.channels + c];

  function convolve(bytes, filter, row, column) {
    let sum = 0;
    patch(bytes, filter, row, column).forEach((plane, c) => plane.forEach((line, r) => line.forEach((value, s) => {
      sum += value * weightAt(filter, c, r, s);
    })));
    return sum;
  }

  const answers = new Map(); // the whole map of a filter, by image and filter
  function answer(bytes) {
    const key = `${state.image} ${state.filter}`;
    if (!answers.has(key)) {
      const [rows, columns] = conv.output;
      const values = new Float64Array(rows * columns);
      for (let at = 0; at < values.length; at++) {
        values[at] = convolve(bytes, state.filter, Math.floor(at / columns), at % columns) + conv.bias[state.filter];
      }
      answers.set(key, values);
    }
    return answers.get(key);
  }

  function grid(values, limit, name, large) {
    const rows = values.map((line) => element("tr", {}, ...line.map((value) => {
      const color = diverging[level(value, limit)];
      return element("td", { style: `background:${css(color)};color:${ink(color)}` }, large ? "" : cell(value));
    })));
    return element("figure", { class: "grid" }, element("table", { "aria-label": name }, element("tbody", {}, ...rows)),
      element("figcaption", {}, name));
  }

  function startNear() {
    if (!conv) {
      near.append(element("p", {}, "This network does not begin with a convolution."));
      return () => {};
    }
    [state.row, state.column] = conv.output.map((n) => Math.floor(n / 2));
    const select = element("select", { id: "filter" }, ...conv.weight.map((_, k) => element("option", { value: k }, String(k))));
    const [image, result] = [element("canvas", { class: "image" }), element("canvas", { class: "image" })];
    const [frame, dot] = [element("span", { class: "marker" }), element("span", { class: "marker" })];
    const source = element("div", {
      class: "viewer", tabindex: "0", role: "group",
      "aria-label": "The image with the window on it. Arrow keys move the window.",
    }, image, frame);
    const target = element("div", { class: "viewer" }, result, dot);
    const working = element("div", { class: "working" });
    const sum = element("p", { class: "sum", "aria-live": "polite" });
    near.append(
      element("p", {}, `Layer ${conv.place}: a window of ${conv.window.join(" × ")} pixels lies on the image. Each pixel is`
        + " multiplied by the filter's weight for its place, and all is added up: one pixel of the filter's map. These are the"
        + " model's own numbers; pixels are scaled as the network sees them."),
      element("div", { class: "choice" }, element("label", { for: "filter" }, "Filter "), select),
      element("div", { class: "near-views" },
        element("figure", {}, source, element("figcaption", {}, "Image. Point at it, or move the window by arrow keys.")),
        element("figure", {}, target, element("figcaption", {}, "What the filter answers")),
        element("div", { class: "right" }, working, sum)));

    async function draw() {
      const number = state.image;
      const bytes = await bytesOf(number);
      if (number !== state.image) return;
      const [rows, columns] = conv.output;
      const values = answer(bytes);
      const limit = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
      paintImage(image, bytes);
      paint(result, columns, rows, (at) => diverging[level(values[at], limit)]);
      const span = conv.window.map((n, side) => (n - 1) * conv.dilation[side] + 1);
      const [top, left] = [state.row * conv.stride[0] - conv.padding[0], state.column * conv.stride[1] - conv.padding[1]];
      const place = (marker, y, x, high, wide, of) => {
        marker.style.cssText = `top:${(100 * y) / of[0]}%;left:${(100 * x) / of[1]}%;`
          + `height:${(100 * high) / of[0]}%;width:${(100 * wide) / of[1]}%`;
      };
      place(frame, top, left, span[0], span[1], [height, width]);
      place(dot, state.row, state.column, 1, 1, [rows, columns]);
      const pixels = patch(bytes, state.filter, state.row, state.column);
      const weights = pixels.map((plane, c) => plane.map((line, r) => line.map((_, s) => weightAt(state.filter, c, r, s))));
      const large = conv.window[0] * conv.window[1] > 25;
      const peak = (planes) => Math.max(...planes.flat(2).map(Math.abs)) || 1;
      const names = channels === 3 && conv.channels === 3 ? ["red", "green", "blue"] : null;
      working.replaceChildren(...pixels.slice(0, 3).map((plane, c) => {
        const of = names ? `, ${names[c]}` : conv.channels > 1 ? `, channel ${c}` : "";
        const products = plane.map((line, r) => line.map((value, s) => value * weights[c][r][s]));
        return element("div", { class: "row" },
          grid(plane, peak(pixels), `pixels${of}`, large), element("span", {}, "×"),
          grid(weights[c], peak(weights), `weights${of}`, large), element("span", {}, "="),
          grid(products, peak(pixels) * peak(weights), `products${of}`, large));
      }));
      if (conv.channels > 3) working.append(element("p", { class: "hint" }, `And ${conv.channels - 3} channels more.`));
      const total = convolve(bytes, state.filter, state.row, state.column);
      let value = total + conv.bias[state.filter];
      const parts = [`Row ${state.row}, column ${state.column}: sum `, element("b", {}, signed(total)), " + bias ",
        element("b", {}, signed(conv.bias[state.filter])), " = ", element("b", {}, signed(value))];
      for (const after of conv.after) {
        const [next, name] = AFTER[after.kind](value, after, state.filter);
        parts.push(` → ${name} → `, element("b", {}, signed(next)));
        value = next;
      }
      sum.replaceChildren(...parts);
      sum.dataset.value = total + conv.bias[state.filter];
    }

    const moveTo = (row, column) => {
      state.row = Math.max(0, Math.min(conv.output[0] - 1, row));
      state.column = Math.max(0, Math.min(conv.output[1] - 1, column));
      draw();
    };
    onCells(source, image, conv.output[0], conv.output[1], () => [state.row, state.column], moveTo);
    onCells(target, result, conv.output[0], conv.output[1], () => [state.row, state.column], moveTo);
    select.addEventListener("change", () => { state.filter = Number(select.value); draw(); });
    return draw;
  }
  const drawNear = startNear();

  // ---------------------------------------------------------------------------------------------- choosing an image

  const choices = $$(".picker button");
  async function chooseImage(number) {
    state.image = number;
    markChosen(choices, number, "aria-checked");
    const bytes = await bytesOf(number);
    if (number !== state.image) return;
    drawStrip(bytes);
    await Promise.all([drawStep(), drawNear()]);
    document.body.dataset.shown = number;
  }
  roving($(".picker"), choices, chooseImage);
  for (const button of $$(".mistake")) {
    button.addEventListener("click", async () => {
      await chooseImage(Number(button.dataset.image));
      $("#far").scrollIntoView({ block: "start" });
      choices[state.image].focus({ preventScroll: true });
    });
  }

  for (const button of $$(".theme button")) {
    button.addEventListener("click", () => {
      document.documentElement.dataset.theme = button.dataset.theme;
      for (const other of $$(".theme button")) other.setAttribute("aria-pressed", String(other === button));
    });
  }

  chooseImage(0);
})();
