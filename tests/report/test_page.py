"""The page: whole without the network, safe whatever a model writes, honest about what is missing."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from synthetic import write_run, write_runs

from luffy.errors import RunError
from luffy.report import write_report
from luffy.report.embed import json_for_script

VOID = {"meta", "br", "input", "link", "img", "hr", "line"}
ATTACK = '</script><script>alert("x")</script><img src=x onerror=alert(1)>&amp;'


class Page(HTMLParser):
    """Elements with their attributes, the texts of scripts, and whether tags are balanced."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.scripts, self.texts, self.open = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += text
        elif not self.open or self.open[-1] != "style":
            self.texts.append(text)

    @property
    def values(self):
        return json.loads(self.scripts[0])

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = write_runs(tmp_path_factory.mktemp("runs") / "c", problems=50)
    return write_report([folder], folder / "report.html").read_text()


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def report_of(*folders):
    return Page(write_report(list(folders), folders[0].parent / "out" / "report.html").read_text())


def test_the_page_is_well_formed_and_has_its_parts(page):
    assert page.open == []
    assert "LUFFY and 5 rivals on miniature" in page.text
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {"verdicts", "accuracy", "curves", "cost", "dynamics", "groups", "settings"} <= set(identifiers)
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= set(identifiers)
    assert [tag for tag, _ in page.elements].count("h1") == 1
    assert page.text.count("✓ holds") > 10


def test_the_summary_says_what_was_trained_on_what_where_how_long(page):
    summary = page.text[page.text.index("What was trained on what") : page.text.index("What holds here")]
    for fact in (
        "Model miniature",
        "256 problems of 5 to 8 operations",
        "6 methods, seeds 0, 1, 2",
        "9.72M trained",
        "9 min in all",
        "Cost 0.15 machine hours Hardware",
        "A processor, 2 threads",
        "torch 2.9.0",
    ):
        assert fact in summary, fact
    assert "LUFFY 60 540k 420k 30 s 0.00833 32k" in page.text[page.text.index("Cost, and accuracy at equal cost") :]


def test_money_is_device_hours_times_the_stated_price(page, tmp_path):
    """Two methods, a run each of 3600 s; LUFFY on the GPUs of four processes: five device hours."""
    for method, hardware in (
        ("luffy", {"gpu": "A GPU", "processes": 4}),
        ("sft", {"processor": "P", "processes": 2, "threads": 1}),
    ):
        folder = write_run(tmp_path / "c" / method / "seed-0", method, steps=4, problems=5)
        for name, change in (("summary.json", {"seconds": 3600.0}), ("config.yaml", {"hardware": hardware})):
            path = folder / name
            path.write_text(json.dumps(yaml.safe_load(path.read_text()) | change))
    text = Page(write_report([tmp_path / "c"], tmp_path / "report.html", price=2.5).read_text()).text
    assert "Cost 5 device hours, 12.50 dollars at 2.5 a device and hour" in text
    assert "Hardware A GPU, P, 1 thread " in text
    assert "SFT 4 36k 0 1 h 00 min 1 2.50" in text
    assert "LUFFY 4 36k 28k 1 h 00 min 4 10.00" in text
    assert "The price, 2.5 dollars a device and hour, was given." in text
    alone = Page(write_report([tmp_path / "c" / "luffy" / "seed-0"], tmp_path / "alone.html", price=0).read_text()).text
    assert "Cost 4 GPU hours, 0.00 dollars at 0 a GPU and hour" in alone
    assert "dollars" not in page.text.lower()  # no price, no money


def test_one_is_not_several(tmp_path):
    for methods, seeds, said in ((("luffy", "sft"), 1, "2 methods, seed 0"), (("luffy",), 2, "1 method, seeds 0, 1")):
        folder = write_runs(tmp_path / methods[-1], methods, seeds, steps=4, problems=5)
        assert f"2: {said}" in report_of(folder).text


