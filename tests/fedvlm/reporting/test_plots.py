"""Pictures as PNG: each line beside what it is to be read against, none on top of another."""

import itertools
from dataclasses import replace

from fedvlm.reporting.plots import plot_bytes, plot_domains, plot_rounds, save_plots
from tests.fedvlm.reporting.samples import result


def test_u12_the_rounds_show_the_test_alone_and_no_legend_covers_them():
    ax = plot_rounds(result())
    assert ax.get_legend() is None
    assert "OOD" not in " ".join(str(line.get_label()) for line in ax.lines)
    told = [text.get_text() for text in ax.texts]
    assert told[0] == "federated 62"
    assert "central 71" in told
    heights = sorted(text.xy[1] for text in ax.texts)  # pyright: ignore
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.05


def test_u12_two_lines_that_coincide_are_one():
    same = plot_bytes(result())
    assert [line.get_label() for line in same.lines] == ["sent, and as much received"]
    rounds = [e | {"upload_bytes_per_client": 99} if e["round"] else e for e in result().rounds]
    other = plot_bytes(replace(result(), rounds=rounds))
    assert [line.get_label() for line in other.lines] == ["sent", "received"]


def test_a_server_without_data_draws_what_there_is(tmp_path):
    rounds = [
        {"round": 0},
        {"round": 1, "upload_bytes_per_client": 5, "download_bytes_per_client": 5},
    ]
    bare = replace(result(), rounds=rounds, summary={})
    assert not plot_rounds(bare).texts
    assert not plot_domains(bare).patches
    assert [path.name for path in save_plots(bare, tmp_path)] == [
        "rounds.png",
        "domains.png",
        "bytes.png",
    ]
