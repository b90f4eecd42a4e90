"""The page in a real browser: nothing that a model wrote runs, nothing overflows, everything has a name.

Skipped where there is no Chromium or no `playwright` to drive it.
"""

import json
import math
import shutil

import pytest
from synthetic import write_run, write_runs

from luffy.report import live_server, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs the `dev` extra")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

ATTACK = (
    "</script><script>window.ran=1</script><img src=x onerror='window.ran=2'><svg onload=window.ran=3>"
    '"\' onmouseover=window.ran=4 <a href="javascript:window.ran=5">x</a>{{7*7}}${7*7}</style><!-- ]]>'
)
PATIENCE = 120_000  # milliseconds; other processes may be in the way
SIZES = ((390, 844), (900, 1000), (1600, 1000))
NAMED = {"button", "link", "textbox", "searchbox", "combobox", "spinbutton", "checkbox", "region", "image"}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page with everything that went wrong on it."""

    def __init__(self, browser, address, size=SIZES[2], scheme="light"):
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
        )
        context.set_default_timeout(PATIENCE)
        self.page = context.new_page()
        self.trouble, self.requests = [], []
        self.page.on("console", lambda one: self.trouble.append(one.text) if one.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.trouble.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def see_everything(self):
        """Scroll through, so that every chart is drawn, and wait for the last one."""
        self.page.evaluate("for (const one of document.querySelectorAll('.chart')) one.scrollIntoView()")
        self.page.wait_for_function(
            "() => { const all = [...document.querySelectorAll('.chart')].filter((one) => one.offsetParent);"
            "const left = all.find((one) => !one.querySelector('svg')); left?.scrollIntoView(); return !left; }"
        )


def attacked_run(folder, method):
    """A run in which the model, the data, and the configuration are hostile."""
    run = write_run(folder, method, steps=10, problems=8, sets=("hard",), every=5, text=ATTACK)
    for path in (*run.glob("rollouts/*.jsonl"), *run.glob("traces/*.jsonl"), *run.glob("evaluations/*/*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if "samples" in line:
                line |= {"id": f"{line['id']} {ATTACK}", "prompt": ATTACK, "answer": ATTACK}
                line["samples"][0]["text"] = ATTACK
            elif isinstance(line["problem"], str):
                line["problem"] += ATTACK
                line["tokens"][0] = ATTACK
            else:
                line["problem"] |= {"id": line["problem"]["id"] + ATTACK, "prompt": ATTACK, "answer": ATTACK}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("A processor", "<img src=x onerror=window.ran=6>"))
    return run


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """Two hostile runs on one page; their names, the folders', are hostile too."""
    base = tmp_path_factory.mktemp("runs")
    hostile = ATTACK.replace("/", "∕")[:120]
    runs = [attacked_run(base / (hostile + name), "luffy") for name in ("a", "b")]
    return write_report(runs, base / "report.html").as_uri()


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "c"
    write_runs(folder, ("luffy", "on_policy"), seeds=1, problems=12, steps=20)
    return write_report([folder], folder / "report.html").as_uri()


def test_nothing_that_a_model_wrote_runs(browser, attacked):
    opened = Opened(browser, attacked)
    page = opened.page
    opened.see_everything()
    for mode in ("entropy", "weight", "none", "probability"):
        page.click(f"[data-mode={mode}]")
        page.hover("#group .text span >> nth=3")
    page.click(".timeline button")
    assert page.locator("#group article").count() == 2  # two methods side by side
    page.fill("[name=text]", "onerror")
    for pick in page.locator("#picks button").all()[:6]:
        pick.click()
    page.select_option("[name=outcome]", "imitated")
    for name in ("lost", "wrong", ""):
        page.select_option("[name=change]", name)
    page.click("[aria-label^='Show the numbers']")
    assert ATTACK in page.locator("#group .prompt").inner_text()
    assert ATTACK in page.locator("#history .text").first.inner_text()
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.querySelectorAll('img, script').length") == 3  # the data, the library, our script
    assert opened.trouble == []
    assert opened.requests == [attacked]