def test_warnings_stand_at_the_top(tmp_path):
    folder = write_run(tmp_path / "r", steps=10, problems=5, rollouts=False)
    lines = [json.loads(line) | {"verifier/failures": 1} for line in (folder / "metrics.jsonl").open()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report_of(folder).text
    assert text.index("the verifier failed 10 times") < text.index("What was trained on what")


def test_without_samples_the_page_says_what_is_not_judged_and_leaves_no_interval_out_of_range(tmp_path):
    folder = write_runs(tmp_path / "c", ("luffy", "sft"), 2, steps=10, problems=20, every=2)
    for path in folder.rglob("evaluations/*/*.jsonl"):
        path.unlink()
    page = report_of(folder)
    assert "The samples of 4 of 4 runs are not on disk" in page.text
    listed = page.text[page.text.index("Not judged") :]
    assert "Since the samples of the evaluations are not on disk" in listed
    assert "LUFFY forgets less than SFT (worked, unrelated)" in listed
    (hard,) = [chart for chart in page.values["charts"] if chart["description"].startswith("Accuracy on hard")]
    points = hard["data"]["values"]
    assert all(0 <= point["l"] <= point["v"] <= point["h"] <= 1 for point in points)
    intervals = re.findall(r"(-?[\d.]+)–(-?[\d.]+)", page.text[page.text.index("Share of problems solved") :])
    assert len(intervals) == 3 * 6  # base and two methods, on six sets
    assert all(0 <= float(end) <= 100 for found in intervals for end in found)


def test_with_everything_there_is_nothing_that_is_not_judged(page):
    assert "Not judged" not in page.text


def test_nothing_is_loaded_from_anywhere(html, page):
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "poster", "data", "action", "formaction"):
            assert name not in attributes, (tag, name)
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert attributes.get("href", "#").startswith("#")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_security_policy_allows_exactly_our_scripts(page):
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert not re.search(r"script-src[^;]*unsafe", policy)


def test_the_charts_have_every_quantity_and_every_method(page):
    descriptions = " ".join(chart["description"] for chart in page.values["charts"])
    for word in (
        "Accuracy on hard",
        "Reward of own",
        "Reward of the traces",
        "Entropy",
        "Length",
        "Cut off",
        "Engine gap",
        "Advantage of the traces",
        "Probability of trace tokens",
        "Teacher's style",
    ):
        assert word in descriptions
    assert page.values["times"] is not None
    assert [method["name"] for method in page.values["methods"]][-1] == "luffy"
    charts = sum(attributes.get("class") == "chart" for _, attributes in page.elements)
    assert charts == len(page.values["charts"]) + 2  # and the times, and the weights
    text = json.dumps(page.values["charts"])
    assert "http" not in re.sub(r"https://vega\.github\.io/schema/[a-z-]+/v[\d.]+\.json", "", text)


def test_what_a_model_writes_stays_text(tmp_path):
    folder = write_run(tmp_path / ATTACK.replace("/", "∕"), steps=10, problems=10, text=ATTACK)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("A processor", "<b onclick=alert(2)>"))
    html = write_report([folder], tmp_path / "report.html").read_text()
    page = Page(html)
    assert len(page.scripts) == 3
    assert "onerror" not in {name for _, attributes in page.elements for name in attributes}
    assert "onclick" not in {name for _, attributes in page.elements for name in attributes}
    assert "<b onclick=alert(2)>" in page.text
    assert any(
        "".join(r.get("tokens", r.get("text"))).startswith(ATTACK) for g in page.values["groups"] for r in g["rollouts"]
    )
    assert ATTACK not in html


