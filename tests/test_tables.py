"""Tables in a terminal, and in a file."""

from contraprune.tables import show_table


def test_a_table_goes_unbroken_into_a_pipe_and_into_a_window_of_its_width(capsys, monkeypatch):
    headers, row = ["task", *(f"model-{number}" for number in range(12))], ["rte", *["+0.0123"] * 12]
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table(headers, [row], note="")
    first, _, second, *_ = capsys.readouterr().out.splitlines()
    assert first.split() == headers
    assert second.split() == row
    monkeypatch.setenv("COLUMNS", "60")
    show_table(headers, [row], note="")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60