CUT_OFF = """[...document.querySelectorAll('.chart svg')].flatMap((chart) =>
  [...chart.querySelectorAll('text')].filter((one) => {
    const [inner, outer] = [one, chart].map((part) => part.getBoundingClientRect());
    return inner.width && (inner.right > outer.right + 2 || inner.left < outer.left - 2);
  }).map((one) => one.textContent))"""  # words of a chart that are not wholly on it


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size[0]))
def test_nothing_overflows_and_nothing_is_loaded(browser, honest, size):
    opened = Opened(browser, honest, size, "dark" if size[0] == 900 else "light")
    opened.see_everything()
    opened.page.click("[data-mode=weight]")
    opened.page.click(".timeline button")
    opened.see_everything()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert opened.page.evaluate(CUT_OFF) == []
    assert opened.trouble == []
    assert opened.requests == [honest]


def test_whatever_can_be_used_has_a_name(browser, honest):
    opened = Opened(browser, honest)
    opened.see_everything()
    opened.page.click("[data-mode=weight]")
    client = opened.page.context.new_cdp_session(opened.page)
    nodes = client.send("Accessibility.getFullAXTree")["nodes"]
    used = [node for node in nodes if not node.get("ignored") and node.get("role", {}).get("value") in NAMED]
    assert len(used) > 60
    assert [node["role"]["value"] for node in used if not node.get("name", {}).get("value", "").strip()] == []
    assert opened.page.locator("[role=group]:not([aria-label]), [tabindex='0']:not([aria-label])").count() == 0
    headings = [node for node in nodes if node.get("role", {}).get("value") == "heading"]
    assert all(node["name"]["value"].strip() for node in headings)


def test_links_lead_somewhere(browser, honest):
    page = Opened(browser, honest).page
    links = page.evaluate("[...document.querySelectorAll('a')].map((one) => one.getAttribute('href'))")
    assert len(links) > 6
    assert [link for link in links if not page.evaluate("(id) => !!document.querySelector(id)", link)] == []
    page.click("nav a[href='#groups']")
    assert abs(page.evaluate("document.getElementById('groups').getBoundingClientRect().top")) < 200


def test_the_keyboard_is_enough(browser, honest):
    page = Opened(browser, honest).page
    page.focus("#picks button >> nth=1")
    page.keyboard.press("Enter")
    assert page.locator("#picks button[aria-current=true]").inner_text().startswith("1: ")
    page.focus("[data-mode=weight]")
    page.keyboard.press("Space")
    page.focus("#group .text >> nth=0")
    for key in ("ArrowRight", "ArrowRight", "End"):
        page.keyboard.press(key)
    said = page.locator("#group .readout").first.inner_text()
    assert '"<eos>"' in said
    assert "shaped" in said
    page.fill("[name=from]", "5")
    page.fill("[name=to]", "15")
    page.keyboard.press("Tab")
    assert page.locator("#everything").is_visible()
    page.wait_for_selector("#chart-0 svg")
    labels = page.locator("#chart-0 svg .role-axis-label text").all_inner_texts()
    assert "20" not in labels


def test_a_chart_is_saved_as_picture_and_as_numbers(browser, honest):
    page = Opened(browser, honest).page
    beginnings = {"SVG": b"<svg", "PNG": b"\x89PNG", "CSV": b"method,step,tokens,value"}
    for kind, beginning in beginnings.items():
        with page.expect_download() as download:
            page.click(f"[aria-label='Save Accuracy on hard as {kind}']")
        path = download.value.path()
        assert path.read_bytes().startswith(beginning), kind
        assert download.value.suggested_filename == f"accuracy-on-hard.{kind.lower()}"


