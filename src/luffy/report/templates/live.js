/* Served while a run trains: ask for the version of the page now and then, and load it again when there is another.
   What the reader has chosen, and where the page is scrolled to, outlast that. */
(() => {
  if (!values.live) return;

  /* --- what outlasts it */

  const KEPT = "view";
  const FIELDS = "main select, main input";
  const SWITCHES = "[data-method], [data-axis], [data-mode]";
  const PLACES = "main section[id], main .chart[id], #picks, #group, #learned, #history, #group article";
  const each = (selector, does) => [...document.querySelectorAll(selector)].map(does);

  function selectorOf(one) {
    const [key, value] = Object.entries(one.dataset).find(([name]) => ["method", "axis", "mode"].includes(name)) ?? [];
    if (one.id) return `#${CSS.escape(one.id)}`;
    if (key) return `[data-${key}="${CSS.escape(value)}"]`;
    if (one.name && one.form?.id) return `#${one.form.id} [name="${one.name}"]`;
    return one.ariaLabel ? `[aria-label="${CSS.escape(one.ariaLabel)}"]` : null;
  }

  function keep() {
    const above = (one) => one.getClientRects().length > 0 && one.getBoundingClientRect().top < innerHeight / 2;
    const place = each(PLACES, (one) => one).filter(above).at(-1);
    sessionStorage.setItem(KEPT, JSON.stringify({
      switches: each(SWITCHES, (one) => [selectorOf(one), one.getAttribute("aria-pressed")]),
      fields: each(FIELDS, (one) => [selectorOf(one), one.value]),
      open: each("[aria-expanded=true]", selectorOf),
      details: each("details", (one) => one.open),
      groups: groups.chosen(),
      focus: selectorOf(document.activeElement),
      place: place && { at: selectorOf(place), top: place.getBoundingClientRect().top },
    }));
  }

  function restore() {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    sessionStorage.removeItem(KEPT);
    if (!kept) return;
    const find = (selector) => selector && document.querySelector(selector);
    for (const [selector, pressed] of kept.switches) {
      const one = find(selector);
      const stays = !one || one.getAttribute("aria-pressed") === pressed || (pressed === "false" && !one.dataset.method);
      if (!stays) one.click(); // of an axis or a colour the pressed one is clicked, which releases the others
    }
    for (const [selector, value] of kept.fields) {
      const one = find(selector);
      if (!one || one.value === value || (one.options && ![...one.options].some((option) => option.value === value))) continue;
      one.value = value;
      for (const kind of ["input", "change"]) one.dispatchEvent(new Event(kind, { bubbles: true }));
    }
    groups.choose(kept.groups);
    for (const selector of kept.open) find(selector)?.click();
    each("details", (one, index) => { one.open = kept.details[index] ?? one.open; });
    find(kept.focus)?.focus({ preventScroll: true });
    const place = find(kept.place?.at);
    if (place) scrollBy({ top: place.getBoundingClientRect().top - kept.place.top, behavior: "instant" });
  }

  /* --- asking */

  const box = byId("live-refresh");
  const note = byId("live-note");
  box.checked = sessionStorage.getItem("refresh") !== "off";
  box.addEventListener("change", () => sessionStorage.setItem("refresh", box.checked ? "on" : "off"));
  async function ask() {
    try {
      const answer = await (await fetch("version", { cache: "no-store" })).json();
      if (answer.version !== values.live) {
        if (box.checked) {
          keep();
          return location.reload();
        }
        note.textContent = "There is news; switch on the refresh to see it.";
      } else note.textContent = `Looked at ${new Date().toLocaleTimeString()}.`;
    } catch {
      note.textContent = "The server does not answer any more.";
    }
  }
  history.scrollRestoration = "manual"; // the browser would go by the height that the page had
  restore();
  ask();
  setInterval(ask, 5000);
})();