def test_json_cannot_leave_its_script_element():
    text = json_for_script({"</script>": "<!-- & \u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": "<!-- & \u2028"}
    with pytest.raises(ValueError, match="JSON"):
        json_for_script(float("nan"))


def test_one_run(tmp_path):
    page = report_of(write_run(tmp_path / "r", steps=20, problems=20))
    assert "LUFFY on miniature" in page.text
    assert "finished, seed 0" in page.text
    assert "One finished seed of luffy" in page.text


def _with_line(folder, kind, line):
    path = sorted(folder.glob(f"{kind}/step-*.jsonl"))[0]
    path.write_text(json.dumps(line) + "\n")
    return path


def test_half_a_surrogate_pair_is_shown_and_no_error(tmp_path):
    folder = write_run(tmp_path / "r", steps=4, problems=5)
    _with_line(folder, "rollouts", {"problem": {"id": "a\ud800b", "prompt": "p"}, "rollouts": []})
    assert any("\\ud800" in json.dumps(group) for group in report_of(folder).values["groups"])


@pytest.mark.parametrize("line", [{"rollouts": 3}, {"rollouts": [{"tokens": 3, "logprobs": [1]}]}, {"problem": "p"}])
def test_a_line_that_no_run_writes_is_named(tmp_path, line):
    folder = write_run(tmp_path / "r", steps=4, problems=5)
    path = _with_line(folder, "rollouts", line)
    with pytest.raises(RunError, match=re.escape(str(path))):
        report_of(folder)


def test_a_configuration_nested_too_deeply_is_named(tmp_path):
    folder = write_run(tmp_path / "r", steps=4, problems=5)
    (folder / "config.yaml").write_text("config: " + "[" * 3000)
    with pytest.raises(RunError, match=r"config\.yaml: not valid YAML"):
        report_of(folder)


def test_files_that_are_no_step_are_passed_over(tmp_path):
    folder = write_run(tmp_path / "r", steps=4, problems=5)
    (folder / "rollouts" / "step-9e9.jsonl").write_text("{}\n")
    assert report_of(folder).values["groups"]


def test_an_unfinished_run_says_so(tmp_path):
    page = report_of(write_run(tmp_path / "r", steps=20, problems=20, until=12))
    assert "stopped after 12 steps; not counted" in page.text
    assert "unfinished: latest evaluation" in page.text
    assert page.values["charts"]


@pytest.mark.parametrize("kept", ["config.yaml", "metrics.jsonl", "summary.json"])
def test_a_run_with_hardly_anything(tmp_path, kept):
    folder = write_run(tmp_path / "r", steps=4, problems=5, rollouts=False)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.name != kept:
            path.unlink()
    page = report_of(folder)
    assert page.open == []
    assert page.values["groups"] == []


def test_metrics_and_sets_may_be_missing_for_some(tmp_path):
    first = write_run(tmp_path / "a", "luffy", steps=10, problems=10, sets=("hard",))
    second = write_run(tmp_path / "b", "sft", steps=10, problems=10, sets=("hard", "worked"), rollouts=False)
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    lines[3]["policy/entropy"] = float("nan")
    del lines[5]["policy/entropy"]
    (first / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report_of(first, second)
    assert "SFT and LUFFY on miniature" in page.text
    entropy = next(chart for chart in page.values["charts"] if chart["description"].startswith("Entropy"))
    values = next(iter(entropy["datasets"].values())) if "datasets" in entropy else entropy["data"]["values"]
    assert len(values) == 8


def test_the_same_method_twice_is_told_apart_by_folder(tmp_path):
    first = write_run(tmp_path / "gamma-0.1", steps=4, problems=5)
    second = write_run(tmp_path / "gamma-0.3", steps=4, problems=5)
    page = report_of(first, second)
    assert "gamma-0.1 and gamma-0.3 on miniature" in page.text


def test_a_long_run_stays_small(tmp_path):
    folder = write_run(tmp_path / "r", steps=1000, problems=10, every=500, text="word " * 2000)
    output = write_report([folder], tmp_path / "report.html")
    assert output.stat().st_size < 5_000_000
    values = Page(output.read_text()).values
    assert all(
        len(chart["layer"][0].get("data", chart.get("data", {})).get("values", [])) <= 61 for chart in values["charts"]
    )


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run found"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(RunError, match="at least one"):
        write_report([], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    folder = write_run(tmp_path / "r", steps=4, problems=5)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"report\.html: cannot be written"):
        write_report([folder], tmp_path / "file" / "report.html")
