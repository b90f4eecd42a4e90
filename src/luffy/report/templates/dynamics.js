/* What is learned when: the watched traces token by token, and what a watched problem was answered over the steps. */
(() => {
  const probability = (hundredths) => (hundredths === null ? 0 : Math.exp(hundredths / 100));

  /* --- watched traces */

  /* the step from which on the token stays above one half; null: never */
  function learnedAt({ steps, logprobs }, place) {
    let found = null;
    for (let row = steps.length - 1; row >= 0 && probability(logprobs[row][place]) > 0.5; row--) found = steps[row];
    return found;
  }

  function learnedText(trace, name) {
    const rows = trace.methods[name];
    const made = element("div", "learned");
    const readout = element("p", "readout", "", { role: "status" });
    const text = element("p", "text", undefined, { tabindex: 0, role: "group", "aria-label": `Trace tokens, ${methodTitle(name)}; arrow keys walk through them` });
    const [first, last] = [rows.steps[0], rows.steps.at(-1)];
    const when = trace.tokens.map((_, place) => learnedAt(rows, place));
    const parts = trace.tokens.map((token, place) => {
      const part = text.appendChild(element("span", when[place] === null ? "never" : "weight", token));
      if (when[place] !== null) part.style.setProperty("--shade", (0.85 * (when[place] - first) / Math.max(1, last - first)).toFixed(2));
      return part;
    });
    let at = -1;
    const pick = (place) => {
      parts[at]?.classList.remove("at");
      at = Math.min(Math.max(place, 0), parts.length - 1);
      parts[at].classList.add("at");
      const ends = [rows.logprobs[0][at], rows.logprobs.at(-1)[at]].map((value) => percent(probability(value)));
      const word = when[at] === null ? "not above 50 % at the end" : when[at] === first ? "above 50 % from the first look on" : `stays above 50 % from step ${when[at]} on`;
      readout.textContent = `${JSON.stringify(trace.tokens[at])}: ${word}; ${ends[0]} at step ${first}, ${ends[1]} at step ${last}`;
    };
    text.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: parts.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      pick(moves[event.key]);
    });
    for (const kind of ["pointerover", "click"]) text.addEventListener(kind, (event) => { const place = parts.indexOf(event.target); if (place >= 0) pick(place); });
    const never = when.filter((one) => one === null).length;
    const known = when.filter((one) => one === first).length;
    made.append(text, element("p", "hint", `${known} of ${when.length} tokens are above 50 % from the first look on, ${when.length - known - never} get there, ${never} do not.`), readout);
    return made;
  }

  function showTrace(trace) {
    const place = byId("learned");
    place.replaceChildren();
    Object.keys(trace.methods).forEach((name, index) => {
      const rows = trace.methods[name];
      const figure = element("figure");
      const caption = figure.appendChild(element("figcaption"));
      caption.append(element("h3", "", methodTitle(name)));
      const id = `learned-${values.traces.indexOf(trace)}-${index}`;
      figure.append(learnedText(trace, name), element("div", "chart", undefined, { id }));
      place.append(figure);
      const cells = rows.steps.flatMap((step, row) => trace.tokens.map((token, k) => ({ s: step, k, t: token, p: Math.round(1000 * probability(rows.logprobs[row][k])) / 1000 })));
      charts.register(id, { ...values.learned, data: { values: cells }, description: `Probability of each token of the trace over the steps, ${methodTitle(name)}` }, false);
    });
  }

  function startTraces() {
    const select = byId("trace-choice");
    if (!select) return;
    select.append(...values.traces.map((trace, index) => option(index, trace.problem)));
    select.addEventListener("change", () => showTrace(values.traces[Number(select.value)]));
    showTrace(values.traces[0]);
  }

  /* --- watched problems over the steps */

  const ends = (answers) => [answers[0], answers.at(-1)].map((answer) => answer.right > 0.5);
  const CHANGES = {
    "": () => true,
    won: (answers) => !ends(answers)[0] && ends(answers)[1],
    lost: (answers) => ends(answers)[0] && !ends(answers)[1],
    wrong: (answers) => !ends(answers)[0] && !ends(answers)[1],
    right: (answers) => ends(answers)[0] && ends(answers)[1],
  };

  function showHistory(problem) {
    const place = byId("history");
    place.replaceChildren();
    if (!problem) return place.append(element("p", "", "No problem matches."));
    place.append(element("p", "prompt", problem.prompt), element("p", "answer", `Reference answer: ${problem.answer}`));
    const columns = element("div", "columns");
    for (const [name, answers] of Object.entries(problem.methods)) {
      const column = columns.appendChild(element("section", "", undefined, { "aria-label": methodTitle(name) }));
      column.append(element("h3", "", methodTitle(name)));
      const items = column.appendChild(element("ol", "answers"));
      answers.forEach((answer, index) => {
        const item = items.appendChild(element("li", answer.right > 0.5 ? "right" : ""));
        const repeated = index > 0 && answers[index - 1].text === answer.text;
        const mark = answer.right === 1 ? "✓ right" : answer.right === 0 ? "✗ wrong" : `${percent(answer.right)} right`;
        item.append(element("div", "head", `${answer.s === 0 ? "base" : `step ${answer.s}`}: ${mark}${repeated ? ", the same words" : ""}`));
        if (!repeated) item.append(element("p", "text", answer.text));
      });
    }
    place.append(columns);
  }

  function startHistories() {
    const form = byId("history-filters");
    if (!form) return;
    const { set, change, problem } = form.elements;
    set.append(...values.histories.map((one, index) => option(index, one.set)));
    const list = () => {
      const found = values.histories[Number(set.value)].problems.filter((one) => Object.values(one.methods).some(CHANGES[change.value]));
      problem.replaceChildren(...found.map((one) => option(one.id, one.id)));
      byId("history-found").textContent = found.length === 1 ? "One problem." : `${found.length} problems.`;
      showHistory(found[0]);
    };
    form.addEventListener("submit", (event) => event.preventDefault());
    for (const control of [set, change]) control.addEventListener("change", list);
    problem.addEventListener("change", () => showHistory(values.histories[Number(set.value)].problems.find((one) => one.id === problem.value)));
    list();
  }

  startTraces();
  startHistories();
})();
