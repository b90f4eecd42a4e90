"use strict";
(() => {
  const values = JSON.parse(document.getElementById("values").textContent);
  const byId = (id) => document.getElementById(id);

  /* --- charts: one view each, tied together by the signals `axis`, `window` and `shown` */

  const views = new Map();
  const state = { axis: "step", window: null, shown: values.methods.map((method) => method.name) };

  function themed(spec) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const text = JSON.stringify(spec).replace(/"@(\d+)"/g, (_, place) => JSON.stringify(color(`--m${place}`)));
    const [ink, muted, rule] = ["--ink", "--muted", "--rule"].map(color);
    return Object.assign(JSON.parse(text), {
      background: null,
      padding: { left: 2, right: 8, top: 6, bottom: 2 },
      autosize: { type: "fit-x", contains: "padding" },
      config: {
        font: getComputedStyle(document.body).fontFamily,
        view: { stroke: null },
        axis: { labelColor: muted, titleColor: muted, gridColor: rule, domainColor: rule, tickColor: rule, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
        legend: { labelColor: ink, labelFontSize: 13, symbolType: "square" },
      },
    });
  }

  async function draw(id, spec, linked) {
    const place = byId(id);
    if (!place) return;
    views.get(id)?.finalize();
    const theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const result = await vegaEmbed(place, themed(spec), {
      ast: true, renderer: "svg", tooltip: { theme },
      actions: { export: true, source: false, compiled: false, editor: false },
    });
    views.set(id, result.view);
    if (linked) {
      for (const [name, value] of Object.entries(state)) result.view.signal(name, value);
      await result.view.runAsync();
    }
  }

  async function drawAll() {
    for (const [place, spec] of values.charts.entries()) await draw(`chart-${place}`, spec, true);
    if (values.times) await draw("chart-times", values.times, false);
  }

  function change(changes) {
    Object.assign(state, changes);
    byId("everything").hidden = state.window === null;
    for (const [id, view] of views) {
      if (id === "chart-times") continue;
      for (const [name, value] of Object.entries(changes)) view.signal(name, value);
      view.runAsync();
    }
  }

  for (const button of document.querySelectorAll("[data-method]")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      change({ shown: [...document.querySelectorAll('[data-method][aria-pressed="true"]')].map((one) => one.dataset.method) });
    });
  }
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.addEventListener("click", () => {
      for (const other of document.querySelectorAll("[data-axis]")) other.setAttribute("aria-pressed", String(other === button));
      change({ axis: button.dataset.axis, window: null });
    });
  }
  byId("everything")?.addEventListener("click", () => change({ window: null }));

  /* --- zoom: drag with a mouse over any chart; a finger scrolls the page as everywhere */

  for (const place of document.querySelectorAll(".charts .chart")) {
    let from = null;
    let brush = null;
    const at = (event) => event.clientX - place.getBoundingClientRect().left;
    place.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button !== 0 || event.target.closest("details")) return;
      from = at(event);
      brush = place.appendChild(Object.assign(document.createElement("div"), { className: "brush" }));
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
      if (Math.abs(at(event) - from) > 8) change({ window: ends });
      brush.remove();
      from = null;
    });
    place.addEventListener("dblclick", () => change({ window: null }));
  }

  /* --- groups: texts go into text nodes only */

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const title = (name) => values.methods.find((method) => method.name === name)?.title ?? name;
  const own = (group) => group.rollouts.filter((rollout) => !rollout.trace);
  const words = (rollout) => rollout.text ?? rollout.tokens.join("");

  function outcome(group) {
    const right = own(group).filter((rollout) => rollout.reward > 0).length;
    return right === 0 ? "failed" : right === own(group).length ? "solved" : "mixed";
  }

  function rolloutElement(rollout, number) {
    const made = element("section", `rollout${rollout.reward > 0 ? " right" : ""}${rollout.trace ? " trace" : ""}`);
    const head = made.appendChild(element("div", "head"));
    head.append(element("strong", "", rollout.trace ? "Trace" : `Rollout ${number}`));
    if (rollout.reward !== null) head.append(element("span", "", `${rollout.reward > 0 ? "✓" : "✗"} reward ${rollout.reward}`));
    if (rollout.advantage !== null) head.append(element("span", "", `advantage ${rollout.advantage > 0 ? "+" : ""}${rollout.advantage}`));
    if (!rollout.finished) head.append(element("span", "", "cut off by the length limit"));
    const text = made.appendChild(element("p", "text", rollout.tokens ? undefined : rollout.text));
    for (const [place, token] of (rollout.tokens ?? []).entries()) {
      const part = text.appendChild(element("span", "", token));
      const percent = rollout.percent[place];
      if (percent === null) continue;
      part.style.setProperty("--unsure", (0.75 * (1 - percent / 100)).toFixed(2));
      part.title = `probability ${percent} %`;
    }
    return made;
  }

  function show(group) {
    const place = byId("group");
    place.replaceChildren();
    if (!group) return place.append(element("p", "", "No group matches."));
    place.append(element("h3", "", `${group.id || "Problem"}, ${title(group.method)}, step ${group.step}`));
    place.append(element("p", "prompt", group.prompt), element("p", "", `Reference answer: ${group.answer}`));
    group.rollouts.forEach((rollout, index) => place.append(rolloutElement(rollout, index + 1)));
  }

  function startBrowser() {
    const form = byId("filters");
    if (!form) return;
    const { method, step, outcome: wanted, text } = form.elements;
    const option = (value, label) => Object.assign(element("option", "", label), { value });
    const steps = () => [...new Set(values.groups.filter((group) => group.method === method.value).map((group) => group.step))];
    for (const name of new Set(values.groups.map((group) => group.method))) method.append(option(name, title(name)));
    method.value = values.groups.some((group) => group.method === "luffy") ? "luffy" : values.groups[0].method;

    function listSteps() {
      const before = step.value;
      step.replaceChildren(...steps().map((one) => option(one, one)));
      step.value = steps().map(String).includes(before) ? before : String(steps()[Math.floor(steps().length / 2)]);
    }
    function list() {
      const needle = text.value.toLowerCase();
      const found = values.groups.filter((group) =>
        group.method === method.value && String(group.step) === step.value && (!wanted.value || outcome(group) === wanted.value) &&
        (!needle || [group.id, group.prompt, ...group.rollouts.map(words)].some((one) => one.toLowerCase().includes(needle))));
      byId("picks").replaceChildren(...found.map((group, index) => {
        const button = element("button");
        button.type = "button";
        button.setAttribute("aria-current", String(index === 0));
        const right = own(group).filter((rollout) => rollout.reward > 0).length;
        const dots = element("span", "dots", own(group).map((rollout) => (rollout.reward > 0 ? "●" : "○")).join(""));
        dots.setAttribute("role", "img");
        dots.setAttribute("aria-label", `${right} of ${own(group).length} right`);
        button.append(element("span", "", group.id || `group ${index + 1}`), dots);
        button.addEventListener("click", () => {
          for (const other of byId("picks").querySelectorAll("button")) other.setAttribute("aria-current", String(other === button));
          show(group);
        });
        const item = element("li");
        item.append(button);
        return item;
      }));
      show(found[0]);
    }
    form.addEventListener("submit", (event) => event.preventDefault());
    method.addEventListener("change", () => { listSteps(); list(); });
    for (const control of [step, wanted]) control.addEventListener("change", list);
    text.addEventListener("input", list);
    listSteps();
    list();
  }

  startBrowser();
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
