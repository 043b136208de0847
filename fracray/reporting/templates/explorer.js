"use strict";
// All trials as a scatter with axes of the reader's choice. The table of trials is its alternative, and is sorted here.
(() => {
  const source = document.getElementById("trials-data"), box = document.getElementById("explorer");
  if (!source || !box) return;
  const data = JSON.parse(source.textContent), count = data.names.length;
  const columns = new Map(data.columns.map((column) => [column.key, column]));
  const LEFT = 74, RIGHT = 14, TOP = 14, BOTTOM = 44;
  let W = 760, H = 400;  // as large as there is room for, so that words keep their size
  const make = (name, attributes, parent, words) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (words !== undefined) node.textContent = words;
    parent.append(node);
    return node;
  };
  const short = (value) => value === null ? "none"
    : Number.isInteger(value) ? String(value)
    : Math.abs(value) < 9e-5 || Math.abs(value) >= 1e5 ? value.toExponential(1).replace('.0e', 'e') : String(Number(value.toPrecision(4)));
  const told = (column, at) => column.values[at] === null ? "none"
    : column.names ? column.names[column.values[at]] : short(column.values[at]);

  // ---- the choices
  const choices = document.createElement("div");
  choices.className = "choices";
  const choose = (words, chosen, more) => {
    const label = document.createElement("label"), select = document.createElement("select");
    label.append(words + " ", select);
    for (const key of [...more, ...columns.keys()]) select.append(new Option(key, key, false, key === chosen));
    select.addEventListener("change", draw);
    choices.append(label);
    return select;
  };
  const xChoice = choose("across", data.x, []), yChoice = choose("up", data.y, []), cChoice = choose("colour", "state", ["state"]);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "plot explorer");
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-roledescription", "scatter of trials");
  svg.setAttribute("aria-describedby", "trial-said");
  const legend = document.createElement("p"), said = document.createElement("p");
  legend.className = "soft";
  said.id = "trial-said";
  said.className = "said";
  said.setAttribute("aria-live", "polite");
  box.append(choices, svg, legend, said);
  box.hidden = false;

  // ---- the axes
  const scale = (column) => {
    const known = column.values.filter((value) => value !== null && (!column.log || value > 0)).sort((a, b) => a - b);
    if (column.names) return {ticks: column.names.map((name, at) => [at, name]), place: (v) => (v + 0.5) / column.names.length};
    let low = known.length ? known[0] : 0, high = known.length ? known[known.length - 1] : 1;
    if (known.length >= 8 && !column.log) {  // a few values far away do not stretch the axis: they stand at its edge
      const a = known[known.length >> 2], b = known[(3 * known.length) >> 2], reach = 4 * (b - a);
      if (reach > 0) {
        low = known.find((value) => value >= a - reach);
        high = known.findLast((value) => value <= b + reach);
        const best = data.best < 0 ? null : column.values[data.best];
        if (best !== null) { low = Math.min(low, best); high = Math.max(high, best); }
      }
    }
    if (low === high) { low -= Math.abs(low) / 20 || 0.5; high += Math.abs(high) / 20 || 0.5; if (column.log && low <= 0) low = high / 10; }
    const at = column.log ? Math.log : (v) => v, room = (at(high) - at(low)) * 0.04;
    const from = at(low) - room, to = at(high) + room;
    const ticks = [];
    if (column.log) {
      const powers = Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low));
      const factors = powers > 2 ? [1] : powers > 1 ? [1, 3] : [1, 2, 3, 5];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += Math.ceil(powers / 8))
        for (const factor of factors) ticks.push(factor * 10 ** power);
    } else {
      const raw = (high - low) / 6, power = 10 ** Math.floor(Math.log10(raw));
      const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
      for (let k = Math.ceil((low - (high - low) * 0.04) / step); k * step <= high + (high - low) * 0.04; k++) ticks.push(k * step);
    }
    return {
      ticks: ticks.map((v) => [v, short(Number(v.toPrecision(6)))]).filter(([v]) => at(v) >= from && at(v) <= to),
      place: (v) => Math.min(1, Math.max(0, (at(v) - from) / (to - from))),
    };
  };

  // ---- the chart
  let points = [], chosen = -1, ring = null;
  const kinds = {"done": "first", "stopped early": "faint"};
  const tint = () => {
    if (cChoice.value === "state") return {of: (at) => ({class: kinds[data.states[at]] || "second"}), words: null};
    const column = columns.get(cChoice.value);
    const ranks = [...new Set(column.values.filter((value) => value !== null))].sort((a, b) => a - b);
    const share = new Map(ranks.map((value, at) => [value, ranks.length > 1 ? at / (ranks.length - 1) : 0.5]));
    return {
      of: (at) => column.values[at] === null ? {class: "faint"}
        : {style: `stroke: color-mix(in oklab, var(--frac) ${Math.round(100 * share.get(column.values[at]))}%, var(--bar))`},
      words: ranks.length ? `${column.key}: from blue, ${column.names ? column.names[ranks[0]] : short(ranks[0])}, to orange, `
        + `${column.names ? column.names[ranks.at(-1)] : short(ranks.at(-1))}, by rank` : "",
    };
  };
  function draw() {
    W = Math.max(330, Math.min(960, box.clientWidth || 760));
    H = W < 500 ? 300 : 400;
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.replaceChildren();
    const xs = columns.get(xChoice.value), ys = columns.get(yChoice.value), x = scale(xs), y = scale(ys), colour = tint();
    const across = (v) => LEFT + x.place(v) * (W - LEFT - RIGHT), up = (v) => H - BOTTOM - y.place(v) * (H - TOP - BOTTOM);
    const clip = (words) => words.length > 11 ? words.slice(0, 10) + "…" : words;
    for (const [value, words] of y.ticks) {
      make("path", {class: "grid", d: `M${LEFT} ${up(value).toFixed(1)}H${W - RIGHT}`}, svg);
      make("text", {x: LEFT - 7, y: up(value) + 5, "text-anchor": "end"}, svg, clip(words));
    }
    let free = -Infinity;
    for (const [value, words] of x.ticks) {
      make("path", {class: "tick", d: `M${across(value).toFixed(1)} ${H - BOTTOM}v5`}, svg);
      const half = words.length * 3.6;
      if (across(value) - half < free) continue;
      free = across(value) + half + 6;
      make("text", {x: Math.min(across(value), W - half), y: H - BOTTOM + 19, "text-anchor": "middle"}, svg, words);
    }
    make("path", {class: "frame", d: `M${LEFT} ${TOP}V${H - BOTTOM}H${W - RIGHT}`}, svg);
    make("text", {class: "words", x: (LEFT + W - RIGHT) / 2, y: H - 6, "text-anchor": "middle"}, svg, xs.key);
    points = [];
    const jitter = (column, at, width) => column.names ? (((at * 7) % 11) - 5) / 11 * 0.6 * width / column.names.length : 0;
    for (let at = count - 1; at >= 0; at--) {
      if (xs.values[at] === null || ys.values[at] === null || (xs.log && xs.values[at] <= 0)) continue;
      const left = across(xs.values[at]) + jitter(xs, at, W - LEFT - RIGHT), top = up(ys.values[at]) + jitter(ys, at, H - TOP - BOTTOM);
      points.push({at, left, top});
      const {class: kind = "", style = ""} = colour.of(at);
      make("path", {class: `dots ${kind}`, style, d: `M${left.toFixed(1)} ${top.toFixed(1)}h0`}, svg);
    }
    points.sort((a, b) => a.left - b.left || a.top - b.top);
    ring = make("circle", {class: "ring", r: 9, cx: -99, cy: -99}, svg);
    legend.textContent = `${points.length} of ${count} trials. Up: ${ys.key}; across: ${xs.key}. Colour: `
      + (colour.words ?? "blue, all epochs; gray, stopped early; orange, other states") + ".";
    svg.setAttribute("aria-label", `${ys.key} over ${xs.key} of ${points.length} trials`);
    show(chosen >= 0 ? chosen : data.best, false);
  }
  function show(at, scroll) {
    chosen = at;
    for (const row of document.querySelectorAll("#trials tr.chosen")) row.classList.remove("chosen");
    if (at < 0) return;
    const point = points.find((one) => one.at === at);
    ring.setAttribute("cx", point ? point.left : -99);
    ring.setAttribute("cy", point ? point.top : -99);
    said.textContent = `${data.names[at]}${at === data.best ? " (best)" : ""}, ${data.states[at]}: `
      + data.columns.slice(1).map((column) => `${column.key} ${told(column, at)}`).join(", ");
    const row = rows[at];
    row.classList.add("chosen");
    const pane = row.closest(".scroll");
    if (scroll && pane) pane.scrollTop = row.offsetTop - pane.clientHeight / 2;
  }
  svg.addEventListener("keydown", (event) => {
    const place = points.findIndex((one) => one.at === chosen), last = points.length - 1;
    const next = {ArrowRight: Math.min(last, place + 1), ArrowLeft: Math.max(0, place - 1)}[event.key];
    if (next !== undefined) show(points[next].at, true);
    else if (event.key === "ArrowUp") show(Math.max(0, chosen - 1), true);
    else if (event.key === "ArrowDown") show(Math.min(count - 1, chosen + 1), true);
    else if (event.key === "Home") show(Math.max(0, data.best), true);
    else return;
    event.preventDefault();
  });
  const nearest = (event) => {
    const edge = svg.getBoundingClientRect(), left = (event.clientX - edge.left) * W / edge.width, top = (event.clientY - edge.top) * H / edge.height;
    let found = null, least = 30 ** 2;
    for (const one of points) {
      const far = (one.left - left) ** 2 + (one.top - top) ** 2;
      if (far < least) { least = far; found = one; }
    }
    return found;
  };
  svg.addEventListener("pointermove", (event) => { const one = nearest(event); if (one && one.at !== chosen) show(one.at, false); });
  svg.addEventListener("click", (event) => { const one = nearest(event); if (one) show(one.at, true); });

  // ---- the table
  const table = document.getElementById("trials"), body = table.tBodies[0], rows = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((cell, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = cell.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      const worth = (row) => { const words = row.cells[place].textContent, value = Number(words); return words === "" ? null : Number.isNaN(value) ? words : value; };
      const compare = (a, b) => a === null ? 1 : b === null ? -1 : (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
      const keyed = rows.map((row) => [worth(row), row]);
      body.replaceChildren(...keyed.sort((a, b) => compare(a[0], b[0])).map(([, row]) => row));
    });
  });
  draw();
  new ResizeObserver(() => { if (Math.abs(box.clientWidth - W) > 1 && box.clientWidth && box.clientWidth <= 960) draw(); }).observe(box);
})();
