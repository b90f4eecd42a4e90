/* Charts: one view each, drawn when it comes into sight, tied together by the signals `axis`, `window` and `shown`. */
const charts = (() => {
  const views = new Map(); // id -> view
  const known = new Map(); // id -> {spec, linked}
  const state = { axis: "step", window: null, shown: values.methods.map((method) => method.name) };
  let drawing = Promise.resolve();

  const NARROW = 480; // pixels, below which a legend takes two columns, to stay whole

  function themed(spec, width) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const text = JSON.stringify(spec).replace(/"@([a-z0-9-]+)"/g, (_, name) =>
      JSON.stringify(color(/^\d/.test(name) ? `--m${name}` : `--${name}`)));
    const [ink, muted, rule, page] = ["--ink", "--muted", "--rule", "--page"].map(color);
    return Object.assign(JSON.parse(text), {
      background: page,
      padding: { left: 2, right: 8, top: 6, bottom: 2 },
      autosize: { type: "fit-x", contains: "padding" },
      config: {
        font: getComputedStyle(document.body).fontFamily,
        view: { stroke: null },
        axis: { labelColor: muted, titleColor: muted, gridColor: rule, domainColor: rule, tickColor: rule, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
        legend: { labelColor: ink, titleColor: muted, labelFontSize: 13, titleFontWeight: "normal", symbolType: "square", ...(width < NARROW && { columns: 2 }) },
      },
    });
  }

  async function draw(id) {
    const { spec, linked } = known.get(id);
    views.get(id)?.finalize();
    const theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const result = await vegaEmbed(byId(id), themed(spec, byId(id).clientWidth), { ast: true, renderer: "svg", tooltip: { theme }, actions: false });
    views.set(id, result.view);
    if (linked) {
      for (const [name, value] of Object.entries(state)) result.view.signal(name, value);
      await result.view.runAsync();
    }
  }
  const enqueue = (id) => (drawing = drawing.then(() => draw(id)));

  const sight = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      sight.unobserve(entry.target);
      enqueue(entry.target.id);
    }
  }, { rootMargin: "300px" });

  /* a chart is saved as it is shown, zoomed or not; its numbers are all of them */

  const points = (spec) => spec.data?.values ?? Object.values(spec.datasets ?? {})[0] ?? spec.layer?.[0]?.data?.values ?? [];

  function tools(id, spec) {
    const figure = byId(id).closest("figure");
    const name = figure.querySelector("h3").textContent;
    const file = name.toLowerCase().replace(/[^a-z0-9]+/g, "-");
    const view = async () => {
      if (!views.has(id)) await enqueue(id);
      return views.get(id);
    };
    const kinds = {
      SVG: async () => download(`${file}.svg`, new Blob([await (await view()).toSVG()], { type: "image/svg+xml" })),
      PNG: async () => (await (await view()).toCanvas(2)).toBlob((blob) => download(`${file}.png`, blob)),
      CSV: async () => download(`${file}.csv`, new Blob([csv(points(spec))], { type: "text/csv" })),
    };
    const row = element("div", "tools");
    for (const [kind, save] of Object.entries(kinds)) row.append(button(kind, save, { "aria-label": `Save ${name} as ${kind}` }));
    const numbers = element("div", "scroll numbers", undefined, { tabindex: 0, role: "region", "aria-label": `Numbers of ${name}` });
    numbers.hidden = true;
    row.append(button("numbers", (event) => {
      numbers.hidden = !numbers.hidden;
      event.currentTarget.setAttribute("aria-expanded", String(!numbers.hidden));
      if (!numbers.firstChild) numbers.append(table(points(spec)));
    }, { "aria-expanded": "false", "aria-label": `Show the numbers of ${name}` }));
    figure.append(row, numbers);
  }

  const HEADINGS = { m: "method", s: "step", t: "tokens", v: "value", l: "low", h: "high", p: "probability", w: "weight", f: "form", k: "token" };
  const columns = (rows) => Object.keys(HEADINGS).concat("part").filter((key) => rows.some((row) => key in row));
  function csv(rows) {
    const keys = columns(rows);
    const cell = (value) => (/[",\n]/.test(String(value ?? "")) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
    return [keys.map((key) => HEADINGS[key] ?? key), ...rows.map((row) => keys.map((key) => row[key]))].map((row) => row.map(cell).join(",")).join("\n") + "\n";
  }
  function table(rows) {
    const keys = columns(rows);
    const made = element("table");
    const head = made.createTHead().insertRow();
    for (const key of keys) head.append(element("th", "", HEADINGS[key] ?? key, { scope: "col" }));
    const body = made.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      for (const key of keys) line.append(element("td", "number", key === "m" ? methodTitle(row[key]) : String(row[key] ?? "")));
    }
    return made;
  }

  function register(id, spec, linked) {
    if (!byId(id)) return;
    const first = !known.has(id);
    known.set(id, { spec, linked });
    if (first) tools(id, spec);
    if (views.has(id)) enqueue(id);
    else sight.observe(byId(id));
  }

  /* --- one zoom, one axis and one choice of methods for all linked charts */

  const bounds = byId("bounds")?.elements;
  function change(changes) {
    Object.assign(state, changes);
    byId("everything").hidden = state.window === null;
    const round = (number) => Math.round(number * 10) / 10;
    [bounds.from.value, bounds.to.value] = state.window ? state.window.map(round) : ["", ""];
    for (const [id, view] of views) {
      if (!known.get(id).linked) continue;
      for (const [name, value] of Object.entries(changes)) view.signal(name, value);
      view.runAsync();
    }
  }

  for (const one of document.querySelectorAll("[data-method]")) {
    one.addEventListener("click", () => {
      one.setAttribute("aria-pressed", String(one.getAttribute("aria-pressed") !== "true"));
      change({ shown: [...document.querySelectorAll('[data-method][aria-pressed="true"]')].map((shown) => shown.dataset.method) });
    });
  }
  const axes = [...document.querySelectorAll("[data-axis]")];
  for (const one of axes) {
    one.addEventListener("click", () => {
      press(axes, one);
      change({ axis: one.dataset.axis, window: null });
    });
  }
  byId("everything")?.addEventListener("click", () => change({ window: null }));
  byId("bounds")?.addEventListener("submit", (event) => event.preventDefault());
  byId("bounds")?.addEventListener("change", () => {
    const [from, to] = [bounds.from, bounds.to].map((field) => (field.value === "" ? null : Number(field.value)));
    if (from === null && to === null) return change({ window: null });
    if (to !== null && to > (from ?? 0)) change({ window: [from ?? 0, to] });
  });

  /* zoom: drag with a mouse over any chart, or give the ends in the two fields; a finger scrolls as everywhere */

  for (const place of document.querySelectorAll(".charts .chart")) {
    let from = null;
    let brush = null;
    const at = (event) => event.clientX - place.getBoundingClientRect().left;
    place.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button !== 0 || !views.has(place.id)) return;
      from = at(event);
      brush = place.appendChild(element("div", "brush"));
      place.setPointerCapture(event.pointerId);
    });
    place.addEventListener("pointermove", (event) => {
      if (from === null) return;
      brush.style.left = `${Math.min(from, at(event))}px`;
      brush.style.width = `${Math.abs(at(event) - from)}px`;
    });
    place.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const view = views.get(place.id);
      const ends = [from, at(event)].sort((a, b) => a - b).map((x) => view.scale("x").invert(x - view.origin()[0]));
      if (Math.abs(at(event) - from) > 8) change({ window: ends.map((end) => Math.max(0, end)) });
      brush.remove();
      from = null;
    });
    place.addEventListener("dblclick", () => change({ window: null }));
  }

  for (const [place, spec] of values.charts.entries()) register(`chart-${place}`, spec, true);
  if (values.times) register("chart-times", values.times, false);
  register("chart-weight", values.weight, false);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...views.keys()].forEach(enqueue));
  addEventListener("beforeprint", () => [...known.keys()].filter((id) => !views.has(id)).forEach(enqueue));
  return { register };
})();
