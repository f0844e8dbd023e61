"""The page of a run: its numbers, what must not be in it, and how a browser shows it."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from contraprune.cli import main
from contraprune.errors import UserError
from contraprune.report import write_report
from contraprune.report.record import read_run, without_places
from contraprune.report.timeline import Timeline

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
NASTY = '"><script>alert(1)</script><b>'
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects the text and every address, and fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.addresses, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("kind", ["dense", "sparse", "slim"])
def test_a_run_leaves_a_page_with_its_numbers_and_nothing_from_elsewhere(runs, kind):
    run = getattr(runs, kind)
    content = (run / "report.html").read_text(encoding="utf-8")
    page, results = Page(content), json.loads((run / "results.json").read_text())
    assert f"{results['metrics']['accuracy']:.4f}" in page.text
    assert page.addresses == ["data:,"]
    assert not {"script", "iframe", "object", "img"} & set(page.tags)
    assert str(run.parent) not in content
    assert "url(" not in content
    assert "@import" not in content
    for svg in re.findall(r"<svg.*?</svg>", content, re.DOTALL):
        ElementTree.fromstring(svg)
    if kind != "dense":
        assert f"{results['teacher_metrics']['accuracy']:.4f}" in page.text
        assert f"{results['density']['encoder']:.1%}" in page.text
        for section in ("Over time", "What is left of each layer", "Map of the representations", "Settings"):
            assert section in page.text
    if kind == "slim":
        heads = sum(results["stages"][-1]["heads"])
        assert f"Attention heads: {heads} of 8 alive" in page.text
        assert "No map: the run had no bank" in page.text


def test_the_standard_error_is_that_of_a_proportion(runs):
    run = read_run(runs.sparse)
    p = run.results["metrics"]["accuracy"]
    draws = np.random.default_rng(0).binomial(48, p, 200_000) / 48
    assert run.standard_error() == pytest.approx(draws.std(), rel=0.02)


def test_what_others_wrote_is_text_and_never_markup(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs.sparse, run)
    (run / "SHA256SUMS").unlink()  # as its error says to somebody who edits results
    results = json.loads((run / "results.json").read_text())
    results["task"] = NASTY
    results["metrics"] = {NASTY: 0.5}
    results["teacher_metrics"] = {NASTY: 0.5}
    (run / "results.json").write_text(json.dumps(results))
    mapped = json.loads((run / "representations.json").read_text())
    mapped["names"] = [NASTY, "b"]
    (run / "representations.json").write_text(json.dumps(mapped))
    config = (run / "config.yaml").read_text().replace("task: toy", f"task: '{NASTY}'")
    (run / "config.yaml").write_text(config)
    content = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in content
    assert "<b>" not in content
    assert Page(content).text.count(NASTY) >= 4


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/alice/data", "data"),
        ("~/models/bert/", "bert"),
        ("C:\\users\\alice\\bert", "bert"),
        ("nyu-mll/glue", "nyu-mll/glue"),
        (["/a/b", "c"], ["b", "c"]),
        (0.5, 0.5),
    ],
)
def test_settings_are_shown_without_absolute_paths(value, shown):
    assert without_places(value) == shown


def test_stages_follow_each_other_on_one_axis():
    log = [{"stage": "a", "step": 5, "loss": 3.0}, {"stage": "a", "step": 9}, {"stage": "b", "step": 4, "loss": 2.0}]
    time = Timeline(log)
    assert time.points("loss") == [(5.0, 3.0), (13.0, 2.0)]
    assert (time.boundaries, time.last) == ([9], 13)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("results.json", "{", "results.json: not JSON"),
        ("results.json", None, "results.json: damaged or edited"),
        ("results.json", "[]", "expected the results of a run, found no metrics"),
        ("results.json", '{"metrics": {"a": 1}, "task": "t", "method": "m"}', "found no parameters"),
        ("log.jsonl", '{"step": 1}\nnonsense\n', "log.jsonl, line 2: expected what a run logs"),
        ("config.yaml", "[1", "config.yaml: not the settings of a run"),
        ("representations.json", "{}", "representations.json: not a map of representations"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(runs, tmp_path, capsys, file, text, message):
    run = tmp_path / "run"
    shutil.copytree(runs.dense, run)
    if text is None:
        (run / file).write_text((run / file).read_text().replace('"seed": ', '"seed": 1'))
    else:
        (run / "SHA256SUMS").unlink()
        (run / file).write_text(text)
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (run / "report.html").exists()


def test_latencies_are_shown_where_they_were_measured(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs.slim, run)
    rows = [
        {"model": model, "runtime": runtime, "dense": dense, "latency": {
            shape: {"p50_ms": factor * ms, "p95_ms": 2 * factor * ms, "speedup_over_dense": {"any": 9.0 / ms}}
            for shape, factor in (("1x128", 1), ("8x128", 8))}}
        for model, runtime, dense, ms in (("/home/alice/dense", "torch", True, 12.0), ("d", "openvino", True, 9.0),
                                          ("/home/alice/slim", "torch", False, 6.0), ("s", "openvino", False, 4.5))
    ]  # fmt: skip
    found = {"machine": {"cpu": "a processor", "threads": 1}, "shapes": ["1x128", "8x128"], "models": rows}
    (run / "bench.json").write_text(json.dumps(found))
    content = write_report(run).read_text(encoding="utf-8")
    text = Page(content).text
    assert "How fast 2.0× as fast as the dense model in its fastest runtime (4.5 ms in openvino)" in text
    assert "8 texts of 128 tokens" in text
    assert "1x128 slim torch 6.00 12.00 1.50×" in text
    assert "/home" not in content
    for row in rows:
        row["dense"] = False
        for latency in row["latency"].values():
            latency["speedup_over_dense"] = {}  # as without --against
    (run / "bench.json").write_text(json.dumps(found))
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "How fast 4.5 ms in openvino; no dense model was measured beside it" in text
    assert "times dense" not in text
    assert "No dense model was measured beside these." in text
    (run / "bench.json").write_text(json.dumps({"models": []}))
    with pytest.raises(UserError, match=r"bench\.json: not what contraprune bench --output writes"):
        write_report(run)


def test_a_run_without_its_model_and_log_still_has_a_page(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs.slim, run, ignore=shutil.ignore_patterns("model", "log.jsonl"))
    assert main(["report", str(run), "--output", str(tmp_path / "other.html")]) == 0
    assert "other.html" in capsys.readouterr().out
    text = Page((tmp_path / "other.html").read_text(encoding="utf-8")).text
    assert "The model is not in the run's directory any more" in text
    assert "There is no log.jsonl" in text


# ---- in a browser ----

_MEASURE = """<body><iframe width="390" height="3000"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, found = {};
  found.width = page.documentElement.scrollWidth;
  found.small = [...page.querySelectorAll("svg text")].filter(t => t.getBoundingClientRect().height < 10).length;
  found.charts = [...page.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().height > 40).length;
  found.texts = page.querySelectorAll("svg text").length;
  found.overlaps = [];
  for (const svg of page.querySelectorAll("svg")) {
    const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
    const all = svg.getBoundingClientRect();
    const cells = [...svg.querySelectorAll(".cell, .gone, .bar")].map(c => ["a cell", c.getBoundingClientRect()]);
    boxes.forEach(([a, p], i) => {
      if (p.left < all.left - 1 || p.right > all.right + 1) found.overlaps.push(a + " leaves the chart");
      for (const [b, q] of [...boxes.slice(i + 1), ...cells])
        if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 4 && q.top < p.bottom - 4)
          found.overlaps.push(a + " | " + b);
    });
  }
  document.title = JSON.stringify(found);
};
frame.srcdoc = PAGE;
</script>"""


def chromium(tmp_path: Path, file: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", *flags, f"file://{file}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("kind", ["sparse", "slim"])
def test_a_phone_shows_it_whole_with_labels_that_do_not_overlap(runs, tmp_path, kind):
    content = (getattr(runs, kind) / "report.html").read_text(encoding="utf-8")
    wrapper = tmp_path / "phone.html"
    wrapper.write_text(_MEASURE.replace("PAGE", json.dumps(content).replace("</", "<\\/")), encoding="utf-8")
    shown = chromium(tmp_path, wrapper, "--dump-dom", "--virtual-time-budget=3000").stdout
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", shown)[1]))
    assert found["width"] <= 390
    assert found["charts"] == content.count("<svg")
    assert found["texts"] > 30
    assert found["small"] == 0
    assert found["overlaps"] == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_has_nothing_to_complain_about_and_it_is_dark_in_the_dark(runs, tmp_path):
    brightness = {}
    for theme, flags in {"light": (), "dark": ("--blink-settings=preferredColorScheme=0",)}.items():
        picture = tmp_path / f"{theme}.png"
        size = "--window-size=900,700"
        done = chromium(tmp_path, runs.sparse / "report.html", f"--screenshot={picture}", size, *flags)
        assert "CONSOLE" not in done.stderr
        from matplotlib.image import imread  # noqa: PLC0415 - reads PNG

        brightness[theme] = float(imread(picture)[..., :3].mean())
    assert brightness["light"] > 0.8
    assert brightness["dark"] < 0.3