def test_flipped_problems_are_found(browser, honest):
    page = Opened(browser, honest).page
    page.select_option("[name=outcome]", "flipped")
    found = page.locator("#picks button").all_inner_texts()
    assert found
    expected = page.evaluate(
        "(() => { const all = values.groups.filter((g) => g.method === 'luffy');"
        "const won = (g) => g.rollouts.some((r) => !r.trace && r.reward);"
        "return all.filter((g) => all.some((o) => o.id === g.id && won(o) !== won(g))).length; })()"
    )
    assert len(found) == expected


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("failed", lambda own, traces: not any(one["reward"] for one in own)),
        ("solved", lambda own, traces: all(one["reward"] for one in own)),
        ("mixed", lambda own, traces: len({one["reward"] for one in own}) == 2),
        ("imitated", lambda own, traces: any(one["advantage"] > 0 for one in traces)),
    ],
)
def test_groups_are_found_by_their_outcome(browser, honest, outcome, expected):
    page = Opened(browser, honest).page
    page.select_option("[name=outcome]", outcome)
    groups = page.evaluate("values.groups.filter((group) => group.method === 'luffy')")
    parts = [[[one for one in group["rollouts"] if one["trace"] is kind] for kind in (False, True)] for group in groups]
    wanted = sum(expected(own, traces) for own, traces in parts)
    assert 0 < wanted < len(groups)
    assert page.locator("#picks button").count() == wanted


def test_tokens_are_coloured_by_the_weight_of_their_gradient(browser, honest):
    page = Opened(browser, honest).page
    page.click("[data-mode=weight]")
    pick = page.locator("#picks button[aria-current=true]").inner_text().split()
    number = page.evaluate("([step, id]) => values.groups.findIndex((one) => one.method === 'luffy' &&"
                           " `${one.step}:` === step && one.id === id)", pick[:2])  # fmt: skip
    trace = page.evaluate("(number) => values.groups[number].rollouts.find((one) => one.trace)", number)
    ratios = [math.exp(logprob / 100) for logprob in trace["logprobs"]]
    gamma = 0.1
    forms = {  # of the strongest pull that a trace token may have
        "shaped": [gamma * ratio / (ratio + gamma) ** 2 / 0.25 for ratio in ratios],
        "plain": ratios,
    }
    shades = page.evaluate(
        "[...document.querySelectorAll('#group .rollout.trace .text')].map((text) =>"
        " [...text.querySelectorAll('span')].map((one) => Number(one.style.getPropertyValue('--shade'))))"
    )
    labels = page.locator("#group .rollout.trace .row-label").all_inner_texts()
    assert labels == ["with policy shaping", "with the plain ratio"]
    assert shades[0] == [pytest.approx(0.8 * weight, abs=0.02) for weight in forms["shaped"]]
    assert shades[1] == [pytest.approx(0.8 * weight, abs=0.02) for weight in forms["plain"]]
    assert len(set(shades[0])) > 5


SHADES = (
    "(selector) => [...document.querySelector(selector).querySelectorAll('span')]"
    ".map((one) => Number(one.style.getPropertyValue('--shade')))"
)


def test_tokens_are_coloured_by_probability_and_by_entropy(browser, honest):
    page = Opened(browser, honest).page
    own = page.evaluate("values.groups.find((one) => one.method === 'luffy').rollouts.find((one) => !one.trace)")
    text = "#group .rollout:not(.trace) .text"
    assert page.evaluate(SHADES, text) == [
        pytest.approx(0.8 * (1 - math.exp(logprob / 100)), abs=0.01) for logprob in own["logprobs"]
    ]
    page.click("[data-mode=entropy]")
    shades, strongest = page.evaluate(SHADES, text), max(own["entropy"])
    order = sorted(range(len(shades)), key=own["entropy"].__getitem__)
    assert sorted(shades) == [shades[place] for place in order]
    assert shades[own["entropy"].index(strongest)] > 0.2
    page.click("[data-mode=none]")
    assert set(page.evaluate(SHADES, text)) == {0}


