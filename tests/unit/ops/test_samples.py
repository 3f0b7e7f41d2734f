"""Promise: the samples in config/ are well-formed and fit the node: every metric they name exists
and is documented, every alert says what to do, the proxies point at the default port and buffer
nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.errors import ERRORS
from node.ops.metrics import METRICS
from node.settings_sections import HttpSettings, MetricsSettings

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"
PORT = HttpSettings().port


def metric_names(expression: str) -> set[str]:
    """Names of the node's metrics in a PromQL expression, without what histograms append."""
    found = re.findall(r"\bnodestr_\w+", expression)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def labels_used(expression: str) -> set[tuple[str, str]]:
    """(metric, label) of every selector."""
    return {
        (re.sub(r"_bucket$", "", name), label)
        for name, selector in re.findall(r"\b(nodestr_\w+)\{([^}]*)\}", expression)
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)
    }


def test_every_metric_is_documented_with_kind_and_labels_and_nothing_else() -> None:
    rows = re.findall(
        r"^\| `(nodestr_\w+)` \| (\w+) \| (.+?) \| (.+) \|$",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    assert {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text)
        for name, kind, labels, text in rows
    } == {name: (metric.kind, metric.labels, metric.help) for name, metric in METRICS.items()}


def test_names_follow_the_rules() -> None:
    for name, metric in METRICS.items():
        assert metric.help.endswith("."), name
        assert (metric.kind == "counter") == name.endswith("_total"), name
        assert metric.kind in {"counter", "gauge", "histogram"}


def check_expressions(expressions: list[str]) -> None:
    assert expressions
    for expression in expressions:
        assert metric_names(expression) <= set(METRICS), expression
        for name, label in labels_used(expression):
            assert label in {*METRICS[name].labels, "instance", "le", "job"}, expression
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression
        for name in re.findall(r"rate\((nodestr_\w+)", expression):
            assert METRICS[re.sub(r"_bucket$", "", name)].kind != "gauge", expression


def test_the_dashboard_shows_metrics_that_exist() -> None:
    document: dict[str, Any] = json.loads((CONFIG / "grafana-dashboard.json").read_text())
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    check_expressions([target["expr"] for panel in panels for target in panel["targets"]])
    shown = set().union(*(metric_names(t["expr"]) for panel in panels for t in panel["targets"]))
    assert len(shown) > 20


def test_every_alert_is_about_a_metric_that_exists_and_says_what_to_do() -> None:
    document = yaml.safe_load((CONFIG / "alerts.yml").read_text())
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 8
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "action"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            names = metric_names(rule["expr"])
            assert label == "instance" or all(label in METRICS[n].labels for n in names)
    expressions = [rule["expr"] for rule in rules]
    check_expressions([e for e in expressions if "nodestr_" in e])
    assert [e for e in expressions if "nodestr_" not in e] == ['up{job="nodestr"} == 0']
    text = (CONFIG / "alerts.yml").read_text()
    assert f"{MetricsSettings().host}:{MetricsSettings().port}" in text


def test_every_error_code_has_its_line_for_the_operator() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## By error code")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page.partition("\n## ")[0], re.MULTILINE)
    assert sorted(code for code, _ in rows) == sorted(ERRORS)


def nginx_blocks(text: str) -> int:
    """How many blocks; every statement must end in ; or open or close a block."""
    depth = blocks = 0
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        assert line[-1] in "{};", line
        depth += line.count("{") - line.count("}")
        blocks += line.count("{")
        assert depth >= 0
    assert depth == 0
    return blocks


def test_nginx_passes_everything_on_at_once() -> None:
    text = (CONFIG / "nginx.conf").read_text()
    assert nginx_blocks(text) == 5
    assert f"server 127.0.0.1:{PORT};" in text
    assert "proxy_buffering off;" in text
    size = re.search(r"client_max_body_size (\d+)m;", text)
    assert size is not None
    assert int(size[1]) * 2**20 == HttpSettings().max_body_bytes


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
def test_nginx_accepts_it(tmp_path: Path) -> None:
    text = (CONFIG / "nginx.conf").read_text()
    text = re.sub(r"(listen .*?) ssl http2;", r"\1;", text)
    text = re.sub(r"\s+ssl_certificate.*;", "", text)
    wrapper = tmp_path / "nginx.conf"
    wrapper.write_text(f"events {{}}\npid {tmp_path}/pid;\nhttp {{\n{text}\n}}\n")
    done = subprocess.run(
        ["nginx", "-t", "-c", wrapper, "-e", tmp_path / "log"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_caddyfile_is_balanced_and_streams() -> None:
    text = (CONFIG / "Caddyfile").read_text()
    code = "\n".join(line.partition("#")[0] for line in text.splitlines())
    assert code.count("{") == code.count("}")
    assert f"reverse_proxy 127.0.0.1:{PORT} {{" in code
    assert "flush_interval -1" in code


@pytest.mark.skipif(not shutil.which("caddy"), reason="needs caddy")
def test_caddy_accepts_it() -> None:
    command = ["caddy", "validate", "--adapter", "caddyfile", "--config", CONFIG / "Caddyfile"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tor_leads_to_the_default_port() -> None:
    lines = [
        line.split()
        for line in (CONFIG / "torrc").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ["HiddenServicePort", "80", f"127.0.0.1:{PORT}"] in lines
    assert lines[0][0] == "HiddenServiceDir"
    assert all(line[0].startswith("HiddenService") and len(line) >= 2 for line in lines)


@pytest.mark.skipif(not shutil.which("tor"), reason="needs tor")
def test_tor_accepts_it(tmp_path: Path) -> None:
    text = (CONFIG / "torrc").read_text().replace("/var/lib/tor/nodestr/", f"{tmp_path}/hs/")
    (tmp_path / "torrc").write_text(f"DataDirectory {tmp_path}/data\n{text}")
    done = subprocess.run(
        ["tor", "--verify-config", "-f", tmp_path / "torrc"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_container_is_no_root_and_starts_what_exists() -> None:
    lines = (ROOT / "Containerfile").read_text().splitlines()
    words = {line.split()[0] for line in lines if line and line[0] not in "# \t"}
    assert words <= {
        "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "STOPSIGNAL",
        "HEALTHCHECK", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert "USER 10001:10001" in lines
    assert "STOPSIGNAL SIGTERM" in lines
    assert f"EXPOSE {PORT}" in lines
    assert lines[-1] == 'CMD ["serve"]'
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line


def test_the_image_is_built_from_the_program_alone() -> None:
    ignored = (ROOT / ".containerignore").read_text()
    assert ignored == (ROOT / ".dockerignore").read_text()
    let_in = {line[1:] for line in ignored.splitlines() if line.startswith("!")}
    assert "*" in ignored.splitlines()
    copied = {
        name
        for line in (ROOT / "Containerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    }
    assert let_in == copied


def test_the_container_asks_by_a_command_that_exists() -> None:
    text = (ROOT / "Containerfile").read_text()
    (check,) = re.findall(r"^ +CMD (\[.*\])$", text, re.MULTILINE)
    assert json.loads(check) == ["/opt/nodestr/bin/nodestr", "health", "--live"]


def test_make_install_puts_the_parts_where_the_unit_looks(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "-n", "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"-m venv {tmp_path}/opt/x" in done.stdout
    assert "--require-hashes -r requirements.lock" in done.stdout
    assert "sed 's#/opt/nodestr#/opt/x#g' systemd/nodestr.service" in done.stdout
    assert f"{tmp_path}/etc/systemd/system/nodestr.socket" in done.stdout
    assert "daemon-reload" not in done.stdout
