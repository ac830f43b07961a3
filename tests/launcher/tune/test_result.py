# SPDX-License-Identifier: Apache-2.0
"""What is printed and written: the command line as a shell takes it, tables with all reasons, pictures that stand alone."""

import csv
import json
import shlex
from xml.etree import ElementTree

from simulated import CRASH, Simulated, latency, search, space, throughput

from slipstream.launcher.tune.show.plot import plot
from slipstream.launcher.tune.show.result import command_line, print_table, write_files
from slipstream.launcher.tune.verdict import judge

SPACE = space(ninstances=(1, 2, 4), use_logical_cores=("off", "on"))
SVG = "{http://www.w3.org/2000/svg}"


def verdict_of(answers, objective=""):
    table = dict(zip(SPACE, answers, strict=True))
    return judge(search(SPACE, Simulated(lambda trial: table[trial.configuration]), objective).course, SPACE[0])


ONE_GOAL = verdict_of([5, CRASH, 9, 3, 8, 7])


def both(rate, delay, instances):
    return (throughput(rate, instances=instances), latency("latency", delay, instances=instances))


def test_command_line_is_quoted():
    line = command_line(["--env", "A=b c"], SPACE[3], ["my script.py", "$x", "", "--flag"])
    assert shlex.split(line) == [
        *("ipexrun", "--env", "A=b c", "--ninstances", "2", "--use-logical-cores"),
        *("my script.py", "$x", "", "--flag"),
    ]
    assert command_line([], SPACE[0], ["--odd.py"]) == "ipexrun --ninstances 1 -- --odd.py"


def test_files(tmp_path):
    write_files(str(tmp_path), ONE_GOAL, "ipexrun x.py", list(ONE_GOAL.decisions), {"program": ["x.py"]})
    assert (tmp_path / "command.txt").read_text() == "ipexrun x.py\n"
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["winner"] == {"ninstances": "2", "use-logical-cores": "off"}
    assert [one["failed"] for one in result["standings"]] == [False] * 5 + [True]
    assert result["standings"][0]["medians"] == [9.0]
    rows = list(csv.DictReader((tmp_path / "record.csv").read_text().splitlines()))
    assert rows[0]["ninstances"] == "2" and float(rows[0]["throughput (samples/s)"]) == 9.0
    assert rows[-1]["note"] == "exit code 1: it crashed" and rows[-1]["throughput (samples/s)"] == ""
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")


def test_table_holds_every_configuration_and_reason(capsys):
    print_table(ONE_GOAL, ONE_GOAL.decisions)
    text = capsys.readouterr().out
    for one in SPACE:
        assert str(one) in text
    assert "failed: exit code 1: it crashed" in text
    assert "1.800" in text  # 9 against 5 of the first
    assert "winner: --ninstances 2: better than every other finalist" in text


def test_plot_is_well_formed_and_needs_nothing_else():
    text = plot(ONE_GOAL)
    root = ElementTree.fromstring(text)
    assert len(root.findall(f"{SVG}circle")) == 5
    assert len(root.findall(f"{SVG}circle[@class='best']")) == 1
    assert "href" not in text and "url(" not in text
    words = " ".join(element.text or "" for element in root.iter(f"{SVG}text"))
    assert "failed: exit code 1: it crashed" in words


def test_plot_of_two_goals_shows_the_front():
    pairs = [(10, 10), (30, 30), (20, 8), (15, 15), (12, 9), (5, 1)]
    answers = [both(rate, delay, one.instances) for (rate, delay), one in zip(pairs, SPACE, strict=True)]
    verdict = verdict_of(answers, "throughput,latency")
    root = ElementTree.fromstring(plot(verdict))
    assert len(root.findall(f"{SVG}circle")) == 12
    titles = [element.text for element in root.findall(f"{SVG}text[@class='title']")]
    assert titles[1] == "latency (ms) (lower is better) over throughput (samples/s) (higher is better)"


def test_plot_of_equal_values_and_of_text_that_is_markup():
    from dataclasses import replace

    verdict = verdict_of([5] * 6)
    odd = replace(verdict.standings[0], note="<b>&")
    assert ElementTree.fromstring(plot(replace(verdict, standings=(odd, *verdict.standings[1:])))) is not None


def test_nothing_succeeded(tmp_path, capsys):
    verdict = verdict_of([CRASH] * 6)
    assert verdict.winner is None
    write_files(str(tmp_path), verdict, "", list(verdict.decisions), {})
    assert not (tmp_path / "plot.svg").exists()
    assert json.loads((tmp_path / "result.json").read_text())["winner"] is None
    print_table(verdict, verdict.decisions)
    assert capsys.readouterr().out.count("it crashed") >= 6


def test_times_first_is_the_other_way_round_for_what_is_better_low(capsys):
    answers = [
        (latency("latency", value, instances=one.instances),) for value, one in zip([8, 4, 16, 9, 9, 9], SPACE, strict=True)
    ]
    verdict = verdict_of(answers, "latency")
    print_table(verdict, verdict.decisions)
    assert verdict.winner.values == (4.0,)
    assert "2.000" in capsys.readouterr().out