def test_which_tokens_are_learned_when(browser, honest):
    page = Opened(browser, honest).page
    trace = page.evaluate("values.traces[0]")
    rows = trace["methods"]["luffy"]
    place = next(place for place, logprob in enumerate(rows["logprobs"][0]) if math.exp(logprob / 100) < 0.5)
    above = [math.exp(logprobs[place] / 100) > 0.5 for logprobs in rows["logprobs"]]
    step = rows["steps"][next(row for row in range(len(above)) if all(above[row:]))]
    page.focus("#learned .text >> nth=0")
    for _ in range(place + 1):
        page.keyboard.press("ArrowRight")
    first = list(trace["methods"]).index("luffy")
    assert first == 0
    assert f"stays above 50 % from step {step} on" in page.locator("#learned .readout").first.inner_text()


LABELS = "[...document.querySelectorAll(`#${id} .role-axis-label text`)].map((one) => one.textContent).sort().join()"


def test_methods_are_switched_off_and_curves_are_over_tokens(browser, honest):
    page = Opened(browser, honest).page
    page.evaluate("document.getElementById('chart-0').scrollIntoView({block: 'center'})")
    page.wait_for_selector("#chart-0 svg")
    lines = "document.querySelectorAll('#chart-0 svg .mark-line path[d*=L]').length"
    assert page.evaluate(lines) == 2
    page.click("[data-method=on_policy]")
    page.wait_for_function(f"{lines} === 1")
    assert "20" in page.evaluate(f"(id) => {LABELS}", "chart-0").split(",")  # steps
    page.click("[data-axis=tokens]")
    page.wait_for_function(f"(id) => {LABELS}.includes('300k')", arg="chart-0")


def test_a_drag_zooms_every_chart_and_a_double_click_shows_everything(browser, honest):
    page = Opened(browser, honest).page
    charts = ("chart-0", "chart-1")
    for name in charts:
        page.evaluate("(id) => document.getElementById(id).scrollIntoView({block: 'center'})", name)
        page.wait_for_selector(f"#{name} svg")
    before = [page.evaluate(f"(id) => {LABELS}", name) for name in charts]
    box = page.locator("#chart-0").bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 80, steps=4)
    page.mouse.up()
    page.wait_for_selector("#everything:visible")
    for given in zip(charts, before, strict=True):
        page.wait_for_function(f"([id, before]) => {LABELS} !== before", arg=given)
    assert 0 < float(page.input_value("[name=from]")) < float(page.input_value("[name=to]")) < 20
    page.locator("#chart-0").dblclick(position={"x": 100, "y": 60})
    page.wait_for_selector("#everything", state="hidden")
    for given in zip(charts, before, strict=True):
        page.wait_for_function(f"([id, before]) => {LABELS} === before", arg=given)


def test_the_live_page_loads_itself_again(browser, tmp_path):
    run = write_run(tmp_path / "r", steps=20, problems=5, until=4, sets=("hard",), status="running", rollouts=False)
    with live_server([run]) as server:
        opened = Opened(browser, f"http://127.0.0.1:{server.server_address[1]}/")
        opened.page.wait_for_selector("text=running after 4 steps")
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 5, "reward/on_policy": 0.5}) + "\n")
        opened.page.wait_for_selector("text=running after 5 steps")
        assert [one for one in opened.trouble if "favicon" not in one] == []


def test_the_refresh_can_be_switched_off_and_the_end_of_the_server_is_said(browser, tmp_path):
    run = write_run(tmp_path / "r", steps=20, problems=5, until=4, sets=("hard",), status="running", rollouts=False)

    def go_on(step):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "reward/on_policy": 0.5}) + "\n")

    with live_server([run]) as server:
        page = Opened(browser, f"http://127.0.0.1:{server.server_address[1]}/").page
        page.uncheck("#live-refresh")
        go_on(5)
        page.wait_for_selector("text=There is news; switch on the refresh to see it.")
        page.reload()  # by the reader
        page.wait_for_selector("text=running after 5 steps")
        assert not page.is_checked("#live-refresh")
        go_on(6)
        page.wait_for_selector("text=There is news")
        assert page.is_visible("text=running after 5 steps")
        page.check("#live-refresh")
        page.wait_for_selector("text=running after 6 steps")
    page.wait_for_selector("text=The server does not answer any more.")
    assert page.is_visible("text=running after 6 steps")


