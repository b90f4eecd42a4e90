/* Groups: find problems, read their rollouts token by token, see the same problem at another step or by another method. */
const groups = (() => {
  const { weights } = values;
  const SHADE = 0.8; // of the strongest background
  const own = (group) => group.rollouts.filter((rollout) => !rollout.trace);
  const right = (group) => own(group).filter((rollout) => rollout.reward > 0).length;
  const words = (rollout) => rollout.text ?? rollout.tokens.join("");
  const signed = (number) => (number > 0 ? "+" : "") + number;

  function outcome(group) {
    return right(group) === 0 ? "failed" : right(group) === own(group).length ? "solved" : "mixed";
  }

  /* --- what a token's colour says */

  function tableRow(form, hundredths) {
    const rows = weights[form];
    const place = Math.min(Math.max((-hundredths / 100 - weights.first) / weights.step, 0), rows.length - 1);
    const before = Math.floor(place);
    return rows[before] + (place - before) * ((rows[before + 1] ?? rows[before]) - rows[before]);
  }
  const ratio = (rollout, place) => rollout.logprobs[place] - (rollout.teacher_logprobs?.[place] ?? 0);
  const weight = (form) => (rollout, place) => (rollout.trace ? tableRow(form, ratio(rollout, place)) : 1);
  const certain = weights.plain[Math.round(-weights.first / weights.step)];
  const strongest = Math.max(...weights.shaped);
  const scored = values.groups.flatMap((group) => group.rollouts).filter((rollout) => rollout.entropy);
  const looked = scored.filter((_, index) => index % Math.ceil(scored.length / 100) === 0); // enough for a scale
  const entropies = looked.flatMap((rollout) => rollout.entropy).sort((a, b) => a - b);
  const highEntropy = Math.max(10, entropies[Math.floor(0.98 * entropies.length)] ?? 100) / 100;

  const MODES = {
    probability: {
      rows: [{ tone: "heat", of: (rollout, place) => 1 - Math.exp(rollout.logprobs[place] / 100) }],
      ends: ["certain (100 %)", "most unlikely (0 %)"], tone: "heat",
      says: "The stronger the background, the less likely the policy found the token: for own rollouts the policy that sampled them, for traces the one that was about to learn from them.",
    },
    entropy: {
      rows: [{ tone: "heat", of: (rollout, place) => (rollout.entropy?.[place] ?? 0) / 100 / highEntropy }],
      ends: ["0 nats: no choice", `${highEntropy.toFixed(2)} nats or more`], tone: "heat",
      says: "The stronger the background, the more open it was to the policy how to go on at this place, whatever came then.",
    },
    weight: {
      rows: [
        { label: "with policy shaping", tone: "weight", of: (rollout, place) => weight("shaped")(rollout, place) / strongest },
        { label: "with the plain ratio", tone: "weight", of: (rollout, place) => weight("plain")(rollout, place) / certain },
      ],
      ends: ["no pull", "the strongest pull there is"], tone: "weight",
      says: "Each trace twice: how strongly every token pulls at the policy, with policy shaping and with the plain importance ratio. Tokens of own rollouts are not coloured: with one update a step and no shaping of their own they all have weight 1.",
    },
    none: { rows: [{ tone: "heat", of: () => 0 }], ends: null, says: "" },
  };
  let mode = "probability";

  function describe(rollout, place) {
    const token = JSON.stringify(rollout.tokens[place]);
    if (rollout.logprobs[place] === null) return `${token}: no log-prob recorded`;
    const parts = [`probability ${percent(Math.exp(rollout.logprobs[place] / 100))}`];
    if (rollout.entropy) parts.push(`entropy ${(rollout.entropy[place] / 100).toFixed(2)} nats`);
    if (rollout.trace) parts.push(`weight ${weight("shaped")(rollout, place).toFixed(3)} shaped, ${weight("plain")(rollout, place).toFixed(3)} plain`);
    return `${token}: ${parts.join(", ")}`;
  }

  /* tokens are one stop of the tab key; the arrow keys, a click or a tap pick one and say its numbers below */
  function tokenText(rollout, row, name, readout) {
    const text = element("p", "text", undefined, { tabindex: 0, role: "group", "aria-label": `Tokens of ${name}${row.label ? `, ${row.label}` : ""}; arrow keys walk through them` });
    const parts = rollout.tokens.map((token, place) => {
      const part = text.appendChild(element("span", "", token));
      if (rollout.logprobs[place] === null || (mode === "weight" && !rollout.trace)) return part;
      part.className = row.tone;
      part.style.setProperty("--shade", (SHADE * Math.min(1, Math.max(0, row.of(rollout, place)))).toFixed(2));
      return part;
    });
    if (rollout.more) text.append(element("em", "", ` [... ${rollout.more} more tokens]`));
    let at = -1;
    const pick = (place) => {
      parts[at]?.classList.remove("at");
      at = Math.min(Math.max(place, 0), parts.length - 1);
      parts[at].classList.add("at");
      readout.textContent = describe(rollout, at);
    };
    text.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: parts.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      pick(moves[event.key]);
    });
    for (const kind of ["pointerover", "click"]) {
      text.addEventListener(kind, (event) => {
        const place = parts.indexOf(event.target);
        if (place >= 0) pick(place);
      });
    }
    return text;
  }

  /* how much of the pull goes to the tokens that the policy would rather not have written */
  function shares(rollout) {
    const unlikely = rollout.logprobs.map((logprob) => logprob !== null && Math.exp(logprob / 100) < 0.5);
    const share = (form) => {
      const all = rollout.logprobs.map((logprob, place) => (logprob === null ? 0 : weight(form)(rollout, place)));
      const total = all.reduce((a, b) => a + b, 0);
      return total ? all.reduce((sum, one, place) => sum + (unlikely[place] ? one : 0), 0) / total : 0;
    };
    const count = unlikely.filter(Boolean).length;
    if (!count) return "Every token of this trace is at 50 % or above: there is little left to learn from it.";
    return `${count} of ${unlikely.length} tokens are below 50 %. They get ${percent(share("shaped"))} of the pull with policy shaping, ${percent(share("plain"))} with the plain ratio.`;
  }

  function rolloutElement(rollout, name) {
    const made = element("section", `rollout${rollout.reward > 0 ? " right" : ""}${rollout.trace ? " trace" : ""}`, undefined, { "aria-label": name });
    const head = made.appendChild(element("div", "head"));
    head.append(element("strong", "", name));
    if (rollout.reward !== null) head.append(element("span", "", `${rollout.reward > 0 ? "✓" : "✗"} reward ${rollout.reward}`));
    if (rollout.advantage !== null) head.append(element("span", "", `advantage ${signed(rollout.advantage)}`));
    if (!rollout.finished) head.append(element("span", "", "cut off by the length limit"));
    if (!rollout.tokens) {
      made.append(element("p", "text", rollout.text));
      return made;
    }
    const readout = head.appendChild(element("span", "readout", "", { role: "status" }));
    const rows = mode === "weight" && !rollout.trace ? [{ tone: "heat", of: () => 0 }] : MODES[mode].rows;
    for (const row of rows) {
      if (row.label) made.append(element("p", "row-label", row.label));
      made.append(tokenText(rollout, row, name, readout));
    }
    if (mode === "weight" && rollout.trace) made.append(element("p", "insight", shares(rollout)));
    return made;
  }

  const ROLES = {
    shaped: "Its trace tokens are learned with policy shaping.",
    plain: "Its trace tokens are learned with the plain ratio.",
    supervised: "Its traces are learned by likelihood: every token has weight 1.",
    none: "It does not learn from traces; they are not in its groups.",
  };

  function groupElement(group, onClose) {
    const made = element("article", "group", undefined, { "aria-label": `${group.id}, ${methodTitle(group.method)}, step ${group.step}` });
    const head = made.appendChild(element("div", "title"));
    head.append(element("h3", "", `${methodTitle(group.method)}, step ${group.step}`));
    if (onClose) head.append(button("close", onClose, { "aria-label": "Close this group" }));
    const role = values.methods.find((method) => method.name === group.method)?.role;
    const before = right(group);
    made.append(element("p", "hint", `${before} of ${own(group).length} own rollouts right. ${ROLES[role] ?? ""}`));
    let number = 0;
    const traces = group.rollouts.filter((rollout) => rollout.trace).length;
    let trace = 0;
    for (const rollout of [...group.rollouts].sort((a, b) => b.trace - a.trace)) {
      made.append(rolloutElement(rollout, rollout.trace ? (traces > 1 ? `Trace ${++trace}` : "Trace") : `Rollout ${++number}`));
    }
    return made;
  }

  function dots(group) {
    const total = own(group).length;
    const text = own(group).map((rollout) => (rollout.reward > 0 ? "●" : "○")).join("") + (total < group.rollouts.length ? "◆" : "");
    return element("span", "dots", text, { role: "img", "aria-label": `${right(group)} of ${total} right${total < group.rollouts.length ? ", with a trace" : ""}` });
  }

  /* --- the browser */

  const PAGE = 36; // groups listed at once
  let current = null;
  let beside = null;
  let limit = PAGE;

  const same = (group) => values.groups.filter((other) => other.id === group.id && other !== group);
  const flipped = (group) => same(group).some((other) => other.method === group.method && (right(other) > 0) !== (right(group) > 0));
  const imitated = (group) => group.rollouts.some((rollout) => rollout.trace && rollout.advantage > 0);
  const matches = {
    "": () => true,
    failed: (group) => outcome(group) === "failed",
    mixed: (group) => outcome(group) === "mixed",
    solved: (group) => outcome(group) === "solved",
    flipped,
    imitated,
  };

  function show() {
    const place = byId("group");
    place.replaceChildren();
    if (!current) return;
    place.append(element("p", "prompt", current.prompt), element("p", "answer", `Reference answer: ${current.answer}`));
    const others = same(current);
    const row = element("div", "timeline", undefined, { role: "group", "aria-label": "The same problem at other steps and by other methods" });
    if (others.length) {
      row.append(element("span", "hint", "Put beside it: "));
      const steps = others.sort((a, b) => (a.method === current.method ? 0 : 1) - (b.method === current.method ? 0 : 1) || a.method.localeCompare(b.method) || a.step - b.step);
      for (const other of steps) {
        const pick = button(`${methodTitle(other.method)}, step ${other.step} `, () => { beside = beside === other ? null : other; show(); }, { "aria-pressed": String(beside === other) });
        pick.append(dots(other));
        row.append(pick);
      }
    } else row.append(element("span", "hint", "This problem is in no other saved step."));
    const pair = element("div", beside ? "pair two" : "pair");
    pair.append(groupElement(current));
    if (beside) pair.append(groupElement(beside, () => { beside = null; show(); }));
    place.append(row, pair);
  }

  function choose(group, buttons, pressed) {
    const kept = beside && beside.method !== current?.method ? beside.method : null; // another method stays beside
    current = group;
    beside = (kept && same(group).find((other) => other.method === kept && other.step === group.step)) ?? null;
    for (const one of buttons) one.setAttribute("aria-current", String(one === pressed));
    show();
  }

  function list() {
    const { method, step, outcome: wanted, text } = byId("filters").elements;
    const needle = text.value.toLowerCase();
    const found = values.groups.filter((group) =>
      (!method.value || group.method === method.value) && (!step.value || String(group.step) === step.value) && matches[wanted.value](group) &&
      (!needle || [group.id, group.prompt, group.answer, ...group.rollouts.map(words)].some((one) => one.toLowerCase().includes(needle))));
    const several = !step.value;
    const items = found.slice(0, limit).map((group) => {
      const pick = button(`${several ? `${group.step}: ` : ""}${method.value ? "" : `${methodTitle(group.method)} `}${group.id || "group"} `, () => choose(group, picks(), pick), { "aria-current": "false" });
      pick.append(dots(group));
      return [group, pick];
    });
    const picks = () => items.map(([, pick]) => pick);
    byId("picks").replaceChildren(...items.map(([, pick]) => {
      const item = element("li");
      item.append(pick);
      return item;
    }));
    if (found.length > limit) {
      const item = element("li");
      item.append(button(`${found.length - limit} more`, () => { limit += PAGE; list(); }));
      byId("picks").append(item);
    }
    byId("found").textContent = found.length === 1 ? "One group." : found.length ? `${found.length} groups.` : "No group matches.";
    const keep = items.find(([group]) => group === current);
    if (keep) keep[1].setAttribute("aria-current", "true");
    else choose(found[0] ?? null, picks(), items[0]?.[1]);
  }

  function legend() {
    const place = byId("token-legend");
    const { ends, tone, says } = MODES[mode];
    place.replaceChildren(element("span", "", says));
    if (ends) {
      const bar = element("span", "scale");
      bar.append(element("span", "", ends[0]), element("i", tone, "", { "aria-hidden": true }), element("span", "", ends[1]));
      place.append(bar);
    }
    byId("weight-legend").hidden = mode !== "weight";
  }

  function start() {
    const form = byId("filters");
    if (!form) return;
    const { method, step, outcome: wanted, text } = form.elements;
    const names = [...new Set(values.groups.map((group) => group.method))];
    method.append(...names.map((name) => option(name, methodTitle(name))), ...(names.length > 1 ? [option("", "all")] : []));
    method.value = names.includes("luffy") ? "luffy" : names[0];
    const steps = [...new Set(values.groups.map((group) => group.step))].sort((a, b) => a - b);
    step.append(option("", "all"), ...steps.map((one) => option(one, one)));
    form.addEventListener("submit", (event) => event.preventDefault());
    const again = () => { limit = PAGE; list(); };
    for (const control of [method, step, wanted]) control.addEventListener("change", again);
    text.addEventListener("input", again);
    const modes = [...document.querySelectorAll("[data-mode]")];
    for (const one of modes) {
      one.addEventListener("click", () => {
        mode = one.dataset.mode;
        press(modes, one);
        legend();
        show();
      });
    }
    legend();
    list();
  }
  start();

  /* what is looked at, for a page that is loaded again; groups have no id of their own */
  const nameOf = (group) => group && JSON.stringify([group.method, group.step, group.id]);
  return {
    chosen: () => ({ current: nameOf(current), beside: nameOf(beside), limit }),
    choose(kept) {
      const find = (name) => values.groups.find((group) => nameOf(group) === name) ?? null;
      if (!find(kept.current)) return;
      [current, beside, limit] = [find(kept.current), find(kept.beside), kept.limit];
      list();
      show();
    },
  };
})();