LOOKED_AT = """() => {
  const all = (selector, of) => [...document.querySelectorAll(selector)].map(of);
  return {
    pressed: all("main [aria-pressed=true]", (one) => one.textContent),
    fields: all("main select, main input", (one) => one.value),
    picked: all("#picks [aria-current=true]", (one) => one.textContent),
    groups: all("#group article", (one) => one.ariaLabel),
    problem: document.querySelector("#history .prompt").textContent,
    open: all("[aria-expanded=true]", (one) => one.ariaLabel),
    details: all("details", (one) => one.open),
    focus: document.activeElement.dataset.mode,
    axis: document.querySelector("#chart-0 .role-axis-title text")?.textContent,
  };
}"""
HEIGHT = "document.getElementById('token-legend').getBoundingClientRect().top"


def test_the_live_page_keeps_what_is_looked_at(browser, tmp_path):
    run = write_run(tmp_path / "r", steps=40, problems=9, until=20, sets=("hard",), status="running", every=5)
    with live_server([run]) as server:
        opened = Opened(browser, f"http://127.0.0.1:{server.server_address[1]}/")
        page = opened.page
        page.wait_for_selector("text=running after 20 steps")
        page.click("[data-axis=tokens]")
        page.fill("[name=from]", "50000")
        page.fill("[name=to]", "120000")
        page.select_option("[name=step]", "20")
        page.fill("[name=text]", "q")
        page.click("#picks button >> nth=2")
        page.click(".timeline button >> nth=1")
        page.select_option("#trace-choice", "1")
        page.select_option("[name=change]", "won")
        page.select_option("[name=problem]", index=1)
        page.click("details summary")
        page.click("[aria-label^='Show the numbers']")
        page.click("[data-mode=entropy]")
        page.wait_for_selector("#chart-0 svg")
        page.evaluate("document.getElementById('group').scrollIntoView()")
        page.wait_for_timeout(500)
        before, height = page.evaluate(LOOKED_AT), page.evaluate(HEIGHT)
        assert (len(before["groups"]), before["focus"], before["open"] != []) == (2, "entropy", True)
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 21, "reward/on_policy": 0.5}) + "\n")
        page.wait_for_selector("text=running after 21 steps", state="attached")
        page.wait_for_function(f"(height) => Math.abs({HEIGHT} - height) < 3", arg=height)
        page.evaluate("document.getElementById('chart-0').scrollIntoView()")
        page.wait_for_selector("#chart-0 svg")
        assert page.evaluate(LOOKED_AT) == before
        assert page.locator("#everything").is_visible()  # zoomed
        assert [one for one in opened.trouble if "favicon" not in one] == []


@pytest.mark.slow
def test_a_large_page_is_small_and_opens_at_once(browser, tmp_path):
    """1,000 steps, 2,000 rollouts of some 250 tokens, half of them token by token."""
    run = write_run(tmp_path / "r", steps=1000, problems=100, every=100, text="a word or two " * 18)
    first = run / "rollouts" / "step-000001.jsonl"
    for step in range(31, 970, 31):
        shutil.copy(first, first.with_name(f"step-{step:06d}.jsonl"))
    report = write_report([run], tmp_path / "report.html")
    assert report.stat().st_size < 5_000_000
    page = Opened(browser, report.as_uri()).page
    page.wait_for_selector("#group article")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    seconds = page.evaluate("performance.now()") / 1000  # since the page was asked for
    rollouts = page.evaluate("values.groups.reduce((sum, group) => sum + group.rollouts.length, 0)")
    print(f"{report.stat().st_size:,} bytes, {rollouts} rollouts, open after {seconds:.2f} s")
    assert rollouts >= 2000
    assert seconds < 2
